"""One library in one process: requests in, answers out, one JSON object a line.

    python -m experiments.benchmarks.peers.worker LIBRARY

The first line out is the library's version, or the reason why it cannot be measured.
A request {"do": name, ...} is answered by {"ok": result}, {"unsupported": reason} or
{"error": reason}. A time is a pair [CPU seconds of this process, wall seconds].
"""

import importlib
import importlib.metadata
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.peers import base


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def _finite(x: Any) -> float | None:
    """A float, or None where it is not finite (JSON has no NaN)."""
    return float(x) if math.isfinite(float(x)) else None


def _set_threads() -> None:
    """One thread for PyTorch where it is in use; the environment does the rest."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)


class Session:
    """The library's current flow, its data, and what can be asked of it."""

    def __init__(self, library: str) -> None:
        self.adapter = importlib.import_module(f"experiments.benchmarks.peers.{library}")
        _set_threads()

    def prepare(self, cell: dict) -> dict:
        """Build a flow and its data, dropping the last one and all that was compiled."""
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        self.cell = base.Cell(**cell)
        self.flow: base.Flow = self.adapter.build(self.cell)
        self.num_steps = 0
        train = base.moons(1, 16 * base.BATCH_SIZE, self.cell.dim)
        self.batches = [self.flow.array(batch) for batch in np.split(train, 16)]
        self.test = base.moons(2, base.NUM_POINTS, self.cell.dim)
        self.points = self.flow.array(self.test)
        return {"num_params": self.flow.num_params, "compiles": self.flow.compiles}

    def first(self, op: str) -> dict:
        """The first call of an operation and the second: their difference is compilation."""
        return {"first": _timed(self._call(op)), "second": _timed(self._call(op))}

    def run(self, op: str, calls: int) -> list[tuple[float, float]]:
        """Times of some calls, one by one."""
        call = self._call(op)
        return [_timed(call) for _ in range(calls)]

    def quality(self, num_steps: int) -> dict:
        """Train to `num_steps` steps, then ask whether this is a density and a bijection.

        Held-out NLL in nats; for D = 2 the mass of the density on a grid, which is 1 but
        for the tails; max |x - f(f^-1(x))| on the data and on uniform points in [-10, 10]^D.
        """
        while self.num_steps < num_steps:
            self._train()
        wide = base.uniform(3, base.NUM_POINTS, self.cell.dim, 10.0)
        return {
            "nll_nats": _finite(-np.mean(np.asarray(self.flow.log_prob(self.points), np.float64))),
            "mass": self._mass() if self.cell.dim == 2 else None,
            "inverse_error_data": self._inverse_error(self.test),
            "inverse_error_wide": self._inverse_error(wide),
        }

    def start_fit(self, flow: str) -> None:
        """Make ready the library's own training loop, on `NUM_POINTS` points with D = 2."""
        if "fitter" not in vars(self.adapter):
            raise base.Unsupported("no training loop")
        cell = base.Cell(flow, 2, 8)
        self.fit: Callable[[int], None] = self.adapter.fitter(cell, base.moons(1, base.NUM_POINTS, 2))

    def epochs(self, num: int) -> tuple[float, float]:
        """Time of one call of the training loop."""
        return _timed(lambda: self.fit(num))

    def _call(self, op: str) -> Callable[[], Any]:
        if op == "train":
            return self._train
        if op == "log_prob":
            return lambda: self.flow.log_prob(self.points)
        return lambda: self.flow.sample(base.NUM_POINTS)

    def _train(self) -> None:
        self.flow.train_step(self.batches[self.num_steps % len(self.batches)])
        self.num_steps += 1

    def _mass(self) -> float | None:
        log_prob = np.asarray(self.flow.log_prob(self.flow.array(base.grid())), np.float64)
        return _finite(np.exp(log_prob).sum() * (2 * base.GRID_LIMIT) ** 2 / base.NUM_POINTS)

    def _inverse_error(self, x: np.ndarray) -> float | None:
        try:
            back = np.asarray(self.flow.round_trip(self.flow.array(x)))
        except AssertionError:  # the spline inverse of nflows and normflows refuses this way
            return None
        return _finite(np.abs(back - x).max())


def _answer(session: Session, request: dict) -> dict:
    """Do what is asked; a failure is an answer, not the end of the process."""
    methods = {
        "prepare": session.prepare,
        "first": session.first,
        "run": session.run,
        "quality": session.quality,
        "start_fit": session.start_fit,
        "epochs": session.epochs,
    }
    try:
        return {"ok": methods[request.pop("do")](**request)}
    except base.Unsupported as reason:
        return {"unsupported": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def main(library: str) -> None:
    """Serve requests until standard input ends. Whatever libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def put(answer: dict) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        session = Session(library)
    except ImportError as error:
        put({"unsupported": f"{type(error).__name__}: {error}"})
        return
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        version = "source tree"
    put({"ok": version})
    for line in sys.stdin:
        put(_answer(session, json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1])
