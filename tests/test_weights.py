"""Importance weights: the log of their mean, its error, and the shape of their tail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genmod.samplers import log_mean, pareto_k_hat, pareto_smoothed


def test_the_log_of_a_mean(key, x64):
    """Log-normal weights: log E[w] = m + s^2 / 2, and the delta method's error is that of many repetitions."""
    log_w = 300.0 + 0.5 * jax.random.normal(key, (2_000, 400))
    found = jax.vmap(log_mean)(log_w)
    assert abs(found.value.mean() - 300.125) < 4.5 * found.value.std() / np.sqrt(2_000) + 0.5 * found.value.var()
    np.testing.assert_allclose(found.sem.mean(), found.value.std(), rtol=0.1)
    # S / (1 + the squared coefficient of variation), exp(s^2) - 1 of a log-normal law.
    np.testing.assert_allclose(found.effective_size.mean(), 400 * np.exp(-0.25), rtol=0.02)
    alone = log_mean(jnp.array([2.0]))
    assert alone.value == 2.0 and np.isnan(alone.sem) and alone.effective_size == 1.0
    equal = log_mean(jnp.full(10, -3.0))
    np.testing.assert_allclose([equal.value, equal.sem, equal.effective_size], [-3.0, 0.0, 10.0], atol=1e-12)
    one_that_counts = log_mean(jnp.array([0.0, -np.inf, -np.inf, -np.inf]))
    np.testing.assert_allclose(one_that_counts[:2], [-np.log(4), 1.0])


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.5])
def test_the_shape_of_a_pareto_tail(shape, x64):
    """Of weights that are generalised Pareto with a known shape, in any unit; the spread is that of the maximum-likelihood
    estimate, (1 + k) / sqrt(tail), and the prior draws it to 1/2 with the weight of ten."""
    num, repeats = 10_000, 40
    w = stats.genpareto(shape).rvs((repeats, num), random_state=np.random.default_rng(3))
    found = np.asarray(jax.vmap(pareto_k_hat)(jnp.log(w) + 500.0))
    tail = 3 * np.sqrt(num)
    wanted = (tail * shape + 5) / (tail + 10)
    assert abs(found.mean() - wanted) < 4.5 * (1 + shape) / np.sqrt(tail * repeats)
    assert found.std() < 1.5 * (1 + shape) / np.sqrt(tail)


def test_the_shape_where_there_is_no_tail(key):
    assert np.isneginf(pareto_k_hat(jnp.full(1_000, -4.0)))
    assert np.isnan(pareto_k_hat(jnp.zeros(15)))
    uniform = pareto_k_hat(jnp.log(jax.random.uniform(key, (4_000,))))
    assert -1.3 < uniform < -0.4  # a uniform law is that of shape -1
    # Weights that span hundreds of nats leave one draw: the heaviest of tails, and finite.
    assert 0.7 < pareto_k_hat(80.0 * jax.random.normal(key, (1_000,))) < 100


def test_weights_of_zero_count_for_nothing(key):
    """Among draws that cannot be, the tail is that of the others alone."""
    log_w, nothing = 1.5 * jax.random.normal(key, (100,)), jnp.full(300, -jnp.inf)
    alone, among = pareto_smoothed(log_w), pareto_smoothed(nothing.at[1::3].set(log_w))
    np.testing.assert_allclose(among.k_hat, alone.k_hat, rtol=1e-5)
    np.testing.assert_allclose(among.log_weights[1::3], alone.log_weights, rtol=1e-5, atol=1e-5)
    assert jnp.isneginf(among.log_weights.reshape(100, 3)[:, ::2]).all()
    # Of twenty the tail has four draws.
    few = nothing.at[:20].set(jnp.linspace(-0.5, 0.5, 20))
    np.testing.assert_array_equal(pareto_smoothed(few).log_weights, few)
    for log_w in (few, nothing, jnp.zeros(300).at[3].set(jnp.nan), jnp.zeros(300).at[3].set(jnp.inf)):
        assert np.isnan(pareto_k_hat(log_w))


def test_smoothed_weights(key, x64):
    """The tail becomes the quantiles of the law that generated it; order, scale and the weights below the tail stay."""
    num, k = 4_000, 0.6
    u = (jnp.arange(num) + 0.5) / num
    log_w = jnp.log(stats.genpareto(k).ppf(np.asarray(u)))[jax.random.permutation(key, num)] + 300.0
    found = pareto_smoothed(log_w)
    np.testing.assert_allclose(found.k_hat, pareto_k_hat(log_w))
    size, order = int(np.ceil(3 * np.sqrt(num))), jnp.argsort(log_w)
    np.testing.assert_array_equal(found.log_weights[order[:-size]], log_w[order[:-size]])
    assert (jnp.diff(found.log_weights[order]) >= 0).all() and found.log_weights.max() <= log_w.max()
    # Those of a genuine Pareto law hardly change, but for the last few, which k-hat, drawn to 1/2, moves.
    np.testing.assert_allclose(found.log_weights[order[-size:-10]], log_w[order[-size:-10]], atol=0.05)


def test_smoothing_mends_an_estimate(key):
    """Weights x^-0.65 at uniform x, with mean 1 / 0.35 and no variance: repeated, smoothed means lie closer to the truth."""
    log_w = -0.65 * jnp.log(jax.random.uniform(key, (400, 500), minval=1e-9))
    raw = jax.vmap(log_mean)(log_w).value
    smooth = jax.vmap(lambda w: log_mean(pareto_smoothed(w).log_weights).value)(log_w)
    truth = -np.log(0.35)
    assert jnp.mean((smooth - truth) ** 2) < 0.8 * jnp.mean((raw - truth) ** 2)


def test_smoothing_where_there_is_no_tail():
    for log_w in (jnp.full(1_000, -4.0), jnp.arange(15.0)):
        np.testing.assert_array_equal(pareto_smoothed(log_w).log_weights, log_w)
