"""The Frechet distance: against closed forms, SciPy's matrix root, and populations."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from genmod.metrics import (
    extrapolated_frechet_distance,
    frechet_distance,
    frechet_distance_of_moments,
    frechet_interval,
)


def covariance(seed, d, condition=1e2):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (q * np.geomspace(1.0, 1.0 / condition, d)) @ q.T


def by_matrix_root(mean_x, a, mean_y, b):
    return (mean_x - mean_y) @ (mean_x - mean_y) + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real


@pytest.mark.parametrize("condition", [1e1, 1e5])
@pytest.mark.parametrize("d", [1, 2, 30])
def test_the_matrix_root(d, condition):
    rng = np.random.default_rng(d)
    given = rng.normal(size=d), covariance(1, d, condition), rng.normal(size=d), 2.0 * covariance(2, d, condition)
    assert frechet_distance_of_moments(*given) == pytest.approx(by_matrix_root(*given), rel=1e-10)
    assert frechet_distance_of_moments(*given[2:], *given[:2]) == pytest.approx(by_matrix_root(*given), rel=1e-10)


def test_covariances_of_the_same_axes():
    """W_2^2 = |m1 - m2|^2 + sum (sqrt l_i - sqrt k_i)^2."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    mean = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    # Both singular: one eigenvalue is 0 in either, one in both.
    one, other = np.array([4.0, 1.0, 9.0, 0.0, 0.0]), np.array([1.0, 16.0, 0.0, 2.25, 0.0])
    truth = mean @ mean + ((np.sqrt(one) - np.sqrt(other)) ** 2).sum()
    found = frechet_distance_of_moments(mean, (q * one) @ q.T, 0 * mean, (q * other) @ q.T)
    # Eigenvalues that are 0 are rounded to eps, and roots of it would be off by 1e-8.
    assert found == pytest.approx(truth, rel=1e-12)
    diagonal = frechet_distance_of_moments(mean, np.diag(one), 0 * mean, np.diag(other))
    assert diagonal == pytest.approx(truth, rel=1e-12)


def test_singular_covariances():
    """Of rank one, a = u u', tr (a b)^(1/2) = (u' b u)^(1/2)."""
    u, b = np.array([1.0, -2.0, 0.5]), covariance(3, 3)
    a, zero = np.outer(u, u), np.zeros(3)
    truth = u @ u + np.trace(b) - 2 * math.sqrt(u @ b @ u)
    assert frechet_distance_of_moments(zero, a, zero, b) == pytest.approx(truth, rel=1e-12)
    assert frechet_distance_of_moments(zero, b, zero, a) == pytest.approx(truth, rel=1e-12)
    assert frechet_distance_of_moments(zero, 0 * a, zero, b) == pytest.approx(np.trace(b), rel=1e-12)
    # Fewer rows than features.
    x, y = np.random.default_rng(4).normal(size=(2, 6, 20))
    trace = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T, compute_uv=False).sum() / 5
    shift = x.mean(0) - y.mean(0)
    truth = shift @ shift + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum() - 2 * trace
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert math.isfinite(extrapolated_frechet_distance(x, y).sem)


def test_samples():
    x, y = np.random.default_rng(5).normal(size=(2, 400, 2, 3)) * np.array([1.0, 2.0, 0.5])
    flat_x, flat_y = x.reshape(400, 6), y.reshape(400, 6)
    truth = by_matrix_root(flat_x.mean(0), np.cov(flat_x.T), flat_y.mean(0), np.cov(flat_y.T))
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-10)


SCALES = np.arange(1, 41) ** -0.5


def draws(rng, n, shift=0.0, scale=1.0):
    x = rng.normal(size=(n, len(SCALES))) * SCALES * scale
    x[:, 0] += shift
    return x


def bias(squares, n, m):
    """As the module says."""
    pairs = (squares[:, None] * squares / (squares[:, None] + squares)).sum()
    return (1 / n + 1 / m) * pairs / 2 + squares.sum() * (1 / n + 1 / m)


def test_a_constant_sample():
    """(mean + variance) of the other, with the error of a mean of squares."""
    y = np.random.default_rng(0).normal(size=(400, 3))
    for found in (extrapolated_frechet_distance(np.ones((50, 3)), y), extrapolated_frechet_distance(y, np.ones((50, 3)))):
        assert abs(found.value - 6.0) < 4 * found.sem
        assert found.sem == pytest.approx(np.sqrt(np.sum((y - 1) ** 2, 1).var(ddof=1) / 400), rel=0.05)


def test_small_samples_are_too_far_apart_and_extrapolated_ones_are_not():
    rng, truth = np.random.default_rng(6), 0.2**2 + 0.1**2 * (SCALES**2).sum()
    pairs = [(draws(rng, 400, 0.2, 1.1), draws(rng, 600)) for _ in range(40)]
    plain = np.array([frechet_distance(*pair) for pair in pairs])
    found = np.array([extrapolated_frechet_distance(*pair) for pair in pairs])
    expected = bias(SCALES**2 * 1.1, 400, 600)
    assert plain.mean() > 2 * truth
    # Both formulas leave out the next power of d / n.
    slack = expected * len(SCALES) / 400
    assert abs(plain.mean() - truth - expected) < 4 * plain.std() / math.sqrt(40) + slack
    assert abs(found[:, 0].mean() - truth) < 4 * found[:, 0].std() / math.sqrt(40) + slack
    assert slack < truth / 3
    wider = np.array([extrapolated_frechet_distance(*pair, num_sizes=3).value for pair in pairs[:10]])
    assert abs(wider.mean() - truth) < 4 * found[:, 0].std() / math.sqrt(10) + 3 * slack


def test_the_error_is_the_spread_over_repetitions():
    rng, scales = np.random.default_rng(7), np.array([1.0, 0.5, 2.0])
    found = np.array(
        [
            extrapolated_frechet_distance(rng.normal(size=(300, 3)) * scales, rng.normal([0.5, 0, -0.4], 1.0, (500, 3)))
            for _ in range(400)
        ]
    )
    # A standard deviation of 400 values is known to 1 / sqrt(800) of itself; the error is right to order 1 / sqrt(n).
    assert abs((found[:, 1] ** 2).mean() ** 0.5 / found[:, 0].std() - 1) < 4 / math.sqrt(800) + 1 / math.sqrt(300)
    truth = 0.41 + ((scales - 1) ** 2).sum()
    assert abs(found[:, 0].mean() - truth) < 4 * found[:, 0].std() / math.sqrt(400)


def test_the_interval_covers():
    rng, hits = np.random.default_rng(8), 0
    for i in range(80):
        x, y = rng.normal([1.0, 0.0], [1.0, 2.0], (150, 2)), rng.normal(size=(100, 2))
        low, high = frechet_interval(x, y, level=0.9, num_resamples=59, seed=i)
        hits += low < 2.0 < high
    assert abs(hits / 80 - 0.9) < 4 * math.sqrt(0.09 / 80)


def test_errors():
    zero, one = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match=r"mean_y and covariance_y must have shapes \(d,\) and \(d, d\), got \(2,\) and \(2,\)"):
        frechet_distance_of_moments(zero, one, zero, zero)
    with pytest.raises(ValueError, match=r"mean_x and mean_y must have one shape, got \(2,\) and \(3,\)"):
        frechet_distance_of_moments(zero, one, np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="covariance_x must be symmetric"):
        frechet_distance_of_moments(zero, one + np.eye(2, k=1), zero, one)
    with pytest.raises(ValueError, match="covariance_x must have no negative eigenvalue, got -2"):
        frechet_distance_of_moments(zero, np.diag([1.0, -2.0]), zero, one)
    with pytest.raises(ValueError, match="covariance_y must be finite"):
        frechet_distance_of_moments(zero, one, zero, one * np.nan)
    with pytest.raises(ValueError, match="num_sizes must be at least 2 for a line, got 1"):
        extrapolated_frechet_distance(np.ones((9, 2)), np.ones((9, 2)), num_sizes=1)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
        frechet_interval(np.ones((9, 2)), np.ones((9, 2)), level=95)


@pytest.mark.slow
def test_ten_thousand_rows_of_2048_features():
    """The population distance is 8.83; the samples' is more than three times as large."""
    rng, n, d = np.random.default_rng(9), 10_000, 2_048
    squares = np.arange(1, d + 1) ** -0.9
    squares *= 21.0 / bias(squares, n, n)
    shift = np.sqrt(8.83 / d)
    x, y = (rng.normal(size=(n, d)) * np.sqrt(squares) for _ in range(2))
    x += shift
    assert frechet_distance(x, y) > 25
    found = extrapolated_frechet_distance(x, y)
    assert found.sem < 0.1
    # Of the bias, 21, two sizes leave the next power of d / n: a fiftieth at most.
    assert abs(found.value - 8.83) < 4 * found.sem + 21.0 / 50
