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
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tyro

from experiments.benchmarks import flows_report as report
from experiments.benchmarks.peers.base import OPERATIONS

LIBRARIES = ("genmod", "flowjax", "distrax", "zuko", "nflows", "normflows")
CELLS = ("realnvp-2", "realnvp-64", "nsf-2", "nsf-64", "maf-2", "maf-64")
NUM_LAYERS = {"realnvp": 8, "nsf": 8, "maf": 5}
DEEP = 32
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured and for how long.

    Attributes:
        quick: D = 2 couplings only, fewer rounds and steps, no depth or fit comparison.
        libraries: adapters in `experiments/benchmarks/peers`.
        cells: model-dimension pairs; all by default.
        out: folder of results.json, report.md and the workers' logs.
        rounds: turns that each library takes per operation.
        turn_seconds: CPU seconds a turn aims at (at least one call, at most 50).
        steps: training steps before quality is judged, for D = 2 and for larger D.
        core: the core that all workers are pinned to (Linux).
    """

    quick: bool = False
    libraries: tuple[str, ...] = LIBRARIES
    cells: tuple[str, ...] = ()
    out: Path = Path("runs/benchmarks/flows")
    rounds: int = 5
    turn_seconds: float = 0.3
    steps: tuple[int, int] = (300, 100)
    core: int = 0


class WorkerError(Exception):
    """A library could not do what was asked."""


class Worker:
    """A library's process: `ask` blocks until it has answered."""

    def __init__(self, library: str, config: Config) -> None:
        def pin() -> None:
            if sys.platform == "linux":
                os.sched_setaffinity(0, {config.core})

        self.library = library
        with (config.out / f"{library}.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.benchmarks.peers.worker", library],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | ENVIRONMENT,
                preexec_fn=pin,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.version = self._read()

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to one request; raises `WorkerError` with the library's reason."""
        try:
            self._requests.write(json.dumps({"do": do, **arguments}) + "\n")
            self._requests.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"process ended with code {self._process.wait()}") from error
        return self._read()

    def close(self) -> None:
        """End the process by ending its input."""
        self._requests.close()
        self._process.wait()

    def _read(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise WorkerError(f"process ended with code {self._process.wait()}; see {self.library}.log")
        answer = json.loads(line)
        if "ok" not in answer:
            raise WorkerError(answer.get("unsupported") or answer["error"])
        return answer["ok"]


def start(config: Config) -> list[Worker]:
    """One worker per library that can be imported."""
    workers = []
    for library in config.libraries:
        try:
            workers.append(Worker(library, config))
        except WorkerError as reason:
            print(f"skipped {library}: {reason}", flush=True)
    return workers


def prepare(workers: list[Worker], cell: dict, results: dict) -> list[Worker]:
    """Build the cell in every library; those that cannot get n/a with their reason."""
    able = []
    for worker in workers:
        try:
            results[worker.library] = worker.ask("prepare", cell=cell)
            able.append(worker)
        except WorkerError as reason:
            leave_out(worker, reason, results)
    return able


def leave_out(worker: Worker, reason: WorkerError, results: dict) -> None:
    """Note that the tables have no numbers for this library, and why."""
    print(f"n/a for {worker.library}: {reason}", flush=True)
    results[worker.library] = {"unsupported": str(reason)}


def take_turns(workers: list[Worker], op: str, config: Config, results: dict) -> None:
    """Time one operation, the libraries in turn, round by round."""
    times: dict[str, list] = {worker.library: [] for worker in workers}
    calls = {}
    for worker in workers:
        cpu, _ = results[worker.library]["compile"][op]["second"]
        calls[worker.library] = max(1, min(50, int(config.turn_seconds / max(cpu, 1e-6))))
    for _ in range(config.rounds):
        for worker in workers:
            times[worker.library] += worker.ask("run", op=op, calls=calls[worker.library])
    for library, pairs in times.items():
        cpu, wall = zip(*pairs, strict=True)
        results[library].setdefault("time", {})[op] = {
            "cpu_ms": 1e3 * statistics.median(cpu),
            "wall_ms": 1e3 * statistics.median(wall),
            "cpu_ms_range": [1e3 * min(cpu), 1e3 * max(cpu)],
            "calls": len(cpu),
        }


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
        take_turns(able, op, config, results)
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
    default = ("realnvp-2", "nsf-2") if config.quick else CELLS
    if config.quick:
        config = dataclasses.replace(config, rounds=2, turn_seconds=0.1, steps=(100, 20))
    cells = config.cells or default
    if unknown := set(cells) - set(CELLS):
        raise ValueError(f"cells {sorted(unknown)} are unknown; choose from {CELLS}")
    began, workers = time.time(), start(config)
    results: dict[str, Any] = {
        "versions": {worker.library: worker.version for worker in workers},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "load_before": os.getloadavg(),
        "steps": config.steps,
        "cells": {},
    }
    for name in cells:
        print(f"[{time.time() - began:.0f} s] {name}", flush=True)
        results["cells"][name] = measure_cell(workers, name, config)
        save(results, config.out, began)
    if not config.quick and "nsf-2" in cells:
        results["depth"] = measure_depth(workers)
        save(results, config.out, began)
    if not config.quick:
        flows = [flow for flow in ("realnvp", "nsf") if f"{flow}-2" in cells]
        results["fit"] = {flow: measure_fit(workers, flow) for flow in flows}
        save(results, config.out, began)
    for worker in workers:
        worker.close()
    return results


def save(results: dict, out: Path, began: float) -> None:
    """Write what is known so far."""
    results |= {"load_after": os.getloadavg(), "seconds": time.time() - began}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "report.md").write_text(report.markdown(results) + "\n")


def main(config: Config) -> None:
    """Measure and print the report."""
    print(report.markdown(run(config)))


if __name__ == "__main__":
    main(tyro.cli(Config))
