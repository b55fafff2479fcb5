"""Whether posteriors are calibrated: ranks of the truth among draws (Talts et al. 2018, arXiv:1804.06788).

Of theta ~ p(theta), x ~ p(x | theta) and L draws of q(. | x), the rank of any number f(theta) among those of the draws is
uniform on 0 .. L if q is the posterior, on average over x:

    ranks = calibration_ranks(theta, draws)                          # of each coordinate
    rank_uniformity(ranks, num_draws)                                # p-values
    by_density = calibration_ranks(log_q(theta), log_q(draws))       # f = log q(theta | x)
    credible_coverage(by_density, num_draws, (0.5, 0.9))             # of regions of highest density

The converse is not so: the prior itself passes by coordinates. Ranks heaped at the middle say that q is too wide, at the ends
that it is too narrow.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from genmod.core.checks import check, check_count
from genmod.core.statistics import Measured, mean_and_sem


class Uniformity(NamedTuple):
    """The chi-square statistic of ranks in equal bins, and the probability of a larger one where they are uniform; arrays of the
    trailing axes of the ranks."""

    statistic: np.ndarray
    p_value: np.ndarray


def calibration_ranks(theta: ArrayLike, draws: ArrayLike, *, seed: int = 0) -> np.ndarray:
    """How many of L draws lie below the truth, integers 0 .. L, (n,) + event shape, of each entry.

    Args:
      theta: the truth, (n,) + event shape. draws: of the posterior of each, (n, L) + event shape.
      seed: of the places of ties, which are random.

    Raises ValueError for other shapes and for numbers that are NaN.
    """
    theta, draws = np.asarray(theta), np.asarray(draws)
    if draws.ndim != theta.ndim + 1 or draws.shape[:1] + draws.shape[2:] != theta.shape or not draws.size:
        raise ValueError(f"draws must be (n, L) + event shape for theta (n,) + event shape, got {draws.shape} and {theta.shape}")
    for name, given in (("theta", theta), ("draws", draws)):
        check(not np.isnan(given).any(), f"{name} must be numbers, got NaN")
    below = (draws < theta[:, None]).sum(1)
    ties = (draws == theta[:, None]).sum(1)
    return below + np.random.default_rng(seed).integers(0, ties + 1)


def rank_uniformity(ranks: ArrayLike, num_draws: int, *, num_bins: int | None = None) -> Uniformity:
    """The chi-square test that ranks are uniform on 0 .. num_draws.

    Args:
      ranks: (n,) + any axes, each tested by itself over its n.
      num_bins: into which the num_draws + 1 ranks fall, as equal as they can be; None: the most that expect five ranks each, at
        most 20.

    Raises ValueError for ranks outside of 0 .. num_draws, and for too few of them for two bins.
    """
    ranks = _checked(ranks, num_draws)
    num = len(ranks)
    if num_bins is None:
        check(num >= 10, f"ranks must be at least 10, five for each of two bins, got {num}")
        num_bins = min(20, num_draws + 1, num // 5)
    check_count(num_bins=num_bins)
    check(2 <= num_bins <= num_draws + 1, f"num_bins must be in 2..{num_draws + 1}, got {num_bins}")
    bins = np.arange(num_draws + 1) * num_bins // (num_draws + 1)
    expected = num * np.bincount(bins) / (num_draws + 1)
    expected = expected.reshape(-1, *[1] * (ranks.ndim - 1))
    counts = np.stack([(bins[ranks] == k).sum(0) for k in range(num_bins)])
    statistic = ((counts - expected) ** 2 / expected).sum(0)
    return Uniformity(statistic, stats.chi2.sf(statistic, num_bins - 1))


def credible_coverage(ranks: ArrayLike, num_draws: int, levels: ArrayLike) -> list[Measured]:
    """How often the region of highest density of each level holds the truth, with its standard error: the level, if calibrated.

    Args:
      ranks: of log q(theta | x) among those of the draws, (n,), by `calibration_ranks`. num_draws: L of them.
      levels: of the regions, such as (0.5, 0.9).

    The region of level c holds the truth where fewer than a share c of the draws are denser. Coverage below the level says that
    q is too sure of itself. The standard error is that of the level, sqrt(c (1 - c) / n), where q is calibrated. Raises
    ValueError for ranks of another form and for levels outside of (0, 1).
    """
    ranks = _checked(ranks, num_draws)
    levels = np.asarray(levels, np.float64)
    check(ranks.ndim == 1, f"ranks must be (n,), one for each truth, got shape {ranks.shape}")
    check(levels.ndim == 1 and ((levels > 0) & (levels < 1)).all(), f"levels must be numbers in (0, 1), got {levels}")
    found = []
    for level in levels:
        # L - rank draws are denser; the chance that these are among c (L + 1) is c exactly, ends shared in proportion.
        inside = np.clip(level * (num_draws + 1) - (num_draws - ranks), 0.0, 1.0)
        mean, _ = mean_and_sem(inside)
        found.append(Measured(float(mean), float(np.sqrt(level * (1 - level) / len(ranks)))))
    return found


def _checked(ranks: ArrayLike, num_draws: int) -> np.ndarray:
    check_count(num_draws=num_draws)
    ranks = np.asarray(ranks)
    if ranks.ndim < 1 or not ranks.size or ranks.dtype.kind not in "iu":
        raise ValueError(f"ranks must be integers, (n,) + any axes, got {ranks.dtype} of shape {ranks.shape}")
    check(
        bool((ranks >= 0).all() and (ranks <= num_draws).all()),
        f"ranks must be in 0..{num_draws}, got {ranks.min()}..{ranks.max()}",
    )
    return ranks
