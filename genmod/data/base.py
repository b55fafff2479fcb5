"""Densities that are known exactly: the interface of every synthetic data set.

A `Toy` is a frozen, hashable description of a distribution p on R^event_shape.
It can be drawn from, its log-density is exact (closed form, or quadrature to
about 1e-5 relative in float32), and so is its entropy

    H(p) = -E_p[log p(x)]        (nats; differential, so it may be negative),

which no model's expected negative log-likelihood can beat.  The gap of a model
q is KL(p || q) = E_p[-log q(x)] - H(p).
"""

import abc
import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

_BLOCK = 2048  # points per step of log_prob: bounds the points x nodes table


class Toy(abc.ABC):
    """A distribution with exact samples, log-density and entropy.

    A subclass is a frozen dataclass of plain numbers that defines `event_shape`,
    `draw`, `log_density` (one event) and `exact_entropy`; everything else is here.
    """

    @property
    @abc.abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""

    @abc.abstractmethod
    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Independent draws, (*shape, *event_shape); `sample` jits it."""

    @abc.abstractmethod
    def log_density(self, x: Array) -> Array:
        """log p(x) in nats of ONE event, a scalar; `log_prob` batches and jits it."""

    @abc.abstractmethod
    def exact_entropy(self) -> float:
        """H(p) in nats, computed afresh; `entropy` caches it."""

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Independent draws, (*shape, *event_shape), in JAX's default float type."""
        return _sample(self, key, tuple(shape))

    def log_prob(self, x: Array) -> Array:
        """log p(x) in nats, exact: (*batch, *event_shape) -> (*batch,), any batch axes.

        Works under jit, vmap and grad; many points are taken in blocks, so that
        memory does not grow with points times quadrature nodes.

        Raises:
            TypeError: x is not real.
            ValueError: the trailing axes of x are not `event_shape`.
        """
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(f"log_prob wants real x, but x has dtype {x.dtype}: pass its real part.")
        rank = len(self.event_shape)
        if x.ndim < rank or x.shape[x.ndim - rank :] != self.event_shape:
            wanted = ", ".join(["...", *map(str, self.event_shape)])
            raise ValueError(
                f"log_prob of {self} wants x of shape ({wanted}), but x has shape {x.shape}: put the event on the last axis."
            )
        return _log_prob(self, x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float))

    def entropy(self) -> float:
        """H(p) = -E_p[log p] in nats, computed at the first call and then remembered."""
        return _entropy(self)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _sample(toy: Toy, key: Array, shape: tuple[int, ...]) -> Array:
    return toy.draw(key, shape)


@functools.partial(jax.jit, static_argnums=0)
def _log_prob(toy: Toy, x: Array) -> Array:
    batch = x.shape[: x.ndim - len(toy.event_shape)]
    events = x.reshape((math.prod(batch), *toy.event_shape))
    # Recomputing a block in the backward pass keeps gradients in blocks too.
    one = jax.checkpoint(toy.log_density)
    if len(events) <= _BLOCK:
        return jax.vmap(one)(events).reshape(batch)
    return jax.lax.map(one, events, batch_size=_BLOCK).reshape(batch)


@functools.lru_cache(maxsize=256)
def _entropy(toy: Toy) -> float:
    return float(toy.exact_entropy())
