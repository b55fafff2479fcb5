"""log Z by annealing from a law of known Z, the model's `reference`, to the model (`samplers.annealed`).

    parameters at beta = (1 - beta) those of the reference + beta those of the model

Of a Boltzmann machine the reference is one of independent units, of an `EnergyModel` its base. The chains move by the model's own
kernel at every beta (Salakhutdinov & Murray 2008, 10.1145/1390156.1390266). Forwards they bound log Z from below in expectation,
backwards from exact draws of the model from above (Grosse et al. 2015, arXiv:1511.02543). Backwards from a datum they bound its
log-probability under the law in which forward chains end, which tends to the model's as the levels grow (RAISE, Burda et al.
2015, arXiv:1412.8566).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.core.batching import row_keys
from genmod.core.checks import check, check_count
from genmod.core.distribution import call_program
from genmod.core.keys import check_key, stream
from genmod.core.params import interpolated
from genmod.core.types import Array, Key, Params
from genmod.inference.annealing import Bracket
from genmod.inference.estimate import Evidence
from genmod.models.unnormalized import Configuration, UnnormalizedModel
from genmod.samplers import annealed_importance, moved, reverse_annealed_importance, sigmoid_levels, systematic_resampling
from genmod.samplers.annealed import Annealed
from genmod.samplers.weights import LogMean, log_mean, pareto_k_hat


def normalizer_bracket(
    model: UnnormalizedModel,
    params: Params,
    data: Any,
    *,
    key: Key,
    draws: Any = None,
    num_chains: int = 100,
    num_levels: int = 1_000,
) -> Bracket:
    """log Z in nats from both sides, each with its standard error, the effective number of chains and the k-hat of their weights.

    Args:
      model: a machine, or an `EnergyModel` with a base. params: of it.
      data: rows x, or pairs (x, context), whose marginals independent units have: any do, those of training are near.
      key: of chains and draws.
      draws: of the model, rows or pairs: exact ones by `Normalized(model).sample`, `annealed_draws`, or ends of long chains; the
        upper bound holds as far as they are exact. None: the ends of chains of the model's `num_sweeps`.
      num_chains: forwards, and backwards where there are no draws. num_levels: of the way, dense at both ends.

    Raises TypeError or ValueError for what does not fit the model.
    """
    data = _checked(model, data, num_chains=num_chains, num_levels=num_levels)
    draws = None if draws is None else model.read(draws)[:2]
    static = model, num_chains, num_levels
    log_z, lower, upper, k_hats = call_program(_bracket, model, params, static, check_key(key), data, draws)

    def side(found: LogMean, k_hat: Array, sign: int, num: int) -> Evidence:
        extras = {"effective_size": found.effective_size} | ({"k_hat": k_hat} if num > 20 else {})
        return Evidence(log_z + sign * found.value, found.sem, -sign, num, extras)

    num_draws = num_chains if draws is None else draws[0].shape[0]
    return Bracket(side(lower, k_hats[0], 1, num_chains), side(upper, k_hats[1], -1, num_draws))


def annealed_draws(
    model: UnnormalizedModel, params: Params, data: Any, *, key: Key, num_draws: int = 100, num_levels: int = 1_000
) -> Any:
    """Draws for `normalizer_bracket`: ends of annealed chains, chosen by their weights, and then `num_sweeps` steps of the model.

        draws = annealed_draws(model, params, x, key=keys[0])
        normalizer_bracket(model, params, x, key=keys[1], draws=draws)

    Nearly exact where the weights are even, and where modes lie so far apart that chains from one start do not cross between
    them. Chains of `num_draws` are annealed; an end may be chosen several times.

    Args:
      model, params, data, num_levels: as in `normalizer_bracket`. key: of the chains.

    Returns rows (num_draws,) + event_shape, or pairs of rows and contexts. Raises as `normalizer_bracket`.
    """
    data = _checked(model, data, num_draws=num_draws, num_levels=num_levels)
    found = call_program(_draws, model, params, (model, num_draws, num_levels), check_key(key), data)
    return found.x if found.context is None else (found.x, found.context)


def annealed_log_prob(
    model: UnnormalizedModel, params: Params, x: Any, data: Any, *, key: Key, num_chains: int = 16, num_levels: int = 1_000
) -> Evidence:
    """log p of rows, in nats, without log Z: lower bounds in expectation on that under the law in which annealed chains end.

    Args:
      model, params, data, num_levels: as in `normalizer_bracket`.
      x: rows, or pairs (x, context). key: of the chains. num_chains: for each row.

    Raises as `normalizer_bracket`.
    """
    data = _checked(model, data, num_chains=num_chains, num_levels=num_levels)
    static = model, num_chains, num_levels
    found = call_program(_of_rows, model, params, static, check_key(key), data, model.read(x)[:2])
    return Evidence(found.value, found.sem, -1, num_chains, {"effective_size": found.effective_size})


def _checked(model: UnnormalizedModel, data: Any, **counts: int) -> Any:
    if not isinstance(model, UnnormalizedModel):
        wanted = "an UnnormalizedModel such as a RestrictedBoltzmannMachine or an EnergyModel"
        raise TypeError(f"model must be {wanted}, got {model!r}")
    check_count(**counts)
    x, context, _ = model.read(data)
    if not isinstance(x, Tracer):
        check(np.isfinite(np.asarray(x)).all(), "data must be finite, got NaN or inf; drop these rows")
    return x, context


@functools.partial(jax.jit, static_argnums=0)
def _bracket(static, params, key, data, draws):
    model, num_chains, num_levels = static
    base, log_z = model.reference(params, *data)
    begin = model.random_configurations(base, stream(key, "begin"), num_chains)
    forwards = _anneal(model, annealed_importance, num_levels, base, params, stream(key, "forwards"), begin).log_weight
    if draws is None:
        random = model.random_configurations(params, stream(key, "start"), num_chains)
        ends, _ = moved(stream(key, "draws"), model.kernel(params), random, num_steps=model.num_sweeps)
    else:
        ends = model.configurations(params, stream(key, "draws"), *draws)
    backwards = _anneal(model, reverse_annealed_importance, num_levels, base, params, stream(key, "backwards"), ends).log_weight
    k_hats = pareto_k_hat(forwards), pareto_k_hat(backwards)
    return log_z, log_mean(forwards), log_mean(backwards), k_hats


@functools.partial(jax.jit, static_argnums=0)
def _draws(static, params, key, data):
    model, num_draws, num_levels = static
    base, _ = model.reference(params, *data)
    begin = model.random_configurations(base, stream(key, "begin"), num_draws)
    ends = _anneal(model, annealed_importance, num_levels, base, params, stream(key, "anneal"), begin)
    chosen = systematic_resampling(stream(key, "choose"), ends.log_weight, num_draws)
    at = jax.tree.map(lambda leaf: leaf[chosen], ends.position)
    return moved(stream(key, "move"), model.kernel(params), at, num_steps=model.num_sweeps)[0]


@functools.partial(jax.jit, static_argnums=0)
def _of_rows(static, params, key, data, rows):
    model, num_chains, num_levels = static
    base, log_z = model.reference(params, *data)

    def one(row):
        key, x, context = row
        begin_key, chain_key = jax.random.split(key)
        begin = jax.vmap(lambda key: model.start_one(params, key, x, context))(jax.random.split(begin_key, num_chains))
        weights = _anneal(model, reverse_annealed_importance, num_levels, base, params, chain_key, begin).log_weight
        found = log_mean(weights)
        return found._replace(value=found.value + model.log_prob_one(params, x, context) - log_z)

    num = rows[0].shape[0]
    return jax.lax.map(one, (row_keys(key, num), *rows), batch_size=max(1, min(num, 1_000 // num_chains)))


def _anneal(model: Any, sampler: Any, num_levels: int, base: Params, params: Params, key: Key, begin: Configuration) -> Annealed:
    """The ends of chains, one for each configuration."""

    def log_f(configuration, level):
        return model.log_density_one(interpolated(base, params, level), configuration)

    def one(key, at):
        levels = jnp.asarray(sigmoid_levels(num_levels), jnp.result_type(float))
        return sampler(key, at, log_f, lambda _, level: model.kernel(interpolated(base, params, level)), levels)

    num = jax.tree.leaves(begin)[0].shape[0]
    return jax.vmap(one)(jax.random.split(key, num), begin)
