"""Samplers of diffusions against exact flow maps and laws (`gm.check_sampler`), annealed Langevin against known weights."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import SCHEDULES, STEPPERS

import genmod as gm
from genmod import denoising, samplers
from genmod.denoising import denoisers
from genmod.dynamics import Adaptive, FixedSteps, SDESteps
from genmod.testing import COVARIANCE, MEAN

pytestmark = pytest.mark.usefixtures("quick_compile")
DETERMINISTIC = {name: case for name, case in STEPPERS.items() if case.order is not None}
RANDOM = {name: case for name, case in STEPPERS.items() if case.order is None}
CONTINUOUS = ("variance_preserving", "sub_variance_preserving", "cosine", "variance_exploding", "edm", "straight")
NUM_SEM = 4.5
KEY = jax.random.key(0)


def steps(stepper, grid=denoising.LogSNRGrid):
    return lambda num: denoising.Steps(stepper, grid(num), denoise=False)


def check(report):
    assert report.bias_nats < NUM_SEM * report.bias_sem
    assert max(report.mean_error, report.covariance_error, report.weight_error) < NUM_SEM


@pytest.mark.parametrize("schedule", [SCHEDULES["edm"]], ids=["edm"])  # the others: on every schedule
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_orders(name, schedule, x64):
    case = DETERMINISTIC[name]
    report = gm.check_sampler(steps(case.stepper), schedule, num_steps=(64, 128), num_draws=1_000)
    assert abs(report.order - case.order) < 0.15, report
    if case.order == 2:
        check(report)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [SCHEDULES[name] for name in CONTINUOUS], ids=CONTINUOUS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_orders_and_laws_on_every_schedule(name, schedule, x64):
    report = gm.check_sampler(steps(DETERMINISTIC[name].stepper), schedule, num_steps=(256, 512))
    assert abs(report.order - DETERMINISTIC[name].order) < 0.15, report
    if DETERMINISTIC[name].order == 2:
        check(report)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * case.slow) for n, case in RANDOM.items()])
def test_random_steppers_draw_from_the_law(name):
    case = RANDOM[name]
    report = gm.check_sampler(steps(case.stepper), denoising.VarianceExploding(0.05, 10.0), num_steps=(8, case.num_steps))
    assert not report.errors
    check(report)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [SCHEDULES[name] for name in CONTINUOUS], ids=CONTINUOUS)
@pytest.mark.parametrize("name", [name for name in RANDOM if name != "annealed_langevin"])
def test_random_steppers_on_every_schedule(name, schedule):
    check(gm.check_sampler(steps(RANDOM[name].stepper), schedule, num_steps=(8, 4 * RANDOM[name].num_steps)))


GRIDS = {
    "uniform": denoising.UniformGrid(12),
    "quadratic": denoising.QuadraticGrid(12),
    "uniform_log_snr": denoising.LogSNRGrid(12),
    "edm": denoising.EDMGrid(12),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_grids_fall_from_end_to_end(grid, schedule):
    times = grid.times(schedule)
    assert times.shape == (13,) and (np.diff(times) < 0).all()
    np.testing.assert_allclose([times[-1], times[0]], schedule.times, atol=1e-6)
    traced = jax.jit(lambda x: x * grid.times(schedule).shape[0])(1.0)  # constants inside of jit
    assert traced == 13


def test_grids_are_those_of_the_papers():
    edm = denoising.EDMGrid(18).times(denoising.EDM())
    i = np.arange(19) / 18
    wanted = (80.0 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    np.testing.assert_allclose(denoising.EDM().sigma(jnp.asarray(edm)), wanted, rtol=1e-4)
    schedule = denoising.VariancePreserving()
    log_snr = np.asarray(schedule.log_snr(jnp.asarray(denoising.LogSNRGrid(10).times(schedule))))
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / 10, rtol=1e-3)
    roots = np.sqrt(denoising.QuadraticGrid(10).times(schedule))
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 10, rtol=1e-4)


@pytest.mark.slow
def test_reverse_sde_has_the_right_law_at_every_time():
    """On the way, not only at the end: the moments of the states of Euler-Maruyama and of ancestral sampling at each time."""
    schedule = denoising.VarianceExploding(0.05, 10.0)
    num = 2_000
    start = denoising.LogSNRGrid(1).times(schedule)[0]
    z = jax.random.normal(jax.random.key(1), (num, 2))
    covariance = COVARIANCE + float(schedule.sigma(jnp.asarray(start))) ** 2 * np.eye(2)
    x = MEAN.astype(np.float32)[None] + z @ jnp.asarray(np.linalg.cholesky(covariance).T, jnp.float32)
    denoiser = denoisers.gaussian(schedule, MEAN, COVARIANCE)
    for stepper in (denoising.EulerMaruyama(), denoising.Ancestral()):
        sampler = steps(stepper)(200)
        keys = jax.random.split(jax.random.key(0), num)
        run = jax.jit(jax.vmap(lambda key, x: sampler.trajectory(key, denoiser, schedule, x)[1]))  # noqa: B023
        states = np.asarray(run(keys, x), np.float64)
        times = sampler.grid.times(schedule)
        assert states.shape == (num, 201, 2)
        for i in (0, 50, 100, 150, 200):
            wanted = COVARIANCE + float(schedule.sigma(jnp.asarray(times[i]))) ** 2 * np.eye(2)
            found = np.cov(states[:, i].T)
            sem = np.sqrt((wanted**2 + np.outer(np.diag(wanted), np.diag(wanted))) / num)
            assert (np.abs(found - wanted) < NUM_SEM * sem).all(), (stepper, times[i])
            assert (np.abs(states[:, i].mean(0) - MEAN) < NUM_SEM * np.sqrt(np.diag(wanted) / num)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "integrator",
    [Adaptive(rtol=1e-8, atol=1e-8), FixedSteps(200)],
    ids=["adaptive", "fixed"],
)
def test_probability_flow_is_the_flow_map(integrator, x64):
    sampler = denoising.ReverseODE(integrator)
    report = gm.check_sampler(lambda n: sampler, denoising.VariancePreserving(), num_steps=(1, 2), num_draws=256)
    assert report.errors[1] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [diffrax.Euler(), pytest.param(diffrax.SEA(), marks=pytest.mark.slow)], ids=lambda s: type(s).__name__
)
def test_reverse_sde_by_diffrax(solver):
    schedule = denoising.VarianceExploding(0.05, 10.0)
    report = gm.check_sampler(lambda n: denoising.ReverseSDE(SDESteps(n, solver)), schedule, num_steps=(4, 128), num_draws=1_000)
    assert not report.errors
    check(report)


def test_from_an_event_noised_in_part():
    """SDEdit: x_t of a point, drawn anew from t = 0.4, has the law of x_0 given x_t; of a Gaussian, in closed form."""
    schedule, t, num = denoising.Cosine(6.0, -6.0), 0.4, 4_000
    alpha, sigma = (float(f(jnp.asarray(t))) for f in (schedule.alpha, schedule.sigma))
    denoiser = denoisers.gaussian(schedule, np.zeros(1), 1.0)
    sampler = denoising.Steps(denoising.Ancestral(), denoising.CustomGrid(tuple(np.linspace(t, 0.0, 101).tolist())))
    x = jax.jit(jax.vmap(lambda key: sampler(key, denoiser, schedule, jnp.array([1.5]))))(jax.random.split(KEY, num))
    mean, std = alpha / (alpha**2 + sigma**2) * 1.5, sigma / np.hypot(alpha, sigma)
    assert abs(float(x.mean()) - mean) < NUM_SEM * std / np.sqrt(num)
    assert abs(float(x.std()) / std - 1.0) < NUM_SEM / np.sqrt(2 * num) + 0.02  # of the steps


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize(
    "sampler",
    [
        denoising.Steps(denoising.Heun(0.1), denoising.LogSNRGrid(4)),
        denoising.Steps(denoising.PredictorCorrector(), denoising.LogSNRGrid(4)),
        denoising.ReverseODE(FixedSteps(4)),
        denoising.ReverseSDE(SDESteps(4)),
    ],
    ids=["heun", "corrected", "ode", "sde"],
)
def test_draws_have_the_dtype_of_their_start(sampler, dtype, x64):
    """With float64 switched on, and in half precision, which cannot hold the signal-to-noise ratios."""
    schedule = denoising.VariancePreserving()
    x = sampler(KEY, denoisers.gaussian(schedule, MEAN, COVARIANCE), schedule, jnp.array([1.0, -1.0], dtype))
    assert x.dtype == dtype and jnp.isfinite(x).all()


def test_churn_keeps_to_its_range():
    """No noise where the range is left out: Heun's own map; and elsewhere the draws differ."""
    schedule, x = denoising.EDM(0.01, 10.0), jnp.array([3.0, -4.0])
    denoiser = denoisers.gaussian(schedule, MEAN, COVARIANCE)

    def draw(**options):
        return denoising.Steps(denoising.Heun(**options), denoising.EDMGrid(8))(KEY, denoiser, schedule, x)

    np.testing.assert_allclose(draw(churn=0.3, churn_range=(20.0, 30.0)), draw(), rtol=1e-5)
    assert float(jnp.abs(draw(churn=0.3, churn_range=(0.05, 5.0)) - draw()).max()) > 1e-2


@pytest.mark.parametrize("sampler", [denoising.ReverseODE(), denoising.Steps(denoising.DDIM(), denoising.LogSNRGrid(64))])
def test_gradients_go_through_samplers(sampler):
    """Of N(m, 1) in m, by a finite difference."""
    schedule, key, x = denoising.VarianceExploding(0.05, 10.0), jax.random.key(0), jnp.array([3.0, -4.0])

    def end(shift):
        denoiser = denoisers.gaussian(schedule, np.zeros(2), 1.0)
        return sampler(key, lambda x, t: shift + denoiser(x - shift, t), schedule, x)[0]

    numeric = (end(1.1) - end(0.9)) / 0.2
    np.testing.assert_allclose(jax.jit(jax.grad(end))(1.0), numeric, rtol=2e-3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: denoising.UniformGrid(4).times(denoising.Straight(times=(0.0, 1.0))), None),
        (lambda: denoising.EDMGrid(4).times(denoising.Straight(times=(0.0, 1.0))), "has no 4 falling times on Straight"),
        (
            lambda: denoising.Steps()(jax.random.key(0), lambda x, t: x[:1], denoising.EDM(), jnp.zeros(2)),
            r"the denoiser must return the shape of its input, \(2,\), got \(1,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    if match is None:
        call()
        return
    with pytest.raises(ValueError, match=match):
        call()


def test_denoised_ends():
    schedule = denoising.VarianceExploding(0.5, 10.0)  # so much noise that its removal shows
    report = gm.check_sampler(
        lambda n: denoising.Steps(denoising.Heun(), denoising.LogSNRGrid(n)), schedule, num_steps=(32, 64), denoised=True
    )
    assert abs(report.order - 2) < 0.2
    check(report._replace(weight_error=0.0))  # the mixture's modes are blurred into each other


@pytest.mark.slow
def test_a_wrong_sampler_is_found():
    """The kit sees a missing factor, too few steps, and a start from the wrong law is seen by the covariance."""
    broken = dataclasses.replace(denoising.Steps(denoising.DDIM(1.0), denoising.LogSNRGrid(64), denoise=False))
    schedule = denoising.VarianceExploding(0.05, 10.0)
    report = gm.check_sampler(lambda n: lambda key, d, s, x: broken(key, d, s, 0.0 * x), schedule, num_steps=(8, 64))
    assert report.bias_nats > NUM_SEM * report.bias_sem and report.covariance_error > NUM_SEM
    few = gm.check_sampler(steps(denoising.EulerMaruyama()), schedule, num_steps=(4, 8))
    assert few.covariance_error > NUM_SEM
    with pytest.raises(ValueError, match="num_steps must hold at least two"):
        gm.check_sampler(steps(denoising.DDIM()), schedule, num_steps=(8,))


def test_a_step_to_no_noise_is_the_denoised_mean():
    """sigma = 0 at the end of a grid: nothing is divided by it."""
    schedule, denoiser = (
        denoising.VariancePreserving(times=(0.0, 1.0)),
        denoisers.gaussian(denoising.VariancePreserving(), MEAN, 1.0),
    )
    grid = denoising.CustomGrid((1.0, 0.5, 0.1, 0.0))
    for stepper in (
        denoising.DDIM(),
        denoising.DDIM(0.5),
        denoising.Ancestral(),
        denoising.Heun(),
        denoising.DPMSolverPlusPlus(),
    ):
        sampler = denoising.Steps(stepper, grid, denoise=False)
        before = dataclasses.replace(sampler, grid=denoising.CustomGrid((1.0, 0.5, 0.1)))
        key, x = jax.random.key(0), jnp.ones(2)
        _, states = sampler.trajectory(key, denoiser, schedule, x)
        assert jnp.isfinite(states).all()
        if stepper in (denoising.DDIM(), denoising.Ancestral()):
            wanted = denoiser(states[-2], jnp.asarray(0.1))
            np.testing.assert_allclose(states[-1], wanted, rtol=1e-4, atol=1e-5)
        assert before.num_evaluations == 2 * stepper.num_evaluations


def test_the_flow_and_its_gradients_reach_an_end_without_noise():
    schedule = denoising.Straight(times=(0.0, 0.9))
    denoiser = denoisers.gaussian(schedule, jnp.zeros(2), 1.0)
    draw = denoising.ReverseODE(FixedSteps(40))(KEY, denoiser, schedule, jnp.ones(2))
    np.testing.assert_allclose(draw, np.ones(2) / np.hypot(0.1, 0.9), rtol=1e-2)
    for stepper in (denoising.AnnealedLangevin(), denoising.PredictorCorrector()):
        sampler = denoising.Steps(stepper, denoising.CustomGrid((0.9, 0.5, 0.0)))
        assert jnp.isfinite(jax.jit(jax.jacrev(lambda x, s=sampler: s(KEY, denoiser, schedule, x)))(jnp.ones(2))).all()


@pytest.mark.parametrize("denoise", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", STEPPERS)
def test_where_no_noise_is_left_nothing_is_done(name, denoise):
    """A network sees the log-SNR, which has no value there: the denoiser must not be asked."""
    schedule, grid = denoising.Straight(times=(0.0, 0.9)), denoising.CustomGrid((0.9, 0.5, 0.0))
    sampler = denoising.Steps(STEPPERS[name].stepper, grid, denoise=denoise)

    def denoiser(x, t):
        return jnp.tanh(x) + 0.01 * schedule.log_snr(t)

    draw = jax.jit(lambda x: sampler(KEY, denoiser, schedule, x))(jnp.ones(2))
    kept = dataclasses.replace(sampler, denoise=False)
    np.testing.assert_array_equal(draw, jax.jit(lambda x: kept(KEY, denoiser, schedule, x))(jnp.ones(2)))
    assert jnp.isfinite(draw).all()


def test_one_compiled_scan():
    """The program does not grow with the number of steps, and an equal sampler of an equal model does not compile again."""
    schedule, denoiser = denoising.VariancePreserving(), denoisers.gaussian(denoising.VariancePreserving(), MEAN, 1.0)

    def size(num):
        sampler = denoising.Steps(denoising.DDIM(0.5), denoising.LogSNRGrid(num))
        jaxpr = jax.make_jaxpr(lambda key, x: sampler(key, denoiser, schedule, x))(jax.random.key(0), jnp.ones(2))
        return len(str(jaxpr).splitlines())

    assert size(10) == size(100)
    assert denoising.Steps(denoising.DDIM(0.5)) == denoising.Steps(denoising.DDIM(0.5))  # what jit takes for its key
    assert hash(denoising.Steps(denoising.DDIM(0.5))) == hash(denoising.Steps(denoising.DDIM(0.5)))


def test_the_other_convention_of_langevin():
    """NCSN's x + a/2 score + sqrt(a) z, a = step_size sigma^2, on N(0, v): variance v / (1 - a / (4 v)); not that of e = a."""
    schedule, size, num = denoising.VarianceExploding(0.5, 2.0), 1.6, 20_000
    denoiser = denoisers.gaussian(schedule, np.zeros(num), 0.25)  # one event of independent coordinates
    sampler = denoising.Steps(denoising.AnnealedLangevin(size, 40), denoising.CustomGrid((1.0, 0.5)), denoise=False)
    x = sampler(KEY, denoiser, schedule, jnp.zeros(num))
    level = float(schedule.sigma(jnp.asarray(0.5))) ** 2
    v, a = level + 0.25, size * level
    assert (
        abs(float(x.var()) / (v / (1 - a / (4 * v))) - 1)
        < NUM_SEM * np.sqrt(2 / num)
        < abs((1 - a / (4 * v)) / (1 - a / (2 * v)) - 1)
    )


def test_annealed_langevin_finds_both_modes_with_their_weights():
    """Where plain Langevin stays in the mode in which it starts: the weights of the modes (Song & Ermon 2019, fig. 3)."""
    weights, means, variances = np.array([0.2, 0.8]), np.array([[-5.0], [5.0]]), np.array([1.0, 1.0])
    sigmas = np.geomspace(20.0, 0.3, 20)
    schedule = denoising.VarianceExploding(0.3, 20.0)
    denoiser = denoisers.gaussian_mixture(schedule, weights, means, variances)
    score = denoisers.score_fn(denoiser, schedule)

    def score_at(x, sigma):
        return score(x, schedule.time(-2.0 * jnp.log(sigma)))

    num = 4_000
    keys, start = jax.random.split(jax.random.key(0), num), 20.0 * jax.random.normal(jax.random.key(1), (num, 1))
    annealed = jax.jit(
        jax.vmap(lambda key, x: samplers.annealed_langevin(key, score_at, x, sigmas, step_size=0.02, num_steps=40))
    )(keys, start)
    share = float((annealed > 0).mean())
    assert abs(share - 0.8) < NUM_SEM * np.sqrt(0.16 / num) + 0.02  # the levels are left before they have mixed
    plain = jax.jit(
        jax.vmap(lambda key, x: samplers.langevin_chain(key, lambda x: score_at(x, 0.3), x, step_size=0.02, num_steps=800))
    )(keys, start)
    assert abs(float((plain > 0).mean()) - 0.5) < 0.05
    for bad in ([1.0, 2.0], [1.0, 0.0], 1.0):
        with pytest.raises(ValueError, match="sigmas must be positive and fall"):
            samplers.annealed_langevin(jax.random.key(0), score_at, jnp.zeros(1), bad)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: denoising.CustomGrid((0.1, 0.5)), ValueError, r"values must fall from noise to data, got \(0.1, 0.5\)"),
        (lambda: denoising.CustomGrid((1.0, 0.5, 0.5)), ValueError, "values must fall"),
        (lambda: denoising.CustomGrid((1.5, 0.5)), ValueError, r"values must lie in \[0, 1\]"),
        (lambda: denoising.CustomGrid((1.0,)), ValueError, "at least two times"),
        (lambda: denoising.UniformGrid(0), ValueError, "num_steps must be an integer >= 1, got 0"),
        (lambda: denoising.EDMGrid(4, rho=0.0), ValueError, "rho must be > 0"),
        (lambda: denoising.DDIM(1.5), ValueError, r"eta must be in \[0, 1\], got 1.5"),
        (lambda: denoising.Ancestral("large"), ValueError, "variance must be 'posterior' or 'forward', got 'large'"),
        (lambda: denoising.Heun(churn=0.5), ValueError, "churn must be in"),
        (lambda: denoising.Heun(churn=0.1, churn_range=(2.0, 1.0)), ValueError, "churn_range must be .low, high."),
        (lambda: denoising.ReverseODE("heun"), TypeError, "integrator must be a Integrator, got 'heun'"),
        (lambda: denoising.ReverseSDE(50), TypeError, "steps must be a SDESteps, got 50"),
        (
            lambda: denoising.Steps()(KEY, lambda x, t: x, denoising.Cosine(), jnp.zeros(2, int)),
            TypeError,
            "x must be floating point, got int",
        ),
        (
            lambda: denoising.Steps(denoising.DPMSolverPlusPlus())(KEY, lambda x, t: x[:1], denoising.Cosine(), jnp.zeros(2)),
            ValueError,
            r"the denoiser must return the shape of its input, \(2,\), got \(1,\)",
        ),
        (
            lambda: samplers.langevin_chain(KEY, lambda x: x[:1], jnp.zeros(2), step_size=0.1, num_steps=2),
            ValueError,
            r"score_fn must return arrays like those of the position, float32\[2\], got float32\[1\]",
        ),
        (
            lambda: samplers.langevin_chain(KEY, lambda x: -x, jnp.zeros(2), step_size=0.1, num_steps=0),
            ValueError,
            "num_steps must be an integer >= 1, got 0",
        ),
        (lambda: denoising.PredictorCorrector(snr=0.0), ValueError, "snr must be > 0"),
        (lambda: denoising.PredictorCorrector("euler"), TypeError, "predictor must be a Stepper"),
        (lambda: denoising.AnnealedLangevin(4.0), ValueError, r"step_size must be in \(0, 4\)"),
        (lambda: denoising.Steps("ddim"), TypeError, "stepper must be a Stepper, got 'ddim'"),
        (lambda: denoising.Steps(grid=50), TypeError, "grid must be a Grid, got 50"),
        (lambda: SDESteps(0), ValueError, "num_steps must be an integer >= 1"),
        (lambda: SDESteps(4, "euler"), TypeError, "solver must be a Diffrax solver"),
    ],
)
def test_bad_settings(make, error, match):
    with pytest.raises(error, match=match):
        make()
