"""scikit-learn: `BernoulliRBM.partial_fit`, whose chains persist."""

import numpy as np
from scipy.special import expit
from sklearn.neural_network import BernoulliRBM

from experiments.benchmarks.contrastive import _machine
from experiments.benchmarks.contrastive.problems import RATE, Cell
from experiments.benchmarks.peer import Arrays


class Machine(_machine.Machine):
    """The estimator."""

    def rows(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32)

    def begin(self, weights: np.ndarray) -> None:
        batch = self._batches[0]
        self._model = BernoulliRBM(weights.shape[1], learning_rate=RATE, batch_size=len(batch), random_state=0)
        self._model.partial_fit(batch)  # which makes its arrays
        self._model.components_ = np.ascontiguousarray(weights.T)
        self._model.intercept_visible_, self._model.intercept_hidden_ = (np.zeros(n, np.float32) for n in weights.shape)

    def step(self, x: np.ndarray) -> float:
        self._model.partial_fit(x)
        return 0.0

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        model = self._model
        return expit(model.transform(x) @ model.components_ + model.intercept_visible_)


def build(cell: Cell, arrays: Arrays) -> Machine:
    """The estimator with the shared weights."""
    return Machine(arrays)
