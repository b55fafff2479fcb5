"""Evidence by annealing from the prior to the joint p(x, z) (`genmod.samplers.annealed`), from both sides."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_count, check_function, check_parts, check_positive
from genmod.core.description import call
from genmod.core.keys import stream
from genmod.core.types import Key
from genmod.inference.estimate import Estimate, Evidence, EvidenceMethod, Observed, evidence
from genmod.losses.variational import Latent
from genmod.samplers import (
    annealed_importance,
    geometric_bridge,
    mala,
    reverse_annealed_importance,
    sequential_monte_carlo,
    sigmoid_levels,
)
from genmod.samplers.weights import log_mean, pareto_k_hat

_MALA = call(mala, step_size=0.1)


@dataclasses.dataclass(frozen=True)
class AIS(EvidenceMethod):
    """Annealed importance sampling from the prior to the joint p(x, z): a lower bound in expectation, which converges.

    Attributes:
      num_chains: independent chains. num_levels: of the geometric bridge, by `sigmoid_levels`. num_steps: kernel steps at each.
      kernel: log_prob_fn -> a kernel, at every level: `gm.call(mala, step_size=0.1)`, or `lambda f: blackjax.hmc(f, ...)`. Its
        step must suit the narrowest of the densities.
      steepness: of the levels.

    Extras: `effective_size` of the chains; of more than 20 chains the `k_hat` of their weights, above 0.7 of which the standard
    error is too small; `acceptance_rate` where the kernel tells it.
    """

    num_chains: int = 16
    num_levels: int = 100
    kernel: Callable[[Callable], Any] = _MALA
    num_steps: int = 1
    steepness: float = 4.0

    side = -1

    def __post_init__(self):
        super().__post_init__()
        check_count(num_chains=self.num_chains, num_levels=self.num_levels, num_steps=self.num_steps)
        check_function(kernel=self.kernel)
        check_positive(steepness=self.steepness)

    def num_draws(self, z):
        return self.num_chains

    def estimate_one(self, problem, key):
        begin_key, chain_key = jax.random.split(key)
        begin = jax.vmap(_draw_prior(problem))(jax.random.split(begin_key, self.num_chains))
        chains = self._chains(annealed_importance, problem, begin, chain_key)
        found = log_mean(chains.log_weight)
        return Estimate(found.value, found.sem, _extras(found, chains))

    def _chains(self, sampler, problem, begin, key):
        bridge, levels = _bridge(problem), sigmoid_levels(self.num_levels, self.steepness)

        def one(key, z):
            return sampler(key, z, bridge, lambda fn, _: self.kernel(fn), levels, num_steps=self.num_steps)

        return jax.vmap(one)(jax.random.split(key, self.num_chains), begin)


_AIS = AIS()


@dataclasses.dataclass(frozen=True)
class ReverseAIS(EvidenceMethod):
    """The chains of `forward` backwards, from EXACT draws of the posterior to the prior: an upper bound in expectation.

    An exact draw is known where x was simulated (the z that it was made of, `simulate`), or by conjugacy. From other draws the
    bound holds as far as these are exact. Chains that share a draw are not independent: with fewer draws than chains the standard
    error is too small. The kernels must be reversible, as those of Metropolis-Hastings are.
    """

    forward: AIS = _AIS

    side = 1
    wants_z = "exact draws of the posterior p(z | x), (m,) + the shape of z, such as the z that x was simulated from"

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, forward=AIS)

    def num_draws(self, z):
        return self.forward.num_draws(z)

    def estimate_one(self, problem, key):
        begin = jax.tree.map(lambda leaf: leaf[jnp.arange(self.forward.num_chains) % leaf.shape[0]], problem.z)
        chains = self.forward._chains(reverse_annealed_importance, problem, begin, key)
        found = log_mean(chains.log_weight)
        return Estimate(-found.value, found.sem, _extras(found, chains))


@dataclasses.dataclass(frozen=True)
class SMC(EvidenceMethod):
    """Sequential Monte Carlo from the prior to the joint: `num_runs` populations, whose spread is the standard error.

    A lower bound in expectation, which converges.

    Attributes:
      num_particles: of each population. num_runs: of them. num_levels, kernel, num_steps, steepness: as in `AIS`.
      resample_below: the share of the particles below which an effective size calls for resampling.

    Extras: `effective_size`, the smallest at any level, in the mean of the populations; `acceptance_rate`.
    """

    num_particles: int = 128
    num_runs: int = 8
    num_levels: int = 25
    kernel: Callable[[Callable], Any] = _MALA
    num_steps: int = 1
    steepness: float = 4.0
    resample_below: float = 0.5

    side = -1

    def __post_init__(self):
        super().__post_init__()
        check_count(num_particles=self.num_particles, num_runs=self.num_runs)
        check_count(num_levels=self.num_levels, num_steps=self.num_steps)
        check_function(kernel=self.kernel)
        check_positive(steepness=self.steepness)
        check(0 <= self.resample_below <= 1, f"resample_below must be in [0, 1], got {self.resample_below}")

    def num_draws(self, z):
        return self.num_particles * self.num_runs

    def estimate_one(self, problem, key):
        bridge, levels = _bridge(problem), sigmoid_levels(self.num_levels, self.steepness)

        def run(key):
            begin_key, run_key = jax.random.split(key)
            begin = jax.vmap(_draw_prior(problem))(jax.random.split(begin_key, self.num_particles))
            return sequential_monte_carlo(
                run_key,
                begin,
                bridge,
                lambda fn, _: self.kernel(fn),
                levels,
                num_steps=self.num_steps,
                resample_below=self.resample_below,
            )

        runs = jax.vmap(run)(jax.random.split(key, self.num_runs))
        found = log_mean(runs.log_ratio)
        extras = {"effective_size": runs.effective_sizes.min(1).mean()} | _acceptance(runs.infos)
        return Estimate(found.value, found.sem, extras)


class Bracket(NamedTuple):
    """Two estimates between which the log-evidence lies in expectation."""

    lower: Evidence
    upper: Evidence

    def __str__(self):
        return f"lower: {self.lower}\nupper: {self.upper}"


def bracket(problem: Latent | Observed, method: AIS = _AIS, *, key: Key, z: Any) -> Bracket:
    """`method` and `ReverseAIS(method)`: bidirectional Monte Carlo (Grosse et al. 2015, arXiv:1511.02543).

    Args:
      problem, key: as in `evidence`.
      z: EXACT draws of the posterior, as `ReverseAIS` wants them.
    """
    lower = evidence(problem, method, key=stream(key, "lower"))
    return Bracket(lower, evidence(problem, ReverseAIS(method), key=stream(key, "upper"), z=z))


def _bridge(problem):
    return geometric_bridge(problem.latent.log_prior, problem.log_joint)


def _draw_prior(problem):
    if problem.latent.draw_prior is None:
        raise ValueError("annealing begins at draws of the prior: give the Latent a draw_prior, key -> z")
    return problem.latent.draw_prior


def _extras(found, chains):
    k_hat = {} if chains.log_weight.shape[0] <= 20 else {"k_hat": pareto_k_hat(chains.log_weight)}
    return {"effective_size": found.effective_size} | k_hat | _acceptance(chains.infos)


def _acceptance(infos):
    """The mean over chains and levels, where the kernel tells it, as ours and BlackJAX's do."""
    rate = getattr(infos, "acceptance_rate", None)
    return {} if rate is None else {"acceptance_rate": jnp.mean(rate)}
