"""One library and its flows in one process, asked by `flows` through `serve`.

python -m experiments.benchmarks.peers.worker LIBRARY
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from experiments.benchmarks.peers import base
from experiments.benchmarks.peers.serve import finite, forget_compiled, serve, timed


class Session:
    """The library's current flow, its data, and what can be asked of it."""

    def __init__(self, adapter: ModuleType) -> None:
        self.adapter = adapter

    def prepare(self, cell: dict) -> dict:
        """Build a flow and its data, dropping the last one and all that was compiled."""
        forget_compiled()
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
        return {"first": timed(self._call(op)), "second": timed(self._call(op))}

    def run(self, op: str, calls: int) -> list[tuple[float, float]]:
        """Times of some calls, one by one."""
        call = self._call(op)
        return [timed(call) for _ in range(calls)]

    def quality(self, num_steps: int) -> dict:
        """Train to `num_steps` steps, then ask whether this is a density and a bijection.

        Held-out NLL in nats; for D = 2 the mass of the density on a grid, which is 1 but
        for the tails; max |x - f(f^-1(x))| on the data and on uniform points in [-10, 10]^D.
        """
        while self.num_steps < num_steps:
            self._train()
        wide = base.uniform(3, base.NUM_POINTS, self.cell.dim, 10.0)
        return {
            "nll_nats": finite(-np.mean(np.asarray(self.flow.log_prob(self.points), np.float64))),
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
        return timed(lambda: self.fit(num))

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
        return finite(np.exp(log_prob).sum() * (2 * base.GRID_LIMIT) ** 2 / base.NUM_POINTS)

    def _inverse_error(self, x: np.ndarray) -> float | None:
        try:
            back = np.asarray(self.flow.round_trip(self.flow.array(x)))
        except AssertionError:  # the spline inverse of nflows and normflows refuses this way
            return None
        return finite(np.abs(back - x).max())


if __name__ == "__main__":
    serve(f"experiments.benchmarks.peers.{sys.argv[1]}", Session)
