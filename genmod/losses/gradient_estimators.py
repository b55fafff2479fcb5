"""Gradients of expectations, d/dparams E_{x ~ p(. ; params)}[f(params, x)], by draws.

    reparameterized   grad f(params, x(params, noise))                          x a smooth function of params and noise
    reinforce         grad f(params, x) + (f(params, x) - b) grad log p(x)      the score function; x of any kind
                      (Williams 1992, Machine Learning 8:229-256)

b is a baseline: a number that does not depend on x leaves the mean of the gradient as it is, and a good one lowers its variance.
It is a constant; the moving average of f over past draws (Mnih & Gregor 2014, arXiv:1402.0030, sec. 2.3), a state that goes in
and comes out; or the mean of f over the other draws (`leave_one_out`; Mnih & Rezende 2016, arXiv:1602.06725), of which at least
two are wanted.

Each estimator returns a SURROGATE: a scalar whose value is the mean of f over the draws, and whose gradient by `jax.grad` is the
estimate. A relaxation of a discrete law is a `sample_fn` of `reparameterized`,

    lambda params, key: gumbel_softmax(params, key, temperature)

and has a bias, as has `straight_through`. `gradient_variance` measures mean and variance of any of them.

Functions of users: `value_fn(params, x)` is f, a scalar; `sample_fn(params, key)` one draw, an array or a pytree;
`log_prob_fn(params, x)` its log-density in nats, a scalar.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check, check_count
from genmod.core.types import Array, Key, Params

ValueFn = Callable[[Params, Any], Array]
SampleFn = Callable[[Params, Key], Any]
Baseline = ArrayLike | Callable[[Array], Array]


def reparameterized(value_fn: ValueFn, sample_fn: SampleFn, params: Params, key: Key, num_samples: int = 1) -> Array:
    """The surrogate whose gradient passes through the draws.

    Args:
      value_fn: f. sample_fn: a draw, differentiable in params.
      params: of both. key: of the draws. num_samples: how many.

    Raises ValueError for an f that is no scalar. The gradient is wrong, without a word, where draws jump with params.
    """
    check_count(num_samples=num_samples)

    def one(key):
        return _scalar("value_fn", value_fn(params, sample_fn(params, key)))

    return jax.vmap(one)(jax.random.split(key, num_samples)).mean()


def reinforce(
    value_fn: ValueFn,
    sample_fn: SampleFn,
    log_prob_fn: ValueFn,
    params: Params,
    key: Key,
    num_samples: int = 1,
    *,
    baseline: Baseline = 0.0,
) -> Array:
    """The surrogate whose gradient is that of the score function; no gradient passes through the draws.

    Args:
      value_fn: f. sample_fn: a draw. log_prob_fn: of a draw, differentiable in params.
      params: of all three. key: of the draws. num_samples: how many.
      baseline: a number, or a function of the values (num_samples,), such as `leave_one_out`, that gives one baseline to each
        draw, which must not depend on the value of that draw.

    Raises ValueError for an f or a log-density that is no scalar.
    """
    check_count(num_samples=num_samples)
    held = jax.lax.stop_gradient(params)

    def one(key):
        x = jax.lax.stop_gradient(sample_fn(held, key))
        return _scalar("value_fn", value_fn(params, x)), _scalar("log_prob_fn", log_prob_fn(params, x))

    values, log_probs = jax.vmap(one)(jax.random.split(key, num_samples))
    return score_function_surrogate(values, log_probs, baseline)


def score_function_surrogate(values: Array, log_probs: Array, baseline: Baseline = 0.0) -> Array:
    """Mean of `values`, whose gradient is the mean of grad f + (f - b) grad log p: `reinforce` of draws that one has.

    Args:
      values: f of independent draws, (n,). log_probs: of these draws, held fixed, (n,). baseline: as in `reinforce`.

    Raises ValueError for arrays of other shapes.
    """
    if values.ndim != 1 or log_probs.shape != values.shape:
        raise ValueError(f"values and log_probs must have one shape (n,), got {values.shape} and {log_probs.shape}")
    held = jax.lax.stop_gradient(values)
    b = baseline(held) if callable(baseline) else jnp.asarray(baseline, held.dtype)
    if b.shape not in ((), values.shape):
        raise ValueError(f"baseline must be a number, or one for each of {values.size} draws, got shape {b.shape}")
    signal = jax.lax.stop_gradient(held - b)
    return jnp.mean(values + signal * (log_probs - jax.lax.stop_gradient(log_probs)))


def leave_one_out(values: Array) -> Array:
    """For each of the values (n,), n >= 2, the mean of the others. With it the gradient is an unbiased one of n draws.

    Raises ValueError for fewer than two values.
    """
    check(values.ndim == 1 and values.size >= 2, f"leave_one_out wants values (n,) of at least two draws, got {values.shape}")
    return (values.sum() - values) / (values.size - 1)


class MovingAverage(NamedTuple):
    """The baseline that remembers: an exponential average of past values, kept as its sum and its weight, both scalars."""

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        """The average, free of the bias of its start: after one update it is the value itself. Zero before."""
        return self.total / jnp.maximum(self.weight, jnp.finfo(self.weight.dtype).tiny)

    @classmethod
    def start(cls) -> "MovingAverage":
        """The state before the first value."""
        return cls(jnp.zeros(()), jnp.zeros(()))

    def updated(self, value: ArrayLike, decay: float = 0.99) -> "MovingAverage":
        """The state after one more value, through which no gradient passes.

        Raises ValueError for a decay outside [0, 1).
        """
        check(0 <= decay < 1, f"decay must be in [0, 1), got {decay}")
        value = jax.lax.stop_gradient(jnp.asarray(value, self.total.dtype))
        return MovingAverage(decay * self.total + (1 - decay) * value, decay * self.weight + (1 - decay))


def reinforce_moving_average(
    value_fn: ValueFn,
    sample_fn: SampleFn,
    log_prob_fn: ValueFn,
    params: Params,
    key: Key,
    state: MovingAverage,
    num_samples: int = 1,
    *,
    decay: float = 0.99,
) -> tuple[Array, MovingAverage]:
    """`reinforce` with the average of past values as its baseline: (surrogate, next state), for `jax.grad(..., has_aux=True)`.

    Args:
      value_fn: f. sample_fn: a draw. log_prob_fn: of a draw, differentiable in params.
      params: of all three. key: of the draws. state: of the average, at first `MovingAverage.start()`. num_samples: of draws.
      decay: what remains of the average at each call.

    The baseline is that of the state that came in, which knows nothing of these draws: the gradient is unbiased.
    """
    surrogate = reinforce(value_fn, sample_fn, log_prob_fn, params, key, num_samples, baseline=state.value)
    return surrogate, state.updated(surrogate, decay)


class GradientStatistics(NamedTuple):
    """Of an estimator over many keys, each a pytree like the parameters.

    Attributes:
      mean: of the gradient. mean_sem: its standard error.
      variance: of every entry of the gradient, with n - 1. variance_sem: its standard error, from the fourth moment.
    """

    mean: Params
    mean_sem: Params
    variance: Params
    variance_sem: Params

    @property
    def total_variance(self) -> Array:
        """The sum over all entries: E|g - E g|^2, by which estimators are compared."""
        return sum((leaf.sum() for leaf in jax.tree.leaves(self.variance)), jnp.zeros(()))


def gradient_variance(
    estimator: Callable[[Params, Key], Array], params: Params, key: Key, num_keys: int = 1_000
) -> GradientStatistics:
    """Mean and variance of `jax.grad(estimator)` at fixed parameters.

    Args:
      estimator: (params, key) -> surrogate, a scalar. params: where. key: of the keys. num_keys: n; n gradients are held at once.

    Raises ValueError for fewer than four keys, where the error of a variance is not known.
    """
    check(num_keys >= 4, f"num_keys must be >= 4, got {num_keys}")
    rows = jax.vmap(jax.grad(estimator), (None, 0))(params, jax.random.split(key, num_keys))
    mean = jax.tree.map(lambda g: g.mean(0), rows)
    deviation = jax.tree.map(lambda g, m: g - m[None], rows, mean)
    variance = jax.tree.map(lambda d: jnp.sum(d**2, 0) / (num_keys - 1), deviation)

    def error_of_variance(d, v):
        excess = jnp.mean(d**4, 0) - (num_keys - 3) / (num_keys - 1) * v**2
        return jnp.sqrt(jnp.maximum(excess, 0.0) / num_keys)

    errors = jax.tree.map(error_of_variance, deviation, variance)
    return GradientStatistics(mean, jax.tree.map(lambda v: jnp.sqrt(v / num_keys), variance), variance, errors)


def _scalar(name: str, value: Array) -> Array:
    if jnp.shape(value):
        raise ValueError(f"{name} must give a scalar for ONE draw, got shape {jnp.shape(value)}; sum over the event")
    return value
