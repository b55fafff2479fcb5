"""From cells to rows: means over seeds, their errors, and what the rows say about which model is for which job."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments.compare.cells import Cell
from experiments.compare.recipes import RECIPES, TRUTH


class Value(NamedTuple):
    """A number with its standard error; NaN where it has none."""

    mean: float
    sem: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on one data set.

    Attributes:
      model, family: of the recipe. kind: of its likelihood, "" where it was not trained.
      values: the numbers by their names. reason: why there are none; "" where there are.
      folder: of the run of the first seed, which holds its samples.
    """

    model: str
    family: str
    kind: str = ""
    values: dict[str, Value] = dataclasses.field(default_factory=dict)
    reason: str = ""
    folder: Any = None

    def get(self, name: str) -> float:
        """The mean of a number, NaN where there is none."""
        return self.values[name].mean if name in self.values else float("nan")


def row(model: str, cells: list[Cell]) -> Row:
    """The row of a model from its cells, one for each seed."""
    family = RECIPES[model].family if model in RECIPES else ""
    for cell in cells:
        if reason := cell.error or cell.found.get("not_applicable"):
            return Row(model, family, reason=f"failed: {reason}" if cell.error else reason)
    kind = cells[0].found.get("likelihood", "")
    return Row(model, family, kind, averaged([cell.found for cell in cells]), folder=cells[0].folder)


def averaged(found: list[dict[str, Any]]) -> dict[str, Value]:
    """The mean over seeds of every number, with the larger of two errors: that among the seeds, that of the test points.

    A number that some seed lacks, or that is null in its file, is left out.
    """
    names = [name for name, value in found[0].items() if isinstance(value, int | float) and not name.endswith("_sem")]
    values = {}
    for name in names:
        each = np.array([np.nan if one.get(name) is None else one[name] for one in found], float)
        if np.isnan(each).any():
            continue
        spread = float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan")
        own = np.array([one.get(f"{name}_sem", np.nan) for one in found], float)
        measured = float(np.sqrt(np.sum(np.square(own))) / len(own))
        values[name] = Value(float(np.mean(each)), float(np.nanmax([spread, measured])) if known(spread, measured) else np.nan)
    return values


def known(*values: float) -> bool:
    """Whether one of the numbers is not NaN."""
    return any(not np.isnan(value) for value in values)


class Advice(NamedTuple):
    """A model for a job, and the measured reason."""

    job: str
    model: str
    reason: str


def advice(rows: Iterable[Row]) -> list[Advice]:
    """Which model is for which job: the best by one measure among those that are good enough by another."""
    rows = [row for row in rows if row.values and row.model != TRUTH]
    score = "gap_nats" if any("gap_nats" in row.values for row in rows) else "nll_nats"
    exact = [row for row in rows if row.kind == "EXACT" and score in row.values]
    said = {"gap_nats": "gap", "nll_nats": "NLL", "sliced_w2": "sliced W2"}

    def told(row: Row, *names: str) -> str:
        shown = {"num_params": f"{row.get('num_params'):,.0f} parameters", "train_seconds": f"{row.get('train_seconds'):.0f} s"}
        shown["sample_seconds"] = f"{1_000 * row.get('sample_seconds'):,.0f} ms for the samples"
        return ", ".join(shown.get(name, f"{said.get(name, name)} {row.get(name):.4f}") for name in names)

    found = []

    def add(job: str, among: list[Row], by: str, *names: str) -> None:
        among = [row for row in among if known(row.get(by))]
        if among:
            best = min(among, key=lambda row: row.get(by))
            found.append(Advice(job, best.model, told(best, *dict.fromkeys((by, *names)))))

    add("the best exact density", exact, score, "num_params", "train_seconds")
    good = near(exact, score, lambda best: best + 0.02)
    add("a density within .02 nats of it, the fewest parameters", good, "num_params", score)
    add("a density within .02 nats of it, the shortest training", good, "train_seconds", score)
    add("a density within .02 nats of it, the fastest draws", good, "sample_seconds", score)
    sampled = [row for row in rows if "sliced_w2" in row.values]
    add("the samples nearest to the data", sampled, "sliced_w2", "c2st", "sample_seconds")
    close = near(sampled, "sliced_w2", lambda best: 1.5 * best)
    add("samples within 1.5 times that distance, the fastest draws", close, "sample_seconds", "sliced_w2")
    add("samples within 1.5 times that distance, the shortest training", close, "train_seconds", "sliced_w2")
    bounds = [row for row in rows if row.kind == "LOWER_BOUND"]
    add("the best bound, of models with latents or of dequantised data", bounds, "nll_nats", "num_params")
    brackets = [row for row in rows if row.kind == "UNNORMALIZED"]
    add("the best energy", brackets, "nll_high_nats", "nll_low_nats")
    return found


def near(rows: list[Row], name: str, limit: Callable[[float], float]) -> list[Row]:
    """The rows whose number is within a limit, which is a function of the best."""
    rows = [row for row in rows if known(row.get(name))]
    best = min((row.get(name) for row in rows), default=0.0)
    return [row for row in rows if row.get(name) <= limit(best)]
