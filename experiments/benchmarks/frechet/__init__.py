"""The Frechet distance of features: problems and one file per library."""
