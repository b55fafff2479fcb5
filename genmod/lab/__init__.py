"""Runs of experiments: one folder per config, resumable; tables, figures, and documents of them."""

from genmod.lab import panels as panels, plot as plot
from genmod.lab.document import (
    Cell as Cell,
    Document as Document,
    Figure as Figure,
    Heading as Heading,
    Reason as Reason,
    Table as Table,
    Text as Text,
    markdown as markdown,
    number as number,
)
from genmod.lab.run import Run as Run, execute as execute, locate as locate, main as main, write_text as write_text
from genmod.lab.tables import text_table as text_table, with_error as with_error
from genmod.lab.web import page as page
