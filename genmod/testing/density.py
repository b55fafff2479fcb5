"""`check_density`: is this a density, and are the draws its own? For any `Distribution`, yours or ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.checks import check
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Real
from genmod.core.keys import check_key
from genmod.core.types import Interval, Key, Params
from genmod.testing.reports import DensityReport, Row

_CELLS = 8  # per axis, of the comparison of draws with masses


def check_density(
    distribution: Distribution,
    params: Params,
    context: ArrayLike | None = None,
    *,
    key: Key | None = None,
    num_draws: int = 20_000,
    box: tuple[Interval, ...] | None = None,
    periodic: tuple[bool, ...] | None = None,
    num_points: int | None = None,
) -> DensityReport:
    """Holds `log_prob` and `sample` of real vectors of one or two coordinates against each other and against a quadrature.

    Checked: that the density has mass 1 in the box; that the draws lie there as it says (Pearson's chi-square over cells, in its
    standard deviations); that `sample_and_log_prob` is the two; that log p is finite at every draw; that it is equal on both
    sides of the seams of periodic coordinates.

    Args:
      distribution: of events (1,) or (2,), with an EXACT log_prob. params: its own.
      context: ONE context, of its context_shape.
      key: of the draws; None: always the same.
      num_draws: of the sample.
      box: (low, high) of each coordinate; None: the support where it is bounded, else the range of the draws and as much again
        on both sides.
      periodic: which coordinates close: there the box is one period.
      num_points: of the midpoint rule, per axis; None: 4,000 in one dimension, 600 in two.

    Returns a report; print it. Raises ValueError for other events, and for a log_prob that is not exact.
    """
    dim = distribution.event_shape[0] if len(distribution.event_shape) == 1 else 0
    check(isinstance(distribution.event, Real) and dim in (1, 2), f"events must be (1,) or (2,), got {distribution.event}")
    exact = distribution.likelihood is Likelihood.EXACT
    check(exact, f"log_prob must be EXACT to be checked, got {distribution.likelihood.name}")
    keys = jax.random.split(jax.random.key(0) if key is None else check_key(key))
    draws = np.asarray(distribution.sample(params, keys[0], (num_draws,), context), np.float64)
    box = _box(distribution, draws) if box is None else box
    num = (4_000 if dim == 1 else 600) if num_points is None else num_points

    axes = [low + (np.arange(num) + 0.5) * (high - low) / num for low, high in box]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
    density = np.exp(np.asarray(distribution.log_prob(params, jnp.asarray(grid, jnp.result_type(float)), context), np.float64))
    cell = np.prod([(high - low) / num for low, high in box])
    mass = float(density.sum() * cell)
    z_score = _chi_square(draws, density.reshape((num,) * dim) * cell, box)

    x, paired = distribution.sample_and_log_prob(params, keys[1], (256,), context)
    scored = distribution.log_prob(params, x, context)
    rows = [
        Row("|mass - 1|", abs(mass - 1.0), 2e-3),
        Row("draws against density, standard deviations", z_score, 5.0),
        Row("sample_and_log_prob = log_prob of its draws", _largest(paired - scored), 1e-2),
        Row("draws without a finite log_prob", float((~jnp.isfinite(scored)).sum() + (~jnp.isfinite(x)).any(-1).sum()), 0.0),
    ]
    for i in [i for i, closes in enumerate(periodic or ()) if closes]:
        sides = [draws[:500].copy() for _ in range(2)]
        for side, end in zip(sides, box[i], strict=True):
            side[:, i] = end
        before, after = (distribution.log_prob(params, jnp.asarray(side, jnp.result_type(float)), context) for side in sides)
        rows.append(Row(f"jump of log p where coordinate {i} closes", _largest(before - after), 1e-2))
    return DensityReport(type(distribution).__name__, tuple(rows))


def _box(distribution: Distribution, draws: np.ndarray) -> tuple[Interval, ...]:
    if distribution.support is not None and np.isfinite(distribution.support).all():
        return (distribution.support,) * draws.shape[1]
    low, high = draws.min(0), draws.max(0)
    return tuple((float(a - (b - a)), float(b + (b - a))) for a, b in zip(low, high, strict=True))


def _chi_square(draws: np.ndarray, masses: np.ndarray, box: tuple[Interval, ...]) -> float:
    """How many standard deviations the chi-square of the counts lies above its mean, over cells of about equal share.

    The cells are cut along the marginals of the quadrature, so that they do not depend on the draws.
    """
    dim, num = masses.ndim, masses.shape[0]
    edges, cells = [], masses
    for i, (low, high) in enumerate(box):
        marginal = np.cumsum(masses.sum(tuple(j for j in range(dim) if j != i)))
        cuts = np.unique(np.searchsorted(marginal / marginal[-1], np.arange(1, _CELLS) / _CELLS) + 1)
        cells = np.add.reduceat(cells, np.concatenate([[0], cuts[cuts < num]]), axis=i)
        edges.append(np.concatenate([[-np.inf], low + cuts[cuts < num] * (high - low) / num, [np.inf]]))
    counts, _ = np.histogramdd(draws, edges)
    expected = cells / cells.sum() * len(draws)
    likely = expected >= 5
    chi_square = float(((counts - expected)[likely] ** 2 / expected[likely]).sum())
    freedom = max(1, int(likely.sum()) - 1)
    return (chi_square - freedom) / np.sqrt(2.0 * freedom)


def _largest(difference: Any) -> float:
    return float(jnp.abs(difference).max())
