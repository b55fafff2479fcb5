"""The Bayesian mixture of Gaussians: its bound against evidences that are known, its steps against each other."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln, logsumexp

import genmod as gm
from genmod.inference import (
    MixturePredictive,
    NaturalGradientStep,
    fit_mixture,
    fit_mixture_stochastic,
    mixture_prior,
    robbins_monro,
)
from genmod.inference.mean_field import log_responsibilities, mixture_update, spread_start

X = np.array([-1.2, 0.3, 0.8, 2.1, 1.4])[:, None]
PAIRS = np.array([[0.2, -1.0], [1.1, 0.4], [-0.3, 2.0], [3.0, 2.5], [2.0, 1.0], [2.7, 3.1]])
MEAN, SCATTER = np.array([0.5, -0.2]), np.array([[2.0, 0.6], [0.6, 1.5]])


def log_evidence(x, mean, scatter, strength, dof):
    """Of one normal-Wishart component, datum by datum: the product of its predictive Student laws."""
    mean, scatter, dim, total = np.array(mean, float), np.array(scatter, float), x.shape[1], 0.0
    for row in x:
        df = dof + 1 - dim
        total += stats.multivariate_t.logpdf(row, mean, scatter * (1 + strength) / (strength * df), df)
        offset = row - mean
        scatter = scatter + strength / (strength + 1) * np.outer(offset, offset)
        mean, strength, dof = (strength * mean + row) / (strength + 1), strength + 1, dof + 1
    return total


def clusters(num, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [6.0, 1.0], [-2.0, 7.0]])
    return centres[rng.integers(0, 3, num)] + rng.standard_normal((num, 2)) * np.array([1.0, 0.4])


def test_one_component_is_exact(key, x64):
    """The bound is the evidence: for a normal-inverse-gamma prior with k0 = a0 = b0 = 1, and in the plane."""
    fit = fit_mixture(X, mixture_prior(1, np.zeros(1), np.full((1, 1), 2.0), dof=2.0), key=key, num_restarts=1)
    assert fit.converged
    np.testing.assert_allclose(fit.bound, -9.400174, atol=5e-7)
    prior = mixture_prior(1, MEAN, SCATTER, strength=0.7, dof=4.5)
    fit = fit_mixture(PAIRS, prior, key=key, num_restarts=1)
    exact = log_evidence(PAIRS, MEAN, SCATTER, 0.7, 4.5)
    np.testing.assert_allclose(fit.bound, exact, rtol=1e-12)
    # And so is the predictive density.
    predictive, new = MixturePredictive((2,), 1), np.array([1.0, -3.0])
    assert predictive.misfit(fit.posterior) is None
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), predictive.init(key, PAIRS), fit.posterior)
    wanted = log_evidence(np.vstack([PAIRS, new]), MEAN, SCATTER, 0.7, 4.5) - exact
    np.testing.assert_allclose(predictive.log_prob(fit.posterior, new), wanted, rtol=1e-11)


def test_bound_lies_below_the_evidence_and_rises(key, x64):
    """All 2^6 assignments, summed."""
    alpha, strength, dof = 0.8, 0.5, 3.5
    terms = []
    for z in itertools.product(range(2), repeat=len(PAIRS)):
        counts = np.bincount(z, minlength=2)
        weights = gammaln(2 * alpha) - gammaln(2 * alpha + len(PAIRS)) + (gammaln(alpha + counts) - gammaln(alpha)).sum()
        parts = [PAIRS[np.array(z) == k] for k in range(2)]
        terms.append(weights + sum(log_evidence(part, MEAN, SCATTER, strength, dof) for part in parts))
    prior = mixture_prior(2, MEAN, SCATTER, concentration=alpha, strength=strength, dof=dof)
    fit = fit_mixture(PAIRS, prior, key=key, num_restarts=6, tolerance=1e-12)
    # Both orders of the components are equally likely, and q knows one of them at most: log 2 is a part of the gap.
    assert logsumexp(terms) - 2.5 < fit.bound < logsumexp(terms)
    assert fit.converged and fit.bound == np.nanmax(fit.bounds)
    rises = np.diff(fit.bounds, axis=1)
    assert np.isfinite(rises).sum() > 20 and (rises[np.isfinite(rises)] >= -1e-12).all()


def test_it_finds_the_clusters(key):
    x = clusters(600).astype(np.float32)
    fit = fit_mixture(x, mixture_prior(6, x.mean(0), np.cov(x.T), concentration=1e-2, dof=6.0), key=key)
    # Each sweep raises the bound, to the rounding of a sum of 600 terms.
    assert np.nanmin(np.diff(fit.bounds, axis=1)) > -1e-6 * abs(float(fit.bound))
    law = jax.tree.map(np.asarray, fit.posterior)
    held = np.sort(law.concentration)
    assert (held[:3] < 1).all() and (held[3:] > 150).all()  # three of the six components are empty
    predictive = MixturePredictive((2,), 6)
    # New data have the entropy log 3 + log 2 pi e + log 0.4, below which no other density's cross-entropy lies.
    nll = -np.asarray(predictive.log_prob(fit.posterior, clusters(20_000, 1).astype(np.float32)))
    gap = nll.mean() - np.log(3 * 2 * np.pi * np.e * 0.4)
    assert -4 * nll.std() / np.sqrt(20_000) < gap < 0.1
    sample = np.asarray(predictive.sample(fit.posterior, key, 20_000))
    weight = law.concentration / law.concentration.sum()
    mean = weight @ law.mean
    dof = law.dof - 1
    within = law.scatter * ((1 + law.strength) / law.strength / (dof - 2))[:, None, None]
    covariance = np.einsum("k,kij->ij", weight, within + np.einsum("ki,kj->kij", law.mean - mean, law.mean - mean))
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((sample.mean(0) - mean) / scale, 0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose((np.cov(sample.T) - covariance) / np.outer(scale, scale), 0, atol=8 / np.sqrt(20_000))


def natural(law):
    """The natural parameters, in which a step is a straight line."""
    law = jax.tree.map(np.asarray, law)
    outer = np.einsum("k,ki,kj->kij", law.strength, law.mean, law.mean)
    return [law.concentration, law.strength[:, None] * law.mean, law.strength, law.dof, law.scatter + outer]


@pytest.mark.slow
def test_a_stochastic_step(key, x64):
    """With all data and step size 1 it is a sweep; else a part of the way, and in the mean over minibatches unbiased."""
    x = clusters(40)
    prior = mixture_prior(3, MEAN, SCATTER)
    law = spread_start(key, x, prior)
    sweep = mixture_update(prior, x, jax.nn.softmax(log_responsibilities(law, x), axis=1))

    def step(rate, batch):
        natural_step = NaturalGradientStep(40, rate)
        state, metrics = natural_step(natural_step.init((prior, law), key, batch), key, batch)
        return state.law, metrics

    whole, metrics = step(1.0, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), whole, sweep)
    parts = [step(0.3, x[i : i + 8]) for i in range(0, 40, 8)]
    mean = [np.mean(values, axis=0) for values in zip(*(natural(law) for law, _ in parts), strict=True)]
    for found, old, new in zip(mean, natural(law), natural(sweep), strict=True):
        np.testing.assert_allclose(found, 0.7 * old + 0.3 * new, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(np.mean([m["bound_nats"] for _, m in parts]), metrics["bound_nats"], rtol=1e-12)


@pytest.mark.slow
def test_stochastic_inference_nears_coordinate_ascent(key):
    x = clusters(2_000).astype(np.float32)
    prior = mixture_prior(3, MEAN, SCATTER)
    best = fit_mixture(x, prior, key=key)
    schedule = gm.call(robbins_monro, delay=2.0, forgetting=0.8)
    fit = fit_mixture_stochastic(x, prior, key=key, batch_size=100, num_steps=400, step_size=schedule, progress=False)
    np.testing.assert_allclose(fit.history["step_size"][-1], np.mean(np.arange(302, 402.0) ** -0.8), rtol=1e-4)
    _, metrics = NaturalGradientStep(2_000, 1.0)(NaturalGradientStep(2_000, 1.0).init((prior, fit.params), key, x), key, x)
    # Below the optimum, by less than a hundredth of a nat per datum.
    assert -20 < metrics["bound_nats"] - best.bound < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixture_prior(0, MEAN, SCATTER), "num_components must be an integer >= 1, got 0"),
        (lambda: mixture_prior(2, MEAN, SCATTER[:1]), r"scatter \(D, D\), got \(2,\) and \(1, 2\)"),
        (lambda: mixture_prior(2, MEAN, SCATTER, dof=1.0), "dof must be > D - 1 = 1, where the Wishart law is proper, got 1.0"),
        (lambda: mixture_prior(2, MEAN, -SCATTER), "scatter must be symmetric and positive definite"),
        (lambda: mixture_prior(2, MEAN, SCATTER, strength=0.0), "strength must be > 0"),
        (lambda: robbins_monro(forgetting=0.5), "forgetting must be in .* got 0.5"),
        (lambda: NaturalGradientStep(10, 1.5), "step_size must be in .*, or a schedule of the step, got 1.5"),
        (lambda: fit_mixture(X, mixture_prior(2, MEAN, SCATTER), key=jax.random.key(0)), r"x must have shape \(n, 2\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
