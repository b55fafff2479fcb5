"""Flows on vectors and images: problems and one file per library."""
