"""The protocol that densities, toys, flows and models share: axes and how they broadcast, keys, one program, and messages."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from registry import AUTOENCODERS, DEQUANTIZERS, DIFFUSIONS, FLOWS, IMAGE_FLOWS, LATTICE_FLOWS, LAWS, ONE_STEP

import genmod as gm
from genmod import flows
from genmod.core.distribution import Distribution

pytestmark = pytest.mark.usefixtures("quick_compile")
EPS = float(np.finfo(np.float32).eps)
IMAGE = (4, 4, 1)


def draw(key):
    return jax.random.normal(key, (3,))


def score(x):
    return -0.5 * jnp.sum(x**2)


SIGMOID = gm.models.Flow(
    gm.bijectors.Chain((gm.bijectors.ScalarAffine(), gm.bijectors.Sigmoid())), gm.densities.Normal((2, 2, 1))
)

# Every family and builder.
MODELS: dict[str, Distribution] = {
    **{name: make((3,)) for name, make in {**FLOWS, **DIFFUSIONS, **ONE_STEP, **AUTOENCODERS}.items()},
    **{name: make(IMAGE) for name, make in IMAGE_FLOWS.items()},
    **{name: make((2, 4)) for name, make in LATTICE_FLOWS.items()},
    **LAWS,
    "conditional": FLOWS["real_nvp"]((3,), context_shape=(3,)),
    "conditional_ffjord": FLOWS["ffjord"]((3,), context_shape=(2, 2)),
    "estimate": FLOWS["ffjord"]((3,), divergence=gm.dynamics.Hutchinson(1)),
    "adaptive": flows.ffjord((3,), hidden_sizes=(4,)),
    "dequantized": gm.models.Dequantized(SIGMOID, 4, DEQUANTIZERS["dequantizer"]((2, 2, 1)), num_draws=2),
    "normal": gm.densities.Normal((3,)),
    "scalar": gm.densities.Laplace(()),
    "mixture": gm.densities.GaussianMixture((3,), 2),
    "toy": gm.data.TwoMoons(),
    "from_functions": gm.densities.FromFunctions((3,), draw, score),
}
SOME = pytest.mark.parametrize(
    "name",
    [
        *("conditional", "estimate", "dequantized", "scalar", "mixture", "toy", "hierarchical_autoencoder"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("conditional_ffjord", "adaptive")),
    ],
)
CONDITIONAL = ["conditional", "conditional_ffjord"]


class Case(NamedTuple):
    """A distribution, parameters away from where they start, and six events of it."""

    model: Distribution
    params: Any
    x: Any
    context: Any = None


@functools.cache
def case(name):
    model, rng = MODELS[name], np.random.default_rng(0)
    x = rng.random((6, *model.event_shape)).astype(np.float32)
    if isinstance(model.event, gm.Levels):
        x = np.floor(x * model.event.num_levels).astype(np.uint8)
    wanted = model.context_shape
    context = None if wanted is None else rng.standard_normal((6, *wanted)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, context)  # `init` would take long to compile
    return Case(model, jax.tree.map(lambda p: np.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), shapes), x, context)


def some_key(model):
    return None if model.likelihood is gm.Likelihood.EXACT else jax.random.key(5)


# --- axes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_log_prob_of_an_empty_batch_is_empty(name):
    model, params, x, context = case(name)
    given = None if context is None else context[0]
    if model.likelihood is gm.Likelihood.NONE:
        with pytest.raises(NotImplementedError, match=f"{type(model).__name__} has no log_prob"):
            model.log_prob(params, x[:0], given)
    else:
        log_prob = model.log_prob(params, x[:0], given, key=some_key(model))
        assert log_prob.shape == (0,) and log_prob.dtype == jnp.float32
    drawn = model.sample(params, jax.random.key(0), 0, None if context is None else context[0])
    assert drawn.shape == (0, *model.event_shape) and drawn.dtype == model.event.dtype


def test_empty_batches_of_any_axes():
    model, params, x, context = case("conditional")
    for shape in ((2, 0), (0, 3)):
        events, contexts = (np.zeros((*shape, *a.shape[1:]), a.dtype) for a in (x, context))
        assert model.log_prob(params, events, context[0]).shape == model.log_prob(params, events, contexts).shape == shape
    assert model.log_prob(params, x[0], context[:0]).shape == (0,)
    assert model.sample(params, jax.random.key(0), (5,), context[:0]).shape == (5, 0, 3)


@SOME
def test_any_leading_axes(name):
    model, params, x, context = case(name)
    key, rank = some_key(model), len(model.event_shape)
    flat = model.log_prob(params, x, context, key=key)
    assert flat.shape == (6,) and np.isfinite(flat).all()
    shaped = x.reshape(3, 2, *x.shape[1:])
    contexts = None if context is None else context.reshape(3, 2, *context.shape[1:])
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(model.log_prob(params, shaped, contexts, key=key), flat.reshape(3, 2), **tolerance)
    one = model.log_prob(params, x[0], None if context is None else context[0], key=key)
    assert one.shape == ()
    if name != "adaptive":  # whose solves have one step size for all rows
        np.testing.assert_allclose(one, flat[0], **tolerance)
    drawn = model.sample(params, jax.random.key(1), (3, 2), None if context is None else context[0])
    assert drawn.shape == (3, 2, *model.event_shape)
    again = model.sample(params, jax.random.key(1), 6, None if context is None else context[0])
    np.testing.assert_allclose(again.reshape(drawn.shape), drawn, rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.asarray(again).reshape(6, -1), axis=0)) == 6 or rank == 3
    assert model.sample(params, jax.random.key(1), (), None if context is None else context[0]).shape == model.event_shape


@pytest.mark.parametrize("name", CONDITIONAL)
def test_sample_and_log_prob_compose(name):
    model, params, x, context = case(name)
    key = jax.random.key(2)
    drawn = model.sample(params, key, (5,), context[:4])
    assert drawn.shape == (5, 4, *model.event_shape)
    log_prob = model.log_prob(params, drawn, context[:4])
    assert log_prob.shape == (5, 4)
    for i in range(4):  # column by column, under its own context
        np.testing.assert_allclose(log_prob[:, i], model.log_prob(params, drawn[:, i], context[i]), rtol=1e-4, atol=1e-4)
    x_and_log_prob = model.sample_and_log_prob(params, key, (5,), context[:4])
    np.testing.assert_allclose(x_and_log_prob[0], drawn, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x_and_log_prob[1], log_prob, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_events_and_contexts_broadcast(name):
    model, params, x, context = case(name)
    one_event = model.log_prob(params, x[0], context)
    assert one_event.shape == (6,) and np.ptp(one_event) > 1e-3
    np.testing.assert_allclose(one_event, model.log_prob(params, np.repeat(x[:1], 6, 0), context), rtol=1e-5, atol=1e-5)
    table = model.log_prob(params, x[:, None], context[None, :4])
    assert table.shape == (6, 4)
    np.testing.assert_allclose(table[2], model.log_prob(params, x[2], context[:4]), rtol=1e-5, atol=1e-5)
    shared = model.log_prob(params, x, context[0])
    np.testing.assert_allclose(shared, table[:, 0], rtol=1e-5, atol=1e-5)
    shape = "3" if name == "conditional" else "2, 2"
    with pytest.raises(ValueError, match=r"^the batch axes of x and context must broadcast .*, got \(6,\) and \(4,\)"):
        model.log_prob(params, x, context[:4])
    with pytest.raises(ValueError, match=rf"context must have shape \(\.\.\.,\) \+ \({shape},?\), got \(6, 1\)"):
        model.log_prob(params, x, np.ones((6, 1), np.float32))


def test_a_row_does_not_depend_on_its_neighbours():
    """Every row has a key of its own, also where log_prob is random."""
    model, params, x, _ = case("estimate")
    key = jax.random.key(3)
    all_rows = model.log_prob(params, x, key=key)
    np.testing.assert_allclose(model.log_prob(params, x[:2], key=key), all_rows[:2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.sample(params, key, 2), model.sample(params, key, 6)[:2], rtol=1e-5, atol=1e-5)
    assert not np.allclose(model.log_prob(params, x, key=jax.random.key(4)), all_rows)


def test_a_context_takes_the_precision_of_the_event(x64):
    flow = gm.flows.masked_autoregressive_flow((2,), 1, hidden_sizes=(4,), context_shape=(3,))
    x = jnp.zeros((4, 2), jnp.float32)
    context = jnp.zeros((4, 3), jnp.float64)
    params = flow.init(jax.random.key(0), x, context)
    assert flow.log_prob(params, x, context).dtype == jnp.float32
    drawn = flow.sample(params, jax.random.key(0), (), context)
    assert drawn.shape == (4, 2) and drawn.dtype == jnp.float32


def test_bfloat16_events_have_float32_densities():
    z = jax.random.normal(jax.random.key(0), (64,), jnp.bfloat16)
    log_prob = gm.densities.Normal((64,)).log_prob({}, z)
    wanted = -0.5 * np.sum(np.asarray(z, np.float64) ** 2 + np.log(2 * np.pi))
    assert log_prob.dtype == jnp.float32
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-6)


# --- one program ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Counted(Distribution):
    """Notes every trace of its hooks."""

    traces = []

    @property
    def event(self):
        return gm.Real((2,))

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        self.traces.append("log_prob")
        return -jnp.sum(x**2)

    def sample_one(self, params, key, context=None):
        self.traces.append("sample")
        return jax.random.normal(key, (2,))


def test_the_second_call_does_not_trace():
    x = jnp.ones((4, 2))
    for _ in range(3):
        Counted().log_prob({}, x)
        Counted().sample({}, jax.random.key(0), 4)
        jax.vmap(lambda x: Counted().log_prob({}, x))(x)
    assert sorted(Counted.traces) == ["log_prob"] * 2 + ["sample"]  # a batch, one event, draws


def test_methods_work_under_jit_grad_and_vmap():
    model, params, x, context = case("conditional")
    plain = model.log_prob(params, x, context)
    np.testing.assert_allclose(jax.jit(model.log_prob)(params, x, context), plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(model.log_prob, (None, 0, 0))(params, x, context), plain, rtol=1e-5, atol=1e-5)
    score = jax.vmap(jax.grad(model.log_prob, 1), (None, 0, 0))(params, x, context)
    step = 1e-2
    up, down = (model.log_prob(params, x + np.float32(s) * np.eye(3, dtype=np.float32)[0][None], context) for s in (step, -step))
    np.testing.assert_allclose(score[:, 0], (up - down) / (2 * step), rtol=2e-2, atol=2e-2)


# --- messages ------------------------------------------------------------------------------------------------------------------


def test_numbers_of_draws_that_are_none():
    model, params, *_ = case("real_nvp")
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"^shape must hold integers >= 0, got \(-3,\)$"):
        model.sample(params, key, -3)
    for shape, given in ((3.0, "3.0"), ("3", "'3'"), (None, "None"), (True, "True")):
        with pytest.raises(TypeError, match=f"^shape must be a number of draws, or a tuple of such numbers, got {given}$"):
            model.sample(params, key, shape)
    with pytest.raises(TypeError, match=r"^shape must be a tuple of integers, got \(2, 1.5\)$"):
        model.sample(params, key, (2, 1.5))
    assert model.sample(params, key, np.int64(2)).shape == (2, 3) and model.sample(params, key, [2, 1]).shape == (2, 1, 3)


def test_arguments_that_are_swapped():
    model, params, x, _ = case("real_nvp")
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=r"^key must be a typed key, jax\.random\.key\(seed\), got dict$"):
        model.sample(key, params, 3)
    with pytest.raises(TypeError, match="^x must be an array of numbers, got dict$"):
        model.log_prob(x, params)
    with pytest.raises(TypeError, match=r"^key must be a typed key, jax\.random\.key\(seed\), got int$"):
        model.sample(params, 0, 3)
    with pytest.raises(TypeError, match=r"^key must be one key, got an array of shape \(2,\)"):
        model.sample(params, jax.random.split(key), 3)


@pytest.mark.parametrize(
    "call", ["log_prob", "sample", "sample_and_log_prob", "log_prob_with_info", "sample_with_info", "encode"]
)
def test_parameters_that_are_no_parameters(call):
    model, params, x, _ = case("real_nvp")
    events = call in ("log_prob", "log_prob_with_info", "encode")
    arguments = (x,) if events else (jax.random.key(0), 3)
    with pytest.raises(TypeError, match=r"^params must be the parameters of Flow, got a whole Fit; pass its \.params$"):
        getattr(model, call)(gm.Fit(params, params, {}, None, 0), *arguments)
    for nothing in (None, {}, params["bijector"]):
        with pytest.raises(
            ValueError, match=r"^params must be those of this Flow, made by its init: params\['bijector'\].* missing"
        ):
            getattr(model, call)(nothing, *arguments)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (lambda: FLOWS["real_nvp"]((4,)), r"\['kernel'\] is of shape \(2, 2, 8\), wanted shape \(2, 1, 8\)"),
        (lambda: FLOWS["real_nvp"]((3,), num_layers=3), r"is of shape \(3, .* wanted shape \(2, "),
        (lambda: FLOWS["real_nvp"]((3,), hidden_sizes=(9,)), r"\['kernel'\] is of shape \(2, 9, .* wanted shape \(2, 8, "),
        (lambda: FLOWS["masked_autoregressive_flow"]((3,)), r"is missing, wanted shape"),
    ],
    ids=["event_shape", "num_layers", "hidden_sizes", "family"],
)
def test_parameters_of_another_model(other, match):
    model, _, x, _ = case("real_nvp")
    other = other()
    params = other.init(jax.random.key(0), np.zeros((2, *other.event_shape), np.float32))
    for call in (lambda: model.log_prob(params, x), lambda: model.sample(params, jax.random.key(0), 3)):
        with pytest.raises(
            ValueError, match=r"^params must be those of this Flow, made by its init: params\['bijector'\].*"
        ) as caught:
            call()
        assert re.search(match, str(caught.value)), str(caught.value)


def test_events_that_do_not_fit():
    model, params, x, _ = case("real_nvp")
    for call in (functools.partial(model.log_prob, params), functools.partial(model.encode, params)):
        with pytest.raises(ValueError, match=r"^x must have shape \(\.\.\.,\) \+ \(3,\), got \(6, 2\)$"):
            call(x[:, :2])
        with pytest.raises(TypeError, match="^x must be floating point, got int32; cast it, or dequantise"):
            call(np.zeros((2, 3), np.int32))
        with pytest.raises(TypeError, match="^x must be an array of numbers, got a list that is none"):
            call([[1.0, 2.0, 3.0], [1.0]])
        with pytest.raises(ValueError, match=r"^Flow takes no context, got one of shape \(6, 3\); build it with context_shape="):
            call(x, x)
    with pytest.raises(ValueError, match=r"^x must hold at least one event, got shape \(0, 3\)$"):
        model.init(jax.random.key(0), x[:0])
    with pytest.raises(ValueError, match=r"^batch must hold at least one event, got shape \(0, 3\)$"):
        model.loss(params, jax.random.key(0), x[:0])
    conditional, params, x, context = case("conditional")
    with pytest.raises(ValueError, match=r"^Flow is conditional: pass context of shape \(3,\)$"):
        conditional.log_prob(params, x)
    with pytest.raises(
        ValueError, match=r"^context must have shape \(6, 3\), got \(3,\); class labels are integers of shape \(6,\)$"
    ):
        conditional.loss(params, jax.random.key(0), (x, context[0]))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: flows.real_nvp((2,), context_shape=3),
            TypeError,
            r"context_shape must be a tuple of integers, got 3; write \(3,\)",
        ),
        (
            lambda: flows.planar_flow((2,), context_shape=(3.0,)),
            TypeError,
            r"context_shape must be a tuple of integers, got \(3.0,\)",
        ),
        (lambda: flows.ffjord((2,), context_shape=(-3,)), ValueError, r"context_shape must hold integers >= 0, got \(-3,\)"),
        (lambda: flows.diffusion((2,), context_shape=3), TypeError, r"context_shape must be a tuple of integers, got 3"),
        (lambda: flows.glow(IMAGE, context_shape=3), TypeError, r"context_shape must be a tuple of integers, got 3"),
        (lambda: flows.real_nvp((2,), hidden_sizes=(-8,)), ValueError, r"hidden_sizes must hold integers >= 1, got \(-8,\)"),
        (
            lambda: flows.real_nvp((2,), hidden_sizes=(64.0,)),
            TypeError,
            r"hidden_sizes must be a tuple of integers, got \(64.0,\)",
        ),
        (
            lambda: flows.real_nvp((2,), hidden_sizes=64),
            TypeError,
            r"hidden_sizes must be a tuple of integers, got 64; write \(64,\)",
        ),
        (lambda: flows.masked_autoregressive_flow((2,), hidden_sizes=(0,)), ValueError, "hidden_sizes must hold integers >= 1"),
        (lambda: flows.ffjord((2,), hidden_sizes=(8, -1)), ValueError, r"hidden_sizes must hold integers >= 1, got \(8, -1\)"),
        (lambda: flows.diffusion((2,), hidden_sizes=(8.0,)), TypeError, "hidden_sizes must be a tuple of integers"),
        (lambda: flows.glow(IMAGE, hidden_channels=-1), ValueError, "hidden_channels must be an integer >= 1, got -1"),
        (lambda: gm.densities.Normal(2), TypeError, r"event_shape must be a tuple of integers, got 2; write \(2,\)"),
        (lambda: gm.densities.Normal((2, -1)), ValueError, r"event_shape must hold integers >= 0, got \(2, -1\)"),
    ],
)
def test_refused_at_construction(make, error, match):
    with pytest.raises(error, match=f"^{match}"):
        make()


def test_shapes_are_plain_integers():
    flow = flows.real_nvp((2,), context_shape=(np.int64(3),))
    assert flow.context_shape == (3,) and type(flow.context_shape[0]) is int and flow == flows.real_nvp((2,), context_shape=(3,))
    assert flows.real_nvp((2,), hidden_sizes=[8, 8]) == flows.real_nvp((2,), hidden_sizes=(8, 8))


def test_what_a_distribution_has_not_is_said():
    law = gm.densities.FromFunctions((3,), draw)
    with pytest.raises(NotImplementedError, match="give it a log_prob_fn"):
        law.log_prob({}, jnp.zeros(3))
    with pytest.raises(NotImplementedError, match="give it a sample_fn"):
        gm.densities.FromFunctions((3,), None, score).sample({}, jax.random.key(0))
    with pytest.raises(ValueError, match="draws of GaussianMixture do not carry the gradient of all its parameters"):
        MODELS["mixture"].sample_and_log_prob(case("mixture").params, jax.random.key(0), 3)
    with pytest.raises(NotImplementedError, match="Silent has no log_prob"):
        Silent().log_prob({}, jnp.zeros(2))
    with pytest.raises(NotImplementedError, match="Silent cannot be sampled"):
        Silent().sample({}, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Silent(Distribution):
    @property
    def event(self):
        return gm.Real((2,))

    def _init(self, key, x, context):
        return {}


@dataclasses.dataclass(frozen=True)
class Unsummed(gm.Bijector):
    """Forgets to add up its log-determinant."""

    def _init(self, key, x, context):
        return {"a": jnp.full(x.shape[1:], 0.5)}

    def _forward(self, params, z, context):
        return z * jnp.exp(params["a"]), params["a"]

    def _inverse(self, params, x, context):
        return x * jnp.exp(-params["a"]), -params["a"]


def test_a_log_density_that_was_not_summed_is_refused(key):
    x = np.zeros((4, 3), np.float32)
    normal = gm.densities.FromFunctions((3,), log_prob_fn=jax.scipy.stats.norm.logpdf)
    for model in (gm.models.Flow(Unsummed(), gm.densities.Normal((3,))), gm.models.Flow(gm.bijectors.Tanh(), normal), normal):
        params = model.init(key, x)
        with pytest.raises(ValueError, match=r"must be a scalar for ONE event, got shape \(3,\); sum over the event"):
            model.log_prob(params, x)


def test_a_draw_of_another_shape_is_refused(key):
    law = gm.densities.FromFunctions((3,), sample_fn=jax.random.normal)
    with pytest.raises(ValueError, match=r"one event of shape \(3,\), got \(\)"):
        law.sample({}, key, (4,))


def test_a_base_may_be_conditional(key):
    """z ~ N(mean(c), scale(c)^2), x = exp(z): the log-normal of that context, in every method."""
    base = gm.densities.Amortized(gm.densities.Factorized(gm.densities.NormalHead(), (2,)), (3,))
    flow = gm.models.Flow(gm.bijectors.Exp(), base)
    contexts = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    params = flow.init(key, np.ones((5, 2), np.float32), contexts)
    params["base"]["kernel"] = jax.random.normal(key, (4, 3))
    raw = (contexts @ params["base"]["kernel"].T).reshape(5, 2, 2)
    scale = np.exp(5 * np.tanh(raw[..., 1] / 5))
    x, log_prob = flow.sample_and_log_prob(params, key, context=contexts)
    wanted = scipy.stats.lognorm.logpdf(x, scale, scale=np.exp(raw[..., 0])).sum(1)
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-4)
    np.testing.assert_allclose(flow.log_prob(params, x, contexts), wanted, rtol=1e-4)
    np.testing.assert_allclose(flow.decode(params, flow.encode(params, x, contexts), contexts), x, rtol=1e-5)
    assert jnp.isfinite(flow.loss(params, key, (x, contexts))[0])
    conditional = gm.flows.real_nvp((2,), 1, hidden_sizes=(4,), context_shape=(4,))
    with pytest.raises(ValueError, match=r"the same context, got context_shape=\(3,\) and \(4,\)"):
        gm.models.Flow(conditional.bijector, base)
    with pytest.raises(ValueError, match=r"no conditional distribution, got one with context_shape=\(3,\)"):
        gm.flows.flow_matching((2,), base=base)


def test_parameters_of_another_event_size_do_not_broadcast(key):
    one, three = (gm.models.Flow(gm.bijectors.ActNorm(), gm.densities.Normal((d,))) for d in (1, 3))
    params = one.init(key, np.zeros((4, 1), np.float32))
    with pytest.raises(ValueError, match="params must be those of"):
        three.log_prob(params, np.zeros((4, 3), np.float32))


def test_what_is_held_is_held():
    """Weight decay would move parameters that no gradient reaches."""
    x = np.random.default_rng(0).normal(1.0, 1.0, (32, 2)).astype(np.float32)
    matching = gm.flows.flow_matching((2,), path=gm.transport.Linear(), hidden_sizes=(4,), base=gm.densities.FullNormal((2,)))
    params = matching.init(jax.random.key(0), x)
    assert isinstance(params["base"], gm.Fixed)
    process = gm.flows.diffusion((2,), hidden_sizes=(4,)).process
    with pytest.raises(ValueError, match="data_side must have nothing to train"):
        gm.models.Diffusion(process, (2,), gm.bijectors.ActNorm()).init(jax.random.key(0), x)
