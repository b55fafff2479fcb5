"""Networks: what they start as, what they read, and the door to Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genmod import nets

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_head_starts_at_zero_and_learns(key):
    head = nets.ZeroHead(nets.MLP((8, 8)), 3)
    x = jnp.ones(2)
    params = nets.init(head, key, x)
    assert (nets.apply(head, params, x) == 0).all()
    grads = jax.grad(lambda p: nets.apply(head, p, x).sum())(params)
    assert jnp.abs(grads["Dense_0"]["kernel"]).max() > 0


def test_mlp_is_the_formula(key):
    mlp = nets.MLP((4, 3), jnp.tanh)
    x = jnp.array([0.3, -1.0])
    params = nets.init(mlp, key, x)
    first, second = params["Dense_0"], params["Dense_1"]
    wanted = jnp.tanh(jnp.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"])
    np.testing.assert_allclose(nets.apply(mlp, params, x), wanted, rtol=1e-5, atol=1e-6)


def test_biases_of_one_input_spread_the_kinks(key):
    bias = nets.init(nets.MLP((64,)), key, jnp.ones(1))["Dense_0"]["bias"]
    # U(-1, 1): 64 draws have a standard deviation of 0.577 +- 0.032.
    assert jnp.abs(bias).max() <= 1 and abs(float(bias.std()) - 3**-0.5) < 0.13


def test_bfloat16_computes_in_bfloat16_and_returns_float32(key):
    body = nets.MLP((16,), jnp.tanh, layer_norm=True, dtype=jnp.bfloat16)
    x = jax.random.normal(key, (4,))
    params = nets.init(nets.ZeroHead(body, 2), key, x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert nets.apply(body, params["body"], x).dtype == jnp.bfloat16
    assert nets.apply(nets.ZeroHead(body, 2), params, x).dtype == jnp.float32


def test_parameters_follow_the_precision_of_the_input(key, x64):
    for module in (nets.ZeroHead(nets.MLP((4,)), 2), nets.MADE((4,))):
        for dtype in (jnp.float32, jnp.float64):
            params = nets.init(module, key, jnp.ones(3, dtype))
            assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
            assert nets.apply(module, params, jnp.ones(3, dtype)).dtype == dtype


def test_integer_inputs_leave_the_parameters_real(key, x64):
    """An embedding's table is no table of integers, whatever it is read with."""

    class Character(nn.Module):
        @nn.compact
        def __call__(self, token, x=None):
            embedded = nn.Embed(5, 3)(token)
            return nn.Dense(2)(embedded if x is None else jnp.concatenate([embedded, x]))

    for kind in (jnp.int32, jnp.uint8, jnp.int64):
        params = nets.init(Character(), key, jnp.zeros((), kind))
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        table = params["Embed_0"]["embedding"]
        assert table.shape == (5, 3) and jnp.abs(table - jnp.round(table)).max() > 0.1
    wide = nets.init(Character(), key, jnp.zeros((), int), jnp.zeros(2, jnp.float64))  # the reals among the inputs decide
    assert {p.dtype for p in jax.tree.leaves(wide)} == {jnp.dtype("float64")}


@pytest.mark.parametrize("widths", [(-8,), (64.0,), (0,), (8, True), 64, "64", None], ids=repr)
@pytest.mark.parametrize("net", [nets.MLP, nets.MADE, nets.VelocityMLP])
def test_widths_are_checked_at_construction(net, widths):
    with pytest.raises((TypeError, ValueError), match="^hidden_sizes must (be a tuple of|hold) integers.*, got"):
        net(widths)
    assert net([8, np.int64(4)]) == net((8, 4))
    with pytest.raises((TypeError, ValueError), match="^hidden_sizes must"):
        net((8,)).clone(hidden_sizes=widths)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nets.MADE((8,), num_outputs=0), "num_outputs must be an integer >= 1, got 0"),
        (lambda: nets.MADE((), direct=True), r"direct connections pass hidden layers, got hidden_sizes=\(\)"),
        (lambda: nets.VelocityMLP((8,), conditioning="film"), "conditioning must be 'concat' or 'concat_squash', got 'film'"),
        (lambda: nets.VelocityMLP((8,), num_frequencies=-1), "num_frequencies must be an integer >= 0, got -1"),
        (lambda: nets.GlowNet(0), "hidden_channels must be an integer >= 1, got 0"),
        (lambda: nets.ResNet(8.0), "hidden_channels must be an integer >= 1, got 8.0"),
        (lambda: nets.ResNet(8, num_blocks=0), "num_blocks must be an integer >= 1, got 0"),
        (lambda: nets.GatedAttentionNet(8, num_heads=0), "num_heads must be an integer >= 1, got 0"),
        (lambda: nets.GatedAttentionNet(6), "hidden_channels must be a multiple of num_heads=4, got 6"),
        (lambda: nets.UNet(0), "hidden_channels must be an integer >= 1, got 0"),
        (lambda: nets.UNet(multipliers=()), "num_multipliers must be an integer >= 1, got 0"),
        (lambda: nets.UNet(multipliers=(1, 0)), r"multipliers must hold integers >= 1, got \(1, 0\)"),
        (lambda: nets.UNet(num_heads=0), "num_heads must be an integer >= 1, got 0"),
        (lambda: nets.ZeroHead(nets.MLP((8,)), 0), "num_outputs must be an integer >= 1, got 0"),
    ],
)
def test_sizes_are_checked_at_construction(make, match):
    with pytest.raises(ValueError, match=f"^{match}"):
        make()


def test_hidden_state_is_refused(key):
    with pytest.raises(ValueError, match=r"keeps mutable collections \['batch_stats'\]"):
        nets.init(nn.BatchNorm(use_running_average=False), key, jnp.ones((2, 3)))


@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize(("dim", "hidden"), [(5, (12, 12)), (5, (3,)), (1, (4,))])
def test_made_reads_earlier_inputs_only(dim, hidden, context, key):
    made = nets.MADE(hidden, jnp.tanh, num_outputs=2)
    inputs = (jnp.linspace(-1, 1, dim), *(() if context is None else (jnp.array([0.5, -0.3]),)))
    params = jax.tree.map(lambda p: p + 0.3, nets.init(made, key, *inputs))
    jacobian = np.abs(jax.jacfwd(lambda x: nets.apply(made, params, x, *inputs[1:]))(inputs[0])).max(1)
    assert (np.triu(jacobian) == 0).all()
    if hidden[0] >= dim:
        assert (jacobian[np.tril_indices(dim, -1)] > 0).all()
    else:
        assert (jacobian.max(1)[1:] > 0).any()
    if context is not None:
        by_context = jax.jacfwd(lambda c: nets.apply(made, params, inputs[0], c))(inputs[1])
        assert (jnp.abs(by_context).max((1, 2)) > 0).all()  # every coordinate, the first included


def test_made_without_hidden_layers_refuses_a_context(key):
    with pytest.raises(ValueError, match="without hidden layers cannot read a context"):
        nets.init(nets.MADE(()), key, jnp.ones(3), jnp.ones(2))


def test_nnx_module_is_the_module(key):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    x = jnp.array([0.2, -0.4, 1.0])
    module = nets.NNXModule(Net)
    params = nets.init(module, key, x)["nnx"]
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    wanted = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    np.testing.assert_allclose(jax.jit(lambda p: nets.apply(module, {"nnx": p}, x))(params), wanted, rtol=1e-5)
    assert module == nets.NNXModule(Net) and hash(module) == hash(nets.NNXModule(Net))


def test_nnx_state_is_refused(key):
    with pytest.raises(ValueError, match="keeps state beside its parameters"):
        nets.init(nets.NNXModule(lambda rngs: nnx.BatchNorm(3, rngs=rngs)), key, jnp.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "net", [nets.UNet(4, (1,), num_heads=2), nets.VelocityMLP((8,)), nets.VelocityMLP((8,), num_frequencies=4)]
)
def test_noise_levels_do_not_look_alike(net, key):
    """A network tells all log signal-to-noise ratios -8 c in [-40, 40] apart."""
    x, c = jnp.ones((2, 2, 1) if isinstance(net, nets.UNet) else (2,)), jnp.linspace(-5.0, 5.0, 41)
    params = nets.init(net, key, x, c[0])
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(key, p.shape), params)
    out = jax.jit(jax.vmap(lambda c: nets.apply(net, params, x, c).reshape(-1)))(c)
    gaps = jnp.abs(out[:, None] - out[None]).max(-1) + jnp.eye(41)
    assert gaps.min() > 1e-4, jnp.argwhere(gaps == gaps.min())


@pytest.mark.slow
def test_unet_keeps_the_image_and_reads_level_and_context(key):
    net = nets.UNet(4, (1, 2), num_heads=2)
    x, c, context = jax.random.normal(key, (4, 6, 3)), jnp.asarray(0.3), jnp.array([1.0, 0.0])

    @jax.jit
    def outputs(key):
        params = nets.init(net, key, x, c, context)
        moved = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)

        def corner(x, size, c, context):
            at = jax.tree.map(lambda start, moved: start + size * (moved - start), params, moved)
            out = nets.apply(net, at, x, c, context)
            return out[0, 0].sum(), out

        sizes, levels = jnp.array([0.0, 1.0, 1.0, 1.0]), jnp.stack([c, c, -c, c])
        contexts = jnp.stack([context, context, context, context[::-1]])
        reads, out = jax.vmap(jax.grad(corner, has_aux=True), (None, 0, 0, 0))(x, sizes, levels, contexts)
        return *out, reads[1]

    start, out, other_level, other_context, reads = outputs(key)
    assert out.shape == x.shape and (start == 0).all()
    assert jnp.abs(out - other_level).max() > 1e-4 and jnp.abs(out - other_context).max() > 1e-4
    assert (jnp.abs(reads) > 0).all()  # by way of attention, every pixel
    with pytest.raises(ValueError, match=r"whose height and width 2 divides, got shape \(3, 4, 1\)"):
        nets.init(net, key, jnp.zeros((3, 4, 1)), c)
    with pytest.raises(ValueError, match="must be a multiple of num_heads=3, got 4"):
        nets.init(nets.UNet(4, (1,), num_heads=3), key, x, c)
