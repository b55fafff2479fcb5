"""A peer from a module and functions that call it: of PyTorch libraries."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.peer import LEARNING_RATE, Unsupported


class TorchPeer:
    """See `peer.Peer`.

    Args:
        module: owner of the parameters.
        batches: (num, batch_size, ...).
        losses: operation -> batch -> loss, each trained by Adam.
        functions: operation -> (*arrays) -> result; called without gradients.
        load: loads the shared weights of a name into the module, where the cell has them.
        optimizer: as `torch.optim.Adam` is called.
    """

    compiles = False

    def __init__(
        self,
        module: torch.nn.Module,
        batches: np.ndarray,
        losses: Mapping[str, Callable],
        functions: Mapping[str, Callable],
        load: Callable[[str], None] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        self._losses, self._functions, self._load, self._make = losses, functions, load, optimizer
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._batches = [torch.from_numpy(batch) for batch in batches]
        self.num_params = sum(p.numel() for p in self._trained)
        self._begin()

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        if name in self._losses:
            return functools.partial(self._step, self._losses[name])
        if name not in self._functions:
            raise Unsupported("not offered")
        return torch.no_grad()(functools.partial(self._functions[name], *map(torch.from_numpy, arrays)))

    def restart(self, weights: str) -> None:
        if self._load is not None:
            self._load(weights)
            self._begin()

    def _begin(self) -> None:
        self._optimizer, self._num = self._make(self._trained, lr=LEARNING_RATE), 0
        for parameter in self._trained:
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()  # makes its state, which belongs to no step that is timed; without a gradient nothing moves
        for state in self._optimizer.state.values():
            state["step"].zero_()

    def _step(self, loss_fn: Callable) -> torch.Tensor:
        self._optimizer.zero_grad()
        loss = loss_fn(self._batches[self._num % len(self._batches)])
        loss.backward()
        self._optimizer.step()
        self._num += 1
        return loss.detach()
