"""Rows of data to begin from: centres of clusters, and the rows that lie nearest to each.

choose(key, x, num) -> Chosen        x (n, D), distances Euclidean
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.types import Array, Key


class Chosen(NamedTuple):
    """rows: the numbers of the rows that are centres, (num,). nearest: which centre every row is nearest to, (n,)."""

    rows: Array
    nearest: Array


def spread_rows(key: Key, x: Array, num: int) -> Chosen:
    """`num` rows, drawn one after another with probabilities that grow with the squared distance to those before.

    That is the start of k-means++ (Arthur & Vassilvitskii 2007). Where all rows lie on centres the next one is any.
    """

    def draw(carry, scan):
        distance, nearest = carry
        key, number = scan
        # Where all are at distance 0 there are fewer different rows than centres.
        logits = jnp.where(jnp.isinf(distance).all() | (distance == 0).all(), 0.0, jnp.log(distance))
        row = jax.random.categorical(key, logits)
        own = _squared_distance(x, row)
        return (jnp.minimum(distance, own), jnp.where(own < distance, number, nearest)), row

    start = jnp.full(x.shape[0], jnp.inf, x.dtype), jnp.zeros(x.shape[0], jnp.int32)
    (_, nearest), rows = jax.lax.scan(draw, start, (jax.random.split(key, num), jnp.arange(num, dtype=jnp.int32)))
    return Chosen(rows, nearest)


def uniform_rows(key: Key, x: Array, num: int) -> Chosen:
    """`num` different rows, all equally likely; with repetitions where there are fewer rows."""
    rows = jax.random.choice(key, x.shape[0], (num,), replace=num > x.shape[0])
    return Chosen(rows, jnp.argmin(jax.lax.map(lambda row: _squared_distance(x, row), rows), 0).astype(jnp.int32))


def _squared_distance(x: Array, row: Array) -> Array:
    return jnp.sum((x - jnp.broadcast_to(x[row], x.shape)) ** 2, 1)
