"""Errors of correlated series: AR(1), whose autocorrelation time is known, sums by definition, the delta method, coverage."""

import numpy as np
import pytest
from scipy import signal, stats

import genmod as gm
from genmod.core.series import lagged_sums
from genmod.metrics import binning_errors, gamma_method, jackknife, mean_and_sem, ratio_and_sem


def autoregression(rng, a, *shape):
    """Stationary x' = a x + noise of variance 1 along the last axis, and the exact variance of its mean."""
    noise = rng.standard_normal(shape) * np.sqrt(1 - a**2)
    noise[..., 0] /= np.sqrt(1 - a**2)
    n = shape[-1]
    t = np.arange(1, n)
    return np.asarray(signal.lfilter([1.0], [1.0, -a], noise)), (1 + 2 * np.sum((1 - t / n) * a**t)) / n


def ratio(top, bottom):
    return top / bottom


def test_lagged_sums():
    x = np.random.default_rng(0).standard_normal((2, 37))
    wanted = [[row[: 37 - t] @ row[t:] for t in range(37)] for row in x]
    np.testing.assert_allclose(lagged_sums(x), wanted, atol=1e-12)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_an_autoregression(a):
    n = 200_000
    x, variance = autoregression(np.random.default_rng(1), a, n)
    found = gamma_method(x)
    tau = (1 + a) / (2 * (1 - a))
    assert abs(found.tau_int - tau) < 4 * found.tau_int_sem < 0.2 * tau
    assert abs(found.sem - np.sqrt(variance)) < 4 * found.sem_error
    assert found.value == pytest.approx(x.mean(), abs=1e-15) and abs(found.value) < 4 * found.sem
    # The other convention, of the samplers.
    assert abs(float(gm.samplers.sokal_autocorrelation_time(x[None])) - 2 * tau) < 8 * found.tau_int_sem
    # Blocks of many autocorrelation times see it, blocks of one draw do not.
    bins = binning_errors(x, block_sizes=[1, 400])
    np.testing.assert_array_equal(bins.num_blocks, [n, 500])
    assert abs(bins.sem[1] - np.sqrt(variance)) < 4 * bins.sem_error[1] + 0.5 * tau / 400 * bins.sem[1]
    assert bins.sem[0] == pytest.approx(float(mean_and_sem(x)[1]), rel=1e-12)


def test_gamma_method_by_its_definition():
    """Three chains, two series, a ratio: every sum as it is written."""
    num_chains, n, stretch = 3, 60, 2.0
    noise, _ = autoregression(np.random.default_rng(2), 0.6, 2, num_chains, n)
    v, w = 2.0 + noise[0].ravel(), 5.0 + (noise[0] + noise[1]).ravel()
    found = gamma_method((v, w), ratio, num_chains=num_chains, stretch=stretch)
    mean_v, mean_w, total = v.mean(), w.mean(), num_chains * n
    u = ((v - mean_v) / mean_w - mean_v / mean_w**2 * (w - mean_w)).reshape(num_chains, n)

    def gamma(t):
        return sum(u[r, i] * u[r, i + t] for r in range(num_chains) for i in range(n - t)) / (total - num_chains * t)

    window, c = 0, gamma(0)
    while True:
        window += 1
        c += 2 * gamma(window)
        tau = c / (2 * gamma(0))
        decay = stretch / np.log((2 * tau + 1) / (2 * tau - 1))
        if np.exp(-window / decay) - decay / np.sqrt(window * total) < 0:
            break
    gammas = np.array([gamma(t) for t in range(window + 1)]) + c / total  # the bias of each
    c = gammas[0] + 2 * gammas[1:].sum()
    tau = c / (2 * gammas[0])
    # Derivatives by differences have an error of the order 1 / n.
    assert found.value == pytest.approx(mean_v / mean_w, rel=1e-12)
    assert found.window == window > 1
    wanted = [np.sqrt(c / total), np.sqrt(c / total * (window + 0.5) / total), tau]
    np.testing.assert_allclose([found.sem, found.sem_error, found.tau_int], wanted, rtol=2e-3)
    assert found.tau_int_sem == pytest.approx(2 * tau * np.sqrt((window + 0.5 - tau) / total), rel=2e-3)
    assert str(found).startswith(f"{mean_v / mean_w:.4g} +- ")


def test_coverage():
    """Of a ratio of means: 68% and 95% of intervals hold the truth."""
    num, n, a = 1_000, 4_000, 0.8
    noise, _ = autoregression(np.random.default_rng(3), a, num, 2, n)
    z = []
    for first, second in noise:
        series = (1.0 + first, 4.0 + first + second)
        for found in (gamma_method(series, ratio, num_chains=2), jackknife(series, ratio, block_size=100)):
            z.append((found.value - 0.25) / found.sem)
    for values in np.array(z).reshape(num, 2).T:
        for level, width in ((0.683, 1.0), (0.954, 2.0)):
            inside = (np.abs(values) < width).sum()
            assert stats.binomtest(int(inside), num, level).pvalue > 1e-4


def test_jackknife_against_closed_forms():
    rng = np.random.default_rng(4)
    v, n = rng.gamma(2.0, size=60), 60
    # Of a mean it is exact; of its square it knows the bias exactly, s^2 / n; of a ratio it is the delta method up to 1 / n.
    mean = jackknife(v, block_size=1)
    np.testing.assert_allclose(mean[:2], mean_and_sem(v), rtol=1e-12)
    square = jackknife(v, np.square, block_size=1)
    np.testing.assert_allclose([mean.bias, square.bias], [0.0, v.var(ddof=1) / n], atol=1e-12)
    u = v + rng.gamma(3.0, size=n)
    np.testing.assert_allclose(jackknife((v, u), ratio, block_size=1)[:2], ratio_and_sem(v, u), rtol=2 / n)
    # Blocks: of a mean they are the bins; a size that does not divide the chains makes 3 x 2 blocks of 8 to 12 draws.
    blocked = jackknife(v, block_size=6, num_chains=5)
    assert blocked.sem == pytest.approx(v.reshape(10, 6).mean(1).std(ddof=1) / np.sqrt(10), rel=1e-12)
    assert blocked.sem == pytest.approx(float(binning_errors(v, block_sizes=[6], num_chains=5).sem[0]), rel=1e-12)
    np.testing.assert_array_equal(binning_errors(v, block_sizes=[8, 7], num_chains=3).num_blocks, [6, 6])
    assert jackknife(v, block_size=8, num_chains=3).value == pytest.approx(v.mean(), rel=1e-12)


def test_unequal_blocks():
    """Of 7 draws in blocks of 2, 2 and 3: the variance by sizes (Busing et al. 1999), by hand for a mean."""
    v = np.array([1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 3.0])
    blocks = [v[:2], v[2:4], v[4:]]
    left = np.array([np.mean(np.delete(v, range(*span))) for span in ((0, 2), (2, 4), (4, 7))])
    h = np.array([7 / len(b) for b in blocks])
    pseudo = h * v.mean() - (h - 1) * left  # means of the blocks
    np.testing.assert_allclose(pseudo, [b.mean() for b in blocks])
    center = 3 * v.mean() - ((1 - 1 / h) * left).sum()
    wanted = np.sqrt(np.mean((pseudo - center) ** 2 / (h - 1)))
    found = jackknife(v, block_size=2)
    np.testing.assert_allclose(found, [v.mean(), wanted, v.mean() - center], atol=1e-12)


def test_weights():
    """Reweighting: draws of N(0, 1) with w = exp(a x) are those of N(a, 1); the ratio of weighted means has its delta method."""
    rng, n, a = np.random.default_rng(5), 20_000, 0.4
    x = rng.standard_normal(n)
    weight = 7.0 * np.exp(a * x)
    wanted, sem = mean_and_sem(x, weight)
    for found in (gamma_method(x, weight=weight), jackknife(x, block_size=1, weight=weight)):
        assert found.value == pytest.approx(float(wanted), rel=1e-12)
        assert abs(found.value - a) < 4 * found.sem
        assert found.sem == pytest.approx(float(sem), rel=0.03)
    assert float(binning_errors(x, block_sizes=[1], weight=weight).sem[0]) == pytest.approx(float(sem), rel=1e-12)
    # The variance is 1; and the delta method of a ratio of weighted means.
    variance = jackknife((x**2, x), lambda square, mean: square - mean**2, block_size=10, weight=weight)
    assert abs(variance.value - 1.0) < 4 * variance.sem < 0.2
    tops = 2.0 + x, 3.0 + x**2
    wanted, sem = ratio_and_sem(*tops, weight)
    found = gamma_method(tops, ratio, weight=weight)
    assert found.value == pytest.approx(float(wanted)) and found.sem == pytest.approx(float(sem), rel=0.03)
    # A draw of weight 0 is not there.
    some = np.where(np.arange(n) % 2, 0.0, 1.0)
    assert jackknife(x, block_size=2, weight=some).value == pytest.approx(x[::2].mean(), abs=1e-14)


def test_arrays():
    """A series of arrays, and a function with an array as its value: as each by itself."""
    x, _ = autoregression(np.random.default_rng(6), 0.5, 2, 3, 400)
    rows = 3.0 + np.moveaxis(x, -1, 0)  # (400, 2, 3)

    def squares(mean, other):
        assert mean.shape == (2, 3) and np.shape(other) == ()
        return mean[:, 0] ** 2 + other

    whole = gamma_method((rows, rows[:, 0, 1]), squares, num_chains=2)
    blocks = jackknife((rows, rows[:, 0, 1]), squares, block_size=20)
    bins = binning_errors(rows)
    np.testing.assert_array_equal(bins.block_sizes, [1, 2, 4, 8, 16])
    for i in range(2):
        series = (rows[:, i, 0], rows[:, 0, 1])
        one = gamma_method(series, lambda mean, other: mean**2 + other, num_chains=2)
        np.testing.assert_allclose([part[i] for part in whole], one, rtol=1e-10)
        one = jackknife(series, lambda mean, other: mean**2 + other, block_size=20)
        np.testing.assert_allclose([part[i] for part in blocks], one, rtol=1e-9)
        np.testing.assert_allclose(bins.sem[:, i, 2], binning_errors(rows[:, i, 2]).sem, rtol=1e-12)
    means = gamma_method(rows)
    assert means.sem.shape == (2, 3) and means.tau_int[1, 2] == gamma_method(rows[:, 1, 2]).tau_int


def test_what_cannot_be_known_is_nan():
    stuck = gamma_method(np.full(50, 0.1))
    assert stuck.value == pytest.approx(0.1) and np.isnan(stuck[1:]).all()
    x = np.random.default_rng(7).standard_normal((50, 2)) - [0.0, 9.0]
    found = gamma_method(x, lambda mean: np.where(mean < -1, np.nan, mean))
    assert np.isnan(found.sem[1]) and found.sem[0] == pytest.approx(gamma_method(x[:, 0]).sem, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gamma_method(x[:7]), "at least 8 draws a chain, got 7"),
        (lambda x: gamma_method(x, num_chains=10), "at least 8 draws a chain, got 4"),
        (lambda x: gamma_method(x, num_chains=3), "num_chains = 3 chains of equal length, got 40 draws"),
        (lambda x: gamma_method(x, num_chains=0), "num_chains must be an integer >= 1"),
        (lambda x: gamma_method(x, stretch=0.0), "stretch must be > 0"),
        (lambda x: gamma_method(1.0), r"series \(n,\) \+ any axes"),
        (lambda x: gamma_method((x, x[1:]), ratio), r"of the same n, got shapes \[\(40,\), \(39,\)\]"),
        (lambda x: gamma_method((x, x)), "function must be given for 2 series"),
        (lambda x: gamma_method(np.where(x == x[3], np.nan, x)), "values must be finite, got 1 of 40 draws"),
        (lambda x: gamma_method(x, weight=-np.ones(40)), "weight must be 40 finite numbers >= 0"),
        (lambda x: jackknife(x, block_size=21), "at least two blocks, got 21 for 1 chain"),
        (lambda x: jackknife(x, block_size=5, num_chains=10), r"at least two blocks, got 5 for 10 chain\(s\) of 4 draws"),
        (lambda x: jackknife(x, block_size=0), "block_size must be an integer >= 1"),
        (lambda x: jackknife(x, block_size=2, weight=(np.arange(40) < 2)), "weight must not lie in a single block"),
        (lambda x: binning_errors(x, block_sizes=[1, 40]), "at least two blocks, got 40"),
        (lambda x: binning_errors(x, block_sizes=[1.5]), "block_sizes must be integers"),
        (lambda x: binning_errors(x[:1]), "at least two blocks, got 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(8).standard_normal(40))


def test_a_function_is_wanted():
    with pytest.raises(TypeError, match="function must be a function"):
        gamma_method(np.ones(40), 3)  # type: ignore[arg-type]
