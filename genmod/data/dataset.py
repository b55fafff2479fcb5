"""A data set: three arrays and, where it is known, the density they came from.

The splits are independent: for synthetic data each is drawn with its own key,
`fold_in(key, 0 | 1 | 2)`; for a table they are disjoint rows of one shuffle; those of
published images follow the publication.
"""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from genmod.data.base import Toy
from genmod.keys import check_key


class Labels(NamedTuple):
    """The class of every row of the three arrays of a Dataset: integers, (n,) each."""

    train: Array
    validation: Array
    test: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test arrays, each (n, *event_shape), of one distribution.

    Real values are float32, or float64 where JAX's x64 is on.  Discrete values are uint8
    levels 0..num_levels - 1; num_levels is None for real ones.  `density` is the exact
    distribution of synthetic data, else None; `labels` are the classes of the rows, else None.
    """

    name: str
    train: Array
    validation: Array
    test: Array
    density: Toy | None = None
    labels: Labels | None = None
    num_levels: int | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.train.shape[1:]

    @property
    def log_prob(self) -> Callable[[Array], Array] | None:
        """The exact log-density x -> log p(x) in nats, any batch axes; None if unknown."""
        return None if self.density is None else self.density.log_prob

    @property
    def entropy(self) -> float | None:
        """The exact entropy in nats, the least expected NLL; None if unknown.

        Computed at the first access and remembered for every equal density.
        """
        return None if self.density is None else self.density.entropy()

    def sample(self, key: Array, n: int) -> Array:
        """Fresh draws from the exact density, (n, *event_shape).

        Raises:
            ValueError: the density is unknown, or n is below 1.
        """
        if self.density is None:
            raise ValueError(
                f"the density of {self.name!r} is unknown, so it has no fresh samples: take rows of .train, .validation or .test."
            )
        return self.density.sample(check_key(key), (_check_count(n),))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{s}={getattr(self, s).shape}" for s in ("train", "validation", "test"))
        levels = "" if self.num_levels is None else f", num_levels={self.num_levels}"
        return f"Dataset({self.name!r}, {shapes}, density={self.density!r}{levels})"


def from_density(name: str, density: Toy, key: Array, n: int) -> Dataset:
    """Draws a Dataset: n points to train on, max(1, n // 4) each to validate and test.

    Raises:
        TypeError: key is not a typed key, or n is not an integer.
        ValueError: n is below 1.
    """
    check_key(key)
    n = _check_count(n)
    sizes = (n, max(1, n // 4), max(1, n // 4))
    draws = (density.sample(jax.random.fold_in(key, i), (size,)) for i, size in enumerate(sizes))
    return Dataset(name, *draws, density=density)


def split(x: Any, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0) -> tuple[Any, Any, Any]:
    """Shuffles the rows of x, (n, ...), with `seed` and cuts them into three.

    Train takes the rows that rounding leaves over; every part has at least one row.
    The parts are a pure function of (x, fractions, seed).

    Raises:
        ValueError: fractions are not three positive numbers that add up to 1, or x
            has fewer than three rows.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(
            f"fractions must be three positive numbers that add up to 1, but they are {fractions}: "
            "pass for example (0.8, 0.1, 0.1)."
        )
    n = len(x)
    if n < 3:
        raise ValueError(f"x has {n} rows, and three parts need at least 3: pass more rows.")
    num_validation, num_test = (max(1, int(n * f + 1e-9)) for f in fractions[1:])
    order = np.random.default_rng(seed).permutation(n)
    num_train = n - num_validation - num_test
    return x[order[:num_train]], x[order[num_train : n - num_test]], x[order[n - num_test :]]


def _check_count(n: Any) -> int:
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an integer, but it is {n!r}: pass for example 20_000.") from None
    if n < 1:
        raise ValueError(f"n must be at least 1, but it is {n}: pass for example 20_000.")
    return n
