"""VQ-VAEs: against brute force, closed-form gradients, the sum over all codes, and the optimum of k-means."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod import flows
from genmod.densities import Amortized, BernoulliHead, CategoricalHead, Factorized, NormalHead, UniformLevels
from genmod.losses import code_usage, nearest_codes, vector_quantization
from genmod.models import VQVAE

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
SMALL = {"positions": (2,), "code_dim": 3, "hidden_sizes": (6,), "activation": jnp.tanh}
CODES = Factorized(CategoricalHead(4), (2,))
MODEL = flows.vector_quantized_autoencoder((3,), 4, head=BernoulliHead(), prior=CODES, **SMALL)
STATES = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint8)


class Identity(nn.Module):
    """x -> x, an encoder and a decoder."""

    @nn.compact
    def __call__(self, x):
        return x


def moved(model=MODEL, x=STATES, context=None):
    params, rng = model.init(jax.random.key(0), x, context), np.random.default_rng(1)
    return jax.tree.map(lambda p: p + np.asarray(0.4 * rng.standard_normal(p.shape), p.dtype), params)


# --- the quantisation itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1_000.0])
def test_nearest_codes_by_brute_force(offset):
    """Of any leading axes, and far from the origin too, where all squares are alike."""
    rng = np.random.default_rng(0)
    features, codebook = (np.float32(offset + rng.standard_normal(shape)) for shape in ((5, 7, 3), (11, 3)))
    distances = ((features[..., None, :].astype(np.float64) - codebook) ** 2).sum(-1)
    found = nearest_codes(jnp.asarray(features), jnp.asarray(codebook))
    np.testing.assert_array_equal(found, distances.argmin(-1))
    assert nearest_codes(jnp.zeros(3), jnp.zeros((1, 3))).shape == ()


def test_each_term_has_the_gradient_of_one_side(key):
    keys = jax.random.split(key, 3)
    features, codebook, slope = (jax.random.normal(k, s) for k, s in zip(keys, ((20, 2), (4, 2), (20, 2)), strict=True))

    def term(name):
        def value(features, codebook):
            found = vector_quantization(features, codebook)
            return jnp.sum(slope * found.values**2) if name == "values" else getattr(found, name)

        return jax.grad(value, (0, 1))(features, codebook)

    codes = np.asarray(nearest_codes(features, codebook))
    chosen = codebook[codes]
    np.testing.assert_allclose(vector_quantization(features, codebook).values, chosen, rtol=0)
    # What reads the values has its gradient, taken at the codes, at the features, and none at the codebook.
    np.testing.assert_allclose(term("values")[0], 2 * slope * chosen, rtol=1e-6)
    np.testing.assert_array_equal(term("values")[1], 0.0)
    # The gradient of a code is 2 n (e - mean of its features); that of a feature 2 (h - e).
    counts = np.bincount(codes, minlength=4)
    sums = np.stack([np.asarray(features)[codes == k].sum(0) for k in range(4)])
    np.testing.assert_array_equal(term("codebook")[0], 0.0)
    np.testing.assert_allclose(term("codebook")[1], 2 * (counts[:, None] * codebook - sums), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(term("commitment")[0], 2 * (features - chosen), rtol=1e-5)
    np.testing.assert_array_equal(term("commitment")[1], 0.0)
    with pytest.raises(ValueError, match=r"features must end in the axis of the codebook \(K, D\), got \(20, 2\) and \(4, 3\)"):
        vector_quantization(features, jnp.zeros((4, 3)))


def test_use_of_codes():
    """Uniform use has perplexity K; weights count rows; a row without weight does not count."""
    every = jnp.arange(12).reshape(6, 2)
    np.testing.assert_allclose(code_usage(every, 12), (12.0, 1.0), rtol=1e-6)
    np.testing.assert_allclose(code_usage(jnp.zeros((6, 2), int), 12), (1.0, 1 / 12), rtol=1e-6)
    codes, weight = jnp.array([[0, 0], [1, 2], [3, 3]]), jnp.array([1.0, 2.0, 0.0])
    share = np.array([2, 2, 2]) / 6
    np.testing.assert_allclose(code_usage(codes, 5, weight), (np.exp(-(share * np.log(share)).sum()), 0.6), rtol=1e-6)
    for kind in (int, bool, jnp.bfloat16):
        same = code_usage(codes[:2], 5, jnp.ones(2, kind))  # codes 0, 0, 1, 2
        np.testing.assert_allclose(same, (np.exp(1.5 * np.log(2)), 0.6), rtol=1e-6)
    law = UniformLevels((2,), 3)
    drawn = law.sample({}, jax.random.key(0), 9_000)
    counts = np.bincount(np.asarray(drawn) @ np.array([3, 1]), minlength=9)
    assert drawn.dtype == jnp.uint8 and (np.abs(counts - 1_000) < NUM_SEM * np.sqrt(1_000)).all()
    np.testing.assert_allclose(law.log_prob({}, drawn[:3]), -2 * np.log(3), rtol=1e-6)


# --- the model -----------------------------------------------------------------------------------------------------------------


def test_the_bound_lies_below_the_sum_over_all_codes():
    """log p(x) over the 4^2 codes sums to one over x; samples follow it; what the bound leaves out is known."""
    params = moved()
    codes = np.array(list(itertools.product(range(4), repeat=2)), np.uint8)
    means = np.asarray(MODEL.decode(params, codes), np.float64)  # (16, 3), of bits
    log_prior = np.asarray(CODES.log_prob(params["prior"], codes), np.float64)
    log_likelihood = np.where(STATES[:, None] == 1, np.log(means), np.log1p(-means)).sum(-1)
    log_joint = log_prior + log_likelihood
    exact = np.log(np.exp(log_joint).sum(1))
    np.testing.assert_allclose(np.exp(exact).sum(), 1.0, rtol=1e-5)
    bound = MODEL.log_prob(params, STATES)
    own = np.asarray(MODEL.encode(params, STATES))
    np.testing.assert_allclose(bound, log_joint[np.arange(8), own @ np.array([4, 1])], rtol=1e-4)
    assert (bound < exact).all() and MODEL.likelihood is gm.Likelihood.LOWER_BOUND
    drawn = np.asarray(MODEL.sample(params, jax.random.key(1), 20_000))
    shares = np.bincount(drawn @ np.array([4, 2, 1]), minlength=8) / 20_000
    assert (np.abs(shares - np.exp(exact)) < NUM_SEM * np.sqrt(np.exp(exact) / 20_000)).all()
    found = gm.evaluate(MODEL, params, STATES)  # without a key
    np.testing.assert_allclose(found["nll_upper_bound_nats"], -bound.mean(), rtol=1e-5)


def test_the_loss_and_its_parts(key):
    """Minus the bound, and the squares; rows count by their weights."""
    params, weight = moved(), np.array([1, 1, 0, 2, 0, 0, 0, 0], np.float32)
    loss, metrics = jax.jit(MODEL.loss)(params, key, gm.Batch(STATES, None, weight))
    bound = np.asarray(MODEL.log_prob(params, STATES))
    features = np.asarray(jax.jit(jax.vmap(lambda x: MODEL.features_one(params, x)))(STATES))
    codes = np.asarray(MODEL.encode(params, STATES))
    squares = ((features - np.asarray(params["codebook"])[codes]) ** 2).sum((1, 2))
    np.testing.assert_allclose(loss, np.average(1.25 * squares - bound, weights=weight), rtol=1e-5)
    np.testing.assert_allclose(metrics["squared_distance"], np.average(squares, weights=weight), rtol=1e-5)
    np.testing.assert_allclose(metrics["rate_nats"] + metrics["distortion_nats"], -np.average(bound, weights=weight), rtol=1e-5)
    counts = np.bincount(codes.ravel(), np.repeat(weight, 2), minlength=4)
    share = counts[counts > 0] / counts.sum()
    np.testing.assert_allclose(metrics["code_perplexity"], np.exp(-(share * np.log(share)).sum()), rtol=1e-5)
    assert metrics["codes_used"] == len(share) / 4
    whole, own = jax.jit(MODEL.loss)(params, key, gm.Batch(STATES, None, weight.astype(int)))
    np.testing.assert_allclose((whole, own["code_perplexity"]), (loss, metrics["code_perplexity"]), rtol=1e-6)
    # The encoder gets the decoder's gradient at the codes, and the pull of commitment.
    x = jnp.asarray(STATES[:1])
    plain = dataclasses.replace(MODEL, commitment=0.0)

    def at_codes(values):
        raw = gm.nets.apply(MODEL.decoder, params["decoder"], values).reshape(3, 1)
        return -MODEL.head.log_prob(raw, x[0]).sum()

    slope = jax.grad(at_codes)(params["codebook"][codes[0]])
    _, pull = jax.vjp(lambda p: MODEL.features_one(params | {"encoder": p}, x[0]), params["encoder"])
    found = jax.jit(jax.grad(lambda p: plain.loss(params | {"encoder": p}, key, x)[0]))(params["encoder"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, pull(slope)[0])


def test_training_with_a_prior(key):
    """Through `fit`: the bound comes near the entropy, which no bound passes, and the prior learns the codes' frequencies."""
    probabilities = np.array([0.3, 0.02, 0.05, 0.18, 0.02, 0.03, 0.1, 0.3])
    data = STATES[np.random.default_rng(0).choice(8, 4_000, p=probabilities)]
    prior = Factorized(CategoricalHead(8), (1,))
    model = flows.vector_quantized_autoencoder((3,), 8, head=BernoulliHead(), prior=prior, **SMALL | {"positions": (1,)})
    fit = gm.fit(model, data, key=key, optimizer=optax.adam(1e-2), num_steps=1_000, progress=False)
    found = gm.evaluate(model, fit.params, data)
    entropy = -(probabilities * np.log(probabilities)).sum()
    assert -NUM_SEM * found["nll_upper_bound_nats_sem"] - 0.03 < found["nll_upper_bound_nats"] - entropy < 0.1
    report = model.codebook_report(fit.params, data)
    frequencies = report.counts / report.counts.sum()
    np.testing.assert_allclose(jax.nn.softmax(fit.params["prior"]["raw"][0]), frequencies, atol=0.02)
    assert report.counts.sum() == 4_000 and report.num_dead == (report.counts == 0).sum()
    assert str(report).startswith(f"{8 - report.num_dead} of 8 codes used, perplexity")
    assert {"code_perplexity", "codes_used", "rate_nats", "distortion_nats"} <= fit.history.keys()


def test_it_ends_at_the_optimum_of_k_means(key):
    """Without networks a codebook is that of k-means: the means of separated clusters, dead codes restarted."""
    rng, centres = np.random.default_rng(0), np.array([[-4.0, 1.0], [3.0, 2.0], [1.0, -5.0]])
    x = np.float32(centres[rng.integers(0, 3, 600)] + 0.3 * rng.standard_normal((600, 2)))
    model = VQVAE((2,), Identity(), Identity(), NormalHead(1.0), (), 3, 2)
    params = model.init(key, x)
    # Two codes are far from all data: nothing moves them.
    params = params | {"codebook": jnp.array([[0.0, 0.0], [90.0, 0.0], [0.0, 90.0]])}
    assert model.codebook_report(params, x).num_dead == 2
    fit = gm.fit(model, x, key=key, params=params, optimizer=optax.adam(3e-2), num_steps=200, progress=False)
    np.testing.assert_array_equal(fit.params["codebook"][1:], params["codebook"][1:])
    restarted = model.restart_dead_codes(fit.params, jax.random.key(3), x)
    np.testing.assert_array_equal(restarted["codebook"][0], fit.params["codebook"][0])
    assert (jnp.abs(restarted["codebook"][1:]) < 10).all()
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    options = {"optimizer": optimizer, "num_steps": 600, "batch_size": 600, "progress": False}
    fit = gm.fit(model, x, key=key, params=restarted, **options)
    codes = np.asarray(model.encode(fit.params, x))
    report = model.codebook_report(fit.params, x)
    assert codes.shape == (600,) and report.num_dead == 0 and report.perplexity > 2.9
    means = np.stack([x[codes == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(fit.params["codebook"], means, atol=1e-3)
    order = np.argsort(means[:, 1])
    np.testing.assert_allclose(means[order], centres[[2, 0, 1]], atol=0.15)
    # Then the bound is that of k-means: half of the squared distances, and log K for the code.
    inertia = ((x - means[codes]) ** 2).sum(1).mean()
    wanted = 0.5 * inertia + np.log(2 * np.pi) + np.log(3)
    np.testing.assert_allclose(gm.evaluate(model, fit.params, x)["nll_upper_bound_nats"], wanted, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_codes_differ_where_features_do_not(value, key):
    """At the start and after a restart, all codes lie within a few hundredths of the feature's size, or of 1, of a constant."""
    x = np.full((16, 2), value, np.float32)
    model = VQVAE((2,), Identity(), Identity(), NormalHead(1.0), (), 8, 2)
    params = model.init(key, x)
    restarted = model.restart_dead_codes(params | {"codebook": params["codebook"] + 1e7}, key, x)
    for codebook, least in ((params["codebook"], 8), (restarted["codebook"], 7)):  # one of equally far codes is in use
        near = np.abs(codebook - np.float32(value)).max(1) < 0.06 * max(1.0, abs(value))
        assert near.sum() >= least and len(np.unique(codebook, axis=0)) == 8


def test_contexts_and_convolutions(key):
    """Networks and prior see the context; an encoder may keep its positions."""
    prior = Amortized(CODES, (2,))
    model = flows.vector_quantized_autoencoder((3,), 4, head=BernoulliHead(), prior=prior, context_shape=(2,), **SMALL)
    context = np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32)
    params = moved(model, STATES, context)
    bound = model.log_prob(params, STATES, context)
    assert np.ptp(model.log_prob(params, STATES[0], context)) > 1e-2 and (bound < 0).all()
    rate = -prior.log_prob(params["prior"], model.encode(params, STATES, context), context)
    _, metrics = jax.jit(model.loss)(params, key, (STATES, context))
    np.testing.assert_allclose(metrics["rate_nats"], rate.mean(), rtol=1e-5)
    assert model.decode(params, np.zeros((5, 1, 2), np.uint8), context).shape == (5, 8, 3)
    assert model.codebook_report(params, STATES, context).counts.sum() == 16
    encoder = nn.Sequential((nn.Conv(4, (3, 3), strides=(2, 2)), nn.relu, nn.Conv(3, (1, 1))))
    decoder = nn.ConvTranspose(1, (3, 3), strides=(2, 2))
    images = VQVAE((4, 6, 1), encoder, decoder, BernoulliHead(), (2, 3), 300, 3)
    x = (jax.random.uniform(key, (4, 4, 6, 1)) > 0.5).astype(jnp.uint8)
    params = images.init(key, x)
    codes = images.encode(params, x)
    assert codes.shape == (4, 2, 3) and codes.dtype == jnp.int32 and images.sample(params, key, (2,)).shape == (2, 4, 6, 1)
    means = images.decode(params, codes)
    log_likelihood = np.log(np.where(x == 1, means, 1 - means)).sum((1, 2, 3))
    np.testing.assert_allclose(images.log_prob(params, x), log_likelihood - 6 * np.log(300), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: dataclasses.replace(MODEL, num_codes=0), ValueError, "num_codes must be an integer >= 1, got 0"),
        (lambda: dataclasses.replace(MODEL, code_dim=0), ValueError, "code_dim must be an integer >= 1, got 0"),
        (lambda: dataclasses.replace(MODEL, commitment=-1.0), ValueError, r"commitment must be >= 0 and finite, got -1\.0"),
        (lambda: dataclasses.replace(MODEL, commitment=np.inf), ValueError, "commitment must be >= 0 and finite, got inf"),
        (lambda: dataclasses.replace(MODEL, commitment=None), TypeError, "commitment must be a number, got None"),
        (lambda: dataclasses.replace(MODEL, commitment="0.25"), TypeError, "commitment must be a number, got '0.25'"),
        (lambda: dataclasses.replace(MODEL, prior="uniform"), TypeError, "prior must be a Distribution, got 'uniform'"),
        (
            lambda: dataclasses.replace(MODEL, prior=UniformLevels((2,), 5)),
            ValueError,
            r"prior must be over Levels\(shape=\(2,\), num_levels=4\), the codes, got one over .*num_levels=5",
        ),
        (lambda: dataclasses.replace(MODEL, prior=Amortized(CODES, (2,))), ValueError, r"prior wants a context of shape \(2,\)"),
        (
            lambda: moved(dataclasses.replace(MODEL, code_dim=2)),
            ValueError,
            r"encoder must give features \(2, 2\), .* got shape \(6,\)",
        ),
        (lambda: moved(dataclasses.replace(MODEL, head=CategoricalHead(2))), ValueError, "decoder must give 6 raw numbers"),
        (lambda: MODEL.decode(moved(), np.full((1, 2), 4, np.uint8)), ValueError, r"codes must be integers in 0\.\.3"),
        (
            lambda: MODEL.restart_dead_codes(moved(), jax.random.key(0), STATES, min_count=0),
            ValueError,
            "min_count must be an integer",
        ),
        (lambda: UniformLevels((2,), 0), ValueError, "num_levels must be an integer >= 1"),
        (lambda: flows.vector_quantized_autoencoder((3,), 4, positions=(0,)), ValueError, "positions must hold integers >= 1"),
    ],
)
def test_bad_parts(make, error, match):
    with pytest.raises(error, match=match):
        make()
