"""The report: for each data set a table, the samples of all models in one figure, the densities, and a model for each job."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import genmod as gm
from experiments.compare import model_on_data
from experiments.compare.cells import Cell
from experiments.compare.recipes import TRUTH
from experiments.compare.summary import Row, advice, level_with, row
from experiments.density import TOYS

TITLE = "Families side by side"
INTRO = """
Every model is trained by {steps:,} steps of {batch} rows and measured with its best parameters by validation, but for those whose
recipe says otherwise (experiments/compare/vectors.py and discrete.py): models fitted without gradients, games and chains, which
are not validated, and a continuous flow, whose steps cost many times those of others. Errors of likelihoods are standard errors,
the larger of that over {seeds} seeds and that of the test points; those of distances are over seeds, and with one seed of the
measure alone. Seconds are those of one core; training includes compilation where no run before had compiled the program, so
that seconds, and what is said of the shortest and the fastest, differ from run to run. Draws are {samples:,} at once.

The likelihood of each model says what it is. EXACT: the NLL is that of the model. ESTIMATE: in expectation. LOWER_BOUND: the NLL
is at most the number shown. UNNORMALIZED: the NLL lies between two numbers, by annealed importance sampling of log Z from both
sides, the upper as far as the chains have mixed. NONE: there are samples alone.

The gap is log p of the law less log p of the model, in the mean of test points: KL(law || model). Sliced W2, MMD and C2ST compare
{compared:,} samples, or as many as there are test points, with test points, real numbers in standard deviations of the data,
levels as they are; below 50 test points they are left out. C2ST is the held-out accuracy of a classifier, 0.5 where it cannot
tell them apart; coverage is the share of test points near a sample. The row "truth" shows what fresh draws of the law, or rows
held out, reach: a model is better by chance alone. Bold: the best, and all that are level with it within twice the errors.
"""
DISTANCES = {"sliced W2": "sliced_w2", "MMD^2": "mmd2", "C2ST": "c2st", "coverage": "coverage"}
SIGNS = {"LOWER_BOUND": "at most ", "ESTIMATE": "about "}


@dataclasses.dataclass(frozen=True)
class Section:
    """One data set.

    Attributes:
      data: its name. rows: of the models, those that do not apply last.
      limit, num_modes: the exact entropy and the number of modes, None where not known.
      reason: why there are no rows; "" where there are.
    """

    data: str
    rows: tuple[Row, ...]
    limit: float | None = None
    num_modes: int | None = None
    reason: str = ""

    @classmethod
    def of(cls, data: str, names: list[str], cells: list[Cell], reason: str = "") -> "Section":
        """The section of a data set from all cells, of which there are some for each name."""
        if reason:
            return cls(data, (), reason=reason)
        cells, fresh = [cell for cell in cells if cell.config.data == data], data in TOYS
        rows = [row(name, [cell for cell in cells if cell.config.model == name], fresh=fresh) for name in names]
        known = {name: value for cell in cells for name, value in cell.found.items() if name in ("limit_nats", "of_modes")}
        return cls(data, tuple(sorted(rows, key=lambda one: bool(one.reason))), known.get("limit_nats"), known.get("of_modes"))

    @property
    def heading(self) -> gm.lab.Heading:
        """What stands above it."""
        return gm.lab.Heading(self.data if self.limit is None else f"{self.data}: exact limit {self.limit:.4f} nats")

    @property
    def shown(self) -> list[Row]:
        """The rows with numbers."""
        return [one for one in self.rows if one.values]

    def metrics(self) -> dict[str, float]:
        """Likelihoods and gaps as entries of metrics.json."""
        found = {} if self.limit is None else {f"{self.data}_limit_nats": self.limit}
        for one in self.shown:
            for name, value in one.values.items():
                if name.startswith(("nll_", "gap_")):
                    found |= {f"{self.data}_{one.model}_{name}": value.mean, f"{self.data}_{one.model}_{name}_sem": value.sem}
        return found

    def table(self) -> gm.lab.Table:
        """The table of the report."""
        columns = ["model", "family", "parameters", "train, s", "sample, s", "likelihood", "NLL, nats"]
        columns += ["gap, nats"] if self.limit is not None else []
        columns += [*DISTANCES, *(("modes", "KL of modes") if self.num_modes else ())]
        best = self._best()
        lines: list[tuple[Any, ...]] = []
        for one in self.rows:
            if one.reason:
                lines.append((one.model, one.family, gm.lab.Reason(one.reason)))
                continue
            cells = self._cells(one)
            lines.append(tuple(dataclasses.replace(cells[name], best=one.model in best.get(name, ())) for name in columns))
        return gm.lab.Table(tuple(columns), tuple(lines))

    def _cells(self, one: Row) -> dict[str, gm.lab.Cell]:
        modes = one.get("num_modes")
        cells = {
            "model": gm.lab.Cell(one.model + remarks(one)),
            "family": gm.lab.Cell(one.family),
            "parameters": plain(one, "num_params", ",.0f") if one.get("num_params") else gm.lab.Cell("the data"),
            "train, s": plain(one, "train_seconds", ".0f"),
            "sample, s": plain(one, "sample_seconds", ".3f"),
            "likelihood": gm.lab.Cell(one.kind),
            "NLL, nats": likelihood(one, "nll"),
            "gap, nats": likelihood(one, "gap"),
            "modes": gm.lab.Cell("") if np.isnan(modes) else gm.lab.Cell(f"{modes:.3g} of {self.num_modes}", modes),
            "KL of modes": plain(one, "modes_kl_nats", ".4f") if "modes_kl_nats" in one.values else gm.lab.Cell("inf"),
        }
        return cells | {title: measured(one, name, 5 if name == "mmd2" else 3) for title, name in DISTANCES.items()}

    def _best(self) -> dict[str, list[str]]:
        """The models that are best in a column, all that are level, where the column has an order that means something."""
        rows = [one for one in self.shown if one.model != TRUTH and one.sound]
        exact = [one for one in rows if one.kind == "EXACT"]
        wanted = {"NLL, nats": (exact, "nll_nats"), "gap, nats": (exact, "gap_nats"), "sliced W2": (rows, "sliced_w2")}
        found = {}
        for title, (among, name) in wanted.items():
            among = [one for one in among if np.isfinite(one.get(name))]
            if among:
                best = min(among, key=lambda one: one.get(name))
                # The errors of an NLL are mostly those of the test points, which all models share; those of a gap are its own.
                own = "gap_nats" if name == "nll_nats" and "gap_nats" in best.values else name
                found[title] = [one.model for one in among if one is best or level_with(one, best, own)]
        return found


def remarks(one: Row) -> str:
    """What stands in brackets behind the name of a model."""
    bad, failed = one.get("num_bad_samples"), one.get("num_failed")
    said = [one.note] if one.note else []
    said += [f"{bad:.3g} of its draws are no numbers"] if bad > 0 else []
    said += [f"no density at {failed:.3g} points"] if failed > 0 else []
    said += ["the ends have crossed: its chains have not mixed"] if one.crossed else []
    return f" ({'; '.join(said)})" if said else ""


def plain(one: Row, name: str, form: str) -> gm.lab.Cell:
    """A number without its error; empty where there is none."""
    return gm.lab.Cell("") if np.isnan(one.get(name)) else gm.lab.number(one.get(name), form=form)


def measured(one: Row, name: str, digits: int) -> gm.lab.Cell:
    """A number and its error; empty where there is none."""
    if name not in one.values:
        return gm.lab.Cell("")
    value = one.values[name]
    return gm.lab.number(value.mean, None if np.isnan(value.sem) else value.sem, f".{digits}f")


def likelihood(one: Row, name: str) -> gm.lab.Cell:
    """An NLL or a gap, as its kind is: a number, a bound, or two ends."""
    if f"{name}_low_nats" not in one.values:
        cell = measured(one, f"{name}_nats", 4)
        return dataclasses.replace(cell, text=SIGNS.get(one.kind, "") + cell.text) if cell.text else cell
    low, high = one.values[f"{name}_low_nats"], one.values[f"{name}_high_nats"]
    return gm.lab.Cell(f"{low.mean:.4f} to {gm.lab.with_error(high.mean, max(low.sem, high.sem))}", high.mean)


def document(
    budget: model_on_data.Config, seeds: int, sections: list[Section], shown: dict[str, list[gm.lab.Figure]]
) -> gm.lab.Document:
    """The report, with the figures that there are by data set."""
    sizes = {"steps": budget.num_steps, "batch": budget.batch_size, "samples": budget.num_samples}
    parts: list[Any] = [gm.lab.Text(INTRO.format(seeds=seeds, compared=budget.num_compared, **sizes))]
    for section in sections:
        if section.reason:
            parts += [section.heading, gm.lab.Text(f"Not made: {section.reason}")]
            continue
        parts += [section.heading, section.table(), *shown.get(section.data, ())]
        if said := advice(section.rows):
            parts.append(gm.lab.Heading(f"Which model for which job, on {section.data}", level=3))
            parts.append(gm.lab.Table(("job", "model", "level with it", "measured"), tuple(map(tuple, said))))
    return gm.lab.Document(TITLE, tuple(parts))


def figures(section: Section, run: gm.lab.Run, number: int) -> list[gm.lab.Figure]:
    """The samples and the densities of all models that were trained, drawn into the folder of the run."""
    data, found = section.data, []
    stem = f"{number}_{Path(data).stem}"
    samples = {one.model: np.load(one.folder / "samples.npy") for one in section.shown}
    if samples and draw_samples(path := run.figure(f"samples_{stem}"), samples):
        found.append(gm.lab.Figure(path, f"samples on {data}", f"{data}: samples of every model, of one seed."))
    # A random bound has no density to show, and a law of unknown Z none on this scale.
    normalised = [one for one in section.shown if one.kind != "LOWER_BOUND" and not one.crossed]
    files = {one.model: one.folder / "log_prob.npz" for one in normalised}
    if grids := {name: np.load(file) for name, file in files.items() if file.exists()}:
        path, first = run.figure(f"densities_{stem}"), next(iter(grids.values()))
        panels = {name: grid["log_prob"] for name, grid in grids.items()}
        gm.lab.panels.images_of_density(path, panels, first["low"], first["high"])
        found.append(gm.lab.Figure(path, f"densities on {data}", f"{data}: densities, of one seed, on one scale."))
    return found


def draw_samples(path: Path, samples: dict[str, np.ndarray]) -> bool:
    """Points of the plane, of two columns of a table, or images; False, and no figure, of bits in a table."""
    first = next(iter(samples.values()))
    if first.ndim == 4:
        scale = max(float(first.max()), 1.0)
        gm.lab.plot.images(path, [(name, x[:12].reshape(-1, *first.shape[1:]) / scale) for name, x in samples.items()])
        return True
    if first.shape[1] < 2 or first.dtype.kind in "ui":
        return False
    panels = {name: (x[:, 0], x[:, 1]) for name, x in samples.items()}
    labels = ("", "") if first.shape[1] == 2 else ("column 0", "column 1")
    gm.lab.plot.scatter(path, panels, xlabel=labels[0], ylabel=labels[1], columns=6, like=next(iter(panels)))
    return True
