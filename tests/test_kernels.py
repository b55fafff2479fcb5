"""Sampler kernels against laws with known moments, and the driver; BlackJAX's kernels by the same driver."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod import samplers
from genmod.samplers import hmc, independence, langevin, langevin_chain, mala, random_walk, run, score_langevin

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEY = jax.random.key(0)
NUM_CHAINS = 2_000

# a ~ 0.3 N(-1, 1/4) + 0.7 N(1, 1), and b | a ~ N((a, -a), I / 4): a skew law on a pytree, with moments known by hand.
WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-1.0, 1.0]), np.array([0.25, 1.0])
MEAN = WEIGHTS @ MEANS
VARIANCE = WEIGHTS @ (VARIANCES + (MEANS - MEAN) ** 2)
THIRD = WEIGHTS @ ((MEANS - MEAN) ** 3 + 3 * (MEANS - MEAN) * VARIANCES)
TRUTH = {
    "mean": MEAN,
    "variance": VARIANCE,
    "third": THIRD,
    "mean_b": -MEAN,
    "variance_b": VARIANCE + 0.25,
    "covariance": VARIANCE,
    "spread": 0.25,
}


def log_prob(x):
    a, b = x["a"], x["b"]
    log_weight, mean, variance = (jnp.asarray(v, a.dtype) for v in (np.log(WEIGHTS / np.sqrt(VARIANCES)), MEANS, VARIANCES))
    return jax.nn.logsumexp(log_weight - 0.5 * (a[None] - mean) ** 2 / variance) - 2.0 * jnp.sum(
        (b - a[None] * jnp.array([1.0, -1.0], a.dtype)) ** 2
    )


def moments(x):
    """The functions of x whose expectations TRUTH holds."""
    a, b = x["a"] - MEAN, x["b"]
    return {
        "mean": x["a"],
        "variance": a**2,
        "third": a**3,
        "mean_b": b[..., 1],
        "variance_b": (b[..., 1] + MEAN) ** 2,
        "covariance": a * b[..., 0],
        "spread": (b[..., 0] - x["a"]) ** 2,
    }


def wide_proposal():
    """a ~ N(0.4, 3.24), b | a ~ N((a, -a), 0.64 I): wider than the target everywhere, but for its constant."""

    def sample_and_log_prob(key):
        z = jax.random.normal(key, (3,))
        a = 0.4 + 1.8 * z[0]
        return {"a": a, "b": jnp.stack([a, -a]) + 0.8 * z[1:]}, -0.5 * jnp.sum(z**2)

    def log_q(x):
        a, b = x["a"], x["b"]
        return -0.5 * ((a - 0.4) / 1.8) ** 2 - 0.5 * jnp.sum(((b - jnp.stack([a, -a])) / 0.8) ** 2)

    return sample_and_log_prob, log_q


KERNELS = {
    "mala": mala(log_prob, 0.1),
    "random_walk": random_walk(log_prob, 0.7),
    "independence": independence(log_prob, *wide_proposal()),
    "hmc": hmc(log_prob, 0.4, 4, {"a": 0.8, "b": np.array([0.5, 1.0], np.float32)}),
}
by_name = pytest.mark.parametrize("name", KERNELS)
START = {"a": jnp.float32(0.5), "b": jnp.array([0.5, -0.5], jnp.float32)}


def chains(kernel, *, num_chains=NUM_CHAINS, **options):
    """Independent chains from one start: positions and infos with axes (chains, steps)."""

    @jax.jit
    @jax.vmap
    def trace(key):
        return run(key, kernel, kernel.init(START), **options)

    return trace(jax.random.split(KEY, num_chains))


def errors(positions):
    """(estimate - truth) / its standard error. Draws of one chain depend on each other, means of chains do not."""
    found = {}
    for name, value in moments(jax.tree.map(lambda a: np.asarray(a, np.float64), positions)).items():
        means = value.mean(1)
        found[name] = (means.mean() - TRUTH[name]) / (means.std(ddof=1) / np.sqrt(len(means)))
    return found


@by_name
def test_the_law_at_rest_is_the_target(name):
    trace = chains(KERNELS[name], num_steps=200, burn_in=200, thin=10)
    found = errors(trace.positions)
    assert all(abs(error) < NUM_SEM for error in found.values()), found
    rate, accepted = np.asarray(trace.infos.acceptance_rate), np.asarray(trace.infos.is_accepted)
    assert accepted.dtype == bool and 0.05 < rate.mean() < 0.95
    sem = (accepted - rate).mean(1).std() / np.sqrt(NUM_CHAINS)
    assert abs((accepted - rate).mean()) < NUM_SEM * sem


def test_without_the_metropolis_step_there_is_a_bias():
    """That of `langevin` at the step size of `mala`; the test above would see it."""
    found = errors(chains(langevin(log_prob, 0.1), num_steps=200, burn_in=200, thin=10).positions)
    assert found["spread"] > 2 * NUM_SEM, found


@pytest.mark.slow
def test_unadjusted_langevin_has_its_own_law_at_rest():
    """x + e score + sqrt(2 e) z on N(0, s^2): variance s^2 / (1 - e / (2 s^2)). By log-density, by score, and in one call."""
    e, num = 0.5, 40_000
    for s in (1.0, 0.8):
        wanted = s**2 / (1 - e / (2 * s**2))
        kernels = (langevin(lambda x, s=s: -0.5 * jnp.sum(x**2) / s**2, e), score_langevin(lambda x, s=s: -x / s**2, e))
        ends = [run(KEY, kernel, kernel.init(jnp.zeros(num)), num_steps=40).state.position for kernel in kernels]
        ends.append(langevin_chain(KEY, lambda x, s=s: -x / s**2, jnp.zeros(num), step_size=e, num_steps=40))
        for x in ends:
            assert abs(float(x.var()) / wanted - 1) < NUM_SEM * np.sqrt(2 / num)
            assert abs(float(x.mean())) < NUM_SEM * np.sqrt(wanted / num)


def test_the_step_of_langevin_is_its_formula():
    x, score, e = {"a": jnp.arange(3.0)}, {"a": jnp.array([1.0, -2.0, 0.5])}, 0.3
    still = samplers.langevin_step(KEY, x, jax.tree.map(jnp.zeros_like, x), e)["a"] - x["a"]  # sqrt(2 e) z
    np.testing.assert_allclose(samplers.langevin_step(KEY, x, score, e)["a"], x["a"] + e * score["a"] + still, rtol=1e-6)
    z = samplers.langevin_step(KEY, jnp.zeros(100_000), jnp.zeros(100_000), e)
    assert abs(float(z.var()) / (2 * e) - 1) < NUM_SEM * np.sqrt(2 / 100_000)
    state, info = score_langevin(lambda x: score, e).step(KEY, score_langevin(lambda x: score, e).init(x))
    np.testing.assert_allclose(info.score_norm, np.sqrt(1 + 4 + 0.25), rtol=1e-6)
    assert state.position["a"].shape == (3,)


def test_an_exact_proposal_is_always_accepted():
    def exact(key):
        x = jax.random.gamma(key, 2.0, (3,))
        return x, log_q(x)

    def log_q(x):
        return jnp.sum(jnp.log(x) - x)

    kernel = independence(lambda x: log_q(x) + 7.0, exact, log_q)  # known up to a constant
    trace = run(KEY, kernel, kernel.init(jnp.ones(3)), num_steps=500)
    np.testing.assert_allclose(trace.infos.acceptance_rate, 1.0, atol=1e-5)
    assert trace.infos.is_accepted.mean() > 0.99
    drawn = np.asarray(trace.positions[1:])
    assert (np.abs(drawn[1:] - drawn[:-1]).min(1) > 0).mean() > 0.99


def test_metropolis_is_reversible():
    """On a table, by enumeration: p(i) T(i, j) = p(j) T(j, i) of the independence kernel, and of steps to neighbours."""
    p, q = np.array([0.1, 0.25, 0.3, 0.05, 0.3]), np.array([0.3, 0.1, 0.2, 0.3, 0.1])
    log_p, log_q = (jnp.log(jnp.asarray(v, jnp.float32)) for v in (p, q))

    def by_independence(i, j):
        kernel = independence(lambda k: log_p[k], lambda key: (j, log_q[j]), lambda k: log_q[k])
        return kernel.step(KEY, kernel.init(i))[1].acceptance_rate

    def by_steps(i, j):
        return samplers.accept(KEY, log_p[j] - log_p[i], j, i)[1].acceptance_rate

    places = jnp.arange(5)
    neighbours = 0.5 * (np.abs(np.subtract.outer(np.arange(5), np.arange(5))) == 1)
    for rate, proposed in ((by_independence, np.tile(q, (5, 1))), (by_steps, neighbours)):
        accepted = np.asarray(jax.vmap(jax.vmap(rate, (None, 0)), (0, None))(places, places), np.float64)
        moves = proposed * accepted
        moves += np.diag(1 - moves.sum(1))
        flow = p[:, None] * moves
        np.testing.assert_allclose(flow, flow.T, atol=1e-7)
        np.testing.assert_allclose(p @ moves, p, atol=1e-7)
        np.testing.assert_allclose(np.linalg.matrix_power(moves, 500)[0], p, atol=1e-6)


def test_independence_takes_any_kind_of_position():
    """Integers too: a die of unequal faces, by uniform proposals."""
    p = np.array([0.1, 0.2, 0.3, 0.4])
    kernel = independence(
        lambda k: jnp.log(jnp.asarray(p, jnp.float32))[k], lambda key: (jax.random.randint(key, (), 0, 4), 0.0), lambda k: 0.0
    )
    num = 20_000
    trace = jax.jit(jax.vmap(lambda key: run(key, kernel, kernel.init(0), num_steps=1, burn_in=30).positions[0]))
    found = np.bincount(trace(jax.random.split(KEY, num)), minlength=4) / num
    assert (np.abs(found - p) < NUM_SEM * np.sqrt(p * (1 - p) / num)).all()


@by_name
def test_what_cannot_be_is_rejected(name):
    """Proposals of NaN, or of probability zero: the chain stays where it can be."""

    def half(x):
        return jnp.where(x["a"] < 0.0, -jnp.inf, jnp.where(x["a"] > 1.0, jnp.nan, log_prob(x)))

    makers = {"mala": mala, "random_walk": random_walk, "hmc": lambda f, e: hmc(f, e, 2)}
    kernel = makers.get(name, lambda f, _: independence(f, *wide_proposal()))(half, 0.5)
    trace = run(KEY, kernel, kernel.init(START), num_steps=300)
    a = np.asarray(trace.positions["a"])
    assert ((a >= 0) & (a <= 1)).all() and len(np.unique(a)) > 5
    assert jnp.isfinite(trace.infos.acceptance_rate).all() and (trace.infos.acceptance_rate[~trace.infos.is_accepted] < 1).all()


@pytest.mark.parametrize("name", [*KERNELS, "langevin"])
@pytest.mark.slow
def test_burn_in_and_thinning_leave_steps_out(name):
    kernel = KERNELS[name] if name in KERNELS else langevin(log_prob, 0.1)
    dense = run(KEY, kernel, kernel.init(START), num_steps=30)
    assert jax.tree.map(jnp.shape, dense.positions) == {"a": (30,), "b": (30, 2)}
    sparse = run(KEY, kernel, kernel.init(START), num_steps=24, burn_in=6, thin=4)
    for wanted, found in zip(jax.tree.leaves(dense[:2]), jax.tree.leaves(sparse[:2]), strict=True):
        np.testing.assert_allclose(found, wanted[9::4], rtol=1e-5)
    for state in (dense.state, sparse.state):
        np.testing.assert_allclose(state.position["b"], dense.positions["b"][-1], rtol=1e-5)
    assert jax.tree.structure(dense.state) == jax.tree.structure(kernel.init(START))


def test_a_chain_goes_on_from_its_state():
    kernel, step = KERNELS["mala"], jax.jit(KERNELS["mala"].step)
    state = run(KEY, kernel, kernel.init(START), num_steps=5).state
    more = run(jax.random.key(1), kernel, state, num_steps=3)
    for key, wanted in zip(jax.random.split(jax.random.key(1), 3), more.positions["a"], strict=True):
        state, _ = step(key, state)
        np.testing.assert_allclose(state.position["a"], wanted, rtol=1e-5)
    again = kernel.init(state.position)  # what a state remembers is what init finds
    np.testing.assert_allclose(state.log_prob, again.log_prob, rtol=1e-5)
    np.testing.assert_allclose(state.score["b"], again.score["b"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.float64])
@by_name
def test_positions_keep_their_dtype(name, dtype, x64):
    if name == "independence":
        sample, log_q = wide_proposal()

        def cast(key):
            x, value = sample(key)
            return jax.tree.map(lambda a: a.astype(dtype), x), value

        kernel = independence(log_prob, cast, log_q)
    else:
        kernel = KERNELS[name]
    trace = run(KEY, kernel, kernel.init(jax.tree.map(lambda a: a.astype(dtype), START)), num_steps=4)
    assert {a.dtype for a in jax.tree.leaves(trace.positions)} == {jnp.dtype(dtype)}
    assert trace.infos.acceptance_rate.dtype == jnp.promote_types(dtype, jnp.float32)


def test_python_numbers_and_arrays_of_numpy_are_positions():
    kernel = random_walk(lambda x: -(x["a"] ** 2) - jnp.sum(x["b"] ** 2), 0.5)
    trace = run(KEY, kernel, kernel.init({"a": 1.0, "b": np.ones((2, 3), np.float32)}), num_steps=7)
    assert jax.tree.map(jnp.shape, trace.positions) == {"a": (7,), "b": (7, 2, 3)}


def test_compiled_once_and_forgotten():
    """Equal calls do not compile again; what a kernel closes over is freed with it; no tracer stays behind."""
    traced = []

    def log_p(x):
        traced.append(1)
        return -0.5 * jnp.sum(x**2)

    kernel = mala(log_p, 0.3)
    state = kernel.init(jnp.zeros(2))
    run(KEY, kernel, state, num_steps=5)
    num = len(traced)
    state = run(jax.random.key(1), kernel, state, num_steps=5).state
    run(jax.random.key(2), kernel, state, num_steps=5)
    assert len(traced) == num
    alive = weakref.ref(log_p)
    del kernel, log_p
    gc.collect()
    assert alive() is None

    @jax.jit
    def end(scale):
        kernel = mala(lambda x: -0.5 * jnp.sum(scale * x**2), 0.1 * scale)
        return run(KEY, kernel, kernel.init(jnp.ones(2)), num_steps=5).state.position

    with jax.checking_leaks():
        assert not np.allclose(end(1.0), end(2.0))


def test_gradients_go_through_a_chain():
    """Of the end of a Langevin chain in its step size, by a finite difference."""

    def end(e):
        kernel = langevin(lambda x: -jnp.sum(jnp.cosh(x)), e)
        return run(KEY, kernel, kernel.init(jnp.ones(2)), num_steps=6, burn_in=2).state.position.sum()

    numeric = (end(0.21) - end(0.19)) / 0.02
    np.testing.assert_allclose(jax.grad(end)(0.2), numeric, rtol=2e-2)


def target(x):
    """A BlackJAX position may be any pytree too; its mass matrix is over the flat position."""
    return log_prob({"a": x[0], "b": x[1:]})


def blackjax_kernel(name):
    blackjax = pytest.importorskip("blackjax", reason="BlackJAX is optional: pip install blackjax")
    return {
        "nuts": lambda: blackjax.nuts(target, 0.4, jnp.ones(3)),
        "hmc": lambda: blackjax.hmc(target, 0.4, jnp.ones(3), 4),
        "mala": lambda: blackjax.mala(target, 0.1),
    }[name]()


@pytest.mark.parametrize("name", ["nuts", "hmc", "mala"])
def test_kernels_of_blackjax_run_as_ours(name):
    kernel, num = blackjax_kernel(name), 500

    @jax.jit
    @jax.vmap
    def trace(key):
        return run(key, kernel, kernel.init(jnp.array([0.5, 0.5, -0.5])), num_steps=60, burn_in=60, thin=5)

    result = trace(jax.random.split(KEY, num))
    assert result.positions.shape == (num, 12, 3) and result.infos.acceptance_rate.shape == (num, 12)
    found = errors({"a": result.positions[..., 0], "b": result.positions[..., 1:]})
    assert all(abs(error) < NUM_SEM for error in found.values()), found


def test_our_kernels_run_as_those_of_blackjax():
    util = pytest.importorskip("blackjax.util", reason="BlackJAX is optional: pip install blackjax")
    kernel = KERNELS["mala"]
    state, (states, infos) = util.run_inference_algorithm(KEY, kernel, 20, initial_state=kernel.init(START))
    ours = run(KEY, kernel, kernel.init(START), num_steps=20)
    np.testing.assert_allclose(states.position["b"], ours.positions["b"], rtol=1e-5)
    np.testing.assert_array_equal(infos.is_accepted, ours.infos.is_accepted)


def step_once(kernel, position):
    return kernel.step(KEY, kernel.init(position))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: mala(log_prob, 0.0), ValueError, "step_size must be > 0 and finite, got 0.0"),
        (lambda: langevin(log_prob, "small"), TypeError, "step_size must be a number, got 'small'"),
        (lambda: langevin(log_prob, jnp.ones(2)), ValueError, r"step_size must be one number, got shape \(2,\)"),
        (lambda: random_walk(log_prob, -1.0), ValueError, "scale must be > 0 and finite, got -1.0"),
        (lambda: random_walk(0.5, log_prob), TypeError, "scale must be a number"),
        (lambda: mala(None, 0.1), TypeError, "log_prob_fn must be a function, got None"),
        (lambda: independence(log_prob, None, log_prob), TypeError, "sample_and_log_prob_fn must be a function, got None"),
        (lambda: score_langevin(3, 0.1), TypeError, "score_fn must be a function, got 3"),
        (lambda: mala(log_prob, 0.1).init(jnp.zeros(2, int)), TypeError, "position must be floating point, got int32; cast it"),
        (lambda: mala(log_prob, 0.1).init({}), ValueError, "position must hold at least one array"),
        (
            lambda: random_walk(lambda x: -(x**2), 0.1).init(jnp.zeros(2)),
            ValueError,
            r"log_prob_fn must return one number for one position, got shape \(2,\); write it for one chain, and jax.vmap",
        ),
        (
            lambda: step_once(langevin(lambda x: -(x**2), 0.1), jnp.zeros(2)),
            ValueError,
            "log_prob_fn must return one number for one position",
        ),
        (
            lambda: step_once(score_langevin(lambda x: x[:1], 0.1), jnp.zeros(2)),
            ValueError,
            r"score_fn must return arrays like those of the position, float32\[2\], got float32\[1\]",
        ),
        (
            lambda: step_once(independence(jnp.sum, lambda key: (jnp.zeros(3), 0.0), jnp.sum), jnp.zeros(2)),
            ValueError,
            r"sample_and_log_prob_fn must return arrays like those of the position, float32\[2\], got float32\[3\]",
        ),
        (
            lambda: step_once(independence(jnp.sum, lambda key: (jnp.zeros(2), jnp.zeros(2)), jnp.sum), jnp.zeros(2)),
            ValueError,
            r"sample_and_log_prob_fn must return one number for one position, got shape \(2,\)",
        ),
    ],
)
def test_kernels_refuse_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be an integer >= 1, got 0"),
        ({"num_steps": 2.5}, ValueError, "num_steps must be an integer >= 1, got 2.5"),
        ({"burn_in": -1}, ValueError, "burn_in must be an integer >= 0, got -1"),
        ({"thin": 0}, ValueError, "thin must be an integer >= 1, got 0"),
        ({"num_steps": 10, "thin": 3}, ValueError, "num_steps must be a multiple of thin, got num_steps=10 and thin=3"),
        ({"state": START}, TypeError, r"state must have a position, got dict; pass kernel.init\(position\)"),
        ({"kernel": log_prob}, TypeError, "kernel.step must be a function, got None"),
        ({"key": 0}, TypeError, r"key must be a typed key, jax.random.key\(seed\)"),
    ],
)
def test_the_driver_refuses_bad_input(options, error, match):
    kernel = KERNELS["mala"]
    call = functools.partial(run, **({"key": KEY, "kernel": kernel, "state": kernel.init(START), "num_steps": 4} | options))
    with pytest.raises(error, match=match):
        call()
