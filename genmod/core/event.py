"""Events: what one datum is. An event knows which arrays it accepts, and how many units it has.

Real(shape)                          real numbers
Atoms(shape)                         real numbers of a discrete law, such as one-hot vectors: a log_prob is that of a mass
Levels(shape, num_levels)            integers 0 .. num_levels - 1; bools are two levels
Counts(shape)                        integers 0, 1, 2, ...
Tokens(max_length, vocabulary, end)  a sequence of integers below `vocabulary`, of any length up to max_length: after the
                                     first `end` nothing but `end` follows
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.core.arrays import to_array
from genmod.core.checks import check_count, check_shape
from genmod.core.description import Description
from genmod.core.types import Array, Shape


class Event(Description, abc.ABC):
    """One datum, an array of shape `shape`; batches carry any axes in front of it."""

    shape: Shape

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("event_shape", self.shape))
        super().__post_init__()

    def check(self, name: str, x: Any, *, batched: bool = False) -> Any:
        """x as an array of events behind any axes, one axis of at least one row if `batched`.

        NumPy and JAX arrays are returned as they are. Raises TypeError for the wrong kind of number, ValueError for a wrong
        shape and for values that are known to lie outside.
        """
        x = to_array(name, x)
        self._check_values(name, x)
        split = x.ndim - len(self.shape)
        if split < 0 or tuple(x.shape[split:]) != self.shape or (batched and split != 1):
            raise ValueError(f"{name} must have shape {'(n,)' if batched else '(...,)'} + {self.shape}, got {tuple(x.shape)}")
        if batched and x.shape[0] == 0:
            raise ValueError(f"{name} must hold at least one event, got shape {tuple(x.shape)}")
        return x

    def example(self, num: int = 1) -> Array:
        """`num` events that are valid, for tracing."""
        return jnp.zeros((num, *self.shape), self.dtype)

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The dtype of samples."""

    def num_units(self, x: Array) -> Array:
        """How many dimensions, or tokens, each event of x has: an array of the batch shape."""
        return jnp.full(x.shape[: x.ndim - len(self.shape)], math.prod(self.shape))

    @abc.abstractmethod
    def _check_values(self, name: str, x: Any) -> None: ...


class _Floating(Event, abc.ABC):
    """Floating arrays; `remedy` says how others become such."""

    remedy: ClassVar[str]

    @property
    def dtype(self):
        return jnp.result_type(float)

    def _check_values(self, name, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point, got {x.dtype}; {self.remedy}")


@dataclasses.dataclass(frozen=True)
class Real(_Floating):
    """Real numbers, an array of shape `shape`."""

    shape: Shape
    remedy = "cast it, or dequantise data that are discrete (gm.models.Dequantized for images)"


@dataclasses.dataclass(frozen=True)
class Atoms(_Floating):
    """Real numbers of which a law gives masses and no density, such as one-hot vectors, or counts that carry a gradient."""

    shape: Shape
    remedy = "cast it (jax.nn.one_hot for levels)"


@dataclasses.dataclass(frozen=True)
class Levels(Event):
    """Integers 0 .. num_levels - 1, an array of shape `shape`; of two levels also bools."""

    shape: Shape
    num_levels: int

    def __post_init__(self):
        super().__post_init__()
        check_count(num_levels=self.num_levels)

    @property
    def dtype(self):
        return jnp.dtype(jnp.uint8 if self.num_levels <= 256 else jnp.int32)

    def _check_values(self, name, x):
        if x.dtype != bool or self.num_levels != 2:
            _check_integers(name, x, self.num_levels, "pass them as they are, neither scaled nor dequantised")


@dataclasses.dataclass(frozen=True)
class Counts(Event):
    """Integers from 0 on, an array of shape `shape`."""

    shape: Shape

    @property
    def dtype(self):
        return jnp.dtype(jnp.int32)

    def _check_values(self, name, x):
        _check_integers(name, x, None, "counts have no fractions")


@dataclasses.dataclass(frozen=True)
class Tokens(Event):
    """A sequence of tokens 0 .. vocabulary - 1 in an array (max_length,): after the first `end` only `end` may follow.

    The sequence ends with, and counts, its first `end`; one that never does fills the array.
    """

    max_length: int
    vocabulary: int
    end: int = 0

    def __post_init__(self):
        check_count(max_length=self.max_length, vocabulary=self.vocabulary)
        Description.__post_init__(self)
        if not 0 <= self.end < self.vocabulary:
            raise ValueError(f"end must be in 0..{self.vocabulary - 1}, got {self.end}")

    @property
    def shape(self):
        return (self.max_length,)

    @property
    def dtype(self):
        return jnp.dtype(jnp.int32)

    def mask(self, x: Array) -> Array:
        """True for the tokens of the sequence, its first `end` included: an array of the shape of x."""
        over = jnp.cumsum(x == self.end, -1)
        return over - (x == self.end) == 0

    def num_units(self, x):
        return self.mask(x).sum(-1)

    def _check_values(self, name, x):
        _check_integers(name, x, self.vocabulary, "give each token a number below the vocabulary")
        if isinstance(x, Tracer) or not x.size or x.ndim < 1:
            return
        with jax.ensure_compile_time_eval():
            known = np.asarray(x)
        after = np.cumsum(known == self.end, -1) > 0
        if (known[after] != self.end).any():
            raise ValueError(f"{name} must hold nothing but the token {self.end} after its first {self.end}: pad with it")


def _check_integers(name: str, x: Any, num_levels: int | None, remedy: str) -> None:
    wanted = "integers from 0" if num_levels is None else f"integers in 0..{num_levels - 1}"
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be {wanted}, got {x.dtype}; {remedy}")
    limits = jnp.iinfo(x.dtype)
    inside = limits.min >= 0 and (num_levels is None or limits.max < num_levels)
    if isinstance(x, Tracer) or not x.size or inside:
        return
    with jax.ensure_compile_time_eval():  # these values are known, even inside a trace
        low, high = int(x.min()), int(x.max())
    if low < 0 or (num_levels is not None and high >= num_levels):
        raise ValueError(f"{name} must be {wanted}, got values from {low} to {high}")
