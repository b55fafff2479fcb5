"""What the peers without a compiler share: the weights, the batches in turn, the two operations."""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks.peer import Arrays, Unsupported


class Machine(abc.ABC):
    """See `peer.Peer`."""

    compiles = False

    def __init__(self, arrays: Arrays) -> None:
        self._initial = arrays["weights"]
        self._batches = [self.rows(batch) for batch in arrays["batches"]]
        self.num_params = self._initial.size + sum(self._initial.shape)
        self.restart("initial")

    def restart(self, weights: str) -> None:
        self._num = 0
        self.begin(self._initial)

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        if name == "train":
            return self._train
        if name == "reconstruct":
            rows = [self.rows(x) for x in arrays]
            return lambda: self.reconstruct(*rows)
        raise Unsupported("not offered")

    def _train(self) -> Any:
        batch = self._batches[self._num % len(self._batches)]
        self._num += 1
        return self.step(batch)

    @abc.abstractmethod
    def rows(self, x: np.ndarray) -> Any:
        """Images as the library wants them."""

    @abc.abstractmethod
    def begin(self, weights: np.ndarray) -> None:
        """Take these weights, (visible, hidden), and no biases."""

    @abc.abstractmethod
    def step(self, x: Any) -> Any:
        """One step of training on a batch."""

    @abc.abstractmethod
    def reconstruct(self, x: Any) -> Any:
        """E[x | h = E[h | x]]."""
