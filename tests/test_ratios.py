"""Samplers that correct a generator by log p/q, on a pair of Gaussians, and the calibration of a critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from genmod import samplers
from genmod.samplers import Calibration, calibration_z, platt_calibration, relative_proposal, shifted_acceptance

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(3)
P, Q = stats.norm(0.5, 0.8), stats.norm(-0.3, 1.3)
GRID = np.linspace(-6, 6, 4_001)
RATIOS = P.logpdf(GRID) - Q.logpdf(GRID)


def draw(key):
    return -0.3 + 1.3 * jax.random.normal(key)


def log_ratio(x):
    """log p/q + 2, since a constant does not matter."""
    return 2.0 + jax.scipy.stats.norm.logpdf(x, 0.5, 0.8) - jax.scipy.stats.norm.logpdf(x, -0.3, 1.3)


PROPOSAL = relative_proposal(draw)


def same_law(draws, cdf=P.cdf):
    assert stats.kstest(np.asarray(draws), cdf).pvalue > 1e-3
    assert stats.kstest(np.asarray(draws), Q.cdf).pvalue < 1e-6


def test_metropolis_hastings_draws_from_the_data_law():
    """Chains that begin far away; the best ratio is 2.6, so that what is left of the start after 40 steps is (1 - 1/2.6)^40."""
    assert (1 - np.exp(-RATIOS.max())) ** 40 < 1e-6
    kernel = samplers.independence(log_ratio, *PROPOSAL)
    ends, info = jax.jit(lambda key, x: samplers.moved(key, kernel, x, num_steps=40))(KEY, jnp.full(4_000, 9.0))
    same_law(ends)
    # In equilibrium the mean acceptance is E min(w, w') over p and q, by quadrature.
    p, q = P.pdf(GRID), Q.pdf(GRID)
    rate = np.minimum(p[:, None] * q[None], q[:, None] * p[None]).sum() * (GRID[1] - GRID[0]) ** 2
    assert abs(info.is_accepted.mean() - rate) < 4.5 * np.sqrt(rate * (1 - rate) / 4_000)


@pytest.mark.parametrize("percentile", [None, 80.0])
def test_rejection_draws_from_the_law_that_it_says(percentile):
    accept_fn = shifted_acceptance(log_ratio, 2.0 + RATIOS, percentile=percentile)
    found = samplers.rejection_sample(KEY, accept_fn, PROPOSAL.sample_and_log_prob_fn, 0.0, num_draws=4_000)
    assert found.is_exact and found.is_complete
    below = np.minimum(RATIOS - RATIOS.max(), -1e-9)
    odds = below - np.log(-np.expm1(below))
    shift = 0.0 if percentile is None else np.percentile(odds, percentile)
    accepted = 1 / (1 + np.exp(shift - odds))
    density = Q.pdf(GRID) * accepted
    rate = density.sum() * (GRID[1] - GRID[0])
    assert abs(found.acceptance_rate - rate) < 4.5 * found.acceptance_sem
    same_law(found.positions, lambda x: np.interp(x, GRID, np.cumsum(density) / density.sum()))
    if percentile is None:
        same_law(found.positions)
        np.testing.assert_allclose(rate, np.exp(-RATIOS.max()), rtol=1e-4)


def test_importance_resampling_draws_from_the_data_law():
    keys = jax.random.split(KEY)
    weighted = samplers.importance_sample(keys[0], log_ratio, PROPOSAL.sample_and_log_prob_fn, 40_000)
    report = samplers.importance_report(weighted.log_weights)
    assert abs(report.log_normalizer - 2.0) < 4.5 * report.log_normalizer_sem and not report.problems
    chosen = samplers.sampling_importance_resampling(keys[1], weighted, 2_000, resampler=samplers.multinomial_resampling)
    same_law(chosen.positions)


def outputs(num, rng):
    """What a critic gives that is off: log p/q = 2 D - 0.3."""
    x, y = P.rvs(num[0], random_state=rng), Q.rvs(num[1], random_state=rng)
    return [jnp.asarray((P.logpdf(a) - Q.logpdf(a) + 0.3) / 2, jnp.float32) for a in (x, y)]


def test_calibration_is_logistic_regression():
    rng = np.random.default_rng(0)
    on_data, on_samples = outputs((20_000, 8_000), rng)
    found = platt_calibration(on_data, on_samples)
    inputs = np.concatenate([on_data, on_samples])[:, None]
    peer = LogisticRegression(C=1e9, tol=1e-9).fit(inputs, np.repeat([1, 0], [20_000, 8_000]))
    np.testing.assert_allclose(found.scale, peer.coef_[0, 0], rtol=1e-3)
    np.testing.assert_allclose(found.offset + np.log(2.5), peer.intercept_[0], atol=2e-3)
    np.testing.assert_allclose([found.scale, found.offset], [2.0, -0.3], atol=0.12)
    same = platt_calibration(jnp.full(20_000, 0.3), jnp.full(8_000, 0.3))  # whose mean, rounded, is not 0.3
    assert same.scale == 0 and abs(same.offset) < 1e-3  # the targets of Platt are off by 1 / n
    fresh = outputs((5_000, 9_000), rng)
    assert abs(calibration_z(*map(found, fresh))) < 3.5
    assert abs(calibration_z(*map(Calibration(jnp.array(2.0), jnp.array(0.0)), fresh))) > 6
    z = [calibration_z(*map(Calibration(jnp.array(2.0), jnp.array(-0.3)), outputs((300, 200), rng))) for _ in range(60)]
    assert abs(np.mean(z)) < 4.5 / np.sqrt(60) and abs(np.std(z) - 1) < 4.5 / np.sqrt(120)


def test_calibration_of_outputs_that_are_separated_or_shifted():
    on_data, on_samples = jnp.linspace(5.0, 6.0, 50), jnp.linspace(3.0, 4.0, 50)
    found = platt_calibration(on_data, on_samples)
    assert jnp.isfinite(found.scale) and found.scale > 3
    assert abs(found(jnp.array(4.5))) < 1e-2  # in the middle nothing is known
    far = platt_calibration(1e3 * on_data + 1e5, 1e3 * on_samples + 1e5)
    np.testing.assert_allclose(far(1e3 * on_data + 1e5), found(on_data), rtol=1e-2)


def test_ratios_refuse():
    with pytest.raises(TypeError, match="^sample_fn must be a function"):
        relative_proposal(None)
    with pytest.raises(ValueError, match=r"^on_samples must have shape \(n,\), n >= 1, got \(3, 1\)$"):
        platt_calibration(jnp.ones(3), jnp.ones((3, 1)))
    with pytest.raises(
        ValueError, match="^on_data and on_samples must hold two values or more, got 3 and 1: one has no variance"
    ):
        calibration_z(jnp.ones(3), jnp.ones(1))
    with pytest.raises(ValueError, match="^on_data must be finite"):
        calibration_z(jnp.array([jnp.nan]), jnp.ones(3))
    with pytest.raises(ValueError, match=r"^percentile must be in \(0, 100\) or None, got 100.0$"):
        shifted_acceptance(log_ratio, jnp.ones(3), percentile=100.0)
