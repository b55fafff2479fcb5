"""Densities integrate to one and sample what they say; Distrax and genmod read each other's bijectors."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import MLP8

import genmod as gm
from genmod import bijectors as bj
from genmod.densities import (
    FromDistribution,
    FullNormal,
    GaussianMixture,
    Laplace,
    Normal,
    StudentT,
    Uniform,
    as_density,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
LAPLACE_PAIR = distrax.Independent(distrax.Laplace(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])), 1)

# A density of the plane, the half width of a box that holds all but 1e-4 of it, and the mean and variance of a coordinate.
DENSITIES = {
    "normal": (Normal((2,)), 6.0),
    "laplace": (Laplace((2,)), 14.0),
    "uniform": (Uniform((2,), -1.0, 2.0), 3.0),
    "student_t": (StudentT((2,), df=9.0), 25.0),
    "full_normal": (FullNormal((2,)), 12.0),
    "gaussian_mixture": (GaussianMixture((2,), 3), 10.0),
    "from_distribution": (as_density(LAPLACE_PAIR, (2,)), 28.0),
}
by_name = pytest.mark.parametrize("name", DENSITIES)


def prepared(name, key):
    density, width = DENSITIES[name]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + np.asarray(0.4 * rng.standard_normal(p.shape), p.dtype), density.init(key))
    return density, params, width


@by_name
def test_integrates_to_one(name, key):
    density, params, width = prepared(name, key)
    num = 1_001
    line = -width + (jnp.arange(num) + 0.5) * (2 * width / num)
    grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    mass = jnp.exp(jax.jit(jax.vmap(density.log_prob, (None, 0)))(params, grid)).sum() * (2 * width / num) ** 2
    # Midpoints: smooth densities are exact; a kink or an edge costs the order of one cell in `num`.
    np.testing.assert_allclose(mass, 1.0, atol=2e-3)


@by_name
def test_samples_follow_the_density(name, key):
    """E[log p] by samples and by quadrature, and the mean of each coordinate."""
    density, params, width = prepared(name, key)
    x = density.sample(params, key, (20_000,))
    assert x.shape == (20_000, 2) and x.dtype == jnp.float32
    log_prob = jax.jit(jax.vmap(density.log_prob, (None, 0)))
    num = 801
    line = -width + (jnp.arange(num) + 0.5) * (2 * width / num)
    grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    log_p = log_prob(params, grid)
    p = np.asarray(jax.nn.softmax(log_p), np.float64)
    seen = np.concatenate([np.asarray(x), np.asarray(log_prob(params, x))[:, None]], 1)
    wanted = p @ np.concatenate([np.asarray(grid), np.where(p > 0, log_p, 0)[:, None]], 1)
    error = np.abs(seen.mean(0) - wanted)
    assert (error < 4.5 * seen.std(0) / np.sqrt(len(x)) + 4e-3).all()  # 4.5 sigma, and the quadrature's error


def test_distrax_is_the_oracle(key):
    z = jnp.array([0.3, -1.7])
    oracles = {
        Normal((2,)): distrax.Normal(0.0, 1.0),
        Laplace((2,)): distrax.Laplace(0.0, 1.0),
        Uniform((2,), -2.0, 1.0): distrax.Uniform(-2.0, 1.0),
    }
    for density, oracle in oracles.items():
        np.testing.assert_allclose(density.log_prob({}, z), oracle.log_prob(z).sum(), rtol=1e-6)
    student = jax.scipy.stats.t.logpdf(z, 5.0).sum()
    np.testing.assert_allclose(StudentT((2,)).log_prob({}, z), student, rtol=1e-6)
    params = {
        "mean": jnp.array([1.0, 2.0]),
        "lower": jnp.array([[0.0, 9.0], [0.5, 0.0]]),
        "log_scale": jnp.log(jnp.array([2.0, 3.0])),
    }
    factor = np.array([[2.0, 0.0], [0.5, 3.0]])
    wanted = jax.scipy.stats.multivariate_normal.logpdf(z, params["mean"], jnp.asarray(factor @ factor.T))
    np.testing.assert_allclose(FullNormal((2,)).log_prob(params, z), wanted, rtol=1e-5)


def test_outside_a_uniform_is_minus_infinity():
    assert Uniform((2,)).log_prob({}, jnp.array([0.5, 1.5])) == -jnp.inf


def test_precision_is_that_of_the_event(key, x64):
    for density, _ in DENSITIES.values():
        for dtype in (jnp.float32, jnp.float64):
            params = jax.eval_shape(functools.partial(density.init, dtype=dtype), key)
            assert jax.eval_shape(density.log_prob, params, jnp.full(2, 0.5, dtype)).dtype == dtype
            sample = functools.partial(density.sample, shape=(3,), dtype=dtype)
            assert jax.eval_shape(sample, params, key).dtype == dtype


def test_scalar_and_image_events(key):
    for shape in ((), (2, 3)):
        z = jnp.full(shape, 0.5)
        np.testing.assert_allclose(Normal(shape).log_prob({}, z), z.size * jax.scipy.stats.norm.logpdf(0.5), rtol=1e-6)
        assert Normal(shape).sample({}, key, (4,)).shape == (4, *shape)


def test_equal_distributions_are_equal_descriptions():
    again = distrax.Independent(distrax.Laplace(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])), 1)
    other = distrax.Independent(distrax.Laplace(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.5])), 1)
    one = as_density(LAPLACE_PAIR, (2,))
    assert isinstance(one, FromDistribution)
    assert one == as_density(again, (2,)) and hash(one) == hash(as_density(again, (2,)))
    assert one != as_density(other, (2,))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: as_density("normal", (2,)), TypeError, "must be a gm.densities.Density or a distrax.Distribution, got str"),
        (lambda: as_density(Normal((3,)), (2,)), ValueError, r"event shape \(3,\), the flow \(2,\)"),
        (lambda: as_density(distrax.Normal(jnp.zeros(2), jnp.ones(2)), (2,)), ValueError, "batch shape"),
        (lambda: Uniform((2,), 1.0, 1.0), ValueError, "low < high"),
        (lambda: StudentT((2,), 0.0), ValueError, "df must be > 0"),
        (lambda: FullNormal((2, 2)), ValueError, "law of vectors"),
        (lambda: GaussianMixture((2,), 0), ValueError, "num_components"),
        (lambda: gm.from_distrax(bj.Tanh()), TypeError, "must be a distrax.Bijector, got Tanh"),
    ],
)
def test_refuses(make, error, match):
    with pytest.raises(error, match=match):
        make()


# --- bijectors, both ways --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_shape", [None, (3,)])
def test_ours_inside_distrax_transformed(context_shape, key):
    bijector = bj.Chain((bj.Coupling(bj.Affine(), MLP8, 2, context_shape), bj.LULinear((1, 3, 0, 2))))
    x = jax.random.normal(key, (6, 4))
    context = None if context_shape is None else jnp.array([0.3, -1.0, 2.0])
    params = jax.jit(bijector.init)(key, x, None if context is None else jnp.broadcast_to(context, (6, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + np.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), params)
    base = distrax.MultivariateNormalDiag(jnp.zeros(4), jnp.ones(4))
    flow = gm.models.Flow(bijector, Normal((4,)))
    with jax.numpy_rank_promotion("allow"):  # Distrax broadcasts
        transformed = distrax.Transformed(base, gm.as_distrax(bijector, params, context))
        theirs = transformed.log_prob(x)
        sample, sample_log_prob = transformed.sample_and_log_prob(seed=key, sample_shape=(5,))
    assert transformed.event_shape == (4,)
    np.testing.assert_allclose(flow.log_prob({"bijector": params}, x, context), theirs, rtol=1e-5, atol=1e-5)
    ours = flow.log_prob({"bijector": params}, sample, context)
    np.testing.assert_allclose(ours, sample_log_prob, rtol=1e-4, atol=1e-4)


def test_as_distrax_wants_its_context(key):
    with pytest.raises(ValueError, match="conditional"):
        gm.as_distrax(bj.Planar((2,)), {})


def test_theirs_inside_our_flow(key):
    theirs = distrax.Chain([distrax.ScalarAffine(shift=2.0, scale=3.0), distrax.Tanh()])
    flow = gm.models.Flow(gm.from_distrax(theirs), Normal((2,)))
    params = flow.init(key, jnp.zeros((1, 2)))
    x = jnp.array([[2.5, 0.1], [1.0, 4.0]])
    with jax.numpy_rank_promotion("allow"):
        oracle = distrax.Transformed(distrax.Independent(distrax.Normal(jnp.zeros(2), jnp.ones(2)), 1), distrax.Block(theirs, 1))
        np.testing.assert_allclose(flow.log_prob(params, x), oracle.log_prob(x), rtol=1e-5)
    assert gm.from_distrax(theirs) == gm.from_distrax(distrax.Chain([distrax.ScalarAffine(shift=2.0, scale=3.0), distrax.Tanh()]))


def test_ours_to_distrax_and_back(key):
    ours = bj.LULinear((1, 2, 0))
    x = jax.random.normal(key, (3,))
    params = jax.tree.map(lambda p: p + 0.2, ours.init(key, x[None]))
    through = gm.as_distrax(ours, params)
    for one, other in (
        (through.forward_and_log_det, ours.forward_and_log_det),
        (through.inverse_and_log_det, ours.inverse_and_log_det),
    ):
        for a, b in zip(one(x), functools.partial(other, params)(x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(ValueError, match="at least 1 axes"):
        gm.from_distrax(distrax.Block(distrax.Tanh(), 1)).forward({}, jnp.array(0.5))
