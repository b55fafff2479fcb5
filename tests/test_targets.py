"""Targets of inference: their normalisers by quadrature and by conjugacy, their draws by their own density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import genmod as gm
from genmod.densities import (
    ConjugateRegression,
    CorrelatedStudentT,
    FullNormal,
    LearnedStudentT,
    StudentT,
    Target,
    ThreeGaussians,
)

# A target of the plane, and the half width of a box that holds all but 1e-3 of it.
TARGETS: dict[str, tuple[Target, float]] = {
    "three_gaussians": (ThreeGaussians(2), 8.0),
    "student": (CorrelatedStudentT(2, df=6.0), 25.0),
    "regression": (ConjugateRegression(2, num_rows=3), 8.0),
}


@pytest.mark.parametrize("name", TARGETS)
def test_normalizer_and_draws(name, key):
    target, width = TARGETS[name]
    num = 600
    line = -width + (jnp.arange(num) + 0.5) * (2 * width / num)
    grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    log_p = np.asarray(target.log_prob({}, grid), np.float64) - target.log_normalizer
    p = np.exp(log_p) * (2 * width / num) ** 2
    np.testing.assert_allclose(p.sum(), 1.0, atol=3e-3)
    assert float(target(grid[7])) == pytest.approx(float(target.log_prob({}, grid[7])), rel=1e-6)
    # Moments of draws that lie in the box against those of the density.
    x = np.asarray(target.sample({}, key, 40_000), np.float64)
    x, points = x[(np.abs(x) < width).all(1)], np.asarray(grid, np.float64)
    for function in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: np.tanh(x[:, 0] * x[:, 1]), lambda x: np.tanh(x[:, 1] ** 2)):
        values, exact = function(x), (p * function(points)).sum() / p.sum()
        assert abs(values.mean() - exact) < 4.5 * values.std() / np.sqrt(len(values)) + 3e-3


def test_against_scipy(x64):
    """The Student law, and the evidence of the regression, y ~ N(0, A A^T + noise^2 I)."""
    x = np.random.default_rng(0).standard_normal((4, 5))
    target = CorrelatedStudentT(5, 3.0, -0.4)
    index = np.arange(5)
    scale = (-0.4) ** np.abs(index[:, None] - index)
    np.testing.assert_allclose(target.log_prob({}, x), stats.multivariate_t.logpdf(x, np.zeros(5), scale, 3.0), rtol=1e-12)
    target = ConjugateRegression(10, noise=0.7)
    a, y = target._known.design, target._known.y
    wanted = stats.multivariate_normal.logpdf(y, np.zeros(20), a @ a.T + 0.49 * np.eye(20))
    np.testing.assert_allclose(target.log_normalizer, wanted, rtol=1e-12)
    posterior = stats.multivariate_normal.logpdf(np.ones(10), target.mean, np.linalg.inv(target.precision))
    np.testing.assert_allclose(target(jnp.ones(10)) - wanted, posterior, rtol=1e-10)
    # The best factorised Gaussian has the precision's diagonal.
    law, params = FullNormal((10,)), {"mean": target.mean, "lower": np.zeros((10, 10))}
    params = jax.tree.map(jnp.asarray, params | {"log_scale": -0.5 * np.log(np.diagonal(target.precision))})
    draws = law.sample(params, jax.random.key(0), 20_000)
    gap = law.log_prob(params, draws) - target.log_prob({}, draws) + wanted
    assert abs(gap.mean() - target.mean_field_gap) < 4.5 * gap.std() / np.sqrt(20_000)
    assert target.likelihood is gm.Likelihood.UNNORMALIZED and ThreeGaussians(3).likelihood is gm.Likelihood.EXACT


@pytest.mark.slow
def test_tails_that_are_learned(key, x64):
    """Starts as a Student law of `df`; the variance df / (df - 2) has the gradient -2 / (df - 2)^2 in df = 1 + exp(raw)."""
    law = LearnedStudentT((2,), df=9.0)
    params = law.init(key, np.zeros((1, 2)))
    x = law.sample(params, key, 6)
    np.testing.assert_allclose(law.log_prob(params, x), StudentT((2,), 9.0).log_prob({}, x), rtol=1e-12)
    num = 100_000

    def squares(params):
        return jax.vmap(lambda key: law.sample_one(params, key)[0] ** 2)(jax.random.split(key, num))

    values, moves = jax.jvp(squares, (params,), ({"raw": jnp.array([1.0, 0.0])},))
    assert abs(values.mean() - 9 / 7) < 4.5 * values.std() / np.sqrt(num)
    assert abs(moves.mean() + 2 / 49 * 8) < 4.5 * moves.std() / np.sqrt(num)
    heavy = {"raw": jnp.log(jnp.array([0.5, 1e6]))}  # 1.5 degrees of freedom, and nearly a normal law
    draws = np.asarray(law.sample(heavy, key, 20_000))
    for x, df in zip(draws.T, (1.5, 1e6 + 1), strict=True):
        assert stats.kstest(x, stats.t(df).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CorrelatedStudentT(0), "dim must be an integer >= 1, got 0"),
        (lambda: ThreeGaussians(1), "dim must be >= 2, where the means lie in a plane, got 1"),
        (lambda: CorrelatedStudentT(2, correlation=1.0), r"correlation must be in \(-1, 1\), got 1.0"),
        (lambda: ConjugateRegression(2, noise=0.0), "noise must be > 0"),
        (lambda: LearnedStudentT((2,), df=1.0), "df must be > 1, got 1.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
