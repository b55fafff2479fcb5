"""`Conditioned`: contexts in their own precision, and what the initialising batch does not show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import FLOWS

import genmod as gm
from genmod import bijectors as bj

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(2)
Z = RNG.standard_normal((200, 1))
X = (Z + 0.3 * RNG.standard_normal((200, 1))).astype(np.float32)
DAY = 2_459_000.5 + 0.02 * Z  # Julian dates; float32 has a number every quarter of a day there


def conditioned(context, x=X):
    layer = bj.Conditioned(bj.Planar(context.shape[1:]))
    return layer, layer.init(jax.random.key(0), jnp.asarray(x), context)


# --- precision -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_context_is_centred_before_it_is_rounded(dtype, x64):
    layer, params = conditioned(DAY, jnp.asarray(X, dtype))
    wanted = (DAY - DAY.mean()) / DAY.std()
    seen = layer.encode(params, jnp.asarray(DAY))
    assert seen.dtype == np.float32 and {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(np.float32)}
    # The mean is a sum of two float32, eps^2 of 2.5e6 off; the scale and the result are rounded.
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(seen, wanted, rtol=8 * eps, atol=4 * eps**2 * DAY.mean() / DAY.std() + eps)


@pytest.mark.parametrize("name", ["real_nvp", "flow_matching", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_models_keep_the_digits_of_a_context(name, x64, key):
    """float32 data given float64 dates are as well explained as given the dates in units of their own."""
    if name == "diffusion":
        model = gm.flows.diffusion(
            (1,), hidden_sizes=(8,), context_shape=(1,), sampler=gm.denoising.Steps(grid=gm.denoising.LogSNRGrid(4))
        )
    else:
        model = FLOWS[name]((1,), context_shape=(1,))

    def loss(context):
        params = model.init(key, X, context)
        moved = jax.tree.map(lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
        own = moved["bijector"][0] | {"context": params["bijector"][0]["context"]}
        moved = params | {"bijector": (own, *params["bijector"][1:])}
        value = jax.jit(model.loss)(moved, key, (X, context))[0]
        drawn = model.sample(moved, key, (), context[:4])
        assert drawn.dtype == np.float32 and model.log_prob(moved, X[:4], context[:4]).dtype == np.float32
        return value, drawn

    (dated, draws), (plain, wanted) = loss(DAY), loss(Z)
    np.testing.assert_allclose(dated, plain, rtol=1e-5)
    np.testing.assert_allclose(draws, wanted, rtol=1e-3, atol=1e-3)


@dataclasses.dataclass(frozen=True)
class Shifted(gm.Bijector):
    """x = z + context, a bijector that reads its context as it comes."""

    context_shape: tuple[int, ...] | None = (1,)

    def _init(self, key, x, context):
        return {"zeros": jnp.zeros_like(context[0])}

    def _forward(self, params, z, context):
        return z + context, 0.0

    def _inverse(self, params, x, context):
        return x - context, 0.0


def test_bijectors_of_ones_own_get_contexts_in_the_precision_of_the_event(x64):
    layer = bj.Chain((Shifted(), bj.Reverse()))
    params = layer.init(jax.random.key(0), jnp.asarray(X), DAY)
    assert params[0]["zeros"].dtype == np.float32
    flow = gm.models.Flow(layer, gm.densities.Normal((1,)))
    assert layer.inverse(params, jnp.asarray(X[0]), DAY[0]).dtype == np.float32
    assert flow.log_prob({"bijector": params}, X, DAY).dtype == flow.encode({"bijector": params}, X, DAY).dtype == np.float32


def test_integers_beyond_those_of_jax_are_numbers():
    """2^40 would wrap around to 0."""
    layer, params = conditioned(np.array([[2**40, 5], [2**41, 6], [3 * 2**40, 7]]), X[:3])
    seen = layer.encode(params, jnp.asarray(np.array([[2.0**41, 6.0]], np.float32)))
    np.testing.assert_allclose(seen, 0.0, atol=1e-6)
    assert layer.forward(params, X[0], np.array([2**41, 6])).shape == (1,)


def test_integers_that_float32_does_not_resolve_are_said(key):
    seconds = 1_700_000_000 + RNG.integers(0, 3_600, (200, 2))
    model = FLOWS["planar_flow"]((1,), context_shape=(2,))
    with pytest.warns(UserWarning, match=r"column 0 of the context of data lies between 1\.7\d+e\+09 and .*gm\.data\.Units\.of"):
        gm.fit(model, (X, seconds), key=key, num_steps=1, progress=False)


# --- what the initialising batch does not show ---------------------------------------------------------------------------------


def test_flags_and_constants_keep_their_unit():
    first = np.array([[0.0, 1.0, 7.0, 0.0, -3.0], [0.0, 1.0, 7.0, 1.0, 3.0]], np.float32)
    layer, params = conditioned(first, X[:2])
    later = jnp.array([[5.0, 5.0, 5.0, 5.0, 6.0]])
    np.testing.assert_allclose(layer.encode(params, later), [[5.0, 5.0, -2.0, 5.0, 2.0]], rtol=1e-6)
    one_row, alone = conditioned(first[1:], X[:1])
    np.testing.assert_array_equal(one_row.encode(alone, later), [[5.0, 5.0, -2.0, 5.0, 3.0]])


def test_without_data_a_model_that_reads_its_contexts_wants_parameters(key):
    flow = gm.models.Flow(bj.Conditioned(bj.Planar((1,))), gm.densities.Normal((1,)))
    with pytest.raises(ValueError, match=r"data=None wants params=\.\.\."):
        gm.fit(flow, None, key=key, loss_fn=lambda params, key, batch: (jnp.zeros(()), {}), num_steps=1)


def test_a_context_that_is_nan_has_no_density(key):
    """Also where the tails of a spline do not read their network."""
    model = FLOWS["neural_spline_flow"]((2,), context_shape=(1,))
    params = model.init(key, np.repeat(X, 2, 1), Z)
    far = np.full((2, 2), 1e3, np.float32)
    context = np.array([[np.nan], [1.0]], np.float32)
    np.testing.assert_array_equal(jnp.isnan(model.log_prob(params, far, context)), [True, False])
    assert jnp.isnan(model.sample(params, key, (3,), context[0])).all()
