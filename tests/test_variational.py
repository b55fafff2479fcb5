"""Objectives of latent-variable models, held against a model whose evidence is known: probabilistic PCA."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.densities import Amortized, Factorized, FullNormal, Normal, NormalHead, kl_one
from genmod.losses import ELBO, IWAE, Latent, Renyi, importance_bound, renyi_bound

# x = W z + sigma eps, z ~ N(0, I).
W = np.array([[1, 0.5], [-0.3, 0.8], [0.6, -0.2], [0.1, 1.1]])
SIGMA, X = 0.5, np.array([1, -0.5, 0.25, 2])
LOG_P = -7.474640
PRECISION = np.eye(2) + W.T @ W / SIGMA**2
COVARIANCE = np.linalg.inv(PRECISION)
POSTERIOR_MEAN = COVARIANCE @ W.T @ X / SIGMA**2
NUM_SEM = 4.5


def problem(q, params):
    """The latent of X, with the posterior q, any distribution without a context."""
    w, x, params = jnp.asarray(W), jnp.asarray(X), jax.tree.map(jnp.asarray, params)
    prior = Normal((2,))

    def log_likelihood(z):
        return jax.scipy.stats.norm.logpdf(x, jnp.matmul(w, z), SIGMA).sum()

    held = jax.lax.stop_gradient(params)
    return Latent(
        lambda key: q.sample_and_log_prob_one(params, key),
        log_likelihood,
        functools.partial(prior.log_prob_one, {}),
        functools.partial(q.log_prob_one, held),
        kl_one(q, params, None, prior, {}),
    )


def full(mean, covariance):
    factor = np.linalg.cholesky(covariance)
    return {"mean": np.asarray(mean), "lower": np.tril(factor, -1), "log_scale": np.log(np.diagonal(factor))}


def diagonal(mean, scale, bound=5.0):
    return {"raw": np.stack([mean, bound * np.arctanh(np.log(scale) / bound)], -1)}


POSTERIORS = {
    "exact": (FullNormal((2,)), full(POSTERIOR_MEAN, COVARIANCE), LOG_P),
    "mean field": (Factorized(NormalHead(), (2,)), diagonal(POSTERIOR_MEAN, 1 / np.sqrt(np.diag(PRECISION))), -7.482345),
    "prior": (FullNormal((2,)), full(np.zeros(2), np.eye(2)), -18.728165),
}


def bounds(objective, latent, key, num):
    return np.asarray(jax.jit(jax.vmap(functools.partial(objective.bound_one, latent)))(jax.random.split(key, num)))


@pytest.mark.parametrize("name", POSTERIORS)
def test_elbo_of_probabilistic_pca(name, key, x64):
    """Sampled and with the rate in closed form; at the exact posterior every draw is log p(x)."""
    q, params, wanted = POSTERIORS[name]
    for objective in (ELBO(analytic_kl=False), ELBO(4)):
        found = bounds(objective, problem(q, params), key, 20_000)
        assert abs(found.mean() - wanted) < NUM_SEM * found.std() / np.sqrt(20_000) + 1e-6
        if name == "exact" and not objective.analytic_kl:
            np.testing.assert_allclose(found, LOG_P, atol=1e-6)


def test_iwae_rises_to_the_evidence_and_renyi_lies_between(key, x64):
    latent = problem(*POSTERIORS["prior"][:2])
    means = {}
    for k in (1, 10, 100):
        found = bounds(IWAE(k), latent, key, 4_000)
        means[k] = found.mean(), found.std() / np.sqrt(4_000)
    assert means[1][0] < means[10][0] < means[100][0] < LOG_P + NUM_SEM * means[100][1]
    assert LOG_P - means[100][0] < 0.2
    log_w = jax.random.normal(key, (7, 3)) * 2
    np.testing.assert_allclose(renyi_bound(log_w, 0.0), importance_bound(log_w), rtol=1e-6)
    np.testing.assert_allclose(renyi_bound(log_w, 1.0), log_w.mean(0), rtol=1e-6)
    np.testing.assert_allclose(renyi_bound(log_w, 1 - 1e-7), log_w.mean(0), rtol=1e-5)
    values = np.stack([renyi_bound(log_w, alpha) for alpha in (0.0, 0.3, 0.7, 1.0, 2.0)])
    assert (np.diff(values, axis=0) < 0).all()
    half = bounds(Renyi(0.5, 10), latent, key, 4_000).mean()
    assert means[1][0] < half < means[10][0]


def test_gradients_of_one_mean(key, x64):
    """What stick-the-landing drops has mean zero, and the doubly reparameterised gradient has the mean of the plain one."""
    q, params, _ = POSTERIORS["mean field"]
    params = jax.tree.map(lambda p: jnp.asarray(p) + 0.1, params)

    def gradients(objective, num):
        def loss(params, key):
            terms = jax.tree.map(lambda a: a[None], objective.terms_one(problem(q, params), key))
            return objective.loss(terms, None, None)[0]

        rows = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, jax.random.split(key, num))
        rows = np.asarray(rows["raw"]).reshape(num, -1)
        return rows.mean(0), rows.std(0) / np.sqrt(num)

    for plain, other, least in (
        (ELBO(analytic_kl=False), ELBO(stick_the_landing=True), 1.0),
        (ELBO(analytic_kl=False), ELBO(), 0.0),
        (IWAE(20), IWAE(20, doubly_reparameterized=True), 1.5),
    ):
        (mean, sem), (other_mean, other_sem) = gradients(plain, 20_000), gradients(other, 20_000)
        assert (np.abs(mean - other_mean) < NUM_SEM * np.hypot(sem, other_sem)).all(), other
        assert (sem / other_sem > least).all(), (other, sem / other_sem)
    # At the exact posterior stick-the-landing has no noise at all.
    q, params, _ = POSTERIORS["exact"]
    grad = jax.grad(lambda p: -ELBO(stick_the_landing=True).terms_one(problem(q, p), key)["rate"])
    joint = jax.grad(lambda p: sum(ELBO(stick_the_landing=True).terms_one(problem(q, p), key).values()))
    params = jax.tree.map(jnp.asarray, params)
    assert (
        max(float(jnp.abs(g).max()) for g in jax.tree.leaves(joint(params))) < 1e-9 < float(jnp.abs(grad(params)["mean"]).max())
    )


def test_free_bits_and_annealing():
    """Free bits count in the mean over the batch, dimension by dimension; beta follows its schedule and ends where that ends."""
    terms = {"distortion": jnp.array([1.0, 3.0]), "rate": jnp.array([[0.0, 1.0], [0.4, 3.0]])}
    loss, metrics = ELBO(free_bits=0.5).loss(terms, None, None)
    np.testing.assert_allclose([loss, metrics["rate_nats"]], [2.0 + 0.5 + 2.0, 2.2], rtol=1e-6)
    weighted, _ = ELBO(free_bits=0.5).loss(terms, jnp.array([1.0, 3.0]), None)
    np.testing.assert_allclose(weighted, 2.5 + 0.5 + 2.5, rtol=1e-6)
    annealed = ELBO(beta=gm.call(optax.linear_schedule, 0.0, 2.0, 10))
    losses = [float(annealed.loss(terms, None, step)[0]) for step in (0, 5, 10, None)]
    np.testing.assert_allclose(losses, [2.0, 4.2, 6.4, 6.4], rtol=1e-6)
    assert float(annealed.loss(terms, None, jnp.asarray(5))[1]["nll_upper_bound_nats"]) == pytest.approx(4.2)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ELBO(0), "num_samples must be an integer >= 1, got 0"),
        (lambda: ELBO(beta=-1.0), "beta must be >= 0 or a schedule"),
        (lambda: ELBO(free_bits=-0.1), "free_bits must be >= 0"),
        (lambda: ELBO(free_bits=0.1, analytic_kl=False), "free_bits wants the rate of each dimension in closed form"),
        (lambda: IWAE(0), "num_samples"),
        (lambda: Renyi(-0.5), "alpha must be >= 0"),
        (
            lambda: ELBO(free_bits=0.1).terms_one(
                Latent(lambda key: (jnp.zeros(2), jnp.zeros(())), jnp.sum, jnp.sum, jnp.sum), jax.random.key(0)
            ),
            "free_bits=0.1 wants the KL of each latent dimension",
        ),
    ],
)
def test_bad_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_amortized_posteriors_move_with_the_context(key):
    """p(x | c) is the law at the moved parameters, and starts as that law whatever the context."""
    law = Amortized(Factorized(NormalHead(), (2,)), (3,))
    context = jnp.array([0.5, -1.0, 2.0])
    params = law.init(key, jnp.zeros((4, 2)), jnp.zeros((4, 3)))
    np.testing.assert_allclose(
        law.log_prob(params, X[:2].astype(np.float32), context), Normal((2,)).log_prob({}, X[:2].astype(np.float32)), rtol=1e-6
    )
    params = params | {"kernel": jax.random.normal(key, (4, 3))}
    raw = (params["kernel"] @ context).reshape(2, 2)
    x, log_prob = law.sample_and_log_prob(params, key, (5,), context)
    np.testing.assert_allclose(log_prob, NormalHead().log_prob(jnp.broadcast_to(raw, (5, 2, 2)), x).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(
        kl_one(law, params, context, Normal((2,)), {}), NormalHead().kl(raw, NormalHead(1.0), jnp.zeros((2, 1))), rtol=1e-6
    )
    with pytest.raises(ValueError, match="must have no context of its own"):
        Amortized(law, (3,))
    with pytest.raises(ValueError, match="parameters that a context can move"):
        Amortized(Normal((2,)), (3,)).init(key, jnp.zeros((4, 2)), jnp.zeros((4, 3)))
    assert dataclasses.replace(law) == law
