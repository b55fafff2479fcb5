"""Flows of phi^4 on a lattice, trained on the action alone: problems and one file per library."""
