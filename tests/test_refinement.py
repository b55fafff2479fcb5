"""Refined features: the exact posterior of a linear-Gaussian model, gradients through the steps and past them, training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats

import genmod as gm
from genmod.densities import Normal, NormalHead
from genmod.inference import MeanBound, Observed, evidence, refine
from genmod.losses import ELBO, IWAE, GradientSteps, HeldMoves, Latent, SemiAmortized

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
# x = W z + sigma eps with orthogonal columns: the posterior has independent entries, so that the family holds it.
W, SIGMA = np.array([[1.0, 0.9], [-1.0, 0.9], [0.3, 0.0]]), 0.4
PRECISION = np.eye(2) + W.T @ W / SIGMA**2
assert abs(PRECISION[0, 1]) < 1e-12


def identity(x):
    return x


PLAIN = gm.models.VAE(
    (3,), gm.nets.MLP((4,), identity), gm.flows.amortized_posterior((2,), (4,)), gm.nets.MLP((3,), identity), NormalHead(SIGMA)
)
SGD = gm.call(optax.sgd, 0.05)
_ELBO = ELBO()
LANDING = ELBO(2, stick_the_landing=True)


def semi(steps, objective=_ELBO):
    return dataclasses.replace(PLAIN, objective=SemiAmortized(objective, steps))


@functools.cache
def poor(dtype=np.float32):
    """Parameters of the model above, with an encoder that says N(0.3, 1) whatever it sees, and three data."""
    with jax.enable_x64(dtype == np.float64):
        params = jax.tree.map(jnp.zeros_like, PLAIN.init(jax.random.key(0), jnp.zeros((2, 3), dtype)))
        decoder = jax.tree.map(lambda p: jnp.asarray(W.T, dtype) if p.ndim == 2 else p, params["decoder"])
        posterior = params["posterior"] | {"kernel": jnp.eye(4, dtype=dtype)}  # mean and log-scale of each entry in turn
        encoder = jax.tree.map(lambda p: p if p.ndim == 2 else p.at[jnp.array([0, 2])].set(0.3), params["encoder"])
        x = np.random.default_rng(0).multivariate_normal(np.zeros(3), W @ W.T + SIGMA**2 * np.eye(3), 3).astype(dtype)
        return {**params, "decoder": decoder, "posterior": posterior, "encoder": encoder}, x


def log_evidence(x):
    return stats.multivariate_normal(np.zeros(3), W @ W.T + SIGMA**2 * np.eye(3)).logpdf(np.asarray(x, np.float64))


def kl_of_features(features, x):
    """KL(q || posterior) of each row, in closed form."""
    features = np.asarray(features, np.float64)
    mean, log_scale = features[:, ::2], 5 * np.tanh(features[:, 1::2] / 5)
    exact = np.linalg.solve(PRECISION, W.T @ np.asarray(x, np.float64).T / SIGMA**2).T
    precision = np.diag(PRECISION)
    return (0.5 * (precision * (np.exp(2 * log_scale) + (mean - exact) ** 2) - 1 - np.log(precision)) - log_scale).sum(1)


def mean_bound(model, params, x, key, num=2_000):
    return evidence(Observed(model, params, x), MeanBound(model.objective, num), key=key)


def test_steps_converge_to_the_exact_posterior(key):
    params, x = poor()
    exact = log_evidence(x)
    begin = mean_bound(PLAIN, params, x, key)
    lost = kl_of_features(jax.vmap(lambda x: PLAIN.features_one(params, x))(x), x)
    assert (np.abs(begin.value - (exact - lost)) < NUM_SEM * begin.sem).all()
    bounds = [begin.value]
    for num in (2, 8, 100):
        found = mean_bound(semi(GradientSteps(num), ELBO(16)), params, x, key, 400)
        assert (found.value < exact + NUM_SEM * found.sem).all()
        bounds.append(np.asarray(found.value))
    assert (np.diff(bounds, axis=0) > 0).all(), bounds
    # What 100 steps leave is the noise of their draws, as `refine` takes the same steps: 1 % of what there was.
    refined = refine(PLAIN, params, x, key=key, num_steps=100, num_samples=16)
    assert (kl_of_features(refined, x) < 0.01 * lost).all(), kl_of_features(refined, x) / lost
    assert (exact - bounds[-1] < 0.01 * lost + NUM_SEM * found.sem).all(), (exact - bounds[-1]) / lost
    # Held moves are the same moves.
    held = mean_bound(semi(HeldMoves(GradientSteps(8)), ELBO(16)), params, x, key, 400)
    np.testing.assert_allclose(held.value, bounds[2], rtol=1e-5)


@pytest.mark.parametrize(
    "objective",
    [pytest.param(ELBO(), marks=pytest.mark.slow), LANDING, pytest.param(IWAE(3), marks=pytest.mark.slow)],
    ids=["elbo", "landing", "iwae"],
)
def test_gradients_pass_through_the_steps(objective, key, x64):
    """Against central differences; past held moves, against those of a loss in which the moves are numbers."""
    params, x = poor(np.float64)
    flat, unravel = ravel_pytree(params)
    flat = flat + 0.1 * np.random.default_rng(1).standard_normal(flat.size)
    direction = np.random.default_rng(2).standard_normal(flat.size)
    steps = GradientSteps(3, SGD)
    through, past = semi(steps, objective), semi(HeldMoves(steps), objective)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_slope(model, flat):
        return jax.jvp(lambda flat: model.loss(unravel(flat), key, x)[0], (flat,), (direction,))

    def difference(eps):
        ends = [value_and_slope(through, flat + step * direction)[0] for step in (eps, -eps)]
        return (ends[0] - ends[1]) / (2 * eps)

    value, slope = value_and_slope(through, flat)
    if objective != LANDING:  # whose gradient leaves a term of mean zero out
        # Richardson's extrapolation, off by the fourth power of the step.
        np.testing.assert_allclose(slope, (4 * difference(5e-5) - difference(1e-4)) / 3, rtol=1e-7)
    held_value, held_slope = value_and_slope(past, flat)
    np.testing.assert_allclose(held_value, value, rtol=1e-12)
    assert abs(held_slope - slope) > 1e-3 * abs(slope)
    # The moves as numbers, at these parameters.
    own = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))

    def moves(params, x, key):
        latent = PLAIN.latent_one(params, x)
        return steps.refine(lambda f, k: objective.bound_one(latent.with_features(f), k), latent.features, key) - latent.features

    keys = jax.vmap(jax.random.split)(own)
    numbers = jax.vmap(moves, (None, 0, 0))(unravel(flat), x, keys[:, 0])

    def loss(flat):
        def terms(x, key, move):
            latent = PLAIN.latent_one(unravel(flat), x)
            return objective.terms_one(latent.with_features(latent.features + move), key)

        return objective.loss(jax.vmap(terms)(x, keys[:, 1], numbers), None, None)[0]

    np.testing.assert_allclose(held_slope, jax.jvp(loss, (flat,), (direction,))[1], rtol=1e-9)


def test_the_default_optimizer_has_a_derivative_at_a_dead_feature(key):
    """A feature that moves nothing has a gradient of exactly zero, where Adam's own update has none."""
    params, x = poor()
    kernel = params["posterior"]["kernel"].at[:, 3].set(0.0)
    params = params | {"posterior": params["posterior"] | {"kernel": kernel}}
    slopes = jax.grad(lambda p: semi(GradientSteps(2)).loss(p, key, x)[0])(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    adam = gm.call(optax.adam, 0.1)
    slopes = jax.grad(lambda p: semi(GradientSteps(2, adam)).loss(p, key, x)[0])(params)
    assert any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_training_lowers_the_bound(key):
    """An encoder with a neck of one number cannot tell two latents: the same steps of training, on data that were not seen."""
    weak = dataclasses.replace(PLAIN, encoder=gm.nets.MLP((1, 4), identity))
    data = np.random.default_rng(3).multivariate_normal(np.zeros(3), W @ W.T + SIGMA**2 * np.eye(3), 500).astype("f4")
    rows, found = np.repeat(data[400:], 20, 0), {}
    for model in (weak, dataclasses.replace(weak, objective=SemiAmortized(ELBO(), GradientSteps(8)))):
        fit = gm.fit(model, data[:400], key=key, num_steps=200, batch_size=50, optimizer=optax.adam(1e-2), progress=False)
        found[model] = model.log_prob(fit.params, rows, key=key).reshape(100, 20).mean(1)
    gains = np.asarray(found[model] - found[weak])
    assert gains.mean() > 1.0
    assert gains.mean() > NUM_SEM * gains.std() / np.sqrt(100)
    below = log_evidence(data[400:]) - np.asarray(found[model])
    assert below.mean() > -NUM_SEM * below.std() / np.sqrt(100)


def test_bad_arguments(key):
    with pytest.raises(TypeError, match="refinement must be a Refinement"):
        SemiAmortized(ELBO(), 8)
    with pytest.raises(TypeError, match="optimizer must be an Optax optimizer"):
        GradientSteps(8, 0.1)
    with pytest.raises(ValueError, match="num_steps must be an integer >= 1"):
        GradientSteps(0)
    latent = Latent(lambda key: (jnp.zeros(2), jnp.zeros(())), jnp.sum, jnp.sum, jnp.sum)
    with pytest.raises(ValueError, match="wants a Latent with `features` and `with_features`"):
        SemiAmortized().terms_one(latent, key)
    with pytest.raises(ValueError, match="wants a reparameterised posterior"):
        mixture = gm.densities.Amortized(gm.densities.GaussianMixture((2,), 2), (4,))
        dataclasses.replace(semi(GradientSteps(2)), posterior=mixture, prior=Normal((2,)))
