"""Flow benchmark: time, compilation and fit quality of genmod beside its peers.

    python -m experiments.benchmarks.flows [--quick] [--libraries genmod flowjax ...]
        [--cells realnvp-2 ...] [--out DIR]

Models: 8 affine couplings (realnvp), 8 rational-quadratic spline couplings with 8 bins
(nsf), 5 masked affine autoregressive layers (maf), conditioner MLP 2x128, in D = 2 and 64.
Operations: one Adam step on the NLL of 1024 points, log_prob of 10,000 points, and
sampling of 10,000 points, after compilation, result awaited.

Each library runs in its own process, pinned to one core with one thread. For every
operation the libraries take turns over several rounds, so that a drift of the machine
meets all of them; only one process computes at a time. The number is the median CPU time
of the process per call, with the wall time beside it; the ratio is to the fastest peer,
genmod excluded. Compilation is the first call minus the second. Beside the times stand
the held-out NLL after equally many steps, the mass of the fitted density (D = 2) and
round-trip errors, so that a flow that is fast because it is wrong shows.
A library that is not installed is left out with a line that says so. Nothing here asserts a time.
"""

import dataclasses
import statistics
from pathlib import Path

import tyro

from experiments.benchmarks import flows_report as report, turns
from experiments.benchmarks.peers.base import OPERATIONS
from experiments.benchmarks.turns import Worker, WorkerError, leave_out, prepare

LIBRARIES = ("genmod", "flowjax", "distrax", "zuko", "nflows", "normflows")
CELLS = ("realnvp-2", "realnvp-64", "nsf-2", "nsf-64", "maf-2", "maf-64")
NUM_LAYERS = {"realnvp": 8, "nsf": 8, "maf": 5}
DEEP = 32
WORKER = "experiments.benchmarks.peers.worker"


@dataclasses.dataclass(frozen=True)
class Config(turns.Config):
    """What is measured and for how long; `quick` is D = 2 couplings only, without depth and fit comparison.

    Attributes:
        steps: training steps before quality is judged, for D = 2 and for larger D.
    """

    libraries: tuple[str, ...] = LIBRARIES
    out: Path = Path("runs/benchmarks/flows")
    steps: tuple[int, int] = (300, 100)


def measure_cell(workers: list[Worker], name: str, config: Config) -> dict:
    """Compile, train and check every library on one model, then time the operations."""
    flow, dim = name.split("-")
    cell = {"flow": flow, "dim": int(dim), "num_layers": NUM_LAYERS[flow]}
    results: dict[str, dict] = {}
    able = []
    for worker in prepare(workers, cell, results):
        mine = results[worker.library]
        try:
            mine["compile"] = {op: worker.ask("first", op=op) for op in OPERATIONS}
            mine["quality"] = worker.ask("quality", num_steps=config.steps[int(dim) > 2])
            able.append(worker)
        except WorkerError as reason:
            leave_out(worker, reason, results)
    for op in OPERATIONS:
        turns.take_turns(able, op, config, results)
    return results


def measure_depth(workers: list[Worker]) -> dict:
    """Compilation of the training step of a spline flow in D = 2, 8 layers against 32."""
    results: dict[str, dict] = {}
    for num_layers in (NUM_LAYERS["nsf"], DEEP):
        prepared: dict[str, dict] = {}
        for worker in prepare(workers, {"flow": "nsf", "dim": 2, "num_layers": num_layers}, prepared):
            if prepared[worker.library]["compiles"]:
                first = worker.ask("first", op="train")
                results.setdefault(worker.library, {})[str(num_layers)] = first
    return {library: pairs for library, pairs in results.items() if len(pairs) == 2}


def measure_fit(workers: list[Worker], flow: str, epochs: tuple[int, int] = (2, 12), rounds: int = 3) -> dict:
    """Cost of an epoch of each library's own training loop: a long fit minus a short one.

    The first call of each length compiles and is not counted; validation is once per epoch.
    """
    able, first = [], {}
    for worker in workers:
        try:
            worker.ask("start_fit", flow=flow)
            first[worker.library] = [worker.ask("epochs", num=num) for num in epochs]
            able.append(worker)
        except WorkerError as reason:
            leave_out(worker, reason, {})
    turns = [{worker.library: [worker.ask("epochs", num=num) for num in epochs] for worker in able} for _ in range(rounds)]
    results = {}
    for library, (first_short, _) in first.items():
        short, long = ([turn[library][i] for turn in turns] for i in range(2))
        median = [[statistics.median(t[k] for t in times) for k in range(2)] for times in (short, long)]
        cpu, wall = ((median[1][k] - median[0][k]) / (epochs[1] - epochs[0]) for k in range(2))
        results[library] = {
            "cpu_s_per_epoch": cpu,
            "wall_s_per_epoch": wall,
            "first_call_extra_cpu_s": first_short[0] - median[0][0],
        }
    return results


def run(config: Config) -> dict:
    """Measure everything, writing report.md and results.json anew after each part."""
    config.out.mkdir(parents=True, exist_ok=True)
    cells = turns.choose(config.cells, ("realnvp-2", "nsf-2") if config.quick else CELLS, CELLS)
    if config.quick:
        config = dataclasses.replace(config, rounds=2, turn_seconds=0.1, steps=(100, 20))
    workers = turns.start(config, WORKER)
    results = turns.Results(workers, config.out, report.markdown)
    values = results.values
    values["steps"] = config.steps
    for name in cells:
        results.announce(name)
        values["cells"][name] = measure_cell(workers, name, config)
        results.save()
    if not config.quick and "nsf-2" in cells:
        values["depth"] = measure_depth(workers)
        results.save()
    if not config.quick:
        flows = [flow for flow in ("realnvp", "nsf") if f"{flow}-2" in cells]
        values["fit"] = {flow: measure_fit(workers, flow) for flow in flows}
        results.save()
    for worker in workers:
        worker.close()
    return values


def main(config: Config) -> None:
    """Measure and print the report."""
    print(report.markdown(run(config)))


if __name__ == "__main__":
    main(tyro.cli(Config))
