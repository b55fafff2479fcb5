"""A random function in the mean of a posterior: against a dense Gaussian process, draws of functions, and gaps that it closes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import genmod as gm
from genmod.densities import Amortized, Factorized, FullNormal, Normal, NormalHead, RandomFunctionPosterior, kl_one
from genmod.densities.random_function import NUGGET
from genmod.inference import ImportanceSampling, gap_report, posterior_health
from genmod.models import VAE, FunctionKL, Penalized

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
BASE = Amortized(Factorized(NormalHead(), (2,)), (3,))
POSTERIOR = RandomFunctionPosterior(BASE, num_inducing=5)


def moved(law, scale=0.4):
    """Parameters away from the start, where the function is its prior."""
    rng = np.random.default_rng(0)
    context = rng.standard_normal((8, *law.context_shape))
    params = law.init(jax.random.key(0), np.zeros((8, *law.event_shape)), context)
    return jax.tree.map(lambda p: p + scale * rng.standard_normal(p.shape), params), context


def dense(params, context):
    """For each latent: the prior covariance of (f(h), u), and the mean and covariance of q(u)."""
    length, amplitude = np.exp(params["log_length"]), np.exp(params["log_amplitude"])
    points = np.concatenate([context[None], params["inputs"]])
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    for d in range(2):
        covariance = amplitude[d] ** 2 * np.exp(-0.5 * squares / length**2)
        covariance[1:, 1:] += amplitude[d] ** 2 * NUGGET * np.eye(len(points) - 1)
        root = np.linalg.cholesky(covariance[1:, 1:])
        r = np.tril(params["lower"][d], -1) + np.diag(np.exp(params["log_scale"][d]))
        yield covariance, root @ params["mean"][:, d], root @ r @ r.T @ root.T


def base_moments(params, context):
    raw = np.asarray(BASE.at(params["base"], jnp.asarray(context))["raw"])
    return raw[:, 0], 5 * np.tanh(raw[:, 1] / 5)


def test_the_marginal_is_that_of_a_dense_process(x64):
    params, contexts = moved(POSTERIOR)
    for context in contexts[:3] + 0.3:
        mean, log_scale = base_moments(params, context)
        found_mean, found_log_scale = POSTERIOR.moments(params, jnp.asarray(context))
        for d, (k, u_mean, u_covariance) in enumerate(dense(params, context)):
            gain = k[:1, 1:] @ np.linalg.inv(k[1:, 1:])
            variance = k[0, 0] - gain @ k[1:, :1] + gain @ u_covariance @ gain.T + np.exp(2 * log_scale[d])
            np.testing.assert_allclose(found_mean[d], mean[d] + (gain @ u_mean)[0], rtol=1e-9)
            np.testing.assert_allclose(np.exp(2 * found_log_scale[d]), variance[0, 0], rtol=1e-9)
        z = np.array([0.3, -1.2])
        wanted = stats.norm(found_mean, np.exp(found_log_scale)).logpdf(z).sum()
        np.testing.assert_allclose(POSTERIOR.log_prob(params, z, context), wanted, rtol=1e-10)


def test_draws_of_functions_have_the_marginal(x64):
    """u from q(u), f(h) given u from the prior, z given f(h): z has the mean and the variance of the law."""
    params, contexts = moved(POSTERIOR)
    context, rng, num = contexts[6], np.random.default_rng(1), 200_000
    mean, log_scale = base_moments(params, context)
    z = []
    for d, (k, u_mean, u_covariance) in enumerate(dense(params, context)):
        u = rng.multivariate_normal(u_mean, u_covariance, num)
        gain = np.linalg.solve(k[1:, 1:], k[1:, 0])
        f = mean[d] + u @ gain + np.sqrt(k[0, 0] - gain @ k[1:, 0]) * rng.standard_normal(num)
        z.append(f + np.exp(log_scale[d]) * rng.standard_normal(num))
    drawn = np.asarray(POSTERIOR.sample(params, jax.random.key(2), (num,), context))
    found_mean, found_log_scale = (np.asarray(a) for a in POSTERIOR.moments(params, jnp.asarray(context)))
    for sample in (np.stack(z, 1), drawn):
        assert (np.abs(sample.mean(0) - found_mean) < NUM_SEM * np.exp(found_log_scale) / np.sqrt(num)).all()
        # A sample variance of a Gaussian is off by sqrt(2 / n) times what it is.
        assert (np.abs(sample.var(0) / np.exp(2 * found_log_scale) - 1) < NUM_SEM * np.sqrt(2 / num)).all()


def test_divergences_in_closed_form(x64):
    params, contexts = moved(POSTERIOR)
    # Of the function: the KL of two Gaussians is the same of u as of v.
    wanted = 0.0
    for k, u_mean, u_covariance in dense(params, contexts[0]):
        prior = k[1:, 1:]
        logs = np.linalg.slogdet(prior)[1] - np.linalg.slogdet(u_covariance)[1]
        trace = np.trace(np.linalg.solve(prior, u_covariance))
        wanted += 0.5 * (trace + u_mean @ np.linalg.solve(prior, u_mean) - len(u_mean) + logs)
    np.testing.assert_allclose(POSTERIOR.function_kl(params), wanted, rtol=1e-9)
    assert FunctionKL(POSTERIOR)({"posterior": params}) == POSTERIOR.function_kl(params)
    # Of z, entry by entry, from a standard normal and from a full Gaussian.
    context = jnp.asarray(contexts[1])
    mean, log_scale = POSTERIOR.moments(params, context)
    found = kl_one(POSTERIOR, params, context, Normal((2,)), {})
    np.testing.assert_allclose(found, 0.5 * (jnp.exp(2 * log_scale) + mean**2 - 1) - log_scale, rtol=1e-10)
    standard = {"mean": jnp.zeros(2), "lower": jnp.zeros((2, 2)), "log_scale": jnp.zeros(2)}
    np.testing.assert_allclose(kl_one(POSTERIOR, params, context, FullNormal((2,)), standard), found.sum(), rtol=1e-10)


class Curve(nn.Module):
    """A decoder with nothing to learn: all that training moves is the posterior."""

    def __call__(self, z):
        return jnp.stack([z[0] + 2.0 * jnp.tanh(1.5 * z[0]), 0.5 * jnp.cos(2.0 * z[0])])


def identity(x):
    return x


PLAIN = VAE((2,), gm.nets.MLP((2,), identity), gm.flows.amortized_posterior((1,), (2,)), Curve(), NormalHead(0.3))
CORRECTED = dataclasses.replace(PLAIN, posterior=RandomFunctionPosterior(PLAIN.posterior, 12))


def test_what_it_is_at_the_start(key):
    """The base whose variance is larger by amplitude^2, and no price: everything else is untouched."""
    x = PLAIN.sample(PLAIN.init(key, np.zeros((2, 2), "f4")), key, (20,))
    params, plain = CORRECTED.init(key, x), PLAIN.init(key, x)
    np.testing.assert_allclose(FunctionKL(CORRECTED.posterior)(params), 0.0, atol=1e-5)
    mean, log_scale = CORRECTED.posterior.moments(params["posterior"], jnp.array([0.4, -0.3]))
    base = PLAIN.posterior.at(params["posterior"]["base"], jnp.array([0.4, -0.3]))["raw"]
    np.testing.assert_array_equal(mean, base[:, 0])
    np.testing.assert_allclose(jnp.exp(2 * log_scale), jnp.exp(2 * base[:, 1]) + 0.1**2, rtol=1e-5)
    # So the bound is that of the base, but for the share of a variance: with a tiny amplitude the same, draw by draw.
    tiny = dataclasses.replace(CORRECTED, posterior=dataclasses.replace(CORRECTED.posterior, amplitude=1e-4))
    same = tiny.init(key, x)
    np.testing.assert_array_equal(same["encoder"]["Dense_0"]["kernel"], plain["encoder"]["Dense_0"]["kernel"])
    np.testing.assert_allclose(tiny.log_prob(same, x, key=key), PLAIN.log_prob(plain, x, key=key), rtol=1e-4)


@pytest.mark.slow
def test_the_price_of_a_level(key):
    """In a hierarchical VAE: the KL of that level's function, one level's or both."""
    model = gm.flows.hierarchical_autoencoder((2,), (1, 1), head=NormalHead(0.3), hidden_sizes=(2,))
    random = [RandomFunctionPosterior(level.posterior, 3 + i) for i, level in enumerate(model.levels)]
    levels = (dataclasses.replace(level, posterior=own) for level, own in zip(model.levels, random, strict=True))
    model = dataclasses.replace(model, levels=tuple(levels))
    x, rng = jax.random.normal(key, (8, 2)), np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + np.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), model.init(key, x))
    price = [law.function_kl(own["law"]) for law, own in zip(random, params["posterior"], strict=True)]
    assert min(price) > 0.01 and abs(price[0] - price[1]) > 0.01
    penalized = model
    for i, law in enumerate(random):
        np.testing.assert_array_equal(FunctionKL(law, i + 1)(params), price[i])
        penalized = Penalized(penalized, FunctionKL(law, level=i + 1), 8)
    loss, metrics = penalized.loss(params, key, x)
    np.testing.assert_allclose(metrics["penalty_nats"], sum(price) / 8, rtol=1e-5)
    np.testing.assert_allclose(loss, model.loss(params, key, x)[0] + sum(price) / 8, rtol=1e-5)
    for level in (None, 3):
        with pytest.raises(ValueError, match=rf"level must be in 1\.\.2, .* got {level}"):
            FunctionKL(random[0], level)(params)
    with pytest.raises(ValueError, match="level must be None for a model without levels"):
        FunctionKL(POSTERIOR, 1)({"posterior": {}})
    with pytest.raises(ValueError, match="level must be an integer >= 1, got 0"):
        FunctionKL(POSTERIOR, 0)


@pytest.mark.slow
def test_it_closes_the_gap_of_a_weak_encoder(key):
    """A linear encoder of a curve: the same number of steps, the same family of posteriors, so the difference is amortisation."""
    x = np.asarray(PLAIN.sample(PLAIN.init(key, np.zeros((2, 2), "f4")), key, (600,)))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 600))
    options = {"key": key, "num_steps": 600, "batch_size": 100, "optimizer": optimizer, "progress": False}
    penalized = Penalized(CORRECTED, FunctionKL(CORRECTED.posterior), len(x))
    fits = {PLAIN: gm.fit(PLAIN, x, **options), CORRECTED: gm.fit(penalized, x, **options)}
    fresh = PLAIN.sample(PLAIN.init(key, x), jax.random.key(5), (32,))
    exact = ImportanceSampling(1_000)
    search = {
        "num_steps": 100,
        "num_samples": 8,
        "num_draws": 300,
        "optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 100)),
    }
    reports = {
        model: gap_report(model, fit.params, fresh, key=key, estimate=exact, reference=exact, **search)
        for model, fit in fits.items()
    }
    gaps = {model: float(report.amortization.mean()) for model, report in reports.items()}
    error = max(float(np.sqrt((np.asarray(r.amortization_sem) ** 2).mean() / 32)) for r in reports.values())
    assert gaps[CORRECTED] + NUM_SEM * error < 0.6 * gaps[PLAIN], gaps
    health = posterior_health(CORRECTED, fits[CORRECTED].params, x[:100], key=key)
    assert health.kl.shape == (1,) and float(health.kl[0]) > 1.0


def test_bad_parts(key):
    with pytest.raises(TypeError, match=r"base must be Amortized\(Factorized"):
        RandomFunctionPosterior(Normal((2,)))
    with pytest.raises(TypeError, match=r"got Amortized\(distribution=FullNormal"):
        RandomFunctionPosterior(Amortized(FullNormal((2,)), (3,)))
    with pytest.raises(ValueError, match="num_inducing=5 inducing inputs want as many rows to start at, got 4"):
        POSTERIOR.init(key, np.zeros((4, 2), "f4"), np.zeros((4, 3), "f4"))
    with pytest.raises(ValueError, match="num_inducing must be an integer >= 1"):
        RandomFunctionPosterior(BASE, 0)
