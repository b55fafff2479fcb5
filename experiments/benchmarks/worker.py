"""A library in a process of its own, pinned to one core with one thread, and what it can be asked.

A time is a pair [CPU seconds of the process, wall seconds].
"""

import contextlib
import importlib
import importlib.metadata
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from experiments.benchmarks.peer import Peer, Unsupported, family

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program read from the disk was not compiled
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


class WorkerError(Exception):
    """A library could not do what was asked."""


class Worker:
    """A library's process, which does what `Session` can; what it prints goes to `log`. "problems" can `make` only."""

    def __init__(self, family_name: str, library: str, *, core: int, log: Path) -> None:
        self.library = library
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _settle, (core, log))
        with mock.patch.dict(os.environ, ENVIRONMENT):  # of the process, which starts here
            self.version = self.ask("open", family_name=family_name, library=library)

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer, when it is there. Raises `WorkerError` with the library's reason."""
        try:
            return self._pool.submit(_answer, do, arguments).result()
        except BrokenProcessPool:
            raise WorkerError("its process has died, see its log") from None

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _settle(core: int, log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if sys.platform == "linux":
        os.sched_setaffinity(0, {core})


def _answer(do: str, arguments: dict[str, Any]) -> Any:
    try:
        return getattr(_SESSION, do)(**arguments)
    except Unsupported as reason:
        raise WorkerError(str(reason)) from None
    except Exception as error:
        traceback.print_exc()
        raise WorkerError(f"{type(error).__name__}: {error}".splitlines()[0]) from None


class Session:
    """Within the process: the library's peer of the current cell, and what can be asked of it."""

    _warm = False

    def open(self, family_name: str, library: str) -> str:
        """Import the library; the version of its distribution, named like it or by DISTRIBUTION."""
        self._family = family(family_name)
        self._library = importlib.import_module(f"experiments.benchmarks.{family_name}.{library}")
        if torch := sys.modules.get("torch"):  # for the others the environment does it
            torch.set_num_threads(1)
            torch.set_num_interop_threads(1)
        try:
            return importlib.metadata.version(getattr(self._library, "DISTRIBUTION", library))
        except importlib.metadata.PackageNotFoundError:
            return "source tree"

    def make(self, cell: str, path: Path) -> None:
        """Write a cell's arrays."""
        arrays: dict[str, Any] = dict(self._family.make(self._family.cells[cell]))
        np.savez(path, **arrays)

    def prepare(self, cell: str, path: Path) -> dict[str, Any]:
        """Build a peer, dropping the last one and all that was compiled.

        The first compilation of a process takes longer, whatever it compiles: the first time, one is done for nothing.
        """
        self._cell, self._arrays = self._family.cells[cell], dict(np.load(path))
        if not self._warm:
            self._build()
            for op in self._cell.operations:
                with contextlib.suppress(Exception):  # what is wrong will be said when it is measured
                    self._ready(op)()
                    self._warm = True
                    break
        if jax := sys.modules.get("jax"):
            jax.clear_caches()
        build = _timed(self._build)
        return {"num_params": self._peer.num_params, "compiles": self._peer.compiles, "build": build}

    def first(self, op: str) -> dict[str, tuple[float, float]]:
        """The first call of an operation and the second: their difference is compilation."""
        call = self._ready(op)
        return {"first": _timed(call), "second": _timed(call)}

    def check(self, name: str, num_steps: int) -> dict[str, Any]:
        """What the family's check finds."""
        return self._family.check(self._cell, self._arrays, self._peer, name, num_steps)

    def run(self, op: str, calls: int) -> list[tuple[float, float]]:
        """Times of some calls, one by one, each from the shared weights where there are some."""
        return [_timed(self._ready(op)) for _ in range(calls)]

    def _build(self) -> None:
        self._peer: Peer = self._library.build(self._cell, self._arrays)

    def _ready(self, op: str) -> Callable[[], Any]:
        self._peer.restart("trained")
        inputs = [self._arrays[self._family.inputs[op]]] if op in self._family.inputs else []
        return self._peer.bind(op, *inputs)


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


_SESSION = Session()  # of the process
