"""Runs of experiments: one folder per config, resumable; tables and figures."""

from genmod.lab import panels as panels, plot as plot
from genmod.lab.run import Run as Run, execute as execute, locate as locate, main as main
from genmod.lab.tables import text_table as text_table, with_error as with_error
