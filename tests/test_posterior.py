"""Posteriors from simulations: the contrastive ratio loss against tables, learned and true posteriors against exact ones."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import AUTOENCODERS, ENERGY8, MADE12, MLP8

import genmod as gm
from genmod import losses
from genmod.core.distribution import Likelihood
from genmod.densities import BernoulliHead, LinearGaussianSimulator, Normal, QueueSimulator, TwoMoonsSimulator, Uniform
from genmod.models import LikelihoodPosterior, MADEModel, RatioEstimator, mixture_of_levels
from genmod.nets import MLP, FlatNet

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5

# --- the contrastive ratio ----------------------------------------------------------------------------------------------------

TABLE = np.array([[0.2, 0.02, 0.08], [0.05, 0.3, 0.35]])  # p(x, context)
RATIO = np.log(TABLE / np.outer(TABLE.sum(1), TABLE.sum(0)))
NUM_BATCHES = 20_000


@functools.partial(jax.jit, static_argnums=0)
def gradients(num_contrastive, h, rows, keys, odds, weight):
    """Of the loss of each batch of rows, (num, n, 2), or of one with all keys, in the table h: (num, 2, 3)."""

    def loss(h, x, context, key):
        return losses.contrastive_ratio(
            lambda x, c: h[x, c], x, context, key, num_contrastive=num_contrastive, odds=odds, weight=weight
        )[0]

    axis = 0 if rows.ndim == 3 else None
    return jax.vmap(jax.grad(loss), (None, axis, axis, 0))(h, rows[..., 0], rows[..., 1], keys)


def mean_and_sem(found):
    found = np.asarray(found, float)
    return found.mean(0), found.std(0) / math.sqrt(len(found))


def batches(n):
    cells = np.random.default_rng(0).choice(6, (NUM_BATCHES, n), p=TABLE.ravel())
    return np.stack([cells // 3, cells % 3], -1)


KEYS = jax.random.split(jax.random.key(2), NUM_BATCHES)


@pytest.mark.parametrize("num_contrastive", [1, 3])
@pytest.mark.parametrize("weighted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_loss_is_least_at_the_log_ratio(num_contrastive, weighted):
    """Also of batches that are hardly larger than the number of contrasts, where rows that came twice would move it."""
    n = num_contrastive + 2
    weight = np.ones(n, np.float32) if weighted else None
    for odds in (1.0, 5.0):
        mean, sem = mean_and_sem(gradients(num_contrastive, RATIO, batches(n), KEYS, odds, weight))
        assert (np.abs(mean) < NUM_SEM * sem).all(), mean / sem
        for shift in (0.3, np.array([[0.0, 0.3, 0.0]]), np.array([[0.3], [0.0]])):  # h is free in no direction
            mean, sem = mean_and_sem(gradients(num_contrastive, RATIO + shift, batches(n), KEYS, odds, weight))
            assert (np.abs(mean) > 8 * sem).any() and (mean * np.broadcast_to(shift, mean.shape)).sum() > 0


@pytest.mark.parametrize("num_contrastive", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_row_of_weight_two_is_two_rows(num_contrastive):
    rows, weight = np.array([[0, 0], [0, 2], [1, 1], [1, 0], [1, 2]]), np.array([2, 1, 3, 0, 1])
    h = np.array([[0.5, -1.0, 0.2], [0.0, 1.5, -0.7]])
    found = gradients(num_contrastive, h, rows, KEYS, 2.0, weight.astype(np.float32))
    wanted = gradients(num_contrastive, h, rows.repeat(weight, 0), KEYS, 2.0, None)
    (mean, sem), (other, other_sem) = mean_and_sem(found), mean_and_sem(wanted)
    assert (np.abs(mean - other) < NUM_SEM * np.hypot(sem, other_sem) + 1e-7).all()
    assert mean[1, 0] != 0  # the row of weight zero is the context of none, but others have its x ...
    uniform, _ = mean_and_sem(gradients(num_contrastive, h, rows, KEYS, 2.0, None))
    assert (np.abs(mean - uniform) > 10 * sem).any()  # ... and the weights are not without effect


def test_rows_of_weight_zero_count_for_nothing_even_where_no_other_is_left(key):
    def loss(h, weight):
        index = jnp.arange(4)
        return losses.contrastive_ratio(lambda x, c: h[x, c], index, index, key, num_contrastive=3, weight=weight)[0]

    for weight in ([0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.5, 0.0]):
        slope = np.asarray(jax.grad(loss)(jnp.zeros((4, 4)), jnp.array(weight)))
        out = np.equal(weight, 0)
        assert np.isfinite(slope).all() and (slope[out] == 0).all() and (slope[:, out] == 0).all()
        assert slope[2, 2] != 0 or weight[1] == 0


@pytest.mark.slow
def test_the_information_is_the_mutual_information(key):
    counts = np.round(TABLE * 100).astype(int)
    rows = np.argwhere(counts > 0).repeat(counts.ravel(), 0)
    information = (TABLE * RATIO).sum()
    for batch, weight in ((rows, None), (np.argwhere(counts > 0), counts.ravel())):
        _, metrics = losses.contrastive_ratio(lambda x, c: jnp.asarray(RATIO)[x, c], *batch.T, key, weight=weight)
        np.testing.assert_allclose(metrics["information_nats"], information, rtol=1e-5)
    assert set(metrics) == {"information_nats"} and 0.1 < information < 1.0


def test_one_contrast_at_even_odds_is_a_classifier(key):
    """softplus(-h) of what belongs together and softplus(h) of what does not, half of each (Hermans et al. 2020)."""
    index, h = np.arange(2), np.array([[0.3, -1.0], [2.0, 0.7]])
    loss, _ = losses.contrastive_ratio(lambda x, c: jnp.asarray(h)[x, c], index, index, key, num_contrastive=1)
    wanted = 0.5 * np.logaddexp(0, -np.diag(h)).mean() + 0.5 * np.logaddexp(0, h[[1, 0], [0, 1]]).mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^num_contrastive must be in 1\.\.1, below the 2 rows of the batch, got 2"):
        losses.contrastive_ratio(lambda x, c: x * c, index, index, key, num_contrastive=2)
    with pytest.raises(ValueError, match="^odds must be > 0 and finite, got 0.0"):
        losses.contrastive_ratio(lambda x, c: x * c, index, index, key, num_contrastive=1, odds=0.0)


# --- posteriors ---------------------------------------------------------------------------------------------------------------

LINEAR = LinearGaussianSimulator(2, prior_variance=0.5, noise_variance=0.2)
MOONS = TwoMoonsSimulator()
QUEUE = QueueSimulator(num_times=3, capacity=4)
EMPTY = {"prior": {}, "model": {}}


class TrueRatio(nn.Module):
    """log p(x | theta) / p(x) of LINEAR."""

    def __call__(self, theta, x):
        return LINEAR.log_posterior_one(theta, x) - LINEAR.prior.log_prob_one({}, theta)


def true_ratio():
    """The estimator and its parameters, in units of one."""
    model = RatioEstimator(LINEAR.prior, TrueRatio(), (2,))
    one = {"mean": jnp.zeros(2), "scale": jnp.ones(2)}
    return model, {"network": {}, "units": gm.Fixed({"x": one, "context": one}), "prior": gm.Fixed({})}


def simulated(simulator, num, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    theta = simulator.prior.sample({}, keys[0], num)
    x = simulator.sample({}, keys[1], (), theta)
    return theta, jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("simulator", [LINEAR, MOONS, QUEUE], ids=["linear", "moons", "queue"])
def test_the_true_likelihood_gives_the_exact_posterior(simulator):
    theta, x = simulated(simulator, 50)
    if simulator is MOONS:  # of draws of the prior none may make x[0]
        theta = jnp.concatenate([theta, theta[:1], -theta[:1, ::-1]])
    posterior = LikelihoodPosterior(simulator.prior, simulator)
    assert posterior.likelihood is Likelihood.UNNORMALIZED and posterior.support == simulator.prior.support
    assert posterior.event_shape == theta.shape[1:] and posterior.context_shape == x.shape[1:]
    assert posterior.init(jax.random.key(0), theta[:50], x) == EMPTY
    log_prob = posterior.log_prob(EMPTY, theta, x[0])
    exact = simulator.posterior.log_prob({}, theta, x[0])
    supported = np.isfinite(exact)
    assert supported.sum() >= 2
    apart = np.asarray(log_prob - exact)[supported]
    np.testing.assert_allclose(apart, apart[0], atol=1e-4)
    assert (np.isneginf(log_prob) == ~supported).all()
    if simulator is not LINEAR:
        assert np.isneginf(posterior.log_prob(EMPTY, jnp.array([3.0, 0.5]), x[0]))


def test_the_true_ratio_gives_the_exact_posterior():
    theta, x = simulated(LINEAR, 50)
    model, params = true_ratio()
    np.testing.assert_allclose(model.log_prob(params, theta, x), LINEAR.posterior.log_prob({}, theta, x), atol=1e-5)
    ratio = LINEAR.posterior.log_prob({}, theta, x) - LINEAR.prior.log_prob({}, theta)
    np.testing.assert_allclose(model.log_ratio(params, theta, x), ratio, atol=1e-5)
    far = RatioEstimator(Uniform((2,)), TrueRatio(), (2,))
    outside = jnp.array([-0.5, 0.5])
    assert np.isneginf(far.log_prob(params, outside, x[0]))
    np.testing.assert_allclose(far.log_ratio(params, outside, x[0]), model.log_ratio(params, outside, x[0]))
    loss, metrics = model.loss(params, jax.random.key(0), gm.Batch(theta, x))
    np.testing.assert_allclose(metrics["information_nats"], ratio.mean(), rtol=1e-5)
    assert loss < math.log(2) * 2


@pytest.mark.parametrize("by", [pytest.param("likelihood", marks=pytest.mark.slow), "ratio"])
def test_draws_of_a_population_are_those_of_the_posterior(by, key):
    posterior, params = (LikelihoodPosterior(LINEAR.prior, LINEAR), EMPTY) if by == "likelihood" else true_ratio()
    _, x = simulated(LINEAR, 24)
    found = posterior.population(params, key, x.reshape(4, 6, 2), 200)
    assert found.positions.shape == (4, 6, 200, 2) and found.log_ratio.shape == (4, 6) and (found.level == 1).all()
    sd = math.sqrt(1 / (1 / 0.5 + 1 / 0.2))
    scaled = (np.asarray(found.positions, float).reshape(24, 200, 2) - np.asarray(x)[:, None] * 0.5 / 0.7) / sd
    for of_x, wanted in ((scaled.mean(1), 0.0), ((scaled**2).mean(1), 1.0), ((scaled[..., 0] * scaled[..., 1]).mean(1), 0.0)):
        mean, sem = mean_and_sem(of_x)
        assert (np.abs(mean - wanted) < NUM_SEM * sem).all() and (sem < 0.1).all()
    evidence = np.asarray(Normal((2,), math.sqrt(0.7)).log_prob({}, x)) if by == "likelihood" else 0.0
    mean, sem = mean_and_sem(np.exp(found.log_ratio.reshape(24) - evidence))
    assert abs(mean - 1) < NUM_SEM * sem and sem < 0.1
    one = posterior.population(params, key, x[0], 200)
    np.testing.assert_array_equal(one.positions, found.positions[0, 0])


@pytest.mark.slow
def test_a_queue_takes_its_integers_as_real_numbers(key):
    posterior = LikelihoodPosterior(QUEUE.prior, QUEUE)
    x = jnp.array([1.0, 3.0, 2.0])
    found = posterior.population(EMPTY, key, x, 200)
    exact = np.asarray(QUEUE.posterior.sample({}, key, 1_000, x))
    positions = np.asarray(found.positions)
    assert found.level == 1 and (positions > 0.1).all() and (positions < 2.0).all()
    sem = exact.std(0) / math.sqrt(200)
    assert (np.abs(positions.mean(0) - exact.mean(0)) < 2 * NUM_SEM * sem).all()  # members share ancestors
    with pytest.raises(ValueError, match="cast contexts to float"):
        posterior.population(EMPTY, key, np.array([[1, 3, 2]]), 400)


def test_a_model_of_integers_is_initialised_with_them(key):
    prior, law = Uniform((2,)), MADEModel((3,), MADE12, BernoulliHead(), context_shape=(2,))
    posterior = LikelihoodPosterior(prior, law)
    theta, x = prior.sample({}, key, 8), np.random.default_rng(0).integers(0, 2, (8, 3))
    params = posterior.init(key, theta, x.astype(np.float32))
    found = posterior.log_prob(params, theta, x.astype(np.float32))
    np.testing.assert_allclose(found, law.log_prob(params["model"], x.astype(np.uint8), theta), rtol=1e-6)  # log p(theta) = 0


# --- training -----------------------------------------------------------------------------------------------------------------

SMALL = RatioEstimator(Uniform((1,), -1.0, 1.0), FlatNet(MLP8, 1), (2,), num_contrastive=2, odds=2.0)


def small_data(num=64):
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1, 1, (num, 1)).astype(np.float32)
    return theta, np.concatenate([50 + 3 * theta, np.full((num, 1), 7.0)], 1).astype(np.float32)


def test_a_network_sees_standardised_rows(key):
    theta, x = small_data()
    params = SMALL.init(key, theta, x)
    units = params["units"].tree
    np.testing.assert_allclose(units["x"]["mean"], theta.mean(0), rtol=1e-5)
    np.testing.assert_allclose(units["context"]["scale"], [x[:, 0].std(), 1.0], rtol=1e-5)  # a constant keeps its unit
    inputs = [(theta - theta.mean(0)) / theta.std(0), (x - x.mean(0)) / [x[:, 0].std(), 1.0]]
    wanted = jax.vmap(lambda *row: gm.nets.apply(SMALL.network, params["network"], *row)[0])(*map(jnp.asarray, inputs))
    np.testing.assert_allclose(SMALL.log_ratio(params, theta, x), wanted, rtol=1e-3, atol=1e-4)
    assert gm.num_params(params) == gm.num_params({"network": params["network"]})
    assert SMALL.log_prob(params, theta, x[0]).shape == (64,)


def test_fit_runs_resumes_and_takes_weights(key, tmp_path):
    theta, x = small_data()
    options = {"key": key, "batch_size": 16, "progress": False}
    whole = gm.fit(SMALL, gm.Batch(theta, x), num_steps=20, **options)
    for num_steps in (10, 20):
        halves = gm.fit(SMALL, gm.Batch(theta, x), num_steps=num_steps, checkpoint=tmp_path, **options)
    jax.tree.map(np.testing.assert_array_equal, halves.params, whole.params)
    assert {"loss", "information_nats"} <= set(whole.history)
    weight = np.where(theta[:, 0] > 0, 1.0, 0.0)
    weighted = gm.fit(SMALL, gm.Batch(theta, x, weight), num_steps=20, validation=(theta, x), **options)
    assert np.isfinite(weighted.history["loss"]).all()
    assert np.abs(weighted.params["network"]["Dense_0"]["kernel"] - whole.params["network"]["Dense_0"]["kernel"]).max() > 1e-4


@pytest.mark.slow
def test_a_trained_ratio_gives_the_posterior(key):
    simulator = LinearGaussianSimulator(1, prior_variance=0.5, noise_variance=0.2)
    theta, x = simulated(simulator, 20_000)
    model = RatioEstimator(simulator.prior, FlatNet(MLP((32, 32), nn.silu), 1), (1,))
    fit = gm.fit(model, gm.Batch(theta, x), key=key, num_steps=3_000, batch_size=256, progress=False)
    grid = np.linspace(-3, 3, 301, dtype=np.float32)[:, None, None]
    seen = x[:20]
    log_q, log_p = (
        np.asarray(law.log_prob(params, grid, seen), float) for law, params in ((model, fit.params), (simulator.posterior, {}))
    )
    mass = np.exp(log_p) / np.exp(log_p).sum(0)
    log_q = log_q - np.log(np.exp(log_q).sum(0))
    kl = (mass * (np.log(mass) - log_q)).sum(0)
    information = 0.5 * math.log(0.7 / 0.2)  # the KL divergence of the posterior from the prior, in the mean
    assert kl.mean() < 0.03 * information
    np.testing.assert_allclose(np.asarray(fit.history["information_nats"])[-500:].mean(), information, rtol=0.1)
    found = model.population(fit.params, key, seen, 500)
    np.testing.assert_allclose(found.positions.mean(1)[:, 0], seen[:, 0] * 0.5 / 0.7, atol=0.15)


# --- errors -------------------------------------------------------------------------------------------------------------------


def population(posterior, params=EMPTY, num=8, **options):
    return posterior.population(params, jax.random.key(0), jnp.zeros(2), num, **options)


OF_LINEAR = LikelihoodPosterior(LINEAR.prior, LINEAR)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: LikelihoodPosterior(1.0, LINEAR),
            TypeError,
            r"^prior must be a Distribution such as gm\.densities\.Uniform, got",
        ),
        (
            lambda: LikelihoodPosterior(ENERGY8, LINEAR),
            ValueError,
            "^prior must have an EXACT log_prob and no context, got Energy",
        ),
        (
            lambda: LikelihoodPosterior(LINEAR, LINEAR),
            ValueError,
            "^prior must have an EXACT log_prob and no context, got Linear",
        ),
        (lambda: LikelihoodPosterior(LINEAR.prior, None), TypeError, "^model must be a Distribution, got None"),
        (
            lambda: LikelihoodPosterior(LINEAR.prior, AUTOENCODERS["variational_autoencoder"]((2,))),
            ValueError,
            "^model must have a log_prob that is EXACT or UNNORMALIZED, got LOWER_BOUND",
        ),
        (
            lambda: LikelihoodPosterior(Normal((3,)), LINEAR),
            ValueError,
            r"^model must have the context theta, of shape \(3,\), got \(2,\)",
        ),
        (
            lambda: LikelihoodPosterior(Normal((3,)), Normal((2,))),
            ValueError,
            r"^model must have the context theta, of shape \(3,\), got None",
        ),
        (lambda: RatioEstimator(None, FlatNet(MLP8, 1), (2,)), TypeError, "^prior must be a Distribution"),
        (lambda: RatioEstimator(Normal((1,)), FlatNet(MLP8, 1), None), ValueError, "^context_shape must be that of x, got None"),
        (
            lambda: RatioEstimator(Normal((1,)), FlatNet(MLP8, 1), (2,), num_contrastive=0),
            ValueError,
            "^num_contrastive must be an integer >= 1, got 0",
        ),
        (lambda: RatioEstimator(Normal((1,)), FlatNet(MLP8, 1), (2,), odds=-1.0), ValueError, "^odds must be > 0 and finite"),
        (
            lambda: RatioEstimator(Normal((1,)), FlatNet(MLP8, 3), (2,)).init(jax.random.key(0), *small_data()),
            ValueError,
            r"^network must give one number for ONE event, got \(3,\)",
        ),
        (lambda: SMALL.init(jax.random.key(0), small_data()[0]), ValueError, r"is conditional: pass context of shape \(2,\)"),
        (lambda: OF_LINEAR.log_prob(EMPTY, jnp.zeros(2)), ValueError, r"is conditional: pass context of shape \(2,\)"),
        (lambda: SMALL.loss({}, jax.random.key(0), small_data()[0]), ValueError, r"is conditional: pass context of shape \(2,\)"),
        (
            lambda: OF_LINEAR.sample(EMPTY, jax.random.key(0), 3, jnp.zeros(2)),
            NotImplementedError,
            r"^LikelihoodPosterior has no draws one by one; population\(params, key, x, num\)\.positions are draws",
        ),
        (lambda: population(OF_LINEAR, num=7), ValueError, "^position must hold at least 8 members of 2 numbers, got 7"),
        (lambda: population(OF_LINEAR, num=0), ValueError, "^num must be an integer >= 1, got 0"),
        (lambda: population(OF_LINEAR, num_steps=0), ValueError, "^num_steps must be an integer >= 1, got 0"),
        (lambda: population(OF_LINEAR, target_size=2.0), ValueError, r"^target_size must be a share of the members in \(0, 1\)"),
        (lambda: population(SMALL), ValueError, "^params must be those of this RatioEstimator, made by its init: "),
        (
            lambda: OF_LINEAR.population(EMPTY, jax.random.key(0), jnp.zeros(3), 8),
            ValueError,
            r"^x must have shape \(\.\.\.,\) \+ \(2,\), got \(3,\)",
        ),
        (
            lambda: population(LikelihoodPosterior(mixture_of_levels((2,), 2, 3), LINEAR)),
            ValueError,
            "^a population wants a prior over real numbers, got one over Levels",
        ),
    ],
)
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
