"""One library and its Glow in one process, asked by `images` through `serve`.

python -m experiments.benchmarks.peers.images.worker LIBRARY
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from experiments.benchmarks.peers.base import Flow
from experiments.benchmarks.peers.images import base
from experiments.benchmarks.peers.serve import finite, forget_compiled, serve, timed


class Session:
    """The library's current flow, its images, and what can be asked of it."""

    def __init__(self, adapter: ModuleType) -> None:
        self.adapter = adapter

    def prepare(self, cell: dict) -> dict:
        """Build a flow and its data, dropping the last one and all that was compiled."""
        forget_compiled()
        example = base.images(0, base.BATCH_SIZE)
        build_time = timed(lambda: self._build(base.Cell(**cell), example))
        self.num_steps = 0
        train = base.images(1, base.NUM_BATCHES * base.BATCH_SIZE)
        self.batches = [self.flow.array(batch) for batch in np.split(train, base.NUM_BATCHES)]
        self.test = base.images(2, base.NUM_POINTS)
        self.points = self.flow.array(self.test)
        return {"num_params": self.flow.num_params, "compiles": self.flow.compiles, "build": build_time}

    def first(self, op: str) -> dict:
        """The first call of an operation and the second: their difference is compilation."""
        call = self._call(op)
        return {"first": timed(call), "second": timed(call)}

    def run(self, op: str, calls: int) -> list[tuple[float, float]]:
        """Times of some calls, one by one."""
        call = self._call(op)
        return [timed(call) for _ in range(calls)]

    def quality(self, num_steps: int) -> dict:
        """Train to `num_steps` steps: the bits per dimension of held-out 8-bit images, and max |x - f(f^-1(x))| on them."""
        while self.num_steps < num_steps:
            self._train()
        nats = -np.mean(np.asarray(self.flow.log_prob(self.points), np.float64)) / self.test[0].size
        error = np.abs(np.asarray(self.flow.round_trip(self.points)) - self.test).max()
        return {"bits_per_dim": finite(nats / np.log(2.0) + 8.0), "inverse_error": finite(error)}

    def _build(self, cell: base.Cell, example: np.ndarray) -> None:
        self.flow: Flow = self.adapter.build(cell, example)

    def _call(self, op: str) -> Callable[[], Any]:
        if op == "train":
            return self._train
        if op == "log_prob":
            return lambda: self.flow.log_prob(self.points)
        return lambda: self.flow.sample(base.NUM_SAMPLES)

    def _train(self) -> None:
        self.flow.train_step(self.batches[self.num_steps % base.NUM_BATCHES])
        self.num_steps += 1


if __name__ == "__main__":
    serve(f"experiments.benchmarks.peers.images.{sys.argv[1]}", Session)
