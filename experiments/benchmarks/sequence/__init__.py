"""A Transformer language model: problems and one file per library."""
