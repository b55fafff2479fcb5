"""PyTorch by hand: linear layers, losses on whole batches, `torch.optim.Adam`."""

import math

import torch
from torch.nn import functional

from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.torch_peer import TorchPeer
from experiments.benchmarks.vae.problems import LARGEST_LOG_SCALE, NAMES, Cell, weights


class Network(torch.nn.Module):
    """Encoder and decoder, with the shared weights."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self._shared = weights(arrays)
        self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(*self._shared[f"{name}_w"].shape) for name in NAMES})
        self.load("initial")

    def load(self, which: str) -> None:
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.weight.copy_(torch.from_numpy(self._shared[f"{name}_w"].T))
                layer.bias.copy_(torch.from_numpy(self._shared[f"{name}_b"]))

    def forward(self, x: torch.Tensor, num_draws: int) -> tuple[torch.Tensor, ...]:
        """(mean, log-scale, noise, z, logits of the pixels); z of (draws, images, latents)."""
        mean, raw = self.layers["posterior"](torch.relu(self.layers["encoder"](x))).chunk(2, -1)
        log_scale = LARGEST_LOG_SCALE * torch.tanh(raw / LARGEST_LOG_SCALE)
        noise = torch.randn(num_draws, *mean.shape)
        z = mean + torch.exp(log_scale) * noise
        return mean, log_scale, noise, z, self.layers["logits"](torch.relu(self.layers["decoder"](z)))


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The network and its loss."""
    network = Network(arrays)

    def loss(x: torch.Tensor) -> torch.Tensor:
        mean, log_scale, noise, z, logits = network(x, cell.num_draws)
        pixels = functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        log_likelihood = -pixels.sum(-1)
        if cell.num_draws == 1:
            rate = 0.5 * (torch.exp(2 * log_scale) + mean**2 - 1 - 2 * log_scale).sum(-1)
            return (rate - log_likelihood[0]).mean()
        log_weights = log_likelihood + (0.5 * (noise**2 - z**2) + log_scale).sum(-1)
        return (math.log(cell.num_draws) - torch.logsumexp(log_weights, 0)).mean()

    batches = arrays["batches"].astype("float32")
    return TorchPeer(network, batches, {"train": loss}, {"bound": lambda x: loss(x.float())}, network.load)
