"""Annealed importance sampling and sequential Monte Carlo against normalising constants known by hand or by enumeration."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.samplers import (
    Kernel,
    annealed_importance,
    geometric_bridge,
    mala,
    random_walk,
    reverse_annealed_importance,
    sequence_bridge,
    sequential_monte_carlo,
    sigmoid_levels,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
NUM_CHAINS = 4_000

# The start: a ~ N(0, 1), b ~ N(0, 1). The end: 3.7 (0.3 N(a; -1, 1/4) + 0.7 N(a; 1.5, 1)) N(b; a, 1/4), skew.
WEIGHTS, MEANS, SCALES = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.5, 1.0])
LOG_Z = np.log(3.7)


class Chain(NamedTuple):
    position: Any


def start(x):
    return jax.scipy.stats.norm.logpdf(x["a"]) + jax.scipy.stats.norm.logpdf(x["b"])


def end(x):
    mixture = jax.scipy.stats.norm.logpdf(x["a"][None], MEANS.astype(np.float32), SCALES.astype(np.float32))
    given = jax.scipy.stats.norm.logpdf(x["b"], x["a"], 0.5)
    return LOG_Z.astype(np.float32) + jax.nn.logsumexp(mixture + np.log(WEIGHTS).astype(np.float32)) + given


def start_draws(key):
    keys = jax.random.split(key)
    return {"a": jax.random.normal(keys[0], (NUM_CHAINS,)), "b": jax.random.normal(keys[1], (NUM_CHAINS,))}


def end_draws(key):
    keys = jax.random.split(key, 3)
    which = jax.random.bernoulli(keys[0], WEIGHTS[1], (NUM_CHAINS,)).astype(int)
    a = MEANS.astype(np.float32)[which] + SCALES.astype(np.float32)[which] * jax.random.normal(keys[1], (NUM_CHAINS,))
    return {"a": a, "b": a + 0.5 * jax.random.normal(keys[2], (NUM_CHAINS,))}


def by_mala(log_prob_fn, level):
    return mala(log_prob_fn, 0.1)


def by_random_walk(log_prob_fn, level):
    return random_walk(log_prob_fn, 1.0 - 0.5 * level)  # finer towards the end


def check_mean(values, wanted):
    values = np.asarray(values, np.float64)
    assert abs(values.mean() - wanted) < NUM_SEM * values.std() / np.sqrt(values.size), (values.mean(), wanted)


@pytest.mark.parametrize("kernel_fn", [by_mala, pytest.param(by_random_walk, marks=pytest.mark.slow)])
def test_a_two_sided_bracket(key, kernel_fn):
    """The weights have the right expectation in both directions; the mean logs lie on both sides of the truth."""
    keys = jax.random.split(key, 3)
    chain_keys = jax.random.split(keys[0], NUM_CHAINS)
    bridge, levels = geometric_bridge(start, end), sigmoid_levels(8)

    def run(sampler, positions, levels):
        return jax.jit(jax.vmap(lambda key, x: sampler(key, x, bridge, kernel_fn, levels, num_steps=2)))(chain_keys, positions)

    forward = run(annealed_importance, start_draws(keys[1]), levels)
    backward = run(reverse_annealed_importance, end_draws(keys[2]), levels)
    check_mean(np.exp(forward.log_weight - LOG_Z), 1.0)
    check_mean(np.exp(backward.log_weight + LOG_Z), 1.0)
    low, high = float(forward.log_weight.mean()), -float(backward.log_weight.mean())
    assert low < LOG_Z - 0.02 and high > LOG_Z + 0.02
    assert forward.infos.acceptance_rate.shape == (NUM_CHAINS, 8)
    # Weighted, where the chains end is a sample of the end.
    share = jax.nn.softmax(forward.log_weight)
    mean = float(share @ forward.position["a"])
    assert abs(mean - WEIGHTS @ MEANS) < NUM_SEM * float(jnp.sqrt(share**2 @ (forward.position["a"] - mean) ** 2))
    # Without levels between it is importance sampling from the start.
    plain = run(annealed_importance, start_draws(keys[1]), np.array([0.0, 1.0]))
    draws = start_draws(keys[1])
    assert plain.log_weight.mean() < low - 0.1
    np.testing.assert_allclose(plain.log_weight, jax.vmap(end)(draws) - jax.vmap(start)(draws), rtol=1e-5, atol=1e-5)


def test_densities_one_by_one(key):
    """A sequence of functions is the bridge that it spells out, and need not be geometric."""
    levels = np.array([0.0, 0.4, 1.0], np.float32)
    bridge = geometric_bridge(start, end)
    spelled = sequence_bridge(*(functools.partial(bridge, beta=beta) for beta in levels))
    x = {"a": jnp.float32(0.3), "b": jnp.float32(-0.7)}
    found = [annealed_importance(key, x, fn, by_mala, at).log_weight for fn, at in ((bridge, levels), (spelled, jnp.arange(3)))]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_sequential_monte_carlo(key):
    """The exponential of every run's log-ratio has the right expectation, whether it resamples always, at need, or never."""
    keys = jax.random.split(key)
    draws = jax.tree.map(lambda leaf: leaf.reshape(200, 20), start_draws(keys[1]))
    bridge, levels = geometric_bridge(start, end), sigmoid_levels(5)
    spread = {}
    for share in (0.0, 0.5, 1.0):
        run = jax.jit(
            jax.vmap(lambda key, x, share=share: sequential_monte_carlo(key, x, bridge, by_mala, levels, resample_below=share))
        )
        found = run(jax.random.split(keys[0], 200), draws)
        check_mean(np.exp(found.log_ratio - LOG_Z), 1.0)
        np.testing.assert_allclose(jax.nn.logsumexp(found.log_weights, axis=1), 0.0, atol=1e-5)
        spread[share] = float(found.log_weights.std(1).mean())
    assert spread[1.0] < 1e-5 < spread[0.5] < spread[0.0]
    assert found.infos.is_accepted.shape == (200, 5, 20)


def test_spins_by_gibbs_sampling(key):
    """Four coupled spins from independent ones, by a kernel that is a function of the level; against the sum over all states."""
    couplings = np.array([[0, 0.9, -0.4, 0.2], [0, 0, 0.7, -0.8], [0, 0, 0, 0.5], [0, 0, 0, 0]], np.float32)
    couplings, fields = jnp.asarray(couplings + couplings.T), jnp.array([0.3, -0.6, 0.2, 0.1])

    def log_prob(s, beta):
        return jnp.dot(fields, s) + 0.5 * beta * jnp.dot(s, jnp.matmul(couplings, s))

    def gibbs(log_prob_fn, beta):
        def step(key, state):
            # One spin, chosen at random: reversible.
            keys = jax.random.split(key)
            i = jax.random.randint(keys[0], (), 0, 4)
            up = jax.nn.sigmoid(2 * (fields[i] + beta * jnp.dot(couplings[i], state.position)))
            spin = jnp.where(jax.random.bernoulli(keys[1], up), 1.0, -1.0)
            return state._replace(position=state.position.at[i].set(spin)), ()

        return Kernel(Chain, step)

    states = jnp.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    log_z = {beta: float(jax.nn.logsumexp(jax.vmap(log_prob, (0, None))(states, beta))) for beta in (0.0, 1.0)}
    wanted = log_z[1.0] - log_z[0.0]
    keys = jax.random.split(key, 3)

    def draws(beta, key):
        return states[jax.random.categorical(key, jax.vmap(log_prob, (0, None))(states, beta), shape=(NUM_CHAINS,))]

    for sampler, beta, sign in ((annealed_importance, 0.0, 1), (reverse_annealed_importance, 1.0, -1)):
        run = jax.jit(
            jax.vmap(lambda key, s, sampler=sampler: sampler(key, s, log_prob, gibbs, jnp.linspace(0, 1, 6), num_steps=4))
        )
        found = run(jax.random.split(keys[0], NUM_CHAINS), draws(beta, keys[1])).log_weight
        check_mean(np.exp(found - sign * wanted), 1.0)
        assert sign * (wanted - sign * float(found.mean())) > 0.02


def test_levels():
    levels = sigmoid_levels(50)
    assert levels[0] == 0.0 and levels[-1] == 1.0 and levels.shape == (51,)
    np.testing.assert_allclose(levels + levels[::-1], 1.0, rtol=1e-12)
    assert (np.diff(levels) > 0).all() and np.diff(levels)[25] > 2 * np.diff(levels)[0]
    # What one end excludes costs nothing at the other.
    bridge = geometric_bridge(lambda x: -jnp.inf * x, lambda x: 2.0 * x)
    np.testing.assert_array_equal([bridge(jnp.float32(1.0), beta) for beta in (1.0, 0.5)], [2.0, -jnp.inf])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda run: run(levels=np.zeros(1)), ValueError, "levels must have a leading axis of at least two levels"),
        (lambda run: run(levels={"a": np.zeros(3), "b": np.zeros(4)}), ValueError, "the same in all arrays"),
        (lambda run: run(num_steps=0), ValueError, "num_steps must be an integer >= 1, got 0"),
        (lambda run: run(kernel_fn=0.1), TypeError, "kernel_fn must be a function, got 0.1"),
        (lambda run: run(log_prob_fn=lambda x, beta: x), ValueError, "log_prob_fn must return one number"),
        (lambda run: sigmoid_levels(0), ValueError, "num_levels must be an integer >= 1"),
        (lambda run: sigmoid_levels(4, -1.0), ValueError, "steepness must be > 0"),
        (lambda run: run(sequential_monte_carlo, resample_below=2.0), ValueError, "resample_below must be a share"),
    ],
)
def test_bad_arguments(key, call, error, match):
    def run(sampler=annealed_importance, **arguments):
        given = {"log_prob_fn": lambda x, beta: -beta * jnp.sum(x**2), "kernel_fn": by_mala, "levels": np.linspace(0, 1, 3)}
        return sampler(key, jnp.zeros(2), **given | arguments)

    with pytest.raises(error, match=match):
        call(run)
