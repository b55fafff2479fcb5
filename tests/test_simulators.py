"""Simulators whose posterior is known: against Bayes' rule, quadrature, matrix exponentials, and their own draws."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from genmod import metrics
from genmod.core.distribution import Likelihood
from genmod.densities import LinearGaussianSimulator, QueueSimulator, TwoMoonsSimulator

pytestmark = pytest.mark.usefixtures("quick_compile")
LINEAR = LinearGaussianSimulator(3, prior_variance=0.4, noise_variance=0.1)
MOONS = TwoMoonsSimulator()
QUEUE = QueueSimulator(num_times=3, capacity=4, low=0.2, high=3.0)
ALL = pytest.mark.parametrize(
    "simulator", [pytest.param(LINEAR, marks=pytest.mark.slow), MOONS, QUEUE], ids=["linear", "moons", "queue"]
)
NUM_SEM = 4.5


def check_shares(counts, shares):
    """Counts of independent draws against the shares of their cells, by chi-square; rare cells are put together."""
    order = np.argsort(shares)
    counts, expected = np.asarray(counts, float)[order], (shares / shares.sum())[order] * counts.sum()
    rare = np.searchsorted(np.cumsum(expected), 5.0) + 1
    counts, expected = (np.append(a[rare:], a[:rare].sum()) for a in (counts, expected))
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) > 3 and scipy.stats.chi2.sf(statistic, len(counts) - 1) > 1e-5, (statistic, len(counts))


def midpoints(low, high, num):
    """The centres of num x num cells of a square, (num, num, 2), and the area of one."""
    ends = np.linspace(low, high, num + 1)
    middle = (ends[1:] + ends[:-1]) / 2
    return np.stack(np.meshgrid(middle, middle, indexing="ij"), -1).astype(np.float32), (ends[1] - ends[0]) ** 2


def blocks(table, num):
    """The sums of num x num equal blocks, (num^2,)."""
    return table.reshape(num, len(table) // num, num, -1).sum((1, 3)).ravel()


def counted(theta, low, high, num):
    """How many draws lie in each of num x num cells of a square, (num^2,)."""
    return np.histogram2d(*np.asarray(theta, float).T, bins=num, range=[(low, high)] * 2)[0].ravel()


def joint(simulator, key, num):
    keys = jax.random.split(key)
    theta = simulator.prior.sample({}, keys[0], num)
    return theta, simulator.sample({}, keys[1], (), theta)


# --- all ----------------------------------------------------------------------------------------------------------------------


@ALL
def test_ranks_of_simulated_truths_are_uniform(simulator, key):
    num_draws = 9
    theta, x = joint(simulator, key, 200 if simulator is QUEUE else 1_000)
    draws = simulator.posterior.sample({}, jax.random.key(1), num_draws, jnp.asarray(x, float))
    ranks = metrics.calibration_ranks(theta, np.moveaxis(np.asarray(draws), 0, 1))
    uniformity = metrics.rank_uniformity(ranks, num_draws)
    assert uniformity.p_value.shape == theta.shape[1:] and (uniformity.p_value > 1e-4).all()
    low, high = simulator.prior.support
    assert ((draws >= low) & (draws <= high)).all()


@ALL
@pytest.mark.slow
def test_gradients_in_theta_and_float64(simulator, x64, key):
    """Against central differences, whose error is step^2 / 6 times the third derivative, at most 2 / 0.1^3 for these."""
    theta, x = joint(simulator, key, 4)
    assert theta.dtype == jnp.float64 and x.dtype == simulator.event.dtype
    slope = jax.jit(jax.vmap(jax.grad(lambda theta, x: simulator.log_prob_one({}, x, theta))))(theta, x)
    found, step = np.zeros(theta.shape), 1e-5
    for i, ahead in enumerate(step * np.eye(theta.shape[1])):
        found[:, i] = (simulator.log_prob({}, x, theta + ahead[None]) - simulator.log_prob({}, x, theta - ahead[None])) / 2 / step
    np.testing.assert_allclose(slope, found, rtol=1e-6, atol=1e-6)
    assert np.abs(found).max() > 0.1
    drawn = simulator.posterior.sample({}, key, (), jnp.asarray(x, float))
    assert drawn.dtype == jnp.float64 and drawn.shape == theta.shape
    assert simulator.sample({}, key, (), theta.astype(jnp.float32)).shape == x.shape  # a context narrower than the default


@ALL
def test_the_posterior_says_what_it_is(simulator):
    posterior = simulator.posterior
    assert posterior.event == simulator.prior.event and posterior.context_shape == simulator.event_shape
    assert posterior.support == simulator.prior.support and posterior == type(simulator.posterior)(simulator)
    exact = simulator is not MOONS
    assert posterior.likelihood is (Likelihood.EXACT if exact else Likelihood.UNNORMALIZED)
    assert simulator.init(jax.random.key(0), simulator.event.example(), jnp.ones((1, *simulator.context_shape))) == {}
    with pytest.raises(ValueError, match=f"^{type(simulator).__name__} is conditional: pass context of shape"):
        simulator.sample({}, jax.random.key(0))


# --- linear Gaussian ----------------------------------------------------------------------------------------------------------


def test_the_linear_posterior_is_that_of_bayes_rule(key):
    theta, x = joint(LINEAR, key, 2_000)
    evidence = scipy.stats.norm.logpdf(x, 0.0, math.sqrt(0.4 + 0.1)).sum(-1)
    wanted = LINEAR.prior.log_prob({}, theta) + LINEAR.log_prob({}, x, theta) - evidence
    np.testing.assert_allclose(LINEAR.posterior.log_prob({}, theta, x), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        LINEAR.log_prob({}, x, theta), scipy.stats.norm.logpdf(x, theta, math.sqrt(0.1)).sum(-1), rtol=1e-5, atol=1e-5
    )
    assert scipy.stats.kstest((x - theta).ravel() / math.sqrt(0.1), "norm").pvalue > 1e-4
    drawn = LINEAR.posterior.sample({}, key, 4_000, x[0])
    assert scipy.stats.kstest(((drawn - 0.8 * x[:1]) / math.sqrt(0.08)).ravel(), "norm").pvalue > 1e-4


# --- two moons ----------------------------------------------------------------------------------------------------------------


def test_a_crescent_has_mass_one_and_its_mirror_image_is_the_same(key):
    theta = np.array([0.6, -0.3], np.float32)
    center = np.array([0.25 - 0.3 / math.sqrt(2), -0.9 / math.sqrt(2)])
    grid, area = midpoints(-0.16, 0.16, 320)  # an edge of the cells is that of the half-plane
    x = (grid + center).astype(np.float32)
    mass = area * np.exp(np.asarray(MOONS.log_prob({}, x, theta), float))
    np.testing.assert_allclose(mass.sum(), 1.0, atol=2e-3)  # x is rounded to 6e-8, by which one of 320 rows may leave or enter
    drawn = MOONS.sample({}, key, 4_000, theta)
    inside = np.asarray(drawn, float) - center
    check_shares(counted(inside, -0.16, 0.16, 16), blocks(mass, 16))
    mirror = -theta[::-1]
    np.testing.assert_allclose(MOONS.log_prob({}, drawn, mirror), MOONS.log_prob({}, drawn, theta), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "theta", [pytest.param((0.6, -0.3), marks=pytest.mark.slow), (0.97, 0.9)], ids=["inside", "cut_by_the_box"]
)
def test_draws_of_the_moons_are_those_of_the_density(theta, key):
    x = MOONS.sample({}, key, (), jnp.array(theta))
    grid, area = midpoints(-1.0, 1.0, 800)
    density = np.exp(np.asarray(MOONS.posterior.log_prob({}, grid, x), float))
    drawn = np.asarray(MOONS.posterior.sample({}, jax.random.key(3), 4_000, x))
    check_shares(counted(drawn, -1.0, 1.0, 80), blocks(density, 80))
    upper = (drawn.sum(-1) > 0).mean()
    assert abs(upper - 0.5) < NUM_SEM * 0.5 / math.sqrt(4_000)
    if theta == (0.97, 0.9):
        whole = math.exp(-math.log(4.0)) * 2  # the two crescents, if the box cut nothing off
        assert area * density.sum() < 0.9 * whole
        assert np.isneginf(MOONS.posterior.log_prob({}, np.array([1.01, 0.9], np.float32), x))


def test_what_no_theta_makes_has_no_draws():
    x = np.array([[5.0, 0.0], [-0.2, 0.1]], np.float32)
    drawn = MOONS.posterior.sample({}, jax.random.key(0), 3, x)
    assert np.isnan(drawn[:, 0]).all() and np.isfinite(drawn[:, 1]).all()


# --- queue --------------------------------------------------------------------------------------------------------------------


def generator(theta, capacity):
    q = np.diag(np.full(capacity, theta[0]), 1) + np.diag(np.full(capacity, theta[1]), -1)
    return q - np.diag(q.sum(1))


def by_uniformization(theta, capacity):
    """exp(Q) by a series without cancellation: every entry to a few digits less than float64 has."""
    total = sum(theta)
    jumps = np.eye(capacity + 1) + generator(theta, capacity) / total
    return sum(scipy.stats.poisson.pmf(k, total) * np.linalg.matrix_power(jumps, k) for k in range(120))


RATES = np.array([[0.2, 3.0], [1.9, 0.1], [0.05, 0.03], [8.0, 8.0]])


@pytest.mark.parametrize("bits", [32, 64])
def test_transitions_are_the_matrix_exponential(bits):
    """Each squaring doubles the relative error of an entry and adds that of a product of non-negative matrices, 11 eps. The
    series of a 32nd of the time ends at 8 jumps: 32 (total / 32)^9 / 9! is left out, of low rates hardly anything."""
    queue = QueueSimulator(high=8.0)
    dtype = np.dtype(f"float{bits}")
    with jax.enable_x64(bits == 64):
        found = np.asarray(jax.jit(jax.vmap(queue.transitions))(RATES.astype(dtype)))
        assert found.dtype == dtype
    for rates, table in zip(RATES.astype(dtype).astype(float), found.astype(float), strict=True):
        left_out = 32 * (rates.sum() / 32) ** 9 / math.factorial(9)
        atol, rtol = (
            (left_out, 32 * 22 * np.finfo(dtype).eps) if rates.sum() > 4 else (0.0, max(32 * 22 * np.finfo(dtype).eps, 1e-8))
        )
        np.testing.assert_allclose(table.sum(1), 1.0, rtol=rtol, atol=atol)
        np.testing.assert_allclose(table, scipy.linalg.expm(generator(rates, 10)), rtol=0, atol=rtol + atol)
        np.testing.assert_allclose(table, by_uniformization(rates, 10), rtol=rtol, atol=atol)


def test_draws_of_a_queue_are_those_of_its_chain(key):
    theta = np.array([1.3, 0.7], np.float32)
    states = np.array(list(itertools.product(range(5), repeat=3)), np.uint8)
    mass = np.exp(np.asarray(QUEUE.log_prob({}, states, theta), float))
    np.testing.assert_allclose(mass.sum(), 1.0, rtol=1e-4)
    table = scipy.linalg.expm(generator((1.3, 0.7), 4))
    np.testing.assert_allclose(mass[0 * 25 + 2 * 5 + 1], table[0, 0] * table[0, 2] * table[2, 1], rtol=1e-4)
    drawn = np.asarray(QUEUE.sample({}, key, 10_000, theta), int)
    check_shares(np.bincount(drawn @ [25, 5, 1], minlength=125), mass)


def test_the_posterior_of_a_queue_is_normalised_and_drawn_from(key):
    x = jnp.array([2.0, 3.0, 1.0])
    grid, area = midpoints(0.2, 3.0, 96)  # not the grid of the posterior
    density = np.exp(np.asarray(QUEUE.posterior.log_prob({}, grid, x), float))
    np.testing.assert_allclose(area * density.sum(), 1.0, atol=1e-3)  # midpoints: h^2 / 24 times a second derivative of about 10
    likelihood = QUEUE.log_prob({}, np.array([2, 3, 1], np.uint8), grid)
    np.testing.assert_allclose(np.ptp(np.log(density) - likelihood), 0.0, atol=1e-4)
    drawn = QUEUE.posterior.sample({}, key, 1_000, x)
    check_shares(counted(drawn, 0.2, 3.0, 8), blocks(density, 8))
    outside = np.array([[-1.0, 1.0], [1.0, 1e9], [1.0, 3.1]], np.float32)
    assert np.isneginf(QUEUE.posterior.log_prob({}, outside, x)).all()


def test_rates_of_no_queue_end_at_once(key):
    """The events of a draw would have no end."""
    for theta in ([-1.0, 1.0], [math.inf, 1.0], [1.0, math.nan]):
        theta = np.array(theta, np.float32)
        with pytest.raises(FloatingPointError, match=r"^5 of 5 draws of QueueSimulator are no numbers"):
            QUEUE.sample({}, key, 5, theta)
        assert np.isnan(QUEUE.log_prob({}, np.zeros(3, np.uint8), theta))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LinearGaussianSimulator(0), "^dim must be an integer >= 1, got 0"),
        (lambda: LinearGaussianSimulator(2, noise_variance=0.0), "^noise_variance must be > 0 and finite, got 0.0"),
        (lambda: QueueSimulator(capacity=0), "^capacity must be an integer >= 1, got 0"),
        (lambda: QueueSimulator(low=0.0), "^low must be > 0 and finite, got 0.0"),
        (lambda: QueueSimulator(high=9.0), r"^high must be at most 8 events in a unit of time, got 9\.0"),
        (lambda: QueueSimulator(low=2.0), r"^low must be below high, got low=2\.0, high=2\.0"),
        (lambda: QUEUE.posterior.sample({}, jax.random.key(0), 2, np.ones((1, 3), np.int32)), "cast contexts to float"),
    ],
)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
