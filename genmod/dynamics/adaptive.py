"""Steps chosen by an error estimate, one step size for a batch, by any solver and adjoint of Diffrax."""

import dataclasses
import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.batching import EVENTS
from genmod.core.checks import check_count
from genmod.core.info import FAILED
from genmod.dynamics.base import Integrator, check_solver, finite, time_dtype
from genmod.dynamics.explicit import evaluations, tableau_of
from genmod.dynamics.replay import replayed

# Diffrax's own guess at a first step, 0.01 whatever the field, costs a step or two before the error control has grown it.
_FIRST_STEP = 0.05
_REPLAY_BYTES = 2**28


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
        check_solver(self.solver)
        check_count(max_steps=self.max_steps)
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
            **evaluations(self.solver, stats["num_steps"]),
            FAILED: (~ok | ~finite(end)).astype(jnp.float32),
        }
        return end, info

    def trajectory(self, field, state, shared=None, each=None, *, num_times):
        check_count(num_times=num_times - 1)
        times = jnp.linspace(0.0, 1.0, num_times, dtype=time_dtype(state))
        states, _, ok = self._run(field, state, shared, each, 0.0, 1.0, lambda s: s, diffrax.SaveAt(ts=times))
        return jax.tree.map(lambda a: jnp.where(ok & jnp.isfinite(a), a, jnp.nan), states)

    def _run(self, field, state, shared, each, t0, t1, controlled, saveat):
        """(saved states of this event, statistics, whether it was fit to start and the end was reached)."""
        dtype = time_dtype(state)
        # One NaN would leave its neighbours no step that is small enough.
        fit = finite((state, each))
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
        method = tableau_of(self.solver)
        with jax.numpy_rank_promotion("allow"):
            noted = sum(a.size * a.dtype.itemsize for a in leaves) * (self.max_steps + 1)
            if self.adjoint is None and method is not None and saveat.subs.t1 and noted <= _REPLAY_BYTES:
                ys, stats, ok = replayed(diffeqsolve, method, batch_field, leaves, (shared, each))
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


class _Backsolve(diffrax.BacksolveAdjoint):
    """Diffrax's, which holds a dict, made hashable."""

    def __hash__(self):
        return hash(tuple(sorted(self.kwargs.items(), key=lambda item: item[0])))


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
