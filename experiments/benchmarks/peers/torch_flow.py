"""The operations of a PyTorch library, from a module and functions that call it."""

from collections.abc import Callable

import numpy as np
import torch

from experiments.benchmarks.peers import base


class TorchFlow:
    """A flow as a `torch.nn.Module`; see `base.Flow`.

    Args:
        module: owner of the parameters.
        log_prob: x -> (N,).
        sample: num -> (num, D).
        round_trip: x -> x sent to the base and back.
    """

    compiles = False

    def __init__(self, module: torch.nn.Module, *, log_prob: Callable, sample: Callable, round_trip: Callable) -> None:
        self._log_prob, self._sample, self._round_trip = log_prob, sample, round_trip
        params = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(params, lr=base.LEARNING_RATE)
        self.num_params = sum(p.numel() for p in params)

    def array(self, x: np.ndarray) -> torch.Tensor:
        """The points as a tensor."""
        return torch.from_numpy(x)

    def train_step(self, batch: torch.Tensor) -> None:
        """One Adam step."""
        self._optimizer.zero_grad()
        loss = -self._log_prob(batch).mean()
        loss.backward()
        self._optimizer.step()

    @torch.no_grad()
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Log-density in nats."""
        return self._log_prob(x)

    @torch.no_grad()
    def sample(self, num: int) -> torch.Tensor:
        """Samples."""
        return self._sample(num)

    @torch.no_grad()
    def round_trip(self, x: torch.Tensor) -> torch.Tensor:
        """To the base and back."""
        return self._round_trip(x)
