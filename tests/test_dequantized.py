"""`Dequantized` against probabilities in closed form: a bound, unbiased as a probability, tighter with draws and with a flow.

The toy is a product of logit-normals, y_i = sigmoid(m_i + s_i z), whose levels have the probabilities

    P(x_i = k) = Phi((logit((k + 1) / n) - m_i) / s_i) - Phi((logit(k / n) - m_i) / s_i).
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import DEQUANTIZERS, GLOW8
from scipy import special, stats

import genmod as gm
from genmod import bijectors as bj, flows
from genmod.core.distribution import Likelihood
from genmod.core.keys import stream
from genmod.core.params import trainable_mask

pytestmark = pytest.mark.usefixtures("quick_compile")
EPS = float(np.finfo(np.float32).eps)
SHAPE, NUM_LEVELS = (2, 2, 1), 2
SHIFT = np.array([[[1.0], [-0.7]], [[0.3], [-1.2]]])
SCALE = np.array([[[0.6], [-0.7]], [[0.4], [0.8]]])
NUM_SEM = 4.5


def toy(num_levels=NUM_LEVELS, dequantizer=None, num_draws=1):
    """(model, its parameters without those of a dequantizer)."""
    flow = gm.models.Flow(bj.Chain((bj.DiagonalAffine(), bj.Sigmoid())), gm.densities.Normal(SHAPE))
    affine = {"scale": jnp.asarray(SCALE, jnp.float32), "shift": jnp.asarray(SHIFT, jnp.float32)}
    return gm.models.Dequantized(flow, num_levels, dequantizer, num_draws), {"model": {"bijector": (affine, {})}}


def every_event(num_levels=NUM_LEVELS):
    return np.array(list(itertools.product(range(num_levels), repeat=4)), np.uint8).reshape(-1, *SHAPE)


def true_log_prob(x, num_levels=NUM_LEVELS):
    x = np.asarray(x, np.float64)
    low, high = (stats.norm.cdf((special.logit(edge / num_levels) - SHIFT) / np.abs(SCALE)) for edge in (x, x + 1))
    return np.log(high - low).sum((1, 2, 3))


def bounds(model, params, key, num):
    """`num` independent draws of the bound of every event: (num, events)."""
    x = every_event(model.event.num_levels)
    rows = np.broadcast_to(x, (num, *x.shape))
    return np.asarray(model.log_prob(params, rows, key=key), np.float64)


def sem(values, axis=0):
    return values.std(axis, ddof=1) / np.sqrt(values.shape[axis])


@functools.cache
def trained():
    """The toy with a dequantizer fitted to it, the toy itself kept as it is: (model, params, history)."""
    model, params = toy(dequantizer=DEQUANTIZERS["dequantizer"](SHAPE))
    probability = np.exp(true_log_prob(every_event()))
    rows = np.random.default_rng(0).choice(16, 1_000, p=probability / probability.sum())
    x = every_event()[rows]
    params |= {"dequantizer": model.init(jax.random.key(0), x)["dequantizer"]}

    def loss_fn(params, key, batch, *, step=None):
        return model.loss({**params, "model": jax.lax.stop_gradient(params["model"])}, key, batch, step=step)

    options = {"optimizer": optax.adam(1e-2), "num_steps": 400, "batch_size": 64, "progress": False}
    result = gm.fit(model, x, key=jax.random.key(1), params=params, loss_fn=loss_fn, validation=x, **options)
    return model, result.params, params


# --- the bound -----------------------------------------------------------------------------------------------------------------


def test_the_toy_is_normalised():
    for num_levels in (2, 3):
        np.testing.assert_allclose(np.exp(true_log_prob(every_event(num_levels), num_levels)).sum(), 1.0, atol=1e-12)


def check_bound(values, truth, light_tails=True):
    """E bound <= log P, and E exp(bound) = P, for every event and summed over all: no offset is forgotten or wrong.

    Not for every event where the weights p / q of rare ones have heavy tails, whose sample mean lies low for long.
    """
    below, probability = values - truth, np.exp(values)
    assert (below.mean(0) < NUM_SEM * sem(values)).all()
    if light_tails:
        assert (np.abs(probability.mean(0) - np.exp(truth)) < NUM_SEM * sem(probability)).all()
    total = probability.sum(1)
    assert abs(total.mean() - 1) < NUM_SEM * sem(total) < 0.2
    return -below.mean()


def test_uniform_noise_gives_a_bound_that_rises_with_draws(key):
    model, params = toy()
    truth = true_log_prob(every_event())
    by_draws = {k: bounds(dataclasses.replace(model, num_draws=k), params, key, 2_000) for k in (1, 4, 16)}
    gaps = [check_bound(values, truth) for values in by_draws.values()]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    for few, many in itertools.pairwise(by_draws.values()):
        rise = many.mean(1) - few.mean(1)  # one number for each set of draws
        bits = -gm.metrics.bits_per_dim(rise.mean(), SHAPE)
        assert bits < -NUM_SEM * gm.metrics.bits_per_dim(sem(rise), SHAPE) < 0


def test_bound_of_three_levels(key):
    model, params = toy(3)
    check_bound(bounds(model, params, key, 1_000), true_log_prob(every_event(3), 3))


@pytest.mark.slow
def test_a_trained_dequantizer_is_tighter_on_the_same_flow(key):
    model, params, start = trained()
    for a, b in zip(jax.tree.leaves(params["model"]), jax.tree.leaves(start["model"]), strict=True):
        np.testing.assert_array_equal(a, b)
    truth, num = true_log_prob(every_event()), 2_000
    learned = bounds(model, params, key, num)
    uniform = bounds(toy()[0], {"model": params["model"]}, key, num)
    weights = np.exp(truth)  # as the events occur
    gap, uniform_gap = (((truth - values) * weights).sum(1) for values in (learned, uniform))
    assert check_bound(learned, truth, light_tails=False) > 0
    assert gap.mean() > NUM_SEM * sem(gap)  # affine couplings are not the exact posterior
    assert (uniform_gap - gap).mean() > NUM_SEM * sem(uniform_gap - gap)
    assert gap.mean() < 0.5 * uniform_gap.mean()


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_uniform_density_costs_the_bits_of_the_levels(num_levels, key):
    """p = 1 on [0, 1]^D: every draw is log P = -D log n, so log2 n bits in each dimension."""
    flow = gm.models.Flow(bj.Chain(()), gm.densities.Uniform(SHAPE))
    model = gm.models.Dequantized(flow, num_levels, num_draws=3)
    x = np.random.default_rng(0).integers(0, num_levels, (5, *SHAPE)).astype(np.uint8)
    params = model.init(key, x)
    metrics = gm.evaluate(model, params, x, key=key)
    bits = gm.metrics.bits_per_dim(metrics["nll_upper_bound_nats"], SHAPE)
    np.testing.assert_allclose(bits, np.log2(num_levels), rtol=16 * EPS)
    loss, named = dataclasses.replace(model, num_draws=1).loss(params, key, x)
    np.testing.assert_allclose([loss, named["nll_upper_bound_nats"]], 4 * np.log(num_levels), rtol=16 * EPS)


def test_likelihood_and_its_names(key):
    model, params = toy()
    assert model.likelihood is Likelihood.LOWER_BOUND and toy(num_draws=16)[0].likelihood is Likelihood.LOWER_BOUND
    metrics = gm.evaluate(model, params, every_event(), key=key)
    assert {"nll_upper_bound_nats", "nll_upper_bound_nats_sem"} <= metrics.keys()
    with pytest.raises(ValueError, match="a bound by random draws: pass key="):
        model.log_prob(params, every_event())
    with pytest.raises(ValueError, match="a bound by random draws: pass key="):
        gm.evaluate(model, params, every_event())


# --- q(u | x) ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dequantizer_is_a_density_given_the_image(key):
    model, params, _ = trained()
    q, own = model.dequantizer, params["dequantizer"]
    num = 20_000
    u = np.random.default_rng(0).random((num, *SHAPE)).astype(np.float32)
    means = []
    for x in (np.zeros(SHAPE, np.uint8), np.array([[[1], [0]], [[1], [0]]], np.uint8)):
        context = model.dequantize(jnp.asarray(x)) - 0.5
        density = np.exp(np.asarray(q.log_prob(own, u, context), np.float64))
        assert abs(density.mean() - 1) < NUM_SEM * sem(density) < 0.2  # an integral by uniform draws
        drawn = np.asarray(q.sample(own, key, num, context))
        assert drawn.shape == (num, *SHAPE) and (drawn >= 0).all() and (drawn <= 1).all()
        weighted = u * density.reshape(-1, 1, 1, 1)  # the same mean by the density and by draws
        error = np.abs(weighted.mean(0) - drawn.mean(0))
        assert (error < NUM_SEM * np.hypot(sem(weighted), sem(drawn))).all()
        means.append(drawn.mean(0))
    assert np.abs(means[0] - means[1]).max() > 0.05  # the image is read


@pytest.mark.slow
def test_log_q_of_draws_is_that_of_log_prob(key):
    model, params, _ = trained()
    q, own = model.dequantizer, params["dequantizer"]
    context = (jnp.asarray(every_event()) - 0.5) / 2
    u, log_q = jax.jit(q.sample_and_log_prob, static_argnums=2)(own, key, 16, context)
    # Through the sigmoid and back, float32 loses 1 / (u (1 - u)) of its digits.
    tolerance = 64 * EPS / float((u * (1 - u)).min())
    np.testing.assert_allclose(q.log_prob(own, u, context), log_q, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_noise_outside_of_the_pixel_adds_nothing(key):
    """A q that is wider than [0, 1], such as a flow of images with a logit, leaves the bound a bound."""
    model, params = toy()
    wide = gm.models.Flow(bj.Coupling(bj.Affine(), GLOW8, 0, SHAPE), gm.densities.Normal(SHAPE, 1.0))
    wide = dataclasses.replace(model, dequantizer=wide, num_draws=64)
    params |= {"dequantizer": wide.init(key, every_event())["dequantizer"]}
    values = bounds(wide, params, key, 1_000)
    probability = np.exp(values).sum(1)
    assert abs(probability.mean() - 1) < NUM_SEM * sem(probability) < 0.3
    one = dataclasses.replace(wide, num_draws=1).log_prob(params, every_event(), key=key)
    assert jnp.isneginf(one).any() and not jnp.isnan(one).any()


def test_dequantizer_starts_close_to_uniform(key):
    q = flows.dequantizer(SHAPE, 1, conditioner=GLOW8)
    u = np.linspace(0.1, 0.9, 9, dtype=np.float32)[:, None, None, None] * np.ones(SHAPE, np.float32)
    context = jnp.zeros(SHAPE)
    params = q.init(key, jnp.asarray(u), jnp.zeros((9, *SHAPE)))
    # sigmoid(1.7 N(0, 1)) has a density between 0.8 and 1.25 on [0.1, 0.9]; rotations keep the normal.
    one = stats.norm.pdf(special.logit(u[:, 0, 0, 0].astype(np.float64)), scale=1.7) / (u * (1 - u))[:, 0, 0, 0]
    assert np.abs(np.log(one)).max() < np.log(1.25)
    np.testing.assert_allclose(q.log_prob(params, jnp.asarray(u), context), 4 * np.log(one), rtol=1e-4, atol=1e-4)


# --- levels ---------------------------------------------------------------------------------------------------------------------


def test_quantize_undoes_dequantize():
    uniform = gm.models.Flow(bj.Chain(()), gm.densities.Uniform((1,)))
    for num_levels in (2, 3, 17, 100, 255, 256):
        model = gm.models.Dequantized(uniform, num_levels)
        x = jnp.arange(num_levels, dtype=jnp.uint8)
        back = model.quantize(model.dequantize(x))
        assert back.dtype == jnp.uint8
        np.testing.assert_array_equal(back, x)
    model = gm.models.Dequantized(uniform, 256)
    for u in (0.0, 0.999):
        np.testing.assert_array_equal(model.quantize(model.dequantize(x, u)), x)
    np.testing.assert_allclose(model.dequantize(jnp.array([0, 255], jnp.uint8)), [0.5 / 256, 255.5 / 256], rtol=EPS)
    np.testing.assert_array_equal(model.quantize(jnp.array([-0.1, 0.0, 1.0, 1.1])), [0, 0, 255, 255])
    wide = gm.models.Dequantized(uniform, 300)
    assert wide.quantize(jnp.array([1.0])).dtype == jnp.int32 and wide.quantize(jnp.array([1.0]))[0] == 299


def test_samples_are_integers_with_the_right_probabilities(key):
    model, params = toy()
    num = 4_000
    x = np.asarray(model.sample(params, key, num))
    assert x.shape == (num, *SHAPE) and x.dtype == np.uint8 and set(np.unique(x)) == {0, 1}
    probability = stats.norm.cdf(SHIFT / np.abs(SCALE))  # of level 1
    assert (np.abs(x.mean(0) - probability) < NUM_SEM * np.sqrt(probability * (1 - probability) / num)).all()
    cold = np.asarray(model.tempered(1e-3).sample(params, key, 8))
    np.testing.assert_array_equal(cold, np.broadcast_to(SHIFT > 0, cold.shape))  # the median of each pixel
    assert model.tempered(0.5).event == gm.Levels(SHAPE, 2) and model.tempered(0.5).model == model.model.tempered(0.5)


def test_bits_per_dim_by_hand():
    assert abs(gm.metrics.bits_per_dim(2.0, (1,)) - 2.885390) < 1e-6
    assert abs(gm.metrics.bits_per_dim(2.0, (2, 2, 1)) - 2.885390 / 4) < 1e-6
    np.testing.assert_allclose(gm.metrics.bits_per_dim(np.array([0.0, 8 * np.log(2)]), (2, 4)), [0.0, 1.0])
    with pytest.raises(ValueError, match="event_shape must hold at least one entry"):
        gm.metrics.bits_per_dim(1.0, (4, 0))


# --- what is refused -----------------------------------------------------------------------------------------------------------


def test_wrong_numbers_are_refused(key):
    model, params = toy()
    real, x = np.zeros((3, *SHAPE), np.float32), np.zeros((3, *SHAPE), np.uint8)
    calls = {
        "init": lambda x: model.init(key, x),
        "loss": lambda x: model.loss(params, key, x),
        "log_prob": lambda x: model.log_prob(params, x, key=key),
        "evaluate": lambda x: gm.evaluate(model, params, x, key=key),
        "fit": lambda x: gm.fit(model, x, key=key, num_steps=1, progress=False),
        "fit, an iterator": lambda x: gm.fit(model, iter([x]), key=key, num_steps=1, progress=False),
        "fit, validation": lambda held_out: gm.fit(model, x, validation=held_out, key=key, num_steps=1, progress=False),
    }
    for call in calls.values():
        with pytest.raises(TypeError, match=r"must be integers in 0\.\.1, got float32; pass them as they are"):
            call(real)
        negative = x.astype(np.int8) - 1
        for wrong, seen in ((x + 2, "from 2 to 2"), (negative.astype(np.int32), "from -1 to -1"), (negative, "from -1 to -1")):
            with pytest.raises(ValueError, match=rf"must be integers in 0\.\.1, got values {seen}"):
                call(wrong)
        with pytest.raises(ValueError, match="must have shape|cannot reshape"):
            call(x[..., 0])


def test_bools_are_two_levels(key):
    """Black and white images come as bools."""
    model, params = toy()
    x = every_event()
    np.testing.assert_array_equal(model.log_prob(params, x > 0, key=key), model.log_prob(params, x, key=key))
    assert jnp.array_equal(model.loss(params, key, x > 0)[0], model.loss(params, key, x)[0])
    with pytest.raises(TypeError, match=r"must be integers in 0\.\.2, got bool"):
        toy(3)[0].log_prob(params, x > 0, key=key)


def test_integers_are_refused_by_a_flow(key):
    flow, x = toy()[0].model, np.zeros((3, *SHAPE), np.uint8)
    params = toy()[1]["model"]
    for call in (
        lambda: flow.init(key, x),
        lambda: flow.loss(params, key, x),
        lambda: flow.log_prob(params, x),
        lambda: gm.evaluate(flow, params, x),
        lambda: gm.fit(flow, x, key=key, num_steps=1, progress=False),
    ):
        with pytest.raises(TypeError, match=r"must be floating point, got uint8; .*gm\.models\.Dequantized for images"):
            call()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda flow: gm.models.Dequantized(flow, 0), ValueError, "num_levels must be an integer >= 1, got 0"),
        (lambda flow: gm.models.Dequantized(flow, 2, num_draws=0), ValueError, "num_draws must be an integer >= 1, got 0"),
        (lambda flow: gm.models.Dequantized(flow.bijector, 2), TypeError, "model must be a Model of real events, got Chain"),
        (lambda flow: gm.models.Dequantized(gm.models.Dequantized(flow, 2), 2), TypeError, "of real events, got Dequantized"),
        (
            lambda flow: gm.models.Dequantized(flow, 2, flows.dequantizer((4, 2, 1))),
            ValueError,
            r"dequantizer must be of events \(2, 2, 1\) given \(2, 2, 1\), got \(4, 2, 1\) given \(4, 2, 1\)",
        ),
        (
            lambda flow: gm.models.Dequantized(flow, 2, flows.glow(SHAPE, 1)),
            ValueError,
            r"given \(2, 2, 1\), got \(2, 2, 1\) given None",
        ),
        (
            lambda flow: gm.models.Dequantized(flow, 2, gm.models.Flow(bj.Chain(()), gm.densities.GaussianMixture((4,), 2))),
            ValueError,
            "an exact log_prob and reparameterised draws",
        ),
        (lambda flow: flows.dequantizer((3, 2, 1)), ValueError, "height and width that 2 divides"),
        (lambda flow: flows.dequantizer((4,)), ValueError, r"event_shape must be \(H, W, C\)"),
        (lambda flow: gm.models.Dequantized(flow, 2).tempered(0.0), ValueError, "temperature must be > 0"),
    ],
)
def test_unfit_parts_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make(toy()[0].model)


def test_no_key_is_used_twice(key_reuse):
    model, params = toy(dequantizer=flows.dequantizer(SHAPE, 1, conditioner=GLOW8), num_draws=2)
    x = jnp.asarray(every_event())
    params |= {"dequantizer": model.init(jax.random.key(0), x)["dequantizer"]}
    # One event: the checker takes a map over keys inside a vmap for a second use.
    jax.jit(model.log_prob_one)(params, x[3], None, jax.random.key(2))
    dataclasses.replace(model, num_draws=1).log_prob(params, x, key=jax.random.key(3))


# --- training ---


@pytest.mark.slow
def test_fit_of_images_by_class(key):
    """Two classes of images of 8 bits, dark and bright: everything that is trained moves, what is fixed stays."""
    shape = (4, 4, 1)
    rng = np.random.default_rng(0)
    label = np.arange(64) % 2
    x = rng.integers(0, 100, (64, *shape)) + 150 * label[:, None, None, None]
    x, context = x.astype(np.uint8), np.eye(2, dtype=np.float32)[label]
    flow = flows.glow(shape, 2, num_scales=1, conditioner=GLOW8, context_shape=(2,))
    model = gm.models.Dequantized(flow, 256, flows.dequantizer(shape, 1, conditioner=GLOW8))
    assert model.event_shape == shape and model.context_shape == (2,)
    options = {"num_steps": 40, "validate_every": 20, "batch_size": 32, "optimizer": optax.adamw(3e-3), "progress": False}
    result = gm.fit(model, (x, context), key=key, validation=(x[:8], context[:8]), **options)
    assert {"loss", "validation_loss", "nll_upper_bound_nats", "step"} <= result.history.keys()
    assert result.history["loss"].shape == (2,) and result.history["validation_loss"][1] < result.history["validation_loss"][0]
    start = model.init(stream(key, "init"), x, context)
    mask = jax.tree.leaves(trainable_mask(start))
    for (path, new), old, trained in zip(
        jax.tree.leaves_with_path(result.last_params), jax.tree.leaves(start), mask, strict=True
    ):
        assert jnp.abs(new - old).max() > 1e-6 if trained else jnp.array_equal(new, old), path
    assert mask.count(False) == 7 and mask.count(True) > 20  # permutation and signs of flow and dequantizer, units of the context
    sample = model.sample(result.params, key, 8, jnp.eye(2))
    assert sample.shape == (8, 2, *shape) and sample.dtype == jnp.uint8
    with pytest.raises(ValueError, match=r"data must be a pair \(x, context\)"):
        gm.fit(model, x, key=key, num_steps=1, progress=False)


@pytest.mark.slow
def test_own_loss_of_a_model_without_a_cheap_likelihood(key):
    """A diffusion of dequantised data is trained by its own loss, and scored by a bound."""
    x = np.random.default_rng(0).integers(0, 4, (64, 2)).astype(np.uint8)
    options = {"hidden_sizes": (8,), "scaling": None, "bound": gm.models.Bound(num_times=4)}
    model = gm.models.Dequantized(flows.diffusion((2,), **options), 4, own_loss=True)
    fit = gm.fit(model, x, key=key, num_steps=5, batch_size=16, progress=False)
    assert "denoising_error" in fit.history and model.likelihood is Likelihood.LOWER_BOUND
    assert jnp.isfinite(model.log_prob(fit.params, x[:4], key=key)).all()
    assert model.sample(fit.params, key, 3).dtype == jnp.uint8
    with pytest.raises(ValueError, match="leave out dequantizer, or own_loss"):
        gm.models.Dequantized(toy()[0].model, 2, flows.dequantizer(SHAPE), own_loss=True)


def test_draws_that_are_no_numbers_are_not_pixels(key):
    model = gm.models.Dequantized(
        gm.models.Flow(bj.Chain((bj.DiagonalAffine(), bj.Sigmoid())), gm.densities.Normal((2, 2, 1))), 4
    )
    params = model.init(key, jnp.zeros((1, 2, 2, 1), jnp.uint8))
    assert model.sample(params, key, (5,)).dtype == jnp.uint8
    broken = jax.tree.map(lambda p: p.at[0, 0, 0].set(jnp.nan) if p.ndim == 3 else p, params)
    with pytest.raises(FloatingPointError, match="5 of 5 draws of Dequantized are no numbers"):
        model.sample(broken, key, (5,))
    _, info = model.sample_with_info(broken, key, (5,))
    assert info["failed_solves"].tolist() == [1.0] * 5
    assert jax.jit(lambda p: model.sample(p, key, (5,)))(broken).shape == (5, 2, 2, 1)
