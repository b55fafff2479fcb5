"""The sliced Wasserstein distance and the Sinkhorn divergence: against closed forms, other code, and plain iterations."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import wasserstein_distance

from genmod.metrics import sinkhorn_divergence, sliced_wasserstein, wasserstein


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
