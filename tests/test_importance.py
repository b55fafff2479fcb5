"""Importance sampling against expectations and effective sample sizes that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from genmod.samplers import (
    WeightedDraws,
    importance_mean,
    importance_report,
    importance_sample,
    self_normalized_mean,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEY = jax.random.key(0)


def normal(mean, std):
    """(key -> (draw, log q), log q)."""

    def draw(key):
        x = mean + std * jax.random.normal(key)
        return x, norm.logpdf(x, mean, std)

    return draw, lambda x: norm.logpdf(x, mean, std)


def gamma(x):
    """Gamma(3, 1), skew: mean 3, variance 3, third central moment 6."""
    return jnp.where(x > 0, 2 * jnp.log(jnp.where(x > 0, x, 1.0)) - x - jnp.log(2.0), -jnp.inf)


def exponential(key):
    x = 5.0 * jax.random.exponential(key)
    return x, -x / 5.0 - jnp.log(5.0)


def moments(x):
    return {"mean": x, "central": jnp.stack([(x - 3) ** 2, (x - 3) ** 3])}


def check(found, truth):
    for value, sem, wanted in zip(*(jax.tree.leaves(tree) for tree in (found.value, found.sem, truth)), strict=True):
        assert (np.abs(value - wanted) < NUM_SEM * sem).all(), (value, sem, wanted)


def test_expectations_of_a_skew_law():
    draws = importance_sample(KEY, gamma, exponential, 20_000)
    truth = {"mean": 3.0, "central": np.array([3.0, 6.0])}
    plain = importance_mean(draws, moments)
    check(plain, truth)
    shifted = draws._replace(log_weights=draws.log_weights + 200.0)  # known up to a constant, beyond float32
    check(self_normalized_mean(shifted, moments), truth)
    assert jax.tree.map(jnp.shape, plain.value) == {"mean": (), "central": (2,)}
    # Of weights that are all equal, both are the mean and its standard error.
    equal = WeightedDraws(draws.positions, jnp.zeros(20_000))
    for found in (importance_mean(equal, lambda x: x), self_normalized_mean(equal, lambda x: x)):
        x = np.asarray(draws.positions, np.float64)
        np.testing.assert_allclose([found.value, found.sem], [x.mean(), x.std(ddof=1) / np.sqrt(len(x))], rtol=1e-4)
    # What has no weight counts for nothing, even where fn is infinite there.
    part = WeightedDraws(jnp.array([1.0, 0.0]), jnp.array([0.0, -jnp.inf]))
    assert self_normalized_mean(part, lambda x: 1 / x).value == 1.0 and importance_mean(part, lambda x: 1 / x).value == 0.5


def test_standard_errors_are_those_of_repetitions():
    """Both, of 500 repetitions with 400 draws each; the spread of 500 values is known to 3%."""

    def once(key):
        draws = importance_sample(key, gamma, exponential, 400)
        return importance_mean(draws, jnp.sqrt), self_normalized_mean(draws, jnp.sqrt)

    for found in jax.jit(jax.vmap(once))(jax.random.split(KEY, 500)):
        np.testing.assert_allclose(found.sem.mean(), found.value.std(), rtol=NUM_SEM / np.sqrt(2 * 500))


@pytest.mark.parametrize(("scale", "share"), [(3.0, 0.105272), (6.0, 0.164591)])
def test_effective_sizes_in_the_limit(scale, share):
    """Of N(5, 1) by N(0, s^2): ESS / N = 1 / E_q[w^2], and N / ESS - 1 = chi^2."""
    truth = 1 / (scale**2 / np.sqrt(2 * scale**2 - 1) * np.exp(25 / (2 * scale**2 - 1)))
    assert abs(truth - share) < 1e-6
    num = 200_000
    draw, _ = normal(0.0, scale)
    draws = importance_sample(KEY, lambda x: norm.logpdf(x, 5.0), draw, num)
    report = importance_report(draws.log_weights)
    w = np.exp(np.asarray(draws.log_weights, np.float64))
    sem = (w**2).std() / np.sqrt(num)  # of E_q[w^2]
    assert abs(1 + float(report.chi_squared) - 1 / truth) < NUM_SEM * sem
    np.testing.assert_allclose(report.effective_size / num, truth, rtol=NUM_SEM * sem * truth)
    assert not report.problems and abs(report.log_normalizer) < NUM_SEM * report.log_normalizer_sem


def test_a_proposal_that_does_not_cover_is_reported():
    """N(5, 1) by N(0, 1): the limit of ESS / N is 1.39e-11, and of 1,000 draws it is thousands of times more."""
    truth = 1 / np.exp(25.0)  # s = 1
    np.testing.assert_allclose(truth, 1.39e-11, rtol=2e-3)
    draw, log_q = normal(0.0, 1.0)

    def log_prob(x):
        return norm.logpdf(x, 5.0)

    draws = jax.vmap(lambda key: importance_sample(key, log_prob, draw, 1_000))(jax.random.split(KEY, 20))
    shares = jax.vmap(lambda w: importance_report(w).effective_size)(draws.log_weights) / 1_000
    assert 0.001 < jnp.median(shares) < 0.02
    report = importance_report(draws.log_weights[0])
    assert report.k_hat > 0.7 and "k-hat" in report.problems[0] and "tails are too light" in str(report)
    # At the mode of the target one draw would outweigh all of them.
    probe = importance_report(draws.log_weights[0], jax.vmap(lambda x: log_prob(x) - log_q(x))(jnp.array([4.0, 5.0])))
    np.testing.assert_allclose(probe.unseen_nats, 12.5 - jax.nn.logsumexp(draws.log_weights[0]), rtol=1e-5)
    assert any("does not cover a probe" in problem for problem in probe.problems)
    wide_draw, wide_q = normal(0.0, 6.0)
    wide = importance_sample(KEY, log_prob, wide_draw, 1_000)
    assert not importance_report(wide.log_weights, jnp.array([log_prob(5.0) - wide_q(5.0)])).problems


def test_reports_count_what_has_no_weight():
    report = importance_report(jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf]))
    assert report.num_zero == 2 and report.effective_size == 2 and report.largest_share == 0.5
    assert "too few draws for k-hat" in report.problems
    assert importance_report(jnp.zeros(100).at[3].set(jnp.nan)).problems == ("1 log-weights are NaN",)
    nothing = jnp.full(100, -jnp.inf)
    verdict = "no weight is above zero: no draw of the proposal lies in the support of p"
    assert importance_report(nothing).problems == (verdict,) and str(importance_report(nothing)).endswith(verdict)
    assert importance_report(nothing).log_normalizer == -np.inf == importance_report(nothing).unseen_nats
    assert importance_report(nothing.at[3].set(jnp.nan)).problems == ("1 log-weights are NaN", verdict)
    assert "outweighs all draws by inf nats" in importance_report(nothing, jnp.zeros(1)).problems[-1]
    assert importance_report(jnp.zeros(100).at[3].set(jnp.inf)).problems == ("a weight is infinite",)
    assert importance_report(jnp.zeros(100), jnp.array([0.0, jnp.nan])).problems == ("a log-weight at a probe is NaN",)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: importance_sample(KEY, None, exponential, 10), TypeError, "log_prob_fn must be a function, got None"),
        (lambda: importance_sample(KEY, gamma, 3, 10), TypeError, "sample_and_log_prob_fn must be a function, got 3"),
        (lambda: importance_sample(KEY, gamma, exponential, 0), ValueError, "num_draws must be an integer >= 1, got 0"),
        (lambda: importance_sample(0, gamma, exponential, 5), TypeError, "key must be a typed key"),
        (
            lambda: importance_sample(KEY, lambda x: x[None], exponential, 5),
            ValueError,
            r"log_prob_fn must return one number for one position, got shape \(1,\)",
        ),
        (lambda: importance_report(jnp.zeros((2, 3))), ValueError, r"log_weights must have shape \(S,\), S >= 1, got \(2, 3\)"),
    ],
)
def test_importance_refuses_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
