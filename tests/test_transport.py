"""Optimal transport against brute force, SciPy and closed forms."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from genmod import transport
from genmod.metrics import wasserstein
from genmod.transport import ExactAssignment, Independent, Sinkhorn
from genmod.transport.entropic import converged_sinkhorn, draw_rows
from genmod.transport.exact import _reduce, host_assignment

pytestmark = pytest.mark.usefixtures("quick_compile")
INF = float("inf")
EPS = np.finfo(np.float32).eps
PAIRINGS = {
    "independent": Independent(),
    "exact": ExactAssignment(),
    "exact_by_class": ExactAssignment(INF),
    "sinkhorn": Sinkhorn(),
    "sinkhorn_by_class": Sinkhorn(context_weight=INF),
}
exact_or_entropic = pytest.mark.parametrize("pairing_class", [ExactAssignment, Sinkhorn])


def rng(seed=0):
    return np.random.default_rng(seed)


def two_samples(n, dim=2, seed=0):
    """Asymmetric: a Gaussian and a skew one of other scale, elsewhere."""
    r = rng(seed)
    return r.normal(size=(n, dim)), np.exp(0.7 * r.normal(size=(n, dim))) * 1.5 - 3.0


def float32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def costs(x0, x1):
    return ((x0[:, None] - x1[None]) ** 2).sum(-1)


def brute_force(cost):
    return min(cost[np.arange(len(cost)), list(s)].sum() for s in itertools.permutations(range(len(cost))))


def sinkhorn_in_numpy(cost, epsilon, num_iters):
    """float64, every update in the log domain."""
    n, m = cost.shape
    score, v = -cost / (epsilon * cost.mean()), np.zeros(m)
    for _ in range(num_iters):
        u = -logsumexp(score + v, axis=1) - np.log(n)
        v = -logsumexp(score + u[:, None], axis=0) - np.log(m)
    return score + u[:, None] + v


# --- distances ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (2, 3), (9,), (4, 5)], ids=str)
def test_distances(shape):
    a, b = rng(0).normal(size=(6, *shape)).astype(np.float32), rng(1).normal(size=(4, *shape)).astype(np.float32) + 2.0
    d = transport.squared_distances(a, b)
    exact = costs(a.reshape(6, -1).astype(float), b.reshape(4, -1).astype(float))
    np.testing.assert_allclose(d, exact, rtol=0, atol=16 * EPS * exact.max())
    assert d.dtype == jnp.float32 and float(d.min()) >= 0


def test_distances_of_near_points_do_not_cancel():
    """Far from the origin, in few dimensions, the error is that of the difference alone; in many, that of the spread."""
    x = jnp.float32(1000.0) + jnp.array([[0.0, 0.0], [0.25, 0.5]], jnp.float32)
    np.testing.assert_allclose(transport.squared_distances(x, x), [[0, 0.3125], [0.3125, 0]], rtol=EPS)
    many = jnp.tile(x, (1, 6))
    np.testing.assert_allclose(transport.squared_distances(many, many), 6 * np.array([[0, 0.3125], [0.3125, 0]]), rtol=16 * EPS)


def test_distances_in_float64_and_bfloat16(x64):
    x, y = two_samples(5, 12)
    np.testing.assert_allclose(transport.squared_distances(x, y), costs(x, y), rtol=1e-13)
    assert transport.squared_distances(jnp.ones((2, 1), jnp.bfloat16), jnp.ones((3, 1), jnp.bfloat16)).dtype == jnp.float32


# --- assignment ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_assignment_against_all_permutations(seed):
    cost = rng(seed).normal(size=(5, 5)) ** 3
    s = np.asarray(transport.assignment(cost))
    assert s.dtype == np.int32 and sorted(s) == list(range(5))
    np.testing.assert_allclose(cost[np.arange(5), s].sum(), brute_force(cost), rtol=1e-6)


def awkward_costs(n):
    """Costs that have no structure, ties, a huge offset, a heavy tail, one value, duplicates and a known answer."""
    x, y = two_samples(n)
    yield "far", costs(x, y + 300.0)
    yield "near", costs(x, x + 1e-4)
    yield "no geometry", rng(1).uniform(size=(n, n))
    yield "ties", np.round(costs(x, y)) // 4
    yield "offset", costs(x, y) + 1e6 * rng(2).uniform(size=n)
    yield "heavy", np.abs(rng(3).standard_t(1.0, size=(n, n)))
    yield "constant", np.full((n, n), 3.0)
    yield "negative", -costs(x, y)


def test_potentials_do_not_change_the_assignment():
    """Above n = 200 potentials are taken off first: still SciPy's least cost, to float64 rounding of the largest entry."""
    n = 210
    for name, cost in awkward_costs(n):
        rows, columns = linear_sum_assignment(cost)
        ours = host_assignment(cost.copy())
        assert sorted(ours) == list(range(n)), name
        error = cost[rows, ours].mean() - cost[rows, columns].mean()
        assert abs(error) <= 16 * np.finfo(float).eps * np.abs(cost).max(), name
        if name == "far":  # and they are near the dual optimum, without which it would be right but slow
            _reduce(cost)
            assert cost.min() >= 0 and cost[rows, columns].mean() < 0.01 * cost.mean()


def test_assignment_under_transformations():
    batch = jnp.asarray(rng().normal(size=(3, 6, 6)), jnp.float32)
    want = np.stack([linear_sum_assignment(c)[1] for c in np.asarray(batch)])
    np.testing.assert_array_equal(jax.jit(transport.assignment)(batch[1]), want[1])
    np.testing.assert_array_equal(jax.jit(jax.vmap(transport.assignment))(batch), want)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, x: (c, transport.assignment(x)), 0, batch)[1], want)
    grad = jax.jit(jax.grad(lambda c: (c[jnp.arange(6), transport.assignment(c)] ** 2).sum()))(batch[0])
    assert np.count_nonzero(grad) == 6  # of the entries chosen; none through the choice


def test_assignment_refuses():
    for bad, message in {
        "nan": (np.full((2, 2), np.nan), "no assignment"),
        "-inf": (np.array([[-INF, 0.0], [0.0, 0.0]]), "no assignment"),
        "forbidden": (np.array([[INF, INF], [0.0, 0.0]]), "no assignment"),
        "wide": (np.zeros((2, 3)), "square"),
        "vector": (np.zeros(2), "square"),
    }.values():
        with pytest.raises(ValueError, match=message):
            transport.assignment(bad)
    with pytest.raises(ValueError, match="square"):
        jax.eval_shape(transport.assignment, jnp.zeros((2, 3)))
    # Traced, what cannot be solved is left as it is; +inf only forbids.
    solve = jax.jit(transport.assignment)
    np.testing.assert_array_equal(solve(jnp.array([[jnp.nan, 0.0], [0.0, 1.0]])), [0, 1])
    np.testing.assert_array_equal(solve(jnp.array([[5.0, 0.0], [INF, 5.0]])), [0, 1])
    np.testing.assert_array_equal(solve(jnp.array([[5.0, 0.0], [5.0, INF]])), [1, 0])


# --- Sinkhorn -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_iters", [1, 2, 11, 37])
@pytest.mark.parametrize("epsilon", [0.5, 0.02])
def test_sinkhorn_makes_the_iterations_of_float64(epsilon, num_iters, x64):
    """Kernel products are the same iterations as log-sum-exp, converged or not."""
    cost = costs(*two_samples(30))[:, :20]
    ours = np.exp(transport.sinkhorn(cost, epsilon, num_iters))
    np.testing.assert_allclose(ours, np.exp(sinkhorn_in_numpy(cost, epsilon, num_iters)), rtol=1e-9, atol=1e-15)


def test_sinkhorn_in_float32_where_kernels_underflow():
    """Outliers whose costs are thousands of epsilon: the columns stay exact, the rest as good as in float64."""
    x, y = two_samples(60)
    x[0], y[3] = 60.0, -40.0
    cost = costs(x, y)
    log_plan = np.asarray(transport.sinkhorn(jnp.asarray(cost, jnp.float32), 0.02, 400), float)
    want = sinkhorn_in_numpy(cost, 0.02, 400)
    assert np.isfinite(log_plan).all()
    rounding = EPS * cost.max() / cost.mean() / 0.02  # of the largest cost, in units of epsilon
    np.testing.assert_allclose(np.exp(log_plan).sum(0), 1 / 60, rtol=rounding)
    np.testing.assert_allclose(np.exp(log_plan).sum(1), np.exp(want).sum(1), rtol=rounding)
    np.testing.assert_allclose(np.exp(log_plan), np.exp(want), atol=rounding / 60)


def test_sinkhorn_between_independence_and_the_assignment(x64):
    """The cost of the plan falls with epsilon from the mean to the exact; by duality the excess is below e log n (e absolute)."""
    n = 40
    cost = costs(*two_samples(n))
    rows, columns = linear_sum_assignment(cost)
    exact, excesses = cost[rows, columns].mean(), []
    for epsilon in (1e3, 0.3, 0.05, 0.01):
        plan = np.exp(transport.sinkhorn(cost, epsilon, 4000))
        np.testing.assert_allclose(plan.sum(1), 1 / n, rtol=1e-5)
        excesses.append((plan * cost).sum() - exact)
        assert 0 < excesses[-1] <= epsilon * cost.mean() * np.log(n)
    assert excesses == sorted(excesses, reverse=True)
    np.testing.assert_allclose(excesses[0] + exact, cost.mean(), rtol=1e-3)


def test_sinkhorn_of_two_points():
    """Two by two, c = [[0, 1], [1, 0]], mean 1/2: p_00 = sigmoid(1 / e) / 2 with e = epsilon / 2 (Cuturi 2013)."""
    plan = np.exp(transport.sinkhorn(jnp.array([[0.0, 1.0], [1.0, 0.0]]), 0.8, 50))
    diagonal = 0.5 / (1 + np.exp(-1 / 0.4))
    np.testing.assert_allclose(plan, [[diagonal, 0.5 - diagonal], [0.5 - diagonal, diagonal]], rtol=1e-5)


def test_sinkhorn_knows_no_units_and_no_order():
    cost = jnp.asarray(costs(*two_samples(24)), jnp.float32)
    plan = np.exp(transport.sinkhorn(cost))
    np.testing.assert_allclose(np.exp(transport.sinkhorn(1e6 * cost)), plan, rtol=1e-3, atol=1e-7)
    rows, columns = rng(1).permutation(24), rng(2).permutation(24)
    np.testing.assert_allclose(np.exp(transport.sinkhorn(cost[rows][:, columns])), plan[rows][:, columns], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(np.exp(transport.sinkhorn(jnp.zeros((24, 24)))), 1 / 24**2, rtol=1e-5)  # mean cost 0


def test_sinkhorn_keeps_to_what_is_allowed():
    """+inf off the blocks of two classes: two plans in one, with the epsilon of the allowed mean."""
    cost = costs(*two_samples(12))
    labels = np.arange(12) % 3 == 0
    blocked = np.where(labels[:, None] == labels[None], cost, INF)
    plan = np.exp(transport.sinkhorn(jnp.asarray(blocked, jnp.float32), 0.3, 200))
    assert (plan[labels][:, ~labels] == 0).all() and (plan[~labels][:, labels] == 0).all()
    np.testing.assert_allclose(plan.sum(0), 1 / 12, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(1), 1 / 12, rtol=1e-3)
    own = cost[labels][:, labels]
    epsilon = 0.3 * blocked[np.isfinite(blocked)].mean() / own.mean()
    np.testing.assert_allclose(plan[labels][:, labels] * 3, np.exp(sinkhorn_in_numpy(own, epsilon, 200)), rtol=1e-3)


def test_sinkhorn_refuses():
    for options, message in [({"epsilon": 0.0}, "epsilon"), ({"epsilon": -1.0}, "epsilon"), ({"num_iters": 0}, "num_iters")]:
        with pytest.raises(ValueError, match=message):
            transport.sinkhorn(jnp.zeros((2, 2)), **options)
        with pytest.raises(ValueError, match=message):
            Sinkhorn(**options)
    with pytest.raises(ValueError, match="matrix"):
        transport.sinkhorn(jnp.zeros((2, 2, 2)))


# --- pairings -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRINGS)
def test_pairing_protocol(name, key):
    pairing = PAIRINGS[name]
    (x0, x1), context = float32(*two_samples(20)), jnp.arange(20) % 2
    plain = np.asarray(pairing(x0, x1, None, key))
    assert plain.shape == (20,) and plain.dtype == np.int32 and plain.min() >= 0 and plain.max() < 20
    traced = jax.jit(lambda k: pairing(x0, x1, context, k))(key)
    np.testing.assert_array_equal(traced, pairing(x0, x1, context, key))
    if "sinkhorn" not in name:
        assert sorted(plain) == list(range(20))
    if "class" in name:
        np.testing.assert_array_equal(context[traced], context)
    if name == "independent":
        np.testing.assert_array_equal(plain, np.arange(20))
    grad = jax.grad(lambda x: jnp.sum((x[pairing(x, x1, context, key)] - x1) ** 2))(x0)
    assert np.isfinite(grad).all()
    with pytest.raises(ValueError, match="same number of rows"):
        pairing(x0[:3], x1, None, key)
    with pytest.raises(ValueError, match="one row for each"):
        pairing(x0, x1, context[:3], key)
    if name != "independent":
        with pytest.raises(ValueError, match="one event shape"):
            pairing(x0[:, :1], x1, None, key)
    again = dataclasses.replace(pairing)
    assert pairing == again and hash(pairing) == hash(again)


@exact_or_entropic
def test_pairing_refuses_a_negative_weight(pairing_class):
    for weight in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="context_weight"):
            pairing_class(context_weight=weight)


def test_exact_pairing_pairs_the_right_way_round(key):
    """Data that are the draws, shuffled and shifted: each comes back to its own. Costs are least over all orders."""
    x0 = two_samples(7)[0]
    order = rng(3).permutation(7)
    np.testing.assert_array_equal(ExactAssignment()(*float32(x0, x0[order] + 0.3), None, key), order)
    a, b = two_samples(6, seed=4)
    indices = np.asarray(ExactAssignment()(*float32(a, b), None, key))
    np.testing.assert_allclose(((a[indices] - b) ** 2).sum(), brute_force(costs(a, b)), rtol=1e-5)


def test_exact_pairing_is_equivariant(key):
    x0, x1 = float32(*two_samples(30))
    rows, columns = rng(1).permutation(30), rng(2).permutation(30)
    plain = np.asarray(ExactAssignment()(x0, x1, None, key))
    shuffled = np.asarray(ExactAssignment()(x0[rows], x1[columns], None, key))
    np.testing.assert_array_equal(rows[shuffled], plain[columns])


def test_sinkhorn_pairing_draws_from_the_plan(key):
    """Counts over 4,000 keys: Pearson's chi-square over the cells expected 5 times or more, and no draw where p = 0."""
    (x0, x1), labels, num = float32(*two_samples(12)), jnp.arange(12) % 2, 4000
    pairing = Sinkhorn(epsilon=0.5, context_weight=INF)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: pairing(x0, x1, labels, k)))(jax.random.split(key, num)))
    counts = np.stack([np.bincount(d, minlength=12) for d in draws.T], axis=1)  # (source, data)
    cost = np.where(labels[:, None] == labels[None], transport.squared_distances(x0, x1), INF)
    wanted = 12 * num * np.exp(np.asarray(transport.sinkhorn(cost, 0.5, 50), float))
    assert (counts[wanted == 0] == 0).all() and (wanted == 0).sum() == 72
    likely = wanted >= 5
    chi_square, freedom = ((counts - wanted)[likely] ** 2 / wanted[likely]).sum(), likely.sum() - 12
    assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)
    # The columns are drawn independently of each other.
    a, b = draws[:, 0] == np.argmax(counts[:, 0]), draws[:, 2] == np.argmax(counts[:, 2])
    assert abs(np.mean(a & b) - a.mean() * b.mean()) < 4.5 * np.sqrt(a.mean() * b.mean() / num)


def test_a_draw_never_falls_on_a_row_of_no_weight(key):
    """Neither first nor last rows, at any rounding of the sum."""
    weights = jnp.array([0.0, 1e-3, 0.7, 0.0, 1e-7, 0.0], jnp.float32)
    plan = jnp.log(weights)[:, None] * jnp.ones((1, 20_000))
    rows, counts = np.unique(draw_rows(plan, key), return_counts=True)
    assert set(rows) <= {1, 2, 4} and abs(counts[0] / 20_000 - 1 / 701) < 4.5 * np.sqrt(1 / 701 / 20_000)


def test_sinkhorn_keeps_the_source_in_expectation(key):
    """Over many batches the mean of the paired source is that of the source: 0 within its standard error."""

    def paired_mean(key):
        a, b, c = jax.random.split(key, 3)
        x0, x1 = jax.random.normal(a, (16, 2)), jnp.exp(jax.random.normal(b, (16, 2)))
        return x0[Sinkhorn()(x0, x1, None, c)].mean(0)

    means = jax.jit(jax.vmap(paired_mean))(jax.random.split(key, 1000))
    assert (np.abs(means.mean(0)) < 4.5 * means.std(0) / np.sqrt(1000)).all()


@exact_or_entropic
def test_context_keeps_the_source_of_each_class(pairing_class, key):
    """Two classes at x = -3 and x = +3: of the draws N(0, 1), a plan blind to the class gives the left ones to the left.

    With equal halves that is the half normal, of mean -sqrt(2 / pi); with context_weight=inf it stays N(0, 1).
    """
    num, n = 60, 32
    labels = jnp.arange(n) % 2
    sources = jax.random.normal(key, (num, n, 1))
    data = jnp.where(labels == 1, 3.0, -3.0)[None, :, None] + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (num, n, 1))
    keys = jax.random.split(jax.random.fold_in(key, 2), num)

    def left(weight):
        pairing = pairing_class(context_weight=weight)
        indices = jax.jit(jax.vmap(lambda x0, x1, k: pairing(x0, x1, labels, k)))(sources, data, keys)
        paired = np.asarray(jnp.take_along_axis(sources[..., 0], indices, axis=1))
        return paired[:, ::2].mean(1)

    kept, skewed = left(INF), left(0.0)
    np.testing.assert_array_equal(left(None), kept)  # labels repeat
    assert abs(kept.mean()) < 4.5 * kept.std() / np.sqrt(num)
    assert skewed.mean() < -0.7
    if pairing_class is ExactAssignment:  # a finite weight far above the spread of the data does the same
        np.testing.assert_allclose(left(1e4), kept, rtol=1e-6)


@exact_or_entropic
def test_a_context_that_never_repeats_keeps_its_source_too(pairing_class, key):
    """Data 5 c, c ~ N(0, 1): a blind plan gives a high c the high draws; by default the two stay all but independent."""
    n = 256
    x0, c = jax.random.normal(key, (n, 1)), 1e3 * jax.random.normal(jax.random.fold_in(key, 1), (n, 1))

    def slope(weight):
        paired = x0[pairing_class(context_weight=weight)(x0, 5e-3 * c, c, key)]
        return float((paired * c).mean() / 1e3)

    assert slope(0.0) > 0.8
    assert abs(slope(None)) < 0.1 + 4.5 / np.sqrt(n)
    np.testing.assert_array_equal(x0[pairing_class()(x0, 5e-3 * c, 1e-6 * c, key)], x0[pairing_class()(x0, 5e-3 * c, c, key)])


def test_a_context_does_not_blur_the_plan(key):
    keys = jax.random.split(key, 3)
    x0, x1, c = jax.random.normal(keys[0], (256, 2)), jax.random.normal(keys[1], (256, 2)), jax.random.uniform(keys[2], (256, 1))
    moved = [((x0[p(x0, x1, c, key)] - x1) ** 2).sum(-1).mean() for p in (Sinkhorn(), ExactAssignment(), Independent())]
    assert moved[0] < 0.6 * moved[2] and moved[1] < moved[0]


def test_sinkhorn_iterates_to_a_stated_error(key):
    x0, x1 = jax.random.normal(key, (200, 2)), 3.0 + 0.2 * jax.random.normal(jax.random.fold_in(key, 1), (200, 2))
    cost = transport.squared_distances(x0, x1)
    for epsilon in (0.5, 0.05, 0.001):
        log_plan, error = converged_sinkhorn(cost, epsilon, 0.01, 5_000)
        plan = np.exp(np.asarray(log_plan, float))
        assert error <= 0.01 and abs(200 * plan.sum(1) - 1).max() < 0.0101
        np.testing.assert_allclose(200 * plan.sum(0), 1, atol=1e-4)
        _, info = Sinkhorn(epsilon).with_info(x0, x1, None, key)
        np.testing.assert_allclose(info["marginal_error"], error, rtol=1e-3)
    assert converged_sinkhorn(cost, 0.001, 1e-6, 20)[1] > 1e-6  # what is left is said
    with pytest.raises(ValueError, match="tolerance"):
        Sinkhorn(tolerance=0.0)


def test_a_large_exact_assignment_warns(key):
    big = jax.ShapeDtypeStruct((2_048, 2), jnp.float32)
    with pytest.warns(UserWarning, match=r"exact assignment of 2,048 rows takes seconds .* Sinkhorn\(\) is faster"):
        jax.eval_shape(lambda x0, x1: ExactAssignment()(x0, x1, None, key), big, big)


def test_finite_weight_trades(key):
    """Two pairs: crossing saves 4 in x and costs 2 weight in c, so it is chosen below weight 2 only."""
    x0, x1, context = float32([[0.0], [1.0]], [[1.0], [-1.0]], [[0.0], [1.0]])
    for weight, want in ((0.0, [1, 0]), (1.9, [1, 0]), (2.1, [0, 1]), (INF, [0, 1])):
        np.testing.assert_array_equal(ExactAssignment(weight)(x0, x1, context, key), want)


# --- Wasserstein --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3.5])
def test_wasserstein_on_a_line_is_that_of_the_sorted(order):
    x, y = two_samples(250, 1)
    want = np.mean(np.abs(np.sort(x[:, 0]) - np.sort(y[:, 0])) ** order) ** (1 / order)
    np.testing.assert_allclose(wasserstein(x, y, order=order), want, rtol=1e-12)
    direction = np.array([[0.6, 0.8]])  # the same line in a plane goes through the assignment
    np.testing.assert_allclose(wasserstein(x * direction, y * direction, order=order), want, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_wasserstein_against_all_permutations(order):
    x, y = two_samples(6, 6, seed=order)
    want = (brute_force(costs(x, y) ** (order / 2)) / 6) ** (1 / order)
    np.testing.assert_allclose(wasserstein(x.reshape(6, 2, 3), y.reshape(6, 2, 3), order=order), want, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_wasserstein_is_a_distance(order):
    x, y = two_samples(300)
    z = rng(9).uniform(-4, 2, (300, 2))
    shift = np.array([3.0, -4.0])
    xy = wasserstein(x, y, order=order)
    assert wasserstein(x, x, order=order) == 0 == wasserstein(x, x[::-1], order=order)
    np.testing.assert_allclose(wasserstein(x, x[::-1] + shift, order=order), 5.0, rtol=1e-12)
    np.testing.assert_allclose(wasserstein(y, x, order=order), xy, rtol=1e-12)
    np.testing.assert_allclose(wasserstein(3 * x, 3 * y, order=order), 3 * xy, rtol=1e-12)
    assert xy < wasserstein(x, z, order=order) + wasserstein(z, y, order=order)
    assert np.linalg.norm(x.mean(0) - y.mean(0)) <= wasserstein(x, y, order=1) <= wasserstein(x, y, order=2)


def test_wasserstein_refuses():
    x = np.zeros((4, 2))
    for a, b, options, message in [
        (x, x[:3], {}, "one shape"),
        (x, x[:, :1], {}, "one shape"),
        (x[:0], x[:0], {}, "at least one"),
        (x, np.full_like(x, np.nan), {}, "finite"),
        (x, x, {"order": 0.5}, "order"),
    ]:
        with pytest.raises(ValueError, match=message):
            wasserstein(a, b, **options)
