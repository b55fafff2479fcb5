"""The Frechet distance of two sets of features, n rows of d each, from the features to the number, in float64.

Features are Gaussian with eigenvalues that fall as 1 / i; the moments of both sets differ in mean and scale.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """n rows of d features in either set."""

    num_rows: int
    num_features: int


def make(cell: Cell) -> Arrays:
    """Both sets, float32 as networks give them, and the distance by the singular values of the factors of the covariances."""
    rng = np.random.default_rng(0)
    scales = np.arange(1, cell.num_features + 1) ** -0.5
    x, y = ((rng.normal(size=(cell.num_rows, cell.num_features)) * scales).astype(np.float32) for _ in range(2))
    pair = np.stack([1.1 * x + 0.02, y])
    return {"pair": pair, "distance": np.array(reference(*pair.astype(np.float64)))}


def reference(x: np.ndarray, y: np.ndarray) -> float:
    """tr (S1 S2)^(1/2) is the sum of the singular values of A B', S1 = A'A, S2 = B'B, by QR factors of the centred rows."""
    shift = x.mean(0) - y.mean(0)
    factors = [np.linalg.qr(each - each.mean(0), mode="r") / np.sqrt(len(each) - 1) for each in (x, y)]
    traces = sum(np.sum(each**2) for each in factors)
    return float(shift @ shift + traces - 2.0 * np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """The distance, and its relative error."""
    value, truth = float(result(peer, name, arrays["pair"])), float(arrays["distance"])
    return {"distance": value, "relative error": abs(value / truth - 1.0)}


FAMILY = Family(
    title="Frechet distance of features",
    cells={
        "10000x2048": Cell.of_run(num_rows=10_000, num_features=2_048),
        "5000x512": Cell.of_run(num_rows=5_000, num_features=512),
        "tiny": Cell.of_run(num_rows=50, num_features=8),
    },
    quick=("5000x512",),
    make=make,
    check=check,
    inputs={"run": "pair"},
    notes="""\
A call is from the features to the number: means, covariances, the trace of the root. `scipy` is the usual route, `numpy.cov` and
`scipy.linalg.sqrtm` of the product of the covariances. genmod aims at a fifth of its CPU time at 10000x2048.""",
)
