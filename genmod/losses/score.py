"""Score matching: fitting s(x) to grad log p(x) of data whose density is not known. Sum over the event, mean over the batch.

    explicit   E[|s|^2 / 2 + div s]                             Hyvarinen 2005, theorem 1 (JMLR 6:695-709)
    sliced     E[|s|^2 / 2 + v^T ds/dx v],  E[v v^T] = I         Song et al. 2019, arXiv:1905.07088, eq. 8, variance reduced
    denoising  E[|s(x + sigma e) + e / sigma|^2] / 2             Vincent 2011, 10.1162/NECO_a_00142, eq. 9

The first two have the minimiser grad log p and the value E|s - grad log p|^2 / 2 less E|grad log p|^2 / 2; the third has the
score of the data blurred by sigma. Each takes `score_fn`, x -> s of ONE event.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_positive
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key
from genmod.dynamics.divergence import DivergenceEstimator, Exact, Hutchinson

Score = Callable[[Array], Array]


def explicit_score_matching(
    score_fn: Score,
    x: Array,
    key: Key | None = None,
    *,
    divergence: DivergenceEstimator = Exact(),
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """E[|s|^2 / 2 + div s] over the batch x.

    Args:
      score_fn: x -> s of ONE event. x: (n,) + event shape.
      key: where the divergence is an estimate (unbiased).
      divergence: exact, or an estimate. weight: (n,), of the rows in the mean; None: all equal.

    Returns (loss, {"score_matching": loss, "score_matching_sem": its standard error}). Raises ValueError for an estimate
    without a key.
    """
    if key is None and not divergence.exact:
        raise ValueError(f"{type(divergence).__name__} is random: pass key=...")

    def one(x, key):
        probes = None if key is None else divergence.probes(key, score_fn, x)
        score, estimates, _ = divergence(score_fn, x, probes)
        return 0.5 * jnp.sum(score**2) + jnp.mean(estimates)

    keys = None if key is None else jax.random.split(key, x.shape[0])
    return _mean("score_matching", jax.vmap(one, (0, None if keys is None else 0))(x, keys), weight)


def sliced_score_matching(
    score_fn: Score,
    x: Array,
    key: Key,
    *,
    num_probes: int = 1,
    distribution: Literal["rademacher", "normal"] = "rademacher",
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """E[|s|^2 / 2 + v^T ds/dx v]: `explicit_score_matching` by Hutchinson's trace.

    Args:
      score_fn: x -> s of ONE event. x: (n,) + event_shape.
      key: of the directions v.
      num_probes: directions for each event. distribution: of their entries.
      weight: (n,), of the rows in the mean; None: all equal.

    Returns (loss, {"score_matching": loss, "score_matching_sem": its standard error}). Raises ValueError for num_probes < 1 and
    for another distribution.
    """
    return explicit_score_matching(score_fn, x, key, divergence=Hutchinson(num_probes, distribution), weight=weight)


def denoising_score_matching(
    score_fn: Score, x: Array, key: Key, *, sigma: ArrayLike, weight: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """E[|s(x + sigma e) + e / sigma|^2] / 2 over the batch x, with one draw of e for each event.

    Args:
      score_fn: x -> s of ONE event. x: (n,) + event shape. key: of the draws.
      sigma: of the noise. weight: (n,), of the rows in the mean; None: all equal.

    Returns (loss, {"denoising_score_matching": loss, "denoising_score_matching_sem": its standard error}). Raises ValueError
    for sigma <= 0, and for a score of another shape than x.
    """
    check_positive(sigma=sigma)
    noise = jax.random.normal(key, x.shape, x.dtype)
    score = jax.vmap(score_fn)(x + sigma * noise)
    if score.shape != x.shape:
        raise ValueError(f"score_fn must return the shape of its input, {x.shape[1:]}, got {score.shape[1:]}")
    error = score + noise / sigma
    return _mean("denoising_score_matching", 0.5 * jnp.sum((error**2).reshape(x.shape[0], -1), 1), weight)


def _mean(name: str, values: Array, weight: Array | None) -> tuple[Array, dict[str, Array]]:
    mean, sem = mean_and_sem(values, weight)
    return mean, {name: mean, f"{name}_sem": sem}
