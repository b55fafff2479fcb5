"""Maximum likelihood and maximum a posteriori of any model with an EXACT log_prob, with the errors of the estimates.

    estimate      argmax_theta  sum_i log p(x_i | theta) + log p(theta)
    covariance    C = H^-1,  H = -d^2 / d theta^2 of that sum at the estimate       (Wald: theta^ - theta ~ N(0, C))
    sandwich      C (sum_i s_i s_i^T) C, right where the model is wrong too         (Huber 1967; White 1982, 10.2307/1912526)
    functions     f(theta^) has the variance J C J^T, J = df / d theta              (delta method)

All hold as the data grow. For models of a few hundred parameters at most; larger ones are trained by `gm.fit`, with
`gm.models.Penalized` for a prior. log p(theta) is taken as it stands in `params`: a mode depends on the coordinates, and no
Jacobian is added.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_function
from genmod.core.description import canonical
from genmod.core.distribution import Distribution
from genmod.core.params import trainable, with_trainable
from genmod.core.types import Array, Params
from genmod.inference.fisher import checked_data, is_known, log_prob_of_vector
from genmod.inference.laplace import laplace_approximation


class PointEstimate(NamedTuple):
    """Parameters at the maximum of a likelihood or a posterior.

    Attributes:
      params: of the model. log_likelihood: of all data there, in nats. log_prior: there; 0 without a prior.
      covariance: of the trained numbers, (D, D), in the order of `ravel_pytree(trainable(params))`.
      sandwich: the same, without faith in the model. num_data: n.
      converged: whether this is a maximum as far as rounding lets it.
    """

    params: Params
    log_likelihood: Any
    log_prior: Any
    covariance: Array
    sandwich: Array
    num_data: int
    converged: Any

    @property
    def num_params(self) -> int:
        """The number of trained numbers, D."""
        return self.covariance.shape[-1]

    def robust(self) -> Self:
        """The same, with the sandwich as its covariance."""
        return self._replace(covariance=self.sandwich)


class WaldInterval(NamedTuple):
    """An estimate with its standard error and the ends of its confidence interval, each a pytree of one form."""

    value: Any
    sem: Any
    low: Any
    high: Any


def maximize_likelihood(
    model: Distribution,
    params: Params,
    x: ArrayLike,
    context: ArrayLike | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1_000,
) -> PointEstimate:
    """The parameters that make data most likely. Compiled, once for a model.

    The search is that of `laplace_approximation`: an optimizer, then Newton's method.

    Args:
      model: with an EXACT log_prob. params: where the search begins; what stands in a `Fixed` stays.
      x: (n,) + event_shape. context: (n,) + context_shape.
      optimizer: any of Optax; None: L-BFGS. num_steps: at most so many before Newton's method.

    Returns a `PointEstimate`. Raises TypeError or ValueError for data that do not fit, and ValueError where the search ends at no
    strict maximum (while tracing the covariance is NaN instead).
    """
    return _maximum(model, params, x, context, None, optimizer, num_steps)


def maximize_posterior(
    model: Distribution,
    params: Params,
    x: ArrayLike,
    context: ArrayLike | None = None,
    *,
    log_prior_fn: Callable[[Params], Array],
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1_000,
) -> PointEstimate:
    """The mode of the posterior of the parameters. Compiled, once for a model and a prior.

    Args:
      log_prior_fn: params -> log p(params) up to a constant, in nats, a scalar: a function of a module or a `gm.call`.
      Others as those of `maximize_likelihood`.

    Returns a `PointEstimate`, whose covariance is that of the Laplace approximation. Raises as `maximize_likelihood`.
    """
    check_function(log_prior_fn=log_prior_fn)
    return _maximum(model, params, x, context, log_prior_fn, optimizer, num_steps)


def wald_interval(estimate: PointEstimate, fn: Callable[[Params], Any] | None = None, *, level: float = 0.95) -> WaldInterval:
    """Confidence intervals of functions of the parameters, one by one, by the delta method.

    Args:
      estimate: of `maximize_likelihood`; with `estimate.robust()` the model may be wrong.
      fn: params -> a pytree of numbers; None: the trained parameters themselves.
      level: how often such an interval holds the truth, as the data grow.

    Returns a `WaldInterval`. An interval is symmetric: take a function that is nearly normal, such as the log of a scale.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    check_function(fn=trainable if fn is None else fn)
    theta, unravel = ravel_pytree(trainable(estimate.params))
    of_params = trainable if fn is None else fn
    value, back = ravel_pytree(of_params(estimate.params))
    jacobian = jax.jacobian(lambda theta: ravel_pytree(of_params(with_trainable(estimate.params, unravel(theta))))[0])(theta)
    sem = jnp.sqrt(jnp.einsum("ki,ij,kj->k", jacobian, estimate.covariance, jacobian, precision="highest"))
    reach = statistics.NormalDist().inv_cdf(0.5 + 0.5 * level) * sem
    return WaldInterval(back(value), back(sem), back(value - reach), back(value + reach))


def _maximum(model, params, x, context, log_prior_fn, optimizer, num_steps) -> PointEstimate:
    x, context = checked_data(model, params, x, context)
    check_count(num_steps=num_steps)
    static = model, log_prior_fn, None if optimizer is None else canonical(optimizer), num_steps
    found = _search(static, params, x, context)._replace(num_data=x.shape[0])
    if is_known(found.covariance) and not bool(jnp.isfinite(found.covariance).all()):
        raise ValueError(
            f"the likelihood of {type(model).__name__} must have a strict maximum near params: where the search ended it is flat "
            "or rises in some direction; begin elsewhere, put parameters that the data do not determine into a gm.Fixed, or use "
            "maximize_posterior"
        )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _search(static, params, x, context):
    model, log_prior_fn, optimizer, num_steps = static
    theta, log_prob = log_prob_of_vector(model, params)
    unravel = ravel_pytree(trainable(params))[1]
    of_rows = jax.vmap(log_prob, (None, 0, None if context is None else 0))

    def log_prior(theta):
        return jnp.zeros(()) if log_prior_fn is None else log_prior_fn(with_trainable(params, unravel(theta)))

    def objective(theta):
        return of_rows(theta, x, context).sum() + log_prior(theta)

    found = laplace_approximation(objective, theta, optimizer=optimizer, num_steps=num_steps)
    theta = found.mean
    covariance = jnp.matmul(found.factor, found.factor.T, precision="highest")
    scores = jax.jacfwd(of_rows)(theta, x, context)  # (n, D)
    steps = jnp.matmul(scores, covariance, precision="highest")
    sandwich = jnp.matmul(steps.T, steps, precision="highest")
    likelihood, prior = of_rows(theta, x, context).sum(), log_prior(theta)
    return PointEstimate(with_trainable(params, unravel(theta)), likelihood, prior, covariance, sandwich, 0, found.converged)
