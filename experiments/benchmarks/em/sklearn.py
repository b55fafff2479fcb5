"""scikit-learn: `sklearn.mixture.GaussianMixture` from the given start."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from experiments.benchmarks.em.problems import NUM_SWEEPS, Cell
from experiments.benchmarks.peer import Arrays


class SklearnPeer:
    """See `peer.Peer`."""

    compiles = False

    def __init__(self, cell: Cell, arrays: Arrays) -> None:
        self._cell, self._means = cell, arrays["means"]
        self.num_params = 1 + 2 * cell.dim + cell.dim * (cell.dim + 1)

    def restart(self, weights: str) -> None:
        pass

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        (x,) = arrays

        def run():
            model = GaussianMixture(
                2,
                weights_init=np.full(2, 0.5),
                means_init=self._means,
                precisions_init=np.stack([np.eye(self._cell.dim)] * 2),
                max_iter=NUM_SWEEPS,
                tol=0.0,
                reg_covar=0.0,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(x)
            return model.score(x)

        return run


def build(cell: Cell, arrays: Arrays) -> SklearnPeer:
    """Its estimator, which is told not to end early."""
    return SklearnPeer(cell, arrays)
