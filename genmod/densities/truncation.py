"""Truncation of a categorical law: log-probabilities of which the unlikely ones become -inf.

    keep_top_k(log_p, k)      the k most likely                          (Fan et al. 2018, arXiv:1805.04833, sec. 5.4)
    keep_nucleus(log_p, p)    the fewest whose probabilities reach p     (Holtzman et al. 2019, arXiv:1904.09751, eq. 2)

Both take logits or log-probabilities of shape (..., V) and leave the kept ones as they are: `jax.random.categorical` and a
softmax normalise. Of equally likely levels those of lower number come first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.core.checks import check_positive
from genmod.core.types import Array


def keep_top_k(logits: Array, k: int | Array) -> Array:
    """The logits, (..., V), of the k most likely levels, -inf for all others; all are kept where k >= V.

    Raises ValueError for a k that is not an integer >= 1.
    """
    check_top_k(k)
    return jnp.where(_ranks(logits) < k, logits, -jnp.inf)


def keep_nucleus(logits: Array, p: float | Array) -> Array:
    """The logits, (..., V), of the smallest set of most likely levels whose probability is at least p, -inf for all others.

    At p = 1 all are kept. Raises ValueError for a p outside (0, 1].
    """
    check_top_p(p)
    order = jnp.argsort(-logits, -1)
    sorted_p = jnp.take_along_axis(jax.nn.softmax(logits, -1), order, -1)
    before = jnp.cumsum(sorted_p, -1) - sorted_p  # the probability of the more likely levels
    keep = jnp.take_along_axis(before, jnp.argsort(order, -1), -1) < p
    # The sum of all may round to below one, or reach it too early.
    return jnp.where(keep | (_ranks(logits) == 0) | (jnp.asarray(p) >= 1), logits, -jnp.inf)


def tempered(
    log_p: Array, temperature: float | Array, top_k: int | Array | None = None, top_p: float | Array | None = None
) -> Array:
    """log p / temperature, then of these the `top_k`, then of these the nucleus of `top_p`; None leaves a step out.

    Up to a constant: but for a temperature of 1, the most likely level is at 0, so that it stays finite at any temperature.

    Args:
      log_p: log-probabilities or logits, (..., V). temperature: below 1 the likely become likelier.
      top_k, top_p: as in `keep_top_k` and `keep_nucleus`.

    Raises ValueError for a temperature that is not above 0, and as these two.
    """
    check_positive(temperature=temperature)
    top = log_p.max(-1, keepdims=True)
    shifted = log_p - jnp.where(jnp.isfinite(top) & (jnp.asarray(temperature) != 1), top, 0.0)
    logits = jnp.where(shifted == 0, 0.0, shifted / temperature)  # 0 / 0 where the temperature is flushed to zero
    logits = logits if top_k is None else keep_top_k(logits, top_k)
    return logits if top_p is None else keep_nucleus(logits, top_p)


def check_top_k(k: Any) -> None:
    """Raises ValueError unless k is an integer >= 1; what is being traced is let through."""
    if isinstance(k, Tracer):
        return
    known = np.asarray(k)
    if known.ndim or not np.issubdtype(known.dtype, np.integer) or known < 1:
        raise ValueError(f"top_k must be an integer >= 1, got {k!r}; None keeps all levels")


def check_top_p(p: Any) -> None:
    """Raises ValueError unless 0 < p <= 1; what is being traced is let through."""
    if isinstance(p, Tracer):
        return
    known = np.asarray(p)
    if known.ndim or known.dtype.kind not in "fiu" or not 0 < known <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {p!r}; None keeps all levels")


def _ranks(logits: Array) -> Array:
    """0 for the most likely level, 1 for the next, ...: (..., V)."""
    return jnp.argsort(jnp.argsort(-logits, -1), -1)
