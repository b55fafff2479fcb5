"""Toys against quadrature, closed forms and the generators they imitate; tables and their errors."""

import functools
import math
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod import data
from genmod.data.base import _log_prob

KEY = jax.random.key(0)

# A toy, the function that draws it, and its entropy in nats.
TOYS = {
    "two_moons": (data.TwoMoons(), data.two_moons, 0.289234),
    "eight_gaussians": (data.EightGaussians(), data.eight_gaussians, 2.831880),
    "gaussian_grid": (data.GaussianGrid(), data.gaussian_grid, 0.065288),
    "checkerboard": (data.Checkerboard(), data.checkerboard, 3.465736),
    "rings": (data.Rings(), data.rings, 2.623183),
    "pinwheel": (data.Pinwheel(), data.pinwheel, 2.317788),
    "two_spirals": (data.TwoSpirals(), data.two_spirals, 2.645450),
    "swiss_roll": (data.SwissRoll(), data.swiss_roll, 2.669646),
    "two_bumps": (data.TwoBumps(), data.two_bumps, 2.108236),
    "twonorm": (data.TwoNorm(), data.twonorm, 29.011491),
    "funnel": (data.Funnel(), data.funnel, 15.287998),
}
OTHERS = [
    (data.TwoMoons(0.1), 1.007585),
    (data.TwoMoons(0.2), 1.677476),
    (data.TwoBumps((0.4, 0.6), (-2, 3), (1, 0.7)), 1.873470),
    (data.TwoBumps((0.4, 0.6), (-2, 3), (1, math.sqrt(0.7))), 1.976146),
    (data.TwoBumps((1.0,), (5.0,), (2.0,)), 0.5 * math.log(2 * math.pi * math.e * 4)),
]
PLANE = [name for name, (toy, _, _) in TOYS.items() if toy.event_shape == (2,)]
# Half width and spacing of a grid that holds each planar density and resolves it.
GRIDS = {
    "two_moons": (3.0, 0.04),
    "eight_gaussians": (6.0, 0.1),
    "gaussian_grid": (4.5, 0.03),
    "checkerboard": (5.0, 0.1),
    "rings": (4.0, 0.04),
    "pinwheel": (5.5, 0.06),
    "two_spirals": (4.2, 0.08),
    "swiss_roll": (4.5, 0.1),
}

by_name = pytest.mark.parametrize("name", TOYS)
toys_by_name = pytest.mark.parametrize("toy", [t for t, _, _ in TOYS.values()], ids=TOYS)
in_plane = pytest.mark.parametrize("name", PLANE)


@functools.cache
def sampled(toy, n=20_480, seed=1):
    x = toy.sample(jax.random.key(seed), (n,))
    return np.asarray(x), np.asarray(toy.log_prob(x))


def assert_mean(values, expected, errors=4.0):
    """The mean over axis 0 lies within so many standard errors of what is expected."""
    values = np.asarray(values, np.float64)
    error = values.std(0) / math.sqrt(len(values))
    assert np.all(np.abs(values.mean(0) - expected) <= errors * error + 1e-5), (values.mean(0), expected, error)


# ---- exact densities and entropies


@pytest.mark.parametrize("toy, limit", [(t, h) for t, _, h in TOYS.values()] + OTHERS, ids=str)
def test_entropy_is_the_known_limit(toy, limit):
    assert toy.entropy() == pytest.approx(limit, abs=2e-6)


@pytest.mark.parametrize("toy", [t for t, _, _ in TOYS.values()] + [OTHERS[2][0]], ids=str)
def test_samples_have_the_entropy(toy):
    x, log_p = sampled(toy)
    assert x.shape == (20_480, *toy.event_shape) and x.dtype == log_p.dtype == np.float32
    assert_mean(-log_p, toy.entropy())


@in_plane
def test_density_integrates_to_one_and_moments_match(name):
    toy = TOYS[name][0]
    half, h = GRIDS[name]
    axis = np.arange(-half + h / 2, half, h)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    mass = np.exp(np.asarray(toy.log_prob(grid.astype(np.float32)), np.float64)) * h**2
    assert mass.sum() == pytest.approx(1, abs=2e-4)
    x = sampled(toy)[0].astype(np.float64)
    for power in ([1, 0], [0, 1], [2, 0], [0, 2], [1, 1], [3, 0], [2, 1], [0, 3]):
        expected = (mass * np.prod(grid**power, -1)).sum()
        assert_mean(np.prod(x**power, -1), expected, errors=4.5)


@pytest.mark.parametrize("toy", [data.TwoBumps(), OTHERS[2][0]], ids=str)
def test_density_on_the_line_integrates_to_one(toy):
    x = np.arange(-15, 20, 0.01)
    p = np.exp(np.asarray(toy.log_prob(x[:, None].astype(np.float32)), np.float64))
    assert p.sum() * 0.01 == pytest.approx(1, abs=1e-5)
    mean = sum(w * m for w, m in zip(toy.weights, toy.means, strict=True))
    assert_mean(sampled(toy)[0][:, 0], mean)


def test_twonorm_and_funnel_against_their_formulas():
    x, log_p = sampled(data.TwoNorm())
    x = x.astype(np.float64)
    a = 2 / math.sqrt(20)
    classes = [-0.5 * ((x - s * a) ** 2).sum(1) - 10 * math.log(2 * math.pi) - math.log(2) for s in (1, -1)]
    np.testing.assert_allclose(log_p, np.logaddexp(*classes), rtol=1e-5)
    np.testing.assert_allclose(np.cov(x.T), np.eye(20) + a**2, atol=0.06)

    x, log_p = sampled(data.Funnel())
    x = x.astype(np.float64)
    v, rest = x[:, 0], x[:, 1:]
    expected = -(v**2) / 18 - math.log(3) - 0.5 * (rest**2 * np.exp(-v)[:, None]).sum(1) - 4.5 * v
    np.testing.assert_allclose(log_p, expected - 5 * math.log(2 * math.pi), rtol=1e-5, atol=1e-4)
    assert_mean(v**2, 9)
    assert_mean(rest[:, 4] ** 2 * np.exp(-v), 1)


def test_checkerboard_support():
    toy = data.Checkerboard()
    corners = jnp.array([[0.0, 0.0], [-4.0, -4.0], [3.99, 3.99], [0.0, 2.0], [4.0, 4.0], [1.0, 9.0], [-1.0, 1.0]])
    expected = np.where([True, True, True, False, False, False, False], -math.log(32), -np.inf)
    np.testing.assert_allclose(toy.log_prob(corners), expected, rtol=1e-6)
    assert np.all(np.isfinite(toy.log_prob(toy.sample(KEY, (20_480,)))))


def test_moons_and_roll_agree_with_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", exc_type=ImportError)
    moons = datasets.make_moons(20_480, noise=0.1, random_state=0)[0]
    assert_mean(-data.TwoMoons(0.1).log_prob(moons), data.TwoMoons(0.1).entropy())
    roll = datasets.make_swiss_roll(20_480, noise=1.0, random_state=0)[0][:, [0, 2]] / 5
    assert_mean(-data.SwissRoll().log_prob(roll), data.SwissRoll().entropy())


def test_pinwheel_and_spirals_agree_with_their_definition():
    """The generators written again, with complex numbers; orientation matters."""
    rng, n = np.random.default_rng(0), 20_480
    f = 1 + 0.3 * rng.normal(size=n) + 0.1j * rng.normal(size=n)
    z = 2 * f * np.exp(-1j * (2 * np.pi / 5 * rng.integers(0, 5, n) + 0.25 * np.exp(f.real)))
    x = np.stack([z.real, z.imag], 1).astype(np.float32)
    assert_mean(-data.Pinwheel().log_prob(x), data.Pinwheel().entropy())
    assert np.mean(data.Pinwheel().log_prob(x * np.array([1, -1]))) < -data.Pinwheel().entropy() - 0.5

    t = 3 * np.pi * np.sqrt(rng.random(n))
    z = -t * np.exp(-1j * t) + 0.5 * (rng.random(n) + 1j * rng.random(n))
    z = rng.choice([-1, 1], n) * z / 3 + 0.1 * (rng.normal(size=n) + 1j * rng.normal(size=n))
    toy = data.TwoSpirals()
    assert_mean(-toy.log_prob(np.stack([z.real, z.imag], 1)), toy.entropy())


def test_pinwheel_density_by_brute_force():
    """A histogram on thin sectors of one ring, from the angle map alone, folds included."""
    r, bins = 5.2, 50  # |x|, far out where the map folds
    t = (np.arange(4_000_000) + 0.5) * 2 * np.pi / 4_000_000
    f = r / 2 * np.exp(1j * t)
    weight = np.exp(-0.5 * ((f.real - 1) / 0.3) ** 2 - 0.5 * (f.imag / 0.1) ** 2) / (2 * np.pi * 0.03) / 4
    angle = (t - 0.25 * np.exp(f.real)) % (2 * np.pi / 5)
    histogram = np.histogram(angle, bins, (0, 2 * np.pi / 5), weights=weight)[0] * 2 * np.pi / len(t) / 5
    fine = (np.arange(bins * 200) + 0.5) * 2 * np.pi / 5 / (bins * 200)
    p = np.exp(data.Pinwheel().log_prob(r * np.stack([np.cos(fine), np.sin(fine)], 1)))
    ours = p.reshape(bins, 200).mean(1) * 2 * np.pi / 5 / bins
    close = np.isclose(ours, histogram, rtol=1e-2, atol=1e-4 * histogram.max())
    assert close.sum() == bins - 1  # all but the bin of the fold, where p has a pole
    np.testing.assert_allclose(ours, histogram, rtol=0.06, atol=1e-4 * histogram.max())


# ---- the interface


@toys_by_name
def test_log_prob_batches_jit_grad_and_far_points(toy):
    x = sampled(toy)[0][:6].reshape(2, 3, -1).copy()
    x[0, 0] = 0.0  # the origin is special for the round ones
    smooth = not isinstance(toy, data.Checkerboard)
    if smooth:
        x[1, 1] = 40.0
    log_p = toy.log_prob(x)
    assert log_p.shape == (2, 3) and np.all(np.isfinite(log_p))
    if smooth:
        assert log_p[1, 1] < -100
    values_and_gradients = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(toy.log_prob))))
    values, gradient = values_and_gradients(x)
    np.testing.assert_allclose(values, log_p, rtol=1e-5, atol=1e-5)
    assert gradient.shape == x.shape and np.all(np.isfinite(gradient))


def test_log_prob_of_one_point_and_of_none():
    toy = data.TwoMoons()
    assert toy.log_prob(jnp.ones(2)).shape == () and toy.log_prob(jnp.ones((3, 0, 2))).shape == (3, 0)
    assert toy.sample(KEY).shape == (2,) and toy.sample(KEY, (0,)).shape == (0, 2)


@toys_by_name
def test_float64_gradients_and_float32_agreement(toy):
    x32, log_p = sampled(toy)
    with jax.enable_x64(True):
        x = jnp.asarray(x32[:20], jnp.float64)
        exact = toy.log_prob(x)
        assert exact.dtype == jnp.float64 and jax.eval_shape(toy.sample, KEY).dtype == jnp.float64
        assert jax.eval_shape(toy.log_prob, x32[:20]).dtype == jnp.float32  # inputs decide
        np.testing.assert_allclose(log_p[:20], exact, rtol=2e-5, atol=2e-5)
        gradient = jax.grad(lambda x: toy.log_prob(x).sum())(x)
        for axis in range(min(2, x.shape[1])):
            step = 1e-5 * np.eye(x.shape[1])[axis][None]
            slope = (toy.log_prob(x + step) - toy.log_prob(x - step)) / 2e-5
            np.testing.assert_allclose(gradient[:, axis], slope, rtol=1e-5, atol=1e-5)


def test_second_derivatives_of_the_root_finder():
    toy = data.Pinwheel()
    x32 = sampled(toy)[0][:20]
    with jax.enable_x64(True):
        x = jnp.asarray(x32, jnp.float64)
        step = jnp.asarray(np.tile([[1e-5, 0.5e-5]], (20, 1)))
        gradient = jax.jit(jax.grad(lambda x: toy.log_prob(x).sum()))
        curvature = jax.jvp(gradient, (x,), (step,))[1]
        np.testing.assert_allclose(curvature, (gradient(x + step) - gradient(x - step)) / 2, rtol=1e-5, atol=1e-9)


def test_many_points_in_blocks_are_the_same_points():
    toy = data.TwoMoons()
    x, log_p = sampled(toy)
    np.testing.assert_allclose(log_p[:1000], toy.log_prob(x[:1000]), rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda x: toy.log_prob(x).sum())
    np.testing.assert_allclose(gradient(x[:5000])[:1000], gradient(x[:1000]), rtol=1e-5, atol=1e-5)


def test_accuracy_far_from_the_curve():
    """Against plain sums over 400,000 points of the curve."""
    t = (np.arange(200_000) + 0.5) * np.pi / 200_000
    curve = np.concatenate([np.exp(1j * t), 1 + 0.5j - np.exp(1j * t)])
    for x in ([0.3, 0.2], [3.0, -2.0], [-4.0, 0.1], [0.0, 6.0]):
        terms = -(np.abs(complex(*x) - curve) ** 2) / 0.02
        expected = terms.max() + np.log(np.mean(np.exp(terms - terms.max()))) - math.log(0.02 * math.pi)
        assert float(data.TwoMoons(0.1).log_prob(jnp.array(x))) == pytest.approx(expected, rel=1e-5)


def test_equal_descriptions_are_compiled_once():
    x = jnp.ones((7, 2))
    data.TwoMoons(0.3).log_prob(x)
    before = _log_prob._cache_size()
    data.TwoMoons(0.3).log_prob(x)
    data.two_moons(KEY, 1, noise=0.3).log_prob(x)
    assert _log_prob._cache_size() == before
    assert data.TwoMoons(0.3) == data.TwoMoons(0.3) and hash(data.TwoMoons(0.3)) == hash(data.TwoMoons(0.3))
    assert data.TwoBumps([0.5, 0.5], np.array([-3, 3]), (1, 1)) == data.TwoBumps()


def test_entropy_inside_jit():
    toy = data.Pinwheel(num_arms=3)
    assert float(jax.jit(lambda y: y + toy.entropy())(0.0)) == pytest.approx(toy.entropy(), rel=1e-6)


@by_name
def test_dataset_of_each_toy(name):
    toy, draw, limit = TOYS[name]
    d = draw(KEY, 1)
    assert d.density == toy and d.name == name and d.event_shape == toy.event_shape
    assert d.entropy == pytest.approx(limit, abs=2e-6)
    assert d.train.shape == d.validation.shape == d.test.shape == (1, *toy.event_shape)
    assert len(np.unique(np.concatenate([d.train, d.validation, d.test]), axis=0)) == 3
    np.testing.assert_array_equal(d.train, draw(KEY, 1).train)
    assert not np.array_equal(d.train, draw(jax.random.key(1), 1).train)
    np.testing.assert_array_equal(d.sample(KEY, 1), toy.sample(KEY, (1,)))


def test_dataset_sizes_and_independence():
    d = data.two_moons(KEY, 4_096)
    assert [len(x) for x in (d.train, d.validation, d.test)] == [4_096, 1_024, 1_024]
    assert len(np.unique(np.concatenate([d.train, d.validation, d.test]), axis=0)) == 6_144
    assert abs(np.corrcoef(d.validation[:, 0], d.test[:, 0])[0, 1]) < 4 / 32
    np.testing.assert_array_equal(d.log_prob(d.test), data.TwoMoons().log_prob(d.test))
    assert repr(d).startswith("Dataset('two_moons', train=(4096, 2), validation=(1024, 2), ")
    assert repr(d).endswith("density=TwoMoons(noise=0.05))")


def test_parametrised_datasets():
    d = data.two_moons(KEY, 1, noise=0.05)
    assert d.entropy == pytest.approx(0.289234, abs=2e-6)
    d = data.two_bumps(KEY, 1, weights=(0.4, 0.6), means=(-2, 3), sds=(1, 0.7))
    assert d.entropy == pytest.approx(1.873470, abs=2e-6)
    assert data.twonorm(KEY, 1, dim=3).train.shape == (1, 3)
    with jax.enable_x64(True):
        assert data.rings(KEY, 1, radii=(1.0,), noise=0.2).train.dtype == jnp.float64


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: data.two_moons(0, 10), TypeError, r"key must be a typed key, jax.random.key\(seed\), got int"),
        (lambda: data.two_moons(KEY, 0), ValueError, "n must be at least 1, but it is 0"),
        (lambda: data.two_moons(KEY, 2.5), TypeError, "n must be an integer, but it is 2.5"),
        (lambda: data.two_moons(KEY, 5, noise=0.0), ValueError, "noise must be > 0 and finite, got 0.0"),
        (
            lambda: data.TwoMoons().log_prob(jnp.ones(3)),
            ValueError,
            r"wants x of shape \(..., 2\), but x has shape \(3,\)",
        ),
        (lambda: data.TwoMoons().log_prob(1.0), ValueError, r"x has shape \(\)"),
        (lambda: data.TwoMoons().log_prob(jnp.ones(2, jnp.complex64)), TypeError, "wants real x"),
        (lambda: data.TwoMoons(1e-4).entropy(), ValueError, "use a larger noise"),
        (lambda: data.TwoBumps((0.5, 0.6)), ValueError, r"weights must be >= 0 and add up to 1, but are \(0.5, 0.6\)"),
        (lambda: data.TwoBumps((1.0,)), ValueError, "have 1, 2 and 2: give them the same length"),
        (lambda: data.TwoBumps(sds=(1, -1)), ValueError, "sds must be > 0"),
        (lambda: data.Rings(radii=()), ValueError, "radii is empty"),
        (lambda: data.Pinwheel(radial_sd=2.0), ValueError, "winds so far"),
    ],
)
def test_errors_of_toys(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_integers_are_accepted_as_points():
    assert data.TwoMoons().log_prob(np.array([1, 0])) == data.TwoMoons().log_prob(jnp.array([1.0, 0.0]))


def test_import_starts_nothing():
    code = "import genmod.data; from jax._src import xla_bridge as x; assert not x.backends_are_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.path.dirname(os.path.dirname(__file__)))


# ---- tables


def test_split():
    x = np.arange(103)
    parts = data.split(x, (0.7, 0.2, 0.1), seed=3)
    assert [len(p) for p in parts] == [73, 20, 10]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), x)
    for a, b in zip(parts, data.split(x, (0.7, 0.2, 0.1), seed=3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(parts[0], data.split(x, (0.7, 0.2, 0.1), seed=4)[0])
    assert [len(p) for p in data.split(np.arange(3))] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"add up to 1, but they are \(0.5, 0.5, 0.5\)"):
        data.split(x, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="x has 2 rows"):
        data.split(x[:2])


TABLE = np.random.default_rng(0).normal(size=(50, 3))


def save(folder, name, **arrays):
    path = folder / name
    if name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        np.save(path, arrays["x"])
    return path


@pytest.mark.parametrize("name", ["t.npy", "t.npz", "t.csv", "h.csv"])
def test_table_formats(tmp_path, name):
    path = tmp_path / name
    if name.endswith("csv"):
        np.savetxt(path, TABLE, delimiter=",", header="a,b,c" if name == "h.csv" else "", comments="", fmt="%.17g")
    else:
        save(tmp_path, name, x=TABLE)
    d = data.table(path, seed=1)
    assert [x.shape for x in (d.train, d.validation, d.test)] == [(40, 3), (5, 3), (5, 3)]
    assert d.train.dtype == jnp.float32 and d.name == path.stem
    for x, y in zip((d.train, d.validation, d.test), data.split(TABLE, seed=1), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    assert d.log_prob is None and d.entropy is None and d.density is None
    with pytest.raises(ValueError, match="is unknown, so it has no fresh samples"):
        d.sample(KEY, 3)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(data.table(str(path), seed=1).test, data.split(TABLE, seed=1)[2])


@pytest.mark.parametrize("validation", ["validation", "val", "valid"])
def test_table_with_given_splits(tmp_path, validation):
    path = save(tmp_path, "t.npz", train=TABLE[:30], **{validation: TABLE[30:35]}, test=TABLE[35:])
    d = data.table(path)
    np.testing.assert_allclose(np.concatenate([d.train, d.validation, d.test]), TABLE, rtol=1e-6)


def test_a_vector_is_one_column(tmp_path):
    assert data.table(save(tmp_path, "t.npy", x=TABLE[:, 0])).train.shape == (40, 1)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (np.ones((50, 2), np.int64), TypeError, r"t.npy has dtype int64, and integers have no density: dequantise"),
        (np.ones((50, 2), bool), TypeError, "dtype bool, and integers have no density"),
        (np.ones((50, 2), complex), TypeError, "dtype complex128, but real floats are wanted"),
        (np.full((50, 2), "a"), TypeError, "dtype <U1, but real floats are wanted"),
        (np.array([{}] * 50), TypeError, "holds Python objects, but real floats are wanted"),
        (np.ones((5, 5, 5)), ValueError, r"has shape \(5, 5, 5\), but \(rows, columns\) is wanted"),
        (np.array(1.0), ValueError, r"has shape \(\), but"),
        (np.ones((0, 3)), ValueError, r"is empty \(shape \(0, 3\)\)"),
        (np.ones((9, 3)), ValueError, "has 9 rows, but at least 10 are wanted"),
        (np.where(np.arange(60).reshape(20, 3) == 10, np.nan, 1.0), ValueError, r"\(nan\) in row 3 .*column 1: drop"),
        (np.where(np.arange(60).reshape(20, 3) > 10, np.inf, 1.0), ValueError, "49 values that are not finite"),
        (np.full((20, 3), 1e300), ValueError, r"not finite, the first \(1e\+300\)"),
    ],
)
def test_bad_arrays(tmp_path, x, error, message):
    with pytest.raises(error, match=message):
        data.table(save(tmp_path, "t.npy", x=x))


ROWS = "\n".join("1.5,2.5" for _ in range(12))


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("", ValueError, "t.csv is empty"),
        ("a,b\n", ValueError, "t.csv is empty"),
        ("a,b\n1.5,x\n" + ROWS, ValueError, r"column 'b' of t.csv is not numeric \(row 0 has 'x'\)"),
        (ROWS + "\n1.5,red", ValueError, r"column 1 of t.csv is not numeric \(row 12 has 'red'\)"),
        ("a,b\n" + ROWS + "\n1.5,", ValueError, r"\(nan\) in row 12 \(from 0\), column 'b'"),
        (ROWS + "\n1.5", ValueError, "has 1 cells in row 12 .*but 2 are wanted"),
        ("a,b\n" + "1,2\n" * 20, TypeError, "integers have no density: dequantise"),
    ],
)
def test_bad_csv(tmp_path, text, error, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(error, match=message):
        data.table(path)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none.npy': give the path"):
        data.table(tmp_path / "none.npy")
    (tmp_path / "t.txt").write_text("1.0")
    with pytest.raises(ValueError, match=r"t.txt ends in '.txt', but a .npy, .npz or .csv table is wanted"):
        data.table(tmp_path / "t.txt")
    for name in ("t.npy", "t.npz"):
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises((ValueError, TypeError), match=f"{name} "):
            data.table(tmp_path / name)
    with pytest.raises(ValueError, match=r"has the arrays \['a', 'b'\], but one array, or train, validation and test"):
        data.table(save(tmp_path, "ab.npz", a=TABLE, b=TABLE))
    with pytest.raises(ValueError, match=r"of w.npz have 3, 2, 3 columns"):
        data.table(save(tmp_path, "w.npz", train=TABLE, val=TABLE[:, :2], test=TABLE))


def test_scikit_learn_tables():
    pytest.importorskip("sklearn", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not ours: the import of scikit-learn itself
        import sklearn.datasets
    for load, shapes in (
        (data.digits, (1439, 179, 64)),
        (data.breast_cancer, (457, 56, 30)),
        (data.wine, (144, 17, 13)),
    ):
        d = load(0)
        n, m, dim = shapes
        assert d.train.shape == (n, dim) and d.validation.shape == d.test.shape == (m, dim)
        np.testing.assert_array_equal(d.train, load(0).train)
        assert not np.array_equal(d.train, load(1).train)
    digits = np.concatenate([data.digits(0).train, data.digits(0).validation, data.digits(0).test])
    assert digits.min() >= 0 and digits.max() < 1
    levels, noise = np.divmod(digits.astype(np.float64) * 17, 1)
    expected = sklearn.datasets.load_digits().data
    assert levels.mean() == pytest.approx(expected.mean(), abs=1e-4) and levels.max() == 16
    assert_mean(noise.ravel(), 0.5)


def test_scikit_learn_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "genmod-jax\[experiments\]"'):
        data.wine()


@pytest.mark.skipif(not os.environ.get("GENMOD_DATA"), reason="GENMOD_DATA is not set, so there is no miniboone file")
def test_miniboone():
    d = data.miniboone(0)
    assert d.train.shape == (2956, 43) and d.validation.shape == (328, 43) and d.test.shape == (3648, 43)
    np.testing.assert_array_equal(d.train, data.miniboone(0).train)
    np.testing.assert_array_equal(d.test, data.miniboone(1).test)
    both = np.concatenate([d.train, d.validation]).astype(np.float64)
    mean, cov = both.mean(0), np.cov(both.T, bias=True)
    residual = np.asarray(d.test, np.float64) - mean
    quadratic = np.einsum("ni,ij,nj->n", residual, np.linalg.inv(cov), residual)
    log_p = -0.5 * (quadratic + np.linalg.slogdet(cov)[1] + 43 * math.log(2 * math.pi))
    assert log_p.mean() == pytest.approx(-37.72, abs=0.01)


def test_miniboone_missing(monkeypatch, tmp_path):
    monkeypatch.delenv("GENMOD_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"miniboone_val_test.npz .*GENMOD_DATA, which is not set: set it"):
        data.miniboone()
    monkeypatch.setenv("GENMOD_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"miniboone_val_test.npz is wanted, but GENMOD_DATA=.* lacks"):
        data.miniboone()
