"""The gradient of an adaptive solve: Diffrax takes and notes the steps, the backward pass differentiates each of them again."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.types import Array
from genmod.dynamics.explicit import Explicit, runge_kutta


def replayed(diffeqsolve, method: "Explicit", field, leaves: list[Array], args: Any):
    """A solve whose gradient is that of the steps that were taken.

    Args:
      diffeqsolve: Diffrax's, but for the state, the arguments, `saveat` and `adjoint`.
      method: the explicit method that it uses. field: (t, leaves, args) -> d leaves / dt.
      leaves: the state. args: what the field is given; gradients flow to both.

    Returns (the state at t1 with a leading axis of 1, statistics, whether it arrived).
    """
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
                return runge_kutta(method, field, times[i], times[i + 1] - times[i], state, structure.unflatten(merged))

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
