"""Which noise levels a denoising loss attends to: how times are drawn, and what weight the error has there.

A weighting is that of the squared error of eps, (schedule, t) -> w(t), whatever the network predicts. With x_t fixed the errors
are tied: |score error|^2 = |eps error|^2 / sigma^2, |x0 error|^2 = (sigma / alpha)^2 |eps error|^2.
"""

import abc
import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.core.checks import check_positive
from genmod.core.description import Description
from genmod.core.types import Array, Key
from genmod.denoising.schedules import Kind, Schedule, noise_error, prediction_size


class Weighting(Description, abc.ABC):
    """w(t), elementwise in t."""

    @abc.abstractmethod
    def __call__(self, schedule: Schedule, t: Array) -> Array:
        """The weights at times t, of the shape of t."""


@dataclasses.dataclass(frozen=True)
class SimpleWeighting(Weighting):
    """1: DDPM's simple loss (Ho et al. 2020, arXiv:2006.11239, eq. 14), and sigma^2 on the score's error, NCSN's weighting
    (Song & Ermon 2019, arXiv:1907.05600, sec. 4.2)."""

    def __call__(self, schedule, t):
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    """-lambda' / 2 = g^2 / (2 sigma^2): the loss is then the variational bound, up to its ends (Kingma et al. 2021,
    arXiv:2107.00630, eq. 17; Song et al. 2021, arXiv:2101.09258, theorem 1). In discrete time, with s < t neighbours of the
    chain, it is (SNR(s) / SNR(t) - 1) / 2, DDPM's beta^2 / (2 sigma^2 alpha (1 - alpha-bar))."""

    def __call__(self, schedule, t):
        return -0.5 * schedule.log_snr_rate(t)


@dataclasses.dataclass(frozen=True)
class DataWeighting(Weighting):
    """(sigma / alpha)^2: the squared error of x0."""

    def __call__(self, schedule, t):
        return (schedule.sigma(t) / schedule.alpha(t)) ** 2


@dataclasses.dataclass(frozen=True)
class VWeighting(Weighting):
    """((alpha^2 + sigma^2) / alpha)^2: the squared error of v (Salimans & Ho 2022, arXiv:2202.00512, eq. 11)."""

    def __call__(self, schedule, t):
        alpha = schedule.alpha(t)
        return (alpha + schedule.sigma(t) ** 2 / alpha) ** 2


@dataclasses.dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) on the squared error of x0 (Hang et al. 2023, arXiv:2303.09556, eq. 8)."""

    gamma: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(gamma=self.gamma)

    def __call__(self, schedule, t):
        return jnp.minimum(1.0, self.gamma * (schedule.sigma(t) / schedule.alpha(t)) ** 2)


@dataclasses.dataclass(frozen=True)
class EDMWeighting(Weighting):
    """1 + (sigma / (alpha d))^2: the squared error of EDM's network (Karras et al. 2022, arXiv:2206.00364, table 1)."""

    data_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(data_scale=self.data_scale)

    def __call__(self, schedule, t):
        return 1.0 + (schedule.sigma(t) / (schedule.alpha(t) * self.data_scale)) ** 2


class TimeSampler(Description, abc.ABC):
    """How the times of a batch are drawn: those of `UniformTimes` and `UniformLogSNRTimes` stand for uniform times."""

    @abc.abstractmethod
    def __call__(self, key: Key, num: int, schedule: Schedule, dtype: Any = float) -> tuple[Array, Array]:
        """Times of a batch, with their weights.

        Args:
          key: of the draws. num: how many.
          schedule: whose `times` are drawn from.
          dtype: of both results.

        Returns (t, weight), both (num,): the mean of weight times error is that over the law of times that the sampler stands
        for.
        """


@dataclasses.dataclass(frozen=True)
class UniformTimes(TimeSampler):
    """Uniform in `schedule.times`, by `even_fractions` unless `independent`."""

    independent: bool = False

    def __call__(self, key, num, schedule, dtype: Any = float):
        low, high = schedule.times
        return low + (high - low) * _fractions(key, num, dtype, self.independent), jnp.ones(num, dtype)


@dataclasses.dataclass(frozen=True)
class UniformLogSNRTimes(TimeSampler):
    """Uniform in log-SNR, weighted back: with `LikelihoodWeighting` the weights are then equal (Song et al. 2021,
    arXiv:2101.09258, sec. 5.1: importance sampling)."""

    independent: bool = False

    def __call__(self, key, num, schedule, dtype: Any = float):
        ends = jnp.asarray(schedule.times, dtype)
        data, noise = schedule.log_snr(ends)
        t = schedule.time(noise + (data - noise) * _fractions(key, num, dtype, self.independent)).astype(dtype)
        return t, (data - noise) / (-schedule.log_snr_rate(t) * (ends[1] - ends[0]))


@dataclasses.dataclass(frozen=True)
class LogNormalTimes(TimeSampler):
    """log(sigma / alpha) ~ N(mean, std^2), clipped to the schedule, weight 1: part of EDM's loss (arXiv:2206.00364, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        super().__post_init__()
        check_positive(std=self.std)

    def __call__(self, key, num, schedule, dtype: Any = float):
        log_ratio = self.mean + self.std * jax.random.normal(key, (num,), dtype)
        return schedule.time(-2.0 * log_ratio).astype(dtype), jnp.ones(num, dtype)


def _fractions(key, num, dtype, independent):
    if independent:
        return jax.random.uniform(key, (num,), dtype)
    return even_fractions(key, num, dtype)


def warn_of_few_levels(weighting: Weighting, times: TimeSampler, schedule: Schedule, kind: Kind, data_scale: float) -> None:
    """Warns where few noise levels carry the loss, so that gradients are large and the rest is learned late or never.

    The level t carries c(t) = w(t) |d eps / d prediction|^2 E|prediction|^2. Where the effective share (E c)^2 / E c^2 of the
    times is below a fifth the gap on two moons is 0.8 to 2.9 nats; above it, but for x0 with `MinSNR`, at most 0.65
    (`experiments.prediction_table`). Only of `UniformTimes`: other samplers are there to attend to such levels.
    """
    t = np.linspace(*schedule.times, 514)[1:-1]
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(t, float)
        carried = weighting(schedule, t) * noise_error(schedule, t, kind, data_scale=data_scale) ** 2
        carried = carried * prediction_size(schedule, t, kind, data_scale=data_scale) ** 2
    balanced = kind in ("edm", "v") and type(weighting) is SimpleWeighting
    if isinstance(carried, Tracer) or type(times) is not UniformTimes or balanced:
        return
    carried = np.asarray(carried, np.float64)
    share = float(carried.mean() ** 2 / (carried**2).mean())
    if share < 0.2:
        warnings.warn(
            f"{share:.1%} of the noise levels carry the loss of kind={kind!r} with {weighting} on {type(schedule).__name__}: it "
            "trains badly. Take kind='edm' or 'v' with SimpleWeighting(), or times=UniformLogSNRTimes()",
            stacklevel=3,
        )


def even_fractions(key: Key, num: int, dtype: Any = float) -> Array:
    """A uniform shift of an even grid on the circle [0, 1): (num,), each uniform, their mean of a function less noisy than
    that of independent draws (Kingma et al. 2021, arXiv:2107.00630, app. I.1)."""
    return (jax.random.uniform(key, (), dtype) + jnp.arange(num, dtype=dtype) / num) % 1.0
