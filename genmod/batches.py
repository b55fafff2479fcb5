"""Where minibatches come from: arrays that live on the device, or an iterator of batches.

Minibatch i of resident data is a pure function of (key, i): epoch e is cut from the permutation with key fold_in(key, e).
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.base import Array, Key, describe
from genmod.checks import check_levels
from genmod.models.base import Model

# A deep image model passes its initial batch through every layer; vectors cost little, and `Whiten` wants all of them.
_INIT_NUMBERS = 2**20


class Source(NamedTuple):
    """Where batches come from: arrays on the device, or an iterator of batches."""

    arrays: Any
    batches: Iterator | None
    batch_size: int

    @property
    def resident(self) -> bool:
        """True for arrays."""
        return self.batches is None

    @classmethod
    def of(cls, model: Model, data: Any, batch_size: int) -> "Source":
        """The source of what a user calls data: x, (x, context), an iterator of these, or None."""
        if data is None:
            return cls((None, None), None, batch_size)
        if isinstance(data, Iterator):
            first = checked_pair("data", next(data, None), model)
            rest = (checked_pair("data", batch, model) for batch in data)
            return cls(first, itertools.chain([first], rest), len(first[0]))
        arrays = checked_pair("data", data, model)
        return cls(arrays, None, min(batch_size, arrays[0].shape[0]))

    def example(self) -> tuple[Any, ...]:
        """(x,) or (x, context) to initialise from: all rows; of images, random ones that hold about a million numbers."""
        x, context = self.arrays
        if x is None:
            raise ValueError("data=None wants params=..., for instance model.init(key, an example batch)")
        num = max(1, _INIT_NUMBERS * x.shape[0] // x.size)
        if x.ndim > 2 and num < x.shape[0]:
            rows = np.sort(np.random.default_rng(0).choice(x.shape[0], num, replace=False))
            x, context = x[rows], None if context is None else context[rows]
        return (x,) if context is None else (x, context)

    def fingerprint(self) -> Any:
        """What a checkpoint remembers of the data."""
        return fingerprint(self.arrays) if self.resident else "streamed"

    def skip(self, num: int) -> None:
        """Passes over the first `num` batches of an iterator; resident data need no memory of where they were."""
        for _ in itertools.islice(self.batches or (), num):
            pass

    def take(self, num: int) -> Any:
        """The next `num` batches of an iterator, stacked; resident arrays as they are."""
        if self.batches is None:
            return self.arrays
        got = list(itertools.islice(self.batches, num))
        if len(got) < num:
            raise ValueError("the data iterator ended before num_steps batches; let it repeat, or ask for fewer steps")
        if len({a[0].shape for a in got}) > 1:
            raise ValueError(f"the batches of an iterator must have one size, got {sorted({len(a[0]) for a in got})}")
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *got)


class EpochSampler(NamedTuple):
    """Minibatches without replacement, epoch after epoch; rows that do not fill a batch wait for the next shuffle."""

    data: Any
    key: Key
    batch_size: int

    @property
    def num_rows(self) -> int:
        leaves = jax.tree.leaves(self.data)
        return leaves[0].shape[0] if leaves else 0

    @property
    def per_epoch(self) -> int:
        return max(1, self.num_rows // self.batch_size)

    def first(self, step: Array) -> Array:
        """The permutation of the epoch of `step`, for a loop that starts there to carry."""
        return self._permutation(step // self.per_epoch)

    def draw(self, step: Array, permutation: Array) -> tuple[Any, Array]:
        """(minibatch `step`, the permutation to carry on)."""
        if not self.num_rows:
            return self.data, permutation
        epoch, place = step // self.per_epoch, step % self.per_epoch
        permutation = jax.lax.cond(place == 0, lambda: self._permutation(epoch), lambda: permutation)
        rows = jax.lax.dynamic_slice_in_dim(permutation, place * self.batch_size, self.batch_size)
        return jax.tree.map(lambda a: a[rows], self.data), permutation

    def _permutation(self, epoch):
        # Random numbers in order: half the time of jax.random.permutation, which sorts twice against ties.
        return jnp.argsort(jax.random.bits(jax.random.fold_in(self.key, epoch), (self.num_rows,)), stable=False)


def checked_pair(name: str, data: Any, model: Model) -> tuple[Array, Array | None]:
    """(x, context) on the device, checked for shape and for values that are not finite."""
    if data is None:
        raise ValueError(f"{name} is empty")
    x, context = data if isinstance(data, tuple) else (data, None)
    if hasattr(x, "train"):
        raise TypeError(f"{name} must be arrays; pass the .train or .validation of a Dataset")
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    check_levels(name, x, model.num_levels)
    if x.ndim < 1 or x.shape[1:] != model.event_shape or x.shape[0] < 1:
        raise ValueError(f"{name} must have shape (n,) + {model.event_shape} with n >= 1, got {x.shape}")
    x = jnp.asarray(x)
    if context is not None:
        context = jnp.asarray(context)
    if (context is None) != (model.context_shape is None):
        wanted = f"a pair (x, context), context of shape (n,) + {model.context_shape}" if context is None else "x alone"
        raise ValueError(f"{name} must be {wanted} for this model")
    if context is not None and context.shape != (x.shape[0], *(model.context_shape or ())):
        wanted_shape = (x.shape[0], *(model.context_shape or ()))
        raise ValueError(f"the context of {name} must have shape {wanted_shape}, got {context.shape}")
    for part, array in ((name, x), (f"the context of {name}", context)):
        if array is not None and jnp.issubdtype(array.dtype, jnp.floating):
            finite = np.asarray(jnp.isfinite(array).reshape(array.shape[0], -1).all(1))
            bad = np.flatnonzero(~finite)
            if len(bad):
                raise ValueError(f"{part} has {len(bad)} rows with NaN or infinite values, the first is row {bad[0]}")
    return x, context


def fingerprint(arrays: Any) -> list[Any]:
    """Dtype, shape and checksum of every array of a pytree."""
    return [describe(np.asarray(a)) for a in jax.tree.leaves(arrays)]
