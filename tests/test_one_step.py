"""One-step generators against Gaussian data, whose consistency function and mean velocity are known."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import genmod as gm
from genmod.bijectors import CNF, ProbabilityFlow
from genmod.core.batching import row_keys
from genmod.denoising import (
    DDIM,
    EDM,
    Cosine,
    Known,
    Learned,
    NeighboringLevels,
    VariancePreserving,
    denoisers,
)
from genmod.densities import Normal
from genmod.losses import consistency_matching, mean_velocity_matching, pseudo_huber
from genmod.models import Consistency, Diffusion, LogitNormalSpans, MeanFlow, UniformSpans
from genmod.nets import MeanVelocity, VelocityMLP
from genmod.transport import Linear, Scheduled

pytestmark = pytest.mark.usefixtures("quick_compile")
# Gaussian data N(MEAN, SCALE^2), independent coordinates.
MEAN, SCALE = (1.0, -0.5), (0.4, 1.5)
SMALL = {"hidden_sizes": (8,), "activation": jnp.tanh}
SCHEDULES = {"edm": EDM(0.01, 20.0), "variance_preserving": VariancePreserving(), "cosine": Cosine(9.0, -9.0)}


def gaussian_data(num, seed=0, dtype=np.float32):
    z = np.random.default_rng(seed).standard_normal((num, len(MEAN)))
    return (np.asarray(MEAN) + np.asarray(SCALE) * z).astype(dtype)


# --- what is known -------------------------------------------------------------------------------------------------------------


def ratio(schedule, t):
    return schedule.sigma(t) / schedule.alpha(t)


def along_the_diffusion(schedule, x, t, s, mean=MEAN, scale=SCALE):
    """Where the probability flow that is at x at time t is at time s: x / alpha - m grows as the root of its variance."""
    mean, variance = jnp.asarray(mean, x.dtype), jnp.asarray(scale, x.dtype) ** 2
    grown = jnp.sqrt((variance + ratio(schedule, s) ** 2) / (variance + ratio(schedule, t) ** 2))
    return schedule.alpha(s) * (mean + grown * (x / schedule.alpha(t) - mean))


def exact_endpoint(schedule, x, t):
    return along_the_diffusion(schedule, x, t, jnp.full_like(t, schedule.times[0]))


def velocity(x, t, mean=MEAN, scale=SCALE):
    """v(x, t) of the linear path from N(0, 1): the mean is t m, the variance (1 - t)^2 + t^2 s^2."""
    mean, variance = jnp.asarray(mean, x.dtype), jnp.asarray(scale, x.dtype) ** 2
    return mean + (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance) * (x - t * mean)


def along_the_flow(x, t, r):
    mean, variance = jnp.asarray(MEAN, x.dtype), jnp.asarray(SCALE, x.dtype) ** 2
    return r * mean + jnp.sqrt(((1 - r) ** 2 + r**2 * variance) / ((1 - t) ** 2 + t**2 * variance)) * (x - t * mean)


def mean_velocity(x, t, r, mean=MEAN, scale=SCALE):
    """(x_r - x_t) / (r - t) of the same flow, divided out, so that r = t is no exception."""
    mean, variance = jnp.asarray(mean, x.dtype), jnp.asarray(scale, x.dtype) ** 2
    begin, end = ((1 - a) ** 2 + a**2 * variance for a in (t, r))
    slope = (r + t) * (1 + variance) - 2  # (end - begin) / (r - t)
    return mean + slope / (begin + jnp.sqrt(begin * end)) * (x - t * mean)


class ExactMean(nn.Module):
    """The mean velocity of N(mean, scale^2), as a body; `learned`: its two rows of parameters start elsewhere."""

    learned: bool = False

    @nn.compact
    def __call__(self, x, t, c):
        duration = c.reshape(())
        if not self.learned:
            return mean_velocity(x, t, t + duration)
        mean, log_scale = (
            self.param("mean", nn.initializers.zeros, x.shape),
            self.param("log_scale", nn.initializers.zeros, x.shape),
        )
        return mean_velocity(x, t, t + duration, mean, jnp.exp(log_scale))


class ExactEndpoint(nn.Module):
    """The network of a `Consistency` that is exact for N(mean, scale^2) on a schedule with r_low = `low`."""

    low: float
    learned: bool = False

    @nn.compact
    def __call__(self, x, c):
        r = jnp.exp(4.0 * c)
        y, low = x * jnp.sqrt(1.0 + r**2), jnp.asarray(self.low, x.dtype)
        mean, scale = jnp.asarray(MEAN, x.dtype), jnp.asarray(SCALE, x.dtype)
        if self.learned:
            mean = self.param("mean", nn.initializers.zeros, x.shape)
            scale = jnp.exp(self.param("log_scale", nn.initializers.zeros, x.shape))
        ahead = r - low
        end = mean + jnp.sqrt((scale**2 + low**2) / (scale**2 + r**2)) * (y - mean)
        moved = jnp.where(ahead > 1e-6 * low, ahead, 1.0) / jnp.sqrt(1.0 + r**2)
        return jnp.where(ahead > 1e-6 * low, (end - y / (1.0 + ahead**2)) / moved, 0.0)


def low_ratio(schedule):
    with jax.enable_x64(True):
        return float(ratio(schedule, jnp.asarray(schedule.times[0])))


def exact_consistency(schedule, learned=False, **options):
    return Consistency(Learned(ExactEndpoint(low_ratio(schedule), learned), schedule), (2,), **options)


def gaussian(schedule):
    return denoisers.gaussian(schedule, MEAN, np.square(SCALE))


def teacher(schedule):
    return Diffusion(ProbabilityFlow(Known(gaussian, schedule)), (2,))


def exact_mean_flow(learned=False, **options):
    return MeanFlow(CNF(MeanVelocity(ExactMean(learned))), Normal((2,)), **options)


NO_PARAMS = {"bijector": ({},)}


def moved(params, scale=0.4, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)


# --- the identities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_function_is_consistent_along_the_flow(name, x64):
    """Neighbours on one path have one end, to rounding; the denoiser, whose values differ along a path, is not consistent."""
    schedule, num = SCHEDULES[name], 500
    s, t, gap = NeighboringLevels(last=50)(jax.random.key(0), num, schedule)
    later = jax.random.normal(jax.random.key(1), (num, 2)) * schedule.prior_scale
    earlier = jax.vmap(functools.partial(along_the_diffusion, schedule))(later, t, s)
    found = {}
    for label, one in {"exact": functools.partial(exact_endpoint, schedule), "denoiser": gaussian(schedule)}.items():
        found[label], _ = consistency_matching(jax.vmap(one), (later, t), (earlier, s), weights=1 / gap, scale=np.inf)
    assert found["exact"] < 1e-20 and found["denoiser"] > 1e-4


def test_the_exact_mean_velocity_fulfils_the_identity(x64):
    """To rounding, with the marginal velocity; the identity of the opposite sign, or of the other time, does not hold."""
    num = 500
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (num, 2))
    t, r = UniformSpans(0.8)(keys[1], num)
    assert (t < r).sum() == 400 and (t <= r).all()
    np.testing.assert_allclose(
        x + (r - t)[:, None] * jax.vmap(mean_velocity)(x, t, r), jax.vmap(along_the_flow)(x, t, r), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(jax.vmap(mean_velocity)(x, t, t), jax.vmap(velocity)(x, t), rtol=1e-12)
    known = jax.vmap(velocity)(x, t)
    loss, metrics = mean_velocity_matching(jax.vmap(mean_velocity), x, known, t, r)
    assert loss < 1e-24 and metrics["mean_velocity_error"] == loss
    others = {
        "velocity": lambda x, t, r: velocity(x, t),
        "of the end": lambda x, t, r: mean_velocity(x, r, t),
        "scaled": lambda x, t, r: 1.01 * mean_velocity(x, t, r),
    }
    for one in others.values():
        assert mean_velocity_matching(jax.vmap(one), x, known, t, r)[0] > 1e-5


@pytest.mark.parametrize("direction", range(2))
def test_random_paths_have_no_gradient_at_the_exact_mean_velocity(direction, key):
    """E g . (u - target) = 0 for any function g of (x, t, r), with velocities of single paths in the place of their mean."""
    towards = (lambda x, t, r: x, lambda x, t, r: (r - t) * x)[direction]

    def slope(key, fn):
        keys = jax.random.split(key, 3)
        z = jax.random.normal(keys[0], (1_000, 2))
        data = jnp.array([MEAN]) + jnp.array([SCALE]) * jax.random.normal(keys[1], z.shape)
        t, r = UniformSpans(0.7)(keys[2], len(z))
        points, along = jax.vmap(Linear().point_and_velocity)(t, z, data, z)

        def loss(shift):
            each = jax.vmap(lambda x, t, r: fn(x, t, r) + shift * towards(x, t, r))
            return mean_velocity_matching(each, points, along, t, r)[0]

        return jax.grad(loss)(0.0)

    slopes = {
        name: np.asarray(jax.jit(jax.vmap(functools.partial(slope, fn=fn)))(jax.random.split(key, 100)))
        for name, fn in {"exact": mean_velocity, "velocity": lambda x, t, r: velocity(x, t)}.items()
    }
    sems = {name: values.std() / 10 for name, values in slopes.items()}
    assert abs(slopes["exact"].mean()) < 4.5 * sems["exact"]
    assert abs(slopes["velocity"].mean()) > 10 * sems["velocity"]


@pytest.mark.parametrize("solver", [DDIM(), gm.denoising.Heun()], ids=["DDIM", "Heun"])
def test_a_step_of_the_teacher_is_of_the_order_of_its_solver(solver, x64):
    """The squared distance of the ends is the square of the local error, of order p + 1, over a gap of order 1."""
    schedule = SCHEDULES["edm"]
    params = {"bijector": ({},), "teacher": gm.Fixed({"network": {}})}

    def error(last):
        model = exact_consistency(
            schedule,
            levels=NeighboringLevels(first=last, last=last),
            huber_scale=np.inf,
            teacher=Known(gaussian, schedule),
            solver=solver,
        )
        return float(jax.jit(model.loss)(params, jax.random.key(0), gaussian_data(4_000, dtype=np.float64))[0])

    order = 2 if isinstance(solver, gm.denoising.Heun) else 1
    observed = np.log2(error(100) / error(200))
    assert abs(observed - (2 * (order + 1) - 1)) < 0.35


# --- boundaries ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["edm", "eps", "x0"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_at_the_low_end_the_function_is_the_identity(name, kind, key):
    schedule = SCHEDULES[name]
    model = gm.flows.consistency((2,), schedule=schedule, kind=kind, scaling=None, **SMALL)
    x = jnp.asarray(gaussian_data(20))
    params = moved(model.init(key, x))
    low, middle = (jnp.full(20, t) for t in (schedule.times[0], 0.5))
    ends = jax.jit(jax.vmap(functools.partial(model.endpoint, params)))
    np.testing.assert_allclose(ends(x, low), x, rtol=1e-6, atol=1e-6)
    assert float(jnp.abs(ends(x, middle) - x).max()) > 0.01


def test_over_no_time_the_mean_velocity_is_that_of_the_flow(key):
    model = gm.flows.mean_flow((2,), standardize=False, **SMALL)
    x = jnp.asarray(gaussian_data(10))
    params = moved(model.init(key, x))
    t = jnp.linspace(0.0, 1.0, 10)
    found = jax.vmap(functools.partial(model.mean_velocity, params))(x, t, t)
    wanted = jax.vmap(functools.partial(model.cnf.velocity, params["bijector"][0]))(x, t)
    np.testing.assert_array_equal(found, wanted)
    assert jnp.abs(jax.vmap(functools.partial(model.mean_velocity, params))(x, t, t + 0.5) - wanted).max() > 0.01


# --- draws ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("name", ["consistency", "consistency_vp", "mean_flow"])
def test_exact_models_draw_the_data(name, num_steps, key):
    """Mean and covariance of 20,000 draws, within 4.5 standard errors, whatever the number of evaluations."""
    schedule = SCHEDULES["edm" if name == "consistency" else "variance_preserving"]
    model = exact_mean_flow() if name == "mean_flow" else exact_consistency(schedule)
    x = np.asarray(dataclasses.replace(model, num_steps=num_steps).sample(NO_PARAMS, key, 20_000), np.float64)
    # A draw of N(0, prior_scale^2) is one of the noised data but for the data in it.
    rough = 0.0 if name == "mean_flow" else 4 / ratio(schedule, jnp.asarray(schedule.times[1]))
    standard = (x - np.asarray(MEAN)) / np.asarray(SCALE)
    assert np.abs(standard.mean(0)).max() < 4.5 / np.sqrt(20_000) + rough
    assert np.abs(np.cov(standard.T) - np.eye(2)).max() < 4.5 * np.sqrt(2 / 20_000) + rough


# --- training ------------------------------------------------------------------------------------------------------------------


def trained(model, params, key, num_steps, rate=0.02):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    data = gaussian_data(20_000)
    return gm.fit(model, data, key=key, params=params, optimizer=optimizer, num_steps=num_steps, progress=False).params


def found_law(network):
    return np.asarray([*network["mean"], *np.exp(network["log_scale"])])


def test_mean_flow_finds_the_gaussian(key):
    """Of the mean velocities of all Gaussians the loss finds that of the data, to the accuracy of 20,000 of them."""
    model = exact_mean_flow(learned=True, spans=UniformSpans(0.7))
    params = trained(model, model.init(key, gaussian_data(10)), key, 600)
    np.testing.assert_allclose(found_law(params["bijector"][0]["body"]), [*MEAN, *SCALE], atol=0.06)


def test_distillation_finds_the_gaussian_of_its_teacher(key):
    """From a teacher in closed form, which knows nothing of the parameters of its student."""
    schedule = SCHEDULES["edm"]
    network = ExactEndpoint(low_ratio(schedule), True)
    student = gm.flows.consistency_distillation(teacher(schedule), network=network, huber_scale=np.inf)
    begin = dataclasses.replace(student, teacher=None).init(key, gaussian_data(10))
    params = trained(student, student.taught(NO_PARAMS, begin), key, 600)
    np.testing.assert_allclose(found_law(params["bijector"][0]), [*MEAN, *SCALE], atol=0.02)


@pytest.mark.slow
def test_training_from_data_finds_the_gaussian(key):
    schedule, num_steps = SCHEDULES["edm"], 2_000
    levels = NeighboringLevels(20, 320, num_steps)
    model = exact_consistency(schedule, learned=True, levels=levels, huber_scale=np.inf)
    params = trained(model, model.init(key, gaussian_data(10)), key, num_steps, 0.01)
    np.testing.assert_allclose(found_law(params["bijector"][0]), [*MEAN, *SCALE], atol=0.1)


# --- parts ---------------------------------------------------------------------------------------------------------------------


def test_pseudo_huber():
    """sqrt(|e|^2 + c^2) - c, without the rounding of its difference; the square for c = inf."""
    error = np.array([[3.0, 4.0], [3e-4, 4e-4], [0.0, 0.0]], np.float32)
    wanted = np.sqrt(np.square(error.astype(np.float64)).sum(1) + 4.0) - 2.0
    np.testing.assert_allclose(pseudo_huber(jnp.asarray(error), 2.0), wanted, rtol=1e-5)
    np.testing.assert_allclose(pseudo_huber(jnp.asarray(error), np.inf), [25.0, 25e-8, 0.0], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda e: pseudo_huber(e, 1e-3).sum())(jnp.zeros((2, 2)))).all()


def test_the_number_of_levels_doubles():
    """arXiv:2310.14189, sec. 3.4: min(s0 2^floor(k / K'), s1) intervals, K' = floor(K / (floor(log2(s1 / s0)) + 1))."""
    levels = NeighboringLevels(10, 1_280, 800)
    steps = np.array([0, 99, 100, 250, 699, 700, 799, 10_000])
    wanted = [10, 10, 20, 40, 640, 1_280, 1_280, 1_280]
    np.testing.assert_array_equal(jax.vmap(levels.num_intervals)(jnp.asarray(steps)), wanted)
    assert levels.num_intervals() == NeighboringLevels().num_intervals(jnp.asarray(3)) == 1_280
    assert NeighboringLevels(10, 50, 300).num_intervals(jnp.asarray(200)) == 40
    assert NeighboringLevels(10, 50, 300).num_intervals(jnp.asarray(300)) == 50


@pytest.mark.parametrize("name", ["edm", "variance_preserving"])
def test_neighbors_are_drawn_by_the_mass_of_their_interval(name, key):
    schedule, levels, num = SCHEDULES[name], NeighboringLevels(6, 6, mean=-0.5, std=1.5), 60_000
    s, t, gap = jax.jit(lambda key: levels(key, num, schedule))(key)
    ends = np.asarray([ratio(schedule, jnp.asarray(end)) for end in schedule.times], np.float64)
    roots = ends ** (1 / levels.rho)
    edges = (roots[0] + np.arange(7) / 6 * (roots[1] - roots[0])) ** levels.rho
    np.testing.assert_allclose(ratio(schedule, t) - ratio(schedule, s), gap, rtol=2e-3)
    index = np.searchsorted(edges, np.sqrt(np.asarray(ratio(schedule, s)) * np.asarray(ratio(schedule, t)))) - 1
    np.testing.assert_allclose(ratio(schedule, s), edges[index], rtol=2e-3)
    np.testing.assert_allclose(ratio(schedule, t), edges[index + 1], rtol=2e-3)
    cumulative = np.diff(scipy.stats.norm.cdf((np.log(edges) - levels.mean) / levels.std))
    # An even grid of quantiles: a count is off by one at each edge.
    np.testing.assert_allclose(np.bincount(index, minlength=6), num * cumulative / cumulative.sum(), atol=3)
    assert (s[index == 0] == schedule.times[0]).all() and (t[index == 5] == np.float32(schedule.times[1])).all()


@pytest.mark.parametrize("spans", [UniformSpans(0.3), LogitNormalSpans(0.3, 0.4, 1.0)], ids=["uniform", "logit_normal"])
def test_every_row_has_its_share_of_spans(spans, key):
    """Data may come in order: a row must not be sure to be of the share."""
    num, repeats = 50, 2_000
    t, r = jax.jit(jax.vmap(lambda key: spans(key, num)))(jax.random.split(key, repeats))
    moving = np.asarray(t < r)
    assert (np.asarray(t) >= 0).all() and (np.asarray(t) <= np.asarray(r)).all() and (np.asarray(r) <= 1).all()
    assert (moving.sum(1) == 15).all()
    assert np.abs(moving.mean(0) - 0.3).max() < 4.5 * np.sqrt(0.3 * 0.7 / repeats)
    # The begin is the smaller of two draws.
    cdf = (
        scipy.stats.uniform.cdf
        if isinstance(spans, UniformSpans)
        else lambda x: scipy.stats.norm.cdf(scipy.special.logit(x) - 0.4)
    )
    assert scipy.stats.kstest(np.asarray(t).reshape(-1)[::7], lambda x: 1 - (1 - cdf(x)) ** 2).pvalue > 1e-3


def test_spans_to_the_end(key):
    """A share of the spans ends at 1, and their begins are those of a single draw."""
    t, r = UniformSpans(0.5, 0.8)(key, 10_000)
    assert ((r == 1.0) & (t < r)).sum() == 4_000 and ((r < 1.0) & (t < r)).sum() == 1_000
    assert scipy.stats.kstest(np.asarray(t[r == 1.0]), "uniform").pvalue > 1e-3


def test_the_steps_of_the_solver_stand_at_finer_levels():
    """Two steps from level to level go through the levels of twice as many intervals."""
    schedule, ends = EDM(), (0.002, 80.0)
    levels = (np.linspace(*(end ** (1 / 7) for end in ends), 9)) ** 7
    t, s = (schedule.time(-2 * jnp.log(levels[i])) for i in (6, 4))
    found = ratio(schedule, jnp.stack(NeighboringLevels(4, 4).between(schedule, t, s, 2)))
    np.testing.assert_allclose(found, levels[[6, 5, 4]], rtol=1e-4)


class Constants(nn.Module):
    """c[0] without a context, c[1] with one; a body of `MeanVelocity` for a context of one number."""

    @nn.compact
    def __call__(self, x, t, c):
        return jnp.full_like(x, 2.0) + 3.0 * c[-1]


def test_guidance_is_trained_into_the_mean_velocity(key):
    """Rows with a context regress on w v + (1 - w) u(x, t, t, none), those that lost theirs on v: here u is 5 and 2."""
    w, num, x = 1.5, 400, jnp.asarray(gaussian_data(400))
    spans, context = UniformSpans(0.0), jnp.ones((400, 1))
    model = MeanFlow(
        CNF(MeanVelocity(Constants()), context_shape=(1,)), Normal((2,)), spans=spans, context_dropout=0.25, guidance=w
    )
    params = model.init(key, x, context)
    found = model.loss(params, key, (x, context))[0]
    source_key, _, span_key, noise_key, drop_key = jax.random.split(key, 5)
    z = jax.vmap(lambda key: Normal((2,)).sample_one({}, key))(row_keys(source_key, num))
    velocity = np.asarray(x - z)
    present = np.asarray(jax.random.bernoulli(drop_key, 0.75, (num,)))[:, None]
    error = np.where(present, 5.0 - (w * velocity + (1 - w) * 2.0), 2.0 - velocity)
    np.testing.assert_allclose(found, (error**2).sum(1).mean(), rtol=1e-5)
    assert 0.6 < present.mean() < 0.9


def test_distillation_keeps_context_and_guidance_of_the_teacher(key):
    """The student begins as its teacher of weight 1, and its target is that of the guided one."""
    diffusion = gm.flows.diffusion((2,), schedule=EDM(), context_shape=(3,), context_dropout=0.1, guidance=2.0, **SMALL)
    x, labels = gaussian_data(30), np.arange(30) % 3
    teacher_params = moved(diffusion.init(key, x, labels))
    student = gm.flows.consistency_distillation(diffusion)
    params = student.taught(teacher_params)
    assert student.predictor.network.weight == 1.0 and student.teacher.network.weight == 2.0
    jax.tree.map(np.testing.assert_array_equal, params["bijector"], teacher_params["bijector"])
    loss, other = (
        float(jax.jit(model.loss)(params, key, (x, labels))[0])
        for model in (student, dataclasses.replace(student, teacher=student.predictor))
    )
    assert abs(loss - other) > 1e-4
    drawn = student.sample(params, key, (2,), np.array([0, 1]))
    assert drawn.shape == (2, 2, 2) and np.isfinite(drawn).all()
    # The data side stays that of the teacher, and nothing of the teacher is trained.
    fit = gm.fit(student, (x, labels), key=key, params=params, num_steps=2, batch_size=16, progress=False)
    jax.tree.map(np.testing.assert_array_equal, fit.params["teacher"], params["teacher"])
    jax.tree.map(np.testing.assert_array_equal, fit.params["bijector"][1], params["bijector"][1])
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (fit.params, params)), strict=True))


def test_a_distillation_is_saved_and_its_parameters_are_held_to_its_layout(tmp_path, key):
    diffusion = gm.flows.diffusion((2,), schedule=EDM(), **SMALL)
    student = gm.flows.consistency_distillation(diffusion)
    params = student.taught(moved(diffusion.init(key, gaussian_data(30))))
    gm.save(tmp_path / "student", student, params)
    jax.tree.map(np.testing.assert_array_equal, gm.load(tmp_path / "student", student), params)
    with pytest.raises(ValueError, match="teacher"):
        gm.fit(student, gaussian_data(30), key=key, params={"bijector": params["bijector"]}, num_steps=1, progress=False)


@pytest.mark.parametrize("clip", [None, (-0.05, 0.05)])
def test_the_solver_of_a_teacher_remembers_and_cuts_as_its_samplers_do(key, clip):
    """Several steps between two levels are those of a sampler on the finer levels, of two points and with its clip."""
    diffusion = gm.flows.diffusion((2,), schedule=EDM(), clip=clip, **SMALL)
    solver = gm.denoising.DPMSolverPlusPlus()
    student = gm.flows.consistency_distillation(diffusion, solver=solver, num_solves=4)
    known = moved(diffusion.init(key, gaussian_data(30)))
    params, x, t, s = student.taught(known), jnp.array([3.0, -2.0]), jnp.array(0.7), jnp.array(0.5)

    def denoiser(x, t):
        return diffusion.denoise(known, x, t)

    ranged = gm.denoising.denoisers.kept_in_range(denoiser, EDM(), *known["range"].constant)
    denoiser = ranged if clip is None else gm.denoising.denoisers.clipped(denoiser, *clip)
    wanted, carry = x, solver.init(x)
    for before, after in itertools.pairwise(student.levels.between(EDM(), t, s, 4)):
        wanted, carry = solver.step(key, denoiser, EDM(), wanted, before, after, carry)
    np.testing.assert_allclose(student._teacher_step(params, x, t, s, None, key), wanted, rtol=1e-5)


def test_the_adaptive_weight_divides_by_a_power_of_the_error():
    t, x = jnp.array([0.2, 0.4]), jnp.array([[1.0, 0.0], [0.0, 3.0]])

    def zero(x, t, r):
        return jnp.zeros_like(x)

    plain, _ = gm.losses.mean_velocity_matching(zero, x, x, t, t)
    weighted, _ = gm.losses.mean_velocity_matching(zero, x, x, t, t, power=0.5, offset=1.0)
    np.testing.assert_allclose((plain, weighted), ((1 + 9) / 2, (1 / 2**0.5 + 9 / 10**0.5) / 2), rtol=1e-6)


def test_training_from_data_is_not_validated_by_its_loss(key):
    x = gaussian_data(30)
    with pytest.raises(ValueError, match="validation of a Consistency wants validate=...: its loss is no measure of the fit"):
        gm.fit(gm.flows.consistency((2,), **SMALL), x, key=key, validation=x, num_steps=1, progress=False)


# --- refused -------------------------------------------------------------------------------------------------------------------


NARROW = VelocityMLP((4,))


class Wider(nn.Module):
    """A network of the wrong shape."""

    @nn.compact
    def __call__(self, x, t, c=None):
        return jnp.concatenate([x, x])


REFUSED = {
    "direction='flow' is learned from spans with r = t": lambda: gm.flows.mean_flow((2,), spans=UniformSpans(1.0)),
    "power must be finite": lambda: gm.flows.mean_flow((2,), power=np.inf),
    "solver must be without noise": lambda: gm.flows.consistency_distillation(DIFFUSION, solver=gm.denoising.Ancestral()),
    "context_dropout is for training from data": lambda: dataclasses.replace(
        gm.flows.consistency_distillation(DIFFUSION), context_dropout=0.1
    ),
    "network must not be guided": lambda: gm.flows.consistency((2,), network=gm.nets.Guided(NARROW, 2.0), context_shape=(1,)),
    "teacher_params must be the params of a fit": lambda: gm.flows.consistency_distillation(DIFFUSION).taught(None),
    "num_steps must be an integer >= 1": lambda: gm.flows.mean_flow((2,), num_steps=0),
    "num_steps must be an integer >= 1, got 0": lambda: gm.flows.consistency((2,), num_steps=0),
    "share must be in": lambda: UniformSpans(1.5),
    "end_share must be in": lambda: LogitNormalSpans(end_share=-0.1),
    "gap_power must be finite": lambda: gm.flows.consistency_distillation(DIFFUSION, gap_power=np.inf),
    "num_solves must be an integer >= 1": lambda: gm.flows.consistency_distillation(DIFFUSION, num_solves=0),
    "std must be > 0": lambda: LogitNormalSpans(std=0.0),
    "first must be at most last": lambda: NeighboringLevels(10, 5),
    "rho must be > 0": lambda: NeighboringLevels(rho=-1.0),
    "huber_scale must be > 0": lambda: gm.flows.consistency((2,), huber_scale=0.0),
    "power must be finite and >= 0, got -1.0": lambda: gm.flows.mean_flow((2,), power=-1.0),
    "direction must be": lambda: gm.flows.mean_flow((2,), direction="up"),
    "wants an unconditional branch": lambda: gm.flows.mean_flow((2,), guidance=2.0, context_shape=(1,)),
    "context_dropout wants context_shape": lambda: gm.flows.mean_flow((2,), context_dropout=0.5),
    "context_dropout must be in": lambda: gm.flows.mean_flow((2,), context_dropout=1.0, context_shape=(1,)),
    "a source of the data's scale": lambda: gm.flows.mean_flow((2,), path=Scheduled(EDM())),
    "must have one schedule": lambda: Consistency(Known(gaussian, EDM()), (2,), teacher=Known(gaussian, Cosine())),
    "wants that of the student": lambda: gm.flows.consistency_distillation(teacher(EDM())),
    "must return the shape of its input": lambda: gm.flows.mean_flow((2,), field=Wider()).init(
        jax.random.key(0), gaussian_data(4)
    ),
    "network must return the shape": lambda: gm.flows.consistency((2,), network=Wider()).init(
        jax.random.key(0), gaussian_data(4)
    ),
    "begins with its teacher": lambda: gm.flows.consistency_distillation(DIFFUSION).init(jax.random.key(0), gaussian_data(4)),
    "has nobody to be taught by": lambda: gm.flows.consistency((2,)).taught(NO_PARAMS),
    "teacher_params must be those": lambda: gm.flows.consistency_distillation(DIFFUSION).taught(OTHER_PARAMS),
    "predictor is another than that of its teacher": lambda: gm.flows.consistency_distillation(
        teacher(EDM()), network=NARROW
    ).taught(NO_PARAMS),
}
DIFFUSION = gm.flows.diffusion((2,), schedule=EDM(), **SMALL)
OTHER_PARAMS = {"bijector": ({"layer_0": {"bias": np.zeros(3)}}, gm.Fixed(None))}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_values(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_refused_kinds():
    for make, message in {
        lambda: gm.flows.consistency_distillation(gm.flows.flow_matching((2,))): "teacher must be a gm.models.Diffusion",
        lambda: MeanFlow(CNF(NARROW), Normal((2,))): "must be a nets.MeanVelocity",
        lambda: gm.flows.mean_flow((2,), spans=0.25): "spans must be a Spans",
        lambda: gm.flows.consistency((2,), levels=40): "levels must be a NeighboringLevels",
        lambda: consistency_matching(None, (X, T), (X, T), scale=1.0): "consistency_fn must be a function",
        lambda: mean_velocity_matching(3, X, X, T, T): "mean_velocity_fn must be a function",
    }.items():
        with pytest.raises(TypeError, match=message):
            make()


X, T = np.zeros((4, 2), np.float32), np.zeros(4, np.float32)


def test_losses_refuse_shapes():
    x, t = jnp.asarray(X), jnp.asarray(T)
    with pytest.raises(ValueError, match="later and earlier must be"):
        consistency_matching(lambda x, t: x, (x, t), (x[:3], t), scale=1.0)
    with pytest.raises(ValueError, match=r"must return shape \(4, 2\)"):
        consistency_matching(lambda x, t: t, (x, t), (x, t), scale=1.0)
    with pytest.raises(ValueError, match="scale must be > 0"):
        consistency_matching(lambda x, t: x, (x, t), (x, t), scale=0.0)
    with pytest.raises(ValueError, match="x and velocity must have one shape"):
        mean_velocity_matching(lambda x, t, r: x, x, x[:, :1], t, t)
    with pytest.raises(ValueError, match=r"must return shape \(4, 2\)"):
        mean_velocity_matching(lambda x, t, r: t, x, x, t, t)
    with pytest.raises(ValueError, match="direction must have the shape of x"):
        mean_velocity_matching(lambda x, t, r: x, x, x, t, t, direction=t)


def test_there_is_no_likelihood(key):
    for model in (gm.flows.mean_flow((2,), **SMALL), gm.flows.consistency((2,), **SMALL)):
        assert model.likelihood is gm.Likelihood.NONE
        with pytest.raises(NotImplementedError, match="has no log_prob"):
            model.log_prob(model.init(key, X), X)
