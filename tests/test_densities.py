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
    FromDistrax,
    FromFunctions,
    FullNormal,
    GaussianMixture,
    Laplace,
    Normal,
    Product,
    StudentT,
    Uniform,
    VonMises,
    as_distribution,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
LAPLACE_PAIR = distrax.Independent(distrax.Laplace(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])), 1)

# A density of the plane, the half width of a box that holds all but 1e-4 of it, and the mean and variance of a coordinate.
DENSITIES = {
    "normal": (Normal((2,)), 6.0),
    "laplace": (Laplace((2,)), 14.0),
    "uniform": (Uniform((2,), -1.0, 2.0), 3.0),
    "student_t": (StudentT((2,), df=9.0), 25.0),
    "product": (Product((Normal((), 0.5), Uniform((), -2.0, 1.0))), 4.0),
    "full_normal": (FullNormal((2,)), 12.0),
    "gaussian_mixture": (GaussianMixture((2,), 3), 10.0),
    "von_mises": (VonMises((2,)), np.pi),
    "from_distribution": (as_distribution(LAPLACE_PAIR, (2,)), 28.0),
}
by_name = pytest.mark.parametrize("name", DENSITIES)


def prepared(name, key):
    density, width = DENSITIES[name]
    rng = np.random.default_rng(0)
    start = density.init(key, np.zeros((1, 2), np.float32))
    params = jax.tree.map(lambda p: p + np.asarray(0.4 * rng.standard_normal(p.shape), p.dtype), start)
    return density, params, width


@by_name
def test_integrates_to_one(name, key):
    density, params, width = prepared(name, key)
    num = 1_001
    line = -width + (jnp.arange(num) + 0.5) * (2 * width / num)
    grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    mass = jnp.exp(density.log_prob(params, grid)).sum() * (2 * width / num) ** 2
    # Midpoints: smooth densities are exact; a kink or an edge costs the order of one cell in `num`.
    np.testing.assert_allclose(mass, 1.0, atol=2e-3)


@by_name
def test_samples_follow_the_density(name, key):
    """E[log p] by samples and by quadrature, and the mean of each coordinate."""
    density, params, width = prepared(name, key)
    x = density.sample(params, key, (20_000,))
    assert x.shape == (20_000, 2) and x.dtype == jnp.float32
    num = 801
    line = -width + (jnp.arange(num) + 0.5) * (2 * width / num)
    grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    log_p = density.log_prob(params, grid)
    p = np.asarray(jax.nn.softmax(log_p), np.float64)
    seen = np.concatenate([np.asarray(x), np.asarray(density.log_prob(params, x))[:, None]], 1)
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
    params = {"logits": jnp.array([0.3, -1.0]), "mean": jnp.array([[0.0, 1.0], [2.0, -1.0]]), "log_scale": jnp.full((2, 2), 0.2)}
    components = distrax.Independent(distrax.Normal(params["mean"], jnp.exp(params["log_scale"])), 1)
    mixture = distrax.MixtureSameFamily(distrax.Categorical(params["logits"]), components)
    with jax.numpy_rank_promotion("allow"):  # Distrax broadcasts
        np.testing.assert_allclose(GaussianMixture((2,), 2).log_prob(params, z), mixture.log_prob(z), rtol=1e-5)


def test_outside_a_uniform_is_minus_infinity():
    assert Uniform((2,)).log_prob({}, jnp.array([0.5, 1.5])) == -jnp.inf


def test_precision_is_that_of_the_event(key, x64):
    for density, _ in DENSITIES.values():
        for dtype in (jnp.float32, jnp.float64):
            x = jnp.full((2, 2), 0.5, dtype)
            params = jax.eval_shape(density.init, key, x)
            assert {p.dtype for p in jax.tree.leaves(params)} <= {jnp.dtype(dtype)}
            assert jax.eval_shape(density.log_prob, params, x).dtype == dtype
            if params:  # without parameters, draws have JAX's default precision
                assert jax.eval_shape(density.sample, params, key).dtype == dtype
            flow = gm.models.Flow(bj.ScalarAffine(), density)  # in a flow, that of the parameters of the bijector
            params = jax.eval_shape(flow.init, key, x)
            assert jax.eval_shape(flow.sample, params, key).dtype == jax.eval_shape(flow.log_prob, params, x).dtype == dtype


def test_scalar_and_image_events(key):
    for shape in ((), (2, 3)):
        z = jnp.full(shape, 0.5)
        np.testing.assert_allclose(Normal(shape).log_prob({}, z), z.size * jax.scipy.stats.norm.logpdf(0.5), rtol=1e-6)
        assert Normal(shape).sample({}, key, (4,)).shape == (4, *shape)


def test_equal_distributions_are_equal_descriptions():
    again = distrax.Independent(distrax.Laplace(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])), 1)
    other = distrax.Independent(distrax.Laplace(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.5])), 1)
    one = as_distribution(LAPLACE_PAIR, (2,))
    assert isinstance(one, FromDistrax)
    assert one == as_distribution(again, (2,)) and hash(one) == hash(as_distribution(again, (2,)))
    assert one != as_distribution(other, (2,))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: as_distribution("normal", (2,)),
            TypeError,
            "must be a Distribution .*, or a distrax.Distribution, got 'normal'",
        ),
        (lambda: as_distribution(Normal, (2,)), TypeError, "must be a Distribution .*, or a distrax.Distribution, got <class"),
        (lambda: gm.models.Flow(bj.Tanh(), None), TypeError, "must be a Distribution .*, or a distrax.Distribution, got None"),
        (lambda: Normal(3), TypeError, r"event_shape must be a tuple of integers, got 3; write \(3,\)"),
        (lambda: Normal((2,), -1.0), ValueError, "scale must be > 0"),
        (lambda: as_distribution(Normal((3,)), (2,)), ValueError, r"event shape \(3,\), the flow \(2,\)"),
        (lambda: as_distribution(distrax.Normal(jnp.zeros(2), jnp.ones(2)), (2,)), ValueError, "batch shape"),
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


def truncated(key):
    """x_0 ~ U(0, 1), x_1 ~ U(0, x_0): p = 1 / x_0 on the triangle."""
    one, two = jax.random.split(key)
    x = jax.random.uniform(one)
    return jnp.stack([x, x * jax.random.uniform(two)])


def truncated_log_prob(x):
    inside = (x[1] > 0) & (x[1] < x[0]) & (x[0] < 1)
    return jnp.where(inside, -jnp.log(jnp.where(inside, x[0], 1.0)), -jnp.inf)


def test_a_law_of_functions(key):
    law = FromFunctions((2,), truncated, truncated_log_prob)
    x = np.asarray(law.sample({}, key, (4_000,)))
    # E x_0 = 1/2, E x_1 = 1/4; standard deviations 0.289 and 0.220.
    np.testing.assert_allclose(x.mean(0), [0.5, 0.25], atol=4.5 * 0.29 / np.sqrt(4_000))
    np.testing.assert_allclose(law.log_prob({}, x), -np.log(x[:, 0]), rtol=1e-5, atol=1e-6)
    assert law.log_prob({}, jnp.array([0.5, 0.6])) == -jnp.inf and law.init(key, x) == {}
    assert law == FromFunctions((2,), truncated, truncated_log_prob) != FromFunctions((2,), truncated)
    assert law.likelihood is gm.Likelihood.EXACT and FromFunctions((2,), truncated).likelihood is gm.Likelihood.NONE
    for bad, match in (
        ((truncated, 3), "log_prob_fn must be a function, got 3"),
        (("x",), "sample_fn must be a function, got 'x'"),
    ):
        with pytest.raises(TypeError, match=match):
            FromFunctions((2,), *bad)
    with pytest.raises(ValueError, match=r"sample_fn must return one event of shape \(3,\), got \(2,\)"):
        FromFunctions((3,), truncated).sample({}, key)


def test_narrowed_normals():
    assert Normal((2,), 2.0).tempered(0.5) == Normal((2,), 1.0)
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="temperature must be > 0"):
            Normal((2,)).tempered(temperature)


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


PAIR = distrax.MultivariateNormalDiag(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: gm.models.Flow(distrax.Tanh(), PAIR),
        lambda: gm.models.Flow(bj.Chain((distrax.Tanh(),)), PAIR),
        lambda: gm.models.Flow(bj.Invert(distrax.Inverse(distrax.Tanh())), PAIR),
        lambda: gm.models.Flow(bj.Repeat(bj.Chain((distrax.Tanh(),)), 1), as_distribution(PAIR)),
    ],
    ids=["flow", "chain", "invert", "repeat"],
)
def test_theirs_wherever_ours_may_stand(make, key):
    """A law of Distrax and a bijector of Distrax, as they are."""
    flow = make()
    assert flow == make() and hash(flow) == hash(make()) and flow.base.event_shape == (2,)
    params = flow.init(key, jnp.zeros((1, 2)))
    assert jax.tree.leaves(params) == []
    x = jnp.array([[0.5, -0.1], [0.9, -0.99]])
    with jax.numpy_rank_promotion("allow"):
        oracle = distrax.Transformed(PAIR, distrax.Block(distrax.Tanh(), 1)).log_prob(x)
    np.testing.assert_allclose(flow.log_prob(params, x), oracle, rtol=1e-5)
    drawn = np.arctanh(np.asarray(flow.sample(params, key, 4_000), np.float64).clip(-1 + 1e-7, 1 - 1e-7))[:, 0]
    assert abs(np.median(drawn) - 1.0) < 4.5 * 1.2533 * 0.5 / np.sqrt(4_000)


def test_theirs_as_the_source_of_flow_matching(key):
    model = gm.flows.flow_matching((2,), base=PAIR, path=gm.transport.Linear(), hidden_sizes=(4,), standardize=False)
    assert model == gm.models.FlowMatching(model.cnf, PAIR, gm.transport.Linear())
    params = model.init(key, jnp.zeros((3, 2)))
    drawn = np.asarray(model.sample(params, key, 4_000))  # the field is zero at the start
    np.testing.assert_allclose(drawn.mean(0), [1.0, -1.0], atol=4.5 * 2.0 / np.sqrt(4_000))
    np.testing.assert_allclose(drawn.std(0), [0.5, 2.0], rtol=4.5 / np.sqrt(2 * 4_000))
    with pytest.raises(ValueError, match=r"goes from N\(0, 1\^2\) to the data, but the base is FromDistrax"):
        gm.models.FlowMatching(model.cnf, PAIR, gm.transport.OptimalTransport())


def test_a_base_of_theirs_in_every_kind_of_builder(key):
    def other():
        return distrax.Independent(distrax.Laplace(jnp.zeros(2), jnp.ones(2)), 1)

    for make in (gm.flows.affine, gm.flows.planar_flow, gm.flows.masked_autoregressive_flow, gm.flows.ffjord):
        flow = make((2,), 1, base=other())
        assert flow.base == as_distribution(other()) and flow.base.event_shape == (2,)
    image = gm.flows.glow((2, 2, 1), 1, base=distrax.MultivariateNormalDiag(jnp.zeros(4), jnp.ones(4)))
    assert isinstance(image.base, FromDistrax)
    with pytest.raises(ValueError, match=r"base has event shape \(2,\), the flow \(3,\)"):
        gm.flows.affine((3,), base=other())


def test_what_distrax_keeps_in_float64_stays_so(x64, key):
    """In a scan too, and after it has been used in float32."""
    theirs = distrax.ScalarAffine(shift=jnp.asarray(1.0), scale=jnp.asarray(-2.5))
    layers = bj.Repeat(theirs, 2)
    with jax.enable_x64(False):
        layers.forward_and_log_det(layers.init(key, jnp.zeros((1, 3))), jnp.zeros(3))
    x, log_det = layers.forward_and_log_det({}, jnp.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(x, 6.25 * np.array([0.1, 0.2, 0.3]) - 1.5, rtol=1e-14)
    np.testing.assert_allclose(log_det, 6 * np.log(2.5), rtol=1e-14)


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
