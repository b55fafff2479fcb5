"""Benchmarks of genmod against other libraries, each re-runnable by one command."""
