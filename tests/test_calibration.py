"""Ranks of truths among draws of posteriors that are right, too wide and too narrow."""

import numpy as np
import pytest
import scipy.stats

from genmod.metrics import calibration_ranks, credible_coverage, rank_uniformity

NUM, NUM_DRAWS, LEVELS = 4_000, 39, (0.1, 0.5, 0.9)


def posterior(scale, shift=0.0, num_draws=NUM_DRAWS):
    """Truths of N(mean, 1) and draws of N(mean + shift, scale^2), the mean its own in each row; and log q of both."""
    rng = np.random.default_rng(0)
    mean = 5.0 * rng.standard_normal((NUM, 1))
    theta = mean[:, 0] + rng.standard_normal(NUM)
    draws = mean + shift + scale * rng.standard_normal((NUM, num_draws))
    center = mean + shift
    return theta, draws, scipy.stats.norm.logpdf(theta, center[:, 0], scale), scipy.stats.norm.logpdf(draws, center, scale)


def test_ranks_by_hand():
    theta = np.array([[0.0, 5.0], [2.0, -1.0]])
    draws = np.array([[[-1.0, 6.0], [0.5, 7.0], [-2.0, 8.0]], [[1.0, -2.0], [1.5, 0.0], [0.0, 1.0]]])
    ranks = calibration_ranks(theta, draws)
    np.testing.assert_array_equal(ranks, [[2, 0], [3, 1]])
    assert ranks.dtype.kind == "i"
    np.testing.assert_array_equal(calibration_ranks([0.5], [[-np.inf, 0.0, np.inf]]), [2])


def test_ties_lie_anywhere_among_each_other():
    """Of a discrete law, too, ranks are uniform."""
    rng = np.random.default_rng(0)
    theta, draws = rng.integers(0, 3, 5_000), rng.integers(0, 3, (5_000, 9))
    assert rank_uniformity(calibration_ranks(theta, draws, seed=1), 9).p_value > 1e-3
    np.testing.assert_array_equal(calibration_ranks(theta, draws, seed=1), calibration_ranks(theta, draws, seed=1))
    ranks = calibration_ranks(np.zeros(3_000), np.zeros((3_000, 2)))  # 0, 1, 2 alike
    assert rank_uniformity(ranks, 2, num_bins=3).p_value > 1e-3
    assert rank_uniformity((draws < theta[:, None]).sum(1), 9).p_value < 1e-10


def test_uniform_ranks_pass_and_others_do_not():
    theta, draws, *_ = posterior(1.0)
    right = rank_uniformity(calibration_ranks(theta, draws), NUM_DRAWS)
    assert right.p_value > 1e-3
    for scale, shift in ((1.3, 0.0), (0.7, 0.0), (1.0, 0.3)):
        theta, draws, *_ = posterior(scale, shift)
        assert rank_uniformity(calibration_ranks(theta, draws), NUM_DRAWS).p_value < 1e-10
    both = np.stack([calibration_ranks(theta, draws)] * 2, 1)
    assert rank_uniformity(both, NUM_DRAWS).p_value.shape == (2,)


def test_p_values_are_uniform_and_the_statistic_is_that_of_scipy():
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 10, (200, 1_000))
    found = rank_uniformity(ranks, 9)
    wanted = scipy.stats.chisquare(np.stack([(ranks == k).sum(0) for k in range(10)]))
    np.testing.assert_allclose(found.statistic, wanted.statistic)
    np.testing.assert_allclose(found.p_value, wanted.pvalue)
    uneven = rank_uniformity(ranks, 9, num_bins=4)  # of 3, 2, 3 and 2 ranks
    counts = np.stack([((ranks >= low) & (ranks < high)).sum(0) for low, high in ((0, 3), (3, 5), (5, 8), (8, 10))])
    shares = np.array([0.3, 0.2, 0.3, 0.2])[:, None]
    np.testing.assert_allclose(
        uneven.statistic, scipy.stats.chisquare(counts, np.broadcast_to(200 * shares, counts.shape)).statistic
    )
    assert scipy.stats.kstest(uneven.p_value, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("scale", [1.0, 1.5, 0.6], ids=["exact", "too_wide", "too_narrow"])
def test_coverage_of_a_gaussian(scale):
    """The region of level c of N(0, s^2) is |theta| < s z_c, which holds N(0, 1) with probability 2 Phi(s z_c) - 1; of L draws
    it is known to the order of 1/L."""
    num_draws = 399
    _, _, of_theta, of_draws = posterior(scale, num_draws=num_draws)
    ranks = calibration_ranks(of_theta, of_draws)
    for level, found in zip(LEVELS, credible_coverage(ranks, num_draws, LEVELS), strict=True):
        wanted = 2 * scipy.stats.norm.cdf(scale * scipy.stats.norm.ppf((1 + level) / 2)) - 1
        np.testing.assert_allclose(found.sem, np.sqrt(level * (1 - level) / NUM))
        assert abs(found.value - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / NUM) + 1 / num_draws
        assert scale == 1.0 or np.sign(found.value - level) == np.sign(scale - 1.0)


@pytest.mark.parametrize("num_draws", [1, 4, 10])
def test_coverage_of_all_ranks_alike_is_the_level(num_draws):
    """Exactly, for any number of draws and any level."""
    levels = (0.03, 0.5, 0.77, 0.99)
    found = credible_coverage(np.arange(num_draws + 1), num_draws, levels)
    np.testing.assert_allclose([value for value, _ in found], levels)


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda: calibration_ranks(np.zeros(3), np.zeros((4, 5))), r"^draws must be \(n, L\) .* got \(4, 5\) and \(3,\)"),
        (lambda: calibration_ranks(np.zeros((3, 2)), np.zeros((3, 5))), r"^draws must be \(n, L\)"),
        (lambda: calibration_ranks(np.zeros(3), np.zeros((3, 0))), r"^draws must be \(n, L\)"),
        (lambda: calibration_ranks([np.nan], np.zeros((1, 5))), "^theta must be numbers, got NaN"),
        (lambda: calibration_ranks([0.0], np.full((1, 5), np.nan)), "^draws must be numbers, got NaN"),
        (lambda: rank_uniformity([0.5] * 20, 9), r"^ranks must be integers, \(n,\) \+ any axes, got float64 of shape \(20,\)"),
        (lambda: rank_uniformity([10] * 20, 9), r"^ranks must be in 0\.\.9, got 10\.\.10"),
        (lambda: rank_uniformity([-1] * 20, 9), r"^ranks must be in 0\.\.9, got -1\.\.-1"),
        (lambda: rank_uniformity([1] * 4, 9), "^ranks must be at least 10, five for each of two bins, got 4"),
        (lambda: rank_uniformity([1] * 20, 9, num_bins=11), r"^num_bins must be in 2\.\.10, got 11"),
        (lambda: rank_uniformity([1] * 20, 0), "^num_draws must be an integer >= 1, got 0"),
        (lambda: credible_coverage(np.ones((20, 2), int), 9, (0.5,)), r"^ranks must be \(n,\), one for each truth"),
        (lambda: credible_coverage([1] * 20, 9, (0.5, 1.0)), r"^levels must be numbers in \(0, 1\), got"),
        (lambda: credible_coverage([1] * 20, 9, 0.5), r"^levels must be numbers in \(0, 1\), got 0.5"),
    ],
)
def test_refused(fn, match):
    with pytest.raises(ValueError, match=match):
        fn()
