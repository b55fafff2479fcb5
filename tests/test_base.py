"""Descriptions as configs, and the checks in the base class that every bijector relies on."""

import dataclasses
import enum
import functools
import json
import subprocess
import sys

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.base import describe, num_params, trainable_mask
from genmod.bijectors import Permutation, Planar, Radial, Repeat, Reverse, Whiten

LEAKY = """
import functools, json, jax, distrax, jax.numpy as jnp, optax, warnings
warnings.simplefilter("ignore")
import genmod as gm
from genmod.base import describe
base = distrax.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))
leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
flow = gm.flows.real_nvp((2,), 1, activation=leaky, base=base)
print(json.dumps([describe(flow), describe(optax.adamw(optax.cosine_decay_schedule(1e-3, 10)))]))
"""


def test_describe_is_the_same_in_every_process():
    one, other = (subprocess.run([sys.executable, "-c", LEAKY], capture_output=True, text=True, check=True) for _ in "ab")
    assert one.stdout == other.stdout
    assert "0x" not in one.stdout and '"negative_slope": 0.2' in one.stdout


class Colour(enum.Enum):
    RED = 1


class Sound(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optax.adam(1e-3), optax.adam(1e-2)),
        (lambda x: jnp.tanh(x), lambda x: jnp.sin(x)),
        (functools.partial(jnp.clip, min=0), functools.partial(jnp.clip, min=1)),
        (Colour.RED, Sound.RED),
        (Colour.RED, "RED"),
        (gm.flows.real_nvp((2,), 1).loss, gm.flows.real_nvp((2,), 2).loss),
        (jnp.zeros(3), jnp.ones(3)),
        (True, 1),
    ],
)
def test_describe_tells_different_things_apart(one, other):
    assert json.dumps(describe(one)) != json.dumps(describe(other))
    assert describe(one) == describe(one)


def test_fixed_arrays_are_not_counted_or_trained():
    params = {"a": jnp.ones(3), "b": {"fixed": {"c": jnp.ones(5)}}}
    assert trainable_mask(params) == {"a": True, "b": {"fixed": {"c": False}}}
    assert num_params(params) == 3


@dataclasses.dataclass(frozen=True)
class Cut(gm.Bijector):
    """Loses a coordinate."""

    def _init(self, key, x, context):
        return {}

    def _forward(self, params, z, context):
        return z[:1], 0.0

    def _inverse(self, params, x, context):
        return x[:1], 0.0


def test_a_bijector_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"Cut made an event of shape \(1,\) from one of shape \(2,\)"):
        Cut().inverse({}, jnp.zeros(2))
    wide = gm.from_distrax(distrax.ScalarAffine(shift=jnp.zeros(3), scale=2 * jnp.ones(3)))
    with pytest.raises(ValueError, match=r"from one of shape \(1,\)"):
        wide.inverse({}, jnp.zeros(1))
    with pytest.raises(ValueError, match=r"z must have shape \(2,\), got \(3,\)"):
        gm.densities.Normal((2,)).log_prob({}, jnp.zeros(3))


def test_a_context_takes_the_precision_of_the_event(x64):
    flow = gm.flows.masked_autoregressive_flow((2,), 1, hidden_sizes=(4,), context_shape=(3,))
    x = jnp.zeros((4, 2), jnp.float32)
    context = jnp.zeros((4, 3), jnp.float64)
    params = flow.init(jax.random.key(0), x, context)
    assert flow.log_prob(params, x, context).dtype == jnp.float32
    assert flow.sample(params, jax.random.key(0), (), context).shape == (4, 2)


def test_bfloat16_events_have_float32_densities():
    z = jax.random.normal(jax.random.key(0), (64,), jnp.bfloat16)
    log_prob = gm.densities.Normal((64,)).log_prob({}, z)
    wanted = -0.5 * np.sum(np.asarray(z, np.float64) ** 2 + np.log(2 * np.pi))
    assert log_prob.dtype == jnp.float32
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 50])
def test_whitening_is_sane_for_any_number_of_rows(num_rows):
    x = jax.random.normal(jax.random.key(0), (num_rows, 3)) * jnp.array([[1e3, 1.0, 1e-1]])
    params = Whiten().init(jax.random.key(0), x)
    z = jax.vmap(Whiten().inverse, (None, 0))(params, x)
    assert float(jnp.abs(z).max()) < 10
    if num_rows > 3:
        np.testing.assert_allclose(np.cov(np.asarray(z, np.float64).T, bias=True), np.eye(3), atol=1e-3)


def test_extreme_parameters_stay_finite():
    radial = {"b": jnp.zeros(2), "log_alpha": jnp.array(-10.0), "ratio": jnp.zeros(())}
    gradient = jax.grad(lambda p: Radial().inverse(p, jnp.array([5e3, 5e3])).sum())(radial)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    planar = {"w": jnp.zeros(2), "u": jnp.ones(2), "b": jnp.zeros(())}
    assert jnp.isfinite(Planar().forward(planar, jnp.ones(2))).all()


def test_repeat_of_a_layer_without_parameters():
    np.testing.assert_array_equal(Repeat(Reverse(), 3).forward({}, jnp.arange(3.0)), [2.0, 1.0, 0.0])


def test_linear_maps_keep_full_precision_on_every_backend():
    """On accelerators a product is rounded by default; the lowered program must ask for the highest precision."""
    layers = gm.bijectors
    for layer in (layers.MatrixAffine(), layers.LULinear((1, 0)), layers.Householder(2), Permutation((1, 0)), Whiten()):
        params = layer.init(jax.random.key(0), jax.random.normal(jax.random.key(1), (8, 2)))
        text = jax.jit(layer.forward_and_log_det).lower(params, jnp.ones(2)).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert all("HIGHEST" in line for line in products), type(layer).__name__
