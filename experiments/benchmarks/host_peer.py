"""A peer of functions of NumPy arrays in float64, which train nothing and compile nothing."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks.peer import Unsupported


class HostPeer:
    """See `peer.Peer`. functions: operation -> a function of arrays."""

    num_params, compiles = 0, False

    def __init__(self, functions: Mapping[str, Callable]) -> None:
        self._functions = functions

    def restart(self, weights: str) -> None:
        """There is nothing to go back to."""

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        if name not in self._functions:
            raise Unsupported("not offered")
        return functools.partial(self._functions[name], *arrays)
