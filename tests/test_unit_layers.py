"""Layers of units against sums, quadrature and autodiff."""

import itertools

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


def test_units_that_never_vary_stay_finite():
    zeros = jnp.zeros((10, 3), jnp.uint8)
    assert np.isfinite(BernoulliUnits((3,)).fitted(zeros)["bias"]).all()
    assert np.isfinite(SoftmaxUnits((3,), 4).fitted(zeros)["bias"]).all()
    assert np.isfinite(GaussianUnits((3,)).fitted(zeros.astype(jnp.float32))["log_scale"]).all()


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
