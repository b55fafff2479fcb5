"""The leapfrog: reversible, of volume one and second order; the chain itself is among the kernels of `test_kernels.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.samplers import hmc, leapfrog, run
from genmod.samplers.hamiltonian import HMCState

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(0)
MASS = jnp.array([0.5, 2.0])


def log_prob(x):
    return -(jnp.cosh(x[0] - 0.3) + 0.5 * x[1] ** 2 + 0.2 * x[0] * x[1] + 0.1 * jnp.sin(x[1]))


def move(phase, e, num):
    x, v = phase
    state, v = leapfrog(log_prob, HMCState(x, *jax.value_and_grad(log_prob)(x)), v, e, num, MASS)
    return state.position, v


def energy(phase):
    return 0.5 * jnp.sum(MASS * phase[1] ** 2) - log_prob(phase[0])


def test_the_leapfrog_is_reversible_and_keeps_volume(x64):
    start = jnp.array([0.7, -1.1]), jnp.array([0.4, 0.9])
    x, v = jax.jit(move, static_argnums=2)(start, 0.3, 7)
    back = jax.jit(move, static_argnums=2)((x, -v), 0.3, 7)
    np.testing.assert_allclose([back[0], -back[1]], start, atol=1e-12)
    assert np.abs(x - start[0]).max() > 0.5
    jacobian = jax.jit(jax.jacfwd(lambda p: jnp.concatenate(move((p[:2], p[2:]), 0.3, 7))))(jnp.concatenate(start))
    np.testing.assert_allclose(np.linalg.det(jacobian), 1.0, atol=1e-12)


def test_the_leapfrog_is_of_second_order(x64):
    """The error of the energy after a time of 2.4 falls by four where the step is halved."""
    start = jnp.array([0.7, -1.1]), jnp.array([0.4, 0.9])
    errors = [float(energy(jax.jit(move, static_argnums=2)(start, 2.4 / n, n)) - energy(start)) for n in (40, 80)]
    np.testing.assert_allclose(errors[0] / errors[1], 4.0, rtol=0.05)


def test_energies_and_divergences():
    """What a step says is the difference of H; a step far too long diverges and is rejected; masses are units."""
    kernel = hmc(log_prob, 0.4, 3, MASS)
    trace = run(KEY, kernel, kernel.init(jnp.zeros(2)), num_steps=200)
    np.testing.assert_allclose(trace.infos.acceptance_rate, jnp.exp(jnp.minimum(-trace.infos.energy_error, 0)), rtol=1e-5)
    assert not trace.infos.is_divergent.any() and 0.5 < trace.infos.is_accepted.mean() < 1
    wild = hmc(log_prob, 50.0, 20)
    trace = run(KEY, wild, wild.init(jnp.ones(2)), num_steps=20)
    assert trace.infos.is_divergent.all() and (trace.positions == 1).all() and (trace.infos.acceptance_rate == 0).all()

    def scaled(x):  # x = y s of an inverse mass s^2 moves as y of mass one
        return -0.5 * jnp.sum((x / jnp.array([3.0, 0.2])) ** 2)

    wide, unit = hmc(scaled, 0.5, 5, jnp.array([9.0, 0.04])), hmc(lambda y: -0.5 * jnp.sum(y**2), 0.5, 5)
    found = run(KEY, wide, wide.init(jnp.array([3.0, 0.2])), num_steps=5).positions
    wanted = run(KEY, unit, unit.init(jnp.ones(2)), num_steps=5).positions
    np.testing.assert_allclose(found / np.array([[3.0, 0.2]]), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: hmc(log_prob, 0.0, 3), ValueError, "step_size must be > 0 and finite, got 0.0"),
        (lambda: hmc(log_prob, 0.1, 0), ValueError, "num_integration_steps must be an integer >= 1, got 0"),
        (lambda: hmc(log_prob, 0.1, 3, jnp.array([1.0, -1.0])), ValueError, "inverse_mass must be > 0 and finite"),
        (
            lambda: hmc(log_prob, 0.1, 3, jnp.ones(3)).init(jnp.zeros(2)),
            ValueError,
            r"inverse_mass must have the shapes of the position, \(2,\), got \(3,\)",
        ),
        (lambda: hmc(log_prob, 0.1, 3).init(jnp.zeros(2, int)), TypeError, "position must be floating point, got int32"),
    ],
)
def test_hmc_refuses_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
