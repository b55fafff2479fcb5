"""genmod against other libraries, each family re-runnable by one command: `python -m experiments.benchmarks FAMILY`."""
