"""How two samples cover each other, by balls about each row that reach its k-th nearest neighbour of its own sample.

    precision   share of samples in a ball of the data            recall     share of data in a ball of the samples
                (Kynkaanniemi et al. 2019, arXiv:1904.06991)
    density     mean number of balls of the data about a sample,  coverage   share of the balls of the data that hold a sample
                over k                                                       (Naeem et al. 2020, arXiv:2002.09797)

For one law, density is 1 in the mean, and coverage `expected_coverage`; precision and recall are below 1 and depend on k, n and
d. An outlier has a large ball: precision and recall believe it, density and coverage less so. Float64 NumPy, in blocks of rows.

Standard errors are those of the mean over the rows that are counted, with the balls as they are.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from genmod.core.checks import check_count
from genmod.core.statistics import Measured, mean_and_sem
from genmod.metrics.samples import checked_samples, pair_squares, row_blocks


def precision_recall(samples: ArrayLike, data: ArrayLike, *, num_neighbors: int = 3) -> dict[str, Measured]:
    """{"precision", "recall"} of samples of a model and data: rows of features, (n, d) and (m, d), or events.

    Raises ValueError for no more rows than `num_neighbors`, rows that are not finite, unequal events.
    """
    samples, data = _checked(samples, data, num_neighbors)
    radii_samples, radii_data = _radii(samples, num_neighbors), _radii(data, num_neighbors)
    in_data, in_samples = np.empty(len(samples)), np.zeros(len(data))
    for rows in row_blocks(len(samples), len(data)):
        squares = pair_squares(samples[rows], data)
        in_data[rows] = (squares <= radii_data).any(1)
        in_samples = np.maximum(in_samples, (squares <= radii_samples[rows, None]).any(0))
    return {"precision": _mean(in_data), "recall": _mean(in_samples)}


def density_coverage(samples: ArrayLike, data: ArrayLike, *, num_neighbors: int = 5) -> dict[str, Measured]:
    """{"density", "coverage"} of samples of a model and data, as `precision_recall`."""
    samples, data = _checked(samples, data, num_neighbors)
    radii = _radii(data, num_neighbors)
    density, covered = np.empty(len(samples)), np.zeros(len(data))
    for rows in row_blocks(len(samples), len(data)):
        inside = pair_squares(samples[rows], data) <= radii
        density[rows] = inside.sum(1) / num_neighbors
        covered = np.maximum(covered, inside.any(0))
    return {"density": _mean(density), "coverage": _mean(covered)}


def expected_coverage(num_samples: int, num_data: int, num_neighbors: int = 5) -> float:
    """The expected coverage of m data by n samples of one law: 1 - prod_{i=1..k} (m - i) / (n + m - i) (Naeem et al. 2020)."""
    check_count(num_samples=num_samples, num_data=num_data, num_neighbors=num_neighbors)
    if num_data <= num_neighbors:
        raise ValueError(f"num_data must be above num_neighbors = {num_neighbors}, got {num_data}")
    return 1.0 - math.prod((num_data - i) / (num_samples + num_data - i) for i in range(1, num_neighbors + 1))


def _radii(x: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Squared distances from every row to its k-th nearest other row."""
    radii = np.empty(len(x))
    for rows in row_blocks(len(x), len(x)):
        squares = pair_squares(x[rows], x)
        own = np.arange(rows.start, rows.stop)
        squares[own - rows.start, own] = np.inf
        radii[rows] = np.partition(squares, num_neighbors - 1, axis=1)[:, num_neighbors - 1]
    return radii


def _mean(values: np.ndarray) -> Measured:
    return Measured(*map(float, mean_and_sem(values)))


def _checked(samples: ArrayLike, data: ArrayLike, num_neighbors: int) -> list[np.ndarray]:
    check_count(num_neighbors=num_neighbors)
    return checked_samples(num_neighbors + 1, samples=samples, data=data)
