"""Integrators and continuous flows against matrix exponentials, closed solutions and counted evaluations."""

import collections
import dataclasses
import functools

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import genmod as gm
from genmod.bijectors import CNF, Chain, Repeat
from genmod.core.batching import vmap_events
from genmod.core.description import describe
from genmod.dynamics import RK4, Adaptive, FixedSteps
from genmod.dynamics.divergence import Hutchinson
from genmod.nets import VelocityMLP

pytestmark = pytest.mark.usefixtures("quick_compile")
MATRIX = np.array([[0.4, -1.1], [0.7, -0.2]])
SHARP = {"rtol": 1e-11, "atol": 1e-11}
INTEGRATORS = {
    "adaptive_dopri5": Adaptive(**SHARP),
    "adaptive_dopri8": Adaptive(diffrax.Dopri8(), **SHARP),
    "adaptive_tsit5": Adaptive(diffrax.Tsit5(), **SHARP),
    "fixed_dopri5": FixedSteps(50),
    "fixed_rk4": FixedSteps(400, RK4()),
    "per_example": Adaptive(diffrax.Dopri8(), per_example=True, **SHARP),
    "checkpointed": Adaptive(diffrax.Dopri8(), adjoint=diffrax.RecursiveCheckpointAdjoint(), **SHARP),
    "implicit": Adaptive(diffrax.Kvaerno5(), **SHARP),
    "backsolve": Adaptive(diffrax.Dopri8(), adjoint=diffrax.BacksolveAdjoint(), **SHARP),
    "direct": Adaptive(diffrax.Dopri8(), adjoint=diffrax.DirectAdjoint(), max_steps=64, **SHARP),
}


class Linear(nn.Module):
    """v = A x."""

    @nn.compact
    def __call__(self, x, t):
        return self.param("matrix", nn.initializers.zeros, (x.size, x.size), x.dtype) @ x


class Decay(nn.Module):
    """v = -x."""

    def __call__(self, x, t):
        return -x


class Blowup(nn.Module):
    """v = x^2, whose solutions x / (1 - x t) leave for infinity at t = 1 / x."""

    def __call__(self, x, t):
        return x**2


def batch(num=3, dim=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((num, dim)))


def linear_params(dtype=float):
    return {"matrix": jnp.asarray(MATRIX, dtype)}


def negative(t, y, shared, each):
    return jax.tree.map(jnp.negative, y)


# --- linear fields: the matrix exponential -------------------------------------------------------------------------------


def assert_close(found, wanted, tolerance=1e-8):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, wanted)


def linear_names(quick):
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in quick)) for n in INTEGRATORS])


@linear_names({"adaptive_dopri8"})
def test_linear_field_is_the_matrix_exponential(name, x64):
    x = batch()
    z, log_det = jax.jit(vmap_events(CNF(Linear(), INTEGRATORS[name]).inverse_and_log_det, (None, 0)))(linear_params(), x)
    assert_close(z, x @ scipy.linalg.expm(-MATRIX).T)
    assert_close(log_det, jnp.full(3, -np.trace(MATRIX)))


def test_linear_field_forwards(x64):
    z, cnf = batch(), CNF(Linear(), INTEGRATORS["adaptive_dopri5"])
    x, log_det = jax.jit(vmap_events(cnf.forward_and_log_det, (None, 0)))(linear_params(), z)
    assert_close(x, z @ scipy.linalg.expm(MATRIX).T)
    assert_close(log_det, jnp.full(3, np.trace(MATRIX)))


@linear_names({"fixed_dopri5", "fixed_rk4"})
def test_gradients_of_a_linear_field(name, x64):
    cnf, x = CNF(Linear(), INTEGRATORS[name]), batch()

    def value(params, x):
        z, log_det = vmap_events(cnf.inverse_and_log_det, (None, 0))(params, x)
        return jnp.sin(z).sum() + jnp.sum(log_det * x[:, 0]), (z, log_det)

    gradient, (z, log_det) = jax.jit(jax.grad(value, (0, 1), has_aux=True))(linear_params(), x)
    assert_close(z, x @ scipy.linalg.expm(-MATRIX).T)
    assert_close(log_det, jnp.full(3, -np.trace(MATRIX)))
    assert_close(gradient, closed_gradient())


@functools.cache
def closed_gradient():
    def value(params, x):
        z = x @ jax.scipy.linalg.expm(-params["matrix"]).T
        return jnp.sin(z).sum() - jnp.trace(params["matrix"]) * x[:, 0].sum()

    return jax.tree.map(np.asarray, jax.jit(jax.grad(value, (0, 1)))(linear_params(), batch()))


@pytest.mark.slow
def test_forward_mode_through_an_adaptive_solve(x64):
    cnf = CNF(Linear(), Adaptive(diffrax.Dopri8(), adjoint=diffrax.ForwardMode(), **SHARP))
    jacobian = jax.jit(jax.jacfwd(lambda z: cnf.forward(linear_params(), z)))(batch()[0])
    np.testing.assert_allclose(jacobian, scipy.linalg.expm(MATRIX), rtol=1e-8)


@pytest.mark.parametrize("integrator", [Adaptive(), FixedSteps(8)], ids=["adaptive", "fixed"])
def test_decay_by_hand(integrator):
    """dz/dt = -z takes (1, .5) to (.367879, .183940), with log |det dx/dz| = -2: the log-density gains D = 2."""
    cnf = CNF(Decay(), integrator)
    x, log_det = jax.jit(cnf.forward_and_log_det)({}, jnp.array([1.0, 0.5]))
    np.testing.assert_allclose(x, [0.367879, 0.183940], atol=2e-5)
    np.testing.assert_allclose(log_det, -2.0, atol=2e-5)


# --- accuracy against steps ----------------------------------------------------------------------------------------------


def known(t, state, shared, each):
    """Solved by a = 1 / (1 + t^2) and b = (1, 2) / (2 - sin t): neither autonomous nor linear, a pytree."""
    return {"a": -2.0 * t * state["a"] ** 2, "b": jnp.cos(t) * state["b"] ** 2 / shared}


def known_solution(t):
    return {"a": jnp.asarray(1.0 / (1.0 + t**2)), "b": jnp.array([1.0, 2.0]) / (2.0 - jnp.sin(t))}


def known_error(integrator, t0=0.0, t1=1.0):
    end, info = integrator.solve(known, known_solution(t0), jnp.array([1.0, 2.0]), t0=t0, t1=t1)
    errors = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), end, known_solution(t1))
    return jnp.max(jnp.stack(jax.tree.leaves(errors))), info


ORDERS = {
    diffrax.Euler: (1, (64, 128, 256)),
    diffrax.Midpoint: (2, (32, 64, 128)),
    diffrax.Heun: (2, (32, 64, 128)),
    diffrax.Ralston: (2, (32, 64, 128)),
    diffrax.Bosh3: (3, (32, 64, 128)),
    RK4: (4, (16, 32, 64)),
    diffrax.Tsit5: (5, (16, 32, 64)),
    diffrax.Dopri5: (5, (8, 16, 32)),
}


@pytest.mark.parametrize("solver", ORDERS, ids=lambda s: s.__name__)
def test_order_of_convergence(solver, x64):
    order, counts = ORDERS[solver]
    errors = jax.jit(lambda: jnp.stack([known_error(FixedSteps(n, solver()))[0] for n in counts]))()
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2, f"{slope:.2f}: {errors}"
    assert errors[-1] > 1e-14  # not yet rounding


@pytest.mark.parametrize("solver", [diffrax.Euler(), RK4(), diffrax.Dopri5()], ids=lambda s: type(s).__name__)
def test_fixed_steps_are_those_of_diffrax(solver, x64):
    constant = Adaptive(solver, controller=diffrax.ConstantStepSize(), dt0=1 / 16)
    start, shared = known_solution(0.0), jnp.array([1.0, 2.0])
    one, other = jax.jit(lambda: [i.solve(known, start, shared)[0] for i in (FixedSteps(16, solver), constant)])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13), one, other)


@pytest.mark.slow
def test_explicit_solvers_that_are_not_runge_kutta(x64):
    """The reversible Heun method goes through Diffrax: of second order, in either direction."""
    errors = jax.jit(lambda: jnp.stack([known_error(FixedSteps(n, diffrax.ReversibleHeun()), 1.0, 0.0)[0] for n in (32, 64)]))()
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.2
    info = known_error(FixedSteps(32, diffrax.ReversibleHeun()))[1]
    assert info["num_steps"] == 32 and info["failed_solves"] == 0 and "nfe" not in info


@pytest.mark.slow
def test_implicit_solvers(x64):
    """On v = A x at a rate for which Dopri5 takes hundreds of steps."""
    stiff, y0 = jnp.array([[-1_000.0, 1.0], [0.0, -1.0]]), jnp.array([1.0, -2.0])
    integrator = Adaptive(diffrax.Kvaerno5(), rtol=1e-8, atol=1e-8)
    end, info = jax.jit(lambda a: integrator.solve(lambda t, y, a, each: a @ y, y0, a))(stiff)
    np.testing.assert_allclose(end, scipy.linalg.expm(np.asarray(stiff)) @ y0, atol=1e-7)
    assert info["num_steps"] < 100 and info["failed_solves"] == 0 and "nfe" not in info


def test_rk4_chooses_steps_by_an_error_of_third_order(x64):
    """Against the midpoint rule the error of a step is h^3: an eighth of the tolerance is twice as many steps."""
    tolerances = (1e-5, 1e-6, 1e-8)

    @jax.jit
    def run():
        return [known_error(Adaptive(RK4(), rtol=tol, atol=tol)) for tol in tolerances]

    errors, infos = zip(*run(), strict=True)
    steps = np.array([float(info["num_steps"] - info["rejected_steps"]) for info in infos])
    assert all(error < tol for error, tol in zip(errors, tolerances, strict=True))
    assert abs(np.polyfit(np.log(tolerances), np.log(steps), 1)[0] + 1 / 3) < 0.05


def test_any_interval_in_either_direction(x64):
    for integrator in (Adaptive(**SHARP), FixedSteps(60)):
        errors = jax.jit(lambda i=integrator: [known_error(i, t0, t1)[0] for t0, t1 in ((0.25, 0.75), (1.0, 0.2))])()
        assert max(map(float, errors)) < 1e-9


@pytest.mark.parametrize("integrator", [Adaptive(**SHARP), FixedSteps(64)], ids=["adaptive", "fixed"])
def test_trajectory_passes_through_the_solution(integrator, x64):
    """The ends are those of `solve`; what lies between is interpolated where the steps are adaptive."""
    start, shared = known_solution(0.0), jnp.array([1.0, 2.0])
    states, end = jax.jit(
        lambda: (integrator.trajectory(known, start, shared, num_times=5), integrator.solve(known, start, shared)[0])
    )()
    truth = jax.vmap(known_solution)(jnp.linspace(0.0, 1.0, 5))
    for name in start:
        assert states[name].shape == (5, *start[name].shape)
        np.testing.assert_array_equal(states[name][0], start[name])
        np.testing.assert_allclose(states[name][-1], end[name], rtol=1e-12)
        np.testing.assert_allclose(states[name], truth[name], rtol=1e-8)


def test_trajectory_of_a_cnf_ends_at_its_image():
    cnf, z = CNF(Linear(), FixedSteps(12)), batch(4)
    path = jax.jit(vmap_events(functools.partial(cnf.trajectory, num_times=4), (None, 0)))(linear_params(z.dtype), z)
    assert path.shape == (4, 4, 2)
    np.testing.assert_allclose(path[:, 0], z)
    np.testing.assert_allclose(path[:, -1], z @ scipy.linalg.expm(MATRIX).T, rtol=1e-4, atol=1e-5)
    third = z @ scipy.linalg.expm(MATRIX / 3).T
    np.testing.assert_allclose(path[:, 1], third, rtol=1e-4, atol=1e-5)


# --- evaluations -----------------------------------------------------------------------------------------------------------


def counted(integrator, start=1.0, rate=30.0):
    """(evaluations of a field counted by a callback, info)."""
    calls = collections.Counter()

    def field(t, y, shared, each):
        jax.debug.callback(lambda: calls.update(["field"]))
        return -shared * (y - jnp.cos(3.0 * t))

    _, info = jax.jit(lambda y: integrator.solve(field, y, jnp.array(rate)))(jnp.array([start]))
    jax.effects_barrier()
    return calls["field"], {name: float(value) for name, value in info.items()}


@pytest.mark.parametrize(
    "solver",
    [
        diffrax.Dopri5(),
        diffrax.Heun(),
        RK4(),
        *(pytest.param(s, marks=pytest.mark.slow) for s in (diffrax.Tsit5(), diffrax.Bosh3())),
    ],
    ids=lambda s: type(s).__name__,
)
def test_nfe_is_the_number_of_evaluations(solver):
    # A small first step, which is not rejected: what a rejection there adds is the next test.
    plain = Adaptive(solver, dt0=0.01, rtol=1e-3, atol=1e-3, adjoint=diffrax.RecursiveCheckpointAdjoint())
    calls, info = counted(plain)
    assert info["nfe"] == calls
    assert info == counted(dataclasses.replace(plain, adjoint=None))[1]
    assert info["num_steps"] > 5 and info["rejected_steps"] > 0 and info["failed_solves"] == 0


@pytest.mark.parametrize("solver", [diffrax.Dopri5(), diffrax.Heun()], ids=lambda s: type(s).__name__)
def test_nfe_when_the_first_step_is_too_large(solver):
    """A method that reuses its last stage has none to reuse until a step is accepted; that many it may miss."""
    calls, info = counted(Adaptive(solver, dt0=0.5, rtol=1e-3, atol=1e-3))
    missed = calls - info["nfe"]
    assert 0 <= missed < info["rejected_steps"] and (missed == 0 or solver.tableau.fsal)


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.Dopri5(), RK4()], ids=lambda s: type(s).__name__)
def test_nfe_of_fixed_steps(solver):
    calls, info = counted(FixedSteps(10, solver), rate=1.0)
    assert info["nfe"] == calls == 10 * {diffrax.Euler: 1, diffrax.Dopri5: 6, RK4: 4}[type(solver)]
    assert info["num_steps"] == 10 and info["rejected_steps"] == 0


# --- batches ---------------------------------------------------------------------------------------------------------------

RATES = np.array([0.5, 40.0, 3.0])


@functools.cache
def decays(mapped, per_example=False):
    """(end, info) of y' = -rate y for three rates that want different steps."""
    integrator = Adaptive(rtol=1e-4, atol=1e-4, per_example=per_example)

    def one(rate):
        return integrator.solve(lambda t, y, shared, rate: -rate * y, jnp.ones_like(rate), None, rate)

    return jax.tree.map(np.asarray, jax.jit(mapped(one))(jnp.asarray(RATES)))


def test_neighbours_only_add_accuracy(x64):
    (together, info), (alone, own) = decays(vmap_events), decays(jax.vmap)
    assert len(set(info["num_steps"])) == 1 and info["num_steps"][0] >= own["num_steps"].max()
    assert own["num_steps"][0] < 0.5 * own["num_steps"][1]
    errors = [np.abs(end - np.exp(-RATES)) for end in (together, alone)]
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all(), errors
    # The maximum, not the mean: the hardest event is as accurate as if it were alone.
    assert (errors[0] < 1e-3).all()


def test_per_example_steps_are_those_of_each_alone(x64):
    (together, info), (alone, own) = decays(vmap_events, True), decays(jax.vmap)
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    np.testing.assert_array_equal(info["num_steps"], own["num_steps"])
    assert len(set(info["num_steps"])) == 3


def cubic(integrator):
    """y' = -a y^3 as a function of (a, y0): y0 / sqrt(1 + 2 a y0^2)."""

    def end(a, y0):
        return integrator.solve(lambda t, y, a, each: -a * y**3, y0, a)[0]

    return end


def each_gradient(mapped):
    return lambda end: mapped(jax.grad(end, (0, 1)), (None, 0))


def gradient_of_the_sum(end):
    return jax.grad(lambda a, y0: vmap_events(end, (None, 0))(a, y0).sum(), (0, 1))


@pytest.mark.parametrize(
    "gradient",
    [each_gradient(vmap_events), pytest.param(each_gradient(jax.vmap), marks=pytest.mark.slow), gradient_of_the_sum],
    ids=["vmap_events_of_grad", "vmap_of_grad", "grad_of_vmap_events"],
)
def test_gradients_of_one_event_do_not_depend_on_how_it_is_batched(gradient, x64):
    a, y0 = jnp.array(0.8), jnp.array([0.3, 1.0, -2.0])
    root = np.sqrt(1 + 2 * 0.8 * np.asarray(y0) ** 2)
    by_a, by_y0 = jax.jit(gradient(cubic(Adaptive(**SHARP))))(a, y0)
    wanted = -(np.asarray(y0) ** 3) / root**3
    np.testing.assert_allclose(by_a, wanted if by_a.shape else wanted.sum(), rtol=1e-8)
    np.testing.assert_allclose(by_y0, 1 / root**3, rtol=1e-8)


# --- failures --------------------------------------------------------------------------------------------------------------


def test_a_row_of_nan_fails_alone():
    x = batch(4).astype(jnp.float32)
    cnf, params = CNF(Linear()), linear_params(jnp.float32)
    run = jax.jit(vmap_events(cnf.inverse_and_log_det, (None, 0)))
    clean, with_nan = run(params, x.at[1].set(0.0)), run(params, x.at[1, 0].set(jnp.nan))
    kept = jnp.array([0, 2, 3])
    for one, other in zip(clean, with_nan, strict=True):
        assert jnp.isnan(other[1]).all()
        np.testing.assert_array_equal(one[kept], other[kept])


def test_a_context_of_nan_fails_alone():
    cnf = CNF(VelocityMLP((4,)), context_shape=(1,))
    z, context = batch(3).astype(jnp.float32), jnp.array([[0.5], [jnp.nan], [-0.5]])
    params = jax.tree.map(lambda p: p + 0.3, cnf.init(jax.random.key(0), z, context))
    run = jax.jit(vmap_events(cnf.forward, (None, 0, 0)))
    found, wanted = run(params, z, context), run(params, z, context.at[1].set(0.0))
    assert jnp.isnan(found[1]).all()
    np.testing.assert_allclose(found[jnp.array([0, 2])], wanted[jnp.array([0, 2])], rtol=1e-4)


def test_a_trajectory_of_nan_fails_alone():
    cnf, params = CNF(Linear()), linear_params(jnp.float32)
    z = batch(3).astype(jnp.float32).at[1, 0].set(jnp.nan)
    path = jax.jit(vmap_events(functools.partial(cnf.trajectory, num_times=3), (None, 0)))(params, z)
    assert jnp.isnan(path[1]).all()
    wanted = z[::2] @ scipy.linalg.expm(MATRIX).T
    np.testing.assert_allclose(path[::2, -1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cnf", "event"),
    [(CNF(Blowup(), Adaptive(max_steps=60)), 2.0), (CNF(Decay(), Adaptive(max_steps=3, rtol=1e-6, atol=1e-6)), 2.0)],
    ids=["diverges", "max_steps"],
)
def test_a_solve_that_does_not_arrive_says_so(cnf, event):
    """No exception: the last state and a count from `with_info`, NaN from the functions without."""
    z = jnp.array([event])
    (x, log_det, info), marked = jax.jit(lambda z: (cnf.forward_with_info({}, z), cnf.forward_and_log_det({}, z)))(z)
    assert info["failed_solves"] == 1 and info["num_steps"] == cnf.integrator.max_steps
    assert jnp.isfinite(x).all() and jnp.isfinite(log_det) and not jnp.array_equal(x, z)
    assert all(jnp.isnan(a).all() for a in marked)


def test_fixed_steps_that_diverge_say_so():
    cnf = CNF(Blowup(), FixedSteps(100))
    x, _, info = jax.jit(cnf.forward_with_info)({}, jnp.array([50.0]))
    assert info["failed_solves"] == 1 and not jnp.isfinite(x).all()
    assert jnp.isnan(jax.jit(cnf.forward)({}, jnp.array([50.0]))).all()


def test_with_steps_of_its_own_an_event_that_diverges_fails_alone():
    cnf = CNF(Blowup(), Adaptive(max_steps=60, per_example=True))
    z = jnp.array([[0.5], [2.0], [-1.0]])
    x, log_det, info = jax.jit(vmap_events(cnf.forward_with_info, (None, 0)))({}, z)
    np.testing.assert_array_equal(info["failed_solves"], [0, 1, 0])
    np.testing.assert_allclose(x[::2], z[::2] / (1 - z[::2]), rtol=1e-3)
    np.testing.assert_allclose(log_det[::2], -2 * jnp.log(1 - z[::2, 0]), rtol=1e-3)


# --- gradients of a likelihood ---------------------------------------------------------------------------------------------


@functools.cache
def nll_gradient(name):
    """Of a nonlinear field, by the integrator of that name; its own loss, with its own batching."""
    flow = gm.flows.ffjord((2,), hidden_sizes=(8,), integrator=INTEGRATORS[name], standardize=False)
    x = 1.5 * batch(4, seed=1)
    params = flow.init(jax.random.key(0), x)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: p + 0.4 * rng.standard_normal(p.shape), params)
    return jax.jit(jax.grad(lambda p: flow.loss(p, jax.random.key(0), x)[0]))(params)


@pytest.mark.parametrize(
    "name",
    [
        "adaptive_dopri5",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("backsolve", "direct", "per_example", "checkpointed")),
    ],
)
def test_every_adjoint_gives_the_gradient_of_the_likelihood(name, x64):
    found, wanted = (jax.flatten_util.ravel_pytree(nll_gradient(n))[0] for n in (name, "fixed_rk4"))
    assert np.linalg.norm(wanted) > 0.1
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


# --- compositions ----------------------------------------------------------------------------------------------------------

ESTIMATED = CNF(Linear(), FixedSteps(4), Hutchinson())


@pytest.mark.parametrize("composed", [Chain((ESTIMATED, ESTIMATED)), Repeat(ESTIMATED, 2)], ids=["chain", "repeat"])
def test_compositions_add_infos_and_give_every_layer_its_own_probes(composed, key):
    """e^T A e of A = [[., a], [b, .]] is tr A + (a + b) or tr A - (a + b), each with probability 1/2, in every layer."""
    trace, swing = np.trace(MATRIX), MATRIX[0, 1] + MATRIX[1, 0]
    params = linear_params(jnp.float32)
    params = (params, params) if isinstance(composed, Chain) else jax.tree.map(lambda a: jnp.stack([a, a]), params)
    z, num = jnp.array([1.0, -0.5]), 400

    @jax.jit
    @jax.vmap
    def both(key):
        x, log_det, info = composed.forward_with_info(params, z, key=key)
        return log_det, composed.inverse_and_log_det(params, x, key=key), info

    log_det, (back, inverse_log_det), info = both(jax.random.split(key, num))
    np.testing.assert_allclose(info["nfe"], 2 * 4 * 6)
    np.testing.assert_allclose(back, jnp.broadcast_to(z[None], back.shape), atol=1e-4)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-4)  # one key, one set of probes, in both directions
    levels = np.round((np.asarray(log_det) - 2 * trace) / swing, 3)
    assert set(np.abs(levels)) == {0.0, 2.0}
    assert abs(np.mean(levels == 0) - 0.5) < 4 * 0.5 / np.sqrt(num)


def test_probes_of_a_batch_differ(key):
    cnf, params = CNF(Linear(), FixedSteps(4), Hutchinson()), linear_params(jnp.float32)
    log_det = vmap_events(lambda z, key: cnf.forward_and_log_det(params, z, key=key)[1])(
        jnp.ones((64, 2)), jax.random.split(key, 64)
    )
    assert len(np.unique(np.round(np.asarray(log_det), 3))) == 2


def test_track_integrates_along_the_path(x64):
    """v = A x with A = -I: int |v|^2 dt = |z|^2 (1 - e^-2) / 2 and int |dv/dx|^2 dt = D, in either direction."""
    cnf = CNF(Decay(), FixedSteps(32), track=("kinetic_energy", "jacobian_norm"))
    z = jnp.array([1.0, -2.0, 0.5])
    x, _, forward = cnf.forward_with_info({}, z)
    _, _, inverse = cnf.inverse_with_info({}, x)
    _, _, without = cnf.forward_with_info({}, z, log_det=False)
    for info in (forward, inverse, without):
        np.testing.assert_allclose(info["kinetic_energy"], 5.25 * (1 - np.exp(-2)) / 2, rtol=1e-8)
        if info is not without:  # without a log-determinant nothing is spent on the Jacobian
            np.testing.assert_allclose(info["jacobian_norm"], 3.0, rtol=1e-8)
    assert "jacobian_norm" not in without


@pytest.mark.slow
def test_tracking_does_not_change_the_steps():
    z = batch(1).astype(jnp.float32)[0]
    runs = [
        jax.jit(CNF(Linear(), track=track).forward_with_info)(linear_params(jnp.float32), 3.0 * z)
        for track in ((), ("kinetic_energy",))
    ]
    assert runs[0][2]["num_steps"] == runs[1][2]["num_steps"]
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-6)


# --- arguments -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Adaptive(diffrax.Euler()), ValueError, r"Euler has no error estimate.*FixedSteps\(Euler\(\)"),
        (lambda: Adaptive(controller=diffrax.ConstantStepSize()), ValueError, "ConstantStepSize needs a step size: pass dt0"),
        (lambda: Adaptive(rtol=-1e-3), ValueError, "rtol and atol must be >= 0"),
        (lambda: Adaptive(rtol=0.0, atol=0.0), ValueError, "not both 0"),
        (lambda: Adaptive(dt0=-0.1), ValueError, "dt0 must be > 0"),
        (lambda: Adaptive(dt0=0.0), ValueError, "dt0 must be > 0"),
        (lambda: Adaptive(max_steps=0), ValueError, "max_steps must be an integer >= 1, got 0"),
        (lambda: Adaptive("dopri5"), TypeError, "solver must be a Diffrax solver"),
        (lambda: FixedSteps(10, diffrax.Dopri5), TypeError, "solver must be a Diffrax solver"),
        (lambda: FixedSteps(4, diffrax.Kvaerno3()), ValueError, r"equal steps do not have: use Adaptive\(Kvaerno3\(\)\)"),
        (lambda: FixedSteps(0), ValueError, "num_steps must be an integer >= 1, got 0"),
        (lambda: CNF(Decay(), integrator=diffrax.Dopri5()), TypeError, "integrator must be a Integrator"),
        (lambda: CNF(Decay(), divergence="exact"), TypeError, "divergence must be a DivergenceEstimator"),
        (
            lambda: CNF(Decay(), track=("energy",)),
            ValueError,
            r"track must name 'kinetic_energy' or 'jacobian_norm', got \['energy'\]",
        ),
        (lambda: FixedSteps(4).trajectory(negative, jnp.ones(2), num_times=1), ValueError, "num_times"),
        (lambda: Adaptive().trajectory(negative, jnp.ones(2), num_times=1), ValueError, "num_times"),
    ],
)
def test_refuses_unfit_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_refuses_a_tolerance_that_the_dtype_cannot_reach():
    sharp = Adaptive(rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="cannot be reached in float32.*use larger tolerances, or float64"):
        sharp.solve(negative, jnp.ones(2))
    with jax.enable_x64(True):
        jax.eval_shape(lambda y: sharp.solve(negative, y), jnp.ones(2))


class Wide(nn.Module):
    def __call__(self, x, t):
        return jnp.concatenate([x, x])


def test_refuses_a_field_of_another_shape(key):
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(2,\).*gave \(4,\)"):
        CNF(Wide()).init(key, jnp.zeros((3, 2)))


def test_refuses_an_estimate_without_a_key():
    with pytest.raises(ValueError, match="Hutchinson estimates the log-determinant: pass key="):
        ESTIMATED.forward_and_log_det(linear_params(jnp.float32), jnp.ones(2))
    np.testing.assert_allclose(  # the map alone needs none
        ESTIMATED.forward(linear_params(jnp.float32), jnp.ones(2)),
        scipy.linalg.expm(MATRIX) @ jnp.ones(2),
        rtol=1e-3,
    )


def test_integrators_are_values():
    """Equal ones are equal, hash alike and share a trace; unequal ones differ, and so do their descriptions."""

    def made():
        return [
            Adaptive(),
            Adaptive(diffrax.Tsit5(), rtol=1e-3),
            Adaptive(adjoint=diffrax.BacksolveAdjoint(solver=diffrax.Tsit5())),
            Adaptive(adjoint=diffrax.BacksolveAdjoint()),
            Adaptive(controller=diffrax.PIDController(1e-3, 1e-3)),
            FixedSteps(4),
            FixedSteps(4, RK4()),
        ]

    for i, one in enumerate(made()):
        for j, other in enumerate(made()):
            assert bool(one == other) == (i == j), (one, other)
            assert (describe(one) == describe(other)) == (i == j)
        assert hash(one) == hash(made()[i])
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def solve(integrator, y):
        traces.append(integrator)
        return integrator.solve(negative, y)

    for _ in range(3):
        solve(made()[2], jnp.ones(2))
    assert len(traces) == 1


@pytest.mark.slow
def test_a_controller_of_the_users_keeps_the_largest_error_of_the_batch():
    """Diffrax's own norm would average the error of a hard event over its easy neighbours."""
    rates = jnp.array([40.0] + [0.0] * 63)
    controller = diffrax.PIDController(rtol=1e-4, atol=1e-4)

    def steps(integrator, rates):
        one = functools.partial(integrator.solve, lambda t, y, shared, rate: -rate * y, jnp.ones(()), None)
        return float(vmap_events(lambda rate: one(rate)[1]["num_steps"])(rates)[0])

    alone = steps(Adaptive(controller=controller, dt0=0.05), rates[:1])
    assert steps(Adaptive(controller=controller, dt0=0.05), rates) == alone == steps(Adaptive(rtol=1e-4, atol=1e-4), rates)
