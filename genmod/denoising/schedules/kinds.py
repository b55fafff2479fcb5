"""Kinds of predictions, and how one is turned into another.

What a network predicts at x_t is always a combination of the two unknowns, p x_0 + q eps, so that one formula converts
between all kinds (`convert`):

    x0        p = 1,          q = 0
    eps       p = 0,          q = 1
    score     p = 0,          q = -1 / sigma           the score of p(x_t | x_0); its mean is the score of p(x_t)
    v         p = -sigma,     q = alpha                Salimans & Ho 2022, arXiv:2202.00512, app. D
    velocity  p = alpha',     q = sigma'               dx/dt of the probability flow, with diffusion's time; flow matching's is
                                                       its negative, as its time runs the other way
    edm       p = r / (d S),  q = -d / S               r = sigma / alpha, S^2 = r^2 + d^2, d the `data_scale`: what EDM's network
                                                       sees (Karras et al. 2022, arXiv:2206.00364, eq. 7), v up to sign for d = 1
"""

from typing import Literal

import jax.numpy as jnp

from genmod.core.checks import check
from genmod.core.types import Array
from genmod.denoising.schedules.base import Schedule

Kind = Literal["x0", "eps", "score", "v", "velocity", "edm"]
KINDS: tuple[Kind, ...] = ("x0", "eps", "score", "v", "velocity", "edm")


def convert(
    schedule: Schedule, t: Array, x: Array, value: Array, source: Kind, target: Kind, *, data_scale: float = 1.0
) -> Array:
    """A prediction of one kind, as one of another, for ONE event.

    Solves [x; value] = [[alpha, sigma], [p, q]] [x0; eps] for (x0, eps).

    Args:
      schedule: of the noise. t: the time, a scalar. x: the noised event.
      value: the prediction, of the shape of x.
      source: its kind. target: the wanted kind.
      data_scale: standard deviation of the data, for the kind "edm".

    Returns an array of the shape of x. Raises ValueError for an unknown kind, and for a prediction of another shape than x.
    """
    check_kinds(source=source, target=target)
    check(jnp.shape(value) == jnp.shape(x), f"a prediction must have the shape of x, {jnp.shape(x)}, got {jnp.shape(value)}")
    if source == target:
        return value
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = _weights(schedule, t, source, data_scale)
    determinant = alpha * q - sigma * p
    x0 = (q * x - sigma * value) / determinant
    eps = (alpha * value - p * x) / determinant
    p, q = _weights(schedule, t, target, data_scale)
    return p * x0 + q * eps


def target_of(schedule: Schedule, t: Array, x0: Array, eps: Array, kind: Kind, *, data_scale: float = 1.0) -> Array:
    """p x0 + q eps: what a predictor of this kind regresses on, for ONE event.

    Args:
      schedule: of the noise. t: the time, a scalar.
      x0: the event. eps: its noise, of the same shape.
      kind: of the prediction. data_scale: standard deviation of the data, for the kind "edm".

    Raises ValueError for an unknown kind.
    """
    check_kinds(kind=kind)
    p, q = _weights(schedule, t, kind, data_scale)
    return p * x0 + q * eps


def noise_error(schedule: Schedule, t: Array, kind: Kind, *, data_scale: float = 1.0) -> Array:
    """|d eps / d prediction| at a fixed x_t: what an error of this kind is as an error of eps.

    Args:
      schedule: of the noise. t: times, any shape.
      kind: of the prediction. data_scale: standard deviation of the data, for the kind "edm".

    Returns an array of the shape of t. Raises ValueError for an unknown kind.
    """
    check_kinds(kind=kind)
    alpha = schedule.alpha(t)
    p, q = _weights(schedule, t, kind, data_scale)
    return jnp.abs(alpha / (alpha * q - schedule.sigma(t) * p))


def prediction_size(schedule: Schedule, t: Array, kind: Kind, *, data_scale: float = 1.0) -> Array:
    """The root mean square of what a predictor of this kind regresses on, at times t, for data of standard deviation data_scale.

    Args:
      schedule: of the noise. t: times, any shape.
      kind: of the prediction. data_scale: standard deviation of the data.

    Returns an array of the shape of t. Raises ValueError for an unknown kind.
    """
    check_kinds(kind=kind)
    p, q = _weights(schedule, t, kind, data_scale)
    return jnp.hypot(p * data_scale, q)


def _weights(schedule: Schedule, t: Array, kind: Kind, data_scale: float) -> tuple[Array, Array]:
    """(p, q) of the table above."""
    one, zero = jnp.ones_like(t), jnp.zeros_like(t)
    if kind == "x0":
        return one, zero
    if kind == "eps":
        return zero, one
    if kind == "velocity":
        return schedule.rates(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "score":
        return zero, -1.0 / sigma
    if kind == "v":
        return -sigma, alpha
    size = jnp.sqrt(sigma**2 + (alpha * data_scale) ** 2)
    return sigma / (data_scale * size), -data_scale * alpha / size


def check_kinds(**kinds: str) -> None:
    """Raises ValueError for the first named value that is not a `Kind`."""
    for name, kind in kinds.items():
        check(kind in KINDS, f"{name} must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
