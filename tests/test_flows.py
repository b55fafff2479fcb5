"""Every flow builder: densities that integrate to one, samples that follow them, gradients that reach every parameter."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import AUTOENCODERS, DEQUANTIZERS, DIFFUSIONS, FLOWS, IMAGE_FLOWS, LATTICE_FLOWS, ONE_STEP

import genmod as gm
from genmod import bijectors as bj, flows
from genmod.core import distribution
from genmod.core.params import trainable_mask

pytestmark = pytest.mark.usefixtures("quick_compile")
by_name = pytest.mark.parametrize("name", FLOWS)
CONDITIONAL = [name for name in FLOWS if name != "affine"]
CONTINUOUS = {"ffjord", "flow_matching"}  # test_flow_matching.py has cheaper tests of the same
SLOW = {
    "neural_autoregressive_flow",
    "autoregressive_spline_flow",
    "glow_1d",
    "sylvester_flow_householder",
    "sylvester_flow_triangular",
    *CONTINUOUS,
}
by_name_continuous_slow = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in CONTINUOUS)) for n in FLOWS]
)
by_name_some_slow = pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FLOWS])


def data(dim, num=256):
    """Correlated, shifted, of unequal scales."""
    rng = np.random.default_rng(0)
    mixing = np.eye(dim) + 0.4 * np.tril(np.ones((dim, dim)), -1)
    return (rng.standard_normal((num, dim)) @ mixing.T * (0.5 + np.arange(dim)) + 1.0).astype(np.float32)


def perturbed(params, scale=0.3):
    """Trained parameters plus noise: at the start most flows are plain Gaussians."""
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda p: p + np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)
    return jax.tree.map(lambda new, old, trained: new if trained else old, moved, params, trainable_mask(params))


@functools.cache
def built(name, dim, context_shape=None):
    """(flow, perturbed parameters, data, contexts or None)."""
    flow = FLOWS[name]((dim,)) if context_shape is None else FLOWS[name]((dim,), context_shape=context_shape)
    x = data(dim)
    context = None if context_shape is None else np.linspace(-1, 1, len(x) * 2, dtype=np.float32).reshape(len(x), *context_shape)
    return flow, perturbed(flow.init(jax.random.key(0), x, context)), x, context


def grid(num, params, flow, key, context=None):
    """Cell centres over a box that holds the flow's own samples with a wide margin, and the volume of a cell."""
    sample = np.asarray(flow.sample(params, key, (4_000,), context))
    low, high = sample.min(0), sample.max(0)
    low, high = low - 0.6 * (high - low), high + 0.6 * (high - low)
    lines = [a + (np.arange(num) + 0.5) * (b - a) / num for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(lines)).astype(np.float32)
    return points, float(np.prod((high - low) / num))


def mass(log_prob, cell):
    return float(np.exp(np.asarray(log_prob, np.float64)).sum() * cell)


def test_every_builder_is_in_the_registry():
    builders = FLOWS | IMAGE_FLOWS | LATTICE_FLOWS | DEQUANTIZERS | DIFFUSIONS | ONE_STEP | AUTOENCODERS
    built_here = {getattr(make, "func", make) for make in builders.values()}
    public = {
        f
        for n, f in vars(flows).items()
        if not n.startswith("_")
        and getattr(f, "__module__", "").startswith("genmod.flows.")
        and not isinstance(f, type)
        and callable(f)
    }
    of_latents = {flows.interpolate, flows.resample, flows.multi_scale}  # what is done with a flow
    of_autoencoders = {flows.amortized_posterior, flows.full_gaussian_posterior}  # test_autoencoders.py
    of_autoencoders |= {flows.iaf_layer, flows.coupling_layer}
    of_a_teacher = {flows.consistency_distillation}  # test_one_step.py
    assert public == built_here | of_latents | of_autoencoders | of_a_teacher


# --- densities ---------------------------------------------------------------------------------------------------------------


@by_name_continuous_slow
@pytest.mark.slow
def test_integrates_to_one_on_the_line(name, key):
    flow, params, _, _ = built(name, 1)
    points, cell = grid(20_000, params, flow, key)
    np.testing.assert_allclose(mass(flow.log_prob(params, points), cell), 1.0, atol=1e-3)


@by_name_some_slow
def test_integrates_to_one_in_the_plane(name, key):
    flow, params, _, _ = built(name, 2)
    points, cell = grid(1_500, params, flow, key)  # a spline's bins may be narrow
    np.testing.assert_allclose(mass(flow.log_prob(params, points), cell), 1.0, atol=1e-3)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CONDITIONAL])
def test_conditional_density_integrates_to_one_for_every_context(name, key):
    flow, params, _, _ = built(name, 1, (2,))
    seen = []
    for context in (jnp.array([0.0, 0.0]), jnp.array([1.0, -2.0])):
        points, cell = grid(20_000, params, flow, key, context)
        seen.append(np.asarray(flow.log_prob(params, points, context)))
        np.testing.assert_allclose(mass(seen[-1], cell), 1.0, atol=1e-3)
    points = np.linspace(-2, 4, 20, dtype=np.float32)[:, None]
    one, other = (flow.log_prob(params, points, c) for c in (jnp.zeros(2), jnp.array([1.0, -2.0])))
    assert jnp.abs(one - other).max() > 1e-3  # the context is read


@by_name_some_slow
def test_samples_follow_the_density(name, key):
    """The probability integral transform of the samples is uniform: Kolmogorov-Smirnov on the line."""
    flow, params, _, _ = built(name, 1)
    num = 4_000
    sample = np.sort(np.asarray(flow.sample(params, key, (num,)))[:, 0])
    points, cell = grid(20_000, params, flow, key)
    density = np.exp(np.asarray(flow.log_prob(params, points), np.float64))
    cdf = np.interp(sample, points[:, 0] + cell / 2, np.cumsum(density) * cell)
    distance = np.abs(cdf - (np.arange(num) + 0.5) / num).max()
    assert distance < 2.2 / np.sqrt(num)  # exceeded once in 8,000 draws of a right sampler


@by_name_some_slow
def test_samples_and_their_log_prob_agree(name, key):
    flow, params, _, _ = built(name, 3)
    x, log_prob = jax.jit(flow.sample_and_log_prob, static_argnums=2)(params, key, 256)
    assert x.shape == (256, 3) and log_prob.shape == (256,) and x.dtype == log_prob.dtype == jnp.float32
    # Two routes through a few layers in float32.
    np.testing.assert_allclose(flow.log_prob(params, x), log_prob, rtol=1e-3, atol=2e-3)


@by_name_some_slow
def test_gradients_reach_every_parameter(name, key):
    flow, params, x, _ = built(name, 3)
    grads = jax.jit(jax.grad(lambda p: flow.loss(p, key, x)[0]))(params)
    for (path, g), trained in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(trainable_mask(params)), strict=True):
        assert jnp.isfinite(g).all(), path
        assert bool(jnp.abs(g).max() > 0) == trained, path


@by_name_some_slow
@pytest.mark.slow
def test_float64_stays_float64(name, key, x64):
    flow, _, x, _ = built(name, 3)
    params = flow.init(key, x.astype(np.float64))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float64")}

    @jax.jit
    def both(params):
        x, log_prob = flow.sample_and_log_prob(params, key, 20)
        return x, log_prob, flow.log_prob(params, x)

    x, log_prob, again = both(perturbed(params))
    assert x.dtype == log_prob.dtype == again.dtype == jnp.float64
    np.testing.assert_allclose(again, log_prob, rtol=1e-9, atol=1e-9)


# --- the Model protocol, once for all flows ------------------------------------------------------------------------------


def test_batch_axes_of_log_prob():
    flow, params, x, _ = built("real_nvp", 2)
    whole = flow.log_prob(params, x[:12])
    assert whole.shape == (12,)
    np.testing.assert_allclose(flow.log_prob(params, x[:12].reshape(3, 2, 2, 2)), whole.reshape(3, 2, 2), rtol=1e-5, atol=1e-5)
    single = flow.log_prob(params, x[0])
    assert single.shape == ()
    np.testing.assert_allclose(single, whole[0], rtol=1e-5, atol=1e-5)
    assert flow.log_prob(params, x[:0]).shape == (0,)
    assert flow.log_prob(params, x[:0].reshape(2, 0, 2)).shape == (2, 0)


def test_batch_axes_of_contexts():
    flow, params, x, context = built("real_nvp", 2, (2,))
    whole = flow.log_prob(params, x[:6], context[:6])
    np.testing.assert_allclose(
        flow.log_prob(params, x[:6].reshape(2, 3, 2), context[:6].reshape(2, 3, 2)).ravel(), whole, rtol=1e-5, atol=1e-5
    )
    shared = flow.log_prob(params, x[:6], context[3])
    np.testing.assert_allclose(shared[3], whole[3], rtol=1e-5, atol=1e-5)
    assert jnp.abs(shared - whole).max() > 1e-3
    under_all = flow.log_prob(params, x[3], context[:6])
    np.testing.assert_allclose(under_all[3], whole[3], rtol=1e-5, atol=1e-5)
    assert under_all.shape == (6,) and jnp.abs(under_all - whole).max() > 1e-3


def test_shapes_of_samples(key):
    flow, params, _, _ = built("real_nvp", 2)
    np.testing.assert_allclose(flow.sample(params, key, 5), flow.sample_and_log_prob(params, key, 5)[0], rtol=1e-5, atol=1e-5)
    assert flow.sample(params, key).shape == (2,)
    assert flow.sample(params, key, 5).shape == (5, 2)
    assert flow.sample(params, key, (3, 4)).shape == (3, 4, 2)
    flow, params, _, context = built("real_nvp", 2, (2,))
    assert flow.sample(params, key, (3,), context[0]).shape == (3, 2)
    assert flow.sample(params, key, (3,), context[:4]).shape == (3, 4, 2)


def test_each_context_gets_its_own_samples(key):
    """The context moves the mean of a linear-Gaussian flow; the rows of samples must move alike."""
    flow, params, _, _ = built("planar_flow", 1, (2,))
    contexts = jnp.array([[3.0, 3.0], [-3.0, -3.0], [0.0, 0.0]])
    together = flow.sample(params, key, (4_000,), contexts)
    for i, context in enumerate(contexts):
        alone = flow.sample(params, jax.random.fold_in(key, i), (4_000,), context)
        error = jnp.abs(together[:, i].mean(0) - alone.mean(0))
        assert (error < 4.5 * np.sqrt(2 / 4_000) * alone.std(0)).all()


def test_second_call_is_not_traced_again(key):
    name = "masked_autoregressive_flow"
    flow, params, x, _ = built(name, 3)
    flow.log_prob(params, x), flow.sample(params, key, (7,))
    before = distribution._on_events._cache_size(), distribution._on_draws._cache_size()
    equal = FLOWS[name]((3,))
    assert equal == flow and equal is not flow
    equal.log_prob(params, x + 1), equal.sample(params, jax.random.fold_in(key, 1), (7,))
    assert (distribution._on_events._cache_size(), distribution._on_draws._cache_size()) == before


def test_refuses_unfit_arguments(key):
    flow, params, x, _ = built("real_nvp", 2)
    conditional, conditional_params, _, context = built("real_nvp", 2, (2,))
    with pytest.raises(ValueError, match=r"x must have shape \(...,\) \+ \(2,\), got \(3,\)"):
        flow.log_prob(params, jnp.zeros(3))
    with pytest.raises(TypeError, match="x must be floating point, got int32"):
        flow.log_prob(params, jnp.zeros((4, 2), int))
    with pytest.raises(ValueError, match="takes no context"):
        flow.log_prob(params, x, context)
    with pytest.raises(ValueError, match="conditional: pass context"):
        conditional.log_prob(conditional_params, x)
    with pytest.raises(ValueError, match=r"batch axes of x and context must broadcast .*, got \(256,\) and \(5,\)"):
        conditional.log_prob(conditional_params, x, context[:5])
    with pytest.raises(ValueError, match="conditional: pass context"):
        conditional.sample(conditional_params, key, (3,))
    with pytest.raises(ValueError, match="takes no context"):
        flow.sample(params, key, (3,), context)
    with pytest.raises(TypeError, match="typed key"):
        flow.sample(params, 0)
    with pytest.raises(ValueError, match=r"x must have shape \(n,\) \+ \(2,\), got \(2,\)"):
        flow.init(key, x[0])
    with pytest.raises(ValueError, match=r"batch must have shape"):
        flow.loss(params, key, x[0])


@pytest.mark.parametrize("event_shape", [2, (), (2, 2), (0,), (2.0,)])
def test_refuses_events_that_are_not_vectors(event_shape):
    with pytest.raises((ValueError, TypeError), match=r"event_shape must (be|hold)"):
        flows.real_nvp(event_shape)


def test_refuses_no_layers():
    with pytest.raises(ValueError, match="num_layers must be an integer >= 1, got 0"):
        flows.affine((2,), 0)


# --- numbers and options --------------------------------------------------------------------------------------------------------


def test_one_variable_by_hand():
    """x = 2 + 3 z, z ~ N(0, 1): log p(5) = -2.517551."""
    flow = gm.models.Flow(gm.bijectors.ScalarAffine(), gm.densities.Normal((1,)))
    params = {"bijector": {"scale": jnp.array(3.0), "shift": jnp.array(2.0)}}  # made by hand
    np.testing.assert_allclose(flow.log_prob(params, jnp.array([5.0])), -2.517551, atol=1e-6)
    np.testing.assert_allclose(flow.loss(params, None, jnp.array([[5.0]]))[0], 2.517551, atol=1e-6)


def normal_log_prob(x, covariance):
    return jax.scipy.stats.multivariate_normal.logpdf(x, x.mean(0), jnp.asarray(covariance, jnp.float32))


@pytest.mark.parametrize("standardize", [True, False])
def test_affine_flow_starts_at_the_gaussian_of_maximum_likelihood(standardize, key):
    x = data(3)
    flow = flows.affine((3,), standardize=standardize)
    with jax.numpy_rank_promotion("allow"):
        wanted = normal_log_prob(x, np.cov(x.T, bias=True))
    np.testing.assert_allclose(flow.log_prob(flow.init(key, x), x), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "affine"])
def test_starts_as_the_standardised_base(name, key):
    """Last layers start at zero, so that training starts from the best diagonal Gaussian."""
    x = data(3)
    flow = FLOWS[name]((3,))
    with jax.numpy_rank_promotion("allow"):
        wanted = normal_log_prob(x, np.diag(x.var(0)))
    np.testing.assert_allclose(flow.log_prob(flow.init(key, x), x), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "base",
    [
        gm.densities.StudentT((2,), 7.0),
        gm.densities.GaussianMixture((2,), 3),
        distrax.MultivariateNormalDiag(jnp.array([1.0, -1.0]), jnp.array([0.5, 2.0])),
    ],
    ids=["student_t", "learned_mixture", "distrax"],
)
@pytest.mark.slow
def test_any_base(base, key):
    flow = flows.affine((2,), base=base)
    params = perturbed(flow.init(key, data(2)))
    assert ("base" in params) == isinstance(base, gm.densities.GaussianMixture)
    if flow.base.reparameterized:
        x, log_prob = jax.jit(flow.sample_and_log_prob, static_argnums=2)(params, key, 256)
        np.testing.assert_allclose(flow.log_prob(params, x), log_prob, rtol=1e-4, atol=1e-4)
    else:  # a gradient through its draws would be wrong without a word
        with pytest.raises(ValueError, match="^draws of Flow do not carry the gradient of all its parameters; .* is wanted$"):
            flow.sample_and_log_prob(params, key, 256)
    points, cell = grid(800, params, flow, key)
    np.testing.assert_allclose(mass(flow.log_prob(params, points), cell), 1.0, atol=2e-3)  # heavy tails leave the box
    grads = jax.jit(jax.grad(lambda p: flow.loss(p, key, data(2))[0]))(params)
    assert all((g != 0).any() for g in jax.tree.leaves(grads.get("base", {})))


@pytest.mark.parametrize("name", ["real_nvp", "neural_spline_flow", "masked_autoregressive_flow"])
def test_bfloat16_networks_keep_float32_log_dets(name, key):
    half = FLOWS[name]((3,), dtype=jnp.bfloat16)
    flow, params, x, _ = built(name, 3)
    assert {p.dtype for p in jax.tree.leaves(half.init(key, x))} == {jnp.dtype("float32")}
    log_prob = half.log_prob(params, x)
    assert log_prob.dtype == jnp.float32 and half.sample(params, key, (2,)).dtype == jnp.float32
    error = jnp.abs(log_prob - flow.log_prob(params, x))
    assert 0 < float(error.mean()) < 10 * 2**-8  # bfloat16 has 8 bits; the sum of three coordinates of two layers
    grads = jax.jit(jax.grad(lambda p: half.loss(p, key, x)[0]))(params)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))


def test_seed_chooses_the_permutations():
    one, other = flows.real_nvp((6,), 2, seed=1), flows.real_nvp((6,), 2, seed=2)
    assert one != other and one == flows.real_nvp((6,), 2, seed=1)


def test_couplings_reach_every_coordinate(key):
    """Two layers with a permutation change all of a vector: no half passes untouched."""
    flow = FLOWS["real_nvp"]((4,), num_layers=4, standardize=False)
    params = perturbed(flow.init(key, data(4)))
    x = jnp.asarray(data(4)[0])
    jacobian = jax.jit(jax.jacfwd(lambda x: flow.bijector.inverse(params["bijector"], x)))(x)
    # A coordinate that passed untouched would leave a row that is a row of the identity.
    assert ((jnp.abs(jacobian) > 1e-6).sum(1) > 1).all()


def test_num_params_counts_what_is_trained():
    flow = flows.affine((3,))
    params = flow.init(jax.random.key(0), data(3))
    assert gm.num_params(params) == 9 + 3  # the six numbers of the standardisation are fixed


def test_many_rows_are_those_of_few(key):
    """Above a thousand rows the work is done in blocks, the last of them padded."""
    flow, params, x, context = built("real_nvp", 2, (2,))
    rows, contexts = np.tile(x, (10, 1))[:2_501], np.tile(context, (10, 1))[:2_501]
    np.testing.assert_allclose(
        flow.log_prob(params, rows, contexts)[-100:], flow.log_prob(params, rows[-100:], contexts[-100:]), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        flow.log_prob(params, rows, contexts[7])[2_000:], flow.log_prob(params, rows[2_000:], contexts[7]), rtol=1e-5, atol=1e-5
    )
    sample = flow.sample(params, key, 2_501, contexts[7])
    assert sample.shape == (2_501, 2) and len(np.unique(np.asarray(sample), axis=0)) == 2_501


@pytest.mark.parametrize("name", ["radial_flow", "sylvester_flow", "glow_1d"])
@pytest.mark.slow
def test_no_key_is_used_twice(name, key_reuse):
    flow, x = FLOWS[name]((2,), base=gm.densities.GaussianMixture((2,), 2)), data(2)
    params = flow.init(jax.random.key(0), x)
    flow.sample(params, jax.random.key(1), (3,))
    flow.loss(params, jax.random.key(2), x)
    key = jax.random.key(3)
    jax.random.normal(key)
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(key)


# --- supports ------------------------------------------------------------------------------------------------------------

BOUNDED = {
    "sigmoid": (bj.Sigmoid(), (0.0, 1.0)),
    "exp": (bj.Exp(), (0.0, np.inf)),
    "softplus": (bj.Softplus(), (0.0, np.inf)),
    "tanh": (bj.Tanh(), (-1.0, 1.0)),
    "invert_logit": (bj.Invert(bj.Logit()), (0.0, 1.0)),
    "invert_alpha_logit": (bj.Invert(bj.AlphaLogit(0.25)), (-0.5, 1.5)),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_outside_the_support_the_density_is_zero(name, key):
    last, support = BOUNDED[name]
    flow = gm.models.Flow(bj.Chain((bj.Elementwise(bj.Affine()), last)), gm.densities.Normal((2,)))
    assert flow.support == support
    params = flow.init(key, jnp.full((4, 2), 0.5))
    ends = [end for end in support if np.isfinite(end)]
    x = jnp.asarray([[0.5, end + step] for end in ends for step in (0.0, -1.0 if end == support[0] else 1.0)])
    assert (flow.log_prob(params, x) == -jnp.inf).all()
    assert (jax.vmap(jax.grad(lambda x: flow.log_prob(params, x)))(x) == 0).all()
    by_params = jax.grad(lambda params: flow.log_prob(params, x).sum(), allow_int=True)(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(by_params))
    assert jnp.isnan(flow.encode(params, x)).all()  # there is no latent event
    inside = flow.log_prob(params, jnp.array([0.5, 0.25]))
    assert jnp.isfinite(inside) and flow.log_prob(params, jnp.array([[0.5, 0.25], x[0]]))[0] == inside
    assert jnp.isnan(flow.log_prob(params, jnp.array([0.5, jnp.nan])))


def test_refuses_a_base_that_leaves_the_domain_of_a_layer():
    for first in (bj.Logit(), bj.Invert(bj.Exp()), bj.Chain((bj.Permutation((1, 0)), bj.Logit()))):
        with pytest.raises(ValueError, match=r"is a map of .* to .*, got values in \(-inf, inf\)"):
            gm.models.Flow(first, gm.densities.Normal((2,)))
    circle = bj.Repeat(bj.Coupling(bj.CircularSpline(4), gm.nets.MLP((8,)), 1), 2)
    with pytest.raises(ValueError, match=r"CircularSpline\(.*\) is a map of the circle \[-3.14159, 3.14159\), got values in"):
        gm.models.Flow(circle, gm.densities.Normal((2,)))
    gm.models.Flow(circle, gm.densities.Uniform((2,), -np.pi, np.pi))
    gm.models.Flow(bj.Chain((bj.Rescale(1.0, -0.5), bj.Rescale(2 * np.pi), circle)), gm.densities.Uniform((2,)))
    gm.models.Flow(bj.Invert(bj.Sigmoid()), gm.densities.Uniform((2,)))


# --- contexts ------------------------------------------------------------------------------------------------------------

CONTEXTS = {name: functools.partial(FLOWS[name], (2,), context_shape=(3,)) for name in CONDITIONAL}
CONTEXTS |= {"glow": functools.partial(IMAGE_FLOWS["glow"], (4, 4, 1), context_shape=(3,))}
CONTEXTS |= {"diffusion": functools.partial(flows.diffusion, (2,), hidden_sizes=(8,), context_shape=(3,))}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("real_nvp", "planar_flow", "diffusion"))) for n in CONTEXTS]
)
def test_the_units_of_a_context_do_not_matter(name, key):
    model = CONTEXTS[name]()
    x = jax.random.uniform(key, (64, *model.event_shape))
    contexts = data(3, 64)
    contexts[:, 2] = np.arange(64) % 2  # a flag, which stays as it is
    scale, shift = np.array([1e3, 1e-4, 1.0], np.float32), np.array([1e4, 0.0, 0.0], np.float32)
    flagged = 2 * contexts
    flagged[:, 2] = 1.0

    def value(contexts, far):
        params = model.init(key, x, contexts)
        moved = jax.tree.map(
            lambda p, t: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape) * t, params, trainable_mask(params)
        )
        return model.loss(moved, key, (x, far))[0]

    plain, other = value(contexts, 2 * contexts), value(contexts * scale + shift, 2 * contexts * scale + shift)
    np.testing.assert_allclose(other, plain, rtol=2e-3)
    assert abs(value(contexts, flagged) - plain) > 1e-5  # it reads them


def test_labels_are_not_read_as_numbers(key):
    x, labels = jax.random.normal(key, (8, 2)), jnp.arange(8)
    for model in (flows.real_nvp((2,), 2, context_shape=()), flows.flow_matching((2,), context_shape=())):
        with pytest.raises(TypeError, match=r"for class labels build the model with context_shape=\(num_classes,\)"):
            model.init(key, x, labels)
    one_hot = jax.nn.one_hot(labels, 8)
    params = flows.real_nvp((2,), 2, context_shape=(8,)).init(key, x, one_hot.astype(int))
    flow = flows.real_nvp((2,), 2, context_shape=(8,))
    same = flow.log_prob(params, x, one_hot), flow.log_prob(params, x, one_hot.astype(int)), flow.log_prob(params, x, one_hot > 0)
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])


@pytest.mark.slow
def test_health_speaks_of_contexts(key):
    x, contexts = jax.random.normal(key, (64, 2)), 1e3 * jax.random.normal(key, (64, 1))
    for standardize in (True, False):
        flow = flows.real_nvp((2,), 2, hidden_sizes=(8,), context_shape=(1,), standardize=standardize)
        report = gm.health(flow.bijector, flow.init(key, x, contexts)["bijector"], x, contexts)
        assert ("contexts reach" in str(report)) is not standardize


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1e-20), (0.0, 1e18), (1.7e9, 1e3), (1.0, 1e-5), (0.0, 1e30), (3.0, 0.0)])
def test_columns_of_any_scale_are_standardised(shift, scale, key):
    """Unix time is no constant, and the square of a number may be no number."""
    x = np.stack([shift + scale * data(1)[:, 0], data(1)[:, 0]], 1).astype(np.float32)
    wide = x.astype(np.float64)
    for layer in (bj.ActNorm(), bj.Standardize(), bj.Whiten()):
        z = jax.vmap(layer.inverse, (None, 0))(layer.init(key, x), x)
        np.testing.assert_allclose(z[:, 0].std(), 1.0 if scale else 0.0, rtol=2e-3)
        assert abs(z[:, 0].mean()) < 2e-3 + 1e-6 * abs(wide[:, 0].mean()) / (wide[:, 0].std() or 1.0)


def test_supports_of_compositions():
    """What is not known is None, which refuses nothing; an end may be off by a rounding."""
    normal, unit = gm.densities.Normal((2,)), gm.densities.Uniform((2,))
    squashed = distrax.Block(distrax.Sigmoid(), 1)
    assert gm.models.Flow(bj.Chain((squashed, bj.Logit())), normal).support is None
    assert gm.models.Flow(bj.Chain((bj.Sigmoid(), bj.Reverse(), bj.Logit(), bj.Exp())), normal).support == (0.0, np.inf)
    with pytest.raises(ValueError, match="Logit"):
        gm.models.Flow(bj.Repeat(bj.Logit(), 2), unit)
    multi = bj.MultiScale((4, 4, 1), (bj.Chain((bj.Squeeze(), bj.Sigmoid())), bj.Tanh()))
    assert gm.models.Flow(bj.MultiScale((4, 4, 1), (bj.Sigmoid(),)), gm.densities.Normal((16,))).support == (0.0, 1.0)
    assert gm.models.Flow(multi, gm.densities.Normal((16,))).support is None
    with pytest.raises(ValueError, match="Logit"):
        gm.models.Flow(bj.MultiScale((4, 4, 1), (bj.Logit(),)), gm.densities.Normal((16,)))
    assert flows.glow((4, 4, 1), 1).support == bj.AlphaLogit().domain
    for half in (100.0, 25.0, 41.0):
        circle = bj.Chain((bj.Rescale(np.pi / half), bj.Elementwise(bj.CircularSpline())))
        gm.models.Flow(circle, gm.densities.Uniform((2,), -half, half))


def test_off_the_circle_the_density_is_zero(key):
    flow = gm.models.Flow(bj.Coupling(bj.CircularSpline(4), gm.nets.MLP((8,)), 1), gm.densities.Uniform((2,), -np.pi, np.pi))
    params = flow.init(key, jnp.zeros((1, 2)))
    far = flow.log_prob(params, jnp.array([[0.0, 4.0], [4.0, 0.0], [0.0, 100.0]]))
    assert (far == -jnp.inf).all() and jnp.isfinite(flow.log_prob(params, jnp.zeros(2)))


def test_a_draw_that_leaves_a_domain_is_nan_in_all(key):
    flow = gm.models.Flow(bj.Chain((bj.Rescale(30.0), bj.Sigmoid(), bj.Logit())), gm.densities.Normal((1,)))
    x, log_prob = flow.sample_and_log_prob(flow.init(key, jnp.zeros((1, 1))), key, (1_000,))
    lost = jnp.isnan(x[:, 0])
    assert 0 < lost.sum() < 1_000
    np.testing.assert_array_equal(jnp.isnan(log_prob), lost)
    assert jnp.isfinite(log_prob[~lost]).all()


@pytest.mark.slow
def test_conditional_continuous_flows_have_health_and_load(key, tmp_path):
    x, labels = jax.random.normal(key, (16, 2)), jnp.arange(16) % 3
    model = FLOWS["flow_matching"]((2,), context_shape=(3,))
    for i, context in enumerate((jax.nn.one_hot(labels, 3), jax.nn.one_hot(labels, 3, dtype=int))):
        params = model.init(key, x, context)
        assert gm.health(model.bijector, params["bijector"], x, context).warnings == ()
        gm.save(tmp_path / str(i), model, params)
        loaded = gm.load(tmp_path / str(i), model)
        np.testing.assert_array_equal(model.log_prob(loaded, x, context), model.log_prob(params, x, context))


def test_a_column_that_is_constant_up_to_rounding_is_constant():
    k = np.arange(1, 65, dtype=np.float32)
    column = np.float32(0.1) * k / k  # three neighbouring numbers
    assert len(np.unique(column)) > 1
    params = bj.Standardize().init(jax.random.key(0), np.stack([column, k], 1))
    assert params["statistics"].tree["log_scale"][0] == 0


# --- columns of several kinds -----------------------------------------------------------------------------------------------

MIXED = ("real", "positive", (-1.0, 1.0), flows.Circle(-180.0, 180.0))


def of_mixed(num, seed=0):
    rng = np.random.default_rng(seed)
    columns = [3 * rng.normal(size=num), np.exp(rng.normal(size=num)), rng.uniform(-0.9, 0.9, num), rng.uniform(-180, 180, num)]
    return np.stack(columns, 1).astype(np.float32)


def moved_from_start(model, x, key):
    params = model.init(key, x)
    return jax.tree.map(lambda p, t: p + 0.2 * jax.random.normal(key, p.shape) * t, params, trainable_mask(params))


@pytest.mark.slow
def test_each_column_lies_where_it_belongs(key):
    x = of_mixed(200)
    for make in (FLOWS["neural_spline_flow"],):
        flow = make((4,), support=MIXED)
        params = moved_from_start(flow, x, key)
        drawn = flow.sample(params, key, (500,))
        assert (drawn[:, 1] > 0).all() and (jnp.abs(drawn[:, 2]) < 1).all() and (jnp.abs(drawn[:, 3]) <= 180).all()
        np.testing.assert_allclose(flow.decode(params, flow.encode(params, x)), x, rtol=2e-3, atol=2e-2)
        seam = [flow.log_prob(params, np.concatenate([x[:, :3], np.full((200, 1), end, np.float32)], 1)) for end in (-180, 180)]
        np.testing.assert_allclose(*seam, atol=2e-4)
        for column, value in ((1, -0.1), (2, 1.1), (3, 190.0)):
            outside = x.copy()
            outside[:, column] = value
            assert (flow.log_prob(params, outside) == -jnp.inf).all()
    plain = FLOWS["real_nvp"]((3,), support=MIXED[:3])  # without a circle any builder will do
    assert jnp.isfinite(plain.log_prob(moved_from_start(plain, x[:, :3], key), x[:, :3])).all()


@pytest.mark.parametrize("kind", ["torus", "sphere", pytest.param("cylinder", marks=pytest.mark.slow)])
def test_densities_on_closed_surfaces_have_mass_one(kind, key):
    """A torus of two angles; a sphere by longitude and sine of latitude; a cylinder."""
    circle = flows.Circle()
    support = {"torus": (circle, circle), "sphere": (circle, (-1.0, 1.0)), "cylinder": (circle, "real")}[kind]
    rng = np.random.default_rng(0)
    second = rng.uniform(-3, 3, 200) if kind == "torus" else rng.uniform(-0.9, 0.9, 200)
    x = np.stack([rng.uniform(-3, 3, 200), second], 1).astype(np.float32)
    flow = FLOWS["neural_spline_flow"]((2,), support=support)
    params = moved_from_start(flow, x, key)
    width = {"torus": np.pi, "sphere": 1.0, "cylinder": 12.0}[kind]
    angles, others = ((np.arange(num) + 0.5) / num * 2 - 1 for num in (200, 800))
    grid = np.stack(np.meshgrid(np.pi * angles, width * others), -1).reshape(-1, 2).astype(np.float32)
    density = np.exp(np.asarray(flow.log_prob(params, grid), np.float64))
    np.testing.assert_allclose(density.mean() * 4 * np.pi * width, 1.0, atol=3e-3)
    assert density.std() > 0.05 * density.mean()


@pytest.mark.parametrize(
    ("support", "says"),
    [
        (("real",), "each of 2 columns"),
        ("real", "each of 2 columns"),
        (("real", "angle"), "'real', 'positive', \\(low, high\\) or a Circle, got 'angle'"),
        (("real", (1.0, 0.0)), "low < high"),
    ],
)
def test_supports_are_checked(support, says):
    with pytest.raises(ValueError, match=says):
        flows.real_nvp((2,), support=support)


def test_one_circle_alone(key):
    flow = FLOWS["neural_spline_flow"]((1,), support=(flows.Circle(0.0, 24.0),))
    hours = np.random.default_rng(0).uniform(0, 24, (50, 1)).astype(np.float32)
    params = moved_from_start(flow, hours, key)
    grid = (np.arange(4_000, dtype=np.float32)[:, None] + 0.5) * 24 / 4_000
    np.testing.assert_allclose(np.exp(np.asarray(flow.log_prob(params, grid), np.float64)).mean() * 24, 1.0, atol=1e-4)


def test_a_circle_wants_a_flow_that_has_some():
    with pytest.raises(ValueError, match=r"Angle\(.*got values in \(-inf, inf\)"):
        flows.real_nvp((2,), support=("real", flows.Circle()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["real_nvp", "masked_autoregressive_flow"])
def test_far_points_come_back(name, key):
    """Points of [-10, 10]^64, after 100 steps on 64 dependent coordinates, in float32."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, 32))
    x = np.concatenate([z, np.sin(2 * z) + 0.1 * rng.normal(size=z.shape)], 1).astype(np.float32)
    flow = getattr(flows, name)((64,))
    fit = gm.fit(flow, x, key=key, num_steps=100, batch_size=1_024, progress=False)
    far = rng.uniform(-10, 10, (1_000, 64)).astype(np.float32)
    assert jnp.abs(flow.decode(fit.params, flow.encode(fit.params, far)) - far).max() < 1e-2


@by_name
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_data_of_16_bits_have_parameters_of_32(name, dtype, key):
    params = jax.eval_shape(lambda x: FLOWS[name]((2,)).init(jax.random.key(0), x), jax.ShapeDtypeStruct((4, 2), dtype))
    floats = {leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert floats == {np.dtype(np.float32)}
