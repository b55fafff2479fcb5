"""Autoregressive models of all kinds, held against sums over all states; generation; what each network reads."""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import genmod as gm
from genmod.densities import BernoulliHead, CategoricalHead, DiscretizedLogisticHead, NormalHead, NormalMixtureHead
from genmod.models import AutoregressiveModel, MADEModel, PixelCNN, autoregressive, language_model, random_orders
from genmod.nets import MADE, CausalConv, CausalTransformer, GatedPixelCNN, Pointwise, Recurrent, Stack, token_net

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
NUM_DRAWS = 8_000


def all_levels(shape, num_levels):
    states = list(itertools.product(range(num_levels), repeat=math.prod(shape)))
    return np.array(states, np.uint8).reshape(-1, *shape)


def all_tokens(event):
    """Every string of at most max_length tokens; one that fills the array never ended."""
    rows = all_levels(event.shape, event.vocabulary).astype(np.int32)
    over = np.cumsum(rows == event.end, 1) - (rows == event.end) > 0
    return rows[(~over | (rows == event.end)).all(1)]


WORDS = gm.Tokens(4, 3, end=1)
BITS, TRITS = gm.Levels((5,), 2), gm.Levels((4,), 3)
CONTEXT = {"context_shape": (2,)}
GRU, CONV, TRANSFORMER = Recurrent(nn.GRUCell(6)), CausalConv(6, 2, (1, 2)), CausalTransformer(6, 8, 1, 2)
PIXELS = GatedPixelCNN(6, num_layers=2, first_kernel_size=3)


class Case(NamedTuple):
    model: Any
    one_order: bool = True  # the draw's own log p is that of the model
    slow: bool = False  # close kin of others


MODELS = {
    "words_gru": Case(language_model(WORDS, GRU, num_features=4), slow=True),
    "words_transformer": Case(language_model(WORDS, TRANSFORMER, num_features=4)),
    "words_conditional": Case(language_model(WORDS, GRU, num_features=4, **CONTEXT), slow=True),
    "bits_conv": Case(AutoregressiveModel(BITS, token_net(CONV, 3, 1, num_features=4), BernoulliHead())),
    "trits_rnn": Case(language_model(TRITS, Recurrent(nn.SimpleCell(6)), num_features=4), slow=True),
    "trits_lstm": Case(language_model(TRITS, Recurrent(nn.LSTMCell(6)), num_features=4), slow=True),
    "logistic": Case(
        AutoregressiveModel(TRITS, token_net(GRU, 4, 6, num_features=4), DiscretizedLogisticHead(3, num_components=2)), slow=True
    ),
    "columns": Case(
        AutoregressiveModel(gm.Levels((3, 2), 2), token_net(GRU, 3, 2, conditional=True), BernoulliHead(), (2,), (2,))
    ),
    "image_conv": Case(
        AutoregressiveModel(gm.Levels((2, 3, 1), 2), token_net(CONV, 3, 1, num_features=4), BernoulliHead()), slow=True
    ),
    "made": Case(MADEModel((5,), MADE((12,)), BernoulliHead()), slow=True),
    "made_trits": Case(MADEModel((2, 2), MADE((12, 12), direct=True), CategoricalHead(3), ((2, 0, 3, 1),))),
    "made_linear": Case(MADEModel((4,), MADE(()), CategoricalHead(3), ((3, 1, 0, 2),)), slow=True),
    "made_logistic": Case(MADEModel((3,), MADE((12,)), DiscretizedLogisticHead(4, 2), **CONTEXT)),
    "made_orders": Case(MADEModel((5,), MADE((12,), direct=True), BernoulliHead(), random_orders(5, 3)), one_order=False),
    "pixels": Case(PixelCNN((3, 3, 1), PIXELS, BernoulliHead()), slow=True),
    "pixels_channels": Case(PixelCNN((2, 2, 2), PIXELS.clone(untied_biases=(2, 2)), BernoulliHead(), **CONTEXT)),
    "pixels_categories": Case(PixelCNN((2, 1, 3), PIXELS, CategoricalHead(3)), slow=True),
    "pixels_logistic": Case(PixelCNN((2, 2, 1), PIXELS, DiscretizedLogisticHead(4, 2))),
}
by_name = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * case.slow) for name, case in MODELS.items()]
)


def states_of(model):
    if isinstance(model.event, gm.Tokens):
        return all_tokens(model.event)
    return all_levels(model.event.shape, model.event.num_levels)


def moved(model, x, context=None, scale=0.6):
    """Parameters none of which is at its special start."""
    params, rng = model.init(jax.random.key(0), x, context), np.random.default_rng(1)
    return jax.tree.map(lambda p: p + np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)


@functools.cache
def made(name):
    """The model, parameters, all states, the context, and log p of all states."""
    model = MODELS[name].model
    states = states_of(model)
    context = None if model.context_shape is None else np.array([0.7, -1.2], np.float32)
    params = moved(model, states[:2], None if context is None else np.stack([context] * 2))
    return model, params, states, context, np.asarray(model.log_prob(params, states, context), np.float64)


@by_name
def test_the_states_sum_to_one(name):
    model, params, states, context, log_p = made(name)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, atol=1e-6)
    assert np.exp(log_p).std() > 0.1 / len(states)  # the parameters matter
    if context is not None:
        other = np.asarray(model.log_prob(params, states, -context), np.float64)
        np.testing.assert_allclose(np.exp(other).sum(), 1.0, atol=1e-6)
        assert np.abs(other - log_p).max() > 0.1


@by_name
@pytest.mark.slow
def test_draws_follow_the_table(name):
    """By the chi-square statistic over all states, those of few expected draws put together."""
    model, params, states, context, log_p = made(name)
    x = np.asarray(model.sample(params, jax.random.key(3), NUM_DRAWS, context))
    model.event.check("x", x)
    assert x.dtype == model.event.dtype
    index = {state.tobytes(): i for i, state in enumerate(states.astype(np.int32))}
    counts = np.bincount([index[row.tobytes()] for row in x.astype(np.int32)], minlength=len(states))
    expected = NUM_DRAWS * np.exp(log_p)
    rare = expected < 10
    counts, expected = (np.append(a[~rare], a[rare].sum()) for a in (counts, expected))
    if expected[-1] < 10:
        counts, expected = counts[:-1], expected[:-1]
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert freedom >= 3
    assert statistic < stats.chi2(freedom).isf(1e-5), (statistic, freedom)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * case.slow) for n, case in MODELS.items() if case.one_order]
)
def test_the_whole_is_the_product_of_the_conditionals_of_sampling(name):
    model, params, _, context, _ = made(name)
    keys = jax.random.split(jax.random.key(4), 20)
    x, log_p = jax.jit(jax.vmap(lambda key: model.sample_and_log_prob_one(params, key, context)))(keys)
    np.testing.assert_allclose(log_p, model.log_prob(params, x, context), atol=2e-5)


@by_name
@pytest.mark.slow
def test_the_loss_is_the_mean_and_its_gradient_is_finite(name):
    model, params, states, context, log_p = made(name)
    contexts = None if context is None else np.stack([context] * len(states))
    loss, metrics = jax.jit(model.loss)(params, jax.random.key(0), gm.Batch(states, contexts))
    np.testing.assert_allclose(loss, -log_p.mean(), rtol=1e-4)
    weight = np.exp(log_p).astype(np.float32)
    weighted = jax.jit(model.loss)(params, jax.random.key(0), gm.Batch(states, contexts, weight))[0]
    np.testing.assert_allclose(weighted, -(np.exp(log_p) * log_p).sum(), rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, jax.random.key(0), gm.Batch(states, contexts, weight))[0]))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    if isinstance(model.event, gm.Tokens):
        tokens = np.asarray(model.event.num_units(states))
        np.testing.assert_allclose(metrics["nats_per_token"], -log_p.sum() / tokens.sum(), rtol=1e-4)


def test_evaluation_and_metrics_per_token():
    """A ratio of sums, with the standard error that a bootstrap finds."""
    model, params, states, _, log_p = made("words_gru")
    rng = np.random.default_rng(0)
    rows = rng.choice(len(states), 500, p=np.exp(log_p) / np.exp(log_p).sum())
    found = gm.evaluate(model, params, states[rows])
    nll, tokens = -log_p[rows], np.asarray(model.event.num_units(states))[rows]
    np.testing.assert_allclose(found["nats_per_token"], nll.sum() / tokens.sum(), rtol=1e-6)
    again = [rng.integers(0, 500, 500) for _ in range(2_000)]
    spread = np.std([nll[i].sum() / tokens[i].sum() for i in again])
    np.testing.assert_allclose(found["nats_per_token_sem"], spread, rtol=0.1)
    np.testing.assert_allclose(gm.metrics.perplexity(nll, tokens), np.exp(found["nats_per_token"]), rtol=1e-6)
    np.testing.assert_allclose(gm.metrics.bits_per_token(nll.sum(), tokens.sum()), found["nats_per_token"] / np.log(2), rtol=1e-6)
    with pytest.raises(ValueError, match="num_tokens must count tokens"):
        gm.metrics.nats_per_token(nll, tokens[:-1])


# --- real numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [NormalHead(), NormalMixtureHead(2)], ids=["normal", "mixture"])
def test_real_sequences(head, key):
    """p(x_0, x_1) sums to one on a grid; draws carry gradients; several entries of one step."""
    net = Stack((GRU, Pointwise(nn.Dense(head.num_params))))
    model = AutoregressiveModel(gm.Real((2,)), net, head)
    params = moved(model, jnp.zeros((1, 2)), scale=0.3)
    grid = np.linspace(-12, 12, 241, dtype=np.float32)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    log_p = np.asarray(model.log_prob(params, points), np.float64)
    np.testing.assert_allclose(np.exp(log_p).sum() * 0.1**2, 1.0, atol=1e-4)
    x = np.asarray(model.sample(params, key, 20_000))
    for power in (1, 2):
        exact = (np.exp(log_p)[..., None] * points**power).sum((0, 1)) * 0.1**2
        sem = (x**power).std(0) / np.sqrt(len(x))
        np.testing.assert_array_less(np.abs((x**power).mean(0) - exact), NUM_SEM * sem + 1e-4)
    assert model.reparameterized == head.reparameterized


def test_an_autoregression_in_closed_form(key):
    """A linear network with a normal head is x_t = a x_t-1 + b + c [t = 0] + scale noise, here of two entries a step."""
    model = AutoregressiveModel(gm.Real((3, 2)), Pointwise(nn.Dense(2)), NormalHead(scale=0.5), (2,))
    a, b, start = np.array([[0.5, -0.3], [0.2, 0.8]]), np.array([0.1, -0.2]), np.array([1.0, 2.0])
    kernel = np.concatenate([a.T, start[None]]).astype(np.float32)
    params = {"net": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(b, jnp.float32)}}
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    means = np.concatenate([np.tile(b + start, (4, 1, 1)), x[:, :-1] @ a.T + b], 1)
    np.testing.assert_allclose(model.log_prob_steps(params, x), stats.norm(means, 0.5).logpdf(x).sum(2), rtol=1e-4, atol=1e-4)
    drawn, log_p = model.sample_and_log_prob(params, key, 5)  # reparameterised
    np.testing.assert_allclose(log_p, model.log_prob(params, drawn), rtol=1e-4)
    mean = np.asarray(model.sample(params, key, 20_000)).mean(0)
    exact = [b + start]
    for _ in range(2):
        exact.append(a @ exact[-1] + b)
    np.testing.assert_allclose(mean, exact, atol=NUM_SEM * 1.0 / np.sqrt(20_000))


# --- generation -------------------------------------------------------------------------------------------------------------

NETS = {
    "rnn": Recurrent(nn.SimpleCell(6)),
    "lstm": Recurrent(nn.LSTMCell(6)),
    "gru": GRU,
    "conv": CONV,
    "transformer": TRANSFORMER,
    "stack": Stack((CONV, GRU)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("conv", "transformer", "stack"))) for n in NETS]
)
@pytest.mark.slow
def test_cached_logits_are_those_of_the_whole(name):
    """Step by step with a carry, against a new pass over the whole prefix for every step."""
    model = language_model(gm.Levels((6,), 4), NETS[name], num_features=4)
    x = np.random.default_rng(0).integers(0, 4, 6).astype(np.uint8)
    params = moved(model, x[None])
    inputs = model.inputs_one(jnp.asarray(x[:-1]))

    @jax.jit
    def cached(params):
        return jax.lax.scan(functools.partial(model.step, params), model.net.init_carry(params["net"]), inputs)[1]

    @jax.jit
    def anew(params):
        prefixes = [model.net.apply(params["net"], inputs[: t + 1])[-1] for t in range(6)]
        return jnp.stack(prefixes)

    stepped = cached(params)
    np.testing.assert_allclose(stepped, anew(params), atol=2e-5)
    np.testing.assert_allclose(stepped, model.raw_one(params, jnp.asarray(x)), atol=2e-5)


def test_generate_is_sample_without_options(key):
    model, params, _, _, _ = made("words_transformer")
    np.testing.assert_array_equal(model.generate(params, key, 50), model.sample(params, key, 50))


@pytest.mark.slow
def test_a_prompt_goes_on_by_its_conditional(key):
    """Draws after a prompt follow p(x | x begins with the prompt), and keep it."""
    for name, prompt in (("words_transformer", [2, 0]), ("words_gru", [0])):
        model, params, states, _, log_p = made(name)
        x = np.asarray(model.generate(params, key, NUM_DRAWS, prompt=prompt))
        fits = (states[:, : len(prompt)] == prompt).all(1)
        assert (x[:, : len(prompt)] == prompt).all()
        exact = np.exp(log_p) * fits / np.exp(log_p)[fits].sum()
        shares = (x[:, None] == states[None]).all(-1).mean(0)
        assert shares.sum() == pytest.approx(1.0)
        assert (np.abs(shares - exact) < NUM_SEM * np.sqrt(exact / NUM_DRAWS) + 1e-9).all()
    over = model.generate(params, key, 3, prompt=[0, 1])
    np.testing.assert_array_equal(over, np.tile([0, 1, 1, 1], (3, 1)))
    several = model.generate(params, key, (2,), prompt=np.array([[0, 2], [2, 2], [0, 1]]))
    assert several.shape == (2, 3, 4)
    np.testing.assert_array_equal(several[:, :, :2], np.tile([[0, 2], [2, 2], [0, 1]], (2, 1, 1)))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "gru")) for n in NETS])
def test_a_draw_is_found_again_from_its_beginnings(name, key):
    """Prompts of all lengths, which compile anew at powers of two."""
    model = language_model(gm.Levels((6,), 4), NETS[name], num_features=4)
    params = moved(model, np.zeros((1, 6), np.uint8))
    whole = np.asarray(model.generate(params, key))
    before = autoregressive._generate._cache_size()
    for n in range(1, 7):
        np.testing.assert_array_equal(model.generate(params, key, prompt=whole[:n]), whole)
    assert autoregressive._generate._cache_size() == before + 3


@pytest.mark.slow
def test_a_short_length_is_the_beginning(key):
    model, params, _, _, _ = made("trits_lstm")
    whole = model.generate(params, key, 20)
    np.testing.assert_array_equal(model.generate(params, key, 20, max_length=2), whole[:, :2])
    assert model.generate(params, key, max_length=9).shape == (9,)
    np.testing.assert_array_equal(model.generate(params, key, prompt=whole[0], max_length=4), whole[0])


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 2.0, "top_k": 2, "top_p": 0.9}],
    ids=["temperature", "top_k", "top_p", "all"],
)
def test_temperature_and_truncation_by_enumeration(options, key):
    """The table of all sequences under the changed conditionals, by NumPy."""
    model, params, states, _, _ = made("trits_rnn")
    log_table = np.asarray(jax.nn.log_softmax(jax.vmap(model.raw_one, (None, 0))(params, jnp.asarray(states))), np.float64)
    p = np.exp(log_table) ** (1 / options.get("temperature", 1.0))
    p /= p.sum(-1, keepdims=True)
    for cut in ("top_k", "top_p"):
        if cut not in options:
            continue
        ordered = -np.sort(-p, -1)
        if cut == "top_k":
            least = ordered[..., options["top_k"] - 1, None]
        else:
            num = ((np.cumsum(ordered, -1) - ordered) < options["top_p"]).sum(-1, keepdims=True)
            least = np.take_along_axis(ordered, num - 1, -1)
        p = np.where(p >= least, p, 0.0)
        p /= p.sum(-1, keepdims=True)
    exact = np.take_along_axis(p, states[..., None].astype(int), -1)[..., 0].prod(1)
    np.testing.assert_allclose(exact.sum(), 1.0)
    x = np.asarray(model.generate(params, key, NUM_DRAWS, **options))
    shares = (x[:, None] == states[None]).all(-1).mean(0)
    assert (shares[exact == 0] == 0).all()
    assert (np.abs(shares - exact) < NUM_SEM * np.sqrt(exact / NUM_DRAWS) + 1e-9).all()


# --- MADE and PixelCNN ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_orders_share_weights_and_make_a_mixture():
    """p of several orders is the mean over models of one order each, of the same parameters; what each entry sees follows it."""
    model, params, states, _, log_p = made("made_orders")
    each = [dataclasses.replace(model, orders=(order,)) for order in model.orders]
    np.testing.assert_allclose(np.exp(log_p), np.mean([np.exp(one.log_prob(params, states)) for one in each], 0), rtol=1e-4)
    losses = [float(one.loss(params, jax.random.key(0), states)[0]) for one in each]
    drawn = {round(float(jax.jit(model.loss)(params, jax.random.key(i), states, step=0)[0]), 3) for i in range(12)}
    assert drawn == {round(loss, 3) for loss in losses}
    assert np.mean(losses) > -log_p.mean()
    natural = dataclasses.replace(model, orders=None)
    identity = dataclasses.replace(model, orders=(tuple(range(5)),))
    np.testing.assert_allclose(natural.log_prob(params, states), identity.log_prob(params, states), rtol=1e-6)


@pytest.mark.parametrize("shape", [(7, 7, 1), (4, 5, 2)], ids=str)
def test_the_pixel_network_sees_all_before_and_nothing_else(shape):
    """By the pattern of zeros in the Jacobian: no blind spot, nothing later, channels one after the other."""
    net = GatedPixelCNN(8, num_layers=5, kernel_size=3, first_kernel_size=3, num_outputs=1)
    x = jax.random.normal(jax.random.key(0), shape)
    params = gm.nets.init(net, jax.random.key(1), x)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + np.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), params)
    jacobian = jax.jit(jax.jacobian(lambda x: gm.nets.apply(net, params, x).reshape(-1)))(x)
    depends = np.asarray(jacobian).reshape(x.size, x.size) != 0
    # Entry (i, j) sees rows down to i - 5, and in them columns from j - 5 to j + 5.
    row, column, _ = (index.reshape(-1) for index in np.indices(shape))
    earlier = np.arange(x.size)[None] < np.arange(x.size)[:, None]
    assert not depends[~earlier].any()
    above = row[:, None] - row[None]
    apart = np.abs(column[:, None] - column[None])
    near = earlier & (np.maximum(above, apart) <= 5)
    np.testing.assert_array_equal(depends, near)
    assert net.num_rows_above == 5


def test_sampling_in_a_band_is_sampling_of_the_whole(key):
    """An image taller than what the network sees: log p of the draw is that of the model."""
    net = GatedPixelCNN(4, num_layers=2, first_kernel_size=3, untied_biases=(6, 3))
    model = PixelCNN((6, 3, 1), net, BernoulliHead())
    x = np.random.default_rng(0).integers(0, 2, (2, 6, 3, 1)).astype(np.uint8)
    params = moved(model, x)
    drawn, log_p = jax.jit(model.sample_and_log_prob_one)(params, key)
    np.testing.assert_allclose(log_p, model.log_prob(params, drawn), rtol=1e-4)


def test_made_draws_real_numbers_with_gradients(key):
    model = MADEModel((3,), MADE((8,)), NormalHead(), ((1, 2, 0),))
    params = moved(model, jnp.zeros((1, 3)), scale=0.2)
    x, log_p = model.sample_and_log_prob(params, key, 10)
    np.testing.assert_allclose(log_p, model.log_prob(params, x), atol=1e-4)
    with pytest.raises(ValueError, match="do not carry the gradient"):
        dataclasses.replace(model, orders=random_orders(3, 2)).sample_and_log_prob(params, key)


# --- bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt": [3]}, r"prompt must be integers in 0\.\.2, got values from 3 to 3"),
        ({"prompt": [1, 2]}, "prompt must hold nothing but the token 1 after its first 1"),
        ({"prompt": [0, 0, 0], "max_length": 2}, r"prompt must have shape \(..., n\) with n <= max_length=2, got \(3,\)"),
        ({"prompt": 2}, "prompt must have shape"),
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
        ({"top_k": 0}, "top_k must be an integer >= 1, got 0"),
        ({"top_k": 1.5}, "top_k must be an integer >= 1, got 1.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"max_length": 0}, "max_length must be an integer >= 1, got 0"),
        ({"max_length": 7}, "a sequence must have at most max_length=6 steps, got 7"),
    ],
)
def test_bad_generation(options, match, key):
    model, params, *_ = made("words_transformer")
    with pytest.raises(ValueError, match=match):
        model.generate(params, key, **options)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: AutoregressiveModel(WORDS, nn.GRUCell(3), CategoricalHead(3)), TypeError, "net must be a SequenceNet"),
        (lambda: AutoregressiveModel(WORDS, GRU, CategoricalHead(4)), ValueError, "head must be a law of Levels"),
        (lambda: AutoregressiveModel(BITS, GRU, NormalHead()), ValueError, "head must be a law of Levels"),
        (lambda: AutoregressiveModel(gm.Real((0,)), GRU, NormalHead()), ValueError, "have an entry"),
        (lambda: AutoregressiveModel(gm.Real((3, 2)), GRU, NormalHead(), (3,)), ValueError, r"must end in step_shape=\(3,\)"),
        (
            lambda: AutoregressiveModel(BITS, token_net(GRU, 3, 2), BernoulliHead()).init(
                jax.random.key(0), np.zeros((1, 5), int)
            ),
            ValueError,
            r"net must give 1 numbers for each of 5 steps, \(5, 1\), got \(5, 2\)",
        ),
        (lambda: language_model(gm.Real((3,)), GRU), TypeError, "event must be gm.Tokens or gm.Levels"),
        (lambda: MODELS["words_gru"].model.log_prob({}, np.array([0, 3, 1, 1])), ValueError, "got values from 0 to 3"),
        (lambda: MODELS["image_conv"].model.generate({}, jax.random.key(0)), ValueError, "generate wants sequences of integers"),
        (lambda: MADEModel((3,), GRU, BernoulliHead()), TypeError, "net must be a MADE"),
        (lambda: GatedPixelCNN(untied_biases=(4,)), ValueError, r"untied_biases must be \(H, W\), got \(4,\)"),
        (
            lambda: PixelCNN((3, 3, 1), GatedPixelCNN(untied_biases=(3, 4)), BernoulliHead()).init(
                jax.random.key(0), np.zeros((1, 3, 3, 1), int)
            ),
            ValueError,
            r"untied_biases=\(3, 4\) want an image of that height and width, got \(3, 3\)",
        ),
        (lambda: MADEModel((3,), MADE(), BernoulliHead(), (0, 1, 2)), TypeError, "orders must be a tuple"),
        (lambda: MADEModel((3,), MADE(), BernoulliHead(), ((0, 1, 1),)), ValueError, "orders must hold permutations"),
        (lambda: MADEModel((0,), MADE(), BernoulliHead()), ValueError, "shape must hold integers >= 1"),
        (lambda: PixelCNN((3, 3), PIXELS, BernoulliHead()), ValueError, r"shape must be that of an image"),
        (lambda: GatedPixelCNN(kernel_size=4), ValueError, "kernel_size must be odd, got 4"),
        (
            lambda: PixelCNN((2, 2, 4), PIXELS, BernoulliHead()).init(jax.random.key(0), np.zeros((1, 2, 2, 4), np.uint8)),
            ValueError,
            "num_features must be a multiple of the 4 channels",
        ),
    ],
)
def test_bad_parts(make, error, match):
    with pytest.raises(error, match=match):
        make()
