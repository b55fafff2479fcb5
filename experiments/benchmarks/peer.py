"""What every benchmark is made of: the cells of a family, and each library's answer to them.

A **cell** is one problem, a frozen dataclass. What the libraries share of it (data, noise, weights, reference values) are arrays,
made once by the family and kept in a file. A **peer** is one library's model of one cell: named operations, each a call without
arguments that returns only when its result has been computed.

A family is a folder beside this file. Its `problems.py` holds `FAMILY`; every other module in it whose name has no leading
underscore is a library, with `build(cell, arrays) -> Peer`. So a new family is one file of problems and one file per library, a
new library is one file, and no other file changes. `jax_peer` and `torch_peer` make peers of plain functions.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

OURS = "genmod"
LEARNING_RATE = 1e-3  # of every training step

Arrays = Mapping[str, np.ndarray]


class Unsupported(Exception):
    """The library does not offer what is asked for: n/a in the tables, and the reason below them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One problem; a family adds the fields that say which."""

    problem: str  # name of its arrays: cells of one name are given the same
    operations: tuple[str, ...] = ()  # what is timed
    checks: tuple[str, ...] = ()  # what is checked, in this order, after the first calls and before the timing
    num_steps: int = 0  # of training that a check may take
    turn_seconds: float = 0.3  # CPU time that a library's turn aims at

    @classmethod
    def of_run(cls, **sizes: int) -> Self:
        """A cell of one operation, "run", whose problem is named by the sizes, the fields that its family adds."""
        return cls(problem="x".join(map(str, sizes.values())), operations=("run",), checks=("run",), **sizes)


class Peer(Protocol):
    """One library's model of one cell."""

    num_params: int  # that are trained
    compiles: bool  # whether a first call does

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        """The operation `name` on these arrays, ready: a call that blocks and returns its result.

        A training step goes on from where the peer stands, through the cell's batches in turn, and returns its loss.
        Raises `Unsupported` where the library has no such operation.
        """
        ...

    def restart(self, weights: str) -> None:
        """Go back to the shared weights of that name, with a fresh optimizer. Where a cell shares none, go on."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A benchmark: problems, and what the report says of them."""

    title: str
    cells: Mapping[str, Any]  # "tiny..." take seconds and are for tests: they are measured only if named
    quick: tuple[str, ...]  # the cells of a first impression
    make: Callable[[Any], Arrays]  # cell -> its arrays; training steps use "batches", (num, batch_size, ...)
    check: Callable[
        [Any, Arrays, Peer, str, int], dict[str, Any]
    ]  # (cell, arrays, peer, name, num_steps) -> {label, unit: value}
    inputs: Mapping[str, str]  # operation -> the array that it acts on when timed; the others act on none
    notes: str  # what the numbers mean, and what the libraries do not share
    differences: Mapping[str, tuple[str, str, int]] = dataclasses.field(default_factory=dict)  # row -> (a, b, n): (a - b) / n


def train(peer: Peer, name: str, num_steps: int) -> list[float]:
    """The losses of that many training steps; for checks."""
    step = peer.bind(name)
    return [float(step()) for _ in range(num_steps)]


def result(peer: Peer, name: str, *arrays: np.ndarray) -> np.ndarray:
    """What an operation returns, in float64; for checks."""
    return np.asarray(peer.bind(name, *arrays)(), np.float64)


def family(name: str) -> Family:
    """The family of that name; ValueError for one that is not there."""
    known = sorted(path.parent.name for path in Path(__file__).parent.glob("*/problems.py"))
    if name not in known:
        raise ValueError(f"family must be one of {', '.join(known)}, got {name!r}")
    return importlib.import_module(f"experiments.benchmarks.{name}.problems").FAMILY


def libraries(family_name: str) -> list[str]:
    """The libraries that a family has a module for, genmod first."""
    found = {path.stem for path in (Path(__file__).parent / family_name).glob("[!_]*.py")} - {"problems"}
    return sorted(found, key=lambda library: (library != OURS, library))
