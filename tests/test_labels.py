"""Class labels in the place of one-hot contexts: every door, and what is refused there."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import DIFFUSIONS, FLOWS, IMAGE_FLOWS, ONE_STEP

import genmod as gm
from genmod.core.labels import labels_as_one_hot
from genmod.core.params import trainable_mask
from genmod.training.reading import Events

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(3)
SMALL = FLOWS["neural_spline_flow"]
LABELS = RNG.integers(0, 3, 16)
X = (2.0 * LABELS[:, None] + RNG.standard_normal((16, 2))).astype(np.float32)
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]


def moved(model, x, context):
    """Parameters that read their context: those of `init` are the identity."""
    params = model.init(jax.random.key(0), x, context)
    mask = trainable_mask(params)
    return jax.tree.map(lambda p, t: p + 0.3 * jnp.cos(1.0 + jnp.arange(p.size)).reshape(p.shape) * t, params, mask)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def flow():
    model = SMALL((2,), context_shape=(3,))
    return model, moved(model, X, ONE_HOT)


# --- the right value -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_unordered_classes_reach_their_exact_law(key):
    """x | c ~ N(m_c, 0.1^2) with means in no order: its entropy is log(0.1 sqrt(2 pi e)), that of x alone is far above."""
    rng = np.random.default_rng(5)
    means, scale = rng.permutation(10) - 4.5, 0.1

    def draw(num):
        labels = rng.integers(0, 10, num)
        return (means[labels] + scale * rng.standard_normal(num))[:, None].astype(np.float32), labels

    model = gm.flows.masked_autoregressive_flow((1,), 2, hidden_sizes=(16,), context_shape=(10,))
    (x, labels), held_out, (test, test_labels) = draw(4_000), draw(500), draw(10_000)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1_000))
    options = {"key": key, "optimizer": optimizer, "num_steps": 1_000, "progress": False}
    fit = gm.fit(model, (x, labels.astype(np.uint8)), validation=held_out, **options)
    vectors = np.eye(10)[held_out[1]]
    by_vectors = gm.fit(model, (x, np.eye(10)[labels]), validation=(held_out[0], vectors), **options)
    same(fit.params, by_vectors.params)
    found = gm.evaluate(model, fit.params, test, test_labels)
    assert found == gm.evaluate(model, fit.params, test, np.eye(10)[test_labels])
    limit = 0.5 * math.log(2 * math.pi * math.e) + math.log(scale)
    exact = 0.5 * np.mean(((test[:, 0] - means[test_labels]) / scale) ** 2) + 0.5 * math.log(2 * math.pi) + math.log(scale)
    assert abs(exact - limit) < 4 / math.sqrt(2 * len(test))
    assert -1e-3 < found["nll_nats"] - exact < 0.01, found["nll_nats"] - exact
    drawn = np.asarray(model.sample(fit.params, key, (1_000,), np.arange(10)[:, None]))[:, :, 0, 0]
    np.testing.assert_allclose(drawn.mean(0), means, atol=0.02 + 4 * scale / math.sqrt(1_000))


# --- every door ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [list, np.asarray, lambda c: np.asarray(c, np.uint8), lambda c: jnp.asarray(c, jnp.int8), lambda c: series(c)],
    ids=["list", "int64", "uint8", "jax", "pandas"],
)
def test_integers_of_every_kind(flow, make):
    model, params = flow
    labels = make(LABELS)
    same(model.log_prob(params, X, labels), model.log_prob(params, X, ONE_HOT))
    rows = Events(model)("data", (X, labels)).context
    same(rows, ONE_HOT)
    assert isinstance(rows, jax.Array) == isinstance(labels, jax.Array)  # those of the host stay there


def series(labels):
    return pytest.importorskip("pandas").Series(labels, name="class")


@pytest.mark.slow
def test_axes_of_labels_are_batch_axes(flow, key):
    model, params = flow
    one = np.array([0.0, 0.0, 1.0], np.float32)
    same(model.log_prob(params, X, 2), model.log_prob(params, X, one))
    same(model.log_prob(params, X[:, None], LABELS[None, :5]), model.log_prob(params, X[:, None], ONE_HOT[None, :5]))
    same(model.sample(params, key, (4,), 2), model.sample(params, key, (4,), one))
    same(model.sample(params, key, (2,), LABELS[:4].reshape(2, 2)), model.sample(params, key, (2,), ONE_HOT[:4].reshape(2, 2, 3)))
    assert gm.evaluate(model, params, X, 1) == gm.evaluate(model, params, X, np.eye(3)[1])
    layer, own = model.bijector, params["bijector"]
    same(layer.inverse_and_log_det(own, X[0], LABELS[0]), layer.inverse_and_log_det(own, X[0], ONE_HOT[0]))
    batched = jax.vmap(layer.inverse, (None, 0, 0))
    same(batched(own, X, LABELS), batched(own, X, ONE_HOT))
    assert str(gm.health(layer, own, X, LABELS)) == str(gm.health(layer, own, X, ONE_HOT))
    assert gm.check_bijection(gm.bijectors.Planar((3,)), X, LABELS).passed


def test_bools_are_the_labels_of_two_classes():
    model = SMALL((2,), context_shape=(2,))
    flags = LABELS > 0
    one_hot = np.eye(2, dtype=np.float32)[flags.astype(int)]
    params = moved(model, X, flags)
    same(params, moved(model, X, one_hot))
    same(model.log_prob(params, X, flags), model.log_prob(params, X, one_hot))
    with pytest.raises(ValueError, match=r"must have shape \(16, 3\), got \(16,\); class labels are integers of shape \(16,\)"):
        SMALL((2,), context_shape=(3,)).init(jax.random.key(0), X, flags)


MODELS = {
    "exact_assignment": lambda: FLOWS["flow_matching"]((2,), context_shape=(3,), coupling=gm.transport.ExactAssignment()),
    "sinkhorn": lambda: FLOWS["flow_matching"]((2,), context_shape=(3,), coupling=gm.transport.Sinkhorn()),
    "guided": lambda: FLOWS["flow_matching"]((2,), context_shape=(3,), context_dropout=0.2, guidance=2.0),
    "consistency": lambda: ONE_STEP["consistency"]((2,), context_shape=(3,), context_dropout=0.2),
    "mean_flow": lambda: ONE_STEP["mean_flow"]((2,), context_shape=(3,), context_dropout=0.2, guidance=2.0),
    "diffusion": lambda: dataclasses.replace(
        DIFFUSIONS["diffusion"]((2,), context_shape=(3,)), sampler=gm.denoising.Steps(grid=gm.denoising.LogSNRGrid(4))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_trained_by_regression(name, key):
    model = MODELS[name]()
    params = moved(model, X, LABELS)
    by_labels, by_vectors = (jax.jit(model.loss)(params, key, (X, context)) for context in (LABELS, ONE_HOT))
    same(by_labels, by_vectors)
    assert abs(by_labels[0] - model.loss(params, key, (X, np.roll(LABELS, 1)))[0]) > 1e-4  # it reads them
    same(model.sample(params, key, (2,), LABELS[:4]), model.sample(params, key, (2,), ONE_HOT[:4]))
    if name == "diffusion":
        posterior = [model.sample_posterior(params, key, X[:, :1], first_entry, 0.1, context) for context in (LABELS, ONE_HOT)]
        same(*posterior)


def first_entry(x):
    return x[:1]


@pytest.mark.slow
def test_images_of_classes(key):
    shape = (4, 4, 1)
    model = gm.models.Dequantized(IMAGE_FLOWS["glow"](shape, context_shape=(3,)), 4)
    x = np.random.default_rng(0).integers(0, 4, (16, *shape)).astype(np.uint8)
    params = moved(model, x, LABELS)
    same(model.log_prob(params, x, LABELS, key=key), model.log_prob(params, x, ONE_HOT, key=key))
    y = [model.dequantize(part) for part in (x[:8], x[8:])]
    lines = [
        gm.flows.interpolate(model.model, params["model"], *y, num=3, context=context) for context in (LABELS[:8], ONE_HOT[:8])
    ]
    same(*lines)


# --- one-hot once --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Seen(gm.Model):
    """N(w context, 1), which notes what its loss is given."""

    event = gm.Real(())
    context_shape = (3,)
    likelihood = gm.Likelihood.EXACT
    batches = []

    def _init(self, key, x, context):
        return {"w": jnp.zeros(3)}

    def loss(self, params, key, batch, *, step=None):
        self.batches.append((batch.context.shape, batch.context.dtype))
        x, context, _ = self.read(batch)
        return jnp.mean((x - context @ params["w"]) ** 2), {}


def test_rows_are_made_one_hot_before_the_loop(key):
    """The steps get stored rows, and are the program of one-hot data: nothing is traced anew for these."""
    x, options = X[:, 0], {"key": key, "num_steps": 3, "batch_size": 5, "progress": False}
    Seen.batches.clear()
    fit = gm.fit(Seen(), (x, LABELS), **options)
    traced = list(Seen.batches)
    assert set(traced) == {((5, 3), jnp.dtype(jnp.float32))}
    same(fit.params, gm.fit(Seen(), (x, ONE_HOT), **options).params)
    assert Seen.batches == traced
    streamed = gm.fit(Seen(), iter([(x[:5], LABELS[:5])] * 3), **options)
    same(streamed.params, gm.fit(Seen(), iter([(x[:5], ONE_HOT[:5])] * 3), **options).params)


def test_a_loss_of_ones_own_gets_labels(key):
    def loss_fn(params, key, batch, *, step=None):
        assert batch[1].shape == (8,) and jnp.issubdtype(batch[1].dtype, jnp.integer)
        return Seen().loss(params, key, gm.Batch(*batch))

    options = {"key": key, "num_steps": 2, "batch_size": 8, "progress": False}
    fit = gm.fit(Seen(), (X[:, 0], LABELS), loss_fn=loss_fn, **options)
    same(fit.params, gm.fit(Seen(), (X[:, 0], LABELS), **options).params)


# --- what is refused -----------------------------------------------------------------------------------------------------------


def test_labels_out_of_range_are_named(flow, key):
    model, params = flow
    for labels, named in (([0, 3], "3"), (np.array([-1, 0, 7, 1]), "-1, 7"), (np.uint8([255]), "255"), (jnp.array([9, 1]), "9")):
        with pytest.raises(
            ValueError, match=rf"class labels in context must be in 0\.\.2 with context_shape=\(3,\), got {named}$"
        ):
            model.sample(params, key, (), labels)
    with pytest.raises(ValueError, match=r"class labels in the context of data must be in 0\.\.2 .*, got 3$"):
        gm.fit(model, (X, LABELS + 1), key=key, num_steps=1)
    with pytest.raises(ValueError, match=r"class labels in the context of validation must be in 0\.\.2"):
        gm.fit(model, (X, LABELS), validation=(X, LABELS + 1), key=key, num_steps=1)


def test_traced_labels_out_of_range_are_nan(flow, key):
    """Also in the tails of a spline, which do not read their network; and in a small type that does not hold the classes."""
    model, params = flow
    x, labels = np.array([[0.0, 0.0], [1e3, 1e3], [1e3, 1e3]], np.float32), jnp.array([3, -1, 1])
    log_prob = jax.jit(model.log_prob)(params, x[:, None], labels[:, None])[:, 0]
    np.testing.assert_array_equal(jnp.isnan(log_prob), [True, True, False])
    drawn = jax.jit(lambda c: model.sample(params, key, (), c))(labels[:, None])
    np.testing.assert_array_equal(jnp.isnan(drawn).all((1, 2)), [True, True, False])
    rows = jax.jit(lambda c: labels_as_one_hot("context", c, (300,), (2,)))(jnp.array([5, 255], jnp.uint8))
    np.testing.assert_array_equal(rows.argmax(1), [5, 255])
    np.testing.assert_array_equal(rows.sum(1), 1.0)


def test_what_could_be_either_is_refused(flow, key):
    model, params = flow
    either = r"context of shape \({}\) and int64 could be class labels, or contexts of 3 numbers: .*one_hot.*cast"
    for draw in (lambda c: model.sample(params, key, (), c), lambda c: model.log_prob(params, X[0], c)):
        with pytest.raises(ValueError, match=either.format("3,")):
            draw(np.array([0, 2, 1]))
    with pytest.raises(ValueError, match=either.format("4, 3")):
        model.sample(params, key, (), np.zeros((4, 3), int))
    with pytest.raises(ValueError, match=r"must have shape \(16,\), that of the events, got a column, \(16, 1\)"):
        model.log_prob(params, X, LABELS[:, None])
    one = np.array([0, 0, 1])
    same(model.log_prob(params, X, one.astype(float)), model.log_prob(params, X, 2))
    same(model.sample(params, key, (), jax.nn.one_hot(one, 3)), model.sample(params, key, (), one[:, None])[:, 0])
    # Where there are events, labels have their axes.
    same(model.log_prob(params, X[:3], LABELS[:3]), model.log_prob(params, X[:3], ONE_HOT[:3]))
    square, table = X[:9].reshape(3, 3, *X.shape[1:]), LABELS[:9].reshape(3, 3)
    same(model.log_prob(params, square, table), model.log_prob(params, square, ONE_HOT[:9].reshape(3, 3, 3)))
    rows = X[:3], LABELS[:3]  # as many rows as classes: a batch of rows is clear
    same(model.loss(params, key, rows)[0], model.loss(params, key, (X[:3], ONE_HOT[:3]))[0])
    same(model.log_prob(params, X, ONE_HOT.astype(int)), model.log_prob(params, X, ONE_HOT))


def test_real_numbers_are_no_labels(flow, key):
    model, params = flow
    hint = r"; class labels are integers of shape \({}\)$"
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\.,\) \+ \(3,\), got \(16,\)" + hint.format(r"\.\.\.,")):
        model.log_prob(params, X, LABELS.astype(float))
    for wrong in (LABELS.astype(float), LABELS[:5]):
        with pytest.raises(ValueError, match=r"the context of data must have shape \(16, 3\), got .*" + hint.format("16,")):
            gm.fit(model, (X, wrong), key=key, num_steps=1)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_integer_is_still_refused(shape, key):
    model = SMALL((2,), context_shape=shape)
    with pytest.raises(TypeError, match=r"one integer; for class labels build the model with context_shape=\(num_classes,\)"):
        gm.fit(model, (X, LABELS.reshape(16, *shape)), key=key, num_steps=1, progress=False)
