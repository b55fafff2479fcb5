"""`convolve` is `lax.conv_general_dilated`, under every transformation and every composition of them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from genmod import nets
from genmod.nets.convolution import Conv, convolve, convolve_before

pytestmark = pytest.mark.usefixtures("quick_compile")

KERNELS = {"3x3": (3, 3, 2, 5), "1x1": (1, 1, 3, 3), "5x1": (5, 1, 2, 1), "larger_than_the_image": (7, 7, 1, 2)}


def reference(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def arguments(shape=(3, 3, 2, 5), num=2, size=(4, 3)):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((num, *size, shape[2]))), jnp.asarray(rng.standard_normal(shape))


def squares(conv, x, kernel):
    """Not linear in either argument, so that second derivatives are not zero."""
    return (jnp.tanh(conv(x, kernel)) ** 2).sum()


def in_a_loop(conv, x, kernel):
    def step(h, _):
        return jnp.tanh(conv(h, kernel)[..., : x.shape[-1]]), None

    return jax.lax.scan(step, x, None, 3)[0].sum()


def over_reverse(conv, x, kernel):
    gradient = jax.grad(functools.partial(squares, conv), argnums=(0, 1))
    return jax.jvp(gradient, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1]


TRANSFORMED = {
    "value": lambda conv, x, kernel: conv(x, kernel),
    "jit": lambda conv, x, kernel: jax.jit(conv)(x, kernel),
    "grad": lambda conv, x, kernel: jax.grad(functools.partial(squares, conv), argnums=(0, 1))(x, kernel),
    "jvp": lambda conv, x, kernel: jax.jvp(conv, (x, kernel), (jnp.cos(x), jnp.sin(kernel)))[1],
    "forward_over_reverse": over_reverse,
    "reverse_over_reverse": lambda conv, x, kernel: jax.grad(
        lambda x: sum((g**2).sum() for g in jax.grad(functools.partial(squares, conv), argnums=(0, 1))(x, kernel))
    )(x),
    "grad_of_a_loop": lambda conv, x, kernel: jax.jit(jax.grad(functools.partial(in_a_loop, conv), argnums=(0, 1)))(x, kernel),
    "remat": lambda conv, x, kernel: jax.grad(jax.checkpoint(functools.partial(squares, conv)), argnums=1)(x, kernel),
    "vmap_x": lambda conv, x, kernel: jax.vmap(conv, (0, None))(jnp.stack([x, 2 * x + 1]), kernel),
    "vmap_x_last_axis": lambda conv, x, kernel: jax.vmap(conv, (4, None), 4)(jnp.stack([x, 2 * x + 1], -1), kernel),
    "vmap_kernel": lambda conv, x, kernel: jax.vmap(conv, (None, 0))(x, jnp.stack([kernel, 2 * kernel + 1])),
    "vmap_both": lambda conv, x, kernel: jax.vmap(conv)(jnp.stack([x, -x]), jnp.stack([kernel, 2 * kernel + 1])),
    "grad_of_an_ensemble": lambda conv, x, kernel: jax.vmap(jax.grad(functools.partial(squares, conv), argnums=1), (None, 0))(
        x, jnp.stack([kernel, 2 * kernel])
    ),
    "grad_for_each_image": lambda conv, x, kernel: jax.vmap(
        lambda x: jax.grad(functools.partial(squares, conv), argnums=1)(x[None], kernel)
    )(x),
    "bfloat16": lambda conv, x, kernel: conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)),
    "no_images": lambda conv, x, kernel: conv(x[:0], kernel),
}


def check(transformed, x, kernel, conv=convolve, wanted=reference):
    ours, theirs = transformed(conv, x, kernel), transformed(wanted, x, kernel)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        eps = float(jnp.finfo(a.dtype).eps)
        scale = float(jnp.abs(b).max()) if b.size else 1.0
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=100 * eps * scale)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name, x64):
    check(TRANSFORMED[name], *arguments())


@pytest.mark.parametrize("shape", KERNELS.values(), ids=KERNELS)
def test_kernels(shape):
    for name in ("value", "grad"):
        check(TRANSFORMED[name], *arguments(shape))
        check(TRANSFORMED[name], *arguments(shape, num=1, size=(1, 1)))


def test_what_is_compiled_is_convolutions_of_images():
    """No dimension in an order for which XLA's CPU backend has no fast code, in a loop or outside."""
    x, kernel = arguments(num=8)
    text = jax.jit(jax.grad(functools.partial(in_a_loop, convolve), argnums=(0, 1))).lower(x, kernel).as_text()
    orders = re.findall(r"dim_numbers = (\S.*?), window", text)
    assert len(orders) >= 3 and set(orders) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}, set(orders)


@pytest.mark.parametrize("of", ["loss", "loop"])
def test_inside_a_shard_map(of):
    """Devices see parts of the batch; the kernel's gradient is the sum over them."""
    x, kernel = arguments(num=2)
    mesh = jax.make_mesh((1,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))

    def outputs(conv):
        def loss(kernel, x):
            value = squares(conv, x, kernel) if of == "loss" else in_a_loop(conv, x, kernel)
            return jax.lax.psum(value, "b")

        specs = (PartitionSpec(), PartitionSpec("b"))
        return jax.jit(jax.shard_map(jax.value_and_grad(loss), mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(kernel, x)

    for ours, theirs in zip(outputs(convolve), outputs(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(jnp.abs(theirs).max()))
    with pytest.raises(ValueError, match="out_specs"):  # the output varies with the shard of x: it must not pass for replicated
        specs = {"in_specs": (PartitionSpec("b"), PartitionSpec()), "out_specs": PartitionSpec()}
        jax.shard_map(convolve, mesh=mesh, **specs)(x, kernel)


def test_exported():
    x, kernel = arguments()
    exported = jax.export.export(jax.jit(convolve))(x, kernel)
    np.testing.assert_array_equal(exported.call(x, kernel), jax.jit(convolve)(x, kernel))


@pytest.mark.parametrize("shapes", [((2, 4, 4, 3), (3, 3, 2, 1)), ((4, 4, 3), (3, 3, 3, 1)), ((2, 4, 4, 3), (3, 3, 3))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"x must be \(N, H, W, C\) and kernel \(kh, kw, C, C_out\), got"):
        convolve_before(*(jnp.zeros(shape) for shape in shapes), (0, 0))


def test_even_kernels_have_no_middle():
    with pytest.raises(ValueError, match=r"kernel of odd height and width, got \(2, 3, 1, 1\)"):
        convolve(jnp.zeros((1, 4, 4, 1)), jnp.zeros((2, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"before must be within the kernel of \(2, 3\) rows and columns, got \(2, 0\)"):
        convolve_before(jnp.zeros((1, 4, 4, 1)), jnp.zeros((2, 3, 1, 1)), (2, 0))


@pytest.mark.parametrize("name", ["grad", "forward_over_reverse", "vmap_kernel"])
def test_a_kernel_that_ends_at_its_pixel_is_a_masked_one(name, x64):
    def before(x, kernel):
        return convolve_before(x, kernel, (1, 1))

    def masked(x, kernel):
        return reference(x, jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))))

    check(TRANSFORMED[name], *arguments((2, 2, 2, 5)), before, masked)


def test_one_dtype():
    with pytest.raises(TypeError, match="x and kernel must be of one dtype, got bfloat16 and float32"):
        convolve(jnp.zeros((1, 2, 2, 1), jnp.bfloat16), jnp.zeros((3, 3, 1, 1)))


def test_layer_takes_any_batch_axes(key):
    layer = Conv(4)
    x = jax.random.normal(key, (2, 3, 5, 4, 2))
    params = nets.init(layer, key, x[0, 0])
    out = nets.apply(layer, params, x)
    assert out.shape == (2, 3, 5, 4, 4)
    np.testing.assert_allclose(out[1, 2], nets.apply(layer, params, x[1, 2]), rtol=1e-5, atol=1e-6)
    wanted = reference(x[0], params["kernel"]) + jnp.broadcast_to(params["bias"], (3, 5, 4, 4))
    np.testing.assert_allclose(out[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "net",
    [nets.GlowNet(4), nets.ResNet(4, 1, layer_norm=True), nets.GatedAttentionNet(4, num_heads=2)],
    ids=lambda n: type(n).__name__,
)
def test_bodies_keep_the_pixels(net, key):
    x = jax.random.normal(key, (3, 2, 1))

    @jax.jit
    def outputs(key):
        params = nets.init(net, key, x)
        half = nets.apply(net.clone(dtype=jnp.bfloat16), params, x)
        batch = jax.vmap(lambda x: nets.apply(net, params, x))(jnp.stack([x, 2 * x]))
        return nets.apply(net, params, x), half, batch

    out, half, batch = outputs(key)
    assert out.shape == (3, 2, 4) and out.dtype == jnp.float32
    assert jnp.abs(half - out).max() < 0.1 * jnp.abs(out).max()
    np.testing.assert_allclose(batch[0], out, rtol=1e-4, atol=1e-5)


def test_attention_reads_every_pixel(key):
    net = nets.GatedAttentionNet(4, num_heads=2)
    x = jax.random.normal(key, (9, 1, 1))
    reads = jax.jit(jax.grad(lambda x: nets.apply(net, nets.init(net, key, jnp.ones_like(x)), x)[0].sum()))(x)
    assert (jnp.abs(reads) > 0).all()
    with pytest.raises(ValueError, match="hidden_channels must be a multiple of num_heads=4, got 6"):
        nets.init(nets.GatedAttentionNet(6), key, x)
