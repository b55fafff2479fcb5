"""Diffusion models: a denoiser learned at random noise levels, sampled by any sampler, scored by its probability flow or a bound.

    x_t = alpha(t) x_0 + sigma(t) eps,  t = 0 data, t = 1 noise;    loss  E[w(t) |eps - eps^(x_t, t)|^2]

(Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456; Kingma et al. 2021, arXiv:2107.00630; Karras et al. 2022,
arXiv:2206.00364.) NCSN, DDPM and the score SDEs are settings of the same parts:

                    schedule                        kind     sampler
    NCSN            VarianceExploding               eps      Steps(AnnealedLangevin(), ...)     (its score is -eps / sigma)
    DDPM            LinearBetas                     eps      Steps(Ancestral(), Uniform(999))       (its last step: denoise)
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

from genmod import denoisers, losses, nets
from genmod.base import Array, Context, Description, Key, Likelihood, Params
from genmod.bijectors.combinators import Chain, before_inner, inner_layer, inner_params
from genmod.bijectors.ode import ProbabilityFlow
from genmod.checks import check_count, check_event, check_function, check_parts, check_positive
from genmod.keys import check_key
from genmod.losses.noise_levels import Simple, TimeSampler, UniformTimes, Weighting
from genmod.models.base import Model, vmap_blocks
from genmod.models.pushforward import Pushforward
from genmod.predictors import Predictor
from genmod.samplers.grids import Grid
from genmod.samplers.reverse_diffusion import Sampler, Steps


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
      flow: its probability flow, a `Flow` from the noise N(0, prior_scale^2) whose bijector is a `bijectors.ProbabilityFlow`
        (it holds the predictor, and how the flow is solved), or a `Chain` of one and of layers towards the data, held as they
        were initialised (`Standardize`): the diffusion is on their latent side. `flow` is a model by itself, of the same
        parameters: it encodes, decodes, and tells how the solves went.
      weighting, times: which noise levels the loss attends to.
      sampler: from noise to data; it draws from the law that log_prob scores up to the error of its steps.
      context_dropout: share of training examples that lose their context, for classifier-free guidance; the network then
        takes `present`, as `nets.Guided` does.
      bound: None: `log_prob` is that of the flow, EXACT, or an ESTIMATE by a random divergence. A `Bound`: a LOWER_BOUND on
        log p of the reverse process. Parameters depend neither on it nor on the sampler.

    Parameters: those of `flow`. Raises ValueError for another bijector or base, for a context_dropout outside [0, 1) or without
    a guided network, and for guidance without a context_dropout.
    """

    flow: Pushforward
    weighting: Weighting = Simple()
    times: TimeSampler = UniformTimes()
    sampler: Sampler = Steps()
    context_dropout: float = 0.0
    bound: Bound | None = None

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, flow=Pushforward, weighting=Weighting, times=TimeSampler, sampler=Sampler)
        if self.bound is not None:
            check_parts(self, bound=Bound)
        schedule = self.predictor.schedule
        if self.flow.base != schedule.prior(self.flow.base.event_shape):
            raise ValueError(
                f"the flow's base must be the prior of the schedule, {schedule.prior(self.event_shape)}, got {self.flow.base}"
            )
        nets.check_guidance(getattr(self.predictor, "network", None), self.context_dropout, self.context_shape)

    @property
    def event_shape(self):
        return self.flow.event_shape

    @property
    def context_shape(self):
        return self.flow.context_shape

    @property
    def likelihood(self):
        return self.flow.likelihood if self.bound is None else Likelihood.LOWER_BOUND

    @property
    def predictor(self) -> Predictor:
        """The network and its schedule."""
        layer = inner_layer(self.flow.bijector)
        if not isinstance(layer, ProbabilityFlow):
            raise ValueError(f"the flow's bijector must be a ProbabilityFlow or a Chain that starts with one, got {layer}")
        return layer.predictor

    def denoise(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """D(x, t, context) of ONE event, on the latent side of the fixed layers: what samplers take."""
        return self.predictor.denoise(inner_params(self.flow.bijector, params["bijector"]), x, t, context)

    def bound_parts(self, params: Params, key: Key, x: Array, context: Context = None) -> losses.BoundParts:
        """The parts of the variational bound of events x, (n,) + event_shape, each (n,), in nats.

        By `bound`, or the limit of infinitely many steps where there is none; the log-determinant of fixed layers counts as
        reconstruction. context: (n,) + context_shape, or one for all.
        """
        x = check_event("x", x, self.event_shape, batched=True)
        context = self.flow._one_context_each(context, x.shape[0])
        keys = jax.random.split(check_key(key), x.shape[0])
        return jax.vmap(functools.partial(self._bound_parts, params), (0, None if context is None else 0, 0))(x, context, keys)

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

        y: (n,) + the shape that `observe` makes of one event, on the side of the data. observe: differentiable; a function of a
        module compiles once. context: (n,) + context_shape, or one for all. By `sampler` with `denoisers.posterior`: by moments,
        which are exact for Gaussian data and an affine `observe`, given `num_iterations` for as many observations.
        Raises ValueError for a y of another shape and for noise_std <= 0, TypeError for an `observe` that is no function.
        """
        check_function(observe=observe)
        check_positive(noise_std=noise_std)
        check_count(num_iterations=num_iterations)
        y = check_event("y", y, None, batched=True)
        context = self.flow._one_context_each(context, y.shape[0])
        return _sample_posterior(self, observe, num_iterations, params, check_key(key), y, noise_std, context)

    def _init(self, key, x, context):
        return self.flow.init(key, x, context)

    def _loss(self, params, key, x, context):
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        predictor, network = self.predictor, inner_params(self.flow.bijector, params["bijector"])
        x0 = before_inner(self.flow.bijector, params["bijector"], x)
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
        )

    def _log_prob(self, params, x, context, key):
        if self.bound is None:
            return self.flow._log_prob(params, x, context, key)
        if key is None:
            raise ValueError("the variational bound is a random draw: pass key=...")
        return -self._bound_parts(params, x, context, key).total

    def _bound_parts(self, params, x, context, key):
        bound, bijector = self.bound or Bound(), self.flow.bijector
        log_det = 0.0
        if isinstance(bijector, Chain):
            x, log_det = Chain(bijector.bijectors[1:]).inverse_and_log_det(params["bijector"][1:], x)
        schedule = self.predictor.schedule
        times = None if bound.grid is None else bound.grid.times(schedule)
        denoiser = functools.partial(self._denoiser, params, context)
        parts = losses.variational_bound(denoiser, schedule, x, key, times=times, num_times=bound.num_times)
        return parts._replace(reconstruction=parts.reconstruction - log_det)

    def _sample(self, params, key, num, context):
        return self._draw(params, key, num, lambda context: functools.partial(self._denoiser, params, context), context)

    def _draw(self, params, key, num, denoiser_of, *given):
        """`num` draws by the denoisers `denoiser_of(*given)` of the rows of what is given."""
        noise_key, step_key = jax.random.split(key)
        _, x, _ = self.flow.draw_base(params, noise_key, num)

        def draw(key, x, *given):
            return self._to_data(params, self.sampler(key, denoiser_of(*given), self.predictor.schedule, x))

        return vmap_blocks(draw, jax.random.split(step_key, num), x, *given)

    def _to_data(self, params, x):
        """One event, through the fixed layers."""
        bijector = self.flow.bijector
        return Chain(bijector.bijectors[1:]).forward(params["bijector"][1:], x) if isinstance(bijector, Chain) else x

    def _denoiser(self, params, context, x, t):
        return self.denoise(params, x, t, context)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample_posterior(model, observe, num_iterations, params, key, y, noise_std, context):
    def denoiser_of(context, y):
        prior = functools.partial(model._denoiser, params, context)
        schedule = model.predictor.schedule
        return denoisers.posterior(
            prior, schedule, lambda x: observe(model._to_data(params, x)), y, noise_std, num_iterations=num_iterations
        )

    return model._draw(params, key, y.shape[0], denoiser_of, context, y)
