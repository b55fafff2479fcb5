"""The gap of coupling flows against the number of couplings and against the split d of D, for affine and spline couplings.

python -m experiments.depth                                  two moons in the plane; for the split four such toys, turned
python -m experiments.depth --fit.data checkerboard          another toy
python -m experiments.depth --kinds spline --seeds 1         less of it

Four sweeps:

    width       couplings 1 .. 16 in the plane, networks of one width: deeper is larger
    size        the same at one total number of parameters: deeper is narrower
    permute     d = 1 .. D - 1 of D coordinates kept, a random permutation between couplings
    exchange    the same, the parts exchange their roles, so that d and D - d are one but for the order

The last two are at one number of couplings and one total number of parameters. Each cell is a run of `experiments.couplings` in
runs/couplings, which says what the flows and the data are: finished ones are not repeated, a killed one resumes. The gap is the
mean of log p_true - log p_model over fresh test points, nats. Writes table.md and a figure for each question.
"""

import dataclasses
from typing import Any, NamedTuple, get_args

import numpy as np

import genmod as gm
from experiments import couplings
from genmod.core.statistics import Measured, mean_and_sem
from genmod.lab.panels import Curve


@dataclasses.dataclass(frozen=True)
class Config:
    kinds: tuple[couplings.Kind, ...] = ("affine", "spline")
    num_couplings: tuple[int, ...] = (1, 2, 4, 8, 16)
    """In the plane."""
    num_params: int = 20_000
    """Of a flow in the plane, in the sweep at one size."""
    dim: int = 8
    """D of the sweep over splits, an even number."""
    splits: tuple[int, ...] = ()
    """The d of it; none: all, 1 to D - 1."""
    split_couplings: int = 8
    """Number of couplings of it."""
    split_params: int = 40_000
    """Of each of its flows."""
    seeds: int = 3
    fit: couplings.Config = dataclasses.field(default_factory=couplings.Config)
    """Everything else of each run. Of its flow only num_bins are used, and the width, in the sweep at one width."""


class Cell(NamedTuple):
    """A row and a column of a table: a flow, and what it has found, by seed."""

    sweep: str
    kind: str
    x: int
    config: couplings.Config
    runs: list[dict[str, Any]]

    @property
    def gaps(self) -> np.ndarray:
        """nats, (seeds,)."""
        return np.array([run["gap_nats"] for run in self.runs])


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if not config.kinds or not config.num_couplings or config.seeds < 1:
        raise ValueError("--kinds and --num-couplings must each name at least one, and --seeds be at least 1")
    cells = plan(config)
    for cell in cells:
        for seed in range(config.seeds):  # one after the other: programs of one shape are compiled once
            cell.runs.append(gm.lab.execute(couplings.experiment, dataclasses.replace(cell.config, seed=seed)))
    text = "\n\n".join([depth_table(config, cells), split_table(config, cells), errors(config, cells)])
    print(f"\n{text}\n")
    (run.folder / "table.md").write_text(text + "\n")
    draw(config, run, cells)
    return {"model": "depth", "num_seeds": config.seeds} | measured(cells)


def plan(config: Config) -> list[Cell]:
    """All cells, without results. Raises ValueError for a config of which a cell could not run, before any does."""
    couplings.law(dataclasses.replace(config.fit, dim=config.dim))
    cells = []
    for kind in config.kinds:
        for num in config.num_couplings:
            one = dataclasses.replace(config.fit, kind=kind, dim=2, num_couplings=num, split=1, between="permute")
            cells.append(Cell("width", kind, num, one, []))
            cells.append(Cell("size", kind, num, couplings.with_num_params(one, config.num_params), []))
        sizes = {"kind": kind, "dim": config.dim, "num_couplings": config.split_couplings}
        for between in get_args(couplings.Between):
            for split in config.splits or range(1, config.dim):
                one = dataclasses.replace(config.fit, **sizes, split=split, between=between)
                cells.append(Cell(between, kind, split, couplings.with_num_params(one, config.split_params), []))
    return cells


def measured(cells: list[Cell]) -> dict[str, float]:
    """Mean gap, its standard deviation over seeds and the parameters of every cell, by name."""
    metrics: dict[str, float] = {}
    for cell in cells:
        name = f"{cell.sweep}_{cell.kind}_{cell.x}"
        metrics |= {f"{name}_gap_nats": float(cell.gaps.mean()), f"{name}_num_params": cell.runs[0]["num_params"]}
        if len(cell.runs) > 1:
            metrics[f"{name}_gap_nats_sd"] = float(cell.gaps.std(ddof=1))
    return metrics


# --- results ----------------------------------------------------------------------------------------------------------------


def depth_table(config: Config, cells: list[Cell]) -> str:
    """A row for each number of couplings: gaps at one width and at one size, and what each leaves free."""
    header, columns = ["couplings"], []
    for sweep, label, free in (
        ("width", f"width {config.fit.width}", "parameters"),
        ("size", f"{config.num_params:,} parameters", "width"),
    ):
        for kind in config.kinds:
            header += [f"{kind}, {label}", free]
            columns.append(column(cells, sweep, kind))
    rows = []
    for num in config.num_couplings:
        found = [cells_of[num] for cells_of in columns]
        free = [f"{c.runs[0]['num_params']:,}" if c.sweep == "width" else str(c.config.width) for c in found]
        rows.append([str(num), *(entry for c, other in zip(found, free, strict=True) for entry in (spread(c.gaps), other))])
    return f"#### {config.fit.data}: gap (nats) against the number of couplings\n\n{markdown(header, rows)}"


def split_table(config: Config, cells: list[Cell]) -> str:
    """A row for each d, with the number d (D - d) of pairs of a kept and a moved coordinate; then less the gap at one half."""
    names = [(between, kind) for between in get_args(couplings.Between) for kind in config.kinds]
    columns = [column(cells, *name) for name in names]
    header = ["d kept", "pairs d (D - d)", *(f"{kind}, {between}" for between, kind in names)]
    rows = [[str(d), str(d * (config.dim - d)), *(spread(found[d].gaps) for found in columns)] for d in columns[0]]
    what = f"{config.dim // 2} {config.fit.data}, turned: gap (nats) against the split of D = {config.dim}"
    many = f"{config.split_couplings} couplings, {config.split_params:,} parameters"
    text = f"#### {what}, {many}\n\n{markdown(header, rows)}"
    if config.seeds == 1 or config.dim // 2 not in columns[0]:
        return text
    beyond = [{d: less_half(found, d) for d in found} for found in columns]
    rows = [[str(d), *(str(found[d]) for found in beyond)] for d in columns[0] if d != config.dim // 2]
    note = f"The same less the gap at d = {config.dim // 2} of the same seed, whose data are the same; +- one standard error:"
    return f"{text}\n\n{note}\n\n{markdown([header[0], *header[2:]], rows)}"


def less_half(found: dict[int, Cell], d: int) -> Measured:
    """The gap at d less that at D / 2, paired by seed."""
    difference, sem = mean_and_sem(found[d].gaps - found[found[d].config.dim // 2].gaps)
    return Measured(float(difference), float(sem))


def column(cells: list[Cell], sweep: str, kind: str) -> dict[int, Cell]:
    """The cells of one sweep and kind by number of couplings, or by d."""
    return {cell.x: cell for cell in cells if (cell.sweep, cell.kind) == (sweep, kind)}


def errors(config: Config, cells: list[Cell]) -> str:
    """What the numbers behind +- are, and the errors that these do not show."""
    share = max(run["gap_nats_sem"] / run["gap_nats"] for cell in cells for run in cell.runs)
    of = "the mean of seeds +- their standard deviation" if config.seeds > 1 else "that of one seed"
    return f"A gap is {of}. Over {config.fit.num_test:,} test points the standard error of a seed is at most {share:.1%} of it."


def spread(values: np.ndarray) -> str:
    deviation = f" +- {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{deviation}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(config: Config, run: gm.lab.Run, cells: list[Cell]) -> None:
    """Gap against couplings and against d; bands from the least to the greatest of the seeds."""
    figures = {
        "couplings": {"width": f"networks of width {config.fit.width}", "size": f"{config.num_params:,} parameters"},
        "split": {"permute": "random permutations between", "exchange": "the parts exchange their roles"},
    }
    many = f"{config.split_couplings} couplings, {config.split_params:,} parameters"
    titles = {"couplings": config.fit.data, "split": f"{config.dim // 2} {config.fit.data}, turned: {many}"}
    labels = {"couplings": "couplings", "split": f"coordinates kept, d of {config.dim}"}
    for name, sweeps in figures.items():
        panels = {label: [curve(column(cells, sweep, kind), kind) for kind in config.kinds] for sweep, label in sweeps.items()}
        title = f"{titles[name]}; mean and range of {config.seeds} seeds"
        gm.lab.panels.curves(run.figure(name), panels, xlabel=labels[name], ylabel="gap (nats)", title=title, log=True)


def curve(found: dict[int, Cell], kind: str) -> Curve:
    values = np.array([cell.gaps for cell in found.values()])
    return Curve(kind, np.array(list(found)), values.mean(1), values.min(1), values.max(1), "o-")


if __name__ == "__main__":
    few = couplings.Config(num_steps=300, num_train=20_000, num_test=5_000, width=32)
    quick = {"num_couplings": (1, 4), "num_params": 5_000, "splits": (1, 4), "split_couplings": 4, "split_params": 10_000}
    gm.lab.main(experiment, Config, quick=quick | {"seeds": 1, "fit": few})
