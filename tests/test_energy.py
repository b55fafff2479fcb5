"""Energy models: kernels, replay buffers and three ways to train, against closed forms and quadrature."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.densities import BernoulliUnits, Normal
from genmod.losses import contrast, explicit_score_matching, noise_contrastive
from genmod.models import Configuration, EnergyModel, NoiseContrastive, RestrictedBoltzmannMachine
from genmod.nets import MLP, FlatNet
from genmod.samplers import Kernel, langevin
from genmod.training import ContrastiveStep, FreshChains, ReplayChains

pytestmark = pytest.mark.usefixtures("quick_compile")
SMALL = FlatNet(MLP((8,), jnp.tanh), 1)
TILTED = EnergyModel((1,), SMALL, Normal((1,), 4.0))
GRID = np.linspace(-16.0, 16.0, 2_001)[:, None]


class Bell(nn.Module):
    """(x - m)^T P (x - m) / 2 with P = L L^T: the energy of a Gaussian."""

    size: int

    @nn.compact
    def __call__(self, x, *context):
        mean = self.param("mean", nn.initializers.zeros, (self.size,), x.dtype)
        factor = self.param("factor", lambda key, shape: jnp.eye(self.size, dtype=x.dtype), (self.size, self.size))
        shift = sum(context, start=mean)
        return 0.5 * jnp.sum((factor.T @ (x - shift)) ** 2)


def log_normalizer(model, params):
    """By quadrature on the line."""
    return jax.nn.logsumexp(model.log_prob(params, GRID.astype(np.float32))) + math.log(GRID[1, 0] - GRID[0, 0])


# --- the law -------------------------------------------------------------------------------------------------------------------

MEAN, FACTOR = np.array([1.0, -2.0]), np.array([[1.2, 0.0], [-0.8, 0.7]])
COVARIANCE = np.linalg.inv(FACTOR @ FACTOR.T)


def gaussian(context_shape=None, **options):
    """(An energy model, parameters of the Gaussian above, whose chains move in units 1 and 2)."""
    model = EnergyModel((2,), Bell(2), context_shape=context_shape, num_sweeps=300, step_size=0.15, **options)
    units = gm.Fixed({"mean": jnp.array([3.0, 3.0]), "scale": jnp.array([1.0, 2.0])})
    network = {"mean": jnp.asarray(MEAN, jnp.float32), "factor": jnp.asarray(FACTOR, jnp.float32)}
    return model, {"network": network, "units": units, "beta": gm.Fixed(jnp.ones(()))}


def check_moments(x, mean, covariance):
    """Within 4.5 standard errors of a Gaussian's."""
    n, variance = len(x), np.diag(covariance)
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)
    assert (np.abs(x.mean(0) - mean) < 4.5 * np.sqrt(variance / n)).all()
    assert (np.abs(np.cov(x.T) - covariance) < 4.5 * error).all()


def test_draws_are_of_the_law(key):
    model, params = gaussian((2,))
    context = np.array([2.0, 5.0], np.float32)
    check_moments(np.asarray(model.sample(params, key, (4_000,), context)), MEAN + context, COVARIANCE)


def test_imputed_entries_are_of_the_law_given_the_others(key):
    model, params = gaussian()
    x = np.tile(np.array([2.5, 0.0], np.float32), (4_000, 1))
    filled = np.asarray(model.impute(params, key, x, np.tile([False, True], (4_000, 1))))
    np.testing.assert_array_equal(filled[:, 0], 2.5)
    slope = COVARIANCE[1, 0] / COVARIANCE[0, 0]
    mean, variance = MEAN[1] + slope * (2.5 - MEAN[0]), COVARIANCE[1, 1] - slope * COVARIANCE[0, 1]
    assert abs(filled[:, 1].mean() - mean) < 4.5 * math.sqrt(variance / 4_000)
    assert abs(filled[:, 1].var() - variance) < 4.5 * variance * math.sqrt(2 / 4_000)


def test_score_is_the_gradient_and_steps_are_in_units_of_the_data(x64, key):
    model, params = gaussian(kernel_fn=langevin)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    x = np.random.default_rng(0).standard_normal((5, 2))
    score = model.score(params, x)
    np.testing.assert_allclose(score, -(x - MEAN) @ np.linalg.inv(COVARIANCE), rtol=1e-6)
    kernel, scale = model.kernel(params), np.array([1.0, 2.0])
    moves = []
    for shift in (0.0, 1.0):  # the same noise twice: what remains is the drift
        state, _ = kernel.step(key, kernel.init(Configuration(x[0] + shift)))
        moves.append(np.asarray(state.position.x) - x[0] - shift)
    drift = model.step_size * scale**2 * (model.score(params, x[0] + 1.0) - score[0])
    np.testing.assert_allclose(moves[1] - moves[0], drift, rtol=1e-10)


def test_without_a_base_chains_start_with_the_moments_of_the_data(key):
    x = np.random.default_rng(0).normal([5.0, -3.0], [0.1, 10.0], (200, 2)).astype(np.float32)
    model = EnergyModel((2,), SMALL)
    params = model.init(key, x)
    starts = jax.vmap(lambda key: model.start_one(params, key).x)(jax.random.split(key, 5_000))
    error = x.std(0) / math.sqrt(5_000)
    assert (np.abs(starts.mean(0) - x.mean(0)) < 4.5 * error).all()
    assert (np.abs(starts.std(0) - x.std(0)) < 4.5 * error / math.sqrt(2)).all()


# --- contrast ------------------------------------------------------------------------------------------------------------------


def test_contrast_with_exact_samples_has_the_gradient_of_the_likelihood(x64, key):
    data = np.random.default_rng(0).normal(1.0, 2.0, (50, 1))
    params = TILTED.init(key, data)
    log_f = jax.vmap(TILTED.log_prob_one, (None, 0))

    def nll(network):
        own = params | {"network": network}
        return jax.nn.logsumexp(log_f(own, GRID)) - log_f(own, data).mean()

    def loss(network):
        log_prob_fn = functools.partial(TILTED.log_prob_one, params | {"network": network})
        return contrast(log_prob_fn, data, jnp.asarray(GRID), sample_weight=jax.nn.softmax(log_f(params, GRID)))[0]

    wanted, found = jax.grad(nll)(params["network"]), jax.grad(loss)(params["network"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, wanted)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 0.01


def _shift(model, params):
    """A kernel that adds 1."""
    return Kernel(lambda position: gm.models.energy.EnergyState(position, None), _add_one)


def _add_one(key, state):
    return state._replace(position=state.position._replace(x=state.position.x + 1.0)), ()


def test_a_replay_buffer_moves_some_of_its_chains(key):
    data = jax.random.normal(key, (4, 1))
    params = TILTED.init(key, data)
    chains = ReplayChains(50, 20, 0.0, num_steps=3, kernel_fn=_shift)
    buffer = chains.init(TILTED, params, key, Configuration(data))
    after, samples, _ = chains.draw(TILTED, params, key, buffer, Configuration(data))
    moved = np.flatnonzero(np.asarray(after.x != buffer.x)[:, 0])
    assert len(moved) == 20
    np.testing.assert_allclose(after.x[moved], buffer.x[moved] + 3.0, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(samples.x, 0), np.sort(after.x[moved], 0))
    # Of chains that begin anew a share of `restart_rate` is far from any in the buffer, which holds a value that none starts at.
    chains = dataclasses.replace(chains, num_chains=5_000, num_draws=5_000, restart_rate=0.05)
    samples = chains.draw(TILTED, params, key, Configuration(jnp.full((5_000, 1), 100.0)), Configuration(data))[1]
    assert abs((samples.x < 90.0).mean() - 0.05) < 4.5 * math.sqrt(0.05 * 0.95 / 5_000)


def test_a_replay_buffer_of_a_conditional_law_has_contexts_of_the_data(key):
    model, params = gaussian((2,))
    data = Configuration(jnp.zeros((3, 2)), jnp.array([[5.0, 0.0], [0.0, 5.0], [9.0, 9.0]]))
    chains = ReplayChains(4_000, 4_000, 1.0, num_steps=300)
    buffer = chains.init(model, params, key, data)
    weight = jnp.array([2.0, 1.0, 1.0])  # contexts come as often as in the term of the data
    samples = jax.jit(lambda: chains.draw(model, params, key, buffer, data, weight)[1])()
    for context, share in zip(np.asarray(data.context), (0.5, 0.25, 0.25), strict=True):
        own = (np.asarray(samples.context) == context).all(1)
        assert abs(own.mean() - share) < 4.5 * math.sqrt(share * (1 - share) / 4_000)
        check_moments(np.asarray(samples.x)[own], MEAN + context, COVARIANCE)


# --- noise-contrastive estimation ----------------------------------------------------------------------------------------------


def _log_bell(theta, x):
    return -0.5 * jnp.exp(theta[1]) * (x - theta[0]) ** 2 - theta[2]


def _log_noise(x):
    return jax.scipy.stats.norm.logpdf(x, 0.0, 2.0)


def test_noise_contrastive_estimates_and_their_normalizer(x64):
    """A Gaussian's mean, log-precision and log Z = log(2 pi / precision) / 2, all within 4 standard errors of the truth."""
    rng, n, nu, precision = np.random.default_rng(0), 4_000, 3, 1.7
    truth = np.array([1.5, math.log(precision), 0.5 * math.log(2 * math.pi / precision)])
    x, noise = rng.normal(1.5, precision**-0.5, n), rng.normal(0.0, 2.0, nu * n)

    def loss(theta):
        return noise_contrastive(functools.partial(_log_bell, theta), _log_noise, x, noise)[0]

    derivatives = jax.jit(lambda theta: (jax.grad(loss)(theta), jax.hessian(loss)(theta)))
    theta = truth
    for _ in range(10):  # Newton's steps
        gradient, hessian = derivatives(theta)
        theta = theta - np.linalg.solve(hessian, gradient)
    gradient, hessian = map(np.asarray, derivatives(theta))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)

    def ratio(theta, x):
        return _log_bell(theta, x) - _log_noise(x) - math.log(nu)

    def spread(sign, rows):
        gradient = jax.grad(lambda theta, x: jax.nn.softplus(sign * ratio(theta, x)))
        return np.cov(jax.jit(jax.vmap(gradient, (None, 0)))(theta, rows).T)

    inverse = np.linalg.inv(hessian)
    covariance = inverse @ (spread(-1, x) / n + nu * spread(1, noise) / n) @ inverse
    error = np.sqrt(np.diag(covariance))
    assert (np.abs(theta - truth) < 4 * error).all() and (error < 0.1).all()


def test_noise_contrastive_loss_is_least_at_the_truth(x64):
    """By quadrature, at three draws of noise for each datum; the ratio of row numbers is that of the law."""
    x, precision = GRID[:, 0], 1.7
    truth = jnp.array([1.5, math.log(precision), 0.5 * math.log(2 * math.pi / precision)])
    noise = np.repeat(x, 3)
    options = {"weight": jnp.exp(_log_bell(truth, x)), "noise_weight": jnp.exp(_log_noise(noise))}

    def loss(theta):
        return noise_contrastive(functools.partial(_log_bell, theta), _log_noise, x, noise, **options)[0]

    gradient, hessian = jax.jit(lambda theta: (jax.grad(loss)(theta), jax.hessian(loss)(theta)))(truth)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    assert (np.linalg.eigvalsh(np.asarray(hessian)) > 0.01).all()


def test_a_model_that_is_the_noise(key):
    """log Z = 0, and the loss is that of a classifier that cannot tell."""
    data = np.random.default_rng(0).standard_normal((64, 1)).astype(np.float32)
    for nu in (1, 3):
        model = NoiseContrastive(
            EnergyModel((1,), nn.Dense(1, kernel_init=nn.initializers.zeros), Normal((1,))), Normal((1,)), nu
        )
        params = model.init(key, data)
        loss, metrics = model.loss(params, key, data)
        np.testing.assert_allclose(loss, math.log(1 + nu) + nu * math.log(1 + 1 / nu), rtol=1e-6)
        assert params["log_normalizer"] == 0 and metrics["on_data"] == metrics["on_noise"] == 0


# --- score matching ------------------------------------------------------------------------------------------------------------


def _match_scores(model, params, key, batch, *, step=None):
    x, _, weight = model.read(batch)
    return explicit_score_matching(functools.partial(model.score_one, params), x, weight=weight)


def test_score_matching_recovers_mean_and_precision(x64, key):
    """Of a Gaussian its minimum is at the moments of the data."""
    x = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 300)
    model = EnergyModel((2,), Bell(2))
    options = {"loss_fn": gm.call(_match_scores, model), "optimizer": gm.call(optax.lbfgs), "batch_size": 300}
    fit = gm.fit(model, x, key=key, num_steps=60, progress=False, **options)
    mean, factor = fit.params["network"]["mean"], fit.params["network"]["factor"]
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(factor @ factor.T, np.linalg.inv(np.cov(x.T, bias=True)), rtol=1e-5, atol=1e-5)


# --- training ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["replay", "noise", "score"])
def test_learns_a_mixture(method, key):
    """.4 N(-2, 1) + .6 N(3, .7^2): the KL from it, by quadrature."""
    rng = np.random.default_rng(0)
    left = rng.random(10_000) < 0.4
    x = np.where(left, rng.normal(-2.0, 1.0, 10_000), rng.normal(3.0, 0.7, 10_000))[:, None].astype(np.float32)
    model = EnergyModel((1,), FlatNet(MLP((32, 32), nn.silu), 1), Normal((1,), 4.0), step_size=0.15)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 2_000))
    options = {"num_steps": 2_000, "batch_size": 256, "key": key, "progress": False}
    if method == "replay":
        # Long lives and long steps: chains that begin anew do so with other weights of the modes, and must have time to cross.
        chains = ReplayChains(2_000, 256, 0.01, num_steps=10)
        params = gm.fit(model, x, step=ContrastiveStep(model, optimizer, chains, ema_decay=0.99), **options).params
    elif method == "noise":
        learner = NoiseContrastive(model, Normal((1,), 4.0), 4)
        fit = gm.fit(learner, x, optimizer=optimizer, ema_decay=0.99, **options)
        params = fit.params["model"]
        assert abs(fit.params["log_normalizer"] - log_normalizer(model, params)) < 0.03
    else:
        loss_fn = gm.call(_match_scores, model)
        params = gm.fit(model, x, optimizer=optimizer, ema_decay=0.99, loss_fn=loss_fn, **options).params
    grid, width = GRID[:, 0], GRID[1, 0] - GRID[0, 0]
    bells = [math.log(w) + jax.scipy.stats.norm.logpdf(grid, m, s) for w, m, s in ((0.4, -2.0, 1.0), (0.6, 3.0, 0.7))]
    log_p = np.logaddexp(*map(np.asarray, bells))
    log_q = np.asarray(model.log_prob(params, GRID.astype(np.float32)) - log_normalizer(model, params))
    kl = float(np.sum(np.exp(log_p) * (log_p - log_q)) * width)
    assert 0 <= kl < 0.01


# --- bad input -----------------------------------------------------------------------------------------------------------------

SGD = gm.call(optax.sgd, 0.05)
BITS = RestrictedBoltzmannMachine(BernoulliUnits((1,)), BernoulliUnits((2,)))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: EnergyModel((1,), SMALL, Normal((2,))), ValueError, r"^base must be a law of Real\(shape=\(1,\)\), got one of"),
        (lambda: EnergyModel((1,), SMALL, TILTED), ValueError, "^base must have an EXACT log_prob.*EnergyModel is UNNORMALIZED"),
        (lambda: EnergyModel((1,), SMALL, step_size=0.0), ValueError, "^step_size must be > 0 and finite, got 0.0"),
        (lambda: EnergyModel((1,), SMALL, kernel_fn="mala"), TypeError, "^kernel_fn must be a function, got 'mala'"),
        (lambda: NoiseContrastive(TILTED, TILTED), ValueError, "^noise must have an EXACT log_prob"),
        (lambda: NoiseContrastive(BITS, Normal((1,))), ValueError, r"^noise must be a law of Levels\(.*got one of Real"),
        (
            lambda: NoiseContrastive(gaussian((2,))[0], Normal((2,))),
            ValueError,
            r"^model must have no context, got one of.*\(2,\)",
        ),
        (
            lambda: ReplayChains(100, 128),
            ValueError,
            "^num_chains, the size of the buffer, must be at least num_draws=128, got 100",
        ),
        (lambda: ReplayChains(10, 10, 1.5), ValueError, r"^restart_rate must be in \[0, 1\], got 1.5"),
    ],
)
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_refused_with_the_data(key):
    x = np.zeros((8, 2), np.float32)
    with pytest.raises(ValueError, match=r"^network must give one number for ONE event, got \(2,\)"):
        EnergyModel((2,), nn.Dense(2)).init(key, x)
    step = ContrastiveStep(EnergyModel((2,), Bell(2), context_shape=(2,)), SGD, FreshChains(8))
    with pytest.raises(
        ValueError, match=r"^a chain of p\(x \| context\) wants a context of shape \(2,\): pass it, or train with"
    ):
        gm.fit(step.model, (x, x), key=key, step=step, num_steps=1, progress=False)
