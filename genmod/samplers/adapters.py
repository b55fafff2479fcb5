"""From distributions and maps to the functions that samplers take.

    log_prob_fn = log_prob_fn_of(energy_model, params)                 # what to sample
    proposal = proposal_of(flow, flow_params)                          # by what
    kernel = independence(log_prob_fn, *proposal)
    draws = importance_sample(key, log_prob_fn, proposal.sample_and_log_prob_fn, 10_000)

Any kernel runs in the base space of a trained flow, where a law that the flow has learned looks like the base (NeuTra, Hoffman et
al. 2019, arXiv:1903.03704):

    forward = lambda z: flow.bijector.forward_and_log_det(params["bijector"], z)
    kernel = hmc(pulled_back(log_prob_fn, forward), 0.3, 10)
    trace = run(key, kernel, kernel.init(z), num_steps=1_000)
    x = jax.vmap(lambda z: forward(z)[0])(trace.positions)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_context, check_function
from genmod.core.distribution import Distribution, check_params
from genmod.core.likelihood import Likelihood
from genmod.core.types import Array, Context, Key, Params
from genmod.samplers.base import Position, scalar_fn


class Proposal(NamedTuple):
    """A law to propose from: key -> (a draw, its log q), and position -> log q. `independence(log_prob_fn, *proposal)`."""

    sample_and_log_prob_fn: Callable[[Key], tuple[Position, Array]]
    log_prob_fn: Callable[[Position], Array]


def log_prob_fn_of(distribution: Distribution, params: Params, context: ArrayLike | None = None) -> Callable[[Position], Array]:
    """position -> log p(position | context), of one event, in nats: what every kernel takes.

    Args:
      distribution: one whose log_prob is exact, or exact up to a constant. params: of it. context: ONE context.

    Raises TypeError for what is no `Distribution`, ValueError for a context that does not fit and for a log_prob that is an
    estimate or a bound: a chain would remember its error.
    """
    context = _checked(distribution, params, context, (Likelihood.EXACT, Likelihood.UNNORMALIZED))
    return lambda position: distribution.log_prob_one(params, position, context)


def proposal_of(distribution: Distribution, params: Params, context: ArrayLike | None = None) -> Proposal:
    """The proposal that draws from a distribution, such as a trained flow.

    Args:
      distribution: one that can be sampled and whose log_prob is exact. params: of it. context: ONE context.

    Raises as `log_prob_fn_of`, and ValueError for a log_prob that is known up to a constant only.
    """
    context = _checked(distribution, params, context, (Likelihood.EXACT,))
    return Proposal(
        lambda key: distribution.sample_and_log_prob_one(params, key, context),
        lambda position: distribution.log_prob_one(params, position, context),
    )


def pulled_back(
    log_prob_fn: Callable[[Position], Array], forward_and_log_det_fn: Callable[[Position], tuple[Position, Array]]
) -> Callable[[Position], Array]:
    """z -> log f(T(z)) + log |det dT/dz|: the target in the base space of a map T.

    T of draws of it are draws of f. Raises TypeError for what is no function.

    Args:
      log_prob_fn: log f of one position.
      forward_and_log_det_fn: z -> (T(z), log |det dT/dz|), a bijection onto the support of f.
    """
    check_function(forward_and_log_det_fn=forward_and_log_det_fn)
    log_prob_fn = scalar_fn("log_prob_fn", log_prob_fn)

    def pulled(z):
        x, log_det = forward_and_log_det_fn(z)
        return log_prob_fn(x) + log_det

    return scalar_fn("forward_and_log_det_fn", pulled)


def _checked(distribution: Any, params: Params, context: Any, wanted: tuple[Likelihood, ...]) -> Context:
    if not isinstance(distribution, Distribution):
        raise TypeError(f"distribution must be a Distribution such as a gm.Flow, got {distribution!r}")
    check_params(distribution, params)
    if distribution.likelihood not in wanted:
        kinds = " or ".join(kind.name for kind in wanted)
        raise ValueError(
            f"distribution must have a log_prob that is {kinds}, got {type(distribution).__name__}, whose is "
            f"{distribution.likelihood.name}"
        )
    context = check_context(type(distribution).__name__, context, distribution.context_shape)
    return None if context is None else jnp.asarray(context)
