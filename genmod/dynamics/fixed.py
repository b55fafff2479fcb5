"""Equal steps: a scan that recomputes each step in the backward pass."""

import dataclasses
import itertools
import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count
from genmod.core.info import FAILED
from genmod.dynamics.adaptive import Adaptive
from genmod.dynamics.base import Integrator, check_solver, finite, time_dtype
from genmod.dynamics.explicit import runge_kutta, tableau_of


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
        check_count(num_steps=self.num_steps)
        check_solver(self.solver)
        if isinstance(self.solver, diffrax.AbstractImplicitSolver):
            name = type(self.solver).__name__
            raise ValueError(f"{name} solves equations to a tolerance, which equal steps do not have: use Adaptive({name}())")

    def solve(self, field, state, shared=None, each=None, *, t0=0.0, t1=1.0, controlled=lambda state: state):
        tableau = tableau_of(self.solver)
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

        step = jax.checkpoint(lambda state, t: runge_kutta(tableau, together, t, dt, state, (shared, each)), prevent_cse=False)
        dtype = time_dtype(state)
        dt = jnp.asarray((t1 - t0) / self.num_steps, dtype)
        times = jnp.asarray(t0 + (t1 - t0) * np.arange(self.num_steps) / self.num_steps, dtype)
        end, _ = jax.lax.scan(lambda state, t: (step(state, t), None), state, times)
        info = {
            "num_steps": jnp.asarray(self.num_steps, jnp.float32),
            "rejected_steps": jnp.zeros((), jnp.float32),
            "nfe": jnp.asarray(self.num_steps * len(tableau.rows), jnp.float32),
            FAILED: (~finite(end)).astype(jnp.float32),
        }
        return end, info

    def trajectory(self, field, state, shared=None, each=None, *, num_times):
        check_count(num_times=num_times - 1)
        part = dataclasses.replace(self, num_steps=math.ceil(self.num_steps / (num_times - 1)))
        times, states = np.linspace(0.0, 1.0, num_times), [state]
        for t0, t1 in itertools.pairwise(times):
            states.append(part.solve(field, states[-1], shared, each, t0=float(t0), t1=float(t1))[0])
        return jax.tree.map(lambda *a: jnp.stack(a), *states)
