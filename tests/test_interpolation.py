"""Ways between latents."""

import jax.numpy as jnp
import numpy as np
import pytest

from genmod.densities import linear_interpolation, spherical_interpolation

T = np.linspace(0, 1, 5).astype(np.float32)


def test_the_linear_way():
    z_0, z_1 = np.ones((2, 3), np.float32), np.full((2, 3), 5.0, np.float32)
    found = linear_interpolation(z_0, z_1, T)
    np.testing.assert_allclose(found, np.broadcast_to(1 + 4 * T[:, None, None], (5, 2, 3)))


def test_the_spherical_way():
    root = np.sqrt(0.5)
    found = spherical_interpolation(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]), jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(found, [[1, 0], [root, 2 * root], [0, 2]], atol=1e-6)
    z = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    z /= np.sqrt((z**2).sum((1, 2), keepdims=True))
    way = np.asarray(spherical_interpolation(z[0], z[1], T), np.float64)
    np.testing.assert_allclose((way**2).sum((1, 2)), 1.0, rtol=1e-5)
    cosines = (way[1:] * way[:-1]).sum((1, 2))
    np.testing.assert_allclose(np.arccos(cosines), np.arccos((z[0] * z[1]).sum()) / 4, rtol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 1.0 + 1e-6, 3.0, -1.0, 0.0])
def test_where_there_is_no_angle_the_way_is_straight(factor):
    z = jnp.array([0.3, -2.0, 1.0])
    np.testing.assert_allclose(spherical_interpolation(z, factor * z, T), linear_interpolation(z, factor * z, T), atol=1e-5)


def test_half_precision_goes_along_the_sphere():
    z = jnp.array([[1.0, 0.0], [0.0, 1.0]], jnp.bfloat16)
    found = spherical_interpolation(*z, jnp.array([0.5]))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(float)[0], np.sqrt(0.5), rtol=2**-8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"^z_0 and z_1 must have one shape, got \(2,\) and \(3,\)$"):
        linear_interpolation(jnp.ones(2), jnp.ones(3), T)
    with pytest.raises(ValueError, match=r"^t must have shape \(num,\), got \(\)$"):
        spherical_interpolation(jnp.ones(2), jnp.ones(2), 0.5)
