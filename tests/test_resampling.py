"""Resampling schemes and sampling-importance-resampling against laws that are enumerated."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.samplers import (
    WeightedDraws,
    gumbel_top_k,
    importance_sample,
    multinomial_resampling,
    sampling_importance_resampling,
    stratified_resampling,
    systematic_resampling,
)

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEY = jax.random.key(0)
WEIGHTS = np.array([0.05, 0.0, 0.4, 0.17, 0.38])
LOG_WEIGHTS = jnp.log(jnp.asarray(WEIGHTS, jnp.float32)) + 500.0  # up to a constant
P, Q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])


def counts(resampler, num, repeats=4_000):
    indices = jax.jit(jax.vmap(lambda key: resampler(key, LOG_WEIGHTS, num)))(jax.random.split(KEY, repeats))
    assert indices.shape == (repeats, num)
    return np.stack([np.bincount(row, minlength=5) for row in np.asarray(indices)])


@pytest.mark.parametrize(
    ("resampler", "reach"), [(multinomial_resampling, math.inf), (stratified_resampling, 2.0), (systematic_resampling, 1.0)]
)
def test_numbers_of_survivors(resampler, reach):
    """Right in expectation, and as close to it as each scheme promises."""
    for num in (3, 12):
        found = counts(resampler, num)
        sem = found.std(0) / np.sqrt(len(found))
        assert (np.abs(found.mean(0) - num * WEIGHTS) <= NUM_SEM * sem + 1e-3 * num).all()
        assert (np.abs(found - num * WEIGHTS) < reach + 1e-4).all()
        assert (found[:, 1] == 0).all()
    if reach == math.inf:  # the covariance of independent choices
        wanted = 12 * (np.diag(WEIGHTS) - np.outer(WEIGHTS, WEIGHTS))
        np.testing.assert_allclose(np.cov(found.T), wanted, atol=NUM_SEM * 12 * 0.3 / np.sqrt(len(found)))


def test_without_replacement():
    """The law of ordered pairs is that of drawing one after the other."""
    pairs = np.asarray(jax.jit(jax.vmap(lambda key: gumbel_top_k(key, LOG_WEIGHTS, 2)))(jax.random.split(KEY, 20_000)))
    for i, j in itertools.permutations((0, 2, 3, 4), 2):
        wanted = WEIGHTS[i] * WEIGHTS[j] / (1 - WEIGHTS[i])
        found = ((pairs[:, 0] == i) & (pairs[:, 1] == j)).mean()
        assert abs(found - wanted) < NUM_SEM * np.sqrt(wanted * (1 - wanted) / 20_000)
    assert (counts(gumbel_top_k, 4, 200)[:, [0, 2, 3, 4]] == 1).all()
    with pytest.raises(ValueError, match="num must be at most the number of draws, 5, got 6; draw more, or replace"):
        gumbel_top_k(KEY, LOG_WEIGHTS, 6)


@pytest.mark.parametrize("resampler", [multinomial_resampling, stratified_resampling, systematic_resampling, gumbel_top_k])
def test_weights_that_are_none(resampler):
    """NaN is a weight of zero, and a choice among zeros alone is refused."""
    broken = LOG_WEIGHTS.at[1].set(jnp.nan)
    np.testing.assert_array_equal(resampler(KEY, broken, 4), resampler(KEY, LOG_WEIGHTS, 4))
    for nothing in (jnp.full(5, -jnp.inf), jnp.full(5, jnp.nan)):
        with pytest.raises(ValueError, match="^log_weights must hold a weight above zero, got only -inf or NaN"):
            resampler(KEY, nothing, 4)
        with pytest.raises(ValueError, match=r"^draws\.log_weights must hold a weight above zero"):
            sampling_importance_resampling(KEY, WeightedDraws(jnp.arange(5.0), nothing), 4, resampler=resampler)
        assert jax.jit(resampler, static_argnums=2)(KEY, nothing, 4).shape == (4,)
    with pytest.raises(ValueError, match="log_weights must be below inf, got inf"):
        resampler(KEY, LOG_WEIGHTS.at[1].set(jnp.inf), 4)


def test_many_weights_in_single_precision():
    """Each of 2^21 - 1 equal weights survives; of unequal ones, each as often as its share in double precision says."""
    num = 2**21 - 1
    np.testing.assert_array_equal(systematic_resampling(KEY, jnp.full(num, -3.3), num), np.arange(num))
    log_w = jax.random.normal(KEY, (num,))
    share = np.exp(np.asarray(log_w, np.float64))
    share *= num / share.sum()
    found = np.bincount(systematic_resampling(KEY, log_w, num), minlength=num)
    # One by the scheme, and roundings of the exponential, the total and their product: a few eps of each share.
    assert (np.abs(found - share) < 1 + 1e-6 * (1 + share)).all()
    assert np.abs(np.cumsum(found) - np.cumsum(share)).max() < 1 + 8 * 2**-24 * num
    high = np.bincount(multinomial_resampling(KEY, jnp.zeros(num), num) % 64, minlength=64)
    assert (np.abs(high - num / 64) < NUM_SEM * np.sqrt(num / 64)).all()


def law_of_resampled(num):
    """The exact law of one draw among `num` proposals: over all counts of the three states, multinomial under Q."""
    law = np.zeros(3)
    for first, second in itertools.product(range(num + 1), repeat=2):
        third = num - first - second
        if third >= 0:
            n = np.array([first, second, third])
            ways = math.factorial(num) / math.prod(math.factorial(k) for k in n.tolist())
            weight = n * P / Q
            law += ways * np.prod(Q**n) * weight / weight.sum()
    return law


def test_the_law_of_sampling_importance_resampling_converges():
    """It begins at q, ends at p with an error of order 1/N, and is the enumerated one on the way."""
    distance = {num: 0.5 * np.abs(law_of_resampled(num) - P).sum() for num in (1, 8, 16, 32)}
    np.testing.assert_allclose(law_of_resampled(1), Q)
    assert distance[8] < 0.2 * distance[1]
    np.testing.assert_allclose([distance[8] / distance[16], distance[16] / distance[32]], 2.0, rtol=0.12)
    p, q = (jnp.asarray(v, jnp.float32) for v in (P, Q))

    def propose(key):
        i = jax.random.categorical(key, jnp.log(q))
        return i, jnp.log(q)[i]

    for num, resampler in ((2, systematic_resampling), (8, multinomial_resampling), (8, gumbel_top_k)):

        def once(key, num=num, resampler=resampler):
            keys = jax.random.split(key)
            draws = importance_sample(keys[0], lambda i: jnp.log(p)[i] + 7.0, propose, num)
            return sampling_importance_resampling(keys[1], draws, 1, resampler=resampler).positions[0]

        found = np.bincount(np.asarray(jax.jit(jax.vmap(once))(jax.random.split(KEY, 20_000))), minlength=3) / 20_000
        wanted = law_of_resampled(num)
        assert (np.abs(found - wanted) < NUM_SEM * np.sqrt(wanted * (1 - wanted) / 20_000)).all()


def test_positions_of_any_form_are_chosen():
    positions = {"a": jnp.arange(5.0), "b": jnp.arange(10).reshape(5, 2)}
    found = sampling_importance_resampling(KEY, WeightedDraws(positions, LOG_WEIGHTS), 7)
    np.testing.assert_array_equal(found.positions["a"], found.indices)
    np.testing.assert_array_equal(found.positions["b"][:, 0], 2 * found.indices)
    with pytest.raises(TypeError, match="resampler must be a function, got 'systematic'"):
        sampling_importance_resampling(KEY, WeightedDraws(positions, LOG_WEIGHTS), 7, resampler="systematic")
    with pytest.raises(ValueError, match="num_draws must be an integer >= 1, got 0"):
        sampling_importance_resampling(KEY, WeightedDraws(positions, LOG_WEIGHTS), 0)
