"""Stein variational gradient descent against hand-computed directions, autodiff and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import digamma, polygamma

from genmod.inference import RBF, InverseMultiquadric, KernelFunction, stein_direction, svgd
from genmod.inference.stein import _median_bandwidth
from genmod.transport import squared_distances

KERNELS = {
    RBF(1.7): lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / 1.7),
    InverseMultiquadric(0.8, -0.3): lambda x, y: (1.0 + jnp.sum((x - y) ** 2) / 0.8) ** -0.3,
}


def normal(x):
    return -0.5 * jnp.sum(x**2)


def skewed(x):
    return -jnp.sum(jnp.exp(x)) + 1.5 * jnp.sum(x)


def particles(num, dim, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((num, dim)))


def test_direction_by_hand(x64):
    """x = (-1, 2), N(0, 1), k = exp(-d^2)."""
    found = stein_direction(normal, jnp.array([[-1.0], [2.0]]), RBF(1.0))
    np.testing.assert_allclose(found[:, 0], [0.499506, -0.999568], atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_matrix_form(kernel, x64):
    """Against the sum over pairs of the definition, with the gradients of the kernel by autodiff."""
    x = particles(7, 3) + 5.0
    fn = KERNELS[kernel]
    found = stein_direction(skewed, x, kernel)
    scores = jax.vmap(jax.grad(skewed))(x)
    wanted = [np.mean([fn(x[j], x[i]) * scores[j] + jax.grad(fn)(x[j], x[i]) for j in range(7)], axis=0) for i in range(7)]
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    np.testing.assert_allclose(stein_direction(skewed, x, KernelFunction(fn)), wanted, rtol=1e-10)


@pytest.mark.parametrize("enable_x64", [False, True])
def test_median_bandwidth(enable_x64):
    """Of the distances of all pairs, the lower of two medians, whatever their number."""
    with jax.enable_x64(enable_x64):
        for num in (2, 9):
            x = particles(num, 4, num)
            pairs = np.asarray(squared_distances(x, x))[np.tril_indices(num, -1)]
            wanted = np.sort(pairs)[(len(pairs) - 1) // 2] / np.log(num)
            np.testing.assert_allclose(_median_bandwidth(squared_distances(x, x)), wanted, rtol=1e-5)
        assert _median_bandwidth(jnp.zeros((4, 4))) == 1 == _median_bandwidth(jnp.zeros((1, 1)))


def test_particles_come_to_rest_at_the_density():
    """exp(x) ~ Gamma(1.5): its mean is 1.5, the particles' is, too, where phi is zero (Stein's identity for x -> 1 under a
    constant kernel holds nearly under a wide one). One particle finds the mode."""
    start = 0.3 * particles(60, 2)
    fit = svgd(skewed, start, num_steps=1_500)
    assert fit.norms[-1] < 1e-3 * fit.norms[0]
    np.testing.assert_allclose(jnp.exp(fit.particles).mean(0), 1.5, atol=0.05)
    np.testing.assert_allclose(fit.particles.mean(0), digamma(1.5), atol=0.06)  # the mean of the log of a Gamma variable
    assert (np.abs(fit.particles.var(0) / polygamma(1, 1.5) - 1) < 0.25).all()
    one = svgd(skewed, start[:1], optimizer=optax.sgd(0.3), num_steps=200)
    np.testing.assert_allclose(one.particles, np.log(1.5), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: svgd(normal, jnp.ones(3)), ValueError, r"particles must have shape \(n, D\), got \(3,\)"),
        (lambda: svgd(normal, jnp.ones((3, 1), int)), TypeError, "particles must be floating point"),
        (lambda: svgd(jnp.cos, jnp.ones((3, 1))), ValueError, r"one number for one position, got shape \(1,\)"),
        (lambda: svgd(normal, jnp.ones((3, 1)), kernel=normal), TypeError, r"or KernelFunction\(fn\) for a function"),
        (lambda: RBF(0.0), ValueError, "bandwidth must be > 0"),
        (lambda: InverseMultiquadric(power=-1.0), ValueError, r"power must be in \(-1, 0\), got -1.0"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
