"""The classifier two-sample test against Bayes' accuracy, and at chance."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from genmod.metrics import c2st

# One program of each network: all samples have 1,500 and 900 rows of two coordinates.
NETWORK, LINE = ({"hidden_sizes": sizes, "num_steps": 200} for sizes in ((16,), ()))


def rows(rng, n, mean=0.0, sd=1.0):
    """A coordinate, and one that is constant, which does not matter."""
    return np.stack([rng.normal(mean, sd, n), np.ones(n)], 1)


def test_bayes_and_chance():
    """Of N(0, 1) and N(1, 1) no classifier is right more often than Phi(1/2) = .691462."""
    rng, bayes = np.random.default_rng(0), norm.cdf(0.5)
    x, y, other = rows(rng, 1_500), rows(rng, 900, 1.0), rows(rng, 900)
    found, chance = c2st(x, y, **NETWORK), c2st(x, other, **NETWORK)
    assert bayes == pytest.approx(0.691462, abs=1e-6)
    assert abs(found.value - bayes) < 4 * found.sem
    assert abs(chance.value - 0.5) < 4 * chance.sem
    assert found.sem == pytest.approx(math.sqrt(bayes * (1 - bayes) * (1 / 1_500 + 1 / 900)) / 2, rel=0.05)
    assert c2st(x, y, **NETWORK) == found


def test_what_a_line_cannot_tell():
    """Two laws of one mean: logistic regression sees nothing, a network the spread."""
    rng = np.random.default_rng(1)
    x, y = rows(rng, 1_500), rows(rng, 900, sd=4.0)
    # Bayes decides by |x| < b, where the densities are equal.
    b = math.sqrt(2 * math.log(4) / (1 - 1 / 16))
    bayes = (2 * norm.cdf(b) - 1 + 2 * norm.cdf(-b / 4)) / 2
    network = c2st(x, y, **NETWORK)
    assert abs(network.value - bayes) < 4 * network.sem
    # A line through the middle is right on half of either.
    line = c2st(x, y, **LINE)
    assert line.value < 0.5 + 5 * line.sem < bayes


def test_errors():
    x = np.ones((9, 2))
    with pytest.raises(ValueError, match="x must have at least 10 rows, got 9"):
        c2st(x, x, num_folds=10)
    with pytest.raises(ValueError, match="num_folds must be at least 2, got 1"):
        c2st(x, x, num_folds=1)
