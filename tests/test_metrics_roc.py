"""The ROC curve, its area and its standard error, against closed forms and against all pairs."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from genmod.metrics import auroc, roc_curve


def all_pairs(inliers, outliers):
    """The definition: value and DeLong's error from the n x m table of pairs."""
    wins = (outliers[:, None] > inliers) + 0.5 * (outliers[:, None] == inliers)
    variance = wins.mean(1).var(ddof=1) / len(outliers) + wins.mean(0).var(ddof=1) / len(inliers)
    return wins.mean(), math.sqrt(variance)


@pytest.mark.parametrize("shift", [-0.7, 0.0, 1.3])
def test_two_gaussians(shift):
    rng = np.random.default_rng(1)
    value, sem = auroc(rng.normal(size=30_000), rng.normal(shift, 1.0, size=20_000))
    assert abs(value - norm.cdf(shift / math.sqrt(2))) < 4 * sem
    assert 0 < sem < 0.005


@pytest.mark.parametrize(("n", "m", "num_values"), [(2, 3, 2), (7, 40, 5), (40, 7, 5), (30, 30, 1_000_000)])
def test_all_pairs(n, m, num_values):
    rng = np.random.default_rng(n + m)
    for _ in range(20):
        inliers, outliers = rng.integers(0, num_values, n), rng.integers(0, num_values, m) + rng.integers(0, 2)
        np.testing.assert_allclose(auroc(inliers, outliers), all_pairs(inliers, outliers), rtol=1e-12, atol=1e-12)


def test_the_error_is_the_spread_over_repetitions():
    rng = np.random.default_rng(2)
    found = np.array([auroc(rng.normal(size=150), rng.exponential(2.0, size=60)) for _ in range(2_000)])
    # The standard deviation of 2,000 values is known to 1 / sqrt(4,000) of itself; 4 of these, and DeLong's bias of order 1/n.
    assert abs(found[:, 1].mean() / found[:, 0].std() - 1) < 4 / math.sqrt(4_000) + 1 / 60


def test_the_curve():
    # Thresholds 3, 2, 1, 0: inliers at or above them 0, 1, 3, 4 of 4; outliers 1, 1, 2, 2 of 2.
    false, true = roc_curve([0, 1, 1, 2], [1, 3])
    np.testing.assert_array_equal(false, [0, 0, 0.25, 0.75, 1])
    np.testing.assert_array_equal(true, [0, 0.5, 0.5, 1, 1])
    rng = np.random.default_rng(3)
    inliers, outliers = rng.integers(0, 9, 50), rng.integers(2, 12, 30)
    false, true = roc_curve(inliers, outliers)
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(auroc(inliers, outliers)[0], abs=1e-12)


def test_edges():
    assert auroc([0.0, 1.0], [2.0, 3.0]) == (1.0, 0.0)
    assert auroc([2.0, 3.0], [0.0, 1.0]) == (0.0, 0.0)
    assert auroc([1.0, 1.0], [1.0, 1.0]) == (0.5, 0.0)
    value, sem = auroc([0.0, 2.0, 4.0], [1.0])
    assert value == pytest.approx(1 / 3) and math.isnan(sem)


@pytest.mark.parametrize("function", [auroc, roc_curve])
def test_errors(function):
    with pytest.raises(ValueError, match=r"inliers must be at least one score, shape \(n,\), got shape \(0,\)"):
        function([], [1.0])
    with pytest.raises(ValueError, match=r"outliers must be at least one score, shape \(n,\), got shape \(1, 2\)"):
        function([1.0], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="outliers must be finite, got 2 of 3 scores that are not"):
        function([1.0], [1.0, np.nan, np.inf])
