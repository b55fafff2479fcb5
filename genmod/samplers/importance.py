"""Importance sampling: expectations under p by draws of a proposal q, with weights w = p / q.

    p, q normalised:            E_p[f] ~ 1/S sum_s w_s f(x_s),         standard error  sd(w f) / sqrt S
    up to constants:            E_p[f] ~ sum_s v_s f(x_s),             v_s = w_s / sum w      (self-normalised)
                                standard error  sqrt(sum v_s^2 (f(x_s) - E)^2)                (delta method; bias of order 1/S)
    effective sample size:      (sum w)^2 / sum w^2;   S / ESS - 1 -> chi^2(p || q) = exp(Renyi-2 divergence) - 1

All of these are computed from the draws, and none can see mass of p that q never visits. For p = N(5, 1) and q = N(0, 1) the
limit of ESS / S is 1.4e-11; with 1,000 draws about 0.004 is reported, more than a hundred million times too much. What then
warns is the shape k-hat of the weights' tail, and `probe_log_weights`: weights at places where p is known to have mass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count, check_function
from genmod.core.keys import check_key
from genmod.core.types import Array, Key
from genmod.samplers.base import Position, scalar, scalar_fn
from genmod.samplers.weights import log_mean, pareto_k_hat


class WeightedDraws(NamedTuple):
    """Draws of q, with a leading axis of S, and log p - log q at each, (S,), in nats."""

    positions: Position
    log_weights: Array


class Expectation(NamedTuple):
    """An estimate of E_p[f], and its standard error: each of the form of what f returns."""

    value: Any
    sem: Any


class ImportanceReport(NamedTuple):
    """How far a set of weights can be trusted.

    Attributes:
      num_draws: S. log_normalizer: log 1/S sum w, of p where q is normalised, in nats. log_normalizer_sem: its standard error.
      effective_size: (sum w)^2 / sum w^2. chi_squared: S / ESS - 1, an estimate of chi^2(p || q).
      k_hat: the shape of the weights' tail, `pareto_k_hat`. largest_share: the largest weight, as a share of all.
      num_zero, num_failed: draws whose weight is zero, and whose log-weight is NaN.
      unseen_nats: log of the largest weight at a probe, minus that of the sum of all weights; -inf without probes. Above zero
        one draw at this place would have outweighed all draws together: q does not cover p.

    Sizes, shares and standard errors are NaN where all weights are zero, or one is NaN or infinite.
    """

    num_draws: int
    log_normalizer: Array
    log_normalizer_sem: Array
    effective_size: Array
    chi_squared: Array
    k_hat: Array
    largest_share: Array
    num_zero: Array
    num_failed: Array
    unseen_nats: Array

    @property
    def k_limit(self) -> float:
        """min(1 - 1 / log10 S, 0.7): the k-hat up to which S draws give a small error (Vehtari et al. 2015, sec. 3.2.4)."""
        return min(1 - 1 / max(np.log10(self.num_draws), 1.0), 0.7)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the weights cannot be trusted, in words; empty where nothing speaks against them."""
        found = []
        if self.num_failed:
            found.append(f"{int(self.num_failed)} log-weights are NaN")
        if self.num_zero + self.num_failed == self.num_draws and self.num_zero:
            found.append("no weight is above zero: no draw of the proposal lies in the support of p")
        elif np.isposinf(self.log_normalizer):
            found.append("a weight is infinite")
        elif np.isnan(self.k_hat) and not self.num_failed:
            found.append("too few draws for k-hat")
        if self.k_hat > self.k_limit:
            found.append(f"k-hat {float(self.k_hat):.2f} > {self.k_limit:.2f}: the proposal's tails are too light")
        if np.isnan(self.unseen_nats) and not self.num_failed:
            found.append("a log-weight at a probe is NaN")
        if self.unseen_nats > 0:
            found.append(f"the proposal does not cover a probe, which outweighs all draws by {float(self.unseen_nats):.1f} nats")
        return tuple(found)

    def __str__(self):
        shares = f"ESS {float(self.effective_size):.4g} of {self.num_draws:,}, largest share {float(self.largest_share):.3g}"
        value = f"log Z {float(self.log_normalizer):.4f} +- {float(self.log_normalizer_sem):.4f} nats"
        return f"{value}, {shares}, k-hat {float(self.k_hat):.2f}: {'; '.join(self.problems) or 'no problem seen'}"


def importance_sample(
    key: Key,
    log_prob_fn: Callable[[Position], Array],
    sample_and_log_prob_fn: Callable[[Key], tuple[Position, Array]],
    num_draws: int,
) -> WeightedDraws:
    """Draws of q with their log-weights log p - log q. Compiled at every call; within a `jax.jit` of one's own, with it.

    Args:
      log_prob_fn: log p of one position, up to a constant; -inf outside of the support.
      sample_and_log_prob_fn: key -> (a draw of q, its log q), as `proposal_of(...)` gives it.
      num_draws: S.

    Returns `WeightedDraws`. Raises TypeError for what is no function or key, ValueError for a count below 1 and for functions
    that do not return one number.
    """
    check_function(sample_and_log_prob_fn=sample_and_log_prob_fn)
    check_count(num_draws=num_draws)
    log_prob_fn = scalar_fn("log_prob_fn", log_prob_fn)

    def one(key):
        position, log_q = sample_and_log_prob_fn(key)
        return WeightedDraws(position, log_prob_fn(position) - scalar("sample_and_log_prob_fn", log_q))

    return jax.jit(lambda key: jax.vmap(one)(jax.random.split(key, num_draws)))(check_key(key))


def importance_mean(draws: WeightedDraws, fn: Callable[[Position], Any]) -> Expectation:
    """E_p[fn] by the plain mean of w fn: unbiased, where p AND q are normalised.

    Args:
      draws: of `importance_sample`. fn: one position -> an array, or a pytree of arrays.

    Of an unnormalised p it is Z E_p[fn]. The standard error is nan for one draw. Raises TypeError for an fn that is no function.
    """
    check_function(fn=fn)
    num, peak = draws.log_weights.shape[0], draws.log_weights.max()
    weights = jnp.exp(draws.log_weights - peak)

    def one(values):
        terms = _times(weights, values)
        mean = terms.mean(0)
        spread = jnp.sqrt(jnp.sum((terms - mean[None]) ** 2, 0) / max(num - 1, 1) / num) if num > 1 else mean * jnp.nan
        return jnp.exp(peak) * mean, jnp.exp(peak) * spread

    return _expectation(draws, fn, one)


def self_normalized_mean(draws: WeightedDraws, fn: Callable[[Position], Any]) -> Expectation:
    """E_p[fn] by sum w fn / sum w: p and q may be known up to constants. Its standard error is that of the delta method.

    Args:
      draws: of `importance_sample`; smoothed by `draws._replace(log_weights=pareto_smoothed(draws.log_weights).log_weights)`.
      fn: one position -> an array, or a pytree of arrays.

    The standard error is nan for one draw. Raises TypeError for an fn that is no function.
    """
    check_function(fn=fn)
    num = draws.log_weights.shape[0]
    share = jax.nn.softmax(draws.log_weights)

    def one(values):
        mean = _times(share, values).sum(0)
        squares = jnp.sum(_times(share, values - mean[None]) ** 2, 0)
        return mean, jnp.sqrt(squares * num / (num - 1)) if num > 1 else mean * jnp.nan

    return _expectation(draws, fn, one)


def importance_report(log_weights: Array, probe_log_weights: Array | None = None) -> ImportanceReport:
    """Whether weights can be trusted; print it.

    Args:
      log_weights: log p - log q at S draws of q, (S,).
      probe_log_weights: log p - log q at places where p is known to have mass, (m,): modes of p, draws of a chain, data.

    Returns an `ImportanceReport`. Raises ValueError for weights of another shape.
    """
    if jnp.ndim(log_weights) != 1 or not log_weights.shape[0]:
        raise ValueError(f"log_weights must have shape (S,), S >= 1, got {jnp.shape(log_weights)}")
    probes = jnp.asarray([-jnp.inf] if probe_log_weights is None else probe_log_weights)
    return ImportanceReport(log_weights.shape[0], *_reported(log_weights, probes))


@jax.jit
def _reported(log_weights: Array, probes: Array) -> tuple[Array, ...]:
    num, mean, probe = log_weights.shape[0], log_mean(log_weights), probes.max()
    return (
        mean.value,
        mean.sem,
        mean.effective_size,
        num / mean.effective_size - 1,
        pareto_k_hat(log_weights),
        jnp.exp(log_weights.max() - mean.value) / num,
        jnp.sum(log_weights == -jnp.inf),
        jnp.sum(jnp.isnan(log_weights)),
        jnp.where(probe == -jnp.inf, probe, probe - mean.value - np.log(num)),
    )


def _times(weights: Array, values: Array) -> Array:
    """Rows of `values` times their weights; what has no weight counts for nothing, be it infinite."""
    weights = weights.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(weights == 0, 0.0, weights * values)


def _expectation(draws: WeightedDraws, fn: Callable, one: Callable) -> Expectation:
    values = jax.vmap(fn)(draws.positions)
    leaves, structure = jax.tree.flatten(values)
    floats = [leaf.astype(jnp.promote_types(leaf.dtype, draws.log_weights.dtype)) for leaf in leaves]
    pairs = [one(leaf) for leaf in floats]
    return Expectation(*(jax.tree.unflatten(structure, [pair[i] for pair in pairs]) for i in (0, 1)))
