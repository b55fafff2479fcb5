"""Relaxed discrete laws and straight-through draws: densities by quadrature, masses and KLs by enumeration, moments of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import genmod as gm
from genmod.densities import (
    Amortized,
    Factorized,
    Normal,
    PoissonHead,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPoisson,
    StraightThrough,
    kl_one,
)
from genmod.densities.relaxed_counts import poisson_quantile

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM, NUM = 4.5, 20_000
LOGITS = np.array([0.7, -0.6, 0.2])
ONE_HOT = np.eye(3)[:, None]
# A straight-through law of one entry, its raw numbers, all its values (n,) + event shape, and the value of the entry at each.
LAWS = {
    "categorical": (StraightThrough(RelaxedCategorical((1,), 3, 0.4)), LOGITS[None], ONE_HOT, np.arange(3)),
    "bernoulli": (StraightThrough(RelaxedBernoulli((1,), 0.4)), np.array([[0.7]]), np.array([[0.0], [1.0]]), np.arange(2)),
    "poisson": (StraightThrough(RelaxedPoisson((1,), 0.1, 6.0)), np.array([[0.7]]), np.arange(40.0)[:, None], np.arange(40)),
}
by_name = pytest.mark.parametrize("name", LAWS)


def prepared(name, dtype=np.float32):
    law, raw, values, levels = LAWS[name]
    return law, {"raw": jnp.asarray(raw, dtype)}, jnp.asarray(values, dtype), levels


@by_name
def test_masses_are_those_of_the_discrete_law(name, x64):
    law, params, values, levels = prepared(name, np.float64)
    log_mass = law.log_prob(params, values)
    head = law.relaxed.head
    raw = jnp.broadcast_to(params["raw"], (len(levels), *params["raw"].shape))
    np.testing.assert_allclose(log_mass, head.log_prob(raw, jnp.asarray(levels)[:, None])[:, 0], rtol=1e-9)
    np.testing.assert_allclose(np.exp(log_mass).sum(), 1.0, rtol=1e-9)
    assert law.log_prob(params, values[1] + 0.3) == law.log_prob(params, -values[1]) == -jnp.inf
    assert law.event == gm.Atoms(values.shape[1:]) and law.reparameterized
    with pytest.raises(TypeError, match="must be floating point, got int32; cast it"):
        law.log_prob(params, np.zeros(values.shape[1:], np.int32))


@by_name
def test_draws_follow_the_masses(name, key):
    law, params, values, _ = prepared(name)
    x = np.asarray(law.sample(params, key, (NUM,)))
    p = np.exp(np.asarray(law.log_prob(params, values), np.float64))
    which = (x[:, None] == np.asarray(values)[None]).reshape(NUM, len(values), -1).all(-1)
    assert (which.sum(1) == 1).all()
    shares = which.mean(0)
    seen = p * NUM > 5
    assert (np.abs(shares - p)[seen] < NUM_SEM * np.sqrt(p * (1 - p) / NUM)[seen]).all()
    drawn, log_prob = law.sample_and_log_prob(params, key, (5,))
    np.testing.assert_allclose(log_prob, law.log_prob(params, drawn), rtol=1e-6)


@by_name
def test_kl_in_closed_form(name, x64):
    """Against enumeration, as one of an amortised posterior and as one of integers."""
    law, params, values, levels = prepared(name, np.float64)
    other = {"raw": params["raw"] * 0.3 - 0.2 * jnp.arange(1.0, params["raw"].size + 1).reshape(params["raw"].shape)}
    log_q, log_p = (np.asarray(law.log_prob(of, values)) for of in (params, other))
    wanted = (np.exp(log_q) * (log_q - log_p)).sum()
    np.testing.assert_allclose(kl_one(law, params, None, law, other), [wanted], rtol=1e-9)
    head = law.relaxed.head
    integers = Factorized(head, (1,))
    np.testing.assert_allclose(kl_one(integers, params, None, integers, other), [wanted], rtol=1e-9)
    kernel = (params["raw"] - other["raw"]).reshape(-1, 1)
    conditional = Amortized(law, (1,))
    moved = {"distribution": other, "kernel": kernel}
    np.testing.assert_allclose(kl_one(conditional, moved, jnp.ones(1), law, other), [wanted], rtol=1e-9)
    np.testing.assert_allclose(integers.mean_one(params), [np.exp(log_q) @ levels], rtol=1e-9)


def test_the_density_of_relaxed_one_hot_vectors_by_quadrature(key, x64):
    """Its mass and the mean of a function are those of draws; of two levels it is the binary law."""
    law, params = RelaxedCategorical((), 3, 0.7), {"raw": jnp.asarray(LOGITS)}
    # Over logit coordinates, in which the density has no edge: y = softmax(u, 0), dy = prod y du.
    u = np.linspace(-30, 30, 601)
    grid = np.stack(np.meshgrid(u, u), -1).reshape(-1, 2)
    y = scipy.special.softmax(np.concatenate([grid, np.zeros((len(grid), 1))], 1), 1)
    weight = np.exp(np.asarray(law.log_prob(params, y))) * y.prod(1) * (u[1] - u[0]) ** 2
    np.testing.assert_allclose(weight.sum(), 1.0, atol=1e-6)
    x = np.asarray(law.sample(params, key, (NUM,)))
    for function in (lambda y: y, np.log, np.square):
        drawn = function(x)
        error = np.abs(drawn.mean(0) - weight @ function(y))
        assert (error < NUM_SEM * drawn.std(0) / np.sqrt(NUM) + 1e-5).all()
    pair, bit = RelaxedCategorical((), 2, 0.7), RelaxedBernoulli((), 0.7)
    y = np.array([0.01, 0.3, 0.9])
    as_pair = pair.log_prob({"raw": jnp.array([1.1, 0.4])}, np.stack([y, 1 - y], -1))
    np.testing.assert_allclose(as_pair, bit.log_prob({"raw": jnp.array([0.7])}, y), rtol=1e-9)
    for bad in ([0.5, 0.5, 0.5], [0.6, 0.6, -0.2], [1.0, 0.0, 0.0]):
        assert law.log_prob(params, np.array(bad)) == -jnp.inf


def test_the_density_of_relaxed_bits_by_quadrature(key):
    law, params = RelaxedBernoulli((2,), 0.5), {"raw": jnp.array([[0.8], [-0.3]])}
    u = np.linspace(-40, 40, 4_001)
    y = scipy.special.expit(u)
    for i, logit in enumerate((0.8, -0.3)):
        one = RelaxedBernoulli((), 0.5)
        inside = (y > 1e-6) & (y < 1 - 1e-6)
        density = np.exp(np.asarray(one.log_prob({"raw": jnp.array([logit])}, y[inside].astype(np.float32)), np.float64))
        mass = (density * (y * (1 - y))[inside]).sum() * (u[1] - u[0])
        # What lies beyond 1e-6 of an end, by the logistic noise.
        ends = scipy.stats.logistic.cdf(0.5 * scipy.special.logit([1e-6, 1 - 1e-6]) - logit)
        np.testing.assert_allclose(mass, ends[1] - ends[0], atol=1e-3)
        x = np.asarray(law.sample(params, key, (NUM,)))[:, i]
        share = scipy.special.expit(logit)
        assert abs((x > 0.5).mean() - share) < NUM_SEM * np.sqrt(share * (1 - share) / NUM)
    assert law.log_prob(params, jnp.array([0.5, 1.0])) == law.log_prob(params, jnp.array([-0.1, 0.5])) == -jnp.inf
    cold = RelaxedBernoulli((2,), 0.05)
    x, log_prob = cold.sample_and_log_prob(params, key, (1_000,))
    assert (x > 0).all() and (x < 1).all() and np.isfinite(log_prob).all()
    x, log_prob = RelaxedCategorical((), 3, 0.05).sample_and_log_prob({"raw": jnp.asarray(LOGITS, jnp.float32)}, key, (1_000,))
    assert (x > 0).all() and np.isfinite(log_prob).all()


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5])
def test_relaxed_counts_have_the_moments_of_campbell(temperature, key):
    """Mean, variance and gradient by Campbell's theorem; all tend to the rate, and 1, of the Poisson law."""
    law = RelaxedPoisson((2,), temperature, 9.0)
    raw = jnp.log(jnp.array([[0.5], [6.0]]))
    rate = 1 / (1 / 9.0 + 1 / np.exp(20 * np.tanh(np.asarray(raw)[:, 0] / 20)))
    np.testing.assert_allclose(law.head.mean(raw), rate, rtol=1e-5)

    def one(key):
        soft, back = jax.vjp(lambda raw: law.draws(raw, key)[0], raw)
        return soft, law.draws(raw, key)[1], back(jnp.ones(2))[0][:, 0]

    soft, hard, slope = (np.asarray(a, np.float64) for a in jax.vmap(one)(jax.random.split(key, NUM)))
    area = temperature * np.log1p(np.exp(1 / temperature))
    square = area - temperature * scipy.special.expit(1 / temperature)
    chain = rate**2 / np.exp(20 * np.tanh(np.asarray(raw)[:, 0] / 20)) * (1 - np.tanh(np.asarray(raw)[:, 0] / 20) ** 2)
    for found, mean, variance in ((soft, rate * area, rate * square), (hard, rate, rate), (slope, chain * area, None)):
        error = np.abs(found.mean(0) - mean)
        assert (error < NUM_SEM * found.std(0) / np.sqrt(NUM) + 2e-4 * rate).all()
        if variance is not None:
            fourth = ((found - found.mean(0)) ** 4).mean(0)
            assert (np.abs(found.var(0) - variance) < NUM_SEM * np.sqrt((fourth - found.var(0) ** 2) / NUM) + 2e-4 * rate).all()
    if temperature == 0.01:
        assert (np.abs(soft.mean(0) - rate) < 0.02 * rate).all() and (np.abs(soft.var(0) - rate) < 0.05 * rate).all()


def test_the_number_of_events_covers_the_largest_rate():
    for rate in (0.1, 3.0, 60.0):
        n = poisson_quantile(rate, 1e-6)
        assert scipy.stats.poisson.sf(n, rate) <= 1e-6 < scipy.stats.poisson.sf(n - 2, rate)
    assert RelaxedPoisson((), 0.1, 5.0).num_events == poisson_quantile(10.0, 1e-6)


# d log P(x) / dx of the smooth extension.
SLOPES = {
    "categorical": lambda raw, x: jax.nn.log_softmax(raw),
    "bernoulli": lambda raw, x: raw[:, 0],
    "poisson": lambda raw, x: PoissonHead(6.0).log_rate(raw) - jax.scipy.special.digamma(x + 1.0),
}


@by_name
def test_a_gradient_passes_through_the_draws(name, key):
    """That of the relaxed draw by the same noise, through the log-mass too."""
    law, params, values, _ = prepared(name)
    weight = jnp.arange(1.0, values[0].size + 1).reshape(values[0].shape)

    def grad(draw):
        return jax.grad(lambda params: jnp.sum(weight * draw(params)))(params)["raw"]

    through = grad(lambda params: law.sample_one(params, key))
    np.testing.assert_allclose(through, grad(lambda params: law.relaxed.sample_one(params, key)), rtol=1e-5)
    assert np.abs(through).max() > 1e-3
    x = law.sample_one(params, key)
    at = jax.grad(lambda x: law.log_prob_one(params, x))(x)
    np.testing.assert_allclose(at, SLOPES[name](params["raw"], x), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: RelaxedBernoulli((2,), 0.0), ValueError, "temperature must be > 0"),
        (lambda: RelaxedCategorical((2,), 1), ValueError, "num_levels must be >= 2, got 1"),
        (lambda: RelaxedPoisson((2,), max_rate=-1.0), ValueError, "max_rate must be > 0"),
        (lambda: PoissonHead(0.0), ValueError, "max_rate must be > 0"),
        (lambda: RelaxedBernoulli(2), TypeError, r"shape must be a tuple of integers, got 2; write \(2,\)"),
        (lambda: StraightThrough(Normal((2,))), TypeError, "relaxed must be a Relaxed, got Normal"),
        (
            lambda: RelaxedPoisson((2,)).log_prob({"raw": jnp.zeros((2, 1))}, jnp.zeros(2)),
            NotImplementedError,
            "RelaxedPoisson has no log_prob",
        ),
        # A mass and a density have no KL.
        (
            lambda: kl_one(LAWS["bernoulli"][0], {"raw": jnp.zeros((1, 1))}, None, Normal((1,)), {}),
            ValueError,
            r"must have the same events, got Atoms\(shape=\(1,\)\) and Real\(shape=\(1,\)\)",
        ),
    ],
)
def test_refuses(make, error, match):
    with pytest.raises(error, match=match):
        make()
