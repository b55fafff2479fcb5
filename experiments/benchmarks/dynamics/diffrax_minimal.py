"""JAX and Diffrax by hand: the whole batch is one state, dopri5 on the rms norm, recursive checkpoints."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax

from experiments.benchmarks.dynamics import _jax as by_hand
from experiments.benchmarks.dynamics.problems import TOLERANCE, Cell
from experiments.benchmarks.jax_peer import JaxPeer, adam
from experiments.benchmarks.peer import Arrays, Unsupported

DISTRIBUTION = "diffrax"
CHECKPOINTED, BACKSOLVE, DIRECT = diffrax.RecursiveCheckpointAdjoint(), diffrax.BacksolveAdjoint(), diffrax.DirectAdjoint()


def solve(
    fn: Callable, y: Any, args: Any, t0: float, t1: float, *, adjoint: Any = CHECKPOINTED, max_steps: int = 256
) -> tuple[Any, Any]:
    """dy/dt = fn(t, y, args) from t0 to t1: y at t1, and the number of steps."""
    controller = diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE)
    term, options = diffrax.ODETerm(fn), {"stepsize_controller": controller, "adjoint": adjoint, "max_steps": max_steps}
    solution = diffrax.diffeqsolve(term, diffrax.Dopri5(), t0, t1, dt0=None, y0=y, args=args, **options)
    last = tuple(each[0] for each in solution.ys) if isinstance(y, tuple) else solution.ys[0]
    return last, solution.stats["num_steps"]


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The model."""
    if cell.kind == "dm":
        raise Unsupported("a diffusion by hand is plainjax's")
    if cell.kind == "fm":
        loss = by_hand.flow_matching_loss(by_hand.field(cell.activation))
        return by_hand.peer(arrays, {"train": adam(loss)}, by_hand.samples(cell, by_hand.push_fn(cell, solve)))

    def training(adjoint: Any, **options: int) -> Any:
        return adam(by_hand.nll(cell, partial(solve, adjoint=adjoint, **options)))

    def trainings(num: int) -> dict:
        kinds = {"adaptive": CHECKPOINTED, "backsolve": BACKSOLVE, "adaptive, direct": DIRECT}
        return {kind: training(adjoint, max_steps=num) for kind, adjoint in kinds.items()}

    functions = by_hand.log_probs(by_hand.log_prob_fn(cell, solve)) | {"memory": by_hand.memory(arrays, trainings)}
    return by_hand.peer(arrays, {"train": training(CHECKPOINTED), "train_adjoint": training(BACKSOLVE)}, functions)
