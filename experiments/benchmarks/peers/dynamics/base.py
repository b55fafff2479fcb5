"""What every library is asked to do, and the problem that all of them are given.

The field is v(t, x) = MLP([x, t]) with noise at t = 0 and data at t = 1, dx/dt = v. All libraries load the same weights.
The denoiser of a diffusion, with data at t = 0 and noise at t = 1, is

    D(t, x) = (alpha x + sigma S F) / S^2,  F = MLP([x / S, log(sigma / alpha)]),  S^2 = alpha^2 + sigma^2
    alpha = exp(t^2 log ALPHA_MIN),  sigma = sqrt(1 - alpha^2 + SIGMA_MIN^2)

It is trained on E (alpha^2 + sigma^2) / sigma^2 |D - x|^2, t uniform, and sampled by DDIM in NUM_DDIM_STEPS equal steps of t.
An adapter is a module of this package, named like its library or with DISTRIBUTION, with `build(cell, problem) -> Dynamics` and,
where it can say so, `memory(problem, num_steps) -> {kind: bytes}` that a training step keeps for the backward pass.
It raises `Unsupported` for a cell that the library does not offer.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LEARNING_RATE = 1e-3
TOLERANCE = 1e-5
NUM_POINTS = 1_000
NUM_BATCHES = 16
ALPHA_MIN = SIGMA_MIN = 1e-3
NUM_DDIM_STEPS = 100

Weights = list[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One problem: maximum likelihood ("cnf") with a divergence, flow matching ("fm"), or a diffusion ("dm"), in D dimensions."""

    kind: str
    dim: int
    divergence: str = "exact"

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        return (64,) * 3 if self.kind == "cnf" else (256,) * 3

    @property
    def activation(self) -> str:
        return "tanh" if self.kind == "cnf" else "silu"

    @property
    def batch_size(self) -> int:
        return 512 if self.kind == "cnf" else 1024

    @property
    def file(self) -> str:
        """Where the problem is kept: the divergence does not matter to it."""
        return f"{self.kind}-{self.dim}.npz"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What all libraries share, made by `problems`.

    Attributes:
        initial, trained: weights ((inputs, outputs), (outputs,)) per layer; the first layer sees [x, t].
        batches: training data, (NUM_BATCHES, batch_size, D).
        x, z: held-out data and noise, (NUM_POINTS, D).
        log_prob: log p(x) in nats and float64, solved to 1e-9 with the exact trace; D = 2 maximum likelihood only.
        pushed: where the trained flow sends z in float64, solved to 1e-9; of a diffusion, by the steps of DDIM.
        num_steps: steps that dopri5 needs at TOLERANCE in training, log_prob and sampling; what fixed steps use; those of DDIM.
    """

    initial: Weights
    trained: Weights
    batches: np.ndarray
    x: np.ndarray
    z: np.ndarray
    log_prob: np.ndarray
    pushed: np.ndarray
    num_steps: dict[str, int]

    def save(self, path: Path) -> None:
        arrays = {name: getattr(self, name) for name in ("batches", "x", "z", "log_prob", "pushed")}
        for name in ("initial", "trained"):
            for i, pair in enumerate(getattr(self, name)):
                arrays |= {f"{name}_{i}_{part}": array for part, array in zip("wb", pair, strict=True)}
        arrays |= {f"num_steps_{op}": np.array(num) for op, num in self.num_steps.items()}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Problem":
        arrays = dict(np.load(path))
        weights = {
            name: [(arrays[f"{name}_{i}_w"], arrays[f"{name}_{i}_b"]) for i in range(4)] for name in ("initial", "trained")
        }
        steps = {name.removeprefix("num_steps_"): int(num) for name, num in arrays.items() if name.startswith("num_steps_")}
        rest = {name: arrays[name] for name in ("batches", "x", "z", "log_prob", "pushed")}
        return cls(**weights, **rest, num_steps=steps)


class Dynamics(Protocol):
    """A built model. Every method returns only when its result has been computed.

    Operations are named `train`, `log_prob`, `sample`, each with a suffix for a variant: `_fixed` for fixed dopri5 steps,
    `_adjoint` for the continuous adjoint, `_ot_exact` and `_ot_sinkhorn` for the coupling of flow matching.
    """

    operations: tuple[str, ...]

    def array(self, x: np.ndarray) -> Any:
        """The library's own array."""
        ...

    def restart(self, op: str, weights: Weights) -> None:
        """Load weights, and forget the optimizer's state."""
        ...

    def train_step(self, op: str, batch: Any) -> Any:
        """One Adam step on the batch: the loss."""
        ...

    def log_prob(self, op: str, x: Any) -> Any:
        """Log-density in nats, (N, D) -> (N,)."""
        ...

    def sample(self, op: str, num: int) -> Any:
        """Samples, (num, D)."""
        ...

    def push(self, op: str, z: Any) -> Any:
        """Where the flow sends noise, (N, D) -> (N, D)."""
        ...

    def num_steps(self, op: str, x: Any) -> int | None:
        """Solver steps, taken and rejected, of `log_prob` or `push` on x; None where the library does not tell."""
        ...
