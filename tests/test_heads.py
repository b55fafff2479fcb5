"""Heads against enumeration, quadrature and SciPy. A new head is one line of HEADS."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from genmod.core.event import Counts, Levels, Real
from genmod.densities.heads import BernoulliHead, CategoricalHead, Head, NormalHead, PoissonHead
from genmod.densities.mixture_heads import DiscretizedLogisticHead, NormalMixtureHead
from genmod.densities.von_mises import VonMisesHead

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5


class Case(NamedTuple):
    head: Any
    raw: tuple[float, ...]  # asymmetric
    support: np.ndarray  # all values, or a grid fine and wide enough for the trapezoid rule
    event: Any

    @property
    def step(self):
        """The weight of one point of the support in a sum, or in an integral."""
        return 1.0 if self.support.dtype.kind in "iu" else self.support[1] - self.support[0]


def levels(num):
    return np.arange(num, dtype=np.uint8), Levels((), num)


def counts(num):
    return np.arange(num, dtype=np.int32), Counts(())


def reals(width, num=20_001):
    return np.linspace(-width, width, num), Real(())


def angles(num=20_000):
    return np.pi * (2 * (np.arange(num) + 0.5) / num - 1), Real(())


MIXED = (0.7, -0.4, 1.1, -0.6, 0.3, 0.5, -1.0, 0.6, -0.3)
HEADS = {
    "bernoulli": Case(BernoulliHead(), (1.3,), *levels(2)),
    "categorical": Case(CategoricalHead(5), (0.2, -1.0, 2.0, 0.4, -0.3), *levels(5)),
    "normal": Case(NormalHead(), (0.7, -0.9), *reals(12.0)),
    "normal_of_fixed_scale": Case(NormalHead(0.3), (0.7,), *reals(6.0)),
    "normal_mixture": Case(NormalMixtureHead(3), MIXED, *reals(20.0)),
    "discretized_logistic": Case(DiscretizedLogisticHead(7), (0.4, -0.8), *levels(7)),
    "discretized_logistic_mixture": Case(DiscretizedLogisticHead(256, 3), MIXED, *levels(256)),
    "discretized_logistic_of_two_levels": Case(DiscretizedLogisticHead(2, 2), (0.1, -0.5, 0.4, 0.2, -0.3, 0.8), *levels(2)),
    "von_mises": Case(VonMisesHead(), (0.7, -0.9), *angles()),
    "poisson": Case(PoissonHead(), (1.4,), *counts(60)),
    "poisson_of_limited_rate": Case(PoissonHead(max_rate=3.0), (1.4,), *counts(60)),
}
DISCRETE = [name for name, case in HEADS.items() if case.support.dtype.kind in "iu"]
by_name = pytest.mark.parametrize("name", HEADS)


def same(raw, num):
    """`raw` for each of `num` entries."""
    return jnp.tile(jnp.asarray(raw)[None], (num, 1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(method, head, *args):
    return method(head, *args)


log_probs, samples, means = (functools.partial(apply, method) for method in (Head.log_prob, Head.sample, Head.mean))


def probabilities(case, raw):
    log_prob = log_probs(case.head, same(raw, len(case.support)), jnp.asarray(case.support))
    return np.exp(np.asarray(log_prob, np.float64)) * case.step


@pytest.mark.parametrize("raw", ["zeros", "asymmetric"])
@by_name
def test_sums_or_integrates_to_one(name, raw, x64):
    case = HEADS[name]
    value = np.asarray(case.raw) if raw == "asymmetric" else np.zeros(case.head.num_params)
    np.testing.assert_allclose(probabilities(case, value).sum(), 1.0, rtol=1e-9)
    np.testing.assert_allclose(probabilities(case, value.astype(np.float32)).sum(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in DISCRETE if name != "poisson"])
def test_levels_sum_to_one_at_extreme_parameters(name, x64):
    case = HEADS[name]
    for sign in np.sign(np.random.default_rng(0).normal(size=(20, case.head.num_params))):
        np.testing.assert_allclose(probabilities(case, 50.0 * sign).sum(), 1.0, rtol=1e-9)


@by_name
def test_draws_follow_log_prob(name):
    """The mean, the variance, and the probability of each of some twenty groups of values."""
    case, num = HEADS[name], 40_000
    p, support = probabilities(case, np.asarray(case.raw, np.float32)), case.support.astype(float)
    x = np.asarray(samples(case.head, same(case.raw, num), jax.random.key(3)))
    assert x.shape == (num,) and x.dtype == case.event.dtype
    case.event.check("x", x)
    mean = p @ support
    variance, fourth = p @ (support - mean) ** 2, p @ (support - mean) ** 4
    assert abs(x.mean(dtype=float) - mean) < NUM_SEM * np.sqrt(variance / num)
    assert abs(((x - mean) ** 2).mean() - variance) < NUM_SEM * np.sqrt((fourth - variance**2) / num)
    low = np.searchsorted(np.cumsum(p), np.linspace(0.0, 1.0, 20)[1:-1])  # ends of groups of about equal probability
    ends = np.unique(low)
    ends = ends[ends < len(support) - 1]
    edges = 0.5 * (support[ends] + support[ends + 1])
    wanted = np.diff(np.concatenate([[0.0], np.cumsum(p)[ends], [1.0]]))
    found = np.bincount(np.searchsorted(edges, x), minlength=len(wanted)) / num
    assert (np.abs(found - wanted) < NUM_SEM * np.sqrt(wanted * (1 - wanted) / num)).all()


@pytest.mark.parametrize("name", [name for name in HEADS if name != "von_mises"])  # whose mean is a direction
def test_mean_is_the_expectation(name, x64):
    case = HEADS[name]
    raw = np.asarray(case.raw)
    wanted = probabilities(case, raw) @ case.support
    np.testing.assert_allclose(means(case.head, jnp.asarray(raw)), wanted, rtol=1e-9)
    np.testing.assert_allclose(means(case.head, jnp.asarray(raw, jnp.float32)), wanted, rtol=1e-5)


@by_name
def test_gradients_against_finite_differences(name, x64):
    case, step = HEADS[name], 1e-6
    x = jnp.asarray(case.support[:: max(1, len(case.support) // 9)])
    raw = same(case.raw, len(x)) + 0.3 * jax.random.normal(jax.random.key(1), (len(x), case.head.num_params))

    @jax.jit
    def total(raw):
        return case.head.log_prob(raw, x).sum() + 0.1 * case.head.mean(raw).sum()

    found = jax.jit(jax.grad(total))(raw)
    for i in range(case.head.num_params):
        shift = jnp.zeros_like(raw).at[:, i].set(step)
        for row in range(len(x)):
            one = jnp.zeros_like(raw).at[row].set(shift[row])
            numeric = (total(raw + one) - total(raw - one)) / (2 * step)
            np.testing.assert_allclose(found[row, i], numeric, rtol=1e-5, atol=1e-6)


@by_name
def test_everything_is_finite_far_out(name):
    """In float32, for raw numbers of +-50 in any pattern of signs."""
    case = HEADS[name]
    x = jnp.asarray(case.support[:: max(1, len(case.support) // 12)])
    x = jnp.concatenate([x, jnp.asarray(case.support[-1:])])
    x = x.astype(jnp.float32) if x.dtype == float else x

    @jax.jit
    def everything(raw, key):
        log_prob, pullback = jax.vjp(lambda raw: case.head.log_prob(raw, x), raw)
        return log_prob, pullback(jnp.ones_like(log_prob))[0], case.head.mean(raw), case.head.sample(raw, key)

    for sign in np.sign(np.random.default_rng(1).normal(size=(20, case.head.num_params))):
        outputs = everything(same(np.float32(50.0 * sign), len(x)), jax.random.key(0))
        assert all(jnp.isfinite(a).all() for a in outputs)
        case.event.check("x", outputs[-1])


@by_name
def test_values_that_cannot_be_are_impossible(name):
    """-inf, of gradient zero."""
    case = HEADS[name]
    if name in DISCRETE:
        outside = [np.int32(-1), np.float32(0.5), np.int32(-(2**31))]
        if case.event.dtype == np.uint8 and len(case.support) < 256:
            outside += [np.uint8(len(case.support)), np.uint8(255), np.int32(len(case.support))]
        if len(case.support) == 256:
            outside += [np.int32(256), np.uint16(65535)]
    else:
        outside = [np.float32(np.inf), np.float32(-np.inf)]
    raw = jnp.asarray(case.raw, jnp.float32)
    for x in outside:
        log_prob, gradient = jax.value_and_grad(lambda raw, x=x: log_probs(case.head, raw, jnp.asarray(x)))(raw)
        assert log_prob == -jnp.inf, x
        assert name not in DISCRETE or (gradient == 0).all()


@by_name
@pytest.mark.slow
def test_entries_are_independent(name):
    """Of any shape, and in the precision of float32 also where the network computes in less."""
    case = HEADS[name]
    x = jnp.asarray(case.support[:: len(case.support) // 2][:2])
    raw = jax.random.normal(jax.random.key(0), (3, 2, case.head.num_params))
    log_prob = log_probs(case.head, raw, jnp.stack([x, x, x]))
    assert log_prob.shape == means(case.head, raw).shape == samples(case.head, raw, jax.random.key(1)).shape == (3, 2)
    for i, j in np.ndindex(3, 2):
        np.testing.assert_allclose(log_prob[i, j], log_probs(case.head, raw[i, j], x[j]), rtol=1e-5)
    assert jax.eval_shape(case.head.log_prob, raw.astype(jnp.bfloat16)[0], x).dtype == jnp.float32
    assert case.head.event((4, 2)).shape == (4, 2) and type(case.head.event(())) is type(case.event)
    with pytest.raises(
        ValueError, match=rf"an axis of {case.head.num_params} numbers, \(2, {case.head.num_params}\), got \(3, 2"
    ):
        case.head.log_prob(raw, x)


def logistic_pmf(x, num_levels, weight, mean, scale):
    """Salimans et al. 2017, eq. 2, as it is written."""
    v, half = 2 * x[:, None] / (num_levels - 1) - 1, 1 / (num_levels - 1)
    upper = np.where(x[:, None] == num_levels - 1, np.inf, v + half)
    lower = np.where(x[:, None] == 0, -np.inf, v - half)
    return (weight * (scipy.stats.logistic.cdf((upper - mean) / scale) - scipy.stats.logistic.cdf((lower - mean) / scale))).sum(1)


def test_against_scipy(x64):
    def log_prob(name):
        case = HEADS[name]
        return np.asarray(log_probs(case.head, same(case.raw, len(case.support)), jnp.asarray(case.support))), case.support

    value, x = log_prob("bernoulli")
    np.testing.assert_allclose(value, scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-1.3))), rtol=1e-10)
    value, x = log_prob("normal")
    np.testing.assert_allclose(value, scipy.stats.norm.logpdf(x, 0.7, np.exp(5 * np.tanh(-0.9 / 5))), rtol=1e-10)
    value, x = log_prob("normal_of_fixed_scale")
    np.testing.assert_allclose(value, scipy.stats.norm.logpdf(x, 0.7, 0.3), rtol=1e-10)
    value, x = log_prob("poisson")
    rate = np.exp(20 * np.tanh(1.4 / 20))
    np.testing.assert_allclose(value, scipy.stats.poisson.logpmf(x, rate), rtol=1e-10)
    value, x = log_prob("poisson_of_limited_rate")
    np.testing.assert_allclose(value, scipy.stats.poisson.logpmf(x, 1 / (1 / 3 + 1 / rate)), rtol=1e-10)
    mean, log_scale, logits = np.split(np.asarray(MIXED), 3)
    weight = np.exp(logits) / np.exp(logits).sum()
    value, x = log_prob("normal_mixture")
    centres = scipy.stats.norm.ppf(np.array([1, 3, 5]) / 6)
    scale = np.exp(5 * np.tanh(log_scale / 5)) * np.sqrt(1 - centres.var())
    density = (weight * scipy.stats.norm.pdf(x[:, None], mean + centres, scale)).sum(1)
    np.testing.assert_allclose(np.exp(value), density, rtol=1e-10, atol=1e-300)
    value, x = log_prob("discretized_logistic_mixture")
    scale = np.exp(7 * np.tanh(log_scale / 7)) * 0.4 / 3
    wanted = logistic_pmf(x.astype(float), 256, weight, mean + np.array([-2, 0, 2]) / 3, scale)
    np.testing.assert_allclose(np.exp(value), wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("count", [10**3, 10**5, 10**7])
def test_poisson_keeps_its_precision_at_large_counts(count):
    """In float32, where x log rate - rate - log x! would have lost everything."""
    x = np.round(count + np.sqrt(count) * np.array([-3.0, 0.0, 0.7, 4.0])).astype(np.int32)
    raw = np.float32(20 * np.arctanh(np.log(count) / 20))
    rate = float(jnp.exp(jnp.float32(20.0) * jnp.tanh(raw / jnp.float32(20.0))))
    value = log_probs(PoissonHead(), jnp.full((4, 1), raw), jnp.asarray(x))
    wanted = scipy.stats.poisson.logpmf(x, rate)
    np.testing.assert_allclose(value, wanted, atol=40 * np.finfo(np.float32).eps * np.sqrt(count))


def test_a_sharp_logistic_keeps_its_gradient_in_the_tails():
    """Where the difference of two sigmoids is 0 in float32, and its logarithm has no gradient."""
    head, raw = DiscretizedLogisticHead(256), jnp.array([-0.9, -4.0])
    value, gradient = jax.value_and_grad(lambda raw: log_probs(head, raw, jnp.uint8(200)))(raw)
    scale = np.exp(7 * np.tanh(-4 / 7)) * 0.4
    low, width = (399 / 255 - 1 + 0.9) / scale, 2 / 255 / scale
    np.testing.assert_allclose(value, -low + np.log1p(-np.exp(-width)), rtol=1e-5)  # log sigmoid(-low) is -low here
    np.testing.assert_allclose(gradient[0], 1 / scale, rtol=1e-5)


def test_zeros_are_a_sensible_start():
    """Uniform levels, or nearly (a network of zeros costs little); mean 0 and variance 1; components that can part."""
    for name in ("bernoulli", "categorical"):
        case = HEADS[name]
        np.testing.assert_allclose(probabilities(case, np.zeros(case.head.num_params)), 1 / len(case.support), rtol=1e-6)
    for num_components in (1, 5):
        case = Case(NormalMixtureHead(num_components), (), *reals(12.0))
        p = probabilities(case, np.zeros(case.head.num_params))
        np.testing.assert_allclose([p @ case.support, p @ case.support**2], [0.0, 1.0], atol=1e-5)
        head = DiscretizedLogisticHead(256, num_components)
        p = probabilities(Case(head, (), *levels(256)), np.zeros(head.num_params))
        assert -np.log(256 * p).mean() < 0.21  # nats above the uniform distribution
        x, raw = jnp.arange(256), jnp.zeros((256, head.num_params))
        gradient = jax.grad(lambda raw, head=head, x=x: (log_probs(head, raw, x) * (x < 100)).sum())(raw).sum(0)
        assert len(np.unique(gradient[:num_components])) == num_components


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: CategoricalHead(0), ValueError, "num_levels must be an integer >= 1, got 0"),
        (lambda: DiscretizedLogisticHead(1), ValueError, "num_levels must be at least 2, got 1"),
        (lambda: DiscretizedLogisticHead(256, 0), ValueError, "num_components must be an integer >= 1, got 0"),
        (lambda: NormalMixtureHead(2.5), ValueError, "num_components must be an integer >= 1, got 2.5"),
        (lambda: NormalHead(0.0), ValueError, "scale must be > 0 and finite, got 0.0"),
        (lambda: NormalHead(bound=-1.0), ValueError, "bound must be > 0 and finite, got -1.0"),
    ],
)
def test_bad_settings(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_derivatives_of_a_bernoulli_at_every_logit():
    """x - s(l) and -s(l) s(-l), s the logistic function: at zero too, where a decoder starts, and far out."""
    logits = np.array([-200.0, -90.0, -2.5, -1e-3, 0.0, 0.7, 60.0, 200.0], np.float32)
    for x in (0, 1):
        log_prob = functools.partial(BernoulliHead().log_prob, x=jnp.uint8(x))

        def value(logit, log_prob=log_prob):
            return log_prob(logit[None])

        found = [jax.vmap(fn)(logits) for fn in (value, jax.grad(value), jax.grad(jax.grad(value)))]
        exact, sign = logits.astype(np.float64), 2 * x - 1
        rising, falling = scipy.special.expit(exact), scipy.special.expit(-exact)
        wanted = [scipy.special.log_expit(sign * exact), x * falling - (1 - x) * rising, -rising * falling]
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-37)  # below 1e-38 float32 has no normal numbers
