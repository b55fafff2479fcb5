"""One library and its continuous flows in one process, asked by `dynamics` through `serve`.

python -m experiments.benchmarks.peers.dynamics.worker LIBRARY
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.serve import Unsupported, finite, forget_compiled, serve, timed


class Session:
    """The library's current model, its problem, and what can be asked of it."""

    def __init__(self, adapter: ModuleType) -> None:
        self.adapter = adapter

    def prepare(self, cell: dict) -> dict:
        """Build a model and its data, dropping the last one and all that was compiled."""
        forget_compiled()
        self.problem = base.Problem.load(Path(cell.pop("file")))
        self.model: base.Dynamics = self.adapter.build(base.Cell(**cell), self.problem)
        self.batches = [self.model.array(batch) for batch in self.problem.batches]
        self.x, self.z = self.model.array(self.problem.x), self.model.array(self.problem.z)
        return {"operations": self.model.operations}

    def first(self, op: str) -> dict:
        """The first call of an operation and the second: their difference is compilation."""
        call = self._call(op)
        return {"first": timed(call), "second": timed(call)}

    def run(self, op: str, calls: int) -> list[tuple[float, float]]:
        """Times of some calls, one by one; every call starts from the shared weights."""
        times = []
        for _ in range(calls):
            call = self._call(op)
            times.append(timed(call))
        return times

    def accuracy(self, op: str, num_steps: int) -> dict:
        """What the operation is worth.

        Training: the mean loss of the last quarter of `num_steps` steps from the initial weights. Likelihood: max and
        mean error beside the reference, in nats. Sampling: max error of the points that shared noise is sent to.
        Both with the solver's number of steps, where known.
        """
        self.model.restart(op, self.problem.initial if op.startswith("train") else self.problem.trained)
        if op.startswith("train"):
            losses = [float(self.model.train_step(op, self.batches[i % base.NUM_BATCHES])) for i in range(num_steps)]
            return {"loss": finite(np.mean(losses[-num_steps // 4 :]))}
        if op.startswith("log_prob"):
            error = np.asarray(self.model.log_prob(op, self.x), np.float64) - self.problem.log_prob
            steps = self.model.num_steps(op, self.x)
            sem = error.std() / np.sqrt(error.size)
            errors = {"max": np.abs(error).max(), "mean": error.mean(), "sem": sem}
        else:
            error = np.asarray(self.model.push(op, self.z), np.float64) - self.problem.pushed
            steps = self.model.num_steps(op, self.z)
            errors = {"max": np.abs(error).max(), "rms": np.sqrt(np.mean(error**2))}
        return {name: finite(value) for name, value in errors.items()} | {"steps": steps}

    def memory(self, num_steps: int) -> dict:
        """Bytes that a training step of the current problem keeps for `num_steps` solver steps."""
        if "memory" not in vars(self.adapter):
            raise Unsupported("does not tell")
        return self.adapter.memory(self.problem, num_steps)

    def _call(self, op: str) -> Callable[[], Any]:
        self.model.restart(op, self.problem.trained)
        if op.startswith("train"):
            return lambda: self.model.train_step(op, self.batches[0])
        if op.startswith("log_prob"):
            return lambda: self.model.log_prob(op, self.x)
        return lambda: self.model.sample(op, base.NUM_POINTS)


if __name__ == "__main__":
    serve(f"experiments.benchmarks.peers.dynamics.{sys.argv[1]}", Session)
