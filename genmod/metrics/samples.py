"""What metrics of samples ask of their arguments, and the squared distances of their rows, block by block in float64."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

# Entries of a block of a table of pairs: 32 MB in float64, which a cache of several cores still helps.
_BLOCK = 4_000_000


def checked_samples(least: int = 1, /, **named: ArrayLike) -> list[np.ndarray]:
    """Samples or features, (n,) + event shape, as float64 (n, d), in the order given.

    Raises ValueError, by the names of the arguments, for fewer than `least` rows, values that are not finite, and events or
    features of different shapes.
    """
    given = {name: np.asarray(sample) for name, sample in named.items()}
    arrays = {name: np.asarray(sample, np.float64) for name, sample in given.items()}
    for name, sample in arrays.items():
        if sample.ndim < 1 or sample.size == 0:
            raise ValueError(f"{name} must be events or features, (n,) + event shape, got shape {sample.shape}")
        if len(sample) < least:
            raise ValueError(f"{name} must have at least {least} rows, got {len(sample)}")
        finite = np.isfinite(sample)
        if not finite.all():
            rows = int((~finite).reshape(len(sample), -1).any(1).sum())
            raise ValueError(f"{name} must be finite, got {rows} of {len(sample)} rows that are not; drop them, and say how many")
    if len({sample.shape[1:] for sample in arrays.values()}) > 1:
        shapes = ", ".join(f"{sample.shape[1:]} of {name}" for name, sample in arrays.items())
        raise ValueError(f"{' and '.join(arrays)} must have events of one shape, got {shapes}")
    return [sample.reshape(len(sample), -1) for sample in arrays.values()]


def row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of the rows of a table, such that a block of it fits in memory."""
    size = max(1, _BLOCK // max(num_columns, 1))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def pair_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2, (n, d) and (m, d) -> (n, m), in float64.

    Up to 16 dimensions by differences; above by products about the mean of y, which errs by a few eps times |x|^2 + |y|^2 and
    is cut at 0.
    """
    if x.shape[1] <= 16:
        return cdist(x, y, "sqeuclidean")
    center = y.mean(0)
    x, y = x - center, y - center
    squares = x @ y.T
    squares *= -2.0
    squares += np.einsum("ij,ij->i", x, x)[:, None]
    squares += np.einsum("ij,ij->i", y, y)
    return np.maximum(squares, 0.0, out=squares)
