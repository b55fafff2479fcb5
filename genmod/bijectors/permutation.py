"""Permutations of the last axis of an event: fixed ones between the layers of a flow. Log-determinants are 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.base import Bijector
from genmod.core.checks import check_count, check_shape
from genmod.core.types import Array


@dataclasses.dataclass(frozen=True)
class Permutation(Bijector):
    """x_i = z_order[i], for events of any rank along their LAST axis; log_det 0."""

    order: tuple[int, ...]
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_order(self.order)

    def image(self, interval, inverse=False):
        return interval

    def _init(self, key, x, context):
        self._check_axis(x)
        return {}

    def _forward(self, params, z, context):
        self._check_axis(z)
        return take(z, self.order), 0.0

    def _inverse(self, params, x, context):
        self._check_axis(x)
        return take(x, inverse_order(self.order)), 0.0

    def _check_axis(self, x):
        if x.shape[-1:] != (len(self.order),):
            raise ValueError(f"this Permutation is of {len(self.order)} entries, the event has shape {x.shape}")


@dataclasses.dataclass(frozen=True)
class Reverse(Bijector):
    """The last axis in reverse order; log_det 0."""

    reads_data = False

    def image(self, interval, inverse=False):
        return interval

    def _init(self, key, x, context):
        return {}

    def _forward(self, params, z, context):
        return z[..., ::-1], 0.0

    def _inverse(self, params, x, context):
        return x[..., ::-1], 0.0


def random_order(dim: int, seed: int = 0) -> tuple[int, ...]:
    """A random permutation of `dim` entries that is ONE cycle, so that repeating it moves every entry through every place.

    (A permutation drawn at random from all may leave entries where they are; in a `Repeat` they would stay for ever.)
    """
    check_count(dim=dim)
    cycle = np.random.default_rng(seed).permutation(dim)
    order = np.empty(dim, int)
    order[cycle] = np.roll(cycle, 1)
    return tuple(order.tolist())


def take(x: Array, order: tuple[int, ...] | None) -> Array:
    """x[..., order].

    Up to 256 entries as a product with a matrix of zeros and ones, which is exact for finite x. XLA fuses a gather with
    what produces x and computes it again for every entry: on CPU a RealNVP with gathers took 1.4 times as long.
    """
    if order is None:
        return x
    if len(order) > 256:
        return x[..., np.asarray(order)]
    matrix = np.eye(len(order), dtype=x.dtype)[:, np.asarray(order)]
    return dot(x, jnp.asarray(matrix))


def inverse_order(order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The permutation that undoes `order`."""
    return None if order is None else tuple(np.argsort(order).tolist())


def check_order(order: tuple[int, ...] | None) -> None:
    """Raises TypeError or ValueError unless `order` is None or a permutation."""
    if order is not None and sorted(check_shape("order", order)) != list(range(len(order))):
        raise ValueError(f"order must hold each of 0..{len(order) - 1} once, got {order}")


def dot(a: Array, b: Array) -> Array:
    """a @ b in the full precision of its arguments, on every backend.

    By default a GPU rounds to TF32 and a TPU to bfloat16, and a map would no longer undo its inverse.
    """
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
