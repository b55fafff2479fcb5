"""Samplers of diffusions: from noise x at the high end of `schedule.times` to data, by a denoiser D(x, t) = E[x_0 | x_t].

A sampler draws ONE event, `sampler(key, denoiser, schedule, x)`:

    Steps             a stepper on a grid of times, one compiled scan
    ReverseODE        the deterministic probability flow, by any integrator of `gm.dynamics`
    ReverseSDE        the reverse SDE, by any SDE solver of Diffrax

    x = schedule.prior((2,)).sample({}, key)
    sampler = gm.denoising.Steps(gm.denoising.DPMSolverPlusPlus(), gm.denoising.LogSNRGrid(60))
    sampler(key, gm.denoising.denoisers.gaussian(schedule, mean, covariance), schedule, x)
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_parts
from genmod.core.description import Description
from genmod.core.info import mark_failed
from genmod.core.types import Array, Key
from genmod.denoising.denoisers import Denoiser
from genmod.denoising.grids import Grid, LogSNRGrid
from genmod.denoising.schedules import Schedule, convert
from genmod.denoising.steppers import DPMSolverPlusPlus, Stepper
from genmod.dynamics import Adaptive, Integrator, SDESteps


class Sampler(Description, abc.ABC):
    """How an event is drawn with a denoiser."""

    def __call__(self, key: Key, denoiser: Denoiser, schedule: Schedule, x: ArrayLike) -> Array:
        """ONE event at the low end of `schedule.times` (or its denoised mean).

        Args:
          key: of the noise; deterministic samplers do not use it.
          denoiser: D, (x, t) -> x_0. schedule: that of the denoiser.
          x: the event at the high end, of any shape that the denoiser takes.

        Returns an array of the shape and the dtype of x, computed in float32 at least.
        Raises ValueError for a denoiser that returns another shape than that of x, TypeError for an x that is not floating
        point.
        """
        x = check_array("x", x)
        return self._sample(key, _checked(denoiser, schedule), schedule, _in_single(x)).astype(x.dtype)

    @abc.abstractmethod
    def _sample(self, key: Key, denoiser: Denoiser, schedule: Schedule, x: Array) -> Array:
        """What `__call__` says; x and the denoiser have been checked."""


def _in_single(x: Array) -> Array:
    """x in float32 at least: half precision cannot tell the times of a long grid apart, nor hold their signal-to-noise ratios."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _checked(denoiser: Denoiser, schedule: Schedule) -> Denoiser:
    """The denoiser, held to the shape and the dtype of its input; where there is no noise it is x / alpha, whatever it says."""
    middle = sum(schedule.times) / 2

    def checked(x, t):
        clean = schedule.sigma(t) == 0
        data = denoiser(x, jnp.where(clean, middle, t))
        if data.shape != x.shape:
            raise ValueError(f"the denoiser must return the shape of its input, {x.shape}, got {data.shape}")
        return jnp.where(clean, x / jnp.where(clean, schedule.alpha(t), 1.0), data).astype(x.dtype)

    return checked


@dataclasses.dataclass(frozen=True)
class Steps(Sampler):
    """A stepper along a grid.

    Attributes:
      stepper: one step. grid: the times.
      denoise: end with one more evaluation, D(x, t_last), which takes off the last of the noise; without it the draws are
        those of the law at t_last.

    x is an event at the first time of the grid: by a `CustomGrid` that starts late, an event noised in part is drawn anew from
    there (SDEdit, Meng et al. 2022, arXiv:2108.01073).
    """

    stepper: Stepper = DPMSolverPlusPlus()
    grid: Grid = LogSNRGrid(60)
    denoise: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, stepper=Stepper, grid=Grid)

    @property
    def num_evaluations(self) -> int:
        """How often the denoiser is evaluated."""
        return self.grid.num_steps * self.stepper.num_evaluations + self.denoise

    def _sample(self, key, denoiser, schedule, x):
        return self._run(key, denoiser, schedule, x, keep=False)[0]

    def trajectory(self, key: Key, denoiser: Denoiser, schedule: Schedule, x: ArrayLike) -> tuple[Array, Array]:
        """The way of ONE event; the arguments are those of `__call__`.

        Returns (times, states), (num_steps + 1,) and (num_steps + 1,) + the shape of x. The last state is not denoised.
        """
        x = _in_single(check_array("x", x))
        _, states = self._run(key, _checked(denoiser, schedule), schedule, x, keep=True)
        assert states is not None
        return jnp.asarray(self.grid.times(schedule), x.dtype), jnp.concatenate([x[None], states])

    def _run(self, key, denoiser, schedule, x, keep):
        times = jnp.asarray(self.grid.times(schedule), x.dtype)

        def step(state, each):
            key, t, s = each
            x, carry = state
            x, carry = self.stepper.step(key, denoiser, schedule, x, t, s, carry)
            return (x, carry), x if keep else None

        keys = jax.random.split(key, self.grid.num_steps)
        (x, _), states = jax.lax.scan(step, (x, self.stepper.init(x)), (keys, times[:-1], times[1:]))
        return denoiser(x, times[-1]) if self.denoise else x, states


@dataclasses.dataclass(frozen=True)
class ReverseODE(Sampler):
    """The probability flow dx/dt = f x - g^2 score / 2, which has the marginals of the SDE (Song et al. 2021, eq. 13).

    By an integrator in t; NaN where the solve fails. The key is not used. Gradients are those of the steps taken, which an
    adaptive integrator chooses for x alone: where the score is steep at the low end (`VariancePreserving`), take
    `FixedSteps` or `Steps` to differentiate through it.
    """

    integrator: Integrator = Adaptive()

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, integrator=Integrator)

    def _sample(self, key, denoiser, schedule, x):
        low, high = schedule.times

        # What the denoiser closes over is passed to the solver, through which gradients then flow.
        def velocity(x, t):
            # Without noise eps is 0 / 0: there the field is that of a moment before.
            t = jnp.where(schedule.sigma(t) == 0, t + 1e-4 * (high - low), t)
            return convert(schedule, t, x, denoiser(x, t), "x0", "velocity")

        pure, constants = jax.closure_convert(velocity, x, jnp.asarray(high, x.dtype))

        def field(t, x, shared, each):
            return pure(x, jnp.asarray(t, x.dtype), *shared)

        return mark_failed(*self.integrator.solve(field, x, constants, t0=high, t1=low))


@dataclasses.dataclass(frozen=True)
class ReverseSDE(Sampler):
    """The reverse SDE dx = (f x - g^2 score) dt + g dw, by `num_steps` equal steps in t of a Diffrax solver (of Ito type)."""

    steps: SDESteps

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, steps=SDESteps)

    def _sample(self, key, denoiser, schedule, x):
        low, high = schedule.times

        def drift(t, x):
            score = convert(schedule, t, x, denoiser(x, t), "x0", "score")
            return schedule.drift(t) * x - schedule.diffusion(t) ** 2 * score

        return self.steps.solve(key, drift, schedule.diffusion, x, t0=high, t1=low)
