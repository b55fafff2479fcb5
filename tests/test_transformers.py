"""Transformers against formulas worked by hand, and numerical inverses against calculus."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import BIJECTORS, TRANSFORMERS, in_circle

import genmod as gm
from genmod.bijectors import (
    Affine,
    Autoregressive,
    CircularSpline,
    Coupling,
    DeepSigmoidal,
    Elementwise,
    RationalQuadraticSpline,
    ScalarFunction,
)
from genmod.bijectors.numerical import monotone_root
from genmod.nets import MADE, MLP

pytestmark = pytest.mark.usefixtures("quick_compile")
EPS = float(np.finfo(np.float32).eps)
by_name = pytest.mark.parametrize("name", TRANSFORMERS)


def raws(transformer, num, scale, seed=0):
    return scale * jax.random.normal(jax.random.key(seed), (num, transformer.num_params))


@by_name
def test_zero_is_the_identity(name):
    z = in_circle(jnp.linspace(-2, 2, 9))
    raw = jnp.zeros((9, TRANSFORMERS[name].num_params))
    for direction in (TRANSFORMERS[name].forward, TRANSFORMERS[name].inverse):
        x, log_slope = jax.jit(direction)(raw, z)
        np.testing.assert_allclose(x, z, rtol=0, atol=16 * EPS * 4)
        np.testing.assert_allclose(log_slope, 0.0, atol=32 * EPS)


@by_name
def test_large_raw_parameters_keep_values_and_gradients_finite(name):
    transformer = TRANSFORMERS[name]
    raw, z = raws(transformer, 200, 20.0), in_circle(jax.random.normal(jax.random.key(1), (200,)))

    @jax.jit
    def everything(raw, z):
        def total(raw, z, direction):
            x, log_slope = direction(raw, z)
            return jnp.sin(x).sum() + log_slope.sum()

        x, _ = transformer.forward(raw, z)
        return (
            transformer.forward(raw, z),
            transformer.inverse(raw, z),
            x,
            [jax.grad(functools.partial(total, direction=d), (0, 1))(raw, z) for d in (transformer.forward, transformer.inverse)],
        )

    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(everything(raw, z)))


@by_name
def test_shapes_are_elementwise(name):
    transformer = TRANSFORMERS[name]
    z = in_circle(jax.random.normal(jax.random.key(0), (2, 3)))
    raw = raws(transformer, 6, 0.5).reshape(2, 3, -1)
    forward = jax.jit(transformer.forward)
    whole = forward(raw, z)
    for i in np.ndindex(2, 3):
        for a, b in zip(whole, forward(raw[i], z[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_affine_never_scales_beyond_its_bound():
    x, log_slope = Affine(bound=2.0).forward(jnp.array([[1.0, 1e6], [1.0, -1e6]]), jnp.ones(2))
    np.testing.assert_allclose(log_slope, [2.0, -2.0], rtol=EPS)
    np.testing.assert_allclose(x, 1 + np.exp([2.0, -2.0]), rtol=4 * EPS)


# --- splines -------------------------------------------------------------------------------------------------------------

SPLINE = RationalQuadraticSpline(num_bins=5, bound=3.0)


def knots(raw, num_bins=5, bound=3.0):
    """Knots and slopes of a spline with linear tails, in NumPy."""

    def ends(logits):
        sizes = np.exp(2 * np.tanh(logits / 2))
        return np.concatenate([[-bound], -bound + 2 * bound * np.cumsum(sizes / sizes.sum())])

    slopes = np.exp(3 * np.tanh(raw[2 * num_bins :] / 3))
    return ends(raw[:num_bins]), ends(raw[num_bins : 2 * num_bins]), np.concatenate([[1.0], slopes, [1.0]])


@pytest.fixture
def raw(x64):
    return jnp.asarray(1.5 * np.random.default_rng(0).standard_normal(SPLINE.num_params))


def on_spline(direction, raw, z):
    return jax.jit(direction)(jnp.broadcast_to(raw, (*z.shape, raw.size)), z)


def test_spline_passes_through_its_knots_with_its_slopes(raw):
    z_k, x_k, slopes = knots(np.asarray(raw))
    x, log_slope = on_spline(SPLINE.forward, raw, jnp.asarray(z_k))
    np.testing.assert_allclose(x, x_k, atol=1e-13)
    np.testing.assert_allclose(jnp.exp(log_slope), slopes, rtol=1e-12)
    z, inverse_log_slope = on_spline(SPLINE.inverse, raw, jnp.asarray(x_k))
    np.testing.assert_allclose(z, z_k, atol=1e-13)
    np.testing.assert_allclose(jnp.exp(-inverse_log_slope), slopes, rtol=1e-12)


def test_spline_is_the_rational_quadratic_between_knots(raw):
    z_k, x_k, d = knots(np.asarray(raw))
    xi = 0.3
    w, h = np.diff(z_k), np.diff(x_k)
    s = h / w
    wanted = x_k[:-1] + h * (s * xi**2 + d[:-1] * xi * (1 - xi)) / (s + (d[:-1] + d[1:] - 2 * s) * xi * (1 - xi))
    np.testing.assert_allclose(on_spline(SPLINE.forward, raw, jnp.asarray(z_k[:-1] + xi * w))[0], wanted, atol=1e-13)


def test_spline_slope_is_continuous(raw):
    z_k, _, _ = knots(np.asarray(raw))
    step = 1e-9
    left, right = (on_spline(SPLINE.forward, raw, jnp.asarray(z_k + side))[1] for side in (-step, step))
    np.testing.assert_allclose(left, right, atol=1e-6)  # step x curvature


def test_spline_tails_are_the_identity(raw):
    z = jnp.array([-1e30, -10.0, -3.0, 3.0, 3.5, 1e30])
    for direction in (SPLINE.forward, SPLINE.inverse):
        x, log_slope = on_spline(direction, raw, z)
        assert jnp.array_equal(x, z) and (log_slope == 0).all()
        gradient = jax.jit(jax.grad(lambda r, direction=direction: sum(o.sum() for o in on_spline(direction, r, z))))(raw)
        assert (gradient == 0).all()


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_spline_inverts_in_float32(scale):
    raw, z = raws(SPLINE, 4_000, scale), jax.random.uniform(jax.random.key(1), (4_000,), minval=-3.5, maxval=3.5)
    x, log_slope = jax.jit(SPLINE.forward)(raw, z)
    back, inverse_log_slope = jax.jit(SPLINE.inverse)(raw, x)
    # Slopes lie above about exp(-7) by the bounds on logits and slopes: rounding eps 3 / slope, a few operations.
    allowed = 64 * EPS * 3 * (1 + jnp.exp(-log_slope))
    assert (jnp.abs(back - z) < allowed).all() and (scale > 1 or float(jnp.abs(back - z).max()) < 1e-3)
    assert (jnp.abs(log_slope + inverse_log_slope) < 100 * allowed).all()


def test_circular_spline_closes_smoothly():
    circle = CircularSpline(num_bins=4)
    forward, raw = jax.jit(circle.forward), raws(circle, 1, 1.0)
    ends = jnp.array([-np.pi, np.nextafter(np.float32(np.pi), np.float32(0))], jnp.float32)
    x, log_slope = forward(jnp.broadcast_to(raw, (2, raw.size)), ends)
    gap = jnp.mod(x[0] - x[1] + np.pi, 2 * np.pi) - np.pi
    assert abs(float(gap)) < 64 * EPS * np.pi * float(jnp.exp(jnp.abs(log_slope).max()))
    np.testing.assert_allclose(log_slope[0], log_slope[1], atol=1e-4)
    # Once round: the slope integrates to the length of the circle (a trapezoid of a periodic function).
    z = jnp.linspace(-np.pi, np.pi, 2_001)[:-1]
    slope = jnp.exp(forward(jnp.broadcast_to(raw, (2_000, raw.size)), z)[1])
    np.testing.assert_allclose(slope.mean(), 1.0, atol=1e-4)


@pytest.mark.parametrize("layer", ["coupling_circular_spline", "autoregressive_circular_spline"])
def test_the_density_on_a_torus_closes(layer, key):
    """A network that saw the raw angle would jump where it closes."""
    bijector = BIJECTORS[layer].bijector
    flow = gm.models.Flow(bijector, gm.densities.Uniform((4,), -np.pi, np.pi))
    x = flow.sample(flow.init(key, jnp.zeros((1, 4))), key, (20,))
    params = jax.tree.map(lambda a: a + 0.5 * jax.random.normal(key, a.shape), flow.init(key, x))
    for i in range(4):
        before, after = (flow.log_prob(params, x.at[:, i].set(seam)) for seam in (np.pi - 1e-6, -np.pi))
        np.testing.assert_allclose(before, after, atol=1e-4)
    assert jnp.abs(flow.log_prob(params, x) - flow.log_prob(params, -x)).max() > 0.1  # it is not uniform


def test_circular_spline_wraps_values_outside():
    forward, raw = jax.jit(CircularSpline(num_bins=4).forward), raws(CircularSpline(num_bins=4), 3, 1.0)
    z = jnp.array([-3.0, 0.2, 2.5])
    for a, b in zip(forward(raw, z), forward(raw, z + 2 * np.pi), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


# --- numerical inverses ----------------------------------------------------------------------------------------------------


def cubic(raw, z):
    return z + raw[0] + jnp.exp(raw[1]) * z**3


def test_root_has_exact_derivatives_of_first_and_second_order(x64):
    raw, x = jnp.array([0.3, -0.4]), jnp.array(1.7)
    z = jax.jit(functools.partial(monotone_root, cubic))(raw, x)
    c = jnp.exp(raw[1])
    slope, bend = 1 + 3 * c * z**2, 6 * c * z
    np.testing.assert_allclose(cubic(raw, z), x, rtol=1e-14)
    root = jax.jit(functools.partial(monotone_root, cubic))
    np.testing.assert_allclose(jax.grad(root, 1)(raw, x), 1 / slope, rtol=1e-13)
    np.testing.assert_allclose(jax.grad(root, 0)(raw, x), jnp.stack([-1.0, -c * z**3]) / slope, rtol=1e-13)
    np.testing.assert_allclose(jax.hessian(root, 1)(raw, x), -bend / slope**3, rtol=1e-12)
    mixed = jax.grad(lambda x: jax.grad(root, 0)(raw, x)[0])(x)
    np.testing.assert_allclose(mixed, bend / slope**3, rtol=1e-12)


@pytest.mark.parametrize("x", [0.0, -1e-6, 3.0, -250.0, 1e6])
def test_root_is_found_at_any_distance(x):
    raw = jnp.array([0.5, 1.0])
    z = jax.jit(functools.partial(monotone_root, cubic))(raw, jnp.array(x))
    slope = 1 + 3 * jnp.exp(raw[1]) * z**2
    # To the rounding of cubic(z): a few eps of its largest term.
    assert abs(float(cubic(raw, z) - x)) < 8 * EPS * (abs(x) + 1 + float(slope * jnp.abs(z)))


def stretched(raw, z):
    return z * jnp.exp(raw[0]) + 0.1 * jnp.tanh(z)


@pytest.mark.parametrize("x", [1.7e7, -3e9, 1e30])
def test_roots_of_large_values_keep_their_digits(x):
    z, _ = jax.jit(ScalarFunction(stretched, 1).inverse)(jnp.array([[-1.0]]), jnp.array([x]))
    np.testing.assert_allclose(z, x * np.exp(1.0), rtol=4 * EPS)
    transformer = DeepSigmoidal(num_units=4)
    raw = raws(transformer, 1, 0.5)
    there, _ = jax.jit(transformer.forward)(raw, jnp.array([x]))
    np.testing.assert_allclose(jax.jit(transformer.inverse)(raw, there)[0], x, rtol=64 * EPS)


def bounded(raw, z):
    return 2 * jnp.tanh(z) + raw[0]


@pytest.mark.parametrize("make", [Elementwise, lambda t: Coupling(t, MLP((8,)), 1), lambda t: Autoregressive(t, MADE((8,)))])
def test_a_root_that_is_not_there_is_nan_and_counted(make, key):
    layer = make(ScalarFunction(bounded, 1))
    params = layer.init(key, jnp.zeros((1, 2)))
    for x, failed in ((jnp.array([0.5, 1.5]), 0), (jnp.array([0.5, 2.5]), 1)):
        z, log_det, info = layer.inverse_with_info(params, x)
        assert info["failed_solves"] == failed and jnp.isnan(z).any() == jnp.isnan(log_det) == bool(failed)
        assert jnp.isnan(layer.inverse(params, x)).all() == bool(failed)
    assert layer.forward_with_info(params, jnp.zeros(2))[2] == {}


def test_scalar_function_is_its_function():
    transformer = ScalarFunction(cubic, 2)
    raw, z = jnp.array([[0.2, -1.0], [0.0, 0.3]]), jnp.array([0.5, -2.0])
    x, log_slope = transformer.forward(raw, z)
    np.testing.assert_allclose(x, z + raw[:, 0] + jnp.exp(raw[:, 1]) * z**3, rtol=8 * EPS)
    np.testing.assert_allclose(log_slope, jnp.log(1 + 3 * jnp.exp(raw[:, 1]) * z**2), rtol=8 * EPS)


def test_deep_sigmoidal_is_the_formula():
    transformer = DeepSigmoidal(num_units=3)
    raw, z = raws(transformer, 1, 1.0)[0], 0.4
    weight, scale, shift = np.asarray(raw, np.float64).reshape(3, 3)
    w = np.exp(weight) / np.exp(weight).sum()
    p = (w / (1 + np.exp(-(np.exp(3 * np.tanh(scale / 3)) * z + shift * np.array([2 / 3, 4 / 3, 2]))))).sum()
    np.testing.assert_allclose(transformer.forward(raw, jnp.array(z))[0], np.log(p / (1 - p)), rtol=1e-5)


def test_deep_sigmoidal_units_do_not_stay_equal():
    """From raw = 0, where all units are the same, gradient steps must tell them apart."""
    transformer = DeepSigmoidal(num_units=4)
    x = jnp.concatenate([jax.random.normal(jax.random.key(0), (300,)) * 0.3 + 2, jnp.linspace(-2.0, -1.0, 100)])

    @jax.jit
    @jax.grad
    def gradient(raw):
        z, log_slope = transformer.forward(jnp.broadcast_to(raw, (400, raw.size)), x)
        return (0.5 * z**2 - log_slope).mean()

    raw = jnp.zeros(transformer.num_params)
    for _ in range(3):
        raw = raw - 0.1 * gradient(raw)
    for kind in raw.reshape(3, 4):  # weights, scales, shifts
        gaps = jnp.abs(kind[:, None] - kind[None, :])[np.triu_indices(4, 1)]
        assert gaps.min() > 1e-4


def test_deep_sigmoidal_reaches_far_tails():
    """Where every sigmoid is saturated the map goes on as a straight line, and inverts."""
    transformer = DeepSigmoidal(num_units=4)
    z = jnp.array([-200.0, -30.0, 30.0, 200.0])
    raw = jnp.broadcast_to(raws(transformer, 1, 1.0)[0], (4, transformer.num_params))
    x, log_slope = jax.jit(transformer.forward)(raw, z)
    back, _ = jax.jit(transformer.inverse)(raw, x)
    slope = jnp.exp(log_slope)
    assert jnp.isfinite(log_slope).all()
    assert (jnp.abs(back - z) < 16 * EPS * (jnp.abs(x) + jnp.abs(z) * slope) / slope).all()


def steep(raw, z):
    return (1e6 * z) ** 3 + 1e6 * z + raw[0]


@pytest.mark.parametrize("x", [1.0, -0.3, 0.0, 1e-5, 1e9])
def test_roots_near_zero_keep_their_digits(x):
    z, _ = jax.jit(ScalarFunction(steep, 1).inverse)(jnp.zeros((1, 1)), jnp.array([x]))
    u = np.roots([1.0, 0.0, 1.0, -x])
    wanted = u[np.argmin(abs(u.imag))].real / 1e6
    np.testing.assert_allclose(z, wanted, rtol=64 * EPS, atol=1e-40)


def test_a_circle_does_not_pass_its_end():
    circle = CircularSpline(num_bins=8)
    raw = raws(circle, 2_000, 2.0).at[:, -1].set(0)
    end = np.nextafter(np.float32(np.pi), np.float32(0))
    z, _ = jax.jit(circle.inverse)(raw, jnp.full(2_000, end))
    assert (jnp.abs(z) <= np.float32(np.pi)).all()
