"""PyTorch by hand: `Conv2d` with circular padding, a loop over the couplings, `torch.optim.Adam`."""

import itertools
import math

import torch

from experiments.benchmarks.lattice.problems import (
    COUPLING,
    LARGEST_LOG_SCALE,
    MASS_SQUARED,
    SLOPE,
    Cell,
    kept_sites,
    weights,
)
from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.torch_peer import TorchPeer


class Flow(torch.nn.Module):
    """The couplings, with the shared weights."""

    def __init__(self, cell: Cell, arrays: Arrays) -> None:
        super().__init__()
        self._shared = weights(arrays)
        self.networks = torch.nn.ModuleList(_network((1, *cell.hidden_channels, 2)) for _ in range(cell.num_layers))
        self._moves = [torch.from_numpy((~kept_sites(cell, i)).astype("float32")) for i in range(cell.num_layers)]
        self.load("initial")

    def load(self, which: str) -> None:
        with torch.no_grad():
            for i, network in enumerate(self.networks):
                for layer, (kernels, biases) in zip(network[::2], self._shared, strict=True):
                    layer.weight.copy_(torch.from_numpy(kernels[i]).permute(3, 2, 0, 1))
                    layer.bias.copy_(torch.from_numpy(biases[i]))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, log q(x)) of latents (n, L, L)."""
        log_q = -0.5 * (z**2 + math.log(2 * math.pi)).sum((1, 2))
        for moves, network in zip(self._moves, self.networks, strict=True):
            kept = (1 - moves) * z
            shift, raw = network(kept[:, None]).unbind(1)
            log_scale = moves * (LARGEST_LOG_SCALE * torch.tanh(raw / LARGEST_LOG_SCALE))
            z = kept + moves * (z * torch.exp(log_scale) + shift)
            log_q = log_q - log_scale.sum((1, 2))
        return z, log_q


def _network(channels: tuple[int, ...]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(channels):
        layers += [torch.nn.Conv2d(a, b, 3, padding=1, padding_mode="circular"), torch.nn.LeakyReLU(SLOPE)]
    return torch.nn.Sequential(*layers[:-1])


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The flow and its loss."""
    flow = Flow(cell, arrays)

    def given(z: torch.Tensor) -> torch.Tensor:
        x, log_q = flow(z)
        density = MASS_SQUARED * x**2 + COUPLING * x**4 + sum((x - x.roll(-1, axis)) ** 2 for axis in (1, 2))
        return log_q + density.sum((1, 2))

    def noise(num: int) -> torch.Tensor:
        return torch.randn(num, cell.size, cell.size)

    losses = {"train": lambda batch: given(noise(cell.batch_size)).mean()}
    functions = {"given": given, "sample": lambda: flow(noise(cell.num_samples))}
    return TorchPeer(flow, arrays["batches"], losses, functions, flow.load)
