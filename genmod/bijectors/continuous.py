"""Continuous normalizing flows: the flow map of an ordinary differential equation as a bijector.

`CNF` is that of any network, `ProbabilityFlow` that of a diffusion's denoiser.

    dx/dt = v(x, t, context),  x(0) = z the latent event,  x(1) = x the data event
    log |det dx/dz| = int_0^1 div v(x(t), t) dt,      div v = tr dv/dx

(Chen et al. 2018, arXiv:1806.07366, eq. 8: the instantaneous change of variables.) Time runs from noise at t = 0 to data at
t = 1; the inverse integrates the same field from 1 to 0. Map and log-determinant are solved together, and both are as
accurate as the integrator's tolerances.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genmod import nets
from genmod.bijectors.base import InfoBijector
from genmod.core.checks import check_parts, check_time
from genmod.core.distribution import Likelihood
from genmod.core.numerics import same_precision
from genmod.core.types import Array, Context, Params, Shape
from genmod.denoising.predictors import Predictor
from genmod.dynamics import Adaptive, Integrator
from genmod.dynamics.divergence import Divergence, DivergenceEstimator, Exact

KINETIC_ENERGY = "kinetic_energy"
JACOBIAN_NORM = "jacobian_norm"


class ContinuousFlow(InfoBijector, abc.ABC):
    """The flow map of a vector field, from t = 0 (latent) to t = 1 (data); an event of any shape.

    Attributes:
      integrator: `dynamics.Adaptive` or `dynamics.FixedSteps`.
      divergence: `Exact()`, or `Hutchinson` or `HutchPlusPlus`, which make the log-determinant an estimate that wants a key.
      track: integrals along the path to report in the info, the regularisers of RNODE (Finlay et al. 2020, arXiv:2002.02798,
        eqs. 5, 8): "kinetic_energy", int |v|^2 dt, and "jacobian_norm", int |dv/dx|_F^2 dt (estimated with the
        divergence's own probes; left out where no log-determinant is asked for). They do not influence the steps.

    Its info holds what the integrator reports; of an estimate also "log_det_variance", that of the mean over its probes (NaN
    for one).
    Raises ValueError for a field whose output has another shape than its input, and for an estimate without a key.
    """

    onto_reals = True
    integrator: Integrator
    divergence: DivergenceEstimator
    track: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, integrator=Integrator, divergence=DivergenceEstimator)
        unknown = set(self.track) - {KINETIC_ENERGY, JACOBIAN_NORM}
        if unknown:
            raise ValueError(f"track must name {KINETIC_ENERGY!r} or {JACOBIAN_NORM!r}, got {sorted(unknown)}")

    @property
    def likelihood(self):
        return Likelihood.EXACT if self.divergence.exact else Likelihood.ESTIMATE

    @abc.abstractmethod
    def velocity(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """v(x, t, context) of one event.

        Args:
          params: of this flow.
          x: one event on the way. t: one time in [0, 1]. context: of the event.
        """

    def divergence_one(self, params: Params, x: Array, t: Array, context: Context, probes: Any) -> Divergence:
        """v and its divergence at one event, by `divergence`; an optional hook, for fields that know their own.

        Args:
          params, x, t, context: as in `velocity`. probes: of the divergence; None where it is exact.
        """
        return self.divergence(lambda x: self.velocity(params, x, t, context), x, probes)

    def trajectory(self, params: Params, z: Array, context: Context = None, *, num_times: int = 20) -> Array:
        """The path of one latent event to the data, (num_times,) + event shape.

        Args:
          params: of this flow.
          z: where the path begins. context: of the event.
          num_times: how many equally spaced times from 0 to 1.
        """

        def field(t, x, params, context):
            return self.velocity(params, x, t, context)

        return self.integrator.trajectory(field, z, params, context, num_times=num_times)

    def _move(self, params, event, context, key, inverse, log_det):
        t0, t1 = (1.0, 0.0) if inverse else (0.0, 1.0)
        divergence = self.divergence
        if log_det and key is None and not divergence.exact:
            raise ValueError(f"{type(divergence).__name__} estimates the log-determinant: pass key=...")
        dtype = jnp.promote_types(event.dtype, jnp.float32)
        begin, time = event.astype(dtype), jnp.asarray(t0, dtype)
        probes = None
        if log_det and key is not None:
            probes = divergence.probes(key, lambda x: self.velocity(params, x, time, context), begin)

        def field(t, state, params, each):
            x, *_ = state
            context, probes = each
            if not log_det:
                value = self.velocity(params, x, t, context)
                return value, (), self._tracked(value, None)
            value, estimates, squared_norm = self.divergence_one(params, x, t, context, probes)
            return value, estimates, self._tracked(value, squared_norm)

        start = (
            begin,
            jnp.zeros(divergence.num_estimates, dtype) if log_det else (),
            {name: jnp.zeros((), dtype) for name in self.track if log_det or name != JACOBIAN_NORM},
        )
        end, info = self.integrator.solve(
            field, start, params, (context, probes), t0=t0, t1=t1, controlled=lambda s: (s[0], _mean_last(s[1]))
        )
        x, estimates, tracked = end
        info |= {name: jnp.abs(value) for name, value in tracked.items()}  # positive in either direction
        if not log_det:
            return x.astype(event.dtype), jnp.zeros((), dtype), info
        if not divergence.exact:  # NaN for one probe, which cannot know
            info["log_det_variance"] = jnp.var(estimates, ddof=1) / divergence.num_estimates
        return x.astype(event.dtype), jnp.mean(estimates), info

    def _tracked(self, value, squared_norm):
        integrands = {KINETIC_ENERGY: jnp.sum(value**2), JACOBIAN_NORM: squared_norm}
        return {name: integrands[name] for name in self.track if integrands[name] is not None}


@dataclasses.dataclass(frozen=True)
class CNF(ContinuousFlow):
    """The flow map of a network; see `ContinuousFlow` for integrator, divergence, track and what is raised.

    Attributes:
      field: a Flax Linen module v(x, t) -> array of the shape of x, or v(x, t, context) with a context; t is a scalar.
      context_shape: shape of the context, None without one.
    """

    field: Any
    integrator: Integrator = Adaptive()
    divergence: DivergenceEstimator = Exact()
    context_shape: Shape | None = None
    track: tuple[str, ...] = ()
    reads_data = False

    def velocity(self, params: Params, x: Array, t: Array, context: Context = None, **options: Any) -> Array:
        """v(x, t, context) of one event.

        Args:
          params: of the field.
          x: one event on the way. t: one time in [0, 1]. context: of the event.
          options: keywords of the module.

        Raises ValueError for a t outside [0, 1], and for a field whose output has another shape than x.
        """
        t = check_time(t)
        context = same_precision(context, x)
        inputs = (x, t) if context is None else (x, t, context)
        velocity = nets.apply(self.field, params, *inputs, **options)
        if velocity.shape != x.shape:
            raise ValueError(f"the field must return the shape of its input, {x.shape}; {self.field} gave {velocity.shape}")
        return velocity.astype(x.dtype)

    def _init(self, key, x, context):
        time = jnp.zeros((), x.dtype)
        own = None if context is None else same_precision(context[0], x)
        inputs = (x[0], time) if own is None else (x[0], time, own)
        params = nets.init(self.field, key, *inputs)
        jax.eval_shape(lambda: self.velocity(params, x[0], time, own))
        return params


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow(ContinuousFlow):
    """The probability flow of a diffusion, dx/dt = f x - g^2 score / 2, from its noise to its data (Song et al. 2021,
    arXiv:2011.13456, eq. 13). See `ContinuousFlow` for integrator, divergence, track and what is raised.

    Attributes:
      predictor: whose score it follows. Diffusion's time goes from the high to the low end of `schedule.times` as this one
        goes from 0 to 1.
    """

    predictor: Predictor
    integrator: Integrator = Adaptive()
    divergence: DivergenceEstimator = Exact()
    track: tuple[str, ...] = ()
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, predictor=Predictor)

    @property
    def context_shape(self):
        return self.predictor.context_shape

    def velocity(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        low, high = self.predictor.schedule.times
        time = high * (1.0 - t) + low * t
        velocity = (low - high) * self.predictor.velocity(params, x, time, same_precision(context, x))
        if velocity.shape != x.shape:
            raise ValueError(f"the predictor must return the shape of its input, {x.shape}, got {velocity.shape}")
        return velocity

    def _init(self, key, x, context):
        return self.predictor.init(key, x[0], None if context is None else same_precision(context[0], x))


def _mean_last(estimates):
    return jnp.mean(estimates, -1) if isinstance(estimates, jax.Array) else ()
