"""PyTorch by hand: the gradient in closed form, without autograd."""

import numpy as np
import torch

from experiments.benchmarks.contrastive import _machine
from experiments.benchmarks.contrastive.problems import RATE, Cell
from experiments.benchmarks.peer import Arrays


class Machine(_machine.Machine):
    """Weights and biases, which are updated in place."""

    def rows(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x.astype(np.float32))

    def begin(self, weights: np.ndarray) -> None:
        self._w = torch.from_numpy(weights.copy())
        self._b, self._c = (torch.zeros(size) for size in weights.shape)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self._visible(self._hidden(x))

    def _hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(torch.addmm(self._c, x, self._w))

    def _visible(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(torch.addmm(self._b, h, self._w.T))

    @torch.no_grad()
    def step(self, x: torch.Tensor) -> torch.Tensor:
        of_data = self._hidden(x)
        v = torch.bernoulli(self._visible(torch.bernoulli(of_data)))
        of_chains = self._hidden(v)
        rate = RATE / len(x)
        self._w.addmm_(x.T, of_data, alpha=rate).addmm_(v.T, of_chains, alpha=-rate)
        self._b.add_((x - v).sum(0), alpha=rate)
        self._c.add_((of_data - of_chains).sum(0), alpha=rate)
        return (x - v).square().mean()


def build(cell: Cell, arrays: Arrays) -> Machine:
    """The machine with the shared weights."""
    return Machine(arrays)
