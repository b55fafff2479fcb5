"""Simulators p(x | theta) whose posterior is known: what simulation-based inference is measured by.

    simulator = TwoMoonsSimulator()
    theta = simulator.prior.sample({}, keys[0], 10_000)
    x = simulator.sample({}, keys[1], (), theta)                   # the context of a simulator is theta
    simulator.posterior.sample({}, keys[2], 1_000, x[0])           # exact draws of p(theta | x)

A simulator of one's own needs no class: rows theta and x are enough to train with.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy import stats

from genmod.core.checks import check, check_count, check_positive
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Event, Levels, Real
from genmod.core.info import lost_roots
from genmod.core.types import Array, Key, Shape
from genmod.densities.birth_death import HIGHEST_RATE, length_after, transition_matrix, usable_rates
from genmod.densities.standard import Normal, Uniform

# Draws that a posterior rejects before it gives NaN: its x lies nowhere near what the prior can make.
_MAX_ATTEMPTS = 10_000
# Cells of the grid of a queue's posterior along each rate.
_CELLS = 128


class Simulator(Distribution):
    """p(x | theta) with a prior of theta and exact draws of p(theta | x).

    Attributes:
      prior: p(theta), without parameters. posterior: p(theta | x), without parameters; its context is x.
      posterior_likelihood: what the `log_prob` of the posterior is.
    """

    prior: Distribution  # a property: a subclass says it
    posterior_likelihood: Likelihood = Likelihood.UNNORMALIZED

    @property
    def posterior(self) -> "ExactPosterior":
        """p(theta | x), with exact draws."""
        return ExactPosterior(self)

    @abc.abstractmethod
    def sample_posterior_one(self, key: Key, x: Array) -> Array:
        """ONE draw of p(theta | x)."""

    def log_posterior_one(self, theta: Array, x: Array) -> Array:
        """log p(theta | x) of ONE theta, of the kind that `posterior_likelihood` says.

        An optional hook: log p(theta) + log p(x | theta).
        """
        # Where the prior is zero the likelihood may be anything.
        log_prior = self.prior.log_prob_one({}, theta)
        return jnp.where(log_prior > -jnp.inf, log_prior + self.log_prob_one({}, x, theta), -jnp.inf)

    def _init(self, key, x, context):
        return {}


@dataclasses.dataclass(frozen=True)
class ExactPosterior(Distribution):
    """p(theta | x) of a `Simulator`, whose context is x, as real numbers (integer contexts are class labels)."""

    simulator: Simulator
    reparameterized = False

    @property
    def event(self):
        return self.simulator.prior.event

    @property
    def context_shape(self):
        return self.simulator.event_shape

    @property
    def likelihood(self):
        return self.simulator.posterior_likelihood

    @property
    def support(self):
        return self.simulator.prior.support

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        return self.simulator.log_posterior_one(x, context)  # type: ignore[arg-type]

    def sample_one(self, params, key, context=None):
        return self.simulator.sample_posterior_one(key, context)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class LinearGaussianSimulator(Simulator):
    """x = theta + noise, theta ~ N(0, prior_variance I), noise ~ N(0, noise_variance I), both (dim,) (Lueckmann et al. 2021,
    arXiv:2101.04653, T.1). The posterior is Gaussian, its mean x prior_variance / (prior_variance + noise_variance)."""

    dim: int = 10
    prior_variance: float = 0.1
    noise_variance: float = 0.1
    posterior_likelihood = Likelihood.EXACT

    def __post_init__(self):
        super().__post_init__()
        check_count(dim=self.dim)
        check_positive(prior_variance=self.prior_variance, noise_variance=self.noise_variance)

    @property
    def event(self) -> Event:
        return Real((self.dim,))

    @property
    def context_shape(self) -> Shape:
        return (self.dim,)

    @property
    def prior(self):
        return Normal((self.dim,), math.sqrt(self.prior_variance))

    def log_prob_one(self, params, x, context=None, key=None):
        return stats.norm.logpdf(x, context, math.sqrt(self.noise_variance)).sum()  # type: ignore[arg-type]

    def sample_one(self, params, key, context=None):
        return jnp.add(context, math.sqrt(self.noise_variance) * jax.random.normal(key, self.event_shape))  # type: ignore

    def log_posterior_one(self, theta, x):
        return stats.norm.logpdf(theta - self._shrinkage * x, 0.0, self._posterior_sd).sum()

    def sample_posterior_one(self, key, x):
        return self._shrinkage * x + self._posterior_sd * jax.random.normal(key, self.event_shape)

    @property
    def _shrinkage(self):
        return self.prior_variance / (self.prior_variance + self.noise_variance)

    @property
    def _posterior_sd(self):
        return math.sqrt(self._shrinkage * self.noise_variance)


@dataclasses.dataclass(frozen=True)
class TwoMoonsSimulator(Simulator):
    """A crescent about a point that theta and its mirror image share: the posterior is two crescents (Lueckmann et al. 2021,
    T.8).

        theta ~ U(-1, 1)^2,  x = r (cos a, sin a) + (1/4, 0) + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt(2),
        a ~ U(-pi/2, pi/2),  r ~ N(0.1, 0.01^2)

    p(x | theta) = N(r; 0.1, 0.01^2) / (pi r) on the half-plane where cos a > 0. A draw of the posterior is NaN where x is one
    that no theta makes.
    """

    event = Real((2,))
    context_shape = (2,)
    prior = Uniform((2,), -1.0, 1.0)

    def log_prob_one(self, params, x, context=None, key=None):
        u = x - self._center(context)
        radius = jnp.hypot(u[0], u[1])
        log_p = stats.norm.logpdf(radius, 0.1, 0.01) - jnp.log(jnp.pi * jnp.maximum(radius, 1e-6))
        return jnp.where(u[0] > 0, log_p, -jnp.inf)

    def sample_one(self, params, key, context=None):
        return self._crescent(key) + self._center(context)

    def sample_posterior_one(self, key, x):
        # theta -> its centre has |det| = 1 and two branches, so theta follows the crescent, reflected or not, cut to the box.
        def attempt(carry):
            num, key, _, _ = carry
            key, own, sign_key = jax.random.split(key, 3)
            center = x - jnp.array([0.25, 0.0]) - self._crescent(own)
            total = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0) * -center[0]
            theta = jnp.stack([total - center[1], total + center[1]]) / math.sqrt(2)
            return num + 1, key, theta, (center[0] <= 0) & (jnp.abs(theta) <= 1).all()

        def rejected(carry):
            return ~carry[3] & (carry[0] < _MAX_ATTEMPTS)

        first = jnp.zeros((), int), key, jnp.zeros(2), jnp.zeros((), bool)
        _, _, theta, accepted = jax.lax.while_loop(rejected, attempt, first)
        return jnp.where(accepted, theta, jnp.nan)

    def _crescent(self, key):
        angle_key, radius_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, (), minval=-jnp.pi / 2, maxval=jnp.pi / 2)
        radius = 0.1 + 0.01 * jax.random.normal(radius_key)
        return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def _center(self, theta):
        return jnp.stack([0.25 - jnp.abs(theta[0] + theta[1]) / math.sqrt(2), (theta[1] - theta[0]) / math.sqrt(2)])


@dataclasses.dataclass(frozen=True)
class QueueSimulator(Simulator):
    """The length of an M/M/1 queue of finite capacity, empty at first, at times 1, 2, ..., num_times.

    Customers arrive at the rate theta_1 (turned away where the queue is full) and are served at theta_2, both U(low, high).
    Draws are events in continuous time (Gillespie 1977, 10.1021/j100540a008). By the Markov property p(x | theta) = prod_i
    P[x_{i-1}, x_i], P = exp(Q) with the generator Q of the birth-death process. The posterior is summed, and drawn from, on a
    grid of 128 x 128 cells. Outside of rates in 0 .. 8 `log_prob` is NaN, and a draw has failed.
    """

    num_times: int = 50
    capacity: int = 10
    low: float = 0.1
    high: float = 2.0
    posterior_likelihood = Likelihood.EXACT

    def __post_init__(self):
        super().__post_init__()
        check_count(num_times=self.num_times, capacity=self.capacity)
        check_positive(low=self.low, high=self.high)
        check(self.high <= HIGHEST_RATE, f"high must be at most {HIGHEST_RATE:.0f} events in a unit of time, got {self.high}")
        check(self.low < self.high, f"low must be below high, got low={self.low}, high={self.high}")

    @property
    def event(self) -> Event:
        return Levels((self.num_times,), self.capacity + 1)

    context_shape = (2,)

    @property
    def prior(self):
        return Uniform((2,), self.low, self.high)

    def log_prob_one(self, params, x, context=None, key=None):
        log_table = self._log_transitions(context)
        return (self._moves(x, log_table.dtype) * log_table).sum()

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key, self.num_times)

        def passed(length, key):
            length = length_after(key, context, length, self.capacity)  # type: ignore[arg-type]
            return length, length

        return jax.lax.scan(passed, jnp.zeros((), int), keys)[1].astype(self.event.dtype)

    def sample_info_one(self, params, key, context=None):
        return self.sample_one(params, key, context), lost_roots(usable_rates(context))  # type: ignore

    def log_posterior_one(self, theta, x):
        log_evidence = jax.nn.logsumexp(self._log_masses(x)[1]) - 2 * math.log(_CELLS)  # the mean over the cells
        return super().log_posterior_one(theta, x) - log_evidence

    def sample_posterior_one(self, key, x):
        keys = jax.random.split(key, 3)
        centers, log_mass = self._log_masses(x)
        log_mass = log_mass.reshape(_CELLS, _CELLS)
        row = jax.random.categorical(keys[0], jax.nn.logsumexp(log_mass, 1))
        cell = row * _CELLS + jax.random.categorical(keys[1], log_mass[row])
        within = jax.random.uniform(keys[2], (2,), minval=-0.5, maxval=0.5) * (self.high - self.low) / _CELLS
        return jnp.clip(centers[cell] + within, self.low, self.high)

    def transitions(self, theta: Array) -> Array:
        """P[m, n], the probability that n customers wait a unit of time after m did, (capacity + 1, capacity + 1)."""
        return transition_matrix(theta, self.capacity)

    def _moves(self, x, dtype):
        """How often the queue went from m to n, (capacity + 1, capacity + 1)."""
        after = x.astype(int)
        before = jnp.concatenate([jnp.zeros(1, after.dtype), after[:-1]])
        return jnp.zeros(2 * (self.capacity + 1,), dtype).at[before, after].add(1.0)

    def _log_transitions(self, theta):
        table = self.transitions(theta)
        return jnp.log(jnp.maximum(table, jnp.finfo(table.dtype).tiny))

    def _log_masses(self, x):
        """The centres of the cells, (cells, 2), and log p(x | centre) of each. Tables of transitions are made once for all x."""
        ends = jnp.linspace(self.low, self.high, _CELLS + 1)
        middle = (ends[1:] + ends[:-1]) / 2
        centers = jnp.stack([a.ravel() for a in jnp.meshgrid(middle, middle)], -1)
        tables = jax.vmap(self._log_transitions)(centers)
        return centers, jnp.tensordot(tables, self._moves(x, tables.dtype), 2, precision="highest")
