"""One table over all families: `python -m experiments.compare`."""
