"""Stochastic differential equations dx = drift(t, x) dt + diffusion(t) dw with additive noise, by solvers of Diffrax."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax

from genmod.core.checks import check_count
from genmod.core.description import Description
from genmod.core.types import Array, Key


@dataclasses.dataclass(frozen=True)
class SDESteps(Description):
    """`num_steps` equal steps of an SDE solver.

    The noise does not depend on the state, so that Ito's and Stratonovich's equations are one and every solver may be used
    that takes additive (or general) noise: `diffrax.Euler()`, `diffrax.SEA()`, `diffrax.ShARK()`, ...
    Raises TypeError for what is not a Diffrax solver.
    """

    num_steps: int
    solver: diffrax.AbstractSolver = diffrax.Euler()

    def __post_init__(self):
        super().__post_init__()
        check_count(num_steps=self.num_steps)
        if not isinstance(self.solver, diffrax.AbstractSolver):
            raise TypeError(f"solver must be a Diffrax solver such as diffrax.Euler(), got {self.solver!r}")

    def solve(
        self,
        key: Key,
        drift: Callable[[Array, Array], Array],
        diffusion: Callable[[Array], Array],
        x: Array,
        *,
        t0: float,
        t1: float,
    ) -> Array:
        """ONE event at t1; t1 < t0 goes backwards.

        Args:
          key: of the Brownian path.
          drift: (t, x) -> array of the shape of x. diffusion: t -> a scalar.
          x: the event at t0.
          t0, t1: the ends.

        Returns an array of the shape of x.
        """
        # Diffrax wants time to run forwards when there is noise: u = |t - t0|.
        sign, span = (1.0 if t1 > t0 else -1.0), abs(t1 - t0)

        def time(u: Any) -> Array:
            return jnp.asarray(t0 + sign * u, x.dtype)

        step, shape = span / self.num_steps, jax.ShapeDtypeStruct(x.shape, x.dtype)
        noise = diffrax.VirtualBrownianTree(0.0, span, tol=step / 4, shape=shape, key=key, levy_area=_levy_area(self.solver))
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda u, x, _: sign * drift(time(u), x)),
            diffrax.ControlTerm(lambda u, x, _: lineax.DiagonalLinearOperator(jnp.full_like(x, diffusion(time(u)))), noise),
        )
        with jax.numpy_rank_promotion("allow"):
            ys = diffrax.diffeqsolve(terms, self.solver, 0.0, span, step, x, max_steps=self.num_steps + 1).ys
        assert ys is not None
        return ys[0]


def _levy_area(solver: diffrax.AbstractSolver):
    """The least that the solver wants to know of the Brownian path between two times."""
    wanted = getattr(solver, "minimal_levy_area", diffrax.BrownianIncrement)
    kinds = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
    return next((kind for kind in kinds if issubclass(kind, wanted)), diffrax.SpaceTimeTimeLevyArea)
