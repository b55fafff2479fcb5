"""Layers of units against sums, quadrature and autodiff."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.densities import BernoulliUnits, GaussianUnits, SoftmaxUnits

pytestmark = pytest.mark.usefixtures("quick_compile")
LAYERS = {"bernoulli": BernoulliUnits((3,)), "softmax": SoftmaxUnits((2,), 3), "gaussian": GaussianUnits((2,))}
by_name = pytest.mark.parametrize("name", LAYERS)


def case(name):
    """A layer, its parameters and an input, in float64."""
    layer, rng = LAYERS[name], np.random.default_rng(0)
    params = {key: jnp.asarray(0.5 * rng.standard_normal(a.shape)) for key, a in layer.neutral().items()}
    return layer, params, jnp.asarray(rng.standard_normal(layer.num_features))


def nodes(layer):
    """All events and their weights in a sum: states, or a grid of an odd number of points."""
    if isinstance(layer, GaussianUnits):
        grid = np.linspace(-15, 15, 601)
        return np.array(list(itertools.product(grid, repeat=2))), (grid[1] - grid[0]) ** 2
    return np.array(list(itertools.product(range(layer.event.num_levels), repeat=layer.shape[0])), np.uint8), 1.0


@by_name
def test_the_partition_is_the_sum_over_all_events(name, x64):
    layer, params, inputs = case(name)
    x, each = nodes(layer)
    features = jax.vmap(lambda x: layer.features(params, x))(x)
    log_mass = jax.vmap(lambda x: layer.log_base(params, x))(x) + features @ inputs
    log_partition = layer.log_partition(params, inputs)
    np.testing.assert_allclose(log_partition, jax.nn.logsumexp(log_mass) + np.log(each), rtol=1e-9)
    mass = np.exp(log_mass - log_partition) * each
    one_hot = np.eye(3)[x] if name == "softmax" else x
    np.testing.assert_allclose(layer.mean(params, inputs), np.tensordot(mass, one_hot, 1), rtol=1e-9)
    np.testing.assert_allclose(jax.grad(layer.log_partition, 1)(params, inputs), mass @ features, rtol=1e-9)


@by_name
def test_draws_have_their_mean_and_variance(name, key):
    layer, params, inputs = case(name)
    x = np.asarray(jax.vmap(lambda key: layer.sample(params, key, inputs))(jax.random.split(key, 20_000)))
    assert x.shape == (20_000, *layer.shape) and x.dtype == layer.event.dtype
    drawn = np.eye(3)[x] if name == "softmax" else x.astype(float)
    mean = np.asarray(layer.mean(params, inputs))
    variance = np.exp(2 * np.asarray(params["log_scale"])) if name == "gaussian" else mean * (1 - mean)
    assert (np.abs(drawn.mean(0) - mean) < 4.5 * np.sqrt(variance / 20_000)).all()
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.05)


@by_name
def test_fitted_units_have_the_marginals_of_the_data(name):
    layer, rng = LAYERS[name], np.random.default_rng(1)
    x = 2.0 + 3.0 * rng.standard_normal((5_000, 2)) if name == "gaussian" else rng.binomial(2, 0.3, (5_000, *layer.shape))
    x = (x > 0).astype(np.uint8) if name == "bernoulli" else x.astype(np.float32 if name == "gaussian" else np.uint8)
    params = layer.fitted(jnp.asarray(x))
    mean = layer.mean(params, jnp.zeros(layer.num_features))
    np.testing.assert_allclose(mean, (np.eye(3)[x] if name == "softmax" else x).mean(0), atol=2e-3)
    if name == "gaussian":
        np.testing.assert_allclose(np.exp(params["log_scale"]), x.std(0), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fitted_scales_are_those_of_the_data_in_any_unit(dtype, x64):
    """Narrow beside its mean, wide, and two that never vary: s is a share of their value, or of 1."""
    noise = np.random.default_rng(1).standard_normal((2_000, 4))
    x = (np.array([1e3, 10.0, -1e4, 0.0]) + np.array([1e-2, 1e-3, 1e3, 1e-4]) * noise).astype(dtype)
    x = np.concatenate([x, np.full((2_000, 1), -700.1), np.zeros((2_000, 1))], 1).astype(dtype)
    params = GaussianUnits((6,), 1e-4).fitted(jnp.asarray(x))
    exact = x.astype(np.float64)
    wanted = np.concatenate([exact.std(0)[:4], [0.07001, 1e-4]])
    np.testing.assert_allclose(np.exp(params["log_scale"]), wanted, rtol=0.01 if dtype == np.float32 else 1e-9)
    rounding = 4 * np.finfo(dtype).eps * np.abs(exact).max(0)
    assert (np.abs(params["bias"] - np.array([math.fsum(column) / 2_000 for column in exact.T])) <= rounding).all()


def test_standard_parameters_are_those_of_standardised_events(x64):
    layer, params, inputs = case("gaussian")
    m, s = jnp.array([3.0, -700.0]), jnp.exp(params["log_scale"])
    standard = layer.standard(params, m)
    np.testing.assert_allclose((layer.mean(params, inputs) - m) / s, layer.mean(standard, inputs / s), rtol=1e-12)
    back = layer.unstandard(standard, m)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), back, params)


def test_a_scale_below_the_rounding_of_the_mean_is_raised_and_has_a_gradient():
    layer, m = LAYERS["gaussian"], jnp.array([1e4, 0.0])

    def log_scale(start):
        return layer.unstandard({"bias": jnp.zeros(2), "log_scale": start}, m)["log_scale"]

    low = log_scale(jnp.array([-30.0, -30.0]))
    np.testing.assert_allclose(low, [np.log(4e4 * np.finfo(np.float32).eps), -30.0], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda a: log_scale(a).sum())(low), 1.0)


def test_units_that_never_vary_stay_finite():
    zeros = jnp.zeros((10, 3), jnp.uint8)
    assert np.isfinite(BernoulliUnits((3,)).fitted(zeros)["bias"]).all()
    assert np.isfinite(SoftmaxUnits((3,), 4).fitted(zeros)["bias"]).all()
    assert np.isfinite(GaussianUnits((3,)).fitted(zeros.astype(jnp.float32))["log_scale"]).all()
    grads = jax.grad(lambda x: GaussianUnits((3,)).fitted(x)["log_scale"].sum())(jnp.full((10, 3), 2.0))
    np.testing.assert_allclose(grads.sum(0), 0.5)  # log of a share of the value


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: BernoulliUnits(3), TypeError, r"^shape must be a tuple of integers, got 3; write \(3,\)"),
        (lambda: SoftmaxUnits((3,), 1), ValueError, "^num_levels must be at least 2, got 1"),
        (lambda: GaussianUnits((3,), 0.0), ValueError, "^least_scale must be > 0 and finite, got 0.0"),
    ],
)
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
