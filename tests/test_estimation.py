"""Fisher information, maximum likelihood, its errors, and modes of posteriors, against closed forms and simulation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.densities import BernoulliHead, Factorized, FullNormal, NormalHead, PoissonHead, Uniform
from genmod.inference import (
    Enumerated,
    Law,
    MonteCarlo,
    Quadrature,
    cramer_rao,
    empirical_fisher,
    fisher_by_curvature,
    fisher_information,
    maximize_likelihood,
    maximize_posterior,
    observed_information,
    regression_map,
    wald_interval,
)
from genmod.metrics import aic, bic
from genmod.models import dirichlet_map

pytestmark = pytest.mark.usefixtures("quick_compile")


@dataclasses.dataclass(frozen=True)
class Scalar(gm.Distribution):
    """Laws of one number in their usual parameters; the base of those below."""

    event = gm.Real(())

    def _init(self, key, x, context):
        return {"theta": jnp.ones(())}


@dataclasses.dataclass(frozen=True)
class NormalOfMoments(Scalar):
    """N(mean, variance)."""

    def log_prob_one(self, params, x, context=None, key=None):
        return -0.5 * (x - params["mean"]) ** 2 / params["variance"] - 0.5 * jnp.log(2 * jnp.pi * params["variance"])

    def sample_one(self, params, key, context=None):
        return params["mean"] + jnp.sqrt(params["variance"]) * jax.random.normal(key)


@dataclasses.dataclass(frozen=True)
class Exponential(Scalar):
    """theta exp(-theta x)."""

    def log_prob_one(self, params, x, context=None, key=None):
        return jnp.where(x >= 0, jnp.log(params["theta"]) - params["theta"] * x, -jnp.inf)

    def sample_one(self, params, key, context=None):
        return jax.random.exponential(key) / params["theta"]


@dataclasses.dataclass(frozen=True)
class Bernoulli(Scalar):
    """P(1) = theta."""

    event = gm.Levels((), 2)

    def log_prob_one(self, params, x, context=None, key=None):
        return jnp.where(x == 1, jnp.log(params["theta"]), jnp.log1p(-params["theta"]))


@dataclasses.dataclass(frozen=True)
class Poisson(Scalar):
    """The rate is theta."""

    event = gm.Counts(())

    def log_prob_one(self, params, x, context=None, key=None):
        return jax.scipy.stats.poisson.logpmf(x, params["theta"])

    def sample_one(self, params, key, context=None):
        return jax.random.poisson(key, params["theta"])


@dataclasses.dataclass(frozen=True)
class Line(Scalar):
    """y = theta x + N(0, scale^2), given x."""

    scale: float = 0.5
    context_shape = ()

    def log_prob_one(self, params, x, context=None, key=None):
        return -0.5 * ((x - params["theta"] * context) / self.scale) ** 2 - jnp.log(self.scale * jnp.sqrt(2 * jnp.pi))


def law(distribution, **params):
    return Law(distribution, {name: jnp.asarray(value, float) for name, value in params.items()})


def test_information_of_known_laws(x64):
    """1/s^2 and 1/(2 s^4), 1/(p (1 - p)), 1/lambda^2: both forms, by quadrature and by enumeration."""
    normal = law(NormalOfMoments(), mean=0.7, variance=1.69)
    exponential = law(Exponential(), theta=1.5)
    cases = [
        (normal, Quadrature(-15.0, 15.0), np.diag([1 / 1.69, 1 / (2 * 1.69**2)]), 1e-10),
        (law(Bernoulli(), theta=0.3), Enumerated(), [[1 / 0.21]], 1e-10),
        (exponential, Quadrature(0.0, 30.0, 30_001), [[1 / 2.25]], 1e-6),  # trapezia beside a jump
    ]
    for known, method, wanted, rtol in cases:
        for form in (fisher_information, fisher_by_curvature):
            found = form(known, method)
            np.testing.assert_allclose(found.matrix, wanted, rtol=rtol, atol=1e-10)
            assert not found.sem.any()


def test_information_by_draws(key):
    """Of a Poisson law, 1/lambda."""
    known = law(Poisson(), theta=3.0)
    for form in (fisher_information, fisher_by_curvature):
        found = form(known, MonteCarlo(20_000), key=key)
        assert abs(found.matrix[0, 0] - 1 / 3) < 4 * found.sem[0, 0] < 0.05


@dataclasses.dataclass(frozen=True)
class KnownVariance(Scalar):
    """N(theta, v), where v is not trained."""

    def log_prob_one(self, params, x, context=None, key=None):
        variance = params["variance"].constant
        return -0.5 * (x - params["theta"]) ** 2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)

    def sample_one(self, params, key, context=None):
        return params["theta"] + jnp.sqrt(params["variance"].constant) * jax.random.normal(key)


def test_what_is_fixed_is_known(key):
    held = Law(KnownVariance(), {"theta": jnp.ones(()), "variance": gm.Fixed(jnp.full((), 4.0))})
    found = fisher_by_curvature(held, MonteCarlo(100), key=key)
    np.testing.assert_allclose(found.matrix, [[0.25]], rtol=1e-6)
    x = held.distribution.sample(held.params, key, (50,))
    estimate = maximize_likelihood(held.distribution, held.params, x, optimizer=optax.sgd(0.01), num_steps=50)
    np.testing.assert_allclose(estimate.params["theta"], x.mean(), rtol=1e-5)
    assert float(estimate.params["variance"].tree) == 4.0 and estimate.num_params == 1
    np.testing.assert_allclose(wald_interval(estimate).sem["theta"], 2 / 50**0.5, rtol=1e-5)


@pytest.mark.slow
def test_maximize_likelihood_of_a_gaussian(key, x64):
    """Mean and variance of the data; errors s / sqrt n and s / sqrt(2 n) by the delta method; the observed information."""
    model = Factorized(NormalHead(), (1,))
    x = 2.0 + 1.5 * jax.random.normal(key, (400, 1))
    estimate = maximize_likelihood(model, model.init(key, x), x)
    assert estimate.converged and estimate.num_data == 400 and estimate.log_prior == 0

    def moments(params):
        return {"mean": params["raw"][0, 0], "sd": jnp.exp(model.head.log_scale(params["raw"])[0])}

    found = wald_interval(estimate, moments, level=0.9)
    sd = float(x.std())
    np.testing.assert_allclose([found.value["mean"], found.value["sd"]], [x.mean(), sd], rtol=1e-8)
    np.testing.assert_allclose([found.sem["mean"], found.sem["sd"]], [sd / 20, sd / 800**0.5], rtol=1e-8)
    np.testing.assert_allclose(found.high["mean"] - found.low["mean"], 2 * 1.6448536 * sd / 20, rtol=1e-7)
    information = observed_information(model, estimate.params, x)
    np.testing.assert_allclose(estimate.covariance, np.linalg.inv(information), rtol=1e-8, atol=1e-14)
    log_likelihood = -200 * (np.log(2 * np.pi * sd**2) + 1)
    assert float(estimate.log_likelihood) == pytest.approx(log_likelihood, rel=1e-10)
    assert aic(estimate.log_likelihood, 2) == pytest.approx(4 - 2 * log_likelihood)
    assert bic(estimate.log_likelihood, 2, 400) == pytest.approx(2 * np.log(400) - 2 * log_likelihood)


def test_sandwich_of_a_wrong_model(key, x64):
    """N(theta, 1) on data of another spread: the variance of the mean is s^2 / n, not 1 / n. Empirical Fisher sees s^2."""
    model = Factorized(NormalHead(1.0), (1,))
    x = 3.0 * jax.random.normal(key, (300, 1))
    estimate = maximize_likelihood(model, model.init(key, x), x)
    np.testing.assert_allclose(estimate.covariance, [[1 / 300]], rtol=1e-8)
    np.testing.assert_allclose(estimate.robust().covariance, [[x.var() / 300]], rtol=1e-8)
    np.testing.assert_allclose(empirical_fisher(model, estimate.params, x), [[x.var()]], rtol=1e-8)


@pytest.mark.slow
def test_coverage_of_wald_intervals(key):
    """Of 95% intervals of a rate, by 600 sets of 200 counts; of the log-rate by the delta method too."""
    model, num = Factorized(PoissonHead(), ()), 600
    true = {"raw": jnp.log(jnp.array([3.0]))}
    rate = float(jnp.exp(model.head.log_rate(true["raw"])))
    data = model.sample(true, key, (num, 200))

    def covered(x):
        estimate = maximize_likelihood(model, true, x)
        found = wald_interval(estimate, lambda params: jnp.exp(model.head.log_rate(params["raw"])))
        return (found.low <= rate) & (rate <= found.high)

    share = float(jax.jit(jax.vmap(covered))(data).mean())
    assert abs(share - 0.95) < 4 * (0.95 * 0.05 / num) ** 0.5


def test_cramer_rao(key):
    """The mean of 50 draws of N(0, 1) is efficient, .02; the median needs pi / 2 times as many data; halving is biased."""
    known = law(NormalOfMoments(), mean=0.0, variance=1.0)
    information = fisher_information(known, Quadrature(-10.0, 10.0)).matrix

    def estimators(x):
        return jnp.stack([x.mean(), jnp.median(x), 0.5 * x.mean() + 0.5])

    report = cramer_rao(
        known,
        estimators,
        lambda p: jnp.full(3, 1.0) * p["mean"],
        num_data=50,
        information=information,
        key=key,
        num_repeats=5_000,
    )
    np.testing.assert_allclose(report.bound, 0.02, rtol=1e-5)
    assert abs(report.ratio[0] - 1) < 4 * report.ratio_sem[0] < 0.1
    assert 1.4 < report.ratio[1] < np.pi / 2 + 4 * report.ratio_sem[1]
    assert report.ratio[2] == pytest.approx(report.ratio[0] / 4, rel=1e-4) and report.bias[2] == pytest.approx(0.5, abs=0.01)
    assert np.abs(report.bias[:2]).max() < 4 * report.bias_sem[:2].max()
    # The error of the variance, sqrt(2 / R) of it, of normal estimates.
    assert report.ratio_sem[0] == pytest.approx((2 / 5_000) ** 0.5 * report.ratio[0], rel=0.1)
    assert "ratio" in str(report)


def beta_prior(params):
    """Beta(3, 3) of P(1), as a density of P(1)."""
    raw = params["raw"][0]
    return 2 * (jax.nn.log_sigmoid(raw) + jax.nn.log_sigmoid(-raw))


def normal_prior(params):
    """N(0, 1 / 4)."""
    return -2 * params["theta"] ** 2


@pytest.mark.slow
def test_modes_of_posteriors(key, x64):
    """By search and in closed form: (n_c + alpha - 1) / (N + V (alpha - 1)), and sum xy / (sum x^2 + lambda s^2)."""
    x = jnp.array([1] * 7 + [0] * 2, jnp.uint8)
    model = Factorized(BernoulliHead(), ())
    estimate = maximize_posterior(model, {"raw": jnp.zeros(1)}, x, log_prior_fn=beta_prior)
    wanted = dirichlet_map(np.array([2, 7]), 3.0)
    np.testing.assert_allclose(jax.nn.sigmoid(estimate.params["raw"][0]), wanted[1], rtol=1e-8)
    np.testing.assert_allclose(wanted, [(2 + 2) / (9 + 2 * 2), (7 + 2) / (9 + 2 * 2)], rtol=1e-12)
    keys = jax.random.split(key)
    inputs = jax.random.normal(keys[0], (20,))
    y = 1.3 * inputs + 0.5 * jax.random.normal(keys[1], (20,))
    line = maximize_posterior(Line(), {"theta": jnp.zeros(())}, y, inputs, log_prior_fn=normal_prior)
    wanted = np.sum(inputs * y) / (np.sum(inputs**2) + 4 * 0.25)
    np.testing.assert_allclose(line.params["theta"], wanted, rtol=1e-8)
    np.testing.assert_allclose(regression_map(inputs, y, precision=4.0, scale=0.5), [wanted], rtol=1e-12)
    np.testing.assert_allclose(line.covariance, [[1 / (np.sum(inputs**2) / 0.25 + 4)]], rtol=1e-8)
    assert float(line.log_prior) == pytest.approx(-2 * wanted**2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda key: maximize_likelihood(Factorized(NormalHead(), (1,)), {"raw": jnp.zeros((1, 2))}, jnp.ones((1, 2))),
            ValueError,
            "x",
        ),
        (lambda key: maximize_likelihood(Uniform((1,)), {}, jnp.ones((3, 1))), ValueError, "something to train"),
        (lambda key: fisher_information(law(Bernoulli(), theta=0.5), MonteCarlo(5)), ValueError, "pass key="),
        (lambda key: regression_map(jnp.ones((3, 2)), jnp.ones(2), precision=1.0), ValueError, "x must be"),
        (lambda key: aic(1.0, 0), ValueError, "num_params"),
    ],
)
def test_what_is_refused(call, error, message, key):
    with pytest.raises(error, match=message):
        call(key)


def test_a_flat_likelihood_is_refused():
    """One point does not tell the covariance of a plane."""
    model = FullNormal((2,))
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="strict maximum"):
        maximize_likelihood(model, model.init(jax.random.key(0), x), x, optimizer=optax.adam(0.1), num_steps=20)
