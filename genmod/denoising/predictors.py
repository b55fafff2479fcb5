"""Denoisers with parameters: a network that sees a noised event and its noise level, and what it says of the data.

    D(x, t) = E[x_0 | x_t = x]  from  F(x / sqrt(alpha^2 d^2 + sigma^2), c(t), context),  c = -lambda / 8

F predicts x0, eps, v, ... (`denoising.Kind`); d is the standard deviation of the data. The network reads the event normalised
to about unit variance and the log signal-to-noise ratio lambda, not the time (c is EDM's log(sigma) / 4): under another
schedule the same parameters denoise as before.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genmod import nets
from genmod.core.checks import check_context_shape, check_function, check_parts, check_positive
from genmod.core.description import Description
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.denoising.denoisers import Denoiser
from genmod.denoising.schedules import Kind, Schedule, VariancePreserving, check_kinds, check_schedule, convert


class Predictor(Description, abc.ABC):
    """A denoiser with parameters.

    Attributes:
      schedule: of the noise. kind: what `predict` returns. data_scale: standard deviation of the data, d.
      context_shape: shape of the context, None without one.
    """

    schedule: Schedule
    kind: Kind = "x0"
    data_scale: float = 1.0
    context_shape: Shape | None = None

    def __post_init__(self):
        super().__post_init__()
        check_context_shape(self)

    @abc.abstractmethod
    def init(self, key: Key, x: Array, context: Context = None) -> Params:
        """Parameters from one example event and its context."""

    @abc.abstractmethod
    def predict(self, params: Params, x: Array, t: Array, context: Context = None, **options: Any) -> Array:
        """The prediction, of kind `kind`, for ONE event.

        Args:
          x: the noised event. t: its time, a scalar.
          context: of context_shape, None without one.
          options: keywords for the network, such as `present` of `nets.Guided`.

        Returns an array of the shape of x.
        """

    def denoise(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """D(x, t) = E[x_0 | x_t = x] of ONE event; the arguments are those of `predict`."""
        return self._as("x0", params, x, t, context)

    def score(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """grad log p_t(x) of ONE event; the arguments are those of `predict`."""
        return self._as("score", params, x, t, context)

    def velocity(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """dx/dt of the probability flow at ONE event, in diffusion's time; the arguments are those of `predict`."""
        return self._as("velocity", params, x, t, context)

    def _as(self, target, params, x, t, context):
        value = self.predict(params, x, t, context)
        return convert(self.schedule, t, x, value, self.kind, target, data_scale=self.data_scale)


@dataclasses.dataclass(frozen=True)
class Learned(Predictor):
    """A denoiser that is a network.

    Attributes:
      network: a Flax Linen module (x, c) -> array of the shape of x, or (x, c, context); c is a scalar.
      schedule: of the noise. kind: what the network predicts.
      data_scale: standard deviation of the data, by which the network's input is normalised.
      context_shape: shape of the context, None without one.

    Raises ValueError for an unknown kind, for a data_scale that is not positive, for a schedule whose log-SNR is not finite at
    both ends, and for a network whose output has another shape than x.
    """

    network: Any
    schedule: Schedule = VariancePreserving()
    kind: Kind = "edm"
    data_scale: float = 1.0
    context_shape: Shape | None = None

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, schedule=Schedule)
        check_kinds(kind=self.kind)
        check_positive(data_scale=self.data_scale)
        check_schedule(self.schedule)
        with jax.ensure_compile_time_eval():
            ends = self.schedule.log_snr(jnp.asarray(self.schedule.times, float))
            if not jnp.isfinite(ends).all():
                raise ValueError(
                    f"the log signal-to-noise ratio, which the network sees, must be finite at both ends of times="
                    f"{self.schedule.times}, got {ends}: give {type(self.schedule).__name__} times inside of them"
                )

    def init(self, key, x, context=None):
        time = jnp.asarray(self.schedule.times[1], x.dtype)
        params = nets.init(self.network, key, *self._inputs(x, time, context))
        jax.eval_shape(lambda: self.predict(params, x, time, context))
        return params

    def predict(self, params, x, t, context=None, **options):
        value = nets.apply(self.network, params, *self._inputs(x, t, context), **options)
        if value.shape != x.shape:
            raise ValueError(f"the network must return the shape of its input, {x.shape}; {self.network} gave {value.shape}")
        return value.astype(x.dtype)

    def _inputs(self, x, t, context):
        scale = jnp.sqrt((self.schedule.alpha(t) * self.data_scale) ** 2 + self.schedule.sigma(t) ** 2)
        inputs = x / scale, -self.schedule.log_snr(t) / 8.0
        return inputs if context is None else (*inputs, context)


@dataclasses.dataclass(frozen=True)
class Known(Predictor):
    """A denoiser without parameters: `denoiser_of(schedule)` returns D, (x, t) -> x_0, as those of
    `gm.denoising.denoisers` do.

    In a `Diffusion` it makes the exact model of a law in closed form, against which samplers and likelihoods are tested.
    """

    denoiser_of: Callable[[Schedule], Denoiser]
    schedule: Schedule = VariancePreserving()

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, schedule=Schedule)
        check_function(denoiser_of=self.denoiser_of)

    def init(self, key, x, context=None):
        return {}

    def predict(self, params, x, t, context=None, **options):
        return self.denoiser_of(self.schedule)(x, t)
