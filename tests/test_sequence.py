"""Sequence networks: step by step, in pieces and whole are the same, and nothing sees the future. One line of NETS each."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod import nets
from genmod.core.params import cast
from genmod.nets import CausalConv, CausalTransformer, LearnedPositions, Pointwise, Recurrent, RotaryPositions, Stack

pytestmark = pytest.mark.usefixtures("quick_compile")
LENGTH, FEATURES = 12, 3


class Case(NamedTuple):
    net: Any
    steps_back: tuple[int, ...] = tuple(range(LENGTH))  # at which inputs y_t looks
    num_tokens: int | None = None  # for nets that embed


NETS = {
    "rnn": Case(Recurrent(nn.SimpleCell(5))),
    "lstm": Case(Recurrent(nn.LSTMCell(5))),
    "gru": Case(Recurrent(nn.GRUCell(5))),
    "pointwise": Case(Pointwise(nets.MLP((5,), nn.silu)), steps_back=(0,)),
    "conv": Case(CausalConv(6, 2, (1, 2, 4)), steps_back=tuple(range(8))),
    "conv_of_three_taps": Case(CausalConv(6, 3, (1, 3)), steps_back=tuple(range(9))),
    "transformer": Case(CausalTransformer(16, 8, num_heads=2)),
    "transformer_of_learned_positions": Case(CausalTransformer(16, 6, num_heads=2, positions=LearnedPositions())),
    "stack": Case(Stack((CausalConv(6, 2, (1,)), Recurrent(nn.GRUCell(5)), Pointwise(nn.Dense(4))))),
    "two_convs": Case(Stack((CausalConv(4, 2, (2,)), CausalConv(4, 2, (3,)))), steps_back=(0, 2, 3, 5)),
    "character_model": Case(Stack((Pointwise(nn.Embed(7, 4)), Recurrent(nn.LSTMCell(5)), Pointwise(nn.Dense(7)))), num_tokens=7),
}
by_name = pytest.mark.parametrize("name", NETS)
by_real_name = pytest.mark.parametrize("name", [name for name, case in NETS.items() if not case.num_tokens])


@functools.cache
def make(name, dtype=jnp.float32):
    """The net, parameters none of which is at its special start (a bias of zero), and a sequence."""
    case, keys = NETS[name], jax.random.split(jax.random.key(0), 3)
    if case.num_tokens:
        x = jax.random.randint(keys[0], (LENGTH,), 0, case.num_tokens)
    else:
        x = jax.random.normal(keys[0], (LENGTH, FEATURES), dtype)
    params = cast(jax.jit(case.net.init)(keys[1], x), dtype)
    leaves, structure = jax.tree.flatten(params)
    noise = [
        0.2 * jax.random.normal(k, a.shape, dtype) for k, a in zip(jax.random.split(keys[2], len(leaves)), leaves, strict=True)
    ]
    return case.net, jax.tree.unflatten(structure, [a + z for a, z in zip(leaves, noise, strict=True)]), x


@functools.partial(jax.jit, static_argnums=0)
def whole(net, params, x):
    return net.apply(params, x)


@functools.partial(jax.jit, static_argnums=0)
def by_steps(net, params, x):
    return jax.lax.scan(lambda carry, x_t: net.step(params, carry, x_t), net.init_carry(params), x)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
@by_name
def test_step_by_step_is_the_whole(name, dtype):
    """In one compiled scan, whose carry cannot change its shapes and dtypes."""
    with jax.enable_x64(dtype == jnp.float64):
        net, params, x = make(name, dtype)
        y = whole(net, params, x)
        carry, steps = by_steps(net, params, x)
        blank = jax.eval_shape(net.init_carry, params)
    y, steps = np.asarray(y), np.asarray(steps)
    assert y.shape[0] == LENGTH and y.ndim == 2 and y.dtype == dtype
    atol = 40 * np.finfo(dtype).eps
    np.testing.assert_allclose(steps, y, rtol=0, atol=atol * np.abs(y).max())
    assert np.abs(y - y[:1]).max() > 0.1  # the steps differ
    assert jax.tree.map(lambda a: (a.shape, a.dtype), carry) == jax.tree.map(lambda a: (a.shape, a.dtype), blank)


@by_name
def test_pieces_are_the_whole(name):
    net, params, x = make(name)

    @jax.jit
    def in_pieces(params, x):
        carry, pieces = net.init_carry(params), []
        for start, end in ((0, 1), (1, 1), (1, 9), (9, 12)):
            carry, y = net.extend(params, carry, x[start:end])
            pieces.append(y)
        return jnp.concatenate(pieces)

    np.testing.assert_allclose(in_pieces(params, x), whole(net, params, x), atol=1e-5)


@by_real_name
def test_outputs_see_the_past_alone(name):
    """By the pattern of zeros in the Jacobian: exact zeros in the future, and where a convolution does not reach."""
    net, params, x = make(name)
    jacobian = jax.jit(jax.jacobian(functools.partial(net.apply, params)))(x)  # (T, outputs, T, features)
    depends = np.asarray((jacobian != 0).any((1, 3)))
    i, j = np.indices((LENGTH, LENGTH))
    np.testing.assert_array_equal(depends, np.isin(i - j, NETS[name].steps_back))


def test_tokens_see_the_past_alone():
    net, params, x = make("character_model")
    y = whole(net, params, x)
    for t, tokens in enumerate(np.asarray(x)[None] + np.eye(LENGTH, dtype=np.int32)):
        changed = whole(net, params, jnp.asarray(tokens % 7))
        np.testing.assert_array_equal(changed[:t], y[:t])
        assert (jnp.abs(changed[t:] - y[t:]).max(1) > 0).all()


@by_name
def test_vmap_batches(name):
    net, params, x = make(name)
    batch = jnp.stack([x, x[::-1]])
    y = jax.jit(jax.vmap(net.apply, (None, 0)))(params, batch)
    for row, each in zip(y, batch, strict=True):
        np.testing.assert_allclose(row, whole(net, params, each), atol=1e-5)
    step = jax.jit(jax.vmap(net.step, (None, None, 0)))
    np.testing.assert_allclose(step(params, net.init_carry(params), batch[:, 0])[1], y[:, 0], atol=1e-5)


@by_name
def test_every_parameter_has_a_gradient(name):
    net, params, x = make(name)
    gradient = jax.jit(jax.grad(lambda params: (net.apply(params, x)[-1] ** 2).sum() + jnp.sin(net.apply(params, x)).sum()))(
        params
    )
    leaves = jax.tree.leaves_with_path(gradient)
    assert all(jnp.isfinite(leaf).all() for _, leaf in leaves)
    # A constant added to all keys adds one number to all scores: the softmax does not see it.
    without = [jax.tree_util.keystr(path) for path, leaf in leaves if float(jnp.abs(leaf).max()) < 1e-6]
    assert all(name.startswith("transformer") and "bias" in path for path in without), without


@pytest.mark.parametrize("positions", [RotaryPositions(), LearnedPositions()])
def test_the_transformer_against_its_formula(positions):
    """Two heads of four features, three steps, written out in NumPy."""
    net = CausalTransformer(3, 8, num_layers=1, num_heads=2, positions=positions)
    x = np.array([[0.3, -0.7, 1.1], [1.5, 0.2, -0.4], [-0.1, 0.9, 0.6]], np.float32)
    params = jax.jit(net.init)(jax.random.key(2), jnp.asarray(x))
    p = jax.tree.map(np.asarray, params)

    def dense(name, a):
        kernel = p[name]["kernel"]
        return a @ kernel.reshape(a.shape[-1], -1) + p[name]["bias"].reshape(-1)

    def norm(name, a):
        a = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)
        return a * p[name]["scale"] + p[name]["bias"]

    def turn(a):  # eq. 34: features i and i + 2 as a complex number, times exp(i t / 10000^(i / 2))
        pairs = (a[:, :2] + 1j * a[:, 2:]) * np.exp(1j * np.arange(3)[:, None] * np.array([1.0, 0.01])[None])
        return np.concatenate([pairs.real, pairs.imag], 1)

    def attend(q, k, v):
        q, k = (turn(q), turn(k)) if positions == RotaryPositions() else (q, k)
        scores = np.where(np.tril(np.ones((3, 3))) > 0, q @ k.T / 2.0, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return weights @ v

    h = dense("Dense_0", x) + (p["positions"]["table"] if "positions" in p else 0.0)
    q, k, v = (dense(f"DenseGeneral_{i}", norm("LayerNorm_0", h)) for i in range(3))
    heads = [attend(q[:, i : i + 4], k[:, i : i + 4], v[:, i : i + 4]) for i in (0, 4)]
    h = h + dense("DenseGeneral_3", np.concatenate(heads, 1))
    h = h + dense("Dense_2", np.asarray(nn.gelu(dense("Dense_1", norm("LayerNorm_1", h)))))
    np.testing.assert_allclose(whole(net, params, jnp.asarray(x)), norm("LayerNorm_2", h), atol=1e-5)


def test_the_transformer_does_not_step_beyond_its_cache():
    net = CausalTransformer(3, 4, num_layers=1, num_heads=1)
    x = jnp.ones((3, 2))
    params = jax.jit(net.init)(jax.random.key(0), x)
    carry, y = jax.jit(net.extend)(params, net.init_carry(params), x)
    assert jnp.isfinite(y).all()
    assert jnp.isnan(jax.jit(net.step)(params, carry, x[0])[1]).all()
    with pytest.raises(ValueError, match="a sequence must have at most max_length=3 steps, got 4"):
        net.apply(params, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="a sequence must have at most max_length=3 steps, got 4"):
        net.extend(params, carry, jnp.ones((4, 2)))


def test_learned_positions_end_where_they_were_learned():
    net, longer = (CausalTransformer(n, 4, num_layers=1, num_heads=1, positions=LearnedPositions()) for n in (3, 4))
    x = jnp.ones((4, 2))
    params = jax.jit(net.init)(jax.random.key(0), x[:2])
    assert params["positions"]["table"].shape == (3, 4)
    with pytest.raises(ValueError, match="a sequence must have at most max_length=3 steps, got 4"):
        net.apply(params, x)
    with pytest.raises(ValueError, match="params hold learned positions of 3 steps, but the Transformer has max_length=4"):
        longer.apply(params, x)
    with pytest.raises(ValueError, match="params hold learned positions of 3 steps, but the Transformer has max_length=4"):
        longer.step(params, longer.init_carry(params), x[0])


def test_a_cell_in_half_precision_keeps_its_carry():
    net = Recurrent(nn.SimpleCell(5, dtype=jnp.bfloat16))
    x = jax.random.normal(jax.random.key(0), (LENGTH, FEATURES))
    params = jax.jit(net.init)(jax.random.key(1), x)
    carry, y = by_steps(net, params, x)
    assert carry.dtype == jnp.float32
    full = whole(Recurrent(nn.SimpleCell(5)), params, x)
    np.testing.assert_allclose(y.astype(jnp.float32), full, atol=0.1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Stack(()), TypeError, "nets must be a tuple of at least one SequenceNet"),
        (lambda: Stack((nn.Dense(3),)), TypeError, "a Linen module of one step stands in a Pointwise"),
        (lambda: Pointwise("gru"), TypeError, "module must be a Module, got 'gru'"),
        (lambda: Recurrent(nn.Dense(3)), TypeError, "cell must be a RNNCellBase, got Dense"),
        (lambda: CausalConv(dilations=(1, 0)), ValueError, "dilations must be an integer >= 1, got 0"),
        (lambda: CausalConv(dilations=2), TypeError, r"dilations must be a tuple of integers, got 2; write \(2,\)"),
        (lambda: CausalConv(kernel_size=0), ValueError, "kernel_size must be an integer >= 1, got 0"),
        (lambda: CausalTransformer(8, 6, num_heads=2), ValueError, "num_features must be a multiple of 2 num_heads"),
        (
            lambda: CausalTransformer(8, 7, num_heads=2, positions=LearnedPositions()),
            ValueError,
            "num_features must be a multiple of num_heads, got num_features=7, num_heads=2",
        ),
        (lambda: CausalTransformer(8, positions="learned"), TypeError, "positions must be a Positions, got 'learned'"),
        (
            lambda: Recurrent(nn.GRUCell(3)).init(jax.random.key(0), jnp.zeros(4, int)),
            ValueError,
            r"x must be a floating array of shape \(T, features\), got int32 of shape \(4,\); put Pointwise\(nn.Embed",
        ),
    ],
)
def test_bad_settings(call, error, match):
    with pytest.raises(error, match=match):
        call()
