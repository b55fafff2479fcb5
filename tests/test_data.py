"""Toys against quadrature, closed forms and the generators they imitate; tables and their errors."""

import dataclasses
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
from genmod.core.distribution import Likelihood
from genmod.core.event import Real

KEY = jax.random.key(0)

# A toy, the function that draws it, and its entropy in nats.
TOYS = {
    "two_moons": (data.TwoMoons(), data.two_moons, 0.289234),
    "eight_gaussians": (data.EightGaussians(), data.eight_gaussians, 2.831880),
    "gaussian_grid": (data.GaussianGrid(), data.gaussian_grid, 0.065288),
    "checkerboard": (data.CheckerboardDensity(), data.checkerboard, 3.465736),
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

SLOW = {"gaussian_grid", "pinwheel", "swiss_roll", "twonorm"}  # close kin of others
by_name = pytest.mark.parametrize("name", TOYS)
toys_by_name = pytest.mark.parametrize("toy", [t for t, _, _ in TOYS.values()], ids=TOYS)
in_plane = pytest.mark.parametrize("name", PLANE)


@functools.cache
def sampled(toy, n=20_480, seed=1):
    x = toy.sample({}, jax.random.key(seed), (n,))
    return np.asarray(x), np.asarray(toy.log_prob({}, x))


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
    mass = np.exp(np.asarray(toy.log_prob({}, grid.astype(np.float32)), np.float64)) * h**2
    assert mass.sum() == pytest.approx(1, abs=2e-4)
    x = sampled(toy)[0].astype(np.float64)
    for power in ([1, 0], [0, 1], [2, 0], [0, 2], [1, 1], [3, 0], [2, 1], [0, 3]):
        expected = (mass * np.prod(grid**power, -1)).sum()
        assert_mean(np.prod(x**power, -1), expected, errors=4.5)


@pytest.mark.parametrize("toy", [data.TwoBumps(), OTHERS[2][0]], ids=str)
def test_density_on_the_line_integrates_to_one(toy):
    x = np.arange(-15, 20, 0.01)
    p = np.exp(np.asarray(toy.log_prob({}, x[:, None].astype(np.float32)), np.float64))
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
    toy = data.CheckerboardDensity()
    corners = jnp.array([[0.0, 0.0], [-4.0, -4.0], [3.99, 3.99], [0.0, 2.0], [4.0, 4.0], [1.0, 9.0], [-1.0, 1.0]])
    expected = np.where([True, True, True, False, False, False, False], -math.log(32), -np.inf)
    np.testing.assert_allclose(toy.log_prob({}, corners), expected, rtol=1e-6)
    assert np.all(np.isfinite(toy.log_prob({}, toy.sample({}, KEY, (20_480,)))))


def test_moons_and_roll_agree_with_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", exc_type=ImportError)
    moons = datasets.make_moons(20_480, noise=0.1, random_state=0)[0]
    assert_mean(-data.TwoMoons(0.1).log_prob({}, moons), data.TwoMoons(0.1).entropy())
    roll = datasets.make_swiss_roll(20_480, noise=1.0, random_state=0)[0][:, [0, 2]] / 5
    assert_mean(-data.SwissRoll().log_prob({}, roll), data.SwissRoll().entropy())


def test_pinwheel_and_spirals_agree_with_their_definition():
    """The generators written again, with complex numbers; orientation matters."""
    rng, n = np.random.default_rng(0), 20_480
    f = 1 + 0.3 * rng.normal(size=n) + 0.1j * rng.normal(size=n)
    z = 2 * f * np.exp(-1j * (2 * np.pi / 5 * rng.integers(0, 5, n) + 0.25 * np.exp(f.real)))
    x = np.stack([z.real, z.imag], 1).astype(np.float32)
    assert_mean(-data.Pinwheel().log_prob({}, x), data.Pinwheel().entropy())
    assert np.mean(data.Pinwheel().log_prob({}, x * np.array([1, -1]))) < -data.Pinwheel().entropy() - 0.5

    t = 3 * np.pi * np.sqrt(rng.random(n))
    z = -t * np.exp(-1j * t) + 0.5 * (rng.random(n) + 1j * rng.random(n))
    z = rng.choice([-1, 1], n) * z / 3 + 0.1 * (rng.normal(size=n) + 1j * rng.normal(size=n))
    toy = data.TwoSpirals()
    assert_mean(-toy.log_prob({}, np.stack([z.real, z.imag], 1)), toy.entropy())


def test_pinwheel_density_by_brute_force():
    """A histogram on thin sectors of one ring, from the angle map alone, folds included."""
    r, bins = 5.2, 50  # |x|, far out where the map folds
    t = (np.arange(4_000_000) + 0.5) * 2 * np.pi / 4_000_000
    f = r / 2 * np.exp(1j * t)
    weight = np.exp(-0.5 * ((f.real - 1) / 0.3) ** 2 - 0.5 * (f.imag / 0.1) ** 2) / (2 * np.pi * 0.03) / 4
    angle = (t - 0.25 * np.exp(f.real)) % (2 * np.pi / 5)
    histogram = np.histogram(angle, bins, (0, 2 * np.pi / 5), weights=weight)[0] * 2 * np.pi / len(t) / 5
    fine = (np.arange(bins * 200) + 0.5) * 2 * np.pi / 5 / (bins * 200)
    p = np.exp(data.Pinwheel().log_prob({}, r * np.stack([np.cos(fine), np.sin(fine)], 1)))
    ours = p.reshape(bins, 200).mean(1) * 2 * np.pi / 5 / bins
    close = np.isclose(ours, histogram, rtol=1e-2, atol=1e-4 * histogram.max())
    assert close.sum() == bins - 1  # all but the bin of the fold, where p has a pole
    np.testing.assert_allclose(ours, histogram, rtol=0.06, atol=1e-4 * histogram.max())


# ---- the interface


@toys_by_name
def test_log_prob_batches_jit_grad_and_far_points(toy):
    x = sampled(toy)[0][:6].reshape(2, 3, -1).copy()
    x[0, 0] = 0.0  # the origin is special for the round ones
    smooth = not isinstance(toy, data.CheckerboardDensity)
    if smooth:
        x[1, 1] = 40.0
    log_p = toy.log_prob({}, x)
    assert log_p.shape == (2, 3) and np.all(np.isfinite(log_p))
    if smooth:
        assert log_p[1, 1] < -100
    values_and_gradients = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(toy.exact_log_prob))))
    values, gradient = values_and_gradients(x)
    np.testing.assert_allclose(values, log_p, rtol=1e-5, atol=1e-5)
    assert gradient.shape == x.shape and np.all(np.isfinite(gradient))


def test_log_prob_of_one_point_and_of_none():
    toy = data.TwoMoons()
    assert toy.log_prob({}, jnp.ones(2)).shape == () and toy.log_prob({}, jnp.ones((3, 0, 2))).shape == (3, 0)
    assert toy.sample({}, KEY).shape == (2,) and toy.sample({}, KEY, (0,)).shape == (0, 2)


@toys_by_name
@pytest.mark.slow
def test_float64_gradients_and_float32_agreement(toy):
    x32, log_p = sampled(toy)
    with jax.enable_x64(True):
        x = jnp.asarray(x32[:20], jnp.float64)
        exact = toy.log_prob({}, x)
        assert exact.dtype == jnp.float64 and jax.eval_shape(lambda: toy.sample({}, KEY)).dtype == jnp.float64
        assert jax.eval_shape(toy.exact_log_prob, x32[:20]).dtype == jnp.float32  # inputs decide
        np.testing.assert_allclose(log_p[:20], exact, rtol=2e-5, atol=2e-5)
        gradient = jax.grad(lambda x: toy.log_prob({}, x).sum())(x)
        for axis in range(min(2, x.shape[1])):
            step = 1e-5 * np.eye(x.shape[1])[axis][None]
            slope = (toy.log_prob({}, x + step) - toy.log_prob({}, x - step)) / 2e-5
            np.testing.assert_allclose(gradient[:, axis], slope, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_second_derivatives_of_the_root_finder():
    toy = data.Pinwheel()
    x32 = sampled(toy)[0][:20]
    with jax.enable_x64(True):
        x = jnp.asarray(x32, jnp.float64)
        step = jnp.asarray(np.tile([[1e-5, 0.5e-5]], (20, 1)))
        gradient = jax.jit(jax.grad(lambda x: toy.log_prob({}, x).sum()))
        curvature = jax.jvp(gradient, (x,), (step,))[1]
        np.testing.assert_allclose(curvature, (gradient(x + step) - gradient(x - step)) / 2, rtol=1e-5, atol=1e-9)


def test_many_points_in_blocks_are_the_same_points():
    toy = data.TwoMoons()
    x, log_p = sampled(toy)
    np.testing.assert_allclose(log_p[:1000], toy.log_prob({}, x[:1000]), rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda x: toy.log_prob({}, x).sum())
    np.testing.assert_allclose(gradient(x[:5000])[:1000], gradient(x[:1000]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("toy", [data.TwoMoons(), data.TwoSpirals(), data.Pinwheel()], ids=str)
def test_gradients_do_not_keep_what_every_node_of_every_point_needs(toy):
    def memory(num):
        x = jax.ShapeDtypeStruct((num, 2), jnp.float32)
        gradient = jax.jit(jax.grad(lambda x: toy.log_prob({}, x).sum()))
        return gradient.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert memory(32_000) - memory(16_000) < 16_000 * 1_000  # bytes a point; without forgetting 5,000 to 50,000


def test_accuracy_far_from_the_curve():
    """Against plain sums over 400,000 points of the curve."""
    t = (np.arange(200_000) + 0.5) * np.pi / 200_000
    curve = np.concatenate([np.exp(1j * t), 1 + 0.5j - np.exp(1j * t)])
    for x in ([0.3, 0.2], [3.0, -2.0], [-4.0, 0.1], [0.0, 6.0]):
        terms = -(np.abs(complex(*x) - curve) ** 2) / 0.02
        expected = terms.max() + np.log(np.mean(np.exp(terms - terms.max()))) - math.log(0.02 * math.pi)
        assert float(data.TwoMoons(0.1).log_prob({}, jnp.array(x))) == pytest.approx(expected, rel=1e-5)


def test_equal_descriptions_are_compiled_once():
    x, traced = jnp.ones((7, 2)), []

    @dataclasses.dataclass(frozen=True)
    class Counted(data.TwoMoons):
        def log_prob_one(self, params, x, context=None, key=None):
            traced.append(self)
            return super().log_prob_one(params, x, context, key)

    Counted(0.3).log_prob({}, x)
    before = len(traced)
    Counted(0.3).log_prob({}, x)
    data.from_density("counted", Counted(0.3), KEY, 1).log_prob(x)
    assert before and len(traced) == before
    assert data.TwoMoons(0.3) == data.TwoMoons(0.3) and hash(data.TwoMoons(0.3)) == hash(data.TwoMoons(0.3))
    assert data.TwoBumps([0.5, 0.5], np.array([-3, 3]), (1, 1)) == data.TwoBumps()


def test_entropy_inside_jit():
    toy = data.Pinwheel(num_arms=3)
    assert float(jax.jit(lambda y: y + toy.entropy())(0.0)) == pytest.approx(toy.entropy(), rel=1e-6)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in TOYS])
@pytest.mark.slow
def test_dataset_of_each_toy(name):
    toy, draw, limit = TOYS[name]
    d = draw(KEY, 1)
    assert d.density == toy and d.name == name and d.event_shape == toy.event_shape
    assert d.entropy == pytest.approx(limit, abs=2e-6)
    assert d.train.shape == d.validation.shape == d.test.shape == (1, *toy.event_shape)
    assert len(np.unique(np.concatenate([d.train, d.validation, d.test]), axis=0)) == 3
    np.testing.assert_array_equal(d.train, draw(KEY, 1).train)
    assert not np.array_equal(d.train, draw(jax.random.key(1), 1).train)
    np.testing.assert_array_equal(d.sample(KEY, 1), toy.sample({}, KEY, (1,)))
    assert d.event == toy.event == Real(toy.event_shape)


def test_a_toy_is_a_distribution_without_parameters():
    toy = data.Pinwheel()
    assert toy.init(KEY, jnp.ones((1, 2))) == {} and toy.likelihood is Likelihood.EXACT and toy.context_shape is None
    x, log_p = toy.sample_and_log_prob({}, KEY, (3, 4))
    assert x.shape == (3, 4, 2)
    np.testing.assert_allclose(log_p, toy.log_prob({}, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(toy.exact_log_prob(x), toy.log_prob({}, x))
    np.testing.assert_array_equal(toy.sample({}, KEY, 5), toy.sample({}, KEY, 9)[:5])
    with pytest.raises(TypeError, match=r"TwoMoons.noise must be hashable"):
        data.TwoMoons(jnp.array(0.1))


def test_the_parts_of_a_dataset_are_draws_of_three_keys():
    d = data.rings(KEY, 40)
    for i, part in enumerate((d.train, d.validation, d.test)):
        np.testing.assert_allclose(part, d.density.sample({}, jax.random.fold_in(KEY, i), len(part)), rtol=1e-6)


def test_dataset_sizes_and_independence():
    d = data.two_moons(KEY, 4_096)
    assert [len(x) for x in (d.train, d.validation, d.test)] == [4_096, 1_024, 1_024]
    assert len(np.unique(np.concatenate([d.train, d.validation, d.test]), axis=0)) == 6_144
    assert abs(np.corrcoef(d.validation[:, 0], d.test[:, 0])[0, 1]) < 4 / 32
    np.testing.assert_array_equal(d.log_prob(d.test), data.TwoMoons().log_prob({}, d.test))
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
        (lambda: data.two_moons(KEY, 0), ValueError, "n must be an integer >= 1, got 0"),
        (lambda: data.two_moons(KEY, 2.5), ValueError, "n must be an integer >= 1, got 2.5"),
        (lambda: data.two_moons(KEY, 5, noise=0.0), ValueError, "noise must be > 0 and finite, got 0.0"),
        (
            lambda: data.TwoMoons().log_prob({}, jnp.ones(3)),
            ValueError,
            r"x must have shape \(...,\) \+ \(2,\), got \(3,\)",
        ),
        (lambda: data.TwoMoons().log_prob({}, 1.0), ValueError, r"x must have shape \(...,\) \+ \(2,\), got \(\)"),
        (lambda: data.TwoMoons().log_prob({}, jnp.ones(2, jnp.complex64)), TypeError, "x must be floating point, got complex64"),
        (lambda: data.TwoMoons(1e-4).entropy(), ValueError, "use a larger noise"),
        (lambda: data.TwoBumps((0.5, 0.6)), ValueError, r"weights must be >= 0 and add up to 1, got \(0.5, 0.6\)"),
        (lambda: data.TwoBumps((1.0,)), ValueError, "weights, means and sds must be of one length, got 1, 2 and 2"),
        (lambda: data.TwoBumps(sds=(1, -1)), ValueError, "sds must be > 0"),
        (lambda: data.Rings(radii=()), ValueError, r"radii must hold at least one radius, got \(\)"),
        (lambda: data.Pinwheel(radial_sd=2.0), ValueError, "it winds so far; take fewer arms"),
    ],
)
def test_errors_of_toys(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_lists_and_tables_are_accepted_as_points_and_integers_are_not():
    assert data.TwoMoons().log_prob({}, [1.0, 0.0]) == data.TwoMoons().log_prob({}, jnp.array([1.0, 0.0]))
    with pytest.raises(TypeError, match="x must be floating point, got int64; cast it"):
        data.TwoMoons().log_prob({}, np.array([1, 0]))


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
    with pytest.raises(ValueError, match=r"add up to 1, got \(0.5, 0.5, 0.5\)"):
        data.split(x, (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="x must have at least 3 rows, one for each part, got 2"):
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
    assert data.table(TABLE[:, 0]).train.shape == (40, 1)


@pytest.mark.parametrize(
    "make", [np.asarray, jnp.asarray, list, "pandas", "polars"], ids=["numpy", "jax", "list", "pandas", "polars"]
)
def test_tables_in_memory(make):
    if isinstance(make, str):
        frames = pytest.importorskip(make, reason=f"{make} is not installed; genmod does not need it")
        frame = frames.DataFrame({name: TABLE[:, i] for i, name in enumerate("abc")})
    else:
        frame = make(TABLE)
    d = data.table(frame, seed=1)
    assert d.name == "table" and d.event == Real((3,)) and isinstance(d.train, jax.Array) and d.train.dtype == jnp.float32
    for x, y in zip((d.train, d.validation, d.test), data.split(TABLE, seed=1), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize(
    "column, error, message",
    [
        (list(range(50)), TypeError, "source: column 'k' holds integers; a density of real numbers would grow without bound"),
        ([2.5] * 50, ValueError, "source: column 'k' is constant; a density of real numbers would grow .* drop it"),
        (["u"] * 50, TypeError, r"source: column 'k' holds text \('u' in row 0\); encode it as numbers, or drop it"),
        ([None, *range(49)], ValueError, "source: column 'k' has missing values .* in 1 of 50 rows"),
        (
            [math.inf, *np.arange(49.5)[:49]],
            ValueError,
            r"source must be finite, .* \(inf\) in row 0 .* column 'k'; drop",
        ),
    ],
    ids=["integers", "constant", "text", "missing", "infinite"],
)
def test_bad_columns_of_tables_in_memory(library, column, error, message):
    frames = pytest.importorskip(library, reason=f"{library} is not installed; genmod does not need it")
    with pytest.raises(error, match=message):
        data.table(frames.DataFrame({"a": TABLE[:, 0], "k": column}))
    if message.count("integers"):
        with pytest.raises(TypeError, match="source: column 'k' holds integers"):
            data.table(frames.DataFrame({"k": column}))


@pytest.mark.parametrize(
    "x, error, message",
    [
        (np.ones((50, 2), np.int64), TypeError, r"t.npy holds integers \(int64\); a density .* dequantise it \(add uniform"),
        (np.ones((50, 2), bool), TypeError, r"t.npy holds booleans \(bool\); a density of real numbers would grow"),
        (np.ones((50, 2), complex), TypeError, r"holds complex numbers \(complex128\); take real and imaginary parts"),
        (np.full((50, 2), "a"), TypeError, r"holds text \(<U1\); encode it as numbers"),
        (np.array([{}] * 50), TypeError, "t.npy holds objects; convert it to numbers"),
        (np.ones((5, 5, 5)), ValueError, r"must have shape \(rows, columns\), got \(5, 5, 5\)"),
        (np.array(1.0), ValueError, r"must have shape \(rows, columns\), got \(\)"),
        (np.ones((0, 3)), ValueError, r"must have at least 10 rows and one column, got shape \(0, 3\)"),
        (np.ones((9, 3)), ValueError, r"must have at least 10 rows and one column, got shape \(9, 3\)"),
        (np.ones((9, 0)), ValueError, r"must have at least 10 rows and one column, got shape \(9, 0\)"),
        (np.where(np.arange(60).reshape(20, 3) == 10, np.nan, 1.0), ValueError, r"\(nan\) in row 3 .*column 1; drop"),
        (np.where(np.arange(60).reshape(20, 3) > 10, np.inf, 1.0), ValueError, "must be finite, got 49 values that are not"),
        (np.full((20, 3), 1e300), ValueError, r"must be finite, .*the first \(1e\+300\)"),
        (np.where(np.arange(3) == 1, 2.0, np.arange(60.0).reshape(20, 3)), ValueError, "t.npy: column 1 is constant; .* drop it"),
        (np.where(np.arange(3) == 1, np.arange(60.0).reshape(20, 3), 2.0), ValueError, "columns 0, 2 are constant; .* drop them"),
    ],
)
def test_bad_arrays(tmp_path, x, error, message):
    with pytest.raises(error, match=message):
        data.table(save(tmp_path, "t.npy", x=x))


ROWS = "\n".join("1.5,2.5" for _ in range(12))


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("", ValueError, "t.csv must hold a table of numbers, got an empty file"),
        ("a,b\n", ValueError, r"t.csv must have at least 10 rows and one column, got shape \(0, 2\)"),
        ("a,b\n1.5,x\n" + ROWS, TypeError, r"t.csv: column 'b' holds text \('x' in row 0\); encode it as numbers, or drop it"),
        (ROWS + "\n1.5,red", TypeError, r"t.csv: column 1 holds text \('red' in row 12\)"),
        ("a,b\n" + ROWS + "\n1.5,", ValueError, r"column 'b' has missing values \(NaN, None or NA\) in 1 of 13 rows; fill"),
        ("a,b\nNA,nan\n" + ROWS + "\n1.5,null", ValueError, "columns 'a', 'b' have missing values .* up to 2 of 14 rows"),
        (ROWS + "\n1.5", ValueError, "must have 2 cells in every row, as in its first, got 1 in row 12"),
        ("a,b\n" + "1,2\n" * 20, TypeError, "columns 'a', 'b' hold integers; .* cast them to float if they are measurements"),
        ("x,age\n" + "1.5,2\n" * 20, TypeError, "t.csv: column 'age' holds integers; a density of real numbers would grow"),
        (",x\n" + "".join(f"{i},{i}.5\n" for i in range(20)), TypeError, "column '' holds integers"),  # the index of pandas
        ("x,big\n" + f"1.5,{10**30}\n" * 20, TypeError, "column 'big' holds integers"),
        ("x,ok\n1.5,True\n" + "1.5,false\n" * 20, TypeError, "column 'ok' holds booleans; .* dequantise it"),
        ("x,day\n" + "1.5,2024-02-29\n" * 20, TypeError, r"column 'day' holds dates \('2024-02-29' in row 0\); convert it"),
        ("x,time\n" + "1.5,2024-02-29T12:30\n" * 20, TypeError, "column 'time' holds dates"),
        ("x,k\n" + "".join(f"{i}.5,2.5\n" for i in range(20)), ValueError, "t.csv: column 'k' is constant; a density"),
        ("x,y\n" + "".join(f"{i}.5,{i}e999\n" for i in range(20)), ValueError, r"the first \(inf\) in row 1 .* column 'y'"),
    ],
)
def test_bad_csv(tmp_path, text, error, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(error, match=message):
        data.table(path)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none.npy'; give the path"):
        data.table(tmp_path / "none.npy")
    (tmp_path / "t.txt").write_text("1.0")
    with pytest.raises(ValueError, match=r"t.txt must be a .npy, .npz or .csv table, got the suffix '.txt'"):
        data.table(tmp_path / "t.txt")
    for name in ("t.npy", "t.npz"):
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises((ValueError, TypeError), match=f"{name} "):
            data.table(tmp_path / name)
    with pytest.raises(ValueError, match=r"must hold one array, or train, validation and test, got \['a', 'b'\]"):
        data.table(save(tmp_path, "ab.npz", a=TABLE, b=TABLE))
    with pytest.raises(ValueError, match=r"of w.npz must have equally many columns, got 3, 2, 3"):
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


@pytest.mark.parametrize(("toy", "num"), [(data.EightGaussians(), 8), (data.GaussianGrid(3), 9)], ids=["eight", "grid"])
def test_centers_are_equal_modes(toy, num):
    """The density there is that of one Gaussian of the mixture; the others are six standard deviations away, at least."""
    centers = toy.centers()
    assert len(np.unique(centers.round(6), axis=0)) == num
    log_prob = toy.exact_log_prob(centers.astype(np.float32))
    np.testing.assert_allclose(log_prob, -math.log(2 * math.pi * toy.sd**2 * num), atol=1e-4)


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
