"""Gradient estimators against enumeration, closed forms and quadrature: their means, their variances, and the bias of some."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import genmod as gm
from experiments import gradient_variance as comparison
from genmod import losses
from genmod.losses import (
    MovingAverage,
    binary_concrete,
    gradient_variance,
    gumbel_softmax,
    leave_one_out,
    reinforce,
    reinforce_moving_average,
    reparameterized,
    score_function_surrogate,
    straight_through,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM, NUM = 4.5, 20_000
statistics = jax.jit(gradient_variance, static_argnums=(0, 3))


def check(found, mean, variance):
    """Mean and variance of every entry, within their standard errors."""
    jax.tree.map(
        lambda m, s, w: np.testing.assert_array_less(np.abs(m - w), NUM_SEM * s + 1e-6), found.mean, found.mean_sem, mean
    )
    if variance is not None:
        errors = jax.tree.map(lambda v, w: np.abs(v - w), found.variance, variance)
        jax.tree.map(lambda e, s: np.testing.assert_array_less(e, NUM_SEM * s), errors, found.variance_sem)


# --- a categorical law, by enumeration ----------------------------------------------------------------------------------------

LOGITS, PAYOFFS = np.array([0.4, -1.0, 0.3]), np.array([3.0, 0.5, 5.0])


def payoff(logits, x):
    """Which depends on the parameters too."""
    return jnp.asarray(PAYOFFS)[x] + 0.5 * logits[x] ** 2


def draw(logits, key):
    return jax.random.categorical(key, logits)


def log_mass(logits, x):
    return jax.nn.log_softmax(logits)[x]


OF_CATEGORICAL = payoff, draw, log_mass
STATE = MovingAverage.start().updated(2.0, 0.5).updated(4.0, 0.5)
CATEGORICAL = {
    "no_baseline": (functools.partial(reinforce, *OF_CATEGORICAL), 1, lambda f: np.zeros_like(f)),
    "constant": (functools.partial(reinforce, *OF_CATEGORICAL, baseline=3.5), 1, lambda f: np.full_like(f, 3.5)),
    # 1/3 of the older value, 2/3 of the newer.
    "moving_average": (
        lambda params, key: reinforce_moving_average(*OF_CATEGORICAL, params, key, STATE)[0],
        1,
        lambda f: np.full_like(f, 10 / 3),
    ),
    "two_draws": (functools.partial(reinforce, *OF_CATEGORICAL, num_samples=2), 2, lambda f: np.zeros_like(f)),
    "leave_one_out": (
        functools.partial(reinforce, *OF_CATEGORICAL, num_samples=2, baseline=leave_one_out),
        2,
        lambda f: f[::-1],
    ),
}


def enumerated(num, baseline):
    """Mean and variance of the gradient of `num` draws, over all tuples of draws."""
    p = scipy.special.softmax(LOGITS)
    f = PAYOFFS + 0.5 * LOGITS**2
    rows, weights = [], []
    for xs in itertools.product(range(3), repeat=num):
        x = np.array(xs)
        one = np.eye(3)[x]
        rows.append((one * LOGITS + (f[x] - baseline(f[x]))[:, None] * (one - p)).mean(0))
        weights.append(p[x].prod())
    rows, weights = np.array(rows), np.array(weights)
    mean = weights @ rows
    return mean, weights @ (rows - mean) ** 2


@pytest.mark.parametrize("name", CATEGORICAL)
def test_score_functions_against_enumeration(name, key):
    estimator, num, baseline = CATEGORICAL[name]
    mean, variance = enumerated(num, baseline)
    exact = jax.grad(lambda logits: jnp.sum(jax.nn.softmax(logits) * (jnp.asarray(PAYOFFS) + 0.5 * logits**2)))
    np.testing.assert_allclose(mean, exact(jnp.asarray(LOGITS, jnp.float32)), rtol=1e-5)
    check(statistics(estimator, jnp.asarray(LOGITS, jnp.float32), key, NUM), mean, variance)


def test_leaving_one_out_lowers_the_variance():
    """In the sum over the entries; that of a rare level with a payoff near zero may rise."""
    plain, left_out = (enumerated(*CATEGORICAL[name][1:])[1] for name in ("two_draws", "leave_one_out"))
    assert left_out.sum() < 0.4 * plain.sum() and left_out[1] > plain[1]
    np.testing.assert_allclose(leave_one_out(jnp.array([1.0, 2.0, 6.0])), [4.0, 3.5, 1.5])


def test_the_surrogate_has_the_value_of_the_mean(key):
    """Of f over the draws, whatever the baseline; and draws may be a pytree."""
    logits = jnp.asarray(LOGITS, jnp.float32)

    def pair(logits, key):
        return {"x": draw(logits, key), "half": jnp.float32(0.5)}

    values = [
        reinforce(
            lambda logits, x: payoff(logits, x["x"]) + x["half"],
            pair,
            lambda logits, x: log_mass(logits, x["x"]),
            logits,
            key,
            5,
            baseline=baseline,
        )
        for baseline in (0.0, 7.0, leave_one_out)
    ]
    xs = jax.vmap(lambda k: draw(logits, k))(jax.random.split(key, 5))
    np.testing.assert_allclose(values, np.full(3, np.mean([payoff(logits, x) + 0.5 for x in xs])), rtol=1e-6)


# --- a Gaussian and a quadratic: both estimators in closed form -----------------------------------------------------------------


def test_the_ratio_of_variances_of_a_gaussian(key):
    """E(x - c)^2, x ~ N(m, s^2). With d = m - c the variances of the gradient in m are 4 s^2 and d^4 / s^2 + 14 d^2 + 15 s^2."""
    c, m, s = -0.3, 0.5, 0.7
    d = m - c
    params = {"mean": jnp.float32(m), "log_scale": jnp.log(jnp.float32(s))}

    def value(params, x):
        return (x - c) ** 2

    def sample(params, key):
        return params["mean"] + jnp.exp(params["log_scale"]) * jax.random.normal(key)

    def log_prob(params, x):
        return jax.scipy.stats.norm.logpdf(x, params["mean"], jnp.exp(params["log_scale"]))

    through = statistics(functools.partial(reparameterized, value, sample), params, key, NUM)
    score = statistics(functools.partial(reinforce, value, sample, log_prob), params, key, NUM)
    mean = {"mean": 2 * d, "log_scale": 2 * s**2}
    of_through = {"mean": 4 * s**2, "log_scale": 4 * d**2 * s**2 + 8 * s**4}
    of_score = {"mean": d**4 / s**2 + 14 * d**2 + 15 * s**2, "log_scale": 2 * d**4 + 60 * d**2 * s**2 + 74 * s**4}
    check(through, mean, of_through)
    check(score, mean, of_score)
    ratio = float(score.total_variance / through.total_variance)
    assert ratio == pytest.approx(sum(of_score.values()) / sum(of_through.values()), rel=0.1)
    # Averages of n draws have an n-th of the variance, a constant baseline of E f less than none.
    check(statistics(functools.partial(reparameterized, value, sample, num_samples=4), params, key, NUM), mean, None)
    held = statistics(functools.partial(reinforce, value, sample, log_prob, baseline=d**2 + s**2), params, key, NUM)
    check(held, mean, None)
    assert float(held.total_variance) < 0.7 * float(score.total_variance)


# --- relaxations: what they are unbiased for, and the bias that they have -------------------------------------------------------

LOGIT, TARGET, TEMPERATURE = -0.8, 0.45, 0.6


def squared(logit, b):
    return (b - TARGET) ** 2


def hard_bit(logit, key):
    return straight_through(jax.random.bernoulli(key, jax.nn.sigmoid(logit)), jax.nn.sigmoid(logit))


def relaxed_bit(logit, key):
    return binary_concrete(logit, key, TEMPERATURE)


def relaxed_hard_bit(logit, key):
    soft = relaxed_bit(logit, key)
    return straight_through(soft > 0.5, soft)


def relaxed_pair(logit, key):
    """The same law by two Gumbels."""
    return gumbel_softmax(jnp.stack([logit, 0.0]), key, TEMPERATURE)[0]


def expected(name):
    """The mean of the gradient in the logit: closed form for bits, quadrature over the noise for relaxations."""
    p = scipy.special.expit(LOGIT)
    if name == "hard_bit":
        return p * (1 - p) * 2 * (p - TARGET)
    u = (np.arange(200_000) + 0.5) / 200_000
    y = scipy.special.expit((LOGIT + scipy.special.logit(u)) / TEMPERATURE)
    at = np.round(y) if name == "relaxed_hard_bit" else y
    return (2 * (at - TARGET) * y * (1 - y) / TEMPERATURE).mean()


@pytest.mark.parametrize("sample", [hard_bit, relaxed_bit, relaxed_hard_bit, relaxed_pair])
def test_the_bias_of_relaxations(sample, key):
    """The gradient of E(b - t)^2 is p (1 - p) (1 - 2 t); that of straight-through p (1 - p) 2 (p - t), here of the other sign."""
    found = statistics(functools.partial(reparameterized, squared, sample), jnp.float32(LOGIT), key, NUM)
    check(found, expected(sample.__name__), None)
    p = scipy.special.expit(LOGIT)
    exact = p * (1 - p) * (1 - 2 * TARGET)
    assert abs(found.mean - exact) > 20 * found.mean_sem
    if sample is hard_bit:
        assert found.mean < 0 < exact


def test_relaxed_draws_and_hard_ones(key):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    soft = gumbel_softmax(logits, key, 0.3)
    np.testing.assert_allclose(soft.sum(-1), np.ones(4), rtol=1e-6)
    hard = straight_through(soft > 0.5, soft)
    assert set(np.unique(hard)) <= {0.0, 1.0} and hard.dtype == soft.dtype
    through, plain = (
        jax.grad(lambda logits, f=f: jnp.sum(f(gumbel_softmax(logits, key, 0.3)) * jnp.arange(12.0).reshape(4, 3)))(logits)
        for f in (lambda y: straight_through(y > 0.5, y), lambda y: y)
    )
    np.testing.assert_array_equal(through, plain)
    # The largest entry is a draw of the categorical law at any temperature.
    keys = jax.random.split(key, NUM)
    which = jax.vmap(lambda k: jnp.argmax(gumbel_softmax(logits[0], k, 2.0)))(keys)
    p = scipy.special.softmax(np.asarray(logits[0]))
    assert (np.abs(np.bincount(which, minlength=3) / NUM - p) < NUM_SEM * np.sqrt(p * (1 - p) / NUM)).all()


# --- states, measurements, mistakes ---------------------------------------------------------------------------------------------


def test_a_moving_average_is_a_state():
    """1 - decay of the newest value; without the bias of the start; no gradient passes."""
    state = MovingAverage.start()
    assert float(state.value) == 0.0
    values, decay = [3.0, -1.0, 4.0], 0.8
    for i, value in enumerate(values):
        state = jax.jit(MovingAverage.updated, static_argnums=2)(state, value, decay)
        weights = decay ** np.arange(i, -1, -1.0)
        np.testing.assert_allclose(state.value, weights @ values[: i + 1] / weights.sum(), rtol=1e-6)
    assert float(jax.grad(lambda v: MovingAverage.start().updated(v).value)(2.0)) == 0.0
    logits = jnp.asarray(LOGITS, jnp.float32)
    step = functools.partial(reinforce_moving_average, *OF_CATEGORICAL, decay=0.9)
    (surrogate, after), gradient = jax.value_and_grad(step, has_aux=True)(logits, jax.random.key(0), state)
    np.testing.assert_allclose(after.total, 0.9 * state.total + 0.1 * surrogate, rtol=1e-6)
    wanted = jax.grad(functools.partial(reinforce, *OF_CATEGORICAL))(logits, jax.random.key(0), baseline=state.value)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5)


def test_statistics_of_a_known_law(key):
    """A gradient that is uniform on [0, 1], of mean 1/2 and variance 1/12, beside one that is 1; with NumPy on the same rows."""
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.float32(3.0)}

    def estimator(params, key):
        return jnp.sum(params["a"] * jax.random.uniform(key, (2,))) + params["b"]

    found = statistics(estimator, params, key, NUM)
    check(found, {"a": np.full(2, 0.5), "b": 1.0}, None)
    assert found.variance["b"] == found.mean_sem["b"] == found.variance_sem["b"] == 0
    np.testing.assert_array_less(np.abs(found.variance["a"] - 1 / 12), NUM_SEM * found.variance_sem["a"])
    rows = np.asarray(jax.vmap(lambda k: jax.random.uniform(k, (2,)))(jax.random.split(key, NUM)), np.float64)
    np.testing.assert_allclose(found.variance["a"], rows.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(found.mean_sem["a"], rows.std(0, ddof=1) / np.sqrt(NUM), rtol=1e-4)
    # The fourth central moment of a uniform law is 1/80.
    np.testing.assert_allclose(found.variance_sem["a"], np.sqrt((1 / 80 - 1 / 144) / NUM), rtol=0.05)
    np.testing.assert_allclose(found.total_variance, rows.var(0, ddof=1).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: reparameterized(lambda p, x: jnp.zeros(2), draw, jnp.zeros(3), jax.random.key(0)),
            "value_fn must give a scalar",
        ),
        (lambda: reinforce(*OF_CATEGORICAL, jnp.zeros(3), jax.random.key(0), 0), "num_samples must be an integer >= 1, got 0"),
        (
            lambda: reinforce(payoff, draw, lambda p, x: jnp.zeros(2), jnp.zeros(3), jax.random.key(0)),
            r"log_prob_fn must give a scalar for ONE draw, got shape \(2,\)",
        ),
        (
            lambda: reinforce(*OF_CATEGORICAL, jnp.zeros(3), jax.random.key(0), baseline=leave_one_out),
            r"leave_one_out wants values \(n,\) of at least two draws, got \(1,\)",
        ),
        (
            lambda: reinforce(*OF_CATEGORICAL, jnp.zeros(3), jax.random.key(0), 2, baseline=jnp.zeros(3)),
            r"baseline must be a number, or one for each of 2 draws, got shape \(3,\)",
        ),
        (lambda: score_function_surrogate(jnp.zeros(3), jnp.zeros(2)), r"one shape \(n,\), got \(3,\) and \(2,\)"),
        (lambda: MovingAverage.start().updated(1.0, 1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: gradient_variance(lambda p, k: p, 1.0, jax.random.key(0), 3), "num_keys must be >= 4, got 3"),
        (lambda: losses.ScoreFunctionELBO(1), "num_samples must be >= 2, each draw is compared with the others, got 1"),
        (lambda: losses.ScoreFunctionELBO(beta=-1.0), "beta must be >= 0"),
        (
            lambda: losses.ScoreFunctionELBO().terms_one(
                losses.Latent(lambda key: (jnp.zeros(2), jnp.zeros(())), jnp.sum, jnp.sum, jnp.sum), jax.random.key(0)
            ),
            "wants Latent.log_q",
        ),
    ],
)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.slow
def test_the_comparison(tmp_path):
    """What has no bias lies within chance of the exact gradient, and the variances in closed form are met."""
    config = comparison.Config(num_keys=4_000, dims=(3,), temperatures=(0.5,), num_warm_up=200)
    found = gm.lab.execute(comparison.experiment, config, tmp_path / "run")
    for name in ("gaussian_3_reparameterised", "gaussian_3_reinforce"):
        assert found[f"{name}_variance"] == pytest.approx(found[f"{name}_exact_variance"], rel=0.1)
    scores = ("reinforce", "reinforce_moving_average", "reinforce_leave_one_out")
    for name in (
        "gaussian_3_reparameterised",
        *(f"{problem}_{score}" for problem in ("gaussian_3", "one_hot") for score in scores),
    ):
        # A sum of squares: twice its square root is further out than 4.5 standard errors of one entry.
        assert found[f"{name}_error_of_the_mean"] < 2 * found[f"{name}_by_chance"], name
    for name in ("straight-through_softmax", "Gumbel-softmax_0.5", "straight-through_Gumbel-softmax_0.5"):
        assert found[f"one_hot_{name}_error_of_the_mean"] > 5 * found[f"one_hot_{name}_by_chance"]
        assert found[f"one_hot_{name}_ratio"] < 0.2
    assert {"gradient_variance.png", "gaussian_3.txt", "one_hot.txt", "metrics.json"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
