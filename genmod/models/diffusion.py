"""Diffusion models: a denoiser learned at random noise levels, sampled by any sampler, scored by its probability flow or a bound.

    x_t = alpha(t) x_0 + sigma(t) eps,  t = 0 data, t = 1 noise;    loss  E[w(t) |eps - eps^(x_t, t)|^2]

(Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456; Kingma et al. 2021, arXiv:2107.00630; Karras et al. 2022,
arXiv:2206.00364.) NCSN, DDPM and the score SDEs are settings of the same parts:

                    schedule                        kind     sampler
    NCSN            VarianceExploding               eps      Steps(AnnealedLangevin(), ...)     (its score is -eps / sigma)
    DDPM            LinearBetas                     eps      Steps(Ancestral(), UniformGrid(999))   (its last step: denoise)
    DDIM            any                             any      Steps(DDIM(), ...)
    score SDE       VariancePreserving, sub-, VE    any      Steps(PredictorCorrector(), ...), ReverseSDE, ReverseODE
    EDM             EDM                             edm      Steps(Heun(), EDMGrid(17)), EDMWeighting, LogNormalTimes
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import losses, nets
from genmod.bijectors import Chain, ProbabilityFlow
from genmod.bijectors.base import Bijector
from genmod.bijectors.chain import inverse_rows
from genmod.bijectors.context import conditioned, inner
from genmod.core.batching import row_keys, vmap_blocks
from genmod.core.checks import (
    check_array,
    check_context,
    check_count,
    check_function,
    check_parts,
    check_positive,
    check_shape,
)
from genmod.core.description import Description
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.event import Real
from genmod.core.info import mark_failed
from genmod.core.keys import check_key
from genmod.core.params import Fixed, check_held
from genmod.core.types import Array, Context, Interval, Key, Params, Shape
from genmod.denoising import Grid, Predictor, Sampler, Steps, denoisers
from genmod.denoising.levels import SimpleWeighting, TimeSampler, UniformTimes, Weighting
from genmod.models.base import Model
from genmod.models.flow import Flow


@dataclasses.dataclass(frozen=True)
class Bound(Description):
    """`log_prob` as minus a draw of the variational bound (`losses.variational_bound`) for each event.

    grid: the chain, each of whose steps is evaluated; None: infinitely many, seen at `num_times` stratified noise levels.
    """

    grid: Grid | None = None
    num_times: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_count(num_times=self.num_times)
        if self.grid is not None:
            check_parts(self, grid=Grid)


@dataclasses.dataclass(frozen=True)
class Diffusion(Model):
    """A diffusion model.

    Attributes:
      process: its probability flow, which holds the predictor and how the flow is solved.
      shape: of an event on the side of the noise.
      data_side: a layer between the diffusion and the data, held as it was initialised (`Standardize`). None: none.
      weighting, times: which noise levels the loss attends to.
      sampler: from noise to data; it draws from the law that log_prob scores up to the error of its steps.
      clip: (low, high) of the data on the latent side of `data_side`, to which samplers cut denoised values at all times
        (`denoisers.clipped`); None: they cut them to three times the range of the initialising batch, and only where there is
        all but no signal (`denoisers.kept_in_range`); (-inf, inf): they do not.
      context_dropout: share of training examples that lose their context, for classifier-free guidance; the network then
        takes `present`, as `nets.Guided` does.
      bound: None: `log_prob` is that of the flow, EXACT, or an ESTIMATE by a random divergence. A `Bound`: a LOWER_BOUND on
        log p of the reverse process. Parameters depend neither on it nor on the sampler.

    `flow` is the probability flow as a `Flow` of the same parameters: it encodes, decodes, and tells how the solves went.
    Raises TypeError for parts of the wrong kind, ValueError for a context_dropout outside [0, 1) or without a guided network, and
    for guidance without a context_dropout.
    """

    process: ProbabilityFlow
    shape: Shape
    data_side: Bijector | None = None
    weighting: Weighting = SimpleWeighting()
    times: TimeSampler = UniformTimes()
    sampler: Sampler = Steps()
    context_dropout: float = 0.0
    bound: Bound | None = None
    clip: Interval | None = None

    own_precision = True

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        super().__post_init__()
        check_parts(self, process=ProbabilityFlow, weighting=Weighting, times=TimeSampler, sampler=Sampler)
        if self.bound is not None:
            check_parts(self, bound=Bound)
        if self.data_side is not None:
            check_parts(self, data_side=Bijector)
        nets.check_guidance(getattr(self.predictor, "network", None), self.context_dropout, self.context_shape)

    @functools.cached_property
    def flow(self) -> Flow:
        """The probability flow, from the schedule's prior to the data."""
        return Flow(self.bijector, self.base)

    @functools.cached_property
    def bijector(self) -> Bijector:
        """The whole map from noise to data: the flow and the data side; a context is standardised."""
        return Chain((self._conditioned, *(() if self.data_side is None else (self.data_side,))))

    @functools.cached_property
    def _conditioned(self) -> Bijector:
        return conditioned(self.process)

    def network_params(self, params: Params) -> Params:
        """The parameters of the predictor among those of the model."""
        return inner(self._conditioned, params["bijector"][0], None)[0]

    def network_context(self, params: Params, context: Context) -> Context:
        """Contexts as the predictor sees them, of any leading axes."""
        return inner(self._conditioned, params["bijector"][0], context)[1]

    @property
    def base(self) -> Distribution:
        """N(0, prior_scale^2), where the schedule ends."""
        return self.predictor.schedule.prior(self.shape)

    @functools.cached_property
    def event(self):
        return Real(self.shape if self.data_side is None else self.data_side.data_shape(self.shape))

    @property
    def context_shape(self):
        return self.process.context_shape

    @property
    def likelihood(self):
        return self.process.likelihood if self.bound is None else Likelihood.LOWER_BOUND

    @property
    def predictor(self) -> Predictor:
        """The network and its schedule."""
        return self.process.predictor

    def denoise(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """D(x, t, context) of ONE event, on the latent side of the data side: what samplers take."""
        return self.predictor.denoise(self.network_params(params), x, t, self.network_context(params, context))

    @over_events
    def bound_parts(
        self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None
    ) -> losses.BoundParts:
        """The parts of the variational bound of events x, any axes + event_shape, each of those axes, in nats. Compiled.

        By `bound`, or the limit of infinitely many steps where there is none; the log-determinant of the data side counts as
        reconstruction. Raises ValueError without a key: the bound is a random draw.
        """
        return self._bound_parts(params, x, context, key)

    def sample_posterior(
        self,
        params: Params,
        key: Key,
        y: ArrayLike,
        observe: Callable[[Array], Array],
        noise_std: ArrayLike,
        context: ArrayLike | None = None,
        *,
        num_iterations: int = 5,
    ) -> Array:
        """Draws of events x given y = observe(x) + noise_std eps, one for each row of y, (n,) + event_shape. Compiled.

        Args:
          y: (n,) + the shape that `observe` makes of one event, on the side of the data.
          observe: differentiable; a function of a module compiles once.
          noise_std: of the noise of y.
          context: (n,) + context_shape, or one for all.
          num_iterations: of the solver, for as many observations.

        By `sampler` with `denoisers.posterior`: by moments, which are exact for Gaussian data and an affine `observe`.
        Raises ValueError for a y of another shape and for noise_std <= 0, TypeError for an `observe` that is no function.
        """
        check_function(observe=observe)
        check_positive(noise_std=noise_std)
        check_count(num_iterations=num_iterations)
        y = check_array("y", y, batched=True)
        context = check_context(type(self).__name__, context, self.context_shape, batch=y.shape[:1], any_batch=True)
        if context is not None:
            context = jnp.broadcast_to(context, (y.shape[0], *(self.context_shape or ())))
        return _sample_posterior(self, observe, num_iterations, params, check_key(key), y, noise_std, context)

    def _init(self, key, x, context):
        params = {"bijector": self.bijector.init_rows(key, x, context)}
        check_held("data_side", params["bijector"][1:])
        return params | {"range": Fixed(denoisers.wide_range(self._latent(params, x)))}

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        predictor, network, context = self.predictor, self.network_params(params), self.network_context(params, context)
        x0 = self._latent(params, x)
        num, dtype = x0.shape[0], jnp.promote_types(x0.dtype, jnp.float32)
        t, weights = self.times(time_key, num, predictor.schedule, dtype)
        eps = jax.random.normal(noise_key, x0.shape, dtype)
        present = jax.random.bernoulli(drop_key, 1.0 - self.context_dropout, (num,)).astype(dtype)

        def predict(x, t, context, present):
            options = {"present": present} if self.context_dropout else {}
            return predictor.predict(network, x, t, context, **options)

        def predictions(x, t):
            return jax.vmap(predict, (0, 0, None if context is None else 0, 0))(x, t, context, present)

        return losses.denoising(
            predictions,
            predictor.schedule,
            x0,
            t,
            eps,
            kind=predictor.kind,
            weighting=self.weighting,
            weights=weights,
            data_scale=predictor.data_scale,
            row_weight=weight,
        )

    def log_prob_info_one(self, params, x, context=None, key=None):
        if self.bound is None:
            return self.flow.log_prob_info_one(params, x, context, key)
        return -self._bound_parts(params, x, context, key).total, {}

    def log_prob_one(self, params, x, context=None, key=None):
        return mark_failed(*self.log_prob_info_one(params, x, context, key))

    def sample_one(self, params, key, context=None):
        return self._draw_one(params, key, functools.partial(self._denoiser, params, context))

    def _bound_parts(self, params, x, context, key):
        if key is None:
            raise ValueError("the variational bound is a random draw: pass key=...")
        bound, log_det = self.bound or Bound(), 0.0
        if self.data_side is not None:
            x, log_det, _ = self.data_side._move(params["bijector"][1], x, None, None, True, True)
        schedule = self.predictor.schedule
        times = None if bound.grid is None else bound.grid.times(schedule)
        denoiser = functools.partial(self._denoiser, params, context)
        parts = losses.variational_bound(denoiser, schedule, x, key, times=times, num_times=bound.num_times)
        return parts._replace(reconstruction=parts.reconstruction - log_det)

    def _draw_one(self, params, key, denoiser):
        """ONE draw, by a denoiser."""
        keys = jax.random.split(key)
        z = self.flow.draw_base_one(params, keys[0])
        if self.clip is not None:
            denoiser = denoisers.clipped(denoiser, *self.clip)
        elif "range" in params:
            denoiser = denoisers.kept_in_range(denoiser, self.predictor.schedule, *params["range"].constant)
        return self._to_data(params, self.sampler(keys[1], denoiser, self.predictor.schedule, z))

    def _latent(self, params, x):
        """Events (n,) + event_shape on the side of the noise."""
        if self.data_side is None:
            return x
        return inverse_rows(self.data_side, jax.lax.stop_gradient(params["bijector"][1]), x, None)

    def _to_data(self, params, x):
        """One event, through the data side."""
        return x if self.data_side is None else self.data_side._move(params["bijector"][1], x, None, None, False, False)[0]

    def _denoiser(self, params, context, x, t):
        return self.denoise(params, x, t, context)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample_posterior(model, observe, num_iterations, params, key, y, noise_std, context):
    def draw(key, y, context):
        denoiser = denoisers.posterior(
            functools.partial(model._denoiser, params, context),
            model.predictor.schedule,
            lambda x: observe(model._to_data(params, x)),
            y,
            noise_std,
            num_iterations=num_iterations,
        )
        return model._draw_one(params, key, denoiser)

    return vmap_blocks(draw, row_keys(key, y.shape[0]), y, context)
