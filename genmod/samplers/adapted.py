"""BlackJAX's kernels, adapted and run in one call; and its tempering. `run` drives any of its kernels as they are.

    import blackjax

    trace = adapted_chains(key, log_prob_fn, starts, num_steps=1_000)                                       # NUTS
    trace = adapted_chains(key, log_prob_fn, starts, blackjax.hmc, num_steps=1_000, num_integration_steps=8)
    print(chain_report(trace.positions))

`starts` are overdispersed, one for each chain: draws of the prior, or of a flow, `flow.sample(params, key, num_chains)`. BlackJAX
(arXiv:2402.10797) is optional; where it is missing, everything here raises ImportError, and `hmc` and `mala` are ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_function
from genmod.core.keys import check_key
from genmod.core.types import Array, Key
from genmod.samplers.base import Position, real_position, scalar_fn
from genmod.samplers.driver import Trace, run
from genmod.samplers.resampling import systematic_resampling


class TemperedPopulation(NamedTuple):
    """The end of `adaptive_tempered_smc` or `ensemble_tempered`.

    Attributes:
      positions: with a leading axis of N. log_weights: of the particles, (N,), normalised.
      log_ratio: the estimate of log Z, the integral of prior times likelihood, where the prior is normalised.
      num_levels: the levels that were chosen. level: the last; 1 unless their number ran out.
    """

    positions: Position
    log_weights: Array
    log_ratio: Array
    num_levels: Array
    level: Array


def window_adapted(
    key: Key,
    log_prob_fn: Callable[[Position], Array],
    position: Position,
    algorithm: Any = None,
    *,
    num_steps: int = 1_000,
    **options: Any,
) -> tuple[Any, Any]:
    """(a BlackJAX kernel, its state after the adaptation): step size and masses by the windows of Stan. For ONE chain; traceable.

        kernel, state = window_adapted(key, log_prob_fn, x)
        trace = run(key_2, kernel, state, num_steps=1_000)

    Args:
      log_prob_fn: log p of one position, up to a constant; differentiable. position: where to begin, floating point.
      algorithm: of BlackJAX's HMC family, such as `blackjax.hmc`; None: `blackjax.nuts`.
      num_steps: of the adaptation.
      options: of `blackjax.window_adaptation`, such as target_acceptance_rate=0.9, and of the algorithm, such as
        num_integration_steps=8 of HMC.

    Raises ImportError without BlackJAX, TypeError or ValueError for a position, count or function that does not fit.
    """
    library = _blackjax()
    algorithm = library.nuts if algorithm is None else algorithm
    check_count(num_steps=num_steps)
    log_prob_fn = scalar_fn("log_prob_fn", log_prob_fn)
    warmup = library.window_adaptation(algorithm, log_prob_fn, **options)
    (state, adapted), _ = warmup.run(check_key(key), real_position(position), num_steps=num_steps)
    return algorithm(log_prob_fn, **adapted), state


def adapted_chains(
    key: Key,
    log_prob_fn: Callable[[Position], Array],
    positions: Position,
    algorithm: Any = None,
    *,
    num_steps: int,
    num_adaptation_steps: int = 1_000,
    thin: int = 1,
    **options: Any,
) -> Trace:
    """Chains of NUTS or HMC from given starts, each adapted by itself before. Compiled at every call.

    Args:
      log_prob_fn, algorithm, options: as in `window_adapted`.
      positions: where the chains begin, with a leading axis of chains.
      num_steps: of each chain after the adaptation, a multiple of `thin`, of which every `thin`-th is kept.
      num_adaptation_steps: before these.

    Returns a `Trace` whose positions and infos have axes (chains, kept steps), as `chain_report` takes them. Raises as
    `window_adapted` and `run`.
    """
    _blackjax()

    def chain(key, position):
        keys = jax.random.split(key)
        kernel, state = window_adapted(keys[0], log_prob_fn, position, algorithm, num_steps=num_adaptation_steps, **options)
        return run(keys[1], kernel, state, num_steps=num_steps, thin=thin)

    positions = real_position(positions)
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    return jax.jit(jax.vmap(chain))(jax.random.split(check_key(key), num_chains), positions)


def adaptive_tempered_smc(
    key: Key,
    log_prior_fn: Callable[[Position], Array],
    log_likelihood_fn: Callable[[Position], Array],
    positions: Position,
    kernel_fn: Callable[[Callable[[Position], Array]], Any],
    *,
    num_steps: int = 10,
    target_size: float = 0.5,
    max_levels: int = 1_000,
) -> TemperedPopulation:
    """Sequential Monte Carlo of BlackJAX, from the prior to prior times likelihood. Compiled at every call.

    It chooses its levels; `sequential_monte_carlo`, which is ours, takes those that are given.

    Args:
      log_prior_fn, log_likelihood_fn: of one position, in nats.
      positions: exact draws of the prior, with a leading axis of N.
      kernel_fn: log_prob_fn -> a kernel that leaves it invariant, of BlackJAX or ours: `lambda f: hmc(f, 0.1, 5)`.
      num_steps: kernel steps at each level.
      target_size: the share of N to which a level lowers the effective sample size. max_levels: at most so many.

    Returns a `TemperedPopulation`. Raises ImportError without BlackJAX, ValueError for counts below 1 and a share outside of
    (0, 1), TypeError for what is no function.
    """
    check_count(num_steps=num_steps, max_levels=max_levels)
    check_function(kernel_fn=kernel_fn)
    if not 0 < target_size < 1:
        raise ValueError(f"target_size must be a share of the particles in (0, 1), got {target_size}")
    sampler = _blackjax().adaptive_tempered_smc(
        scalar_fn("log_prior_fn", log_prior_fn),
        scalar_fn("log_likelihood_fn", log_likelihood_fn),
        lambda key, state, log_prob_fn: kernel_fn(log_prob_fn).step(key, state),
        lambda position, log_prob_fn: kernel_fn(log_prob_fn).init(position),
        {},
        lambda key, weights, num: systematic_resampling(key, jnp.log(weights), num),
        target_size,
        num_mcmc_steps=num_steps,
    )

    def level(carry):
        key, (particles, weights, at), log_ratio, num = carry
        keys = jax.random.split(key)
        state, info = sampler.step(keys[1], type(begin)(particles, weights, at))
        return keys[0], state, log_ratio + info.log_likelihood_increment, num + 1

    begin = sampler.init(real_position(positions))
    particles, weights, at = begin
    begin = type(begin)(particles, weights, jnp.asarray(at, weights.dtype))
    first = check_key(key), begin, jnp.zeros((), weights.dtype), jnp.zeros((), int)
    loop = jax.jit(lambda first: jax.lax.while_loop(lambda carry: (carry[1][2] < 1) & (carry[3] < max_levels), level, first))
    _, (particles, weights, at), log_ratio, num = loop(first)
    return TemperedPopulation(particles, jnp.log(weights), log_ratio, num, at)


def _blackjax() -> Any:
    try:
        import blackjax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "this sampler wants BlackJAX, which is not installed: pip install blackjax. hmc, mala and sequential_monte_carlo of "
            "genmod.samplers do without it; their step sizes and levels are yours to choose"
        ) from error
    return blackjax
