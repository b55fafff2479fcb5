"""Populations: moves that leave a law invariant, and tempering whose draws and evidence are known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from genmod.samplers import differential_evolution, ensemble_tempered, run

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEYS = jax.random.split(jax.random.key(1), 24)

# --- moves --------------------------------------------------------------------------------------------------------------------

ROOT = np.array([[2.0, 0.0], [-0.9, 0.3]])
NUM = 4_000


def log_law(position):
    """N(1, ROOT ROOT^T) of a pair, and 0.3 N(-4, 0.5^2) + 0.7 N(3, 1) of a number, up to a constant."""
    pair = jnp.linalg.solve(jnp.asarray(ROOT, jnp.float32), jnp.stack([position["a"], position["b"][0]]) - 1.0)
    z = position["mode"]
    return -0.5 * (pair**2).sum() + jnp.logaddexp(
        math.log(0.3 / 0.5) - 0.5 * ((z + 4) / 0.5) ** 2, math.log(0.7) - 0.5 * (z - 3) ** 2
    )


def draws(seed):
    rng = np.random.default_rng(seed)
    pair = rng.standard_normal((NUM, 2)) @ ROOT.T + 1.0
    z = np.where(rng.random(NUM) < 0.3, -4 + 0.5 * rng.standard_normal(NUM), 3 + rng.standard_normal(NUM))
    return {"a": jnp.array(pair[:, 0], jnp.float32), "b": jnp.array(pair[:, 1:], jnp.float32), "mode": jnp.array(z, jnp.float32)}


def check_law(position):
    """Moments and shares against closed forms; the members are independent draws, so that standard errors are theirs."""
    a, b, z = (np.asarray(position[name], float).reshape(NUM) for name in ("a", "b", "mode"))
    cov = ROOT @ ROOT.T
    wanted = {
        "mean": ((a, 1.0), (b, 1.0), (z, 0.3 * -4 + 0.7 * 3)),
        "second": (((a - 1) ** 2, cov[0, 0]), ((a - 1) * (b - 1), cov[0, 1]), ((b - 1) ** 2, cov[1, 1])),
        "modes": ((z > 0, 0.7), (z**2, 0.3 * 16.25 + 0.7 * 10), (np.abs(z - 3) * (z > 0), 0.7 * math.sqrt(2 / math.pi))),
        "apart": (((a - 1) * z, 0.0), ((b - 1) * (z > 0), 0.0)),
    }
    for name, rows in wanted.items():
        for values, value in rows:
            sem = values.astype(float).std() / math.sqrt(NUM)
            assert abs(values.mean() - value) < NUM_SEM * sem, (name, values.mean(), value, sem)


@pytest.mark.parametrize("archived", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_population_of_exact_draws_stays_one(archived, key):
    archive = jax.tree.map(lambda leaf: leaf[:50] * 3.0, draws(1)) if archived else None
    kernel = differential_evolution(log_law, archive)
    start = draws(0)
    check_law(start)
    trace = jax.jit(lambda key, x: run(key, kernel, kernel.init(x), num_steps=12))(key, start)
    end = jax.tree.map(lambda leaf: leaf[-1], trace.positions)
    check_law(end)
    rate, accepted = np.asarray(trace.infos.acceptance_rate), np.asarray(trace.infos.is_accepted)
    assert rate.shape == accepted.shape == (12, NUM) and accepted.dtype == bool
    assert 0.1 < rate.mean() < 0.9
    assert abs(rate.mean() - accepted.mean()) < NUM_SEM * 0.5 / math.sqrt(rate.size)
    assert (end["mode"] != start["mode"]).mean() > 0.7
    crossed = np.sign(end["mode"]) != np.sign(start["mode"])
    assert 0.02 < crossed.mean() < 0.5  # from one mode to the other


def test_a_population_off_its_law_comes_to_it(key):
    """From far too wide, and with half of its members where the law is zero."""

    def log_prob_fn(x):
        return jnp.where(x[0] > 0, -x[0] - 0.5 * (x[1] - x[0]) ** 2, jnp.nan)  # Exp(1), and N(x, 1)

    start = 5.0 * jax.random.normal(key, (400, 2))
    kernel = differential_evolution(log_prob_fn)
    end = np.asarray(jax.jit(lambda key: run(key, kernel, kernel.init(start), num_steps=300).positions[-1])(key), float)
    assert scipy.stats.kstest(end[:, 0], "expon").pvalue > 1e-4
    assert scipy.stats.kstest(end[:, 1] - end[:, 0], "norm").pvalue > 1e-4


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: differential_evolution(3.0), TypeError, "^log_prob_fn must be a function, got 3.0"),
        (lambda: of_pairs().init(jnp.zeros((7, 2))), ValueError, "^position must hold at least 8 members of 2 numbers, got 7"),
        (lambda: of_pairs().init(jnp.zeros((8, 2), int)), TypeError, "^position must be floating point, got int32; cast it"),
        (lambda: of_pairs().init(jnp.zeros(())), ValueError, r"^position must have one leading axis of members .* got \[\(\)\]"),
        (lambda: of_pairs().init((jnp.zeros((9, 1)), jnp.zeros(8))), ValueError, r"got \[\(9, 1\), \(8,\)\]"),
        (lambda: differential_evolution(jnp.sin).init(jnp.zeros((8, 2))), ValueError, "^log_prob_fn must return one number"),
        (
            lambda: of_pairs(jnp.zeros((1, 2))),
            ValueError,
            r"^archive must have one leading axis of two or more .* got \[\(1, 2\)\]",
        ),
        (lambda: of_pairs(jnp.zeros((3, 2), int)), TypeError, "^archive must be floating point, got int32; cast it"),
        (
            lambda: of_pairs(jnp.zeros((3, 1))).init(jnp.zeros((8, 2))),
            ValueError,
            r"^archive must hold members .* float32\[2\], got float32\[1\]",
        ),
    ],
)
def test_moves_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def of_pairs(archive=None):
    return differential_evolution(lambda x: -(x**2).sum(), archive)


# --- tempering ----------------------------------------------------------------------------------------------------------------

CENTER, LEFT, RIGHT = (np.array(c, np.float32) for c in ((0.2, -0.3), (-0.7, 0.1), (0.7, 0.1)))
MEMBERS = 150
# log of the evidence of the likelihoods of `log_likelihoods` under U(-1, 1)^2: of a normalised density it is that of the prior.
LOG_EVIDENCE = np.log([0.25, 0.25, math.pi * 0.3**2 / 4, 0.25, 0.125])


def log_normal(theta, center, sd):
    return -0.5 * (((theta - center) / sd) ** 2).sum() - 2 * math.log(sd) - math.log(2 * math.pi)


def log_prior(theta):
    return jnp.where((jnp.abs(theta) <= 1).all(), -2 * math.log(2), -jnp.inf)


def log_likelihoods(theta):
    """A Gaussian; two far modes of 1/4 and 3/4; a disk; a Gaussian of 10^-8 of the area; half of the square, NaN elsewhere."""
    two = jnp.logaddexp(math.log(0.25) + log_normal(theta, LEFT, 0.02), math.log(0.75) + log_normal(theta, RIGHT, 0.03))
    disk = jnp.where(((theta - CENTER) ** 2).sum() < 0.3**2, 0.0, -jnp.inf)
    half = jnp.where(theta[0] > 0, 0.0, jnp.nan) - math.log(4.0)
    return jnp.stack([log_normal(theta, CENTER, 0.1), two, disk, log_normal(theta, CENTER, 1e-4), half])


@functools.cache
def populations():
    """Of each likelihood one for each key."""

    def one(key, which):
        keys = jax.random.split(key)
        theta = jax.random.uniform(keys[0], (MEMBERS, 2), minval=-1.0, maxval=1.0)
        return ensemble_tempered(keys[1], log_prior, lambda theta: log_likelihoods(theta)[which], theta, num_steps=12)

    # One after the other, since they end after different numbers of levels.
    found = jax.jit(lambda keys: jax.lax.map(lambda which: jax.vmap(lambda key: one(key, which))(keys), jnp.arange(5)))(KEYS)
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), found)


def check_mean(of_seeds, wanted):
    """One number of each seed, (num_seeds, ...), against its expectation, by the spread between seeds."""
    sem = of_seeds.std(0) / math.sqrt(len(of_seeds))
    assert (np.abs(of_seeds.mean(0) - wanted) < NUM_SEM * sem).all(), (of_seeds.mean(0), wanted, sem)


def test_the_evidence_is_that_of_a_closed_form():
    found = populations()
    assert (found.level == 1).all() and (found.log_weights == np.float32(-math.log(MEMBERS))).all()
    assert found.positions.shape == (5, len(KEYS), MEMBERS, 2) and (np.abs(found.positions) <= 1).all()
    error = found.log_ratio - LOG_EVIDENCE[:, None]
    check_mean(np.exp(error).T, 1.0)
    # A level of half the weight adds 1 / N to the variance at least, and not many times that; the disk is one, of 11 members.
    assert (error.std(1)[[0, 1]] < 4 * np.sqrt(found.num_levels[[0, 1]].mean(1) / MEMBERS)).all()
    assert error.std(1)[3] < 4 * np.sqrt(found.num_levels[3].mean() / MEMBERS)
    assert (found.num_levels[3] > 10).all() and (found.num_levels[2] <= 3).all()


def test_a_population_arrives_at_a_gaussian():
    for which, sd in ((0, 0.1), (3, 1e-4)):
        scaled = (populations().positions[which] - CENTER.astype(float)) / sd
        check_mean(scaled.mean(1), 0.0)
        check_mean((scaled**2).mean(1), 1.0)
        check_mean((scaled[..., 0] * scaled[..., 1]).mean(1), 0.0)
    assert all(len(np.unique(p, axis=0)) > 0.95 * MEMBERS for p in populations().positions[0])


def test_far_modes_keep_their_shares():
    theta = populations().positions[1]
    right = theta[..., 0] > 0
    check_mean(right.mean(1), 0.75)
    assert right.mean(1).std() < 3 * math.sqrt(0.75 * 0.25 / MEMBERS)  # not all in one of them
    for inside, center, sd in ((right, RIGHT, 0.03), (~right, LEFT, 0.02)):
        scaled = (theta - center) / sd
        check_mean(np.stack([(scaled[i, inside[i]] ** 2).mean(0) for i in range(len(KEYS))]), 1.0)


def test_a_likelihood_that_is_zero_nearly_everywhere():
    radius = ((populations().positions[2] - CENTER) ** 2).sum(-1) / 0.3**2
    assert (radius < 1 + 1e-5).all()
    check_mean(radius.mean(1), 0.5)  # r^2 is uniform in a disk
    check_mean((radius**2).mean(1), 1 / 3)
    x = populations().positions[4][..., 0]
    assert (x > 0).all()
    check_mean(x.mean(1), 0.5)


@pytest.mark.slow
def test_a_population_of_pytrees(key):
    """Of scalars and vectors at once: N(0, 1) of each, observed with unit noise; jitted, in float64, in few levels."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        prior = {"a": jnp.array(rng.standard_normal(1_000)), "b": (jnp.array(rng.standard_normal((1_000, 2))),)}

        def log_prior_fn(theta):
            return -0.5 * (theta["a"] ** 2 + (theta["b"][0] ** 2).sum())

        def log_likelihood_fn(theta):
            return -0.5 * ((theta["a"] - 1.0) ** 2 + ((theta["b"][0] - jnp.array([0.0, -2.0])) ** 2).sum())

        found = jax.jit(lambda key: ensemble_tempered(key, log_prior_fn, log_likelihood_fn, prior))(key)
        assert {leaf.dtype for leaf in jax.tree.leaves((found.positions, found.log_ratio, found.level))} == {jnp.dtype("float64")}
        found = jax.tree.map(np.asarray, found)
    b = found.positions["b"][0]
    assert found.positions["a"].shape == (1_000,) and b.shape == (1_000, 2)
    for values, mean in ((found.positions["a"], 0.5), (b[:, 0], 0.0), (b[:, 1], -1.0)):
        # Members share ancestors; a population of independent draws has NUM_SEM.
        assert abs(values.mean() - mean) < 2 * NUM_SEM * math.sqrt(0.5 / 1_000)
    assert abs(found.log_ratio + 0.25 * (1 + 4) + 1.5 * math.log(2)) < NUM_SEM * math.sqrt(2 * 3 / 1_000)


def test_levels_that_run_out_are_seen(key):
    theta = jax.random.uniform(key, (100, 2), minval=-1.0, maxval=1.0)

    @jax.jit
    def ends(somewhere):
        def likelihood(theta):
            return jnp.where(somewhere, log_normal(theta, CENTER, 0.01), -jnp.inf)

        return ensemble_tempered(key, log_prior, likelihood, theta, num_steps=2, max_levels=2)

    found, nowhere = ends(True), ends(False)
    assert found.num_levels == 2 and 0 < found.level < 0.1 and np.isfinite(found.log_ratio)
    assert nowhere.num_levels == 2 and nowhere.level < 1 and np.isneginf(nowhere.log_ratio)  # no draw has a likelihood


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_steps": 0}, ValueError, "^num_steps must be an integer >= 1, got 0"),
        ({"max_levels": 0}, ValueError, "^max_levels must be an integer >= 1, got 0"),
        ({"target_size": 1.0}, ValueError, r"^target_size must be a share of the members in \(0, 1\), got 1.0"),
        ({"positions": jnp.zeros((5, 1))}, ValueError, "^position must hold at least 6 members of 1 numbers, got 5"),
        ({"positions": jnp.zeros((8, 1), int)}, TypeError, "^position must be floating point, got int32"),
        ({"log_prior_fn": 0.0}, TypeError, "^log_prior_fn must be a function, got 0.0"),
        ({"log_likelihood_fn": None}, TypeError, "^log_likelihood_fn must be a function, got None"),
        ({"log_likelihood_fn": jnp.sin}, ValueError, "^log_likelihood_fn must return one number for one position"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, "^key must be one key"),
    ],
)
def test_tempering_is_refused(options, error, match):
    given = {
        "key": jax.random.key(0),
        "log_prior_fn": lambda theta: -(theta**2).sum(),
        "log_likelihood_fn": lambda theta: theta.sum(),
        "positions": jnp.zeros((8, 1)),
    } | options
    with pytest.raises(error, match=match):
        ensemble_tempered(**given)
