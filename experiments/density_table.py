"""Flows side by side: every model on every data set, exact test NLL and gap, as one Markdown table per data set.

python -m experiments.density_table                                           every flow made of layers, on two moons
python -m experiments.density_table --data two_moons rings --models nsf maf   some of them
python -m experiments.density_table --fit.num-steps 10000                     with other settings of experiments.density

Each fit is a run of `experiments.density` in runs/density: finished ones are not repeated, a killed one resumes. The table
is also written to table.md. --out moves the table only.
"""

import dataclasses
import json
from typing import Any, get_args

import genmod as gm
from experiments import density

CONTINUOUS = ("ffjord", "flow_matching")


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("two_moons",)
    """Toy sets, named tables, or paths of .npy, .npz or .csv files."""
    models: tuple[density.ModelName, ...] = tuple(m for m in get_args(density.ModelName) if m not in CONTINUOUS)
    """Names of flows, one row each; ffjord and flow_matching, which want minutes and other settings, only when named."""
    fit: density.Config = dataclasses.field(default_factory=density.Config)
    """Everything else of each run; its own data and model are replaced."""


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if not config.data or not config.models:
        raise ValueError("--data and --models must each name at least one")
    metrics: dict[str, Any] = {"model": "density_table"}
    tables = []
    for data in config.data:
        results = []
        for model in config.models:
            one = dataclasses.replace(config.fit, data=data, model=model)
            found = gm.lab.execute(density.experiment, one)
            results.append((found, wall_seconds(one)))
            metrics |= flat(found)
        tables.append(markdown(results))
    text = "\n\n".join(tables)
    print(f"\n{text}\n")
    (run.folder / "table.md").write_text(text + "\n")
    return metrics


def wall_seconds(config: density.Config) -> float:
    """Wall time of the finished run of `config`, compilation and figures included; of a resumed run, its last part."""
    folder = gm.lab.locate(density.experiment, config).folder
    return json.loads((folder / "timing.json").read_text())["wall_seconds"]


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one run as entries of the table's metrics.json."""
    data, model = found["data"], found["model"]
    names = ("nll_nats", "nll_nats_sem", "gap_nats", "gap_nats_sem", "num_params")
    entries = {f"{data}_{model}_{name}": found[name] for name in names if name in found}
    return entries | ({f"{data}_limit_nats": found["limit_nats"]} if "limit_nats" in found else {})


def markdown(results: list[tuple[dict[str, Any], float]]) -> str:
    """One data set: heading with the exact limit, where known, and a row per model. Values in nats, +- standard errors."""
    first = results[0][0]
    known = "limit_nats" in first
    limit = f"exact limit {first['limit_nats']:.4f} nats" if known else "no exact limit known"
    header = ["model", "parameters", "test NLL (nats)", *(["gap (nats)"] if known else []), "seconds (wall)"]
    names, rows = ["nll_nats", "gap_nats"] if known else ["nll_nats"], []
    for found, seconds in results:
        values = [gm.lab.number(found[name], found[f"{name}_sem"]) for name in names]
        rows.append((found["model"], gm.lab.number(found["num_params"], form=","), *values, gm.lab.number(seconds, form=".0f")))
    table = gm.lab.markdown(gm.lab.Table(tuple(header), tuple(rows)))
    return f"### {first['data']}: {limit}, {first['num_test']:,} test points\n\n{table}"


if __name__ == "__main__":
    few = density.Config(num_train=20_000, num_steps=500, hidden_sizes=(64, 64))
    gm.lab.main(experiment, Config, quick={"models": ("affine", "nsf"), "fit": few})
