"""Flow matching side by side: W2, path energy, straightness and the cost of sampling, over pairs of laws, methods and seeds.

python -m experiments.flow_matching_table                                    the table of experiments/README.md
python -m experiments.flow_matching_table --seeds 1 --pairs normal_moons     less of it

Each cell is a run of `experiments.flow_matching` in runs/flow_matching (its docstring states the protocol): finished ones are
not repeated, a killed one resumes. A run of `rectified` fills three rows: icfm (its first model), reflow, one_step. Writes
table.md and, per pair, a figure of W2 against the number of Euler steps.
"""

import dataclasses
from typing import Any

import numpy as np

import genmod as gm
from experiments import flow_matching

ROWS = {"rectified": ("first", "", "one_step")}  # prefixes of the metrics of one run
NAMES = {"first": "icfm", "": "rectified (reflow)", "one_step": "distilled"}
PUBLISHED = {  # W2 and NPE of Tong et al. 2023, arXiv:2302.00482, table 2
    ("normal_moons", "otcfm"): gm.lab.Cell(".130, .083", 0.130),
    ("normal_moons", "icfm"): gm.lab.Cell(".178, .891", 0.178),
    ("normal_moons", "fm"): gm.lab.Cell(".209, .762", 0.209),
    ("moons_eight_gaussians", "otcfm"): gm.lab.Cell(".601, .015", 0.601),
    ("moons_eight_gaussians", "icfm"): gm.lab.Cell("1.557, 2.68", 1.557),
}


@dataclasses.dataclass(frozen=True)
class Config:
    pairs: tuple[flow_matching.Pair, ...] = ("normal_moons", "normal_eight_gaussians", "moons_eight_gaussians")
    methods: tuple[flow_matching.Method, ...] = ("otcfm", "rectified", "fm")
    """`fm` starts from the normal law, so it is left out where the source is another."""
    seeds: int = 5
    fit: flow_matching.Config = dataclasses.field(default_factory=flow_matching.Config)
    """Everything else of each run; its own pair, method and seed are replaced."""


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if not config.pairs or not config.methods or config.seeds < 1:
        raise ValueError("--pairs and --methods must each name at least one, and --seeds be at least 1")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in range(config.seeds):
        for pair in config.pairs:
            for method in config.methods:
                if method in ("fm", "vp") and pair.startswith("moons"):
                    continue
                one = dataclasses.replace(config.fit, pair=pair, method=method, seed=seed)
                metrics = gm.lab.execute(flow_matching.experiment, one)
                for prefix in ROWS.get(method, ("",)):
                    name = NAMES[prefix] if method in ROWS else method
                    found.setdefault((pair, name), []).append(part(metrics, prefix))
    tables = []
    for pair in config.pairs:
        cells = {name: runs for (where, name), runs in found.items() if where == pair}
        tables.append(f"#### {pair}\n\n{markdown(pair, cells)}")
        curves = {
            name: [mean(runs, f"w2_euler_{n}") for n in flow_matching.EULER_STEPS]
            for name, runs in cells.items()
            if name != NAMES["one_step"]
        }
        floor = mean(next(iter(cells.values())), "w2_floor_euler")
        gm.lab.plot.lines(
            run.figure(f"samples_against_nfe_{pair}"),
            flow_matching.EULER_STEPS,
            {"two samples of the target": [floor] * len(flow_matching.EULER_STEPS)} | curves,
            xlabel="Euler steps = evaluations of the field",
            ylabel=f"W2 to the target, {config.fit.num_eval_euler:,} samples",
            title=f"{pair}, mean of {config.seeds} seeds",
            log=True,
        )
    text = "\n\n".join(tables)
    print(f"\n{text}\n")
    (run.folder / "table.md").write_text(text + "\n")
    means = {f"{pair}_{name.split()[0]}_{k}": mean(runs, k) for (pair, name), runs in found.items() for k in ("w2", "npe")}
    return {"model": "flow_matching_table", "num_seeds": config.seeds, **means}


def part(metrics: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of one model among those of a run."""
    start = f"{prefix}_" if prefix else ""
    names = [k for k in metrics if k.startswith(("w2", "npe", "path", "straight", "nfe"))]
    return {name: metrics[f"{start}{name}"] for name in names}


def mean(runs: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([r[name] for r in runs]))


def markdown(pair: str, cells: dict[str, list[dict[str, Any]]]) -> str:
    """A row per method: means over seeds, +- their standard deviation."""
    header = ["method", "W2", "floor", "NPE", "straightness", "NFE", "W2 of 1 Euler step", "W2 of 8", "published W2, NPE"]
    rows = []
    for name, runs in cells.items():
        if name == NAMES["one_step"]:  # made for one Euler step; nothing else of it means anything
            rows.append((name, *[""] * 5, spread(runs, "w2_euler_1"), "", ""))
            continue
        floor = gm.lab.number(mean(runs, "w2_floor"), form=".3f")
        values = [spread(runs, "w2"), floor, spread(runs, "npe"), spread(runs, "straightness")]
        euler = [spread(runs, f"w2_euler_{n}") for n in (1, 8)]
        nfe = gm.lab.number(mean(runs, "nfe"), form=".0f")
        rows.append((name, *values, nfe, *euler, PUBLISHED.get((pair, name), "")))
    return gm.lab.markdown(gm.lab.Table(tuple(header), tuple(rows)))


def spread(runs: list[dict[str, Any]], name: str) -> gm.lab.Cell:
    values = [r[name] for r in runs]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return gm.lab.number(float(np.mean(values)), deviation, ".3f")


if __name__ == "__main__":
    few = flow_matching.Config(num_steps=500, num_eval=1_000, num_eval_euler=500, hidden_sizes=(64, 64), num_pairs=5_000)
    gm.lab.main(experiment, Config, quick={"pairs": ("normal_moons",), "methods": ("otcfm", "rectified"), "seeds": 1, "fit": few})
