"""Which modes of a known mixture a model's samples reach.

A sample belongs to the nearest centre, in units of its scale, and is good within `radius` scales of it; a mode is caught if a
good sample belongs to it (Srivastava et al. 2017, arXiv:1705.07761, sec. 4.1, radius 3).
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from genmod.core.checks import check_positive
from genmod.core.statistics import Measured, mean_and_sem
from genmod.metrics.samples import checked_samples, pair_squares, row_blocks


def mode_coverage(
    samples: ArrayLike, centers: ArrayLike, scales: ArrayLike, *, weights: ArrayLike | None = None, radius: float = 3.0
) -> dict[str, float | Measured]:
    """{"num_modes", "good_share", "mode_kl_nats"}: modes caught, the share of good samples, KL(their shares || weights).

    Args:
      samples: (n,) + event shape.
      centers: (K,) + event shape. scales: (K,), or one for all: standard deviations, of a coordinate.
      weights: of the modes, (K,), > 0, taken as shares; None: all equal.
      radius: within how many scales a sample is good; in D dimensions a perfect model has a share P(chi^2_D <= radius^2).

    The shares are those of good samples; of n from a perfect model the KL is about (K - 1) / (2 n). It is inf where no sample is
    good. In `gm.evaluate`: metrics=(lambda samples, x: mode_coverage(samples, centers, 0.1),).

    Raises ValueError for arguments of other shapes, not finite or not positive.
    """
    samples, centers = checked_samples(samples=samples, centers=centers)
    num = len(centers)
    scales = np.asarray(scales, np.float64)
    weights = np.ones(num) if weights is None else np.asarray(weights, np.float64)
    if scales.shape not in ((), (num,)):
        raise ValueError(f"scales must be one number, or one for each of {num} centers, got shape {scales.shape}")
    if weights.shape != (num,):
        raise ValueError(f"weights must be one number for each of {num} centers, got shape {weights.shape}")
    check_positive(scales=scales, weights=weights, radius=radius)
    counts, good = np.zeros(num), np.empty(len(samples))
    for rows in row_blocks(len(samples), num):
        squares = pair_squares(samples[rows], centers) / scales**2
        nearest = squares.argmin(1)
        inside = squares[np.arange(len(squares)), nearest] <= radius**2
        good[rows] = inside
        counts += np.bincount(nearest[inside], minlength=num)
    total = counts.sum()
    kl = float(rel_entr(counts / total, weights / weights.sum()).sum()) if total else float("inf")
    return {
        "num_modes": float((counts > 0).sum()),
        "good_share": Measured(*map(float, mean_and_sem(good))),
        "mode_kl_nats": kl,
    }
