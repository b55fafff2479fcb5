"""Runnable experiments: one script per result."""
