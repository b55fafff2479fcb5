"""Maximum mean discrepancies and what is made of them: against population values by quadrature, and against all pairs."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from genmod import metrics
from genmod.metrics import samples as checks

KERNELS = {
    "gaussian": metrics.GaussianKernel(1.0),
    "two_gaussians": metrics.SumKernel((metrics.GaussianKernel(0.5), metrics.GaussianKernel(2.0))),
    "laplacian": metrics.LaplacianKernel(0.8),
    "multiquadric": metrics.MultiquadricKernel(1.5, power=-0.3),
    "energy": metrics.EnergyKernel(),
    "polynomial": metrics.PolynomialKernel(2, scale=0.5),
}
MEAN, SD = 0.9, 1.4


def rows(seed, n, mean=0.0, sd=1.0, d=1):
    return np.random.default_rng(seed).normal(mean, sd, (n, d))


def population(kernel):
    """MMD^2 of N(0, 1) and N(MEAN, SD^2): of radial kernels by quadrature over the difference, else by both variables."""

    def expected(a, b):
        if isinstance(kernel, metrics.PolynomialKernel):
            nodes, weights = np.polynomial.hermite_e.hermegauss(20)
            x, y = (mean + sd * nodes[:, None] for mean, sd in (a, b))
            return weights @ kernel.matrix(x, y) @ weights / (2 * math.pi)
        law = norm(a[0] - b[0], math.hypot(a[1], b[1]))
        of_difference = lambda z: float(kernel.matrix(np.zeros((1, 1)), np.full((1, 1), z))[0, 0]) * law.pdf(z)  # noqa: E731
        return sum(quad(of_difference, *ends)[0] for ends in ((-12, 0), (0, 12)))

    p, q = (0.0, 1.0), (MEAN, SD)
    return expected(p, p) + expected(q, q) - 2 * expected(p, q)


@pytest.mark.parametrize("name", KERNELS)
def test_population_values(name):
    x, y = rows(0, 900), rows(1, 700, MEAN, SD)
    value, sem = metrics.squared_mmd(x, y, kernel=KERNELS[name])
    assert abs(value - population(KERNELS[name])) < 4 * sem < population(KERNELS[name])


def test_known_values():
    x, y = rows(2, 1_500), rows(3, 1_500, 1.0)
    expected = {
        "mmd": (metrics.squared_mmd(x, y, kernel=metrics.GaussianKernel(1.0)), 2 / math.sqrt(3) * (1 - math.exp(-1 / 6))),
        "kid": (metrics.kid(x, y), 4 + 32 - 2 * 7),  # E (xx' + 1)^3 = 1 + 3 m1 m1' + 3 m2 m2' + m3 m3'
        "energy": (metrics.energy_distance(x, y), 2 * folded(1.0) - 2 * folded(0.0)),
    }
    assert expected["mmd"][1] == pytest.approx(0.177268, abs=1e-6)
    for found, truth in expected.values():
        assert abs(found.value - truth) < 4 * found.sem < 0.5 * truth


def folded(mean):
    """E|z|, z ~ N(mean, 2)."""
    return 2 / math.sqrt(math.pi) * math.exp(-(mean**2) / 4) + mean * (1 - 2 * norm.cdf(-mean / math.sqrt(2)))


def test_cmmd():
    shift = np.array([3.0, -4.0, 6.0])
    x, y = rows(4, 600, d=3), rows(5, 500, d=3) + shift
    found = metrics.cmmd(x, y)
    truth = 2_000 * (100 / 102) ** 1.5 * (1 - math.exp(-(shift @ shift) / 204))
    assert abs(found.value - truth) < 4 * found.sem < truth / 4


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("name", KERNELS)
def test_all_pairs(name, d, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK", 50)
    n, m, kernel = 13, 9, KERNELS[name]
    x, y = rows(6, n, d=d), rows(7, m, 0.5, d=d)
    xx, yy, xy = kernel.matrix(x, x), kernel.matrix(y, y), kernel.matrix(x, y)
    off = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    unbiased = metrics.squared_mmd(x, y, kernel=kernel)
    biased = metrics.squared_mmd(x, y, kernel=kernel, statistic="biased")
    # The energy kernel of equal rows of 20 dimensions is the root of a rounding error, 1e-8.
    assert unbiased.value == pytest.approx(sum(off) - 2 * xy.mean(), rel=1e-12, abs=1e-12)
    assert biased.value == pytest.approx(xx.mean() + yy.mean() - 2 * xy.mean(), rel=1e-7, abs=1e-7)
    assert biased.value > 0 and biased.sem == unbiased.sem > 0


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_the_error_is_the_spread_over_repetitions(shift):
    rng, kernel, repetitions = np.random.default_rng(8), metrics.GaussianKernel(1.0), 800
    found = np.array(
        [
            metrics.squared_mmd(rng.normal(size=(30, 1)), rng.normal(shift, 1.3 if shift else 1.0, (50, 1)), kernel=kernel)
            for _ in range(repetitions)
        ]
    )
    values = found[:, 0] - found[:, 0].mean()
    variance = values.var(ddof=1)
    spread = math.sqrt(((values**4).mean() / variance**2 - 1) / repetitions)  # of the sample variance, relative
    spread += (found[:, 1] ** 2).std() / variance / math.sqrt(repetitions)
    ratio = (found[:, 1] ** 2).mean() / variance
    if shift:
        assert abs(ratio - 1) < 4 * spread < 0.6
    else:  # at least the variance, and about sqrt(3) times it because of the bound from below
        assert 1 - 4 * spread < ratio < 2 + 4 * spread
        assert abs(found[:, 0].mean()) < 4 * math.sqrt(variance / repetitions)


def test_p_values():
    rng = np.random.default_rng(9)
    p = [metrics.mmd_p_value(rng.normal(size=(9, 1)), rng.normal(size=(6, 1)), num_permutations=39, seed=i) for i in range(300)]
    for level in (0.1, 0.5):  # p is uniform on 1/40, ..., 1
        assert abs(np.mean(np.array(p) <= level) - level) < 4 * math.sqrt(level * (1 - level) / 300)
    assert metrics.mmd_p_value(rows(0, 60), rows(1, 60, 1.0), num_permutations=99) == 0.01
    assert metrics.mmd_p_value(rows(0, 20), rows(0, 20), num_permutations=99) > 0.9


def test_kid_of_subsets():
    x, y = rows(10, 200, d=4), rows(11, 200, 0.5, d=4)
    whole = metrics.kid(x, y)
    assert metrics.kid_of_subsets(x, y, subset_size=200, num_subsets=2).value == pytest.approx(whole.value, rel=1e-12)
    of_subsets = metrics.kid_of_subsets(x, y, subset_size=50, num_subsets=400)
    # About the value of all pairs the mean of 400 draws spreads by a 20th of a subset, whose spread is sqrt(3) `sem`.
    assert abs(of_subsets.value - whole.value) < 4 * math.sqrt(3) * of_subsets.sem / 20
    # The first order of the error is the same; of the second, which is smaller here, a subset has n / subset_size times as much.
    assert 0.9 * whole.sem < of_subsets.sem < 2 * whole.sem
    assert math.isnan(metrics.kid_of_subsets(x, y, subset_size=50, num_subsets=1).sem)
    with pytest.raises(ValueError, match="subset_size must be from 2 to the number of rows, 200, got 1000"):
        metrics.kid_of_subsets(x, y)


def test_median_bandwidth():
    x, y = np.array([[0.0], [1.0]]), np.array([[3.0]])
    fitted = metrics.GaussianKernel().fitted(x, y)
    assert fitted == metrics.GaussianKernel(2.0)  # of 1, 2, 3
    assert metrics.GaussianKernel(0.3).fitted(x, y) == metrics.GaussianKernel(0.3)
    assert metrics.SumKernel((metrics.LaplacianKernel(),)).fitted(x, y) == metrics.SumKernel((metrics.LaplacianKernel(2.0),))


def test_errors():
    with pytest.raises(TypeError, match=r"kernel must be a PairKernel such as GaussianKernel\(bandwidth\), got 'rbf'"):
        metrics.squared_mmd(rows(0, 5), rows(1, 5), kernel="rbf")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="statistic must be 'unbiased' or 'biased', got 'u'"):
        metrics.squared_mmd(rows(0, 5), rows(1, 5), statistic="u")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="bandwidth must be > 0 and finite, got 0"):
        metrics.GaussianKernel(0.0)
    with pytest.raises(ValueError, match=r"power must be in \(-1, 0\), got 0.5"):
        metrics.MultiquadricKernel(power=0.5)
    with pytest.raises(TypeError, match="kernels must be a tuple of at least one kernel"):
        metrics.SumKernel(())


@pytest.mark.slow
def test_ten_thousand_rows_fit_in_memory():
    x, y = rows(12, 10_000, d=2), rows(13, 10_000, 0.1, d=2)
    tracemalloc.start()
    found = metrics.squared_mmd(x, y, kernel=metrics.GaussianKernel(1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6  # a table of 10,000 x 10,000 has 800 MB
    assert abs(found.value - 2 / 3 * (1 - math.exp(-0.02 / 6))) < 4 * found.sem
