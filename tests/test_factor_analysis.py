"""Factor analysis and probabilistic PCA: against scikit-learn, the full covariance, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA, FactorAnalysis as PeerAnalysis

import genmod as gm
from genmod.models import FactorAnalysis, ProbabilisticPCA
from genmod.training import fit_em

pytestmark = pytest.mark.usefixtures("quick_compile")


def table(num, noise, seed=0):
    """Two factors of five columns."""
    rng = np.random.default_rng(seed)
    loading = np.array([[1.0, 0.2], [0.8, -0.5], [0.0, 1.0], [-0.6, 0.7], [0.3, 0.3]])
    scale = np.asarray(noise) * np.ones(5)
    return rng.standard_normal((num, 2)) @ loading.T + scale * rng.standard_normal((num, 5)) + np.arange(5.0)


X = table(150, [0.5, 0.3, 0.6, 0.4, 0.8])


@pytest.mark.parametrize("model", [FactorAnalysis((5,), 2), ProbabilisticPCA((5,), 2), FactorAnalysis((5, 1), 4)])
def test_log_prob_and_posterior_are_those_of_the_full_gaussian(model, key, x64):
    params = model.init(key, X.reshape(-1, *model.shape))
    params["mean"] = params["mean"] + 0.3
    covariance = np.asarray(model.covariance(params))
    wanted = stats.multivariate_normal(params["mean"], covariance).logpdf(X)
    np.testing.assert_allclose(model.log_prob(params, X.reshape(-1, *model.shape)), wanted, rtol=1e-11)
    loss, metrics = model.loss(params, key, X.reshape(-1, *model.shape))
    assert loss == metrics["nll_nats"] and abs(loss + wanted.mean()) < 1e-11
    mean, spread = model.posterior(params, X.reshape(-1, *model.shape))
    gain = np.linalg.solve(covariance, params["loading"]).T  # the conditional of a joint Gaussian
    np.testing.assert_allclose(mean, (X - params["mean"][None]) @ gain.T, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(spread[7], np.eye(model.num_factors) - gain @ params["loading"], atol=1e-11)


def test_draws_have_the_covariance(key):
    model = FactorAnalysis((5,), 2)
    params = model.init(key, X.astype(np.float32))
    draws = np.asarray(model.sample(params, key, 20_000))
    wanted = np.asarray(model.covariance(params))
    # The standard error of an entry of a covariance of Gaussian data.
    error = np.sqrt((wanted**2 + np.outer(np.diag(wanted), np.diag(wanted))) / 20_000)
    assert (np.abs(np.cov(draws.T) - wanted) < 4.5 * error).all()
    assert (np.abs(draws.mean(0) - params["mean"]) < 4.5 * np.sqrt(np.diag(wanted) / 20_000)).all()


def test_factor_analysis_is_that_of_scikit_learn(key, x64):
    """And its gradient vanishes where EM ends."""
    model = FactorAnalysis((5,), 2)
    fit = fit_em(model, X, key=key, num_restarts=2, num_sweeps=5_000, tolerance=1e-13, block_rows=40)
    peer = PeerAnalysis(2, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(X)
    assert fit.converged
    np.testing.assert_allclose(fit.objective, peer.score(X), atol=1e-9)
    np.testing.assert_allclose(model.covariance(fit.params), peer.get_covariance(), atol=1e-4)
    rises = np.diff(fit.history, axis=1)
    assert (rises[np.isfinite(rises)] >= -1e-13).all()
    grads = jax.grad(lambda params: model.loss(params, key, X)[0])(fit.params)
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) < 1e-5
    assert model.num_free == 5 + 5 + 10 - 1


def test_probabilistic_pca_in_closed_form_is_where_em_ends(key, x64):
    model = ProbabilisticPCA((5,), 2)
    closed = model.closed_form(X)
    fit = fit_em(model, X, key=key, num_restarts=1, num_sweeps=5_000, tolerance=1e-14)
    np.testing.assert_allclose(model.log_prob(closed, X).mean(), fit.objective, atol=1e-10)
    np.testing.assert_allclose(model.covariance(closed), model.covariance(fit.params), atol=1e-5)
    # scikit-learn divides by n - 1, also where it speaks of likelihood: the closed form of its covariance.
    peer = PCA(2).fit(X)
    unbiased = closed | {
        "loading": closed["loading"] * np.sqrt(150 / 149),
        "log_scale": closed["log_scale"] + 0.5 * np.log(150 / 149),
    }
    np.testing.assert_allclose(model.log_prob(unbiased, X), peer.score_samples(X), rtol=1e-9)
    # Weights of one and two are rows once and twice.
    weight = np.random.default_rng(0).integers(1, 3, 150)
    twice = model.closed_form(np.repeat(X, weight, 0))
    np.testing.assert_allclose(model.covariance(model.closed_form(X, weight)), model.covariance(twice), atol=1e-12)


def test_noise_has_a_floor(key, x64):
    """A column that is a factor itself: a Heywood case."""
    x = table(100, [1e-9, 0.3, 0.6, 0.4, 0.8])[:, :3]
    x[:, 0] = np.round(x[:, 0], 8)
    fit = fit_em(FactorAnalysis((3,), 1, floor=1e-2), x, key=key, num_restarts=1, num_sweeps=3_000)
    assert np.exp(2 * fit.params["log_scale"]).min() == pytest.approx(1e-2, rel=1e-9)
    flat = ProbabilisticPCA((3,), 2, floor=1e-3).closed_form(np.repeat(x[:2], 5, 0))
    assert np.exp(2 * flat["log_scale"]) == pytest.approx(1e-3, rel=1e-9)


def test_strong_factors_in_float32():
    """A signal 1e3 times the noise: a difference of squares would be rounded by 1e6 eps."""
    model = FactorAnalysis((3,), 1)
    params = {"mean": jnp.zeros(3), "loading": 1e3 * jnp.ones((3, 1)), "log_scale": jnp.zeros(3)}
    x = np.float32(1_500.0) + np.array([0.5, -1.0, 0.25], np.float32)
    covariance = 1e6 * np.ones((3, 3)) + np.eye(3)
    wanted = stats.multivariate_normal(np.zeros(3), covariance).logpdf(x.astype(np.float64))
    np.testing.assert_allclose(model.log_prob(params, x), wanted, atol=2e-3)


@pytest.mark.parametrize("family", [FactorAnalysis, ProbabilisticPCA])
def test_little_noise_in_float32(family, key):
    """A thousandth of the signal: as EM in float64 from the same start, to the rounding of x in units of the noise."""
    noise = 1e-3 * np.array([0.5, 0.3, 0.6, 0.4, 0.8])
    x = table(150, noise).astype(np.float32)
    model = family((5,), 2, floor=1e-12)
    start, options = model.init(key, x), {"num_sweeps": 100, "tolerance": 1e-12}
    found = fit_em(model, x, params=start, **options).params
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: np.asarray(a, np.float64), start)
        wanted = fit_em(model, x.astype(np.float64), params=double, **options).params
    ratio = np.exp(2 * (np.asarray(found["log_scale"], np.float64) - np.asarray(wanted["log_scale"])))
    np.testing.assert_allclose(ratio, 1.0, atol=2 * np.finfo(np.float32).eps * np.abs(x).max() / noise.min())


def test_closed_form_of_little_noise_in_float32():
    x = table(150, 1e-3 * np.ones(5)).astype(np.float32)
    model = ProbabilisticPCA((5,), 2)
    found = model.closed_form(x)
    with jax.enable_x64(True):
        wanted = model.closed_form(x.astype(np.float64))
    ratio = np.exp(float(found["log_scale"]) - float(wanted["log_scale"]))
    assert abs(ratio - 1.0) < 2 * np.finfo(np.float32).eps * np.abs(x).max() / 1e-3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FactorAnalysis((3,), 3), "num_factors must be below the 3 dimensions of an event, got 3"),
        (lambda: FactorAnalysis((3,), 0), "num_factors"),
        (lambda: ProbabilisticPCA((3,), 1, floor=-1.0), "floor must be > 0"),
        (lambda: ProbabilisticPCA((5,), 1).closed_form(X[:1]), "at least 2 rows .*, got 1"),
        (lambda: ProbabilisticPCA((5,), 1).closed_form(X * np.nan), "x must be finite"),
        (lambda: ProbabilisticPCA((5,), 1).closed_form(X, np.eye(150)[0]), "at least 2 rows .*, got 1"),
        (
            lambda: ProbabilisticPCA((5,), 1).closed_form(X, -np.ones(150)),
            "weight must be .* finite numbers >= 0, one for each row",
        ),
        (
            lambda: ProbabilisticPCA((5,), 1).closed_form(X, np.ones(3)),
            r"weight must be 150 finite numbers >= 0, .*got shape \(3,\)",
        ),
        (lambda: fit_em(FactorAnalysis((5,), 1), X[:1], key=jax.random.key(0)), "at least 2 rows"),
        (lambda: gm.models.FactorAnalysis((5,), 1).log_prob({}, X), "params must be those of this FactorAnalysis"),
    ],
)
def test_messages(make, match):
    with pytest.raises(ValueError, match=match):
        make()
