"""Flows of images and their layers: Jacobians, initialisation layer by layer, what latents are for, and what is refused."""

import dataclasses
import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import GLOW8, IMAGE_FLOWS

import genmod as gm
from genmod import bijectors as bj, flows
from genmod.bijectors.coupling import network_input
from genmod.core.params import trainable_mask

pytestmark = pytest.mark.usefixtures("quick_compile")
EPS = float(np.finfo(np.float32).eps)
SHAPE = (4, 4, 2)


def by_name(*fast):
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in fast)) for n in IMAGE_FLOWS])


def images(num, shape=SHAPE, seed=0):
    """Skewed, unequal from channel to channel, neighbours alike; in (0, 1)."""
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal((num, 1, 1, 1)), rng.standard_normal((num, *shape))
    logits = 0.8 * common + (0.3 + np.arange(shape[-1])) * own - 1.0
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def some_parameters(flow, seed=1):
    """Parameters away from the start, where most layers are the identity; in NumPy, since `init` takes long to compile."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name, shape = path[-1].key, leaf.shape
        noise = (0.15 if name == "kernel" else 0.1) * rng.standard_normal(shape)
        if name == "permutation":
            noise = np.eye(shape[-1])[np.argsort(rng.random(shape[:-1]))]
        elif name == "sign":
            noise = rng.choice([-1.0, 1.0], shape)
        elif name == "matrix":
            noise += np.linalg.qr(rng.standard_normal(shape))[0]
        return noise.astype(np.float32)

    context = None if flow.context_shape is None else jax.ShapeDtypeStruct((2, *flow.context_shape), jnp.float32)
    shapes = jax.eval_shape(flow.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *flow.event_shape), jnp.float32), context)
    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(fill, shapes))


@functools.cache
def built(name="glow"):
    """(flow, parameters, images, contexts or None)."""
    flow = IMAGE_FLOWS[name](SHAPE)
    wanted = flow.context_shape
    context = None if wanted is None else jnp.asarray(np.random.default_rng(2).standard_normal((16, *wanted)), jnp.float32)
    return flow, some_parameters(flow), jnp.asarray(images(16)), context


def batched(direction, params, events, context=None):
    return jax.vmap(direction, (None, 0, None if context is None else 0))(params, events, context)


# --- densities ---------------------------------------------------------------------------------------------------------------


@by_name("glow", "real_nvp_image")
def test_log_dets_are_those_of_the_jacobian(name, x64):
    flow, params, x, context = built(name)
    params = gm.core.params.cast(params, np.float64)
    x = jnp.asarray(np.asarray(x[:3]), np.float64)
    context = None if context is None else jnp.asarray(np.asarray(context[:3]), np.float64)

    def with_jacobian(direction):
        differentiated = jax.jacfwd(lambda *args: ((out := direction(*args))[0], out), argnums=1, has_aux=True)
        return jax.jit(functools.partial(batched, differentiated))

    jacobian, (z, log_det) = with_jacobian(flow.bijector.inverse_and_log_det)(params["bijector"], x, context)
    other, (back, opposite) = with_jacobian(flow.bijector.forward_and_log_det)(params["bijector"], z, context)
    assert z.shape == (3, 32) and jnp.abs(log_det).min() > 1 and np.ptp(log_det) > 0.1
    eps = float(np.finfo(np.float64).eps)
    for value, matrix in ((log_det, jacobian.reshape(3, 32, 32)), (opposite, other.reshape(3, 32, 32))):
        # A relative error eps of the matrix moves its log-determinant by eps times its condition number.
        allowed = 200 * eps * float(jnp.linalg.cond(matrix).max() + jnp.abs(value).max())
        np.testing.assert_allclose(value, jnp.linalg.slogdet(matrix)[1], rtol=0, atol=allowed)
    norms = (1 + np.linalg.norm(jacobian.reshape(3, -1))) * (1 + np.linalg.norm(other.reshape(3, -1)))
    np.testing.assert_allclose(back, x, rtol=0, atol=200 * eps * float(1 + jnp.abs(z).max()) * norms)


@by_name()
def test_samples_and_gradients(name, key):
    """Draws agree with log_prob about their density, and the loss reaches every parameter."""
    flow, params, x, context = built(name)

    @jax.jit
    def both(params):
        gradients = jax.grad(lambda p: flow.loss(p, None, (x, context))[0])(params)
        return flow.sample_and_log_prob(params, key, 16 if context is None else (), context), gradients

    (drawn, log_prob), gradients = both(params)
    assert drawn.shape == (16, *SHAPE) and log_prob.shape == (16,) and drawn.dtype == log_prob.dtype == jnp.float32
    # Two routes through the layers in float32.
    np.testing.assert_allclose(flow.log_prob(params, drawn, context), log_prob, rtol=1e-3, atol=5e-3)
    for (path, g), trained in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(trainable_mask(params)), strict=True):
        assert jnp.isfinite(g).all() and bool(jnp.abs(g).max() > 0) == trained, path


def num_equations(jaxpr):
    inner = (value for equation in jaxpr.eqns for value in jax.tree.leaves(list(equation.params.values())))
    closed = (getattr(value, "jaxpr", value) for value in inner)
    return len(jaxpr.eqns) + sum(num_equations(value) for value in closed if hasattr(value, "eqns"))


@pytest.mark.parametrize("make", [flows.glow, flows.real_nvp_image])
def test_what_is_compiled_does_not_grow_with_the_layers(make):
    def size(num_layers):
        flow = make(SHAPE, num_layers, num_scales=2, hidden_channels=8)
        x = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
        params = jax.eval_shape(flow.init, jax.random.key(0), x)
        return num_equations(jax.make_jaxpr(flow.log_prob_one)(params, jnp.zeros(SHAPE)).jaxpr)

    assert size(4) == size(16) > 100


def test_options_of_the_builders():
    assert [len(make((32, 32, 3)).bijector.levels) for make in (flows.glow, flows.real_nvp_image)] == [3, 3]
    assert len(flows.glow((28, 28, 1)).bijector.levels) == 2  # 28, 14, 7
    assert flows.glow(SHAPE, 2) == flows.glow(SHAPE, 2) != flows.glow(SHAPE, 2, alpha=None)
    assert flows.glow(SHAPE, context_shape=(3,)).context_shape == (3,) and flows.glow(SHAPE).context_shape is None
    for shape in ((4, 4), (4, 4, 0), [4, 4, 1], (4, 4, 1.0)):
        with pytest.raises((ValueError, TypeError), match=r"event_shape must (be|hold)"):
            flows.glow(shape)
    with pytest.raises(ValueError, match="height and width that 2 divides, got shape \\(3, 4, 1\\)"):
        flows.glow((3, 4, 1))
    with pytest.raises(ValueError, match="num_layers must be an integer >= 1, got 0"):
        flows.real_nvp_image(SHAPE, 0)
    with pytest.raises(ValueError, match="num_scales must be an integer >= 1, got 0"):
        flows.glow(SHAPE, num_scales=0)


@pytest.mark.parametrize("shape", [(2, 2, 1), (4, 4, 2), (4, 6, 1)])
@pytest.mark.parametrize("make", [flows.glow, flows.real_nvp_image])
def test_defaults_fit_small_images(make, shape):
    """As many scales as the size allows, the last one still of pixels that its couplings can part."""
    flow = make(shape, 1, hidden_channels=8)
    params = jax.eval_shape(flow.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert jax.tree.leaves(params)


# --- 1x1 convolutions --------------------------------------------------------------------------------------------------------


def noise_like(params, scale=0.3):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda p: np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)


@pytest.mark.parametrize("method", ["plu", "free"])
def test_conv_1x1_is_one_matrix_in_every_pixel(method, key):
    conv = bj.Conv1x1(method)
    z = jax.random.normal(key, (2, 3, 4))
    start = conv.init(key, z[None])
    rotation = conv.matrix(start)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=64 * EPS)
    np.testing.assert_allclose(conv.forward_and_log_det(start, z)[1], 0.0, atol=6 * 64 * EPS)
    params = jax.tree.map(lambda p, n, trained: p + n if trained else p, start, noise_like(start), trainable_mask(start))
    matrix = np.asarray(conv.matrix(params), np.float64)
    (x, log_det), (back, opposite) = conv.forward_and_log_det(params, z), conv.inverse_and_log_det(params, z)
    size = 64 * EPS * np.linalg.cond(matrix)
    np.testing.assert_allclose(x, np.einsum("ij,hwj->hwi", matrix, z), atol=size)
    np.testing.assert_allclose(back, np.einsum("ij,hwj->hwi", np.linalg.inv(matrix), z), atol=5 * size)
    wanted = 6 * np.linalg.slogdet(matrix)[1]  # six pixels
    assert abs(wanted) > 0.1
    np.testing.assert_allclose([log_det, -opposite], wanted, atol=6 * size)


def test_plu_and_free_agree_at_one_matrix(key):
    z = jax.random.normal(key, (2, 3, 4))
    matrix = jax.random.normal(jax.random.fold_in(key, 1), (4, 4))
    plu, free = bj.Conv1x1(), bj.Conv1x1("free")
    params, other = plu.from_matrix(matrix), free.from_matrix(matrix)
    size = 64 * EPS * float(jnp.linalg.cond(matrix)) * float(jnp.abs(z).max())
    np.testing.assert_allclose(plu.matrix(params), matrix, atol=64 * EPS)
    for direction in ("forward_and_log_det", "inverse_and_log_det"):
        one, two = getattr(plu, direction)(params, z), getattr(free, direction)(other, z)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, rtol=size, atol=size)
    pivots = params["pivots"].tree
    assert not jnp.array_equal(pivots["permutation"], jnp.eye(4)) and (pivots["sign"] < 0).any()


def test_conv_1x1_refuses():
    with pytest.raises(ValueError, match="method must be 'plu' or 'free', got 'lu'"):
        bj.Conv1x1("lu")
    with pytest.raises(ValueError, match=r"Conv1x1 takes images \(H, W, C\), got shape \(3,\)"):
        bj.Conv1x1().init(jax.random.key(0), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="of 4 channels, the event has shape"):
        bj.Conv1x1("free").forward({"matrix": jnp.eye(4)}, jnp.zeros((2, 2, 3)))
    for method in ("plu", "free"):
        with pytest.raises(ValueError, match="matrix must be invertible"):
            bj.Conv1x1(method).from_matrix(jnp.ones((2, 2)))
        with pytest.raises(ValueError, match=r"matrix must be square, \(C, C\), got shape \(2, 3\)"):
            bj.Conv1x1(method).from_matrix(jnp.ones((2, 3)))


# --- shapes ------------------------------------------------------------------------------------------------------------------


def test_squeeze_moves_blocks_to_channels():
    squeeze = bj.Squeeze()
    x = jnp.arange(32 * 32 * 3.0).reshape(32, 32, 3)
    z, log_det = squeeze.inverse_and_log_det({}, x)
    assert z.shape == squeeze.latent_shape((32, 32, 3)) == (16, 16, 12) and log_det == 0
    np.testing.assert_array_equal(np.sort(z.ravel()), x.ravel())
    np.testing.assert_array_equal(z[3, 5], np.concatenate([x[6, 10], x[6, 11], x[7, 10], x[7, 11]]))
    np.testing.assert_array_equal(squeeze.forward({}, z), x)
    assert bj.Squeeze(3).latent_shape((6, 3, 2)) == (2, 1, 18) and bj.Squeeze(3).data_shape((2, 1, 18)) == (6, 3, 2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bj.Squeeze().inverse({}, jnp.zeros((3, 4, 1))), r"height and width that 2 divides, got shape \(3, 4, 1\)"),
        (lambda: bj.Squeeze().init(jax.random.key(0), jnp.zeros((1, 4, 3, 1))), r"that 2 divides, got shape \(4, 3, 1\)"),
        (lambda: bj.Squeeze().forward({}, jnp.zeros((2, 2, 6))), r"a multiple of 4 channels on the latent side, got"),
        (lambda: bj.Squeeze().inverse({}, jnp.zeros(4)), r"Squeeze takes images \(H, W, C\), got shape \(4,\)"),
        (lambda: bj.Squeeze(0), "factor must be an integer >= 1, got 0"),
        (lambda: bj.Split().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1))), "at least two channels, got shape"),
        (lambda: bj.Split(None, (3,)), "for the conditioner, which is None"),
        (lambda: bj.MultiScale((2, 2, 1), ()), "levels must hold at least one bijector, got none"),
        (lambda: bj.MultiScale((2, 2, 1), (bj.Tanh(), bj.Tanh())), "at least two channels"),
        (lambda: bj.MultiScale((6, 6, 1), (bj.Squeeze(), bj.Squeeze())), r"that 2 divides, got shape \(3, 3, 2\)"),
        (lambda: bj.MultiScale((4,), (bj.Tanh(),)), r"takes images \(H, W, C\)"),
        (
            lambda: bj.MultiScale(
                (2, 2, 1), (bj.Coupling(bj.Affine(), GLOW8, 0, (3,)), bj.Coupling(bj.Affine(), GLOW8, 0, (2,)))
            ),
            "share one context_shape",
        ),
        (lambda: bj.Repeat(bj.Squeeze(), 2).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1))), "keeps the shape"),
        (lambda: bj.AlphaLogit(0.5), r"alpha must be in \(0, 1/2\), got 0.5"),
        (lambda: bj.AlphaLogit(0.0), r"alpha must be in \(0, 1/2\), got 0.0"),
        (lambda: bj.Rescale(0.0), "scale must be finite and not 0"),
        (lambda: bj.Coupling(bj.Affine(), GLOW8, bj.Checkerboard()).init(jax.random.key(0), jnp.zeros((1, 4))), "two pixels"),
        (lambda: bj.Coupling(bj.Affine(), GLOW8, 2).init(jax.random.key(0), jnp.zeros((1, 2, 2, 2))), r"0\.\.1 for 2 channels"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_names_and_shapes_of_the_scales():
    multi = flows.glow((32, 32, 3), 1, num_scales=3).bijector
    assert multi.latent_shapes == {"scale_1": (16, 16, 6), "scale_2": (8, 8, 12), "scale_3": (4, 4, 48)}
    assert list(multi.latent_shapes) == ["scale_1", "scale_2", "scale_3"] and multi.event_shape == (32, 32, 3)
    assert multi.latent_shape((32, 32, 3)) == (3072,) and multi.data_shape((3072,)) == (32, 32, 3)
    odd = bj.MultiScale((1, 1, 3), (bj.Tanh(), bj.Tanh()))  # the last C // 2 leave
    assert odd.latent_shapes == {"scale_1": (1, 1, 1), "scale_2": (1, 1, 2)}


def test_pack_and_unpack_are_inverse():
    multi = flows.glow(SHAPE, 1, num_scales=2).bijector
    z = jnp.arange(2 * 3 * 32.0).reshape(2, 3, 32)
    latents = multi.unpack(z)
    assert {name: part.shape for name, part in latents.items()} == {"scale_1": (2, 3, 2, 2, 4), "scale_2": (2, 3, 1, 1, 16)}
    np.testing.assert_array_equal(latents["scale_1"][0, 0].ravel(), np.arange(16))  # what left first comes first
    np.testing.assert_array_equal(multi.pack(latents), z)
    np.testing.assert_array_equal(multi.pack(multi.unpack(z[0, 0])), z[0, 0])
    with pytest.raises(ValueError, match=r"z must have shape \(\.\.\.,\) \+ \(32,\), got \(2, 31\)"):
        multi.unpack(jnp.zeros((2, 31)))
    with pytest.raises(ValueError, match=r"must be named \['scale_1', 'scale_2'\], got \['scale_1'\]"):
        multi.pack({"scale_1": latents["scale_1"]})
    with pytest.raises(ValueError, match=r"latents\['scale_2'\] must have shape \(\.\.\.,\) \+ \(1, 1, 16\), got"):
        multi.pack({**latents, "scale_2": latents["scale_1"]})


def test_latents_leave_as_the_last_channels():
    """Two levels by hand: Squeeze, half leaves, then the rest times 2."""
    multi = bj.MultiScale((2, 2, 1), (bj.Squeeze(), bj.Rescale(0.5)))
    x = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    params = multi.init(jax.random.key(0), x[None])
    z, log_det = multi.inverse_and_log_det(params, x)
    np.testing.assert_array_equal(z, [3.0, 4.0, 2.0, 4.0])
    np.testing.assert_allclose(log_det, 2 * np.log(2.0), rtol=4 * EPS)
    np.testing.assert_array_equal(multi.forward(params, z), x)


def test_shapes_go_through_compositions(key):
    multi = bj.MultiScale((2, 2, 4), (bj.Tanh(), bj.Tanh()))
    grown = bj.Chain((multi, bj.Tanh(), bj.Squeeze()))
    assert grown.event_shape == (4, 4, 1) and grown.latent_shape((4, 4, 1)) == (16,) and grown.data_shape((16,)) == (4, 4, 1)
    assert bj.Invert(grown).event_shape == (16,) and bj.Invert(grown).data_shape((4, 4, 1)) == (16,)
    assert bj.Invert(bj.Squeeze()).event_shape is None and bj.Invert(bj.Squeeze()).data_shape((4, 4, 1)) == (2, 2, 4)
    back = bj.Chain((bj.Invert(bj.Squeeze()), bj.Permutation((1, 2, 3, 0)), bj.Squeeze()))
    assert back.data_shape((4, 4, 1)) == back.latent_shape((4, 4, 1)) == (4, 4, 1)
    x = jax.random.uniform(key, (3, 4, 4, 1), minval=-0.5, maxval=0.5)
    for bijector, latent_shape in ((grown, (16,)), (back, (4, 4, 1)), (bj.Repeat(back, 2), (4, 4, 1))):
        params = bijector.init(key, x)
        z = jax.jit(functools.partial(batched, bijector.inverse))(params, x)
        assert z.shape == (3, *latent_shape)
        np.testing.assert_allclose(jax.jit(functools.partial(batched, bijector.forward))(params, z), x, atol=64 * EPS)
    inverted = bj.Invert(grown)
    assert inverted.forward(inverted.init(key, jnp.zeros((1, 16))), x[0]).shape == (16,)
    with pytest.raises(ValueError, match=r"z must be one event of shape \(16,\), got \(4, 4, 1\)"):
        grown.forward(grown.init(key, x), x[0])
    with pytest.raises(ValueError, match=r"x must be one event of shape \(4, 4, 1\), got \(2, 2, 4\)"):
        grown.inverse(grown.init(key, x), jnp.zeros((2, 2, 4)))


def test_checkerboards_take_turns():
    even, odd = bj.Checkerboard().mask(3, 2)[..., 0], bj.Checkerboard(odd=True).mask(3, 2)[..., 0]
    np.testing.assert_array_equal(even, [[True, False], [False, True], [True, False]])
    np.testing.assert_array_equal(odd, ~even)


def test_what_a_conditioner_sees():
    kept, image = jnp.full((2, 2, 3), 7.0), jnp.arange(16.0).reshape(4, 4, 1)
    seen = network_input(kept, image)
    assert seen.shape == (2, 2, 7)
    np.testing.assert_array_equal(seen[..., 3:], bj.Squeeze().inverse({}, image))  # the pixels in that place
    np.testing.assert_array_equal(network_input(kept, image[:2, :2])[..., 3:], image[:2, :2])
    vector = network_input(kept, jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(vector[..., 3:], np.broadcast_to([1.0, 2.0], (2, 2, 2)))
    np.testing.assert_array_equal(vector[..., :3], kept)
    np.testing.assert_array_equal(network_input(kept[..., :0], None), np.ones((2, 2, 1)))


def test_alpha_logit_at_the_ends():
    """logit(0.05) = -2.944439; slope at 0: 0.9 / (0.05 x 0.95)."""
    z, log_det = bj.AlphaLogit(0.05).forward_and_log_det({}, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(z, [-2.944439, 2.944439], rtol=1e-6)
    np.testing.assert_allclose(log_det, 2 * np.log(0.9 / (0.05 * 0.95)), rtol=1e-6)


# --- initialisation, saving --------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _leave(layer, params, x):
    return batched(layer.inverse, params, x)


def walk(bijector, params, x, seen):
    """The last latents of a batch, layer by layer as the classes say, noting (parameters, output) of every ActNorm."""
    if isinstance(bijector, bj.MultiScale):
        for i, level in enumerate(bijector.levels):
            x = walk(level, params["levels"][i], x, seen)
            if i < len(bijector.levels) - 1:  # what a split keeps passes unchanged
                x = x[..., : x.shape[-1] // 2]
        return x
    if isinstance(bijector, bj.Chain):
        for layer, own in reversed(list(zip(bijector.bijectors, params, strict=True))):
            x = walk(layer, own, x, seen)
        return x
    if isinstance(bijector, bj.Repeat):
        for i in reversed(range(bijector.num)):
            x = walk(bijector.bijector, jax.tree.map(lambda p, i=i: p[i], params), x, seen)
        return x
    x = _leave(bijector, params, x)
    if isinstance(bijector, bj.ActNorm):
        seen.append((params, x))
    return x


@pytest.mark.parametrize("make", [flows.glow, pytest.param(flows.real_nvp_image, marks=pytest.mark.slow)])
def test_first_batch_is_standard_behind_every_actnorm(make, key):
    flow, x = make(SHAPE, 6, num_scales=2, conditioner=GLOW8), jnp.asarray(images(64))
    params = flow.init(key, x)
    seen = []
    walk(flow.bijector, params["bijector"], x, seen)
    assert len(seen) == (12 if make is flows.glow else 12 + 7)
    for own, y in seen:
        y, num = np.asarray(y), y[..., 0].size
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=num * EPS)
        np.testing.assert_allclose(y.var((0, 1, 2)), 1.0, atol=num * EPS)
        if make is flows.glow:  # rotations mix channels of unequal scale and correlation: each has something to do
            assert jnp.abs(own["log_scale"]).max() > 1e-3


def test_a_loaded_model_is_not_initialised_again(tmp_path):
    flow, params, x, _ = built("glow")
    gm.save(tmp_path / "glow", flow, params)
    like = some_parameters(flow, seed=2)
    loaded = gm.load(tmp_path / "glow", IMAGE_FLOWS["glow"](SHAPE), like)
    wanted = np.asarray(flow.log_prob(params, x))
    np.testing.assert_array_equal(flow.log_prob(loaded, x), wanted)
    np.testing.assert_array_equal(flow.log_prob(loaded, 0.5 + 0.1 * x), flow.log_prob(params, 0.5 + 0.1 * x))
    assert np.abs(np.asarray(flow.log_prob(like, x)) - wanted).min() > 1e-2


# --- what the latents are for --------------------------------------------------------------------------------------------------


def rounding(flow, params, x, context=None):
    """What a round trip in float32 may lose: measured on the images, with room for others like them."""
    return 10 * float(jnp.abs(flow.decode(params, flow.encode(params, x, context), context) - x).max()) + 16 * EPS


def test_encode_and_decode_are_inverse():
    flow, params, x, context = built("glow_conditional")
    z = flow.encode(params, x, context)
    assert z.shape == (16, 32)
    np.testing.assert_allclose(flow.decode(params, z, context), x, atol=1e-4)
    np.testing.assert_allclose(flow.encode(params, x, context[0])[0], z[0], atol=1e-4)  # one for all
    with pytest.raises(ValueError, match=r"z must have shape \(\.\.\.,\) \+ \(32,\), got \(16, 4, 4, 2\)"):
        flow.decode(params, x, context)
    with pytest.raises(ValueError, match="conditional: pass context"):
        flow.encode(params, x)
    with pytest.raises(TypeError, match="x must be floating point, got int32; cast it, or dequantise"):
        flow.encode(params, jnp.zeros((2, *SHAPE), int), context[:2])


def test_interpolation_runs_from_image_to_image():
    flow, params, x, _ = built("glow")
    one, other = x, x[::-1]
    line = flows.interpolate(flow, params, one, other, 2)
    assert line.shape == (16, 2, *SHAPE)
    np.testing.assert_allclose(line[:, 0], one, atol=rounding(flow, params, x))
    np.testing.assert_allclose(line[:, 1], other, atol=rounding(flow, params, x))
    coarse = flow.bijector.unpack(flow.encode(params, flows.interpolate(flow, params, one, other, 2, scales=["scale_2"])[:, 1]))
    start, end = (flow.bijector.unpack(flow.encode(params, part)) for part in (one, other))
    tolerance = 1e-3 * float(jnp.abs(end["scale_1"]).max())
    np.testing.assert_allclose(coarse["scale_1"], start["scale_1"], atol=tolerance)
    np.testing.assert_allclose(coarse["scale_2"], end["scale_2"], atol=tolerance)
    assert jnp.abs(start["scale_1"] - end["scale_1"]).max() > 100 * tolerance
    with pytest.raises(ValueError, match=r"scales must be a sequence of names among \['scale_1', 'scale_2'\], got \['scale_3'\]"):
        flows.interpolate(flow, params, one, other, scales=["scale_3"])
    with pytest.raises(ValueError, match="num must be an integer >= 1, got 0"):
        flows.interpolate(flow, params, one, other, 0)


def test_middle_of_an_interpolation_is_the_mean_of_the_latents():
    flow, params, x, context = built("glow_conditional")
    for given in (context, context[0]):
        middle = flows.interpolate(flow, params, x, x[::-1], 3, context=given)[:, 1]
        start, end = (flow.encode(params, ends, given) for ends in (x, x[::-1]))
        wanted = (np.asarray(start) + np.asarray(end)) / 2
        np.testing.assert_allclose(flow.encode(params, middle, given), wanted, atol=1e-3 * np.abs(wanted).max())


def test_resampling_keeps_the_other_scales(key):
    flow, params, x, _ = built("glow")
    drawn = flows.resample(flow, params, key, x, scales=["scale_1"])
    old, new = (flow.bijector.unpack(flow.encode(params, part)) for part in (x, drawn))
    np.testing.assert_allclose(new["scale_2"], old["scale_2"], atol=1e-3 * float(jnp.abs(old["scale_2"]).max()))
    # 16 x 16 draws of N(0, 1): the mean has a standard error of 1 / 16, the variance one of sqrt(2) / 16.
    assert abs(float(new["scale_1"].mean())) < 4.5 / 16 and abs(float(new["scale_1"].var()) - 1) < 4.5 * 2**0.5 / 16
    assert not jnp.array_equal(drawn, flows.resample(flow, params, jax.random.fold_in(key, 1), x, scales=["scale_1"]))
    cold = flows.resample(flow, params, key, x, temperature=0.1)
    assert abs(float(flow.encode(params, cold).std()) / 0.1 - 1) < 4.5 / np.sqrt(2 * 16 * 32)
    with pytest.raises(ValueError, match="scales must be a sequence of names among"):
        flows.resample(flow, params, key, x, scales=["fine"])


def test_lower_temperatures_narrow_the_base(key):
    flow, params, _, _ = built("glow")
    cold = flow.tempered(0.5)
    assert cold.base == gm.densities.Normal((32,), 0.5) and cold.bijector == flow.bijector
    latents = np.asarray(flow.encode(params, cold.sample(params, key, 16)))
    # 16 x 32 draws: the standard deviation has a relative standard error of 1 / 32.
    np.testing.assert_allclose(latents.std(), 0.5, rtol=4.5 / np.sqrt(2 * 16 * 32))
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="temperature must be > 0"):
            flow.tempered(temperature)
    assert flow.tempered(jnp.float32(0.5)) == cold
    with pytest.raises(ValueError, match="temperature=0.5 wants a Normal base, got Laplace"):
        dataclasses.replace(flow, base=gm.densities.Laplace((32,))).tempered(0.5)


def test_what_interpolate_and_resample_refuse(key):
    flow, params, x, _ = built("glow")
    with pytest.raises(ValueError, match=r"x_0 and x_1 must have one shape, got \(2, 4, 4, 2\) and \(3, 4, 4, 2\)"):
        flows.interpolate(flow, params, x[:2], x[:3])
    with pytest.raises(ValueError, match="scales must be a sequence of names among .*, got 'scale_1'"):
        flows.resample(flow, params, key, x, scales="scale_1")
    with pytest.raises(TypeError, match="flow must be a gm.models.Flow .*, got Dequantized"):
        flows.interpolate(gm.models.Dequantized(flow), params, x, x)


@pytest.mark.slow
def test_health_looks_at_the_layers_of_every_scale():
    flow, params, x, context = built("glow_conditional")
    report = gm.health(flow.bijector, params["bijector"], x, context)
    names = [layer.name for layer in report.layers]
    assert names[:2] == ["scale_1, Invert(AlphaLogit)", "scale_1, Squeeze"] and "scale_1 leaves" in names
    assert [name for name in names if "Conv1x1" in name] == [f"scale_{i}, {j}: Conv1x1" for i in (1, 2) for j in (1, 0)]
    assert names[-1] == "scale_2, Coupling(Affine)" and report.round_trip < 1e-3
    squeeze = report.layers[1]
    assert squeeze.smallest_slope == squeeze.largest_slope == 1 and squeeze.log_det_range == (0, 0)


@pytest.mark.slow
def test_as_distrax_changes_the_rank(key):
    flow, params, x, _ = built("glow")
    bijector = gm.as_distrax(flow.bijector, params["bijector"])
    law = distrax.Transformed(distrax.MultivariateNormalDiag(jnp.zeros(32)), bijector)
    with jax.numpy_rank_promotion("allow"):  # Distrax broadcasts
        assert law.event_shape == SHAPE and law.sample(seed=key, sample_shape=(2,)).shape == (2, *SHAPE)
        log_prob = law.log_prob(x[:3])
    np.testing.assert_allclose(log_prob, flow.log_prob(params, x[:3]), rtol=1e-5, atol=1e-3)


def test_alpha_logit_is_as_exact_at_one_as_at_zero():
    for alpha in (0.05, 1e-6, 1e-8):
        ends = jnp.array([0.0, 1.0])
        logit = bj.AlphaLogit(alpha)
        x, slope = logit.forward({}, ends), jax.vmap(functools.partial(logit.forward_and_log_det, {}))(ends)[1]
        wanted = np.log(alpha) - np.log1p(-alpha)
        np.testing.assert_allclose(x, [wanted, -wanted], rtol=4 * EPS)
        np.testing.assert_allclose(slope, np.log1p(-2 * alpha) - np.log(alpha) - np.log1p(-alpha), rtol=4 * EPS)


def test_contexts_that_are_images_of_other_sizes():
    pixels = jnp.arange(4.0).reshape(2, 2, 1)
    beside = network_input(jnp.zeros((4, 4, 1)), pixels)[..., 1]
    np.testing.assert_array_equal(beside, np.kron(np.arange(4.0).reshape(2, 2), np.ones((2, 2))))  # enlarged
    np.testing.assert_array_equal(network_input(jnp.zeros((1, 1, 1)), pixels)[0, 0, 1:], np.arange(4))  # squeezed
    for shape in ((3, 3, 1), (4, 2, 1), (6, 4, 1)):
        with pytest.raises(ValueError, match=r"a whole multiple or part of the \(4, 4\) pixels"):
            network_input(jnp.zeros((4, 4, 1)), jnp.zeros(shape))


def test_flows_of_vectors_have_no_scales(key):
    flow = flows.affine((2,))
    params = flow.init(key, jnp.ones((3, 2)))
    for call in (
        lambda: flows.multi_scale(flow),
        lambda: flows.interpolate(flow, params, jnp.ones((3, 2)), jnp.zeros((3, 2))),
        lambda: flows.resample(flow, params, key, jnp.ones((3, 2))),
    ):
        with pytest.raises(ValueError, match="flow must have a MultiScale bijector"):
            call()
    assert flows.multi_scale(built("glow")[0]) is built("glow")[0].bijector


def test_context_moves_every_scale():
    """An image as the context, squeezed to the size of each scale."""
    flow, params, x, context = built("glow_conditional")
    latents, others = (flows.multi_scale(flow).unpack(flow.encode(params, x, given)) for given in (context, context[::-1]))
    for name in latents:
        assert jnp.abs(latents[name] - others[name]).max() > 1e-2, name
    with pytest.raises(ValueError, match=r"context must have shape"):
        flow.log_prob(params, x, context[:, :2])
