"""Precision, recall, density, coverage, inception score and modes: against the definitions, one by one, and expected values."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from genmod.metrics import (
    density_coverage,
    expected_coverage,
    inception_score,
    mode_coverage,
    precision_recall,
    samples as checks,
)


def radius(sample, i, k):
    return sorted(np.linalg.norm(sample[i] - other) for j, other in enumerate(sample) if j != i)[k - 1]


@pytest.mark.parametrize("d", [2, 20])
def test_the_definitions(d, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK", 70)
    rng = np.random.default_rng(d)
    samples, data, k = rng.normal(0.4, 1.2, (17, d)), rng.normal(size=(23, d)), 4
    distances = np.linalg.norm(samples[:, None] - data, axis=-1)
    of_data = np.array([radius(data, j, k) for j in range(23)])
    of_samples = np.array([radius(samples, i, k) for i in range(17)])
    found = precision_recall(samples, data, num_neighbors=k) | density_coverage(samples, data, num_neighbors=k)
    assert 0 < found["precision"].value == np.mean([(row <= of_data).any() for row in distances])
    assert 0 < found["recall"].value == np.mean([(column <= of_samples).any() for column in distances.T])
    assert found["density"].value == pytest.approx((distances <= of_data).sum() / (k * 17), rel=1e-12)
    assert 0 < found["coverage"].value == np.mean([(distances[:, j] <= of_data[j]).any() for j in range(23)])
    p = found["recall"].value
    assert found["recall"].sem == pytest.approx(math.sqrt(p * (1 - p) / 22), abs=1e-12)


def test_one_law():
    """Density is 1 in the mean, and coverage what the formula says, in any dimension."""
    rng = np.random.default_rng(1)
    for n, m, d, k in ((12, 8, 2, 2), (7, 30, 5, 5)):
        found = [density_coverage(rng.normal(size=(n, d)), rng.normal(size=(m, d)), num_neighbors=k) for _ in range(400)]
        for name, truth in (("density", 1.0), ("coverage", expected_coverage(n, m, k))):
            values = np.array([each[name].value for each in found])
            assert abs(values.mean() - truth) < 4 * values.std() / 20
            assert values.std() / 20 < truth / 20
    # The chance that none of n = 1 samples is among the nearest: it must not lie within the first of m rows.
    assert expected_coverage(1, 2, 1) == pytest.approx(1 - 1 / 2)
    with pytest.raises(ValueError, match="num_data must be above num_neighbors = 5, got 5"):
        expected_coverage(9, 5, 5)


def test_far_and_equal_samples():
    x = np.random.default_rng(2).normal(size=(30, 3))
    for far, value in ((100.0, 0.0), (0.0, 1.0)):
        found = precision_recall(x + far, x) | density_coverage(x + far, x)
        assert {name: each.value for name, each in found.items() if name != "density"} == dict.fromkeys(
            ("precision", "recall", "coverage"), value
        )
    # Every row lies in its own ball and in those whose k nearest it is among: k + 1 of them in the mean.
    assert density_coverage(x, x, num_neighbors=5)["density"].value == pytest.approx(6 / 5)


def test_the_inception_score():
    sure = np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure) == pytest.approx((7.0, 0.0), abs=1e-12)
    assert inception_score(np.full((40, 3), 1 / 3)) == pytest.approx((1.0, 0.0), abs=1e-12)
    two = np.array([[0.9, 0.1], [0.1, 0.9]] * 20)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert inception_score(two, num_splits=5).value == pytest.approx(2 * math.exp(-entropy))
    # Two parts of 1 and of 2 classes: scores 1 and 2, so 1.5 with an error of sqrt(1/2 / 2).
    parts = np.eye(2)[[0, 0, 0, 0, 0, 1, 0, 1]]
    assert inception_score(parts, num_splits=2) == pytest.approx((1.5, 0.5), abs=1e-12)
    assert math.isnan(inception_score(parts, num_splits=1).sem)
    for wrong in ([[0.5, 0.6]], [[1.5, -0.5]], [[np.nan, 1.0]]):
        with pytest.raises(ValueError, match="probabilities must be finite, not negative, and sum to 1"):
            inception_score(np.array(wrong))
    with pytest.raises(ValueError, match="at least num_splits = 10 rows, got 8"):
        inception_score(parts)
    with pytest.raises(ValueError, match=r"probabilities must have shape \(n, num_classes\), got \(2,\)"):
        inception_score(np.array([0.5, 0.5]))


def test_modes():
    rng, n, d = np.random.default_rng(3), 4_000, 2
    centers = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [50.0, 50.0]])
    scales, weights = np.array([1.0, 0.5, 0.2, 1.0]), np.array([0.5, 0.3, 0.15, 0.05])
    which = rng.choice(4, n, p=weights)
    x = centers[which] + scales[which, None] * rng.normal(size=(n, d))
    found = mode_coverage(x, centers, scales, weights=weights)
    assert found["num_modes"] == 4
    share = chi2.cdf(9.0, d)
    assert abs(found["good_share"].value - share) < 4 * math.sqrt(share * (1 - share) / n)
    assert 0 < found["mode_kl_nats"] < chi2.ppf(1 - 1e-5, 3) / (2 * n)  # 2 n KL ~ chi^2 of K - 1
    # Of the two modes that are left one has three quarters: KL(3/4, 1/4 || 1/4 ...) in closed form.
    few = centers[[0, 0, 0, 1]]
    found = mode_coverage(few, centers, 0.1)
    assert found["num_modes"] == 2 and found["good_share"] == (1.0, 0.0)
    assert found["mode_kl_nats"] == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1))
    nothing = mode_coverage(few + 5.0, centers, 0.1)
    assert nothing["num_modes"] == 0 and nothing["mode_kl_nats"] == math.inf
    with pytest.raises(ValueError, match=r"scales must be one number, or one for each of 4 centers, got shape \(2,\)"):
        mode_coverage(few, centers, [1.0, 1.0])
    with pytest.raises(ValueError, match=r"weights must be one number for each of 4 centers, got shape \(1,\)"):
        mode_coverage(few, centers, 1.0, weights=[1.0])
