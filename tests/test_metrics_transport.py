"""Sliced Wasserstein distances and the Sinkhorn divergence: against closed forms, other code, and plain iterations."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import wasserstein_distance

from genmod.metrics import max_sliced_wasserstein, sinkhorn_divergence, sliced_wasserstein, wasserstein


def rows(seed, n, d=3):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_a_shift():
    """t.y = t.x + t.a for every direction, and E|t.a|^2 = |a|^2 / 3, E|t.a| = |a| / 2 in three dimensions."""
    x, shift = rows(0, 50), np.array([1.0, 2.0, 2.0])
    two, one = (sliced_wasserstein(x, x + shift, order=order, num_directions=2_000) for order in (2, 1))
    assert abs(two.value - math.sqrt(3.0)) < 4 * two.sem < 0.1
    assert abs(one.value - 1.5) < 4 * one.sem < 0.1
    # Fresh rows add their own error: of the mean, 2 sqrt(2 |a|^2 / n) / 3 in the square.
    n = 20_000
    found = sliced_wasserstein(rows(1, n), rows(2, n) + shift, num_directions=400)
    assert abs(found.value**2 - 3.0) < 4 * (2 * found.value * found.sem + 2 * math.sqrt(2 / n))


def test_unequal_sizes():
    x, y = rows(3, 6, 1), rows(4, 4, 1) * 2.0 + 1.0
    for order in (1, 2, 3):
        found = sliced_wasserstein(x, y, order=order, num_directions=1)
        expanded = wasserstein(np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0), order=order)
        assert found.value == pytest.approx(expanded, rel=1e-12)
    one = sliced_wasserstein(rows(5, 61, 1), rows(6, 47, 1), order=1, num_directions=3)
    assert one.value == pytest.approx(wasserstein_distance(rows(5, 61, 1)[:, 0], rows(6, 47, 1)[:, 0]), rel=1e-12)
    assert one.sem == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="order must be a finite number >= 1, got 0.5"):
        sliced_wasserstein(x, y, order=0.5)


def test_the_direction_of_most():
    """The shift of Gaussians, 3, and the largest difference of their standard deviations, |1 - 3| and not |2 - 1|."""
    n, m = 800, 1_200
    shift, widths = np.array([1.0, 2.0, 2.0]), np.array([[1.0, 2.0, 1.0], [3.0, 1.0, 1.0]])
    # Potentials -6 x and 6 y of the first transport, -2 x^2 and 2 y^2 / 3 of the second, with Var(x^2) = 2 s^4.
    cases = (
        (rows(30, n), rows(31, m) + shift, 3.0, math.sqrt(36 / n + 36 / m), 2.0),
        (rows(32, n) * widths[0], rows(33, m) * widths[1], 2.0, math.sqrt(8 / n + 72 / m), 14.0),
    )
    for x, y, wanted, sem_of_square, kurtosis in cases:
        found = max_sliced_wasserstein(x, y)
        assert abs(found.value**2 - wanted**2) < 4 * sem_of_square
        # The relative error of an estimated error: that of a variance, by its kurtosis less one, halved.
        assert abs(2 * found.value * found.sem / sem_of_square - 1) < 4 * math.sqrt(kurtosis / n) / 2
    # Nothing is searched in one dimension.
    x, y = rows(34, 6, 1), rows(35, 4, 1) * 2.0 + 1.0
    wanted = wasserstein(np.repeat(x, 2, axis=0), np.repeat(y, 3, axis=0), order=3)
    assert max_sliced_wasserstein(x, y, order=3).value == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="x must have at least 4 rows, got 3"):
        max_sliced_wasserstein(x[:3], y)


def test_a_direction_is_measured_on_other_rows():
    """Of one law that is the same in all directions, W_2^2 along the direction found is that along a random one."""
    most, all_directions = [], []
    for seed in range(40, 100, 2):
        x, y = rows(seed, 200, 10), rows(seed + 1, 200, 10)
        most.append(max_sliced_wasserstein(x, y, num_starts=4, num_steps=50).value ** 2)
        all_directions.append(sliced_wasserstein(x[:100], y[:100], num_directions=100).value ** 2)
    difference = np.subtract(most, all_directions)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(30)
    # A direction finds the difference of the means of its own rows, 2 D / n in the square, were it measured on them.
    assert np.mean(most) < 0.5 * 2 * 10 / 100


def entropic_cost(x, y, epsilon):
    """min sum p c + e KL(p || ab), by plain iterations in float64."""
    cost = ((x[:, None] - y) ** 2).sum(-1)
    f, g = np.zeros(len(x)), np.zeros(len(y))
    for _ in range(2_000):
        f = -epsilon * (logsumexp((g - cost) / epsilon, axis=1) - math.log(len(y)))
        g = -epsilon * (logsumexp((f[:, None] - cost) / epsilon, axis=0) - math.log(len(x)))
    return f.mean() + g.mean()


def test_plain_iterations():
    x, y, share = rows(7, 7, 2), rows(8, 5, 2) * 1.5 + 0.5, 0.2
    epsilon = share * ((x[:, None] - y) ** 2).sum(-1).mean()
    truth = entropic_cost(x, y, epsilon) - entropic_cost(x, x, epsilon) / 2 - entropic_cost(y, y, epsilon) / 2
    found = sinkhorn_divergence(x, y, epsilon=share, tolerance=1e-6)
    assert found.value == pytest.approx(truth, rel=1e-5)


def of_gaussians(mean, s, t, epsilon):
    """Of N(0, s^2) and N(mean, t^2) (Janati et al. 2020, arXiv:2006.02572, theorem 1)."""

    def cost(mean, s, t):
        v = epsilon / 2
        root = math.sqrt(4 * s**2 * t**2 + v**2)
        return mean**2 + s**2 + t**2 - root + v * (1 - math.log(2 * v)) + v * math.log(root + v)

    return cost(mean, s, t) - cost(0, s, s) / 2 - cost(0, t, t) / 2


def test_gaussians_and_the_error():
    rng, share, found = np.random.default_rng(9), 0.3, []
    epsilon = share * (1.0 + 0.7**2 + 1.2**2)
    for _ in range(60):
        found.append(sinkhorn_divergence(rng.normal(size=(70, 1)), rng.normal(1.2, 0.7, (70, 1)), epsilon=share))
    values, sems = np.array(found).T
    truth = of_gaussians(1.2, 1.0, 0.7, epsilon)
    # epsilon follows the mean distance of the samples, which moves the value by less than its error; the bias is of order 1 / n.
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(60) + 2 / 70
    assert abs(math.sqrt((sems**2).mean()) / values.std() - 1) < 4 / math.sqrt(120) + 1 / math.sqrt(60)


def test_it_is_near_w2_for_a_small_epsilon():
    x, y = rows(10, 40, 2), rows(11, 40, 2) + 2.0
    assert sinkhorn_divergence(x, y, epsilon=0.003).value == pytest.approx(wasserstein(x, y) ** 2, rel=0.01)


def test_edges():
    x = rows(12, 9)
    assert sinkhorn_divergence(x, x).value == pytest.approx(0.0, abs=1e-5)
    assert sinkhorn_divergence(0 * x, 0 * x) == (0.0, 0.0)
    with pytest.raises(ValueError, match="sinkhorn did not converge in max_iters = 1 iterations.*raise max_iters, or epsilon"):
        sinkhorn_divergence(x, x + 5 * x**2, epsilon=0.02, tolerance=1e-9, max_iters=1)
    with pytest.raises(ValueError, match="epsilon must be > 0 and finite, got 0"):
        sinkhorn_divergence(x, x, epsilon=0)
