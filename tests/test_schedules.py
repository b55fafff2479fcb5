"""Noise schedules and predictions: the identities that tie them, and what each paper defines."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import SCHEDULES

from genmod import denoising
from genmod.denoising.schedules import KINDS, convert, noise_error, target_of

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def inner(schedule, num=9):
    """Times inside of the range, and off the corners of a table."""
    low, high = schedule.times
    return low + (high - low) * jnp.linspace(0.0313, 0.9687, num)


@every
def test_noise_grows(schedule):
    t = jnp.linspace(*schedule.times, 200)
    ratio = schedule.alpha(t) / schedule.sigma(t)
    assert (jnp.diff(ratio) < 0).all() and (schedule.sigma(t) > 0).all() and jnp.isfinite(schedule.log_snr(t[1:-1])).all()
    assert schedule.alpha(t).shape == t.shape and schedule.alpha(t).dtype == t.dtype
    assert hash(schedule) == hash(dataclasses.replace(schedule)) and schedule == dataclasses.replace(schedule)


@every
def test_sde_is_that_of_the_marginals(schedule):
    """f and g give the mean and the variance of p(x_t | x_0): m' = f m, v' = 2 f v + g^2."""
    t = inner(schedule)
    alpha_rate, sigma_rate = schedule.rates(t)
    step = 1e-6
    for fn, rate in ((schedule.alpha, alpha_rate), (schedule.sigma, sigma_rate)):
        np.testing.assert_allclose((fn(t + step) - fn(t - step)) / (2 * step), rate, rtol=1e-5, atol=1e-6)
    f, g = schedule.drift(t), schedule.diffusion(t)
    np.testing.assert_allclose(f * schedule.alpha(t), alpha_rate, rtol=1e-12)
    variance = schedule.sigma(t) ** 2
    np.testing.assert_allclose(2 * f * variance + g**2, 2 * schedule.sigma(t) * sigma_rate, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(g**2, -variance * schedule.log_snr_rate(t), rtol=1e-9)


@every
def test_transitions_compose(schedule):
    """x_s from x_0, then x_t from x_s, has the law of x_t from x_0; and in three steps that of two."""
    t = inner(schedule)
    s, t = t[:-1], t[1:]
    scale, std = schedule.transition(s, t)
    np.testing.assert_allclose(scale * schedule.alpha(s), schedule.alpha(t), rtol=1e-12)
    np.testing.assert_allclose((scale * schedule.sigma(s)) ** 2 + std**2, schedule.sigma(t) ** 2, rtol=1e-9)
    # A short step is Euler's step of the SDE.
    short = 1e-7
    scale, std = schedule.transition(t, t + short)
    np.testing.assert_allclose((scale - 1) / short, schedule.drift(t), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(std**2 / short, schedule.diffusion(t) ** 2, rtol=1e-3)


@every
def test_time_inverts_log_snr(schedule):
    t = inner(schedule)
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, atol=1e-12)
    for beyond in (1e9, np.inf):
        assert schedule.time(jnp.asarray(beyond)) == pytest.approx(schedule.times[0], abs=1e-12)
        assert schedule.time(jnp.asarray(-beyond)) == pytest.approx(schedule.times[1], abs=1e-12)


@every
@pytest.mark.parametrize("source", KINDS)
def test_conversions(schedule, source):
    rng = np.random.default_rng(0)
    x0, eps = (jnp.asarray(rng.standard_normal(3)) for _ in range(2))
    for t in inner(schedule, 3):
        x = schedule.perturb(t, x0, eps)
        value = target_of(schedule, t, x0, eps, source, data_scale=0.5)
        for target in KINDS:
            there = convert(schedule, t, x, value, source, target, data_scale=0.5)
            wanted = target_of(schedule, t, x0, eps, target, data_scale=0.5)
            size = float(jnp.abs(x).max()) * max(1.0, float(schedule.alpha(t) / schedule.sigma(t))) ** 2
            np.testing.assert_allclose(there, wanted, rtol=1e-9, atol=1e-12 * size)
        # An error of this kind, at the same x, as an error of eps.
        off = convert(schedule, t, x, value + 1.0, source, "eps", data_scale=0.5) - eps
        np.testing.assert_allclose(jnp.abs(off), noise_error(schedule, t, source, data_scale=0.5), rtol=1e-6)


def test_kinds_are_those_of_the_papers():
    schedule, t = denoising.Cosine(), jnp.asarray(0.3)
    x0, eps = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.1])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x = alpha * x0 + sigma * eps
    np.testing.assert_allclose(target_of(schedule, t, x0, eps, "score"), -(x - alpha * x0) / sigma**2)
    np.testing.assert_allclose(target_of(schedule, t, x0, eps, "v"), alpha * eps - sigma * x0)
    # EDM, d = 0.5: D = c_skip x + c_out F, in units where alpha = 1.
    edm, d = denoising.EDM(), 0.5
    t = jnp.asarray(0.4)
    s = edm.sigma(t)
    value = target_of(edm, t, x0, eps, "edm", data_scale=d)
    skip, out = d**2 / (s**2 + d**2), s * d / jnp.sqrt(s**2 + d**2)
    np.testing.assert_allclose(skip * (x0 + s * eps) + out * value, x0, rtol=1e-12)


def test_variance_preserving_and_exploding_are_those_of_the_sde():
    t = jnp.linspace(0.01, 1.0, 7)
    vp = denoising.VariancePreserving(0.2, 10.0)
    beta = 0.2 + 9.8 * t
    np.testing.assert_allclose(vp.drift(t), -beta / 2, rtol=1e-12)
    np.testing.assert_allclose(vp.diffusion(t) ** 2, beta, rtol=1e-9)
    np.testing.assert_allclose(vp.alpha(t) ** 2 + vp.sigma(t) ** 2, 1.0, rtol=1e-12)
    ve = denoising.VarianceExploding(0.01, 50.0)
    np.testing.assert_array_equal(ve.drift(t), 0.0)
    np.testing.assert_allclose(ve.diffusion(t), ve.sigma(t) * np.sqrt(2 * np.log(5_000)), rtol=1e-9)
    assert float(ve.sigma(jnp.asarray(1.0))) == pytest.approx(50.0) and ve.prior((2,)).scale == 50.0
    sub = denoising.SubVariancePreserving(0.2, 10.0)
    discount = 1 - np.exp(-2 * (0.2 * t + 4.9 * t**2))  # g^2 = beta (1 - e^-2B), eq. 29
    np.testing.assert_allclose(sub.diffusion(t) ** 2, beta * discount, rtol=1e-9)
    assert (sub.sigma(t) < vp.sigma(t)).all()


def test_discrete_chains():
    schedule = denoising.LinearBetas()
    betas = np.linspace(1e-4, 0.02, 1_000)
    t = jnp.arange(1, 1_001) / 1_000
    np.testing.assert_allclose(schedule.alpha(t) ** 2, np.cumprod(1 - betas), rtol=1e-9)
    scale, std = schedule.transition(t[:-1], t[1:])
    np.testing.assert_allclose(std**2, betas[1:], rtol=1e-6)
    np.testing.assert_allclose(scale**2, 1 - betas[1:], rtol=1e-9)
    assert schedule.times == (1e-3, 1.0)
    # The continuous limit, to first order in 1 / T.
    for num, bound in ((1_000, 2e-2), (10_000, 2e-3)):
        chain = denoising.LinearBetas(num, 0.1 / num, 20.0 / num)
        error = jnp.abs(chain.log_snr(t) - chain.continuous_limit().log_snr(t))[9:].max()
        assert chain.continuous_limit() == denoising.VariancePreserving(0.1, 20.0) and error < 10 * bound
    # Between the steps beta is continuous, and near the chain's own: an adaptive solver sees no corner.
    edge = t[1:-1] - 1e-9, t[1:-1] + 1e-9
    np.testing.assert_allclose(schedule.drift(edge[0]), schedule.drift(edge[1]), rtol=1e-4)
    np.testing.assert_allclose(-2 * schedule.drift(t[:-1]) / 1_000, -np.log1p(-betas[:-1]), rtol=0.2, atol=1e-5)
    cosine = denoising.CosineBetas(1_000)
    assert cosine.betas().max() == 0.999
    angle = 0.5 * np.pi * (0.5 + 0.008) / 1.008
    wanted = np.cos(angle) ** 2 / np.cos(0.5 * np.pi * 0.008 / 1.008) ** 2
    np.testing.assert_allclose(cosine.alpha(jnp.asarray(0.5)) ** 2, wanted, rtol=1e-9)


@every
def test_integers_are_times(schedule):
    """t = 1 as an int, a Python float and an array: one noise level."""
    for fn in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.drift, schedule.diffusion, schedule.log_snr_rate):
        if np.isfinite(wanted := float(fn(jnp.asarray(1.0)))):
            np.testing.assert_allclose([float(fn(jnp.asarray(1))), float(fn(1)), float(fn(1.0))], wanted, rtol=1e-6)


@every
def test_time_has_the_derivative_of_the_inverse(schedule):
    log_snr = schedule.log_snr(inner(schedule, 3)[1])
    slope = jax.grad(schedule.time)(log_snr)
    np.testing.assert_allclose(slope, 1.0 / schedule.log_snr_rate(schedule.time(log_snr)), rtol=1e-9)
    assert jax.grad(schedule.time)(jnp.asarray(-1e4)) == 0.0 == jax.grad(schedule.time)(jnp.asarray(1e4))


def test_steep_and_short_schedules_are_schedules():
    """Whose alpha is too small for float32, or whose ratio hardly falls."""
    assert denoising.UniformGrid(5).times(denoising.VariancePreserving(0.1, 400.0)).shape == (6,)
    assert denoising.UniformGrid(5).times(denoising.Straight(times=(0.5, 0.50005))).shape == (6,)


def test_custom_starts_from_its_own_noise():
    """A variance exploding schedule of one's own must not start from N(0, 1)."""
    with pytest.raises(ValueError, match=r"prior_scale=1.0 is not that of the noise at t = 1.0, sigma = 80"):
        denoising.CustomSchedule(jnp.ones_like, wide)
    schedule = denoising.CustomSchedule(jnp.ones_like, wide, prior_scale=80.0)
    assert schedule.prior((2,)).scale == 80.0
    with pytest.raises(ValueError, match="prior_scale=80.0 is not that of the noise"):
        dataclasses.replace(schedule, times=(0.0, 0.2))


def wide(t):
    return 0.01 + 79.99 * t


@dataclasses.dataclass(frozen=True)
class Uneven(denoising.Discrete):
    """Half as many betas as steps."""

    num_steps: int = 10

    def betas(self):
        return np.full(5, 0.1)


@dataclasses.dataclass(frozen=True)
class Rising(denoising.Schedule):
    """More signal as time goes on."""

    def alpha(self, t):
        return 0.1 + 0.8 * t

    def sigma(self, t):
        return 1.0 - 0.8 * t


def falling(t):
    return 1.0 - 0.9 * t


def rising(t):
    return 0.1 + t


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: denoising.VariancePreserving(0.0), "wants 0 < beta_min <= beta_max, got 0.0, 20.0"),
        (lambda: denoising.SubVariancePreserving(2.0, 1.0), "wants 0 < beta_min <= beta_max"),
        (
            lambda: denoising.VarianceExploding(1.0, 1.0),
            "wants 0 < sigma_min < sigma_max, got 1.0, 1.0: the noise must grow with t",
        ),
        (lambda: denoising.EDM(sigma_min=-1.0), "wants 0 < sigma_min < sigma_max"),
        (lambda: denoising.EDM(rho=0.0), "rho must be > 0"),
        (lambda: denoising.Cosine(-3.0, 3.0), "wants log_snr_min < log_snr_max, got 3.0, -3.0: the noise must grow"),
        (lambda: denoising.VariancePreserving(times=(0.5, 0.1)), "times must be .low, high. with 0 <= low < high <= 1, got"),
        (lambda: denoising.LinearBetas(0), "num_steps must be an integer >= 1, got 0"),
        (lambda: Uneven(), r"betas\(\) must return num_steps=10 numbers, got \(5,\)"),
        (lambda: denoising.UniformGrid(4).times(Rising()), "the signal-to-noise ratio must fall with t"),
        (lambda: denoising.VariancePreserving(0.1, np.inf), "wants 0 < beta_min <= beta_max"),
        (lambda: denoising.CustomSchedule(falling, rising, prior_scale=-1.0), "prior_scale must be > 0"),
        (lambda: denoising.LinearBetas(1), "num_steps must be at least 2, got 1"),
        (lambda: denoising.LinearBetas(10, 0.1, 1.5), r"the betas must lie in \(0, 1\), got 0.1 to 1.5"),
        (lambda: denoising.CustomSchedule(rising, falling), "the signal-to-noise ratio must fall with t; it does not at t = 0.0"),
        (
            lambda: denoising.CustomSchedule(falling, lambda t: t - 0.5),
            "alpha and sigma must be positive and finite inside times",
        ),
        (
            lambda: convert(denoising.Cosine(), jnp.ones(()), 1.0, 1.0, "noise", "x0"),
            "source must be one of 'x0', 'eps', .*, got 'noise'",
        ),
        (lambda: target_of(denoising.Cosine(), jnp.ones(()), 1.0, 1.0, "epsilon"), "kind must be one of"),
    ],
)
def test_bad_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_custom_schedules_are_equal_descriptions():
    assert denoising.CustomSchedule(falling, rising) == denoising.CustomSchedule(falling, rising)
    assert jax.jit(lambda s, t: s.log_snr(t), static_argnums=0)(denoising.CustomSchedule(falling, rising), 0.5).shape == ()
