"""Expectation and maximisation of Gaussian mixtures: problems and one file per library."""
