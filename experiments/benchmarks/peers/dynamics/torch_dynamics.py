"""The operations of a PyTorch library, from functions that call the shared field."""

from collections.abc import Callable

import numpy as np
import torch

from experiments.benchmarks.peers.dynamics import base


class Field(torch.nn.Module):
    """v(t, x) on a batch, t scalar or (N, 1)."""

    def __init__(self, cell: base.Cell, weights: base.Weights) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*w.shape) for w, _ in weights)
        self.activation = {"tanh": torch.tanh, "silu": torch.nn.functional.silu}[cell.activation]
        self.num_calls = 0
        self.load(weights)

    def load(self, weights: base.Weights) -> None:
        with torch.no_grad():
            for layer, (w, b) in zip(self.layers, weights, strict=True):
                layer.weight.copy_(torch.from_numpy(w.T))
                layer.bias.copy_(torch.from_numpy(b))

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        h = torch.cat([x, t.expand(x.shape[0], 1)], dim=1)
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h)


class TorchDynamics:
    """A field and what is done with it; see `base.Dynamics`.

    Args:
        losses: op -> batch -> loss.
        log_probs: op -> x -> (N,).
        pushes: op -> z -> x.
        steps_of_calls: calls of the field -> steps of the solver; by default dopri5's, two calls before the first step, six
            per step (first same as last).
    """

    def __init__(
        self,
        cell: base.Cell,
        field: Field,
        losses: dict[str, Callable] | None = None,
        log_probs: dict[str, Callable] | None = None,
        pushes: dict[str, Callable] | None = None,
        steps_of_calls: Callable[[int], int] = lambda calls: (calls - 2) // 6,
    ) -> None:
        self._dim, self._field, self._steps_of_calls = cell.dim, field, steps_of_calls
        self._losses, self._log_probs, self._pushes = losses or {}, log_probs or {}, pushes or {}
        self.operations = (*self._losses, *self._log_probs, *self._pushes)

    def array(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x)

    def restart(self, op: str, weights: base.Weights) -> None:
        self._field.load(weights)
        self._optimizer = torch.optim.Adam(self._field.parameters(), lr=base.LEARNING_RATE)

    def train_step(self, op: str, batch: torch.Tensor) -> float:
        self._optimizer.zero_grad()
        loss = self._losses[op](batch)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def log_prob(self, op: str, x: torch.Tensor) -> torch.Tensor:
        return self._log_probs[op](x)

    @torch.no_grad()
    def sample(self, op: str, num: int) -> torch.Tensor:
        return self._pushes[op](torch.randn(num, self._dim))

    @torch.no_grad()
    def push(self, op: str, z: torch.Tensor) -> torch.Tensor:
        return self._pushes[op](z)

    def num_steps(self, op: str, x: torch.Tensor) -> int:
        """From the calls of the field."""
        self._field.num_calls = 0
        self.log_prob(op, x) if op in self._log_probs else self.push(op, x)
        return self._steps_of_calls(self._field.num_calls)


def normal_log_prob(z: torch.Tensor) -> torch.Tensor:
    """Standard normal, (N, D) -> (N,)."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
