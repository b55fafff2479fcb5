"""PyTorch by hand: the gradient in closed form, without autograd."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.contrastive.problems import RATE, Cell
from experiments.benchmarks.peer import Arrays, Unsupported


class Machine:
    """See `peer.Peer`."""

    compiles = False

    def __init__(self, arrays: Arrays) -> None:
        self._initial = arrays["weights"]
        self._batches = [torch.from_numpy(batch.astype(np.float32)) for batch in arrays["batches"]]
        self.num_params = self._initial.size + sum(self._initial.shape)
        self.restart("initial")

    def restart(self, weights: str) -> None:
        self._w, self._num = torch.from_numpy(self._initial.copy()), 0
        self._b, self._c = (torch.zeros(size) for size in self._w.shape)

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        if name == "train":
            return self._step
        if name == "reconstruct":
            (x,) = arrays
            return lambda: self._visible(self._hidden(torch.from_numpy(x.astype(np.float32))))
        raise Unsupported("not offered")

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(torch.addmm(self._c, x, self._w))

    def _visible(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(torch.addmm(self._b, h, self._w.T))

    @torch.no_grad()
    def _step(self) -> torch.Tensor:
        x = self._batches[self._num % len(self._batches)]
        of_data = self._hidden(x)
        v = torch.bernoulli(self._visible(torch.bernoulli(of_data)))
        of_chains = self._hidden(v)
        rate = RATE / len(x)
        self._w.addmm_(x.T, of_data, alpha=rate).addmm_(v.T, of_chains, alpha=-rate)
        self._b.add_((x - v).sum(0), alpha=rate)
        self._c.add_((of_data - of_chains).sum(0), alpha=rate)
        self._num += 1
        return (x - v).square().mean()


def build(cell: Cell, arrays: Arrays) -> Machine:
    """The machine with the shared weights."""
    return Machine(arrays)
