"""Variational autoencoders: problems and one file per library."""
