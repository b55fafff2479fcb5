"""Expectation and maximisation of a mixture of Gaussians: NUM_SWEEPS sweeps of n rows in D dimensions from the same start.

Two components with covariance matrices of their own, which overlap, so that no run ends early.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, result

NUM_SWEEPS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """n rows in D dimensions."""

    num_rows: int
    dim: int


def make(cell: Cell) -> Arrays:
    """The rows, the means of the start (whose weights are equal and covariances I), and where the sweeps lead in float64."""
    rng = np.random.default_rng(0)
    centres = np.stack([np.zeros(cell.dim), np.ones(cell.dim)])
    which = rng.random(cell.num_rows) < 0.4
    x = centres[which.astype(int)] + rng.standard_normal((cell.num_rows, cell.dim)) * np.where(which, 1.3, 0.8)[:, None]
    x, means = x.astype(np.float32), (centres + np.array([[-0.5], [0.5]])).astype(np.float32)
    return {"batches": x[None], "x": x, "means": means, "log_likelihood": np.asarray(sweeps(x.astype(np.float64), means))}


def sweeps(x: np.ndarray, means: np.ndarray) -> float:
    """The mean log-likelihood after the sweeps, by the book."""
    weights, means = np.full(2, 0.5), means.astype(np.float64)
    covariances = np.stack([np.eye(x.shape[1])] * 2)
    for _ in range(NUM_SWEEPS):
        held = np.exp(log_joint(x, weights, means, covariances))
        held /= held.sum(1, keepdims=True)
        total = held.sum(0)
        weights, means = total / len(x), held.T @ x / total[:, None]
        covariances = np.stack([((x - m) * held[:, k : k + 1]).T @ (x - m) / total[k] for k, m in enumerate(means)])
    return float(np.mean(np.logaddexp(*log_joint(x, weights, means, covariances).T)))


def log_joint(x: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """log w_k + log N(x; mean_k, covariance_k), (n, K)."""
    columns = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        z = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        columns.append(np.log(weight) - 0.5 * ((z**2).sum(0) + log_det))
    return np.stack(columns, 1)


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """The error of the log-likelihood after the sweeps."""
    return {"error, nats per row": float(abs(result(peer, name, arrays["x"]) - arrays["log_likelihood"]))}


FAMILY = Family(
    title="EM of Gaussian mixtures",
    cells={
        "1000000x2": Cell.of_run(num_rows=1_000_000, dim=2),
        "100000x10": Cell.of_run(num_rows=100_000, dim=10),
        "tiny": Cell.of_run(num_rows=500, dim=2),
    },
    quick=("100000x10",),
    make=make,
    check=check,
    inputs={"run": "x"},
    notes=f"""\
A call is {NUM_SWEEPS} sweeps and the log-likelihood after them, of two components with full covariances, in float32 data;
scikit-learn sums in float32 or float64 as its parts do. genmod aims at two fifths of its time at a million rows.""",
)
