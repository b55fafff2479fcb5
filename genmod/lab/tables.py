"""Results as text."""

from typing import Any


def text_table(rows: list[dict[str, Any]]) -> str:
    """Dicts as an aligned text table; the columns are the keys in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def with_error(value: float, error: float, *, form: str = ".4f") -> str:
    """`value +- standard error`, both in one format, by default to four decimals."""
    return f"{value:{form}} +- {error:{form}}"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
