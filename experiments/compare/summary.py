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
      note: what to know of the values; "" where nothing.
      folder: of the run of the first seed, which holds its samples.
    """

    model: str
    family: str
    kind: str = ""
    values: dict[str, Value] = dataclasses.field(default_factory=dict)
    reason: str = ""
    note: str = ""
    folder: Any = None

    @property
    def sound(self) -> bool:
        """Whether every draw is a number and every test point has a density."""
        return not (self.get("num_bad_samples") > 0 or self.get("num_failed") > 0)

    @property
    def crossed(self) -> bool:
        """Whether the two ends of a bracket are the wrong way round, by more than their errors: the chains have not mixed."""
        if "nll_low_nats" not in self.values:
            return False
        low, high = self.values["nll_low_nats"], self.values["nll_high_nats"]
        return low.mean - high.mean > 3 * np.hypot(low.sem, high.sem)

    def get(self, name: str) -> float:
        """The mean of a number, NaN where there is none."""
        return self.values[name].mean if name in self.values else float("nan")


def row(model: str, cells: list[Cell], *, fresh: bool) -> Row:
    """The row of a model from its cells, one for each seed; of those that failed the others say nothing.

    fresh: whether each seed has test points of its own.
    """
    family = RECIPES[model].family if model in RECIPES else ""
    good = [cell for cell in cells if cell.error is None]
    lost = ", ".join(str(cell.config.seed) for cell in cells if cell.error is not None)
    if not good:
        return Row(model, family, reason=f"failed: {cells[0].error}")
    first = good[0]
    if "not_applicable" in first.found:
        return Row(model, family, reason=first.found["not_applicable"])
    note = f"without seed {lost}, which failed" if lost else ""
    values = averaged([cell.found for cell in good], fresh=fresh)
    return Row(model, family, first.found.get("likelihood", ""), values, note=note, folder=first.folder)


def averaged(found: list[dict[str, Any]], *, fresh: bool) -> dict[str, Value]:
    """The mean over seeds of every number, with the larger of two errors: that among the seeds, that of the test points.

    The second falls with the number of seeds only where each has fresh test points. A number that some seed lacks, or that is
    null in its file, is left out.
    """
    names = [name for name, value in found[0].items() if isinstance(value, int | float) and not name.endswith("_sem")]
    values = {}
    for name in names:
        each = np.array([np.nan if one.get(name) is None else one[name] for one in found], float)
        if np.isnan(each).any():
            continue
        spread = float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan")
        own = np.array([one.get(f"{name}_sem", np.nan) for one in found], float)
        measured = float(np.sqrt(np.mean(np.square(own))) / (np.sqrt(len(own)) if fresh else 1.0))
        values[name] = Value(float(np.mean(each)), float(np.nanmax([spread, measured])) if known(spread, measured) else np.nan)
    return values


def known(*values: float) -> bool:
    """Whether one of the numbers is not NaN."""
    return any(not np.isnan(value) for value in values)


class Advice(NamedTuple):
    """A model for a job, those that are level with it, and the measured reason."""

    job: str
    model: str
    level: str
    reason: str


def advice(rows: Iterable[Row]) -> list[Advice]:
    """Which model is for which job: the best by one measure among those that are good enough by another.

    Models that are level with it, within twice the errors, are named beside it.
    """
    rows = [one for one in rows if one.values and one.model != TRUTH and one.sound]
    score = "gap_nats" if any("gap_nats" in one.values for one in rows) else "nll_nats"
    exact = [one for one in rows if one.kind == "EXACT" and score in one.values]
    found = []

    def add(job: str, among: list[Row], by: str, *names: str) -> None:
        among = sorted((one for one in among if known(one.get(by))), key=lambda one: one.get(by))
        if among:
            level = ", ".join(one.model for one in among[1:] if level_with(one, among[0], by))
            found.append(Advice(job, among[0].model, level, told(among[0], by, *names)))

    add("the best exact density", exact, score, "num_params", "train_seconds")
    good = near(exact, score, lambda best: best + 0.02)
    add(
        "a density within 0.02 nats of it, the fewest parameters",
        [one for one in good if one.get("num_params")],
        "num_params",
        score,
    )
    add("a density within 0.02 nats of it, the shortest training", good, "train_seconds", score)
    add("a density within 0.02 nats of it, the fastest draws", good, "sample_seconds", score)
    sampled = [one for one in rows if "sliced_w2" in one.values]
    add("the samples nearest to the data", sampled, "sliced_w2", "c2st", "sample_seconds")
    close = near(sampled, "sliced_w2", lambda best: 1.5 * best)
    add("samples within 1.5 times that distance, the fastest draws", close, "sample_seconds", "sliced_w2")
    add("samples within 1.5 times that distance, the shortest training", close, "train_seconds", "sliced_w2")
    bounds = [one for one in rows if one.kind == "LOWER_BOUND"]
    add("the best bound, of models with latents or of dequantised data", bounds, "nll_nats", "num_params")
    brackets = [one for one in rows if one.kind == "UNNORMALIZED" and not one.crossed]
    add("the best energy", brackets, "nll_high_nats", "nll_low_nats")
    return found


def told(one: Row, *names: str) -> str:
    """Numbers of a row in words."""
    shown = {
        "num_params": f"{one.get('num_params'):,.0f} parameters",
        "train_seconds": f"{one.get('train_seconds'):.0f} s of training",
        "sample_seconds": f"{1_000 * one.get('sample_seconds'):,.0f} ms for the draws",
    }
    said = {"gap_nats": "gap", "nll_nats": "NLL", "sliced_w2": "sliced W2", "c2st": "C2ST"}
    said |= {"nll_high_nats": "NLL at most", "nll_low_nats": "at least"}
    return ", ".join(shown.get(name, f"{said.get(name, name)} {one.get(name):.4f}") for name in names)


def level_with(one: Row, best: Row, name: str) -> bool:
    """Whether a number is within twice the errors of the best, both taken for the smaller: what varies much is not level."""
    a, b = one.values[name], best.values[name]
    return known(a.sem, b.sem) and abs(a.mean - b.mean) <= 2 * float(np.sqrt(2) * np.nanmin([a.sem, b.sem]))


def near(rows: list[Row], name: str, limit: Callable[[float], float]) -> list[Row]:
    """The rows whose number is within a limit, which is a function of the best."""
    rows = [one for one in rows if known(one.get(name))]
    best = min((one.get(name) for one in rows), default=0.0)
    return [one for one in rows if one.get(name) <= limit(best)]
