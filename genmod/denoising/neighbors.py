"""Neighbouring noise levels, at which a consistency model must agree, and how they close up in training.

The levels are those of the ratio r = sigma / alpha, from r_0 at the low to r_N at the high end of `schedule.times`,

    r_i = (r_0^(1/rho) + i / N (r_N^(1/rho) - r_0^(1/rho)))^rho

(Karras et al. 2022, arXiv:2206.00364, eq. 5). Training begins with `first` intervals and doubles their number until it is `last`
(Song & Dhariwal 2023, arXiv:2310.14189, sec. 3.4). The interval of a row is drawn with the probability that a log-normal r lies
in it (ibid., sec. 3.5).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_count, check_positive
from genmod.core.description import Description
from genmod.core.types import Array, Key
from genmod.denoising.levels import even_fractions
from genmod.denoising.schedules import Schedule


class Neighbors(NamedTuple):
    """Times s < t of neighbouring levels, and r(t) - r(s), each (n,)."""

    s: Array
    t: Array
    gap: Array


@dataclasses.dataclass(frozen=True)
class NeighboringLevels(Description):
    """The law of pairs of neighbouring levels.

    Attributes:
      first, last: the number of intervals N at step 0 and at the end; equal ones: no curriculum.
      num_steps: of the training over which N doubles, at equal intervals; None: `last` throughout.
      mean, std: log r ~ N(mean, std^2), within the schedule. rho: of the levels.

    Raises ValueError for counts that are no integers >= 1, first > last, a std or a rho that is not positive.
    """

    first: int = 10
    last: int = 1_280
    num_steps: int | None = None
    mean: float = -1.1
    std: float = 2.0
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        check_count(first=self.first, last=self.last)
        if self.num_steps is not None:
            check_count(num_steps=self.num_steps)
        check(self.first <= self.last, f"first must be at most last, got {self.first} and {self.last}")
        check(math.isfinite(self.mean), f"mean must be finite, got {self.mean}")
        check_positive(std=self.std, rho=self.rho)

    def num_intervals(self, step: Array | None = None) -> Array:
        """N at a step of the training, an integer; None: the final one."""
        if step is None or self.num_steps is None:
            return jnp.asarray(self.last)
        stages = math.floor(math.log2(self.last // self.first)) + 1
        stage = jnp.minimum(step // max(self.num_steps // stages, 1), stages)
        return jnp.minimum(self.first * 2**stage, self.last)

    def __call__(self, key: Key, num: int, schedule: Schedule, step: Array | None = None, dtype: Any = float) -> Neighbors:
        """Pairs for a batch.

        Args:
          key: of the draws. num: how many.
          schedule: whose `times` hold them. step: as in `num_intervals`.
          dtype: of the results.
        """
        low, high = ends = jnp.asarray(schedule.times, dtype)
        first, last = schedule.sigma(ends) / schedule.alpha(ends)
        roots = first ** (1.0 / self.rho), last ** (1.0 / self.rho)
        num_intervals = self.num_intervals(step)

        def level(index):
            return (roots[0] + index / num_intervals.astype(dtype) * (roots[1] - roots[0])) ** self.rho

        # The cell of a continuous draw has the probability of that cell.
        cumulative = jax.scipy.special.ndtr((jnp.log(jnp.stack([first, last])) - self.mean) / self.std)
        quantile = cumulative[0] + (cumulative[1] - cumulative[0]) * even_fractions(key, num, dtype)
        ratio = jnp.clip(jnp.exp(self.mean + self.std * jax.scipy.special.ndtri(quantile)), first, last)
        place = (ratio ** (1.0 / self.rho) - roots[0]) / (roots[1] - roots[0]) * num_intervals.astype(dtype)
        index = jnp.clip(jnp.floor(place).astype(int), 0, num_intervals - 1)
        below, above = level(index), level(index + 1)
        s = jnp.where(index == 0, low, schedule.time(-2.0 * jnp.log(below)).astype(dtype))
        t = jnp.where(index == num_intervals - 1, high, schedule.time(-2.0 * jnp.log(above)).astype(dtype))
        return Neighbors(s, t, above - below)

    def between(self, schedule: Schedule, t: Array, s: Array, num: int) -> list[Array]:
        """[t, ..., s], num + 1 times at equal steps of r^(1 / rho); t and s are scalars."""
        roots = [(schedule.sigma(end) / schedule.alpha(end)) ** (1.0 / self.rho) for end in (t, s)]
        levels = [(roots[0] + i / num * (roots[1] - roots[0])) ** self.rho for i in range(1, num)]
        return [t, *(schedule.time(-2.0 * jnp.log(level)).astype(t.dtype) for level in levels), s]
