"""A bijector evaluated at many points, in both directions, by one compiled program each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.base import Bijector
from genmod.core.batching import vmap_events
from genmod.core.params import cast
from genmod.core.types import Array, Params
from genmod.testing.points import Points

# The most numbers in the Jacobians of one call, the most operations (D^3 each) on those of all rows, and the largest D of which
# every point gets one.
_MOST_ENTRIES, _MOST_OPERATIONS, _WIDE = 2**22, 2**28, 128
_NUM_COLUMNS = 8


class Moved(NamedTuple):
    """Where points went: values (n, ...) and log_dets (n,); the derivatives of both, (n, D, k) and (n, k).

    k = D, or less: then they are products with random columns.
    """

    value: np.ndarray
    log_det: np.ndarray
    jacobian: np.ndarray
    gradient: np.ndarray

    @property
    def norm(self) -> np.ndarray:
        """Frobenius norms of the Jacobians, (n,); of products with random columns they are estimates."""
        return np.linalg.norm(self.jacobian.astype(np.float64), axis=(-2, -1))

    @property
    def slope(self) -> np.ndarray:
        """Norms of the gradients of the log-determinants, (n,), likewise."""
        return np.linalg.norm(self.gradient.astype(np.float64), axis=-1)


class Probe:
    """A bijector in one precision. A batch is vmapped as the library does it, over an axis with a name."""

    def __init__(self, bijector: Bijector, dtype: type, size: int, num_points: int):
        self.bijector, self.dtype, self.size = bijector, np.dtype(dtype), size
        self.wide = size > _WIDE
        self.most_jacobians = _MOST_OPERATIONS // max(1, size**3)
        # Whole blocks: every call has the same shape, and nothing is compiled twice.
        self.block = max(8, min(_MOST_ENTRIES // max(1, size**2), 4096, 64 * -(-num_points // 64)))
        random = np.random.default_rng(0).standard_normal((_NUM_COLUMNS, size)) / np.sqrt(_NUM_COLUMNS)
        self._columns = {False: np.eye(size), True: random if size > _NUM_COLUMNS else np.eye(size)}
        self._maps = {
            False: jax.jit(lambda *args: self._move(bijector.forward_and_log_det, *args)),
            True: jax.jit(lambda *args: self._move(bijector.inverse_and_log_det, *args)),
        }

    @property
    def eps(self) -> float:
        """Of the precision."""
        return float(np.finfo(self.dtype).eps)

    def cast(self, params: Params) -> Params:
        """Parameters in the precision of the probe."""
        return cast(params, self.dtype)

    def move(self, params: Params, points: Points, inverse: bool, thin: bool = False) -> Moved:
        """The points on the other side; `thin`: with products of their Jacobians alone."""
        columns = jnp.asarray(self._columns[thin], self.dtype)
        blocks = []
        for start in range(0, len(points.events), self.block):
            events, contexts = (
                None if a is None else self._padded(a[start : start + self.block]) for a in (points.events, points.contexts)
            )
            out = self._maps[inverse](params, jnp.asarray(events, self.dtype), contexts, columns)
            blocks.append([np.asarray(a) for a in out])
        parts = zip(*blocks, strict=True)
        return Moved(*(np.concatenate(part)[: len(points.events)] for part in parts))

    def scalar(self, params: Params, events: Array, contexts: Any, inverse: bool = True) -> Array:
        """Some smooth number that depends on everything one direction returns."""
        axes = (None, 0, None if contexts is None else 0)
        direction = self.bijector.inverse_and_log_det if inverse else self.bijector.forward_and_log_det
        moved, log_det = vmap_events(direction, axes)(params, events, contexts)
        return jnp.sin(moved).sum() + log_det.sum()

    def _padded(self, rows):
        return np.concatenate([rows, np.repeat(rows[:1], self.block - len(rows), 0)])

    def _move(self, direction, params, events, contexts, columns):
        def one(event, context):
            def push(column):
                return jax.jvp(lambda event: direction(params, event, context), (event,), (column.reshape(event.shape),))

            (moved, log_det), (jacobian, gradient) = jax.vmap(push, out_axes=(None, -1))(columns)
            return moved, log_det, jacobian.reshape(event.size, -1), gradient

        return vmap_events(one, (0, None if contexts is None else 0))(events, contexts)
