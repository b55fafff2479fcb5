"""Layers whose parameters are read from the first batch: `ActNorm` and `Whiten` (trained on), `Standardize` (kept fixed).

In the direction data to base the first batch leaves all three with mean 0 and variance 1. `ActNorm` and `Standardize` are
x = exp(log_scale) z + shift per entry of the last axis (coordinates of a vector, channels of an image); `Whiten`, for
vectors, also removes the correlations.
"""

import dataclasses

import jax
import jax.numpy as jnp

from genmod.bijectors.base import Bijector
from genmod.bijectors.linear import log_abs_diagonal, vector_dim
from genmod.bijectors.permutation import dot
from genmod.core.params import Fixed
from genmod.core.types import Array


@dataclasses.dataclass(frozen=True)
class ActNorm(Bijector):
    """Activation normalisation (Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 3.1): data-dependent start, then trained.

    The initialisation happens in `init` and nowhere else, so a loaded model is never initialised again.
    """

    onto_reals = True

    def _init(self, key, x, context):
        return batch_statistics(x)

    def _forward(self, params, z, context):
        return _scale_and_shift(params, z)

    def _inverse(self, params, x, context):
        return _unscale_and_unshift(params, x)


@dataclasses.dataclass(frozen=True)
class Standardize(Bijector):
    """Mean and standard deviation of the initialising batch, never trained: put it last in a chain, on the side of the data.

    The density stays that of the data in the user's own units, with no offset to remember.
    """

    onto_reals = True

    def _init(self, key, x, context):
        return {"statistics": Fixed(batch_statistics(x))}

    def _forward(self, params, z, context):
        return _scale_and_shift(params["statistics"].constant, z)

    def _inverse(self, params, x, context):
        return _unscale_and_unshift(params["statistics"].constant, x)


@dataclasses.dataclass(frozen=True)
class Whiten(Bijector):
    """z = W (x - shift), W lower triangular, W^-1 W^-T the covariance of the initialising batch; then trained.

    Under a normal base the start is the Gaussian of maximum likelihood. `inverse` multiplies, `forward` solves.
    """

    onto_reals = True

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        statistics = batch_statistics(x)
        inverse_scale = jnp.exp(-statistics["log_scale"])
        standard = (x - jnp.broadcast_to(statistics["shift"], x.shape)) * jnp.broadcast_to(inverse_scale, x.shape)
        identity = jnp.eye(dim, dtype=x.dtype)
        whitening = identity
        if x.shape[0] > dim:  # fewer rows do not tell correlations
            correlation = dot(standard.T, standard) / x.shape[0]
            # A little of the identity, so that a constant or repeated column leaves a factor that can be inverted.
            factor = jnp.linalg.cholesky(correlation + 10 * dim * jnp.finfo(x.dtype).eps * identity)
            whitening = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        matrix = whitening * jnp.broadcast_to(inverse_scale, whitening.shape)
        return {"matrix": matrix, "shift": statistics["shift"]}

    def _forward(self, params, z, context):
        matrix = jnp.tril(params["matrix"])
        x = jax.scipy.linalg.solve_triangular(matrix, z, lower=True) + params["shift"]
        return x, -log_abs_diagonal(matrix)

    def _inverse(self, params, x, context):
        matrix = jnp.tril(params["matrix"])
        return dot(matrix, x - params["shift"]), log_abs_diagonal(matrix)


def batch_statistics(x: Array) -> dict[str, Array]:
    """{"shift", "log_scale"} of the entries of the last axis over all other axes of the batch.

    Two passes over deviations that are first scaled to at most 1, so that no sum of squares overflows, vanishes or cancels.
    An entry that is constant in the batch, up to a rounding or two, keeps scale 1.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(max(x.ndim - 1, 1)))  # of scalar events, over the batch
    mean = x.mean(axes)
    mean = mean + (x - jnp.broadcast_to(mean, x.shape)).mean(axes)  # what the rounding of a long sum has left
    deviation = x - jnp.broadcast_to(mean, x.shape)
    largest = jnp.abs(deviation).max(axes)
    constant = largest <= 2 * jnp.finfo(x.dtype).eps * jnp.abs(mean)
    unit = jnp.where(constant, 1.0, largest)
    std = jnp.sqrt(((deviation / jnp.broadcast_to(unit, x.shape)) ** 2).mean(axes))
    return {"shift": mean, "log_scale": jnp.where(constant, 0.0, jnp.log(unit) + jnp.log(jnp.where(constant, 1.0, std)))}


def _scale_and_shift(params, z):
    log_scale, shift = _per_entry(params, z)
    return z * jnp.exp(log_scale) + shift, log_scale.sum()


def _unscale_and_unshift(params, x):
    log_scale, shift = _per_entry(params, x)
    return (x - shift) * jnp.exp(-log_scale), -log_scale.sum()


def _per_entry(params, event):
    return jnp.broadcast_to(params["log_scale"], event.shape), jnp.broadcast_to(params["shift"], event.shape)
