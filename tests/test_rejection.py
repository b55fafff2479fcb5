"""Rejection sampling of Beta(2, 5) from a uniform law, whose acceptance and moments are known, and what it says of its bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genmod.samplers import empirical_supremum_rejection, find_log_bound, rejection_sample

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEY = jax.random.key(0)
LAW = stats.beta(2, 5)
LOG_Z = -np.log(30.0)  # of x (1 - x)^4
LOG_BOUND = np.log(0.2 * 0.8**4)


def log_beta(x):
    return jnp.log(x) + 4 * jnp.log1p(-x)


def uniform(key):
    return jax.random.uniform(key), 0.0


def same_law(draws, cdf):
    assert stats.kstest(np.asarray(draws), cdf).pvalue > 1e-4


def test_exact_draws_at_the_best_acceptance():
    np.testing.assert_allclose([LAW.pdf(0.2), 1 / LAW.pdf(0.2), LAW.mean()], [2.4576, 0.406901, 2 / 7], rtol=1e-6)
    found = rejection_sample(KEY, log_beta, uniform, LOG_BOUND, num_draws=5_000)
    assert found.is_exact and found.is_complete and found.num_accepted == 5_000 and found.num_violations == 0
    assert abs(found.acceptance_rate - 0.406901) < NUM_SEM * found.acceptance_sem
    np.testing.assert_allclose(found.acceptance_sem, np.sqrt(0.4069 * 0.5931 / found.num_attempts), rtol=0.02)
    assert abs(found.log_normalizer - LOG_Z) < NUM_SEM * found.acceptance_sem / found.acceptance_rate
    same_law(found.positions, LAW.cdf)
    assert abs(found.positions.mean() - 2 / 7) < NUM_SEM * LAW.std() / np.sqrt(5_000)
    assert -1e-3 < found.largest_excess < 1e-6 and "no violation of the bound seen" in str(found)


def test_a_bound_that_is_too_small_is_reported():
    """By half a nat: the draws follow min(f, M q)."""
    found = rejection_sample(KEY, log_beta, uniform, LOG_BOUND - 0.5, num_draws=5_000)
    assert not found.is_exact and found.num_violations > 100
    np.testing.assert_allclose(found.largest_excess, 0.5, atol=1e-3)
    assert "NOT EXACT" in str(found) and "by up to 0.5 nats" in str(found)
    grid = np.linspace(0, 1, 20_001)
    density = np.minimum(grid * (1 - grid) ** 4, np.exp(LOG_BOUND - 0.5))
    same_law(found.positions, lambda x: np.interp(x, grid, np.cumsum(density) / density.sum()))
    assert stats.kstest(np.asarray(found.positions), LAW.cdf).pvalue < 1e-6


def test_the_bound_is_found():
    """By L-BFGS from few draws, to rounding; on a pytree too."""

    def log_q(x):
        return 0.0 * x

    np.testing.assert_allclose(
        find_log_bound(KEY, log_beta, uniform, log_q, num_draws=20, num_starts=2, num_steps=10), LOG_BOUND, atol=1e-5
    )

    def draw(key):
        z = jax.random.normal(key, (2,))
        return {"a": 3 * z[0], "b": 3 * z[1:]}, -0.5 * jnp.sum(z**2)

    def wide(x):
        return -0.5 * (x["a"] ** 2 + jnp.sum(x["b"] ** 2)) / 9

    # -(a - 1)^2 / 2 + a^2 / 18 is largest at a = 9/8, where it is 1/16.
    bound = find_log_bound(
        KEY, lambda x: -0.5 * ((x["a"] - 1) ** 2 + jnp.sum(x["b"] ** 2)), draw, wide, num_draws=20, num_starts=2, num_steps=10
    )
    np.testing.assert_allclose(bound, 1 / 16, atol=1e-5)


def test_the_empirical_supremum():
    found = empirical_supremum_rejection(KEY, log_beta, uniform, num_draws=5_000)
    np.testing.assert_allclose(found.log_bound, LOG_BOUND, atol=1e-4)
    assert found.is_complete and found.largest_excess < 1e-2
    same_law(found.positions, LAW.cdf)
    # A narrow proposal finds larger weights for ever, and says so.
    found = empirical_supremum_rejection(
        KEY,
        lambda x: -0.5 * x**2,
        lambda key: (x := 0.5 * jax.random.normal(key), -2 * x**2),
        num_draws=20,
        max_attempts=50_000,
        block_size=100,
    )
    assert not found.is_exact and found.num_violations >= 1 and found.largest_excess > 0


def test_attempts_run_out_and_densities_fail():
    found = rejection_sample(KEY, log_beta, uniform, LOG_BOUND + 6.0, num_draws=100, max_attempts=1_500, block_size=500)
    assert found.num_attempts == 1_500 and not found.is_complete and "INCOMPLETE" in str(found)
    n = int(found.num_accepted)
    assert np.isfinite(found.positions[:n]).all() and np.isnan(found.positions[n:]).all() and n < 100
    broken = rejection_sample(
        KEY, lambda x: jnp.where(x > 0.5, jnp.nan, log_beta(x)), uniform, LOG_BOUND, num_draws=100, block_size=100
    )
    assert broken.num_failed > 0 and not broken.is_exact and (broken.positions <= 0.5).all() and "are NaN" in str(broken)


def normal(key):
    x = jax.random.normal(key)
    return x, log_normal(x)


def log_normal(x):
    return jax.scipy.stats.norm.logpdf(x)


def rare(x):
    """Uniform on [3, 3.1], of mass 3.8e-4 under N(0, 1); up to a constant."""
    return jnp.where((x > 3) & (x < 3.1), 0.0, -jnp.inf)


def test_a_support_that_is_not_found():
    with pytest.raises(ValueError, match="no draw lies in the support: log_prob_fn is -inf or NaN at all num_draws=500 draws"):
        find_log_bound(jax.random.key(2), rare, normal, log_normal, num_draws=500, num_steps=2)
    with pytest.raises(ValueError, match="log_prob_fn must be finite relative to the proposal, got a log f - log q of inf"):
        find_log_bound(KEY, lambda x: jnp.where(x > 0.5, jnp.inf, 0.0), uniform, lambda x: 0.0 * x, num_steps=2)
    never = empirical_supremum_rejection(KEY, lambda x: jnp.where(x > 9, 0.0, -jnp.inf), normal, num_draws=5, max_attempts=2_000)
    assert never.num_accepted == 0 and never.largest_excess == -np.inf and not never.is_exact
    assert "NOT EXACT: the bound is -inf nats" in str(never) and "no proposal was in the support" in str(never)
    # A first block without any is no bound: what is found later sets it, and breaks none.
    found = empirical_supremum_rejection(KEY, rare, normal, num_draws=200, block_size=100)
    assert found.is_complete and ((found.positions > 3) & (found.positions < 3.1)).all()
    np.testing.assert_allclose(found.log_bound, 0.5 * 3.1**2 + 0.5 * np.log(2 * np.pi), atol=0.02)
    assert 0 < found.largest_excess < 0.305  # what log f - log q spans there
    assert abs(found.log_normalizer - np.log(0.1)) < NUM_SEM * found.acceptance_sem / found.acceptance_rate


@pytest.mark.parametrize("bound", [-np.inf, np.nan])
def test_a_bound_that_is_not_finite(bound):
    with pytest.raises(ValueError, match=f"log_bound must be finite, got {bound}"):
        rejection_sample(KEY, log_beta, uniform, bound, num_draws=5)
    traced = jax.jit(lambda bound: rejection_sample(KEY, log_beta, uniform, bound, num_draws=5, max_attempts=20, block_size=10))
    assert not traced(bound).is_exact and traced(bound).num_accepted == 0 and f"the bound is {bound} nats" in str(traced(bound))
    assert traced(LOG_BOUND).is_exact and traced(LOG_BOUND).is_complete


def test_integers_are_drawn_too():
    p, num = np.array([0.5, 0.0, 0.2, 0.3]), 5_000
    log_p = jnp.log(jnp.asarray(p, jnp.float32))
    found = rejection_sample(
        KEY, lambda i: log_p[i], lambda key: (jax.random.randint(key, (), 0, 4), -np.log(4.0)), np.log(2.0), num_draws=num
    )
    share = np.bincount(found.positions, minlength=4) / num
    assert found.is_exact and (np.abs(share - p) <= NUM_SEM * np.sqrt(p * (1 - p) / num)).all()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"log_bound": jnp.zeros(2)}, ValueError, r"log_bound must be one number, got shape \(2,\)"),
        ({"num_draws": 0}, ValueError, "num_draws must be an integer >= 1, got 0"),
        ({"block_size": 0}, ValueError, "block_size must be an integer >= 1, got 0"),
        ({"max_attempts": 1.5}, ValueError, "max_attempts must be an integer >= 1, got 1.5"),
        ({"log_prob_fn": 1.0}, TypeError, "log_prob_fn must be a function, got 1.0"),
        ({"log_prob_fn": lambda x: x[None]}, ValueError, "log_prob_fn must return one number"),
        ({"key": 0}, TypeError, "key must be a typed key"),
    ],
)
def test_rejection_refuses_bad_input(options, error, match):
    given = {"key": KEY, "log_prob_fn": log_beta, "sample_and_log_prob_fn": uniform, "log_bound": 0.0, "num_draws": 5}
    with pytest.raises(error, match=match):
        rejection_sample(**(given | options))
