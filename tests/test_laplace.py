"""The mode of a log-density and the Gaussian there, held against closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy import stats

from genmod.inference import find_mode, laplace_approximation

MEAN = np.array([1.0, -2.0, 0.5])
FACTOR = np.array([[2.0, 0, 0], [-0.7, 0.5, 0], [0.3, 0.2, 1.5]])
LOG_Z = 3.25


def gaussian(x):
    """A Gaussian whose integral is exp(3.25)."""
    return LOG_Z + stats.multivariate_normal.logpdf(x, jnp.asarray(MEAN, x.dtype), jnp.asarray(FACTOR @ FACTOR.T, x.dtype))


def gamma(x, shape=7.0, rate=2.0):
    return jnp.sum((shape - 1) * jnp.log(x) - rate * x)


def rosenbrock(x):
    return -jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


@pytest.mark.parametrize("enable_x64", [False, True])
@pytest.mark.slow
def test_a_gaussian_is_its_own_approximation(enable_x64, key):
    with jax.enable_x64(enable_x64):
        found = laplace_approximation(gaussian, jnp.zeros(3))
        rtol = 1e-10 if enable_x64 else 1e-4  # the condition number is about 100
        assert found.converged
        np.testing.assert_allclose(found.mean, MEAN, rtol=rtol)
        np.testing.assert_allclose(found.factor, FACTOR, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(found.log_evidence, LOG_Z, rtol=rtol)
        x = found.distribution.sample(found.params, key, 5)
        # The distribution is the Gaussian itself.
        np.testing.assert_allclose(
            found.distribution.log_prob(found.params, x), jax.vmap(gaussian)(x) - LOG_Z, rtol=rtol, atol=rtol
        )


def test_evidence_of_a_gamma_density(x64):
    """Mode (a - 1) / b and -log p'' = (a - 1) / x^2: Stirling's formula for Gamma(a)."""
    a, b = 7.0, 2.0
    found = laplace_approximation(gamma, jnp.ones(2))
    mode = (a - 1) / b
    one = (a - 1) * math.log(mode) - b * mode + 0.5 * math.log(2 * math.pi * mode**2 / (a - 1))
    np.testing.assert_allclose(found.mean, mode, rtol=1e-12)
    np.testing.assert_allclose(found.log_evidence, 2 * one, rtol=1e-12)


def test_maximum_a_posteriori(x64):
    """y = theta x + noise of variance s^2 under N(0, 1 / l): sum xy / (sum x^2 + l s^2); and a curved valley."""
    rng = np.random.default_rng(0)
    x, variance, precision = rng.standard_normal(20), 0.3, 2.0
    y = 1.7 * x + 0.5 * rng.standard_normal(20)

    def log_prob(theta):
        return -0.5 * jnp.sum((y - theta * x) ** 2) / variance - 0.5 * precision * jnp.sum(theta**2)

    found = find_mode(log_prob, jnp.zeros(1))
    assert found.converged
    np.testing.assert_allclose(found.position, x @ y / (x @ x + precision * variance), rtol=1e-7)
    for optimizer in (None, optax.adam(0.02)):
        found = find_mode(rosenbrock, jnp.array([-1.2, 1.0]), optimizer=optimizer, num_steps=20_000)
        assert found.converged and found.num_steps < 20_000
        np.testing.assert_allclose(found.position, 1.0, atol=1e-4)
        np.testing.assert_allclose(found.log_prob, 0.0, atol=1e-8)


def test_it_can_be_traced():
    """Under vmap, and where there is no maximum, which is then NaN."""

    def curved(sign, x):
        return -sign * jnp.sum(x**2)

    found = jax.vmap(lambda sign: laplace_approximation(functools.partial(curved, sign), jnp.ones(2)))(jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(found.log_evidence[0], math.log(math.pi), rtol=1e-5)
    assert np.isnan(found.log_evidence[1]) and not found.converged[1]


@pytest.mark.parametrize(
    ("log_prob_fn", "start", "error", "message"),
    [
        (lambda x: -(x[0] ** 2), jnp.ones(2), ValueError, "strict maximum near start.*smallest eigenvalue is 0"),
        (lambda x: x[1] ** 2 - x[0] ** 2, jnp.zeros(2), ValueError, "smallest eigenvalue is -2"),
        (gaussian, jnp.zeros((1, 3)), ValueError, r"start must be a vector, \(D,\), got shape \(1, 3\)"),
        (gaussian, jnp.zeros(3, int), TypeError, "start must be floating point"),
        (jnp.cos, jnp.zeros(3), ValueError, r"one number for one position, got shape \(3,\)"),
        (3.0, jnp.zeros(3), TypeError, "log_prob_fn must be a function, got 3.0"),
    ],
)
def test_errors(log_prob_fn, start, error, message):
    with pytest.raises(error, match=message):
        laplace_approximation(log_prob_fn, start)
