"""scikit-learn: `BernoulliRBM.partial_fit`, whose chains persist."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.neural_network import BernoulliRBM

from experiments.benchmarks.contrastive.problems import RATE, Cell
from experiments.benchmarks.peer import Arrays, Unsupported


class Machine:
    """See `peer.Peer`."""

    compiles = False

    def __init__(self, arrays: Arrays) -> None:
        self._initial = arrays["weights"]
        self._batches = [batch.astype(np.float32) for batch in arrays["batches"]]
        self.num_params = self._initial.size + sum(self._initial.shape)
        self.restart("initial")

    def restart(self, weights: str) -> None:
        batch, self._num = self._batches[0], 0
        self._model = BernoulliRBM(self._initial.shape[1], learning_rate=RATE, batch_size=len(batch), random_state=0)
        self._model.partial_fit(batch)  # which makes its arrays
        self._model.components_ = np.ascontiguousarray(self._initial.T)
        self._model.intercept_visible_, self._model.intercept_hidden_ = (np.zeros(n, np.float32) for n in self._initial.shape)

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        if name == "train":
            return self._step
        if name == "reconstruct":
            (x,) = arrays
            return lambda: self._reconstruct(x.astype(np.float32))
        raise Unsupported("not offered")

    def _step(self) -> float:
        self._model.partial_fit(self._batches[self._num % len(self._batches)])
        self._num += 1
        return 0.0

    def _reconstruct(self, x: np.ndarray) -> np.ndarray:
        model = self._model
        return expit(model.transform(x) @ model.components_ + model.intercept_visible_)


def build(cell: Cell, arrays: Arrays) -> Machine:
    """The estimator with the shared weights."""
    return Machine(arrays)
