"""Continuous flows by likelihood (cnf), flow matching (fm), and a diffusion (dm), on moons in D dimensions.

cnf-exact, cnf-hutchinson: maximum likelihood in D = 2 with a field of 3 x 64 tanh, dopri5 at 1e-5, the exact trace or
    one Rademacher probe. An Adam step on 512 points (`train`; `_fixed` with as many fixed dopri5 steps as the adaptive
    solver takes; `_adjoint` with the continuous adjoint) and log p of 1,000 points (`log_prob`, `log_prob_fixed`).
cnf-memory: what such a training step with the exact trace allocates, against the number of solver steps.
fm-2, fm-64: flow matching with a field of 3 x 256 SiLU. An Adam step on 1,024 points with independent pairs (`train`)
    and with optimal-transport pairs (`train_ot_exact`, `train_ot_sinkhorn`), and 1,000 samples (`sample`, `sample_fixed`).
dm-64: a denoiser of 3 x 256 SiLU. An Adam step of denoising on 1,024 points (`train`) and 1,000 samples by DDIM (`sample`).

The field is v(t, x) = MLP([x, t]) with noise at t = 0 and data at t = 1, dx/dt = v. All libraries load the same weights.
The denoiser of a diffusion, with data at t = 0 and noise at t = 1, is

    D(t, x) = (alpha x + sigma S F) / S^2,  F = MLP([x / S, log(sigma / alpha)]),  S^2 = alpha^2 + sigma^2
    alpha = exp(t^2 log ALPHA_MIN),  sigma = sqrt(1 - alpha^2 + SIGMA_MIN^2)

It is trained on E (alpha^2 + sigma^2) / sigma^2 |D - x|^2, t uniform, and sampled by DDIM in NUM_DDIM_STEPS equal steps of t.
A peer has beside the operations: `push` and `push_fixed`, where shared noise is sent; `NAME_steps` of an operation NAME, the
solver's steps, taken and rejected, on its array, where the library tells; and `memory`, by `memory_by_steps`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, Unsupported, result, train

TOLERANCE = 1e-5
ALPHA_MIN = SIGMA_MIN = 1e-3
NUM_DDIM_STEPS = 100
MEMORY_STEPS = (8, 32, 128)

LIKELIHOOD = ("train", "train_fixed", "train_adjoint", "log_prob", "log_prob_fixed")
MATCHING = ("train", "train_ot_exact", "train_ot_sinkhorn", "sample", "sample_fixed")

Weights = list[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """One problem: maximum likelihood ("cnf") with a divergence, flow matching ("fm"), or a diffusion ("dm"), in D dimensions."""

    kind: str
    dim: int
    divergence: str = "exact"
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    activation: str = "silu"
    batch_size: int = 1024
    num_points: int = 1_000
    num_training: int = 2_000  # steps by which the shared weights are trained


def weights(arrays: Arrays, which: str) -> Weights:
    """The "initial" or "trained" weights: ((inputs, outputs), (outputs,)) per layer; the first layer sees [x, t]."""
    num = sum(name.startswith(f"{which}_w") for name in arrays)
    return [(arrays[f"{which}_w{i}"], arrays[f"{which}_b{i}"]) for i in range(num)]


def solver_steps(arrays: Arrays) -> dict[str, int]:
    """Operation -> the steps that dopri5 takes at TOLERANCE, which fixed steps use, or those of DDIM."""
    return {name.removeprefix("steps_"): int(num) for name, num in arrays.items() if name.startswith("steps_")}


def memory_by_steps(sizes: Callable[[int], dict[str, int]]) -> dict[str, float]:
    """The check `memory`; `sizes` are the bytes that a training step keeps for a number of solver steps, by kind of solve."""
    return {f"{kind}, {num} steps, MiB": size / 2**20 for num in MEMORY_STEPS for kind, size in sizes(num).items()}


def make(cell: Cell) -> Arrays:
    """Weights, data and reference values; see `_reference`."""
    from experiments.benchmarks.dynamics import _reference  # JAX, which the processes of PyTorch libraries do without

    return _reference.make(cell)


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """What an operation is worth.

    Training: the mean loss of the last quarter of `num_steps` steps from the initial weights. Likelihood: the largest and the
    mean error beside the reference. Sampling: the error of where shared noise is sent. Both with the steps of the solver.
    """
    if name == "memory":
        return peer.bind("memory")()
    if name.startswith("train"):
        peer.restart("initial")
        return {"loss": np.mean(train(peer, name, num_steps)[-num_steps // 4 :])}
    peer.restart("trained")
    if name.startswith("log_prob"):
        x = arrays["x"]
        error = result(peer, name, x) - arrays["log_prob"]
        values = {"largest error, nats": np.abs(error).max(), "mean error": error.mean()}
        values["its standard error"] = error.std() / np.sqrt(error.size)
    else:
        x = arrays["z"]
        error = result(peer, name.replace("sample", "push"), x) - arrays["pushed"]
        values = {"largest error": np.abs(error).max(), "rms error": np.sqrt(np.mean(error**2))}
    try:
        return values | {"solver steps": int(result(peer, f"{name}_steps", x))}
    except Unsupported:
        return values


def _cell(problem: str, operations: tuple[str, ...], **fields: Any) -> Cell:
    return Cell(problem=problem, operations=operations, **({"checks": operations, "num_steps": 200} | fields))


FIELD = {"activation": "tanh", "hidden_sizes": (64, 64, 64)}
CNF = {"kind": "cnf", "dim": 2, "batch_size": 512, "num_training": 400, "num_steps": 60, **FIELD}
TINY = {"hidden_sizes": (16, 16), "batch_size": 32, "num_points": 50, "num_training": 50, "num_steps": 8}
FAMILY = Family(
    title="Continuous flows, flow matching and diffusions",
    cells={
        "cnf-exact": _cell("cnf-2", LIKELIHOOD, **CNF),
        "cnf-hutchinson": _cell("cnf-2", LIKELIHOOD, divergence="hutchinson", **CNF),
        "fm-2": _cell("fm-2", MATCHING, kind="fm", dim=2),
        "fm-64": _cell("fm-64", MATCHING, kind="fm", dim=64),
        "dm-64": _cell("dm-64", ("train", "sample"), kind="dm", dim=64),
        "cnf-memory": _cell("cnf-2", (), checks=("memory",), **CNF),
        "tiny": _cell("tiny", ("train", "sample", "sample_fixed"), kind="fm", dim=2, **TINY),
        "tiny-cnf": _cell("tiny-cnf", LIKELIHOOD, checks=(*LIKELIHOOD, "memory"), **(CNF | TINY)),
        "tiny-dm": _cell("tiny-dm", ("train", "sample"), kind="dm", dim=2, **TINY),
    },
    quick=("cnf-exact", "fm-2"),
    make=make,
    check=check,
    inputs={"log_prob": "x", "log_prob_fixed": "x"},
    notes="""\
All libraries load the same trained weights; diffrax_minimal and plainjax are what one would write by hand. Loss: mean of the
last quarter of 60 (cnf) or 200 training steps (a fifth with --quick) from shared initial weights. Errors are beside float64, of
log_prob in nats (one probe is unbiased, not exact), of samples in where shared noise is sent. Memory is what a compiled
training step allocates, of torchdiffeq what autograd keeps.

genmod aims at 1.1 times what one would write by hand, and at so many times less than the fastest other library: train 1.8
(cnf-exact, fm), 2.5 (cnf-hutchinson), 1.5 (dm); log_prob 5; sample 1.9 (fm), 2.3 (dm); train_ot_sinkhorn, against train_ot_exact
of the others, 2.""",
)
