"""A data set: three arrays and, where it is known, the density they came from.

The splits are independent: for synthetic data each is drawn with its own key, `fold_in(key, 0 | 1 | 2)`; for a table they are
disjoint rows of one shuffle; those of published images follow the publication.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.batching import vmap_blocks
from genmod.core.checks import check_count
from genmod.core.event import Event, Levels, Real
from genmod.core.keys import check_key
from genmod.core.types import Array, Key, Shape
from genmod.data.base import Toy


class Labels(NamedTuple):
    """The class of every row of the three arrays of a Dataset: integers, (n,) each."""

    train: Array
    validation: Array
    test: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test arrays, each (n,) + event_shape, of one distribution.

    Attributes:
      train, validation, test: real values are float32, or float64 where JAX's x64 is on; discrete ones are levels
        0 .. num_levels - 1 in uint8.
      density: the exact distribution of synthetic data, else None.
      labels: the classes of the rows, else None. num_levels: None for real values.
    """

    name: str
    train: Array
    validation: Array
    test: Array
    density: Toy | None = None
    labels: Labels | None = None
    num_levels: int | None = None

    @property
    def event(self) -> Event:
        """What one row is: `Real`, or `Levels` where there are `num_levels`."""
        return Real(self.event_shape) if self.num_levels is None else Levels(self.event_shape, self.num_levels)

    @property
    def event_shape(self) -> Shape:
        """The shape of one event."""
        return self.train.shape[1:]

    @property
    def log_prob(self) -> Callable[[ArrayLike], Array] | None:
        """The exact log-density, a function x -> log p(x) in nats of any leading axes; None if it is unknown."""
        return None if self.density is None else self.density.exact_log_prob

    @property
    def entropy(self) -> float | None:
        """The exact entropy in nats, the least expected NLL; None if it is unknown.

        It is computed at the first access, and remembered for every equal density.
        """
        return None if self.density is None else self.density.entropy()

    def sample(self, key: Key, n: int) -> Array:
        """Fresh draws from the exact density, (n,) + event_shape.

        Raises:
            ValueError: the density is unknown, or n is no integer >= 1.
        """
        if self.density is None:
            raise ValueError(
                f"the density of {self.name!r} is unknown, so it has no fresh samples; take rows of .train, .validation or .test"
            )
        check_count(n=n)
        return self.density.sample({}, key, n)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{s}={getattr(self, s).shape}" for s in ("train", "validation", "test"))
        levels = "" if self.num_levels is None else f", num_levels={self.num_levels}"
        return f"Dataset({self.name!r}, {shapes}, density={self.density!r}{levels})"


def from_density(name: str, density: Toy, key: Key, n: int) -> Dataset:
    """Draws a Dataset: n points to train on, max(1, n // 4) each to validate and test.

    Raises:
        TypeError: key is not a typed key.
        ValueError: n is no integer >= 1.
    """
    check_count(n=n)
    return Dataset(name, *_draw(density, (n, max(1, n // 4), max(1, n // 4)), check_key(key)), density=density)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(density: Toy, sizes: tuple[int, ...], key: Key) -> list[Array]:
    """`density.sample({}, fold_in(key, i), sizes[i])` for every i, as ONE program: a newcomer waits for its compilation."""
    ends = np.cumsum(sizes)
    index = jnp.arange(ends[-1])
    part = sum((index >= end).astype(int) for end in ends[:-1])
    row = index - jnp.asarray([0, *ends[:-1]])[part]
    keys = jax.vmap(lambda part, row: jax.random.fold_in(jax.random.fold_in(key, part), row))(part, row)
    return jnp.split(vmap_blocks(lambda key: density.sample_one({}, key), keys), ends[:-1])


def split(x: Any, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0) -> tuple[Any, Any, Any]:
    """Shuffles the rows of x, (n, ...), with `seed` and cuts them into three.

    Train takes the rows that rounding leaves over; every part has at least one row.
    The parts are a pure function of (x, fractions, seed).

    Raises:
        ValueError: fractions are not three positive numbers that add up to 1, or x has fewer than three rows.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ValueError(f"fractions must be three positive numbers that add up to 1, got {fractions}")
    n = len(x)
    if n < 3:
        raise ValueError(f"x must have at least 3 rows, one for each part, got {n}")
    num_validation, num_test = (max(1, int(n * f + 1e-9)) for f in fractions[1:])
    order = np.random.default_rng(seed).permutation(n)
    num_train = n - num_validation - num_test
    return x[order[:num_train]], x[order[num_train : n - num_test]], x[order[n - num_test :]]
