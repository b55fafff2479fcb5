"""What the PyTorch libraries of this family share: the field, and a peer of functions that call it."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from experiments.benchmarks.dynamics.problems import Cell, Weights, weights
from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.torch_peer import TorchPeer


class Field(torch.nn.Module):
    """v(t, x) on a batch, t scalar or (N, 1)."""

    def __init__(self, cell: Cell, arrays: Arrays) -> None:
        super().__init__()
        trained = weights(arrays, "trained")
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*w.shape) for w, _ in trained)
        self.activation = {"tanh": torch.tanh, "silu": torch.nn.functional.silu}[cell.activation]
        self.num_calls = 0
        self.load(trained)

    def load(self, layers: Weights) -> None:
        with torch.no_grad():
            for layer, (w, b) in zip(self.layers, layers, strict=True):
                layer.weight.copy_(torch.from_numpy(w.T))
                layer.bias.copy_(torch.from_numpy(b))

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        h = torch.cat([x, t.expand(x.shape[0], 1)], dim=1)
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h)


def peer(
    cell: Cell,
    arrays: Arrays,
    field: Field,
    *,
    losses: Mapping[str, Callable] | None = None,
    log_prob: Callable | None = None,
    push: Callable | None = None,
    memory: Callable | None = None,
    steps_of_calls: Callable[[int], int] = lambda calls: (calls - 2) // 6,
) -> TorchPeer:
    """A peer of the shared weights.

    Args:
        cell, arrays, field: the problem, its arrays, and what is trained.
        losses: operation -> batch -> loss.
        log_prob, push, memory: x -> (N,), z -> x, and the rows of that check, where there are some.
        steps_of_calls: calls of the field -> steps of the solver; by default dopri5's, two calls before the first step, six
            per step (first same as last).
    """

    def counted(fn: Callable, x: torch.Tensor) -> int:
        field.num_calls = 0
        fn(x)
        return steps_of_calls(field.num_calls)

    functions: dict[str, Callable | None] = {"memory": memory, "log_prob": log_prob, "push": push}
    if log_prob is not None:
        functions["log_prob_steps"] = partial(counted, log_prob)
    if push is not None:
        functions["sample_steps"] = partial(counted, push)
        functions["sample"] = lambda: push(torch.randn(cell.num_points, cell.dim))
    offered = {name: function for name, function in functions.items() if function is not None}
    return TorchPeer(field, arrays["batches"], losses or {}, offered, lambda which: field.load(weights(arrays, which)))


def normal_log_prob(z: torch.Tensor) -> torch.Tensor:
    """Standard normal, (N, D) -> (N,)."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
