"""Hamiltonian Monte Carlo: the position moves with a momentum that is drawn anew in every step (Neal 2011, arXiv:1206.1901).

    H(x, v) = -log p(x) + sum_i m_i v_i^2 / 2,    v ~ N(0, diag(1 / m)),    m the inverse masses

    leapfrog of size e:    v += e/2 grad log p(x);    x += e m v;    v += e/2 grad log p(x)

The leapfrog keeps volume and is reversed by -v, so accepting its end with probability min(1, exp(H - H')) leaves p invariant. On
N(0, s^2) it is stable for e sqrt(m) < 2 s; inverse masses near the variances of p make all coordinates alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_positive
from genmod.core.types import Array
from genmod.samplers.base import Kernel, Position, check_scalar, real_position, scalar_fn
from genmod.samplers.metropolis import accept, normal_like

# An energy error beyond which the leapfrog has diverged, as in Stan.
_DIVERGENT_NATS = 1_000.0


class HMCState(NamedTuple):
    """Where the chain is, log p there, and its gradient."""

    position: Position
    log_prob: Array
    score: Position


class HMCInfo(NamedTuple):
    """One step: how likely its end was to be accepted, whether it was, H at the end minus H at the start, and whether this
    difference is so large, or NaN, that the leapfrog has diverged."""

    acceptance_rate: Array
    is_accepted: Array
    energy_error: Array
    is_divergent: Array


def leapfrog(
    log_prob_fn: Callable[[Position], Array],
    state: HMCState,
    momentum: Position,
    step_size: ArrayLike,
    num_steps: int,
    inverse_mass: Position,
) -> tuple[HMCState, Position]:
    """(the state, the momentum) after `num_steps` leapfrog steps; the inverse masses, momentum and position have one form."""
    value_and_score = jax.value_and_grad(scalar_fn("log_prob_fn", log_prob_fn))

    def push(momentum, score):
        return jax.tree.map(lambda v, s: v + 0.5 * jnp.asarray(step_size, v.dtype) * s, momentum, score)

    def step(carry, _):
        state, momentum = carry
        momentum = push(momentum, state.score)
        position = jax.tree.map(
            lambda x, v, m: x + jnp.asarray(step_size, x.dtype) * m * v, state.position, momentum, inverse_mass
        )
        state = HMCState(position, *value_and_score(position))
        return (state, push(momentum, state.score)), None

    return jax.lax.scan(step, (state, momentum), length=num_steps)[0]


def hmc(
    log_prob_fn: Callable[[Position], Array],
    step_size: ArrayLike,
    num_integration_steps: int,
    inverse_mass: Position | None = None,
) -> Kernel:
    """The kernel of Hamiltonian Monte Carlo, which costs `num_integration_steps` gradients a step.

    Efficient where it accepts about 0.65 of the steps or more (Beskos et al. 2013, arXiv:1001.4460).

    Args:
      log_prob_fn: log p of one position, up to a constant.
      step_size: e of the leapfrog, one positive number. num_integration_steps: leapfrog steps.
      inverse_mass: positive numbers in the form of the position; None: ones.

    Raises ValueError or TypeError for a step size that is not one positive number, a count below 1 and masses that are not
    positive; `init` for a position that is not floating point or that has another form than the masses.
    """
    check_scalar(step_size=step_size)
    check_count(num_integration_steps=num_integration_steps)
    value_and_score = jax.value_and_grad(scalar_fn("log_prob_fn", log_prob_fn))
    for leaf in jax.tree.leaves(inverse_mass):
        check_positive(inverse_mass=leaf)

    def masses(position):
        if inverse_mass is None:
            return jax.tree.map(jnp.ones_like, position)
        given, wanted = jax.tree.map(np.shape, inverse_mass), jax.tree.map(np.shape, position)
        if given != wanted:
            raise ValueError(f"inverse_mass must have the shapes of the position, {wanted}, got {given}")
        return jax.tree.map(lambda m, x: jnp.asarray(m, x.dtype), inverse_mass, position)

    def init(position):
        position = real_position(position)
        masses(position)
        return HMCState(position, *value_and_score(position))

    def energy(state, momentum, mass):
        kinetic = jax.tree.map(lambda v, m: 0.5 * jnp.sum((m * v * v).astype(state.log_prob.dtype)), momentum, mass)
        return jax.tree.reduce(jnp.add, kinetic) - state.log_prob

    def step(key, state):
        keys = jax.random.split(key)
        mass = masses(state.position)
        momentum = jax.tree.map(lambda z, m: z / jnp.sqrt(m), normal_like(keys[0], state.position), mass)
        proposed, end = leapfrog(log_prob_fn, state, momentum, step_size, num_integration_steps, mass)
        error = energy(proposed, end, mass) - energy(state, momentum, mass)
        chosen, info = accept(keys[1], -error, proposed, state)
        return chosen, HMCInfo(*info, error, ~(jnp.abs(error) < _DIVERGENT_NATS))

    return Kernel(init, step)
