"""Every family on the same data, in the same harness: what its likelihood is, its error, and its distance to the exact limit.

python -m experiments.compare                                               two moons, every model that applies, three seeds
python -m experiments.compare --data two_moons eight_gaussians checkerboard rings
python -m experiments.compare --data twonorm miniboone --models nsf maf vae    some models; files from GENMOD_DATA
python -m experiments.compare --data digits nltcs my_table.csv              levels, bits, a table of your own
python -m experiments.compare --fit.num-steps 20000 --workers 8             another budget, on more cores

Each cell, a model on a data set from a seed, is a run of `experiments.compare.model_on_data` in runs/model_on_data: finished ones
are not repeated, a killed one resumes. Writes report.md with a figure of the samples and one of the densities for each set,
tables.md without them, and report.html, one page that stands alone. A model that does not apply, or fails, stands in the table
with the reason.
"""

import dataclasses
from pathlib import Path
from typing import Any

import genmod as gm
from experiments.compare import cells, model_on_data, recipes, report

QUICK: dict[str, Any] = {
    "models": ("truth", "gaussian", "nsf", "vae", "noise_contrastive", "gan"),
    "seeds": 1,
    "fit": model_on_data.Config(
        num_train=5_000, num_test=2_000, num_steps=200, num_samples=1_000, num_compared=500, num_chains=50
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("two_moons",)
    """Toy sets, tables, digits, binary tables, or paths of .npy, .npz or .csv files."""
    models: tuple[str, ...] = ("all",)
    """Names of recipes; `all`: every one that applies."""
    seeds: int = 3
    fit: model_on_data.Config = dataclasses.field(default_factory=model_on_data.Config)
    """The budget, and everything else of each cell; its own data, model and seed are replaced."""
    workers: int | None = None
    """Cells at a time, each on one core; None: as many as there are cores."""


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if not config.data or not config.models or config.seeds < 1:
        raise ValueError("--data and --models must each name at least one, and --seeds be at least 1")
    names = list(recipes.RECIPES) if "all" in config.models else list(dict.fromkeys(config.models))
    # The seeds of a model follow each other: the second finds what the first has compiled.
    wanted = [
        dataclasses.replace(config.fit, data=data, model=model, seed=seed)
        for data in dict.fromkeys(config.data)
        for model in names
        for seed in range(config.seeds)
    ]
    found = cells.run_all(wanted, config.workers)
    sections = [report.Section.of(data, names, found) for data in dict.fromkeys(config.data)]
    shown = {section.data: report.figures(section, run) for section in sections}
    document = report.document(config.fit, config.seeds, sections, shown)
    write(run.folder / "report.md", gm.lab.markdown(document, run.folder))
    write(run.folder / "report.html", gm.lab.page(document))
    tables = gm.lab.markdown(report.document(config.fit, config.seeds, sections, {}))
    write(run.folder / "tables.md", tables)
    print(f"\n{tables}\n\nreport: {run.folder / 'report.html'}; without figures: tables.md")
    if failed := [cell for cell in found if cell.error is not None]:
        reasons = "; ".join(dict.fromkeys(f"{cell.config.model} on {cell.config.data}: {cell.error}" for cell in failed))
        raise ValueError(f"{len(failed)} of {len(found)} cells failed, the others are in the report. {reasons}")
    numbers = {name: value for section in sections for name, value in section.metrics().items()}
    return {"model": "compare", "num_cells": len(found)} | numbers


def write(path: Path, text: str) -> None:
    """Atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
