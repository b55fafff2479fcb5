"""Parameters: what stands in a `Fixed` is kept, saved and loaded with the rest, and trained by nothing; no name is special."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod import bijectors as bj, nets
from genmod.core.params import cast, trainable, trainable_mask, with_trainable

pytestmark = pytest.mark.usefixtures("quick_compile")
PARAMS = {"fixed": jnp.ones(3), "layers": ({"kernel": jnp.full((2, 2), 2.0), "statistics": gm.Fixed({"mean": jnp.ones(5)})},)}


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_what_is_fixed_is_not_counted_or_trained():
    mask = trainable_mask(PARAMS)
    assert mask == {"fixed": True, "layers": ({"kernel": True, "statistics": gm.Fixed({"mean": False})},)}
    assert gm.num_params(PARAMS) == 3 + 4
    seen = trainable(PARAMS)
    assert [leaf.shape for leaf in jax.tree.leaves(seen)] == [(3,), (2, 2)]
    same(with_trainable(PARAMS, seen), PARAMS)
    doubled = with_trainable(PARAMS, jax.tree.map(lambda p: 2 * p, seen))
    np.testing.assert_array_equal(doubled["fixed"], 2 * np.ones(3))
    np.testing.assert_array_equal(doubled["layers"][0]["statistics"].tree["mean"], np.ones(5))


def test_fixed_is_a_pytree_like_any_other():
    node = gm.Fixed({"a": jnp.arange(3.0), "n": jnp.arange(2)})
    assert [leaf.shape for leaf in jax.tree.leaves(node)] == [(3,), (2,)]
    same(jax.jit(lambda node: node)(node), node)
    batched = jax.vmap(lambda node, x: gm.Fixed(node.tree["a"] * x), (None, 0))(node, jnp.arange(4.0))
    assert batched.tree.shape == (4, 3)
    path = jax.tree_util.keystr(jax.tree.leaves_with_path({"b": node})[0][0])
    assert path == "['b'].tree['a']"


def test_no_gradient_passes_what_is_fixed():
    def loss(params):
        statistics = params["layers"][0]["statistics"].constant
        return (params["fixed"] ** 2).sum() + statistics["mean"].sum() * params["layers"][0]["kernel"].sum()

    grads = jax.grad(loss)(PARAMS)
    np.testing.assert_array_equal(grads["fixed"], 2 * np.ones(3))
    np.testing.assert_array_equal(grads["layers"][0]["kernel"], np.full((2, 2), 5.0))
    np.testing.assert_array_equal(grads["layers"][0]["statistics"].tree["mean"], np.zeros(5))


def test_a_cast_reaches_the_floats_only(x64):
    params = {"a": jnp.ones(2, jnp.float32), "n": jnp.arange(3, dtype=jnp.int32), "c": gm.Fixed(jnp.ones((), jnp.float32))}
    wide = cast(params, jnp.float64)
    assert (wide["a"].dtype, wide["n"].dtype, wide["c"].tree.dtype) == (jnp.float64, jnp.int32, jnp.float64)


# --- training ----------------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """A user's network one of whose layers is called "fixed"."""

    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(4, name="fixed")(x))


def fitted(flow, x, **options):
    options = {"optimizer": optax.adamw(1e-2, weight_decay=0.1), "num_steps": 5, "batch_size": 16, "progress": False} | options
    start = flow.init(jax.random.key(0), x)
    return start, gm.fit(flow, x, key=jax.random.key(1), params=start, **options).params


def data(dim=2, num=64):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((num, dim)) * (1 + np.arange(dim)) + 3.0).astype(np.float32)


def test_a_layer_called_fixed_trains():
    flow = gm.models.Flow(bj.Coupling(bj.Affine(), Named(), 1), gm.densities.Normal((2,)))
    start, end = fitted(flow, data())
    for name in ("kernel", "bias"):
        assert jnp.abs(end["bijector"]["body"]["fixed"][name] - start["bijector"]["body"]["fixed"][name]).max() > 1e-4


def test_training_leaves_what_is_fixed_bit_for_bit():
    flow = gm.flows.real_nvp((2,), 2, hidden_sizes=(4,))
    start, end = fitted(flow, data())
    statistics = start["bijector"][-1]["statistics"]
    np.testing.assert_allclose(statistics.tree["shift"], data().mean(0), rtol=1e-5)
    same(end["bijector"][-1]["statistics"], statistics)
    moved = [
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(trainable(start)), jax.tree.leaves(trainable(end)), strict=True)
    ]
    assert all(moved)


@dataclasses.dataclass(frozen=True)
class Shifted(bj.Bijector):
    """x_i = z_i + an entry of an embedding: its network reads an integer."""

    def _init(self, key, x, context):
        return {"table": nets.init(nn.Embed(3, x.shape[1]), key, jnp.zeros((), int))}

    def _shift(self, params):
        return nets.apply(nn.Embed(3, params["table"]["embedding"].shape[1]), params["table"], jnp.asarray(2))

    def _forward(self, params, z, context):
        return z + self._shift(params), 0.0

    def _inverse(self, params, x, context):
        return x - self._shift(params), 0.0


def test_the_table_of_an_embedding_is_real_and_trains():
    start, end = fitted(gm.models.Flow(Shifted(), gm.densities.Normal((2,))), data())
    start, end = (params["bijector"]["table"]["embedding"] for params in (start, end))
    assert start.dtype == end.dtype == jnp.float32 and jnp.abs(start).max() > 0.01
    assert (jnp.abs(end - start)[2] > 1e-3).all()
