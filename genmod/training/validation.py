"""Validation: any numbers about parameters and held-out rows, (params, key, batch) -> dict of scalars.

Rows are taken in blocks that fit the device; the numbers of the blocks are averaged, weighted by their rows (of a `Batch` or
`Padded` with weights, by these). What cannot be averaged, a distance between two samples say, is wrapped in `Whole` and gets all
rows at once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.batching import Batch
from genmod.core.description import Description
from genmod.core.padding import Padded
from genmod.core.types import Array, Key, Params
from genmod.models.base import Model
from genmod.training.reports import check_metrics
from genmod.training.step import LossFn


@dataclasses.dataclass(frozen=True)
class Whole(Description):
    """A validation that gets all held-out rows at once: `validate=Whole(fn)`, fn(params, key, batch) -> dict of scalars."""

    fn: Callable[..., dict[str, Array]]


@dataclasses.dataclass(frozen=True)
class FinalLoss(Description):
    """The loss alone, of the final objective: step=None."""

    objective: Model | LossFn

    def __call__(self, params: Params, key: Key, batch: Any) -> dict[str, Array]:
        loss_fn = self.objective.loss if isinstance(self.objective, Model) else self.objective
        return {"loss": loss_fn(params, key, batch)[0]}


class Best(NamedTuple):
    """The parameters of the lowest value so far, that value, and its step."""

    params: Params
    value: Array
    step: Array


@dataclasses.dataclass(frozen=True)
class Measure(Description):
    """What is measured on held-out rows; the static part of a compiled program.

    Attributes:
      fn: (params, key, batch) -> dict of scalars, or a `Whole` of one.
      monitor: the entry whose minimum is best.
    """

    fn: Any
    monitor: str

    def __call__(self, params: Params, key: Key, rows: Any) -> dict[str, Array]:
        """The values of all rows."""
        if isinstance(self.fn, Whole) or rows is None:
            return self._checked((self.fn.fn if isinstance(self.fn, Whole) else self.fn)(params, key, rows))
        num_blocks, size = blocks(rows)
        whole = num_blocks * size

        def one(block):
            rows, index = block
            return self._checked(self.fn(params, jax.random.fold_in(key, index), rows)), _weight(rows)

        if num_blocks == 1:
            values, weights = one((_cut(rows, 0, size), 0))
            values, weights = jax.tree.map(lambda v: v[None], (values, weights))
        else:
            stacked = jax.tree.map(lambda a: a[:whole].reshape(num_blocks, size, *a.shape[1:]), rows)
            values, weights = jax.lax.map(one, (stacked, jnp.arange(num_blocks)))
        num_rows = jax.tree.leaves(rows)[0].shape[0]
        if num_rows > whole:  # fewer rows than there are blocks, where no number of blocks divides them
            rest = one((_cut(rows, whole, num_rows), num_blocks))
            values, weights = jax.tree.map(lambda v, r: jnp.concatenate([v, r[None]]), (values, weights), rest)
        return {name: jnp.sum(value * weights) / jnp.sum(weights) for name, value in values.items()}

    def _checked(self, values):
        values = check_metrics("validate", values)
        if self.monitor not in values:
            raise ValueError(f"monitor must be one of what validate gives, {sorted(values)}, got {self.monitor!r}")
        return values


def blocks(rows: Any) -> tuple[int, int]:
    """(number of blocks, their size): at most 4,096 rows, fewer where events are large; a number that divides if there is one."""
    num_rows, *shape = jax.tree.leaves(rows)[0].shape
    least = -(-num_rows // max(64, min(4096, 2**18 // max(1, math.prod(shape)))))
    num_blocks = next((k for k in range(least, min(2 * least, num_rows + 1)) if num_rows % k == 0), least)
    return num_blocks, num_rows // num_blocks


def _cut(rows, start, stop):
    return jax.tree.map(lambda a: a[start:stop], rows)


def _weight(rows):
    if isinstance(rows, Batch | Padded) and rows.weight is not None:
        return jnp.sum(rows.weight)
    return jnp.asarray(jax.tree.leaves(rows)[0].shape[0], jnp.float32)
