"""Continuous flows, flow matching and diffusions: problems and one file per library."""
