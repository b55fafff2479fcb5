"""Benchmark of continuous flows, flow matching and diffusions: time, compilation, memory and accuracy of genmod beside its peers.

    python -m experiments.benchmarks.dynamics [--quick] [--libraries genmod torchdiffeq ...]
        [--cells cnf-exact fm-2 ...] [--out DIR]

cnf-exact, cnf-hutchinson: maximum likelihood in D = 2 with a field of 3 x 64 tanh, dopri5 at 1e-5, the exact trace or
    one Rademacher probe. An Adam step on 512 points (`train`; `_fixed` with as many fixed dopri5 steps as the adaptive
    solver takes; `_adjoint` with the continuous adjoint) and log p of 1,000 points (`log_prob`, `log_prob_fixed`).
fm-2, fm-64: flow matching with a field of 3 x 256 SiLU. An Adam step on 1,024 points with independent pairs (`train`)
    and with optimal-transport pairs (`train_ot_exact`, `train_ot_sinkhorn`), and 1,000 samples (`sample`, `sample_fixed`).
dm-64: a diffusion with a denoiser of 3 x 256 SiLU. An Adam step of denoising on 1,024 points (`train`) and 1,000 samples by
    100 steps of DDIM (`sample`).

All libraries load the same trained weights, kept with reference values in OUT (`peers/dynamics/problems.py`).
`diffrax_minimal` and `plainjax` are what one would write by hand. How it is timed is said in `turns`; memory is what a
compiled training step allocates, against the number of solver steps. Nothing here asserts a time.
"""

import dataclasses
from pathlib import Path

import tyro

from experiments.benchmarks import dynamics_report as report, turns
from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.turns import Worker, WorkerError

LIBRARIES = ("genmod", "torchdiffeq", "torchcfm", "flow_matching", "azula", "diffrax_minimal", "plainjax")
CELLS = {
    "cnf-exact": base.Cell("cnf", 2, "exact"),
    "cnf-hutchinson": base.Cell("cnf", 2, "hutchinson"),
    "fm-2": base.Cell("fm", 2),
    "fm-64": base.Cell("fm", 64),
    "dm-64": base.Cell("dm", 64),
}
MEMORY_STEPS = (8, 32, 128)
WORKER = "experiments.benchmarks.peers.dynamics.worker"
PROBLEMS = "experiments.benchmarks.peers.dynamics.problems"


@dataclasses.dataclass(frozen=True)
class Config(turns.Config):
    """What is measured and for how long; `quick` is cnf-exact and fm-2 without memory.

    Attributes:
        steps: training steps before the loss is compared, of maximum likelihood and of regression.
    """

    libraries: tuple[str, ...] = LIBRARIES
    out: Path = Path("runs/benchmarks/dynamics")
    steps: tuple[int, int] = (60, 200)


def problem(cell: base.Cell, config: Config) -> Path:
    """The file of the shared weights and reference values, made if it is not there."""
    path = config.out / cell.file
    if not path.exists():
        maker = turns.spawn(["-m", PROBLEMS, cell.kind, str(cell.dim), str(path)], config.core)
        if code := maker.wait():
            raise RuntimeError(f"{PROBLEMS} ended with code {code}")
    return path


def measure_cell(workers: list[Worker], name: str, config: Config) -> dict:
    """Compile and check every library on one problem, then time the operations."""
    cell = CELLS[name]
    request = {"kind": cell.kind, "dim": cell.dim, "divergence": cell.divergence, "file": str(problem(cell, config))}
    results: dict[str, dict] = {}
    workers = turns.prepare(workers, request, results)
    for worker in workers:
        mine = results[worker.library]
        mine |= {"compile": {}, "accuracy": {}}
        for op in mine["operations"]:
            try:
                mine["compile"][op] = worker.ask("first", op=op)
                mine["accuracy"][op] = worker.ask("accuracy", op=op, num_steps=config.steps[cell.kind != "cnf"])
            except WorkerError as reason:
                print(f"n/a for {worker.library}, {op}: {reason}", flush=True)
    for op in report.OPERATIONS:
        turns.take_turns([worker for worker in workers if op in results[worker.library]["accuracy"]], op, config, results)
    return results


def measure_memory(workers: list[Worker], config: Config) -> dict:
    """Bytes of a training step with exact trace against the number of solver steps, as {library: {kind: {steps: bytes}}}."""
    path, results = problem(CELLS["cnf-exact"], config), {}
    for worker in workers:
        try:
            worker.ask("prepare", cell={"kind": "cnf", "dim": 2, "file": str(path)})
            kinds: dict[str, dict] = {}
            for num in MEMORY_STEPS:
                for kind, size in worker.ask("memory", num_steps=num).items():
                    kinds.setdefault(kind, {})[str(num)] = size
            results[worker.library] = kinds
        except WorkerError as reason:
            turns.leave_out(worker, reason, {})
    return results


def run(config: Config) -> dict:
    """Measure everything, writing report.md and results.json anew after each part."""
    config.out.mkdir(parents=True, exist_ok=True)
    cells = turns.choose(config.cells, ("cnf-exact", "fm-2") if config.quick else tuple(CELLS), tuple(CELLS))
    if config.quick:
        config = dataclasses.replace(config, rounds=2, turn_seconds=0.1, steps=(8, 40))
    workers = turns.start(config, WORKER)
    results = turns.Results(workers, config.out, report.markdown)
    results.values["steps"] = config.steps
    for name in cells:
        results.announce(name)
        results.values["cells"][name] = measure_cell(workers, name, config)
        results.save()
    if not config.quick and "cnf-exact" in cells:
        results.announce("memory")
        results.values["memory"] = measure_memory(workers, config)
        results.save()
    for worker in workers:
        worker.close()
    return results.values


def main(config: Config) -> None:
    """Measure and print the report."""
    print(report.markdown(run(config)))


if __name__ == "__main__":
    main(tyro.cli(Config))
