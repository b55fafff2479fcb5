"""Discrepancies of laws by every method, against numbers that are known and against SciPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genmod.data import TwoBumps
from genmod.densities import (
    BernoulliHead,
    CategoricalHead,
    Factorized,
    FullNormal,
    Normal,
    NormalHead,
    PoissonHead,
    Uniform,
    kl_one,
)
from genmod.inference import (
    KL,
    ChiSquare,
    ClosedForm,
    CrossEntropy,
    Enumerated,
    JensenShannon,
    Law,
    MonteCarlo,
    Quadrature,
    RenyiDivergence,
    Wasserstein,
    discrepancy,
    entropy,
)
from genmod.samplers.weights import log_mean

pytestmark = pytest.mark.usefixtures("quick_compile")
LINE = Quadrature(-25.0, 25.0)
BUMPS = Law(TwoBumps(), {})


def gaussian(mean, scale):
    params = {"mean": jnp.array([float(mean)]), "lower": jnp.zeros((1, 1)), "log_scale": jnp.log(jnp.array([float(scale)]))}
    return Law(FullNormal((1,)), params)


def value(p, q, kind, method: Any = LINE):
    found = discrepancy(p, q, kind, method)
    assert found.sem == 0 and found.method == type(method).__name__
    return found.value


def slopes(fn, mean, scale, step):
    """Derivatives of the first order in the mean and in the scale, and of the second."""
    ends = [[fn(mean + i * step, scale) for i in (-1, 0, 1)], [fn(mean, scale + i * step) for i in (-1, 0, 1)]]
    return [(e[2] - e[0]) / (2 * step) for e in ends], [(e[2] - 2 * e[1] + e[0]) / step**2 for e in ends]


def test_best_gaussians_of_two_bumps(x64):
    """Forward: the moments. Reverse: one bump; between them a second, higher minimum."""

    def forward(mean, scale):
        return value(BUMPS, gaussian(mean, scale), CrossEntropy())

    def reverse(mean, scale):
        return value(gaussian(mean, scale), BUMPS, KL())

    first, second = slopes(forward, 0.0, 10**0.5, 1e-3)
    assert np.abs(first).max() < 1e-6 and min(second) > 0
    for mean in (-2.984306, 2.984306):
        assert reverse(mean, 1.023369) == pytest.approx(0.688769, abs=1e-6)
        first, second = slopes(reverse, mean, 1.023369, 1e-3)
        assert np.abs(first).max() < 1e-5 and min(second) > 0
    assert reverse(0.0, 2.743769) == pytest.approx(0.840621, abs=1e-6)
    first, second = slopes(reverse, 0.0, 2.743769, 1e-3)
    assert np.abs(first).max() < 1e-5 and min(second) > 0


@pytest.mark.parametrize(("scale", "known"), [(0.7, (1.873470, 2.369544, 1.878099)), (0.7**0.5, (1.976146, 2.378868, 1.978869))])
def test_limits_of_density_estimation(scale, known, x64):
    """The entropy, the best Gaussian, and a kernel density estimate of width 0.3 of infinitely many data."""
    p = Law(TwoBumps((0.4, 0.6), (-2.0, 3.0), (1.0, scale)), {})
    blurred = Law(TwoBumps((0.4, 0.6), (-2.0, 3.0), (1.09**0.5, (scale**2 + 0.09) ** 0.5)), {})
    best = gaussian(1.0, (0.4 * (1 + 9) + 0.6 * (scale**2 + 4)) ** 0.5)
    found = entropy(p, LINE).value, value(p, best, CrossEntropy()), value(p, blurred, CrossEntropy())
    np.testing.assert_allclose(found, known, atol=6e-7)


def test_counts_and_a_softmax(x64):
    """H(p, q) = H(p) + KL(p || q) in float64, by formula and by table, which agree."""
    law = Factorized(CategoricalHead(3), ())
    p = Law(law, {"raw": jnp.log(jnp.array([50.0, 30.0, 20.0]))})
    q = Law(law, {"raw": jnp.array([0.2, -0.1, 0.0])})
    masses = np.array([0.5, 0.3, 0.2]), np.exp([0.2, -0.1, 0.0]) / np.exp([0.2, -0.1, 0.0]).sum()
    for method in (ClosedForm(), Enumerated()):
        parts = value(p, q, CrossEntropy(), method), entropy(p, method).value, value(p, q, KL(), method)
        assert abs(parts[0] - parts[1] - parts[2]) < 1e-12
        np.testing.assert_allclose(parts[1:], [stats.entropy(masses[0]), stats.entropy(*masses)], rtol=1e-12)
        for alpha in (0.5, 2.0):
            wanted = np.log(np.sum(masses[0] ** alpha * masses[1] ** (1 - alpha))) / (alpha - 1)
            assert value(p, q, RenyiDivergence(alpha), method) == pytest.approx(wanted, rel=1e-12)
        chi_square = np.sum((masses[0] - masses[1]) ** 2 / masses[1])
        assert value(p, q, ChiSquare(), method) == pytest.approx(chi_square, rel=1e-12)
    from_cumulative = np.abs(np.cumsum(masses[0] - masses[1])).sum()
    assert value(p, q, Wasserstein(1), Enumerated()) == pytest.approx(from_cumulative, rel=1e-12)
    middle = (masses[0] + masses[1]) / 2
    shannon = 0.5 * stats.entropy(masses[0], middle) + 0.5 * stats.entropy(masses[1], middle)
    assert value(p, q, JensenShannon(), Enumerated()) == pytest.approx(shannon, rel=1e-12)


def test_gaussians_by_formula_and_by_quadrature(x64):
    p, q = gaussian(0.5, 1.3), gaussian(-1.0, 2.0)
    for kind in (KL(), CrossEntropy(), ChiSquare(), RenyiDivergence(0.3), RenyiDivergence(1.4)):
        assert value(p, q, kind, ClosedForm()) == pytest.approx(value(p, q, kind), rel=1e-9)
    assert entropy(p, ClosedForm()).value == pytest.approx(entropy(p, LINE).value, rel=1e-9)
    for order in (1, 2):  # an error of the order of the squared spacing
        wanted = value(p, q, Wasserstein(order), ClosedForm())
        errors = [abs(value(p, q, Wasserstein(order), Quadrature(-25.0, 25.0, num)) - wanted) for num in (1_001, 4_001)]
        assert errors[1] < errors[0] / 8 < 1e-4
    assert value(q, p, ChiSquare(), ClosedForm()) == np.inf == value(q, p, RenyiDivergence(2.0), ClosedForm())
    assert value(p, gaussian(0.5, 1.3), Wasserstein(1), ClosedForm()) == 0.0
    # The optimum of a GAN: the sum of both halves, less 2 log 2.
    gan = 2 * value(gaussian(0, 1), gaussian(1, 1), JensenShannon()) - 2 * np.log(2)
    assert gan == pytest.approx(-1.163451, abs=1e-6)


def full(key, dim):
    keys = jax.random.split(key, 3)
    mean, log_scale = jax.random.normal(keys[0], (dim,)), 0.3 * jax.random.normal(keys[1], (dim,))
    return Law(FullNormal((dim,)), {"mean": mean, "lower": 0.4 * jax.random.normal(keys[2], (dim, dim)), "log_scale": log_scale})


def test_full_gaussians(key, x64):
    """Against quadrature in the plane, and W2 against the root of a matrix; a diagonal one is a full one."""
    p, q = full(key, 2), full(jax.random.split(key)[0], 2)
    plane = Quadrature(-9.0, 9.0, 181)
    for kind in (KL(), RenyiDivergence(0.6)):
        assert value(p, q, kind, ClosedForm()) == pytest.approx(value(p, q, kind, plane), rel=1e-7)
    assert entropy(p, ClosedForm()).value == pytest.approx(entropy(p, plane).value, rel=1e-7)
    factors = [np.asarray(law.distribution.factor(law.params)) for law in (p, q)]
    cov = [factor @ factor.T for factor in factors]

    def root(a):
        values, vectors = np.linalg.eigh(a)
        return vectors * np.sqrt(values) @ vectors.T

    squares = np.sum(np.asarray(p.params["mean"] - q.params["mean"]) ** 2) + np.trace(cov[0] + cov[1])
    squares -= 2 * np.trace(root(root(cov[1]) @ cov[0] @ root(cov[1])))
    assert value(p, q, Wasserstein(), ClosedForm()) == pytest.approx(squares**0.5, rel=1e-10)
    head = NormalHead(2.0)
    diagonal = Law(Factorized(head, (2,)), {"raw": jnp.array([[1.0], [-0.5]])})
    twin = {"mean": jnp.array([1.0, -0.5]), "lower": jnp.zeros((2, 2)), "log_scale": jnp.full(2, np.log(2.0))}
    for kind in (KL(), RenyiDivergence(0.6), Wasserstein()):
        wanted = value(p, Law(FullNormal((2,)), twin), kind, ClosedForm())
        assert value(p, diagonal, kind, ClosedForm()) == pytest.approx(wanted, rel=1e-12)


def test_poisson_and_bernoulli(x64):
    """Products over entries, with SciPy's masses."""
    rates, others = np.array([2.0, 5.0]), np.array([3.0, 4.0])
    p, q = (Law(Factorized(PoissonHead(), (2,)), {"raw": 20 * jnp.arctanh(jnp.log(r) / 20)[:, None]}) for r in (rates, others))
    k = np.arange(80)[:, None]
    masses = stats.poisson.pmf(k, rates), stats.poisson.pmf(k, others)
    wanted = np.log(np.sum(masses[0] ** 1.7 * masses[1] ** -0.7, 0)).sum() / 0.7
    assert value(p, q, RenyiDivergence(1.7), ClosedForm()) == pytest.approx(wanted, rel=1e-10)
    kl = np.sum(rates * np.log(rates / others) + others - rates)
    assert value(p, q, KL(), ClosedForm()) == pytest.approx(kl, rel=1e-10)
    p, q = (Law(Factorized(BernoulliHead(), (2,)), {"raw": jnp.array(raw)[:, None]}) for raw in ([0.3, -1.0], [1.2, 0.1]))
    for kind in (KL(), CrossEntropy(), RenyiDivergence(0.5), ChiSquare()):
        assert value(p, q, kind, ClosedForm()) == pytest.approx(value(p, q, kind, Enumerated()), rel=1e-10)
    assert entropy(p, ClosedForm()).value == pytest.approx(entropy(p, Enumerated()).value, rel=1e-10)


def test_importance_sampling_and_chi_square(key, x64):
    """ESS / N tends to 1 / (1 + chi^2); where k-hat is large no draws can say what it is."""
    limits = {1.0: 1.39e-11, 3.0: 0.105272, 6.0: 0.164591}
    for scale, limit in limits.items():
        chi_square = value(gaussian(5, 1), gaussian(0, scale), ChiSquare(), ClosedForm())
        assert 1 / (1 + chi_square) == pytest.approx(limit, rel=1e-5 if scale > 1 else 5e-3)
    p, q = gaussian(5, 1), gaussian(0, 6)
    x = q.distribution.sample(q.params, key, (100_000,))
    log_weights = p.distribution.log_prob(p.params, x) - q.distribution.log_prob(q.params, x)
    assert float(log_mean(log_weights).effective_size) / 100_000 == pytest.approx(limits[6.0], rel=0.03)
    found = discrepancy(gaussian(5, 1), gaussian(0, 1), ChiSquare(), MonteCarlo(10_000), key=key)
    assert found.extras["k_hat"] > 0.7 and abs(found.value - np.expm1(25.0)) > 4 * found.sem


def test_monte_carlo_within_its_errors(key):
    """Of every kind, in single precision; the error falls as it says."""
    p, q = gaussian(0.5, 1.0), gaussian(-0.5, 1.6)
    kinds = (KL(), CrossEntropy(), JensenShannon(), RenyiDivergence(0.5), RenyiDivergence(2.0), ChiSquare())
    for i, kind in enumerate(kinds):
        found = discrepancy(p, q, kind, MonteCarlo(20_000), key=jax.random.fold_in(key, i))
        exact = discrepancy(p, q, kind, LINE).value
        assert abs(found.value - exact) < 4 * found.sem and 0 < found.sem < 0.05 and found.method == "MonteCarlo"
        assert found.extras.get("k_hat", 0.0) < 0.7
    found = entropy(p, MonteCarlo(20_000), key=key)
    assert abs(found.value - entropy(p, ClosedForm()).value) < 4 * found.sem


def test_masses_that_are_missing(key):
    """Where q has none the KL is infinite, and the Jensen-Shannon divergence finite: log 2 of laws that do not meet."""
    low, high = Law(Uniform((1,), 0.0, 1.0), {}), Law(Uniform((1,), 2.0, 3.0), {})
    grid = Quadrature(-0.5, 3.5, 4_001, tolerance=2e-3)
    assert value(low, high, KL(), grid) == np.inf == value(low, high, ChiSquare(), grid)
    assert value(low, high, JensenShannon(), grid) == pytest.approx(np.log(2), rel=2e-3)
    found = discrepancy(low, high, JensenShannon(), MonteCarlo(100), key=key)
    assert found.value == pytest.approx(np.log(2), rel=1e-6)
    assert discrepancy(low, high, ChiSquare(), MonteCarlo(100), key=key).value == np.inf
    assert entropy(high, ClosedForm()).value == 0.0


def test_kl_has_not_changed(x64):
    p, q = gaussian(0.5, 1.3), Law(Normal((1,), 2.0), {})
    assert float(kl_one(*p, *q).sum()) == pytest.approx(np.log(2 / 1.3) + (1.3**2 + 0.25) / 8 - 0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: discrepancy(p, p, JensenShannon(), ClosedForm()), ValueError, "no closed form of JensenShannon"),
        (lambda p: discrepancy(p, p, KL(), MonteCarlo(10)), ValueError, "pass key="),
        (lambda p: discrepancy(p, p, KL(), Quadrature(-1.0, 1.0)), ValueError, "must hold all mass"),
        (lambda p: discrepancy(p, p, KL(), Enumerated()), TypeError, "discrete"),
        (lambda p: discrepancy(p, p, Wasserstein(), MonteCarlo(10), key=jax.random.key(0)), TypeError, "gm.metrics.wasserstein"),
        (lambda p: discrepancy(p, Law(Normal((2,)), {}), KL(), ClosedForm()), ValueError, "same events"),
        (lambda p: discrepancy(p, p.distribution, KL(), ClosedForm()), TypeError, "q must be gm.inference.Law"),
        (lambda p: discrepancy(p, p, KL, ClosedForm()), TypeError, "kind must be"),
        (lambda p: discrepancy(p, p, KL(), 100), TypeError, "method must be"),
        (lambda p: RenyiDivergence(1.0), ValueError, "alpha must not be 1"),
        (lambda p: Wasserstein(0.5), ValueError, "order"),
        (lambda p: Quadrature(1.0, -1.0), ValueError, "low < high"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(gaussian(0, 1))


@pytest.mark.parametrize("kind", [KL(), CrossEntropy(), RenyiDivergence(2.0), ChiSquare()])
def test_levels_that_neither_law_has_cost_nothing(kind):
    law = Factorized(CategoricalHead(4), (1,))
    p, q = ({"raw": jnp.log(jnp.array([row]))} for row in ([0.5, 0.5, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0]))
    by_formula = discrepancy(Law(law, p), Law(law, q), kind, ClosedForm()).value
    assert by_formula == pytest.approx(discrepancy(Law(law, p), Law(law, q), kind, Enumerated()).value, rel=1e-6)
    gradient = jax.grad(lambda raw: law.head.kl(raw, law.head, q["raw"]).sum())(p["raw"])
    np.testing.assert_allclose(gradient, [[0.274653, -0.274653, 0.0, 0.0]], atol=1e-6)
