"""One family of benchmarks, the libraries in turn.

    python -m experiments.benchmarks FAMILY [--cells NAMES] [--libraries NAMES] [--quick] [--out DIR]

Each library runs in a process of its own (`worker`), and only one process computes at a time. For every operation the
libraries take turns over several rounds, so that a drift of the machine meets all of them. The number is the median CPU time of
the process per call, with the wall time beside it; the ratio is to the fastest peer, genmod excluded. Compilation is the first
call minus the second, in a process that has compiled before. Beside the times stands what the results are worth, so that what is
fast because it is wrong shows. A library that is not installed is left out with a line that says so. Nothing here asserts a time.

The folder of the run holds report.md, a file of all numbers per cell, the shared arrays and the libraries' logs. The same command
again goes on with the cells that are not measured, and measures none twice: to measure anew, choose another --out.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import genmod as gm
from experiments.benchmarks import peer, report
from experiments.benchmarks.worker import Worker, WorkerError


@dataclasses.dataclass(frozen=True)
class Config:
    family: str = "flows"
    """A folder of experiments/benchmarks."""
    cells: tuple[str, ...] = ("all",)
    """Problems of the family; `quick` and `all` stand for several."""
    libraries: tuple[str, ...] = ()
    """All that the family has, if none is named."""
    rounds: int = 5
    """Turns that each library takes per operation."""
    scale: float = 1.0
    """Of the CPU seconds that a turn aims at (at least one call, at most 50) and of the training steps before a check."""
    core: int = 0
    """The core that all processes are pinned to (Linux)."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Measures and prints the report; the first argument may be the family."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--family", *arguments]
    return gm.lab.main(experiment, Config, quick={"cells": ("quick",), "rounds": 2, "scale": 0.2}, arguments=arguments)


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    """Measures cell by cell, writing report.md anew after each; the metrics are CPU milliseconds per call."""
    family, cells = peer.family(config.family), {}
    workers: list[Worker] = []
    try:
        for name in chosen(family, config.cells):
            path = run.folder / f"cell_{name}.json"
            if not path.exists():
                print(f"{time.strftime('%X')} {name}", flush=True)
                workers = workers or start(config, run.folder)
                found = measure(workers, name, family.cells[name], config, run.folder)
                path.with_suffix(".tmp").write_text(json.dumps(found, indent=1, default=float) + "\n")
                path.with_suffix(".tmp").replace(path)
            cells[name] = json.loads(path.read_text())
            (run.folder / "report.md").write_text(report.markdown(family, cells) + "\n")
    finally:
        for worker in workers:
            worker.close()
    print(report.markdown(family, cells))
    return {"family": config.family} | {
        f"{name}_{library}_{op}_cpu_ms": each["cpu_ms"]
        for name, cell in cells.items()
        for library, mine in cell["libraries"].items()
        for op, each in mine["time"].items()
    }


def chosen(family: peer.Family, cells: tuple[str, ...]) -> list[str]:
    """The names asked for, groups opened; ValueError for one that is not known."""
    groups = {"all": [name for name in family.cells if not name.startswith("tiny")], "quick": family.quick}
    names = list(dict.fromkeys(each for name in cells for each in groups.get(name, [name])))
    if not names or not family.cells.keys() >= set(names):
        raise ValueError(f"cells must be some of {', '.join([*groups, *family.cells])}, got {', '.join(cells) or 'none'}")
    return names


def start(config: Config, folder: Path) -> list[Worker]:
    """One worker per library that can be imported."""
    known, able = peer.libraries(config.family), []
    if not set(known) >= set(config.libraries):
        raise ValueError(f"libraries must be some of {', '.join(known)}, got {', '.join(config.libraries)}")
    for library in config.libraries or known:
        try:
            able.append(Worker(config.family, library, core=config.core, log=folder / f"{library}.log"))
        except WorkerError as reason:
            print(f"skipped {library}: {reason}", flush=True)
    if not able:
        raise ImportError(f"no library can be imported; see the logs in {folder}")
    return able


def shared_arrays(name: str, cell: peer.Cell, config: Config, folder: Path) -> Path:
    """The file of a cell's arrays, made if it is not there."""
    path, unfinished = folder / f"arrays_{cell.problem}.npz", folder / "unfinished.npz"
    if not path.exists():
        maker = Worker(config.family, "problems", core=config.core, log=folder / "arrays.log")
        try:
            maker.ask("make", cell=name, path=unfinished)
        except WorkerError as reason:
            raise OSError(f"the arrays of {name} could not be made: {reason}") from None
        finally:
            maker.close()
        unfinished.replace(path)
    return path


def measure(workers: list[Worker], name: str, cell: peer.Cell, config: Config, folder: Path) -> dict[str, Any]:
    """Builds, compiles and checks every library on one cell, then times the operations."""
    began, load, path = time.time(), os.getloadavg()[0], shared_arrays(name, cell, config, folder)
    found = {worker.library: first_calls(worker, name, cell, path, config) for worker in workers}
    for op in cell.operations:
        take_turns([worker for worker in workers if op in found[worker.library]["first"]], op, cell, config, found)
    versions = {worker.library: worker.version for worker in workers}
    return {"versions": versions, "load": (load, os.getloadavg()[0]), "seconds": time.time() - began, "libraries": found}


def first_calls(worker: Worker, name: str, cell: peer.Cell, path: Path, config: Config) -> dict[str, Any]:
    """What one library says of a cell before it is timed; what it does not offer goes to "missing" with the reason."""
    mine: dict[str, Any] = {"first": {}, "checks": {}, "time": {}, "missing": {}}

    def ask(what: str, do: str, **arguments: Any) -> dict:
        try:
            return {what: worker.ask(do, **arguments)}
        except WorkerError as reason:
            print(f"n/a for {worker.library}, {what}: {reason}", flush=True)
            mine["missing"][what] = str(reason)
            return {}

    mine |= ask("peer", "prepare", cell=name, path=path)
    if "peer" in mine:
        for op in cell.operations:
            mine["first"] |= ask(op, "first", op=op)
        num_steps = max(1, round(config.scale * cell.num_steps))
        for what in (check for check in cell.checks if check not in mine["missing"]):
            mine["checks"] |= ask(what, "check", name=what, num_steps=num_steps)
    return mine


def take_turns(workers: list[Worker], op: str, cell: peer.Cell, config: Config, found: Mapping[str, Any]) -> None:
    """Times one operation, the libraries in turn, round by round."""
    times: dict[str, list] = {worker.library: [] for worker in workers}
    for _ in range(config.rounds):
        for worker in workers:
            seconds = found[worker.library]["first"][op]["second"][0]
            calls = max(1, min(50, int(config.scale * cell.turn_seconds / max(seconds, 1e-6))))
            times[worker.library] += worker.ask("run", op=op, calls=calls)
    for library, pairs in times.items():
        cpu, wall = ([1e3 * seconds for seconds in each] for each in zip(*pairs, strict=True))
        medians = {"cpu_ms": statistics.median(cpu), "wall_ms": statistics.median(wall)}
        found[library]["time"][op] = medians | {"cpu_ms_range": [min(cpu), max(cpu)], "calls": len(cpu)}
