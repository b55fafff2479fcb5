"""What was measured as Markdown tables, for any family."""

import math
import platform
from collections.abc import Callable, Mapping
from typing import Any

import genmod as gm
from experiments.benchmarks.peer import OURS, Family

Cells = Mapping[str, Any]
Values = Mapping[str, Any]  # by library


def number(value: float, digits: int = 3) -> str:
    """Plain notation with `digits` significant digits."""
    return f"{value:.{max(0, digits - len(str(int(abs(value)))))}f}"


def with_ratio(values: Values, library: str) -> str:
    """Beside the ratio to the fastest peer, genmod excluded."""
    peers = [value for each, value in values.items() if each != OURS]
    return number(values[library]) + (f" ({values[library] / min(peers):.2f})" if peers else "")


def seconds(values: Values, library: str) -> str:
    return f"{values[library]:.1f}"


def figure(values: Values, library: str) -> str:
    """What a check found; numbers below 0.01 are errors."""
    value = values[library]
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.1e}" if abs(value) < 1e-2 else number(value, 4)
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(cells: Cells, columns: list[str], values: Callable[[dict], dict], text: Callable[[Values, str], str]) -> str:
    """A row per cell and key of `values(what is known of a library)`; n/a for a library that lacks the key."""
    libraries = list(versions(cells))
    rows = []
    for name, cell in cells.items():
        found = {library: values(mine) for library, mine in cell["libraries"].items()}
        for key in dict.fromkeys(key for mine in found.values() for key in mine):
            at = {library: mine[key] for library, mine in found.items() if key in mine}
            rows.append((name, *key, *(text(at, library) if library in at else "n/a" for library in libraries)))
    return gm.lab.markdown(gm.lab.Table(("cell", *columns, *libraries), tuple(rows)))


def times(cells: Cells, unit: str, family: Family) -> str:
    """Median milliseconds per call."""

    def values(mine: dict) -> dict[tuple, float]:
        known = {op: each[unit] for op, each in mine["time"].items()}
        for row, (long, short, num) in family.differences.items():
            if long in known and short in known:
                known[row] = (known[long] - known[short]) / num
        return {(op,): value for op, value in known.items()}

    return table(cells, ["op"], values, with_ratio)


def compilation(mine: dict) -> dict[tuple, float]:
    """Of a library that compiles, CPU seconds: building a peer, and the first call of an operation less the second."""
    if not mine.get("peer", {}).get("compiles"):
        return {}
    calls = {(op,): max(0.0, pair["first"][0] - pair["second"][0]) for op, pair in mine["first"].items()}
    return {("build",): mine["peer"]["build"][0]} | calls


def checks(mine: dict) -> dict[tuple, Any]:
    """What the results are worth, and the size of the model."""
    size = {("", "parameters"): mine["peer"]["num_params"]} if "peer" in mine else {}
    return size | {(op, label): value for op, values in mine["checks"].items() for label, value in values.items()}


def missing(cells: Cells) -> str:
    """Why there are no numbers, a line per library and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, cell in cells.items():
        for library, mine in cell["libraries"].items():
            for what, reason in mine["missing"].items():
                reasons.setdefault((library, reason), []).append(name if what == "peer" else f"{name} {what}")
    return "\n".join(f"- {library}: {reason} ({', '.join(where)})" for (library, reason), where in reasons.items())


def versions(cells: Cells) -> dict[str, str]:
    """Of all libraries that were measured."""
    return {library: version for cell in cells.values() for library, version in cell["versions"].items()}


def markdown(family: Family, cells: Cells) -> str:
    """The whole report."""
    loads = [load for cell in cells.values() for load in cell["load"]]
    sections = {
        "CPU milliseconds per call (ratio to the fastest peer)": times(cells, "cpu_ms", family),
        "Wall milliseconds per call (ratio to the fastest peer)": times(cells, "wall_ms", family),
        "Compilation, CPU seconds": table(cells, ["op"], compilation, seconds),
        "What the results are worth": table(cells, ["op", "what"], checks, figure),
        "Not measured": missing(cells),
    }
    parts = [
        f"# Benchmark: {family.title}",
        f"{', '.join(map(' '.join, versions(cells).items()))}; Python {platform.python_version()}, {platform.platform()}; load "
        f"{min(loads):.1f} to {max(loads):.1f}; {sum(cell['seconds'] for cell in cells.values()):.0f} s in all.",
        family.notes,
    ]
    return "\n\n".join(parts + [f"## {title}\n\n{text}" for title, text in sections.items() if text])
