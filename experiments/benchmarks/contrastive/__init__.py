"""A training step of a restricted Boltzmann machine: problems and one file per library."""
