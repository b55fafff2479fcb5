"""Conditional paths against their published velocities, finite differences, and their ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod.denoising.schedules import Straight, VarianceExploding, VariancePreserving, target_of
from genmod.transport.paths import (
    BrownianBridge,
    CustomGaussian,
    CustomInterpolant,
    GaussianPath,
    Linear,
    OptimalTransport,
    Scheduled,
    Trigonometric,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


def quadratic_mean(t, x1):
    return t**2 * x1


def cosine_scale(t, x1):
    return jnp.cos(t) + 0.0 * x1


def curved(t, x0, x1):
    return (1 - t**2) * x0 + t**2 * x1


def bump(t):
    return 0.3 * jnp.sin(jnp.pi * t)


GAUSSIAN = {
    "optimal_transport": OptimalTransport(),
    "optimal_transport_blurred": OptimalTransport(0.1),
    "variance_preserving": Scheduled(VariancePreserving()),
    "variance_exploding": Scheduled(VarianceExploding(0.02, 5.0)),
    "custom_gaussian": CustomGaussian(quadratic_mean, cosine_scale),
}
TWO_SIDED = {
    "linear": Linear(),
    "linear_noisy": Linear(0.2),
    "trigonometric": Trigonometric(),
    "brownian_bridge": BrownianBridge(0.7),
    "custom_interpolant": CustomInterpolant(curved, bump),
    "custom_interpolant_noiseless": CustomInterpolant(curved),
}
PATHS = GAUSSIAN | TWO_SIDED
TIMES = np.array([0.05, 0.3, 0.62, 0.97])


def ends(path, seed=0):
    """(x0, x1, noise), with x0 as wide as the path wants."""
    x0, x1, noise = jnp.asarray(np.random.default_rng(seed).standard_normal((3, 2, 3)))
    return x0 * (path.source_scale or 1.0), x1 + 0.5, noise


def by_times(fn, times=TIMES):
    return jax.jit(jax.vmap(fn))(jnp.asarray(times))


# --- the published velocities ----------------------------------------------------------------------------------------------


def optimal_transport_velocity(path, t, x, x1):
    """Lipman et al. 2022, eq. 21."""
    return (x1 - (1 - path.sigma_min) * x) / (1 - (1 - path.sigma_min) * t)


def variance_preserving_velocity(path, t, x, x1):
    """Lipman et al. 2022, eq. 19, with T(s) = int_0^s beta."""
    s = 1 - t
    integral = path.schedule.beta_min * s + (path.schedule.beta_max - path.schedule.beta_min) * s**2 / 2
    rate = path.schedule.beta_min + (path.schedule.beta_max - path.schedule.beta_min) * s
    return -rate / 2 * (np.exp(-integral) * x - np.exp(-integral / 2) * x1) / (1 - np.exp(-integral))


def variance_exploding_velocity(path, t, x, x1):
    """Lipman et al. 2022, eq. 17: the scale sigma_(1 - t) of a geometric schedule has sigma' / sigma = log(max / min)."""
    return -np.log(path.schedule.sigma_max / path.schedule.sigma_min) * (x - x1)


PUBLISHED = {
    "optimal_transport": optimal_transport_velocity,
    "optimal_transport_blurred": optimal_transport_velocity,
    "variance_preserving": variance_preserving_velocity,
    "variance_exploding": variance_exploding_velocity,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_gaussian_paths_have_the_published_velocities(name, x64):
    path = GAUSSIAN[name]
    x, x1, _ = ends(path)
    found = by_times(lambda t: path.conditional_velocity(t, x, x1))
    for t, velocity in zip(TIMES, found, strict=True):
        np.testing.assert_allclose(velocity, PUBLISHED[name](path, t, np.asarray(x), np.asarray(x1)), rtol=1e-10)


def test_the_source_of_optimal_transport_moves_in_straight_lines(x64):
    path = OptimalTransport(0.1)
    x0, x1, noise = ends(path)
    np.testing.assert_allclose(
        by_times(lambda t: path.point_and_velocity(t, x0, x1, noise)[1]), np.broadcast_to(x1 - 0.9 * x0, (4, 2, 3)), rtol=1e-12
    )


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_linear_velocity_is_the_difference_of_the_ends(sigma, x64):
    x0, x1, noise = ends(Linear())
    points, velocities = by_times(lambda t: Linear(sigma).point_and_velocity(t, x0, x1, noise))
    np.testing.assert_allclose(velocities, np.broadcast_to(x1 - x0, (4, 2, 3)), rtol=1e-12)
    t = TIMES[:, None, None]
    np.testing.assert_allclose(points, (1 - t) * np.asarray(x0) + t * np.asarray(x1) + sigma * np.asarray(noise), rtol=1e-12)


def test_optimal_transport_without_blur_is_linear(x64):
    x0, x1, noise = ends(Linear())
    for one, other in zip(
        *(by_times(lambda t, p=p: p.point_and_velocity(t, x0, x1, noise)) for p in (OptimalTransport(), Linear())), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12)


# --- every path ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_time_derivative_of_the_point(name, x64):
    path = PATHS[name]
    x0, x1, noise = ends(path)
    h = 1e-5

    def both(t):
        point, velocity = path.point_and_velocity(t, x0, x1, noise)
        around = [path.interpolate(t + s * h, x0, x1, noise) for s in (1, -1)]
        return point - path.interpolate(t, x0, x1, noise), velocity, (around[0] - around[1]) / (2 * h)

    same, velocity, difference = by_times(both)
    np.testing.assert_array_equal(same, 0.0)
    assert np.abs(velocity).max() > 0.1
    np.testing.assert_allclose(velocity, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_theorem_3_of_lipman(name, x64):
    """The velocity along a path is u_t(x_t | x1) = (sigma' / sigma) (x_t - mu) + mu', and x_t = mu + sigma x0 / source scale."""
    path = GAUSSIAN[name]
    assert isinstance(path, GaussianPath) and not path.noisy
    x0, x1, noise = ends(path)

    def both(t):
        point, velocity = path.point_and_velocity(t, x0, x1, noise)
        made = path.mean(t, x1) + path.scale(t, x1) * x0 / path.source_scale
        return point, made, velocity, path.conditional_velocity(t, point, x1)

    point, made, velocity, conditional = by_times(both)
    np.testing.assert_allclose(point, made, rtol=1e-12)
    np.testing.assert_allclose(velocity, conditional, rtol=1e-9)


def test_ends_of_gaussian_paths(x64):
    """Exact at the noise but for what the diffusions leave, exact at the data but for the blur."""
    for name, left, blur in (
        ("optimal_transport", 0.0, 0.0),
        ("optimal_transport_blurred", 0.0, 0.1),
        ("variance_preserving", np.exp(-0.5 * (0.1 + 19.9 / 2)), 0.0),
        ("variance_exploding", 1.0, 0.02),
    ):
        path = GAUSSIAN[name]
        x0, x1, noise = ends(path)
        start, end = (path.interpolate(jnp.array(t), x0, x1, noise) for t in (0.0, 1.0))
        scale = np.sqrt(1 - left**2) if name == "variance_preserving" else 1.0
        np.testing.assert_allclose(start, left * x1 + scale * x0, rtol=1e-10)
        np.testing.assert_allclose(end, x1 + blur * x0 / path.source_scale, rtol=1e-10)
    assert GAUSSIAN["variance_exploding"].source_scale == 5.0 and OptimalTransport().source_scale == 1.0


@pytest.mark.parametrize("name", TWO_SIDED)
def test_ends_of_two_sided_paths(name, x64):
    path = TWO_SIDED[name]
    x0, x1, noise = ends(path)
    blur = path.sigma * noise if isinstance(path, Linear) else 0.0
    for t, wanted in ((0.0, x0), (1.0, x1)):
        np.testing.assert_allclose(path.interpolate(jnp.array(t), x0, x1, noise), wanted + blur, rtol=1e-12, atol=1e-12)
    middle = [path.interpolate(jnp.array(0.5), x0, x1, n) for n in (noise, -noise)]
    assert bool(jnp.abs(middle[0] - middle[1]).max() > 0.1) == path.noisy
    assert path.source_scale is None


def test_trigonometric_keeps_the_variance(x64):
    """cos^2 + sin^2 = 1."""
    weights = by_times(lambda t: jnp.stack([Trigonometric().interpolate(t, *pair, jnp.zeros(())) for pair in ONE_AND_ZERO]))
    np.testing.assert_allclose((weights**2).sum(1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(weights[:, 1], np.sin(np.pi * TIMES / 2), rtol=1e-12)


ONE_AND_ZERO = ((jnp.ones(()), jnp.zeros(())), (jnp.zeros(()), jnp.ones(())))


def test_brownian_bridge_has_the_variance_of_one(x64):
    at = functools.partial(BrownianBridge(0.7).interpolate, x0=jnp.zeros(()), x1=jnp.zeros(()), noise=jnp.ones(()))
    np.testing.assert_allclose(by_times(at) ** 2, 0.49 * TIMES * (1 - TIMES), rtol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_training_times_are_where_the_velocity_is_finite(name):
    """In float32, at both ends of the range."""
    path = PATHS[name]
    x0, x1, noise = (a.astype(jnp.float32) for a in ends(path))
    velocities = by_times(lambda t: path.point_and_velocity(t, x0, x1, noise)[1], np.float32(path.times))
    # Singular paths stop where their velocity is still of the order of 1 / sqrt(distance to the end).
    assert np.abs(velocities).max() < 300.0


def test_paths_are_values():
    assert len({*PATHS.values()}) == len(PATHS) and Linear(0.1) == Linear(0.1)
    assert hash(CustomInterpolant(curved)) == hash(CustomInterpolant(curved))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OptimalTransport(1.0), r"sigma_min must be in \[0, 1\), got 1.0"),
        (lambda: OptimalTransport(-0.1), r"sigma_min must be in \[0, 1\)"),
        (lambda: Linear(-1.0), "sigma must be >= 0, got -1.0"),
        (lambda: BrownianBridge(0.0), "sigma must be > 0 and finite, got 0.0"),
        (
            lambda: CustomGaussian(quadratic_mean, cosine_scale, (0.5, 0.5)),
            r"times must be \(low, high\) with 0 <= low < high <= 1",
        ),
        (lambda: CustomInterpolant(curved, times=(-0.1, 1.0)), "times must be"),
        (lambda: Scheduled(VariancePreserving(), times=(0.0, 2.0)), "times must be"),
        (lambda: BrownianBridge(times=(0.9, 0.1)), "times must be"),
    ],
)
def test_refuses_unfit_fields(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_schedules_run_backwards():
    """One pair (alpha, sigma) for diffusion and for flow matching, whose velocities are each other's negative."""
    schedule, t = VariancePreserving(), jnp.asarray(0.3)
    x1, x0 = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.1])
    x, velocity = Scheduled(schedule).point_and_velocity(t, x0, x1, x0)
    np.testing.assert_allclose(x, schedule.perturb(1 - t, x1, x0), rtol=1e-6)
    np.testing.assert_allclose(velocity, -target_of(schedule, 1 - t, x1, x0, "velocity"), rtol=1e-5)
    assert Scheduled(schedule).times == (0.0, 1 - 1e-4) and Scheduled(VarianceExploding()).source_scale == 50.0
    straight, ot = Scheduled(Straight()).point_and_velocity(t, x0, x1, x0), OptimalTransport().point_and_velocity(t, x0, x1, x0)
    for ours, theirs in zip(straight, ot, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    with pytest.raises(TypeError, match="schedule must be a Schedule, got 'vp'"):
        Scheduled("vp")
