"""What all benchmarks share: one process per library, pinned to one core with one thread, the libraries in turn.

Only one process computes at a time. For every operation the libraries take turns over several rounds, so that a
drift of the machine meets all of them. The number is the median CPU time of the process per call.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
        quick: a first impression: fewer cells and rounds.
        libraries: adapters of this benchmark.
        cells: problems; all by default.
        out: folder of results.json, report.md and the workers' logs.
        rounds: turns that each library takes per operation.
        turn_seconds: CPU seconds a turn aims at (at least one call, at most 50).
        core: the core that all workers are pinned to (Linux).
    """

    quick: bool = False
    libraries: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    out: Path = Path("runs/benchmarks")
    rounds: int = 5
    turn_seconds: float = 0.3
    core: int = 0


class WorkerError(Exception):
    """A library could not do what was asked."""


def spawn(arguments: Sequence[str], core: int, **kwargs: Any) -> subprocess.Popen:
    """This Python with `arguments`, on one core with one thread."""

    def pin() -> None:
        if sys.platform == "linux":
            os.sched_setaffinity(0, {core})

    return subprocess.Popen([sys.executable, *arguments], env=os.environ | ENVIRONMENT, preexec_fn=pin, **kwargs)


class Worker:
    """A library's process: `ask` blocks until it has answered. `module` serves, see `peers/serve.py`."""

    def __init__(self, library: str, module: str, config: Config) -> None:
        self.library = library
        with (config.out / f"{library}.log").open("w") as log:
            self._process = spawn(
                ["-m", module, library],
                config.core,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
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


def start(config: Config, module: str) -> list[Worker]:
    """One worker per library that can be imported."""
    workers = []
    for library in config.libraries:
        try:
            workers.append(Worker(library, module, config))
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


class Results:
    """What has been measured so far: results.json and report.md in `out`, written anew by `save`.

    A dict for the benchmark's own entries; `markdown` makes the report of it.
    """

    def __init__(self, workers: list[Worker], out: Path, markdown: Callable[[dict], str]) -> None:
        self._began, self._out, self._markdown = time.time(), out, markdown
        self.values: dict[str, Any] = {
            "versions": {worker.library: worker.version for worker in workers},
            "python": platform.python_version(),
            "machine": platform.platform(),
            "load_before": os.getloadavg(),
            "cells": {},
        }

    def announce(self, name: str) -> None:
        """Say what comes next."""
        print(f"[{time.time() - self._began:.0f} s] {name}", flush=True)

    def save(self) -> None:
        """Write what is known so far."""
        self.values |= {"load_after": os.getloadavg(), "seconds": time.time() - self._began}
        (self._out / "results.json").write_text(json.dumps(self.values, indent=1) + "\n")
        (self._out / "report.md").write_text(self._markdown(self.values) + "\n")


def choose(cells: tuple[str, ...], default: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The cells asked for, else `default`. Raises ValueError for one that is not known."""
    if unknown := set(cells) - set(known):
        raise ValueError(f"cells {sorted(unknown)} are unknown; choose from {known}")
    return cells or default
