"""Benchmark of Glow on images: time, compilation and fit quality of genmod beside normflows.

    python -m experiments.benchmarks.images [--quick] [--libraries genmod normflows] [--cells k8 k32] [--out DIR]

The flow has L = 2 scales of K steps, couplings of 64 hidden channels, on 28x28x1 images (`peers/images/base.py`).
k8: K = 8. One Adam step on the NLL of 64 images (`train`), log_prob of 256 images and sampling of 64 images, after compilation,
    result awaited. Beside the times stand the bits per dimension after equally many steps and the error of a round trip.
k32: what a first call takes with K = 8 and with K = 32, in processes that have compiled before.

How it is timed is said in `turns`, what the two sides do not share in the report. Nothing here asserts a time.
"""

import dataclasses
from pathlib import Path

import tyro

from experiments.benchmarks import images_report as report, turns
from experiments.benchmarks.peers.base import OPERATIONS
from experiments.benchmarks.turns import Worker, WorkerError, leave_out, prepare

LIBRARIES = ("genmod", "normflows")
CELLS = {"k8": 8, "k32": 32}
WORKER = "experiments.benchmarks.peers.images.worker"


@dataclasses.dataclass(frozen=True)
class Config(turns.Config):
    """What is measured and for how long; `quick` is k8 only.

    Attributes:
        steps: training steps before quality is judged.
    """

    libraries: tuple[str, ...] = LIBRARIES
    out: Path = Path("runs/benchmarks/images")
    turn_seconds: float = 1.0
    steps: int = 50


def first_calls(workers: list[Worker], num_layers: int, results: dict) -> list[Worker]:
    """Build the flow in every library and call each operation for the first time."""
    able = []
    for worker in prepare(workers, {"num_layers": num_layers}, results):
        try:
            results[worker.library]["compile"] = {op: worker.ask("first", op=op) for op in OPERATIONS}
            able.append(worker)
        except WorkerError as reason:
            leave_out(worker, reason, results)
    return able


def measure_cell(workers: list[Worker], name: str, config: Config) -> dict:
    """Compile, train and check every library, then time the operations."""
    results: dict[str, dict] = {}
    workers = first_calls(workers, CELLS[name], results)
    for worker in workers:
        results[worker.library]["quality"] = worker.ask("quality", num_steps=config.steps)
    for op in OPERATIONS:
        turns.take_turns(workers, op, config, results)
    return results


def measure_depth(workers: list[Worker]) -> dict:
    """First calls by number of steps, as {name: {library: ...}}; one compilation before the first is not counted."""
    first_calls(workers, min(CELLS.values()), {})
    depth: dict[str, dict] = {name: {} for name in CELLS}
    for name, num_layers in CELLS.items():
        first_calls(workers, num_layers, depth[name])
    return depth


def run(config: Config) -> dict:
    """Measure everything, writing report.md and results.json anew after each part."""
    config.out.mkdir(parents=True, exist_ok=True)
    cells = turns.choose(config.cells, ("k8",) if config.quick else tuple(CELLS), tuple(CELLS))
    if config.quick:
        config = dataclasses.replace(config, rounds=2, turn_seconds=0.1, steps=10)
    workers = turns.start(config, WORKER)
    results = turns.Results(workers, config.out, report.markdown)
    results.values["steps"] = config.steps
    for name in cells:
        results.announce(name)
        if name == "k8":
            results.values["cells"][name] = measure_cell(workers, name, config)
        else:
            results.values["depth"] = measure_depth(workers)
        results.save()
    for worker in workers:
        worker.close()
    return results.values


def main(config: Config) -> None:
    """Measure and print the report."""
    print(report.markdown(run(config)))


if __name__ == "__main__":
    main(tyro.cli(Config))
