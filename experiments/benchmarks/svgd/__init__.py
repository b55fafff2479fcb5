"""Stein variational gradient descent: problems and one file per library."""
