"""Time grids for samplers of diffusions: t_0 > t_1 > ... > t_n, from noise to data.

Below some thirty steps the grid matters more than the order of the method. All run from the high to the low end of
`schedule.times`, in `num_steps` steps.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count, check_positive
from genmod.core.description import Description
from genmod.core.types import Array
from genmod.denoising.schedules import Schedule, check_schedule


class Grid(Description, abc.ABC):
    """Where a sampler evaluates its denoiser."""

    num_steps: int

    def __post_init__(self):
        super().__post_init__()
        check_count(num_steps=self.num_steps)

    def times(self, schedule: Schedule) -> np.ndarray:
        """(num_steps + 1,) times, falling; constants even inside `jit`. Raises ValueError where the schedule has none, and for a
        schedule whose signal-to-noise ratio rises."""
        check_schedule(schedule)
        with jax.ensure_compile_time_eval():
            times = np.asarray(self._times(schedule, jnp.linspace(0.0, 1.0, self.num_steps + 1)))
        if not (np.diff(times) < 0).all():
            raise ValueError(
                f"{self} has no {self.num_steps} falling times on {schedule}: are its alpha and sigma positive at both ends of "
                f"times={schedule.times}?"
            )
        return times

    @abc.abstractmethod
    def _times(self, schedule: Schedule, fraction: Array) -> Array:
        """The times at these fractions, 0 to 1, of the way from noise to data."""


@dataclasses.dataclass(frozen=True)
class UniformGrid(Grid):
    """Equal steps in t."""

    num_steps: int

    def _times(self, schedule, fraction):
        low, high = schedule.times
        return high * (1.0 - fraction) + low * fraction


@dataclasses.dataclass(frozen=True)
class QuadraticGrid(Grid):
    """Equal steps in sqrt(t): small ones near the data (Song et al. 2020, arXiv:2010.02502, app. D.2)."""

    num_steps: int

    def _times(self, schedule, fraction):
        low, high = (end**0.5 for end in schedule.times)
        return (high * (1.0 - fraction) + low * fraction) ** 2


@dataclasses.dataclass(frozen=True)
class LogSNRGrid(Grid):
    """Equal steps in log(alpha / sigma) (Lu et al. 2022, arXiv:2206.00927, sec. 3.3).

    `margin` keeps off ends at which the ratio is infinite: a fraction of the range of t.
    """

    num_steps: int
    margin: float = 1e-4

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.margin < 0.5:
            raise ValueError(f"margin must be in (0, 0.5), got {self.margin}")

    def _times(self, schedule, fraction):
        low, high = schedule.times
        inner = jnp.array([low, high])
        ends = schedule.log_snr(inner)
        inside = schedule.log_snr(jnp.array([low + self.margin * (high - low), high - self.margin * (high - low)]))
        data, noise = jnp.where(jnp.isfinite(ends), ends, inside)
        return schedule.time(noise + (data - noise) * fraction).at[0].set(high).at[-1].set(low)


@dataclasses.dataclass(frozen=True)
class EDMGrid(Grid):
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

    num_steps: int
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(rho=self.rho)

    def _times(self, schedule, fraction):
        low, high = schedule.times
        ends = jnp.array([low, high])
        data, noise = (schedule.sigma(ends) / schedule.alpha(ends)) ** (1.0 / self.rho)
        ratio = (noise + (data - noise) * fraction) ** self.rho
        return schedule.time(-2.0 * jnp.log(ratio)).at[0].set(high).at[-1].set(low)


@dataclasses.dataclass(frozen=True)
class CustomGrid(Grid):
    """Times of your own, from noise to data. Raises ValueError unless they fall, within [0, 1]."""

    values: tuple[float, ...]

    def __post_init__(self):
        values = np.asarray(self.values, float)
        if values.ndim != 1 or values.size < 2:
            raise ValueError(f"values must hold at least two times, got {self.values}")
        if not (np.diff(values) < 0).all():
            raise ValueError(f"values must fall from noise to data, got {self.values}")
        if not (values[-1] >= 0 and values[0] <= 1):
            raise ValueError(f"values must lie in [0, 1], got {self.values}")
        super().__post_init__()

    @property
    def num_steps(self):
        return len(self.values) - 1

    def _times(self, schedule, fraction):
        return jnp.asarray(self.values)
