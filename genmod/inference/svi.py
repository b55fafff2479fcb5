"""Stochastic variational inference for the Bayesian mixture of Gaussians (Hoffman et al. 2013, arXiv:1206.7051).

A law of the exponential family has natural parameters l. Of a minibatch B, taken as if all N data looked like it, the optimal
law has l_B (the sweep of `mean_field` with every datum counted N / |B| times); its expectation is that of a sweep over all data,
and l_B - l an unbiased natural gradient of the bound (eq. 14 - 16). A step follows it (eq. 19, fig. 4):

    l <- (1 - rho_t) l + rho_t l_B,   rho_t = (t + delay)^-forgetting, 1/2 < forgetting <= 1          (eq. 26)

With all data in the batch and rho = 1 a step is a sweep of coordinate ascent.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_positive
from genmod.core.description import Call, call, made
from genmod.core.keys import stream
from genmod.core.types import Array, Key
from genmod.inference.mean_field import (
    MixtureLaw,
    best_of,
    check_mixture,
    log_responsibilities,
    mixture_bound,
    mixture_update,
)
from genmod.training import Fit, Step, train

Schedule = Callable[[Any], Any]
_START_SWEEPS = 20


def robbins_monro(delay: float = 1.0, forgetting: float = 0.7, scale: float = 1.0) -> Schedule:
    """The schedule count -> min(1, scale (count + delay)^-forgetting), an Optax schedule whose steps sum to infinity and whose
    squares do not (Robbins & Monro 1951; Hoffman et al. 2013, eq. 26).

    Args:
      delay: > 0, which damps the first steps. forgetting: in (1/2, 1], how fast old minibatches are forgotten.
      scale: of all steps.

    Raises ValueError for numbers outside.
    """
    check_positive(delay=delay, scale=scale)
    if not 0.5 < forgetting <= 1:
        raise ValueError(f"forgetting must be in (1/2, 1], where the steps converge, got {forgetting}")
    return lambda count: jnp.minimum(1.0, scale * (count + delay) ** -forgetting)


_ROBBINS_MONRO = call(robbins_monro)


class SVIState(NamedTuple):
    """The prior, the law so far, and the number of steps."""

    prior: MixtureLaw
    law: MixtureLaw
    count: Array  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class NaturalGradientStep(Step):
    """A step of stochastic variational inference, for `gm.train(NaturalGradientStep(n), (prior, law), data, ...)`.

    Attributes:
      num_rows: N, of all data; a minibatch is an array (|B|, D).
      step_size: rho in (0, 1], a number, an Optax schedule, or `gm.call(robbins_monro, delay=10.0)`.

    Its metrics are of the law before the step, by the minibatch: "bound_nats" estimates the bound on the log-evidence of all
    data without bias, "loss" is its negative per datum.
    Raises ValueError for a num_rows that is no count, and a step_size that is a number outside of (0, 1].
    """

    num_rows: int
    step_size: float | Schedule | Call = _ROBBINS_MONRO

    def __post_init__(self):
        super().__post_init__()
        check_count(num_rows=self.num_rows)
        if not callable(self.step_size) and not 0 < self.step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], or a schedule of the step, got {self.step_size}")

    def init(self, params, key, batch):
        prior, law = params
        return SVIState(prior, law, jnp.zeros((), jnp.int32))

    def __call__(self, state, key, batch):
        prior, law, count = state
        scale = self.num_rows / batch.shape[0]
        log_rho = log_responsibilities(law, batch)
        rate = self._rate(count, batch.dtype)
        found = mixture_update(prior, batch, scale * jax.nn.softmax(log_rho, axis=1))
        # The bound is linear in the sum over data, which the minibatch estimates.
        data = jax.nn.logsumexp(log_rho, axis=1).sum()
        bound = mixture_bound(law, prior, log_rho) + (scale - 1.0) * data
        metrics = {"loss": -bound / self.num_rows, "bound_nats": bound, "step_size": rate}
        return SVIState(prior, jax.vmap(_blend, (0, 0, None))(law, found, rate), count + 1), metrics

    def evaluation_params(self, state):
        return state.law

    def _rate(self, count, dtype):
        schedule = made(self.step_size)
        return jnp.asarray(schedule(count) if callable(schedule) else schedule, dtype)


def fit_mixture_stochastic(
    x: ArrayLike,
    prior: MixtureLaw,
    *,
    key: Key,
    batch_size: int = 256,
    num_steps: int = 2_000,
    step_size: float | Schedule | Call = _ROBBINS_MONRO,
    law: MixtureLaw | None = None,
    num_restarts: int = 8,
    **options: Any,
) -> Fit:
    """Stochastic variational inference for the posterior of a Gaussian mixture, on minibatches.

    Args:
      x: (n, D). prior: of `mixture_prior`; its number of components is that of the mixture.
      key: of the start and of the minibatches.
      batch_size: rows of a minibatch. num_steps: how many of them.
      step_size: see `NaturalGradientStep`.
      law: where to begin; None: at the best of `num_restarts` short runs of coordinate ascent on random rows, ten minibatches at
        most.
      options: of `gm.train`, such as validate_every, checkpoint, log, callback, progress.

    Returns a `Fit` whose params are a `MixtureLaw`, for `MixturePredictive`. For data that do not fit into memory call `gm.train`
    with a `NaturalGradientStep` and an iterator. Raises ValueError or TypeError for data that do not fit the prior.
    """
    x, prior = check_mixture(x, prior)
    check_count(batch_size=batch_size, num_restarts=num_restarts)
    if law is None:
        law = _start(min(x.shape[0], 10 * batch_size), num_restarts, stream(key, "start"), x, prior)
    step = NaturalGradientStep(x.shape[0], step_size)
    return train(step, (prior, law), x, key=stream(key, "train"), batch_size=batch_size, num_steps=num_steps, **options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(num: int, num_restarts: int, key: Key, x: Array, prior: MixtureLaw) -> MixtureLaw:
    keys = jax.random.split(key, num_restarts + 1)
    rows = x[jax.random.choice(keys[0], x.shape[0], (num,), replace=False)]
    law = best_of(_START_SWEEPS, 1e-3, keys[1:], rows, prior).posterior
    shares = jax.nn.softmax(log_responsibilities(law, rows), axis=1)
    return mixture_update(prior, rows, x.shape[0] / num * shares)


def _blend(old: MixtureLaw, new: MixtureLaw, rate: Array) -> MixtureLaw:
    """(1 - rate) old + rate new of one component in natural parameters, (a, b m, b, nu, W^-1 + b m m^T).

    What remains of b m m^T after the new mean has taken its part is a multiple of (m - m')(m - m')^T: nothing cancels.
    """

    def mix(a, b):
        return (1.0 - rate) * a + rate * b

    strength = mix(old.strength, new.strength)
    offset = new.mean - old.mean
    share = (1.0 - rate) * rate * old.strength * new.strength / strength
    return MixtureLaw(
        mix(old.concentration, new.concentration),
        mix(old.strength * old.mean, new.strength * new.mean) / strength,
        strength,
        mix(old.dof, new.dof),
        mix(old.scatter, new.scatter) + share * jnp.outer(offset, offset),
    )
