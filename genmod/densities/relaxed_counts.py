"""Relaxed Poisson counts, by the times of events (Vafaii et al. 2024, arXiv:2405.14473, the Poisson VAE).

Events of rate r have independent exponential gaps, and t_i = (e_1 + ... + e_i) / r, e ~ Exp(1), are their times. The number of
events until time 1 is Poisson, and its relaxation counts each by a soft indicator:

    x = sum_i 1[t_i < 1]     y = sum_i sigmoid((1 - t_i) / temperature)

By Campbell's theorem, with T the temperature,

    E[y] = r T log(1 + exp(1 / T))     Var[y] = r (T log(1 + exp(1 / T)) - T sigmoid(1 / T))

which both tend to r. The gradient of E[y] in r tends to 1, that of E[x]: of a linear function it has no bias at low temperatures.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check_positive
from genmod.core.likelihood import Likelihood
from genmod.core.types import Shape
from genmod.densities.heads import PoissonHead
from genmod.densities.relaxed import Relaxed


@dataclasses.dataclass(frozen=True)
class RelaxedPoisson(Relaxed):
    """Real numbers in the place of counts; its density has no closed form, so that a VAE takes `StraightThrough` of it.

    Attributes:
      shape: of the counts. temperature: of the indicators.
      max_rate: no rate is above it, as in `PoissonHead`. A draw costs `num_events` times the number of counts.
    """

    shape: Shape
    temperature: float = 0.1
    max_rate: float = 20.0
    likelihood = Likelihood.NONE

    def __post_init__(self):
        check_positive(max_rate=self.max_rate)
        super().__post_init__()

    @property
    def head(self):
        return PoissonHead(self.max_rate)

    @property
    def num_events(self) -> int:
        """How many events are drawn: more until time 1 + 10 temperatures have a probability below 1e-6 at the largest rate."""
        return poisson_quantile(self.max_rate * (1.0 + 10.0 * self.temperature), 1e-6)

    def draws(self, raw, key):
        rate = jnp.exp(self.head.log_rate(raw))
        gaps = jax.random.exponential(key, (self.num_events, *rate.shape), rate.dtype)
        left = 1.0 - jnp.cumsum(gaps, 0) / rate[None]
        return jax.nn.sigmoid(left / self.temperature).sum(0), (left > 0).sum(0)

    def log_mass(self, raw, x):
        log_rate = self.head.log_rate(raw)
        count = jnp.where(x >= 0, x, 0.0)
        value = count * log_rate - jnp.exp(log_rate) - jax.lax.lgamma(count + 1.0)
        return jnp.where((x >= 0) & (x == jnp.floor(x)), value, -jnp.inf)


def poisson_quantile(rate: float, tail: float) -> int:
    """The smallest n with P(N > n) <= tail, N ~ Poisson(rate)."""
    log_rate, n = math.log(rate), math.ceil(rate)
    # Beyond the mean P(N > n) is below p(n + 1) / (1 - rate / (n + 2)), the geometric series of the ratio of its terms.
    while math.exp((n + 1) * log_rate - rate - math.lgamma(n + 2)) > tail * (1.0 - rate / (n + 2)):
        n += 1
    return n
