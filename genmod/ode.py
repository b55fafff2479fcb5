"""Initial value problems dy/dt = f(t, y), solved by Diffrax. Only this file imports Diffrax.

An **integrator** says how: `Adaptive`, any Diffrax solver with error control and any of its adjoints, or `FixedSteps`, a
scan of equal steps. Both solve ONE event; under `genmod.base.vmap_events` an adaptive solve runs the whole batch with one
step size, whose error norm is the MAXIMUM over the events, so that a neighbour can only add accuracy. (One that diverges on
its way takes the batch with it to `max_steps`; `per_example` keeps it apart. One that is NaN from the start fails alone.)

A solve does not raise: after `max_steps` it returns the last state and says so in its info. Info holds scalars:

    num_steps        steps taken, rejected ones included
    rejected_steps   those thrown away by the error control
    nfe              evaluations of the field (known for explicit Runge-Kutta methods; one more for each rejection of the first
                     step by a method that reuses its last stage)
    failed_solves    1 where the end was not reached or is not finite
"""

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from genmod.base import EVENTS, FAILED, Array, Description, Info, check_positive

# Diffrax's own guess at a first step, 0.01 whatever the field, costs a step or two before the error control has grown it.
_FIRST_STEP = 0.05
_REPLAY_BYTES = 2**28

State = Any
Field = Callable[[Array, State, Any, Any], State]


class Integrator(Description, abc.ABC):
    """How an initial value problem is solved."""

    @abc.abstractmethod
    def solve(
        self,
        field: Field,
        state: State,
        shared: Any = None,
        each: Any = None,
        *,
        t0: float = 0.0,
        t1: float = 1.0,
        controlled: Callable[[State], Any] = lambda state: state,
    ) -> tuple[State, Info]:
        """The state at t1, from `state` at t0, of one event; t1 < t0 goes backwards.

        Args:
          field: (t, state, shared, each) -> d state / dt, a pytree like state.
          shared: what all events of a batch share (parameters). each: what belongs to this event (context, probes).
            Gradients flow to state, shared and each; not to what `field` closes over.
          controlled: the part of the state on which the steps depend.
        """

    @abc.abstractmethod
    def trajectory(self, field: Field, state: State, shared: Any = None, each: Any = None, *, num_times: int) -> State:
        """The states at `num_times` equally spaced times from 0 to 1, on a leading axis; NaN after a failure.

        `FixedSteps` takes at least one step between any two of the times, hence perhaps more than `solve` does.
        """


@dataclasses.dataclass(frozen=True)
class Adaptive(Integrator):
    """Steps chosen by an error estimate.

    Attributes:
      solver: any Diffrax solver. rtol, atol: tolerances of the error per step, which is measured per event as a root mean
        square over the state and then maximised over the batch.
      adjoint: how gradients are taken. None, the default, replays: Diffrax takes the steps and notes them, the backward pass
        differentiates each of them again, last to first; the gradient is that of the steps taken, with memory for
        `max_steps` states [against recursive checkpointing 1.4 times faster in training and half the compilation]. Where
        that would be more than 256 MiB, or the method is no explicit Runge-Kutta method, it is
        `diffrax.RecursiveCheckpointAdjoint()`, the same gradient with memory that hardly grows with the steps. Both are
        reverse mode, once, and want what is differentiated passed as `shared` or `each`, not closed over.
        `diffrax.BacksolveAdjoint()` solves an ODE backwards, with constant memory and an error of its own;
        `diffrax.DirectAdjoint()` and `ForwardMode()` do forward mode, the first at the price of `max_steps` steps
        whatever happens.
      max_steps: bound on the steps.
      per_example: a step size for every event. A hard event then costs its neighbours nothing; a training step costs
        about twice as much.
      controller: another Diffrax step size controller (rtol and atol are then not used). dt0: first step, of a time of 1;
        None: 0.05, or the controller's own.

    Raises ValueError for a solver without error estimate, a controller that needs dt0 without it, and tolerances that are
    not positive; in `solve`, for tolerances below the resolution of the dtype.
    """

    solver: diffrax.AbstractSolver = diffrax.Dopri5()
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: diffrax.AbstractAdjoint | None = None
    max_steps: int = 1_000
    per_example: bool = False
    controller: diffrax.AbstractStepSizeController | None = None
    dt0: float | None = None

    def __post_init__(self):
        if isinstance(self.adjoint, diffrax.BacksolveAdjoint):
            object.__setattr__(self, "adjoint", _Backsolve(**self.adjoint.kwargs))
        super().__post_init__()
        _check_solver(self.solver)
        check_positive(max_steps=self.max_steps)
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise ValueError(f"rtol and atol must be >= 0 and not both 0, got rtol={self.rtol}, atol={self.atol}")
        if self.dt0 is not None and not self.dt0 > 0:
            raise ValueError(f"dt0 must be > 0 (its sign follows the direction of the solve), got {self.dt0}")
        name = type(self.solver).__name__
        if self.controller is None and not isinstance(self.solver, diffrax.AbstractAdaptiveSolver):
            raise ValueError(f"{name} has no error estimate to choose steps by: use FixedSteps({name}(), num_steps=...)")
        if isinstance(self.controller, diffrax.ConstantStepSize) and self.dt0 is None:
            raise ValueError("ConstantStepSize needs a step size: pass dt0=..., or use FixedSteps")

    def solve(self, field, state, shared=None, each=None, *, t0=0.0, t1=1.0, controlled=lambda state: state):
        end, stats, ok = self._run(field, state, shared, each, t0, t1, controlled, diffrax.SaveAt(t1=True))
        end = jax.tree.map(lambda a: a[0], end)
        info = {
            "num_steps": stats["num_steps"].astype(jnp.float32),
            "rejected_steps": stats["num_rejected_steps"].astype(jnp.float32),
            **_evaluations(self.solver, stats["num_steps"]),
            FAILED: (~ok | ~_finite(end)).astype(jnp.float32),
        }
        return end, info

    def trajectory(self, field, state, shared=None, each=None, *, num_times):
        check_positive(num_times=num_times - 1)
        times = jnp.linspace(0.0, 1.0, num_times, dtype=_time_dtype(state))
        states, _, ok = self._run(field, state, shared, each, 0.0, 1.0, lambda s: s, diffrax.SaveAt(ts=times))
        return jax.tree.map(lambda a: jnp.where(ok & jnp.isfinite(a), a, jnp.nan), states)

    def _run(self, field, state, shared, each, t0, t1, controlled, saveat):
        """(saved states of this event, statistics, whether it was fit to start and the end was reached)."""
        dtype = _time_dtype(state)
        # One NaN would leave its neighbours no step that is small enough.
        fit = _finite((state, each))
        state, each = jax.tree.map(lambda a: jnp.where(fit, a, jnp.zeros_like(a)), (state, each))
        if self.controller is None and self.rtol + self.atol < 4 * float(jnp.finfo(dtype).eps):
            raise ValueError(
                f"rtol={self.rtol}, atol={self.atol} cannot be reached in {dtype}, whose resolution is "
                f"{float(jnp.finfo(dtype).eps):.1e}; use larger tolerances, or float64 (jax_enable_x64)"
            )
        batched = not self.per_example and _named_axis()
        gather = (lambda a: jax.lax.all_gather(a, EVENTS)) if batched else (lambda a: a[None])
        states, each = jax.tree.map(gather, (state, each))

        leaves, structure = jax.tree.flatten(states)  # Equinox stumbles over empty tuples in a state

        def batch_field(t, leaves, args):
            shared, each = args
            rates = jax.vmap(lambda state, each: field(t, state, shared, each))(structure.unflatten(leaves), each)
            return jax.tree.leaves(rates)

        norm = _norm_over_events(lambda leaves: controlled(structure.unflatten(leaves)))
        sign, first = 1.0 if t1 > t0 else -1.0, self.dt0
        if first is None and self.controller is None:
            first = _FIRST_STEP * abs(t1 - t0)
        diffeqsolve = functools.partial(
            diffrax.diffeqsolve,
            diffrax.ODETerm(batch_field),
            self.solver,
            # NumPy: under jit these would be tracers, which a custom derivative must not close over.
            np.asarray(t0, dtype),
            np.asarray(t1, dtype),
            None if first is None else np.asarray(sign * first, dtype),
            stepsize_controller=self._controller(norm),
            max_steps=self.max_steps,
            throw=False,
        )
        method = _tableau(self.solver)
        with jax.numpy_rank_promotion("allow"):
            noted = sum(a.size * a.dtype.itemsize for a in leaves) * (self.max_steps + 1)
            if self.adjoint is None and method is not None and saveat.subs.t1 and noted <= _REPLAY_BYTES:
                ys, stats, ok = _replayed(diffeqsolve, method, batch_field, leaves, (shared, each))
            else:
                solution = diffeqsolve(leaves, (shared, each), saveat=saveat, adjoint=self._adjoint(norm))
                ys, stats, ok = solution.ys, solution.stats, solution.result == diffrax.RESULTS.successful
        row = jax.lax.axis_index(EVENTS) if batched else 0
        saved = [jax.lax.dynamic_index_in_dim(a, row, 1, keepdims=False) for a in jax.tree.leaves(ys)]
        return structure.unflatten(saved), stats, fit & ok

    def _controller(self, norm):
        controller = self.controller or diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        # Diffrax's own norm is an average over the batch.
        if isinstance(controller, diffrax.PIDController) and controller.norm is diffrax.PIDController(rtol=1, atol=1).norm:
            controller = dataclasses.replace(controller, norm=norm)
        return controller

    def _adjoint(self, norm):
        if self.adjoint is None:
            return diffrax.RecursiveCheckpointAdjoint()
        if isinstance(self.adjoint, _Backsolve):
            # Its backward state also holds the gradients of the parameters, which by themselves need no error control.
            backward = self._controller(lambda y: jnp.maximum(norm(y[0]), norm(y[1])))
            return diffrax.BacksolveAdjoint(**({"stepsize_controller": backward} | self.adjoint.kwargs))
        return self.adjoint


def _replayed(diffeqsolve, method: "_Explicit", field, leaves: list[Array], args: Any):
    """(state at t1 with a leading axis of 1, statistics, whether it arrived), with the gradient of the steps that were taken."""
    forward = diffrax.ForwardMode()  # the plain loop: nothing is differentiated through Diffrax

    def outcome(solution, ys):
        stats = {name: solution.stats[name] for name in ("num_steps", "num_rejected_steps")}
        return ys, stats, solution.result == diffrax.RESULTS.successful

    def solve(leaves, args):
        solution = diffeqsolve(leaves, args, saveat=diffrax.SaveAt(t1=True), adjoint=forward)
        return outcome(solution, solution.ys)

    def solve_and_note(leaves, args):
        saveat = diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True), diffrax.SubSaveAt(t0=True, steps=True)])
        solution = diffeqsolve(leaves, args, saveat=saveat, adjoint=forward)
        (_, times), (ys, states) = solution.ts, solution.ys
        return outcome(solution, ys), (times, states, solution.stats["num_accepted_steps"], args)

    def replay(noted, cotangents):
        times, states, num_steps, args = noted
        entries, structure = jax.tree.flatten(args)
        trained = [i for i, a in enumerate(entries) if jnp.issubdtype(a.dtype, jnp.floating)]

        def back(carry):
            i, cotangent, totals = carry

            def step(state, floats):
                merged = list(entries)
                for place, value in zip(trained, floats, strict=True):
                    merged[place] = value
                return _runge_kutta(method, field, times[i], times[i + 1] - times[i], state, structure.unflatten(merged))

            _, transpose = jax.vjp(step, [s[i] for s in states], [entries[place] for place in trained])
            cotangent, terms = transpose(cotangent)
            return i - 1, cotangent, jax.tree.map(jnp.add, totals, terms)

        zeros = [jnp.zeros_like(entries[place]) for place in trained]
        start = num_steps - 1, [c[0] for c in cotangents[0]], zeros
        _, cotangent, totals = jax.lax.while_loop(lambda carry: carry[0] >= 0, back, start)
        gradients: list[Any] = [np.zeros(a.shape, jax.dtypes.float0) for a in entries]  # of what is not a float: none
        for place, total in zip(trained, totals, strict=True):
            gradients[place] = total
        return cotangent, structure.unflatten(gradients)

    solved = jax.custom_vjp(solve)
    solved.defvjp(solve_and_note, replay)
    return solved(leaves, args)


class _Backsolve(diffrax.BacksolveAdjoint):
    """Diffrax's, which holds a dict, made hashable."""

    def __hash__(self):
        return hash(tuple(sorted(self.kwargs.items(), key=lambda item: item[0])))


@dataclasses.dataclass(frozen=True)
class FixedSteps(Integrator):
    """`num_steps` equal steps of an explicit method, in a scan that recomputes each step in the backward pass.

    The fastest gradient on a CPU and a third of the compilation of an adaptive solve, with memory for one state per step
    and no control of the error: compare with twice the steps. Explicit solvers that are not Runge-Kutta methods run through
    Diffrax with a constant step. Raises ValueError for implicit ones.
    """

    num_steps: int
    solver: diffrax.AbstractSolver = diffrax.Dopri5()

    def __post_init__(self):
        super().__post_init__()
        check_positive(num_steps=self.num_steps)
        _check_solver(self.solver)
        if isinstance(self.solver, diffrax.AbstractImplicitSolver):
            name = type(self.solver).__name__
            raise ValueError(f"{name} solves equations to a tolerance, which equal steps do not have: use Adaptive({name}())")

    def solve(self, field, state, shared=None, each=None, *, t0=0.0, t1=1.0, controlled=lambda state: state):
        tableau = _tableau(self.solver)
        if tableau is None:
            constant = Adaptive(
                self.solver,
                controller=diffrax.ConstantStepSize(),
                dt0=abs(t1 - t0) / self.num_steps,
                max_steps=self.num_steps + 1,
            )
            return constant.solve(field, state, shared, each, t0=t0, t1=t1)

        def together(t, state, args):
            return field(t, state, *args)

        step = jax.checkpoint(lambda state, t: _runge_kutta(tableau, together, t, dt, state, (shared, each)), prevent_cse=False)
        dtype = _time_dtype(state)
        dt = jnp.asarray((t1 - t0) / self.num_steps, dtype)
        times = jnp.asarray(t0 + (t1 - t0) * np.arange(self.num_steps) / self.num_steps, dtype)
        end, _ = jax.lax.scan(lambda state, t: (step(state, t), None), state, times)
        info = {
            "num_steps": jnp.asarray(self.num_steps, jnp.float32),
            "rejected_steps": jnp.zeros((), jnp.float32),
            "nfe": jnp.asarray(self.num_steps * len(tableau.rows), jnp.float32),
            FAILED: (~_finite(end)).astype(jnp.float32),
        }
        return end, info

    def trajectory(self, field, state, shared=None, each=None, *, num_times):
        check_positive(num_times=num_times - 1)
        part = dataclasses.replace(self, num_steps=math.ceil(self.num_steps / (num_times - 1)))
        times, states = np.linspace(0.0, 1.0, num_times), [state]
        for t0, t1 in itertools.pairwise(times):
            states.append(part.solve(field, states[-1], shared, each, t0=float(t0), t1=float(t1))[0])
        return jax.tree.map(lambda *a: jnp.stack(a), *states)


class RK4(diffrax.AbstractERK):
    """The classical fourth-order Runge-Kutta method, which Diffrax has not; its error estimate is against the midpoint rule."""

    tableau = diffrax.ButcherTableau(
        a_lower=(np.array([1 / 2]), np.array([0, 1 / 2]), np.array([0, 0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.array([1 / 6, -2 / 3, 1 / 3, 1 / 6]),
        c=np.array([1 / 2, 1 / 2, 1.0]),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


@dataclasses.dataclass(frozen=True)
class _Explicit:
    """An explicit Runge-Kutta method without the stages that only serve an error estimate."""

    rows: tuple[tuple[float, ...], ...]  # rows[i]: weights of the stages before i
    nodes: tuple[float, ...]
    weights: tuple[float, ...]


def _butcher(solver: diffrax.AbstractSolver) -> diffrax.ButcherTableau | None:
    """The tableau of an explicit Runge-Kutta method; None for other solvers."""
    tableau = getattr(solver, "tableau", None)
    return tableau if isinstance(solver, diffrax.AbstractERK) and isinstance(tableau, diffrax.ButcherTableau) else None


def _tableau(solver: diffrax.AbstractSolver) -> _Explicit | None:
    if isinstance(solver, diffrax.Euler):
        return _Explicit(((),), (0.0,), (1.0,))
    tableau = _butcher(solver)
    if tableau is None:
        return None
    used = int(np.flatnonzero(tableau.b_sol)[-1]) + 1
    rows = ((), *(tuple(map(float, row)) for row in tableau.a_lower))[:used]
    return _Explicit(rows, (0.0, *map(float, tableau.c))[:used], tuple(map(float, tableau.b_sol))[:used])


def _runge_kutta(method: _Explicit, field, t, dt, state, args):
    stages = []
    for row, node in zip(method.rows, method.nodes, strict=True):
        stages.append(field(t + node * dt, _combine(state, dt, row, stages), args))
    return _combine(state, dt, method.weights, stages)


def _combine(state, dt, weights, stages):
    """state + dt * sum of weights * stages."""
    terms = [(w, k) for w, k in zip(weights, stages, strict=True) if w != 0.0]
    if not terms:
        return state
    scale = [w for w, _ in terms]
    return jax.tree.map(lambda y, *ks: y + dt * sum(w * k for w, k in zip(scale, ks, strict=True)), state, *(k for _, k in terms))


def _evaluations(solver, num_steps):
    tableau = _butcher(solver)
    if tableau is None:
        return {}
    # A method that reuses its last stage starts with one evaluation of its own.
    stages, reused = len(tableau.b_sol), int(tableau.fsal)
    return {"nfe": (reused + num_steps * (stages - reused)).astype(jnp.float32)}


def _norm_over_events(controlled):
    def norm(states):
        leaves = jax.tree.leaves(controlled(states))
        squares = sum(jnp.sum(a.reshape(a.shape[0], -1) ** 2, 1) for a in leaves)
        size = sum(a[0].size for a in leaves)
        # Through the maximum no gradient is wanted: steps are chosen, not trained.
        return jax.lax.stop_gradient(jnp.sqrt(jnp.max(squares) / size))

    return norm


def _named_axis() -> bool:
    try:
        jax.lax.axis_size(EVENTS)
    except NameError:
        return False
    return True


def _finite(tree) -> Array:
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, [jnp.isfinite(a).all() for a in floats], jnp.array(True))


def _time_dtype(state):
    return jnp.result_type(jnp.float32, *jax.tree.leaves(state))


def _check_solver(solver) -> None:
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"solver must be a Diffrax solver such as diffrax.Tsit5(), got {solver!r}")
