"""Every family on the same data, in the same harness: what its likelihood is, its error, and its distance to the exact limit.

python -m experiments.compare                                               two moons, every model that applies, three seeds
python -m experiments.compare --data two_moons eight_gaussians checkerboard rings
python -m experiments.compare --data twonorm miniboone --models nsf maf vae    some models; files from GENMOD_DATA
python -m experiments.compare --data digits nltcs my_table.csv              levels, bits, a table of your own
python -m experiments.compare --fit.num-steps 20000 --workers 8             another budget, on more cores

Each cell, a model on a data set from a seed, is a run of `experiments.compare.model_on_data` in runs/model_on_data: finished ones
are not repeated, a killed one resumes. (Who edits a recipe deletes its runs.) Writes report.md with a figure of the samples and
one of the densities for each set, tables.md without them, and report.html, one page that stands alone. A model that does not
apply, or fails, stands in the table with the reason.
"""

import dataclasses
from typing import Any

import genmod as gm
from experiments.compare import cells, model_on_data, recipes, report, sets
from experiments.compare.cells import Cell

QUICK: dict[str, Any] = {
    "models": ("truth", "gaussian", "nsf", "vae", "noise_contrastive", "gan"),
    "seeds": 1,
    "fit": model_on_data.Config(num_train=5_000, num_test=2_000, num_steps=200, num_samples=1_000, num_compared=500),
}


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("two_moons",)
    """Toy sets, tables, digits, binary tables, or paths of .npy, .npz or .csv files."""
    models: tuple[str, ...] = ("all",)
    """Names of recipes; `all`: every one."""
    seeds: int = 3
    fit: model_on_data.Config = dataclasses.field(default_factory=model_on_data.Config)
    """The budget, and everything else of each cell; its own data, model and seed are replaced."""
    workers: int | None = None
    """Cells at a time, each on one core; None: as many as there are cores."""


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if not config.data or not config.models or config.seeds < 1:
        raise ValueError("--data and --models must each name at least one, and --seeds be at least 1")
    named = [name for model in config.models for name in (recipes.RECIPES if model == "all" else (model,))]
    data, models = list(dict.fromkeys(config.data)), list(dict.fromkeys(named))
    unknown = {name: reason for name in data if (reason := sets.unknown(name))}
    wrong = {name: reason for name in models if (reason := recipes.unknown(name))}
    # The seeds of a model follow each other: the second finds what the first has compiled.
    wanted = [
        dataclasses.replace(config.fit, data=name, model=model, seed=seed)
        for name in data
        for model in models
        for seed in range(config.seeds)
        if name not in unknown and model not in wrong
    ]
    found = cells.run_all(wanted, config.workers)
    found += [Cell(dataclasses.replace(config.fit, data=name, model=model), {}, wrong[model]) for name in data for model in wrong]
    sections = [report.Section.of(name, models, found, unknown.get(name, "")) for name in data]
    tables = gm.lab.markdown(report.document(config.fit, config.seeds, sections, {}))
    gm.lab.write_text(run.folder / "tables.md", tables)
    shown = {section.data: report.figures(section, run, i) for i, section in enumerate(sections)}
    document = report.document(config.fit, config.seeds, sections, shown)
    gm.lab.write_text(run.folder / "report.md", gm.lab.markdown(document, run.folder))
    gm.lab.write_text(run.folder / "report.html", gm.lab.page(document))
    print(f"\n{tables}\n\nreport: {run.folder / 'report.html'}; without figures: tables.md")
    failed = [f"{one.config.model} on {one.config.data}, seed {one.config.seed}: {one.error}" for one in found if one.error]
    failed = [*unknown.values(), *wrong.values(), *(text for text in failed if not any(why in text for why in wrong.values()))]
    if failed:
        raise ValueError(f"the report holds what was made; not all was. {'. '.join(dict.fromkeys(failed))}")
    return {"model": "compare", "num_cells": len(found)} | {k: v for section in sections for k, v in section.metrics().items()}
