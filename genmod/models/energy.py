"""Energy models: p(x) = exp(-E(x)) / Z of real numbers, with E by any network (LeCun et al. 2006).

    log f(x) = -network(x) + log base(x)          minus the energy E(x); without a base, -network(x)

With a base density the network tilts it: Z = E_base[exp(-network)] is finite wherever the network is bounded below. Without one
nothing sees to it that Z is finite. Ways to train, with the same parameters:

    gm.fit(model, x, step=gm.training.ContrastiveStep(model, optimizer, gm.training.ReplayChains(10_000, 128)), key=key)
    gm.fit(gm.models.NoiseContrastive(model, noise), x, key=key)                    # a classifier; it learns log Z, too
    gm.losses.explicit_score_matching(functools.partial(model.score_one, params), x)   # in a loss_fn; Z has no part in it
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import losses, nets
from genmod.core.batching import row_keys, vmap_events
from genmod.core.checks import check, check_count, check_function, check_parts, check_positive
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.event import Real
from genmod.core.params import Fixed
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import as_distribution
from genmod.models.base import Model, as_number, present
from genmod.models.unnormalized import Configuration, UnnormalizedModel
from genmod.samplers import Kernel, mala


class EnergyState(NamedTuple):
    """A chain of an `EnergyModel`: where it is, and the state of the kernel that moves x in units of the data."""

    position: Configuration
    inner: Any


@dataclasses.dataclass(frozen=True)
class EnergyModel(UnnormalizedModel):
    """log f(x) = -network(x), or log base(x) - network(x), up to log Z. Its chain moves x by Langevin steps.

    With a context, f is that of x GIVEN the context, which the chain holds: Z depends on it, and `log_prob` of different contexts
    do not compare.

    Attributes:
      shape: of a datum, real numbers.
      network: a Linen module x -> one number; with a context, (x, context) -> one number.
      base: a Distribution with an exact density, conditional or not, from whose draws chains start; None: none, and chains start
        from independent normals with the means and variances of the data.
      context_shape: of p(x | context).
      kernel_fn: (log_prob_fn, step_size) -> a kernel, such as `samplers.mala`, which leaves p invariant, or `samplers.langevin`,
        which does so for small steps only, and leaves the support of a base that has an end, where f = 0. The parameters do not
        depend on it: one may train with one and sample with another.
      step_size: e of x + e score + sqrt(2 e) z, in units of the variances of the data.
      num_sweeps: steps of the chain whose end is a draw.

    Parameters: {"network", "units": Fixed mean and scale of data, "beta": Fixed factor 1 of the network}, and "base", `Fixed`.
    Those of a base that was trained before go in by `params | {"base": gm.Fixed(its parameters)}`; `beta` goes from 0, the base,
    to 1 in annealing (`inference.normalizer_bracket`) and tempering. Raises ValueError or TypeError for parts that do not fit
    each other; `init` for a network with another output.
    """

    shape: Shape
    network: Any
    base: Distribution | None = None
    context_shape: Shape | None = None
    kernel_fn: Callable[[Callable, float], Kernel] = mala
    step_size: float = 0.1
    num_sweeps: int = 1_000

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        if self.base is not None:
            base = as_distribution(self.base)
            object.__setattr__(self, "base", base)
            _check_exact("base", base, self.event)
            if base.context_shape not in (None, self.context_shape):
                raise ValueError(f"base wants a context of shape {base.context_shape}, the model has {self.context_shape}")
        check_function(kernel_fn=self.kernel_fn)
        check_positive(step_size=self.step_size)
        check_count(num_sweeps=self.num_sweeps)
        super().__post_init__()

    @functools.cached_property
    def event(self):
        return Real(self.shape)

    @property
    def support(self):
        return None if self.base is None else self.base.support

    def log_prob_one(self, params, x, context=None, key=None):
        log_f = -self._network_energy(params, x, context)
        if self.base is None:
            return log_f
        return log_f + self.base.log_prob_one(params["base"].constant, x, self._of_base(context))

    def score_one(self, params: Params, x: Array, context: Context = None) -> Array:
        """grad log p(x) of ONE event, of its shape: minus the gradient of the energy, in which Z has no part."""
        return jax.grad(self.log_prob_one, 1)(params, x, context)

    @over_events
    def score(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """grad log p(x) of events x, any axes + event_shape, in the same shape. Compiled."""
        return self.score_one(params, x, context)  # type: ignore[arg-type]

    def log_density_one(self, params, configuration):
        return self.log_prob_one(params, configuration.x, configuration.context)

    def start_one(self, params, key, x=None, context=None):
        if context is None and self.context_shape is not None:
            raise ValueError(
                f"a chain of p(x | context) wants a context of shape {self.context_shape}: pass it, or train with DataChains or "
                "ReplayChains, which take contexts from the data"
            )
        units = params["units"].constant
        if x is None and self.base is not None:
            x = self.base.sample_one(params["base"].constant, key, self._of_base(context))
        elif x is None:
            x = units["mean"] + units["scale"] * jax.random.normal(key, self.shape, units["mean"].dtype)
        return Configuration(x.astype(units["mean"].dtype), context)

    def kernel(self, params, held=None):
        units = params["units"].constant
        fixed = jnp.array(False) if held is None else held.x

        def place(position, u):
            return jnp.where(fixed, position.x, units["mean"] + units["scale"] * u)

        def inner(position):
            # Held entries have no score: their u wanders freely, is never read, and does not enter the acceptance.
            return self.kernel_fn(lambda u: self.log_prob_one(params, place(position, u), position.context), self.step_size)

        def init(position):
            return EnergyState(position, inner(position).init((position.x - units["mean"]) / units["scale"]))

        def step(key, state):
            after, info = inner(state.position).step(key, state.inner)
            return EnergyState(state.position._replace(x=place(state.position, after.position)), after), info

        return Kernel(init, step)

    def reference(self, params, x, context=None):
        """The base, of log Z = 0: the parameters at beta = 0."""
        if self.base is None or self.context_shape is not None:
            what = "has none" if self.base is None else "has contexts, each with a Z of its own"
            raise ValueError(
                f"annealing goes from the base of an EnergyModel to the model, and this one {what}; give it a base, such as "
                "gm.flows.affine(event_shape), or take the integral of exp(log_prob)"
            )
        beta = params["beta"].tree
        return params | {"beta": Fixed(jnp.zeros_like(beta))}, jnp.zeros((), beta.dtype)

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        given = None if context is None else context[0]
        std = x.std(0)
        params: dict[str, Any] = {"network": nets.init(self.network, keys[0], *present(x[0], given))}
        params["units"] = Fixed({"mean": x.mean(0), "scale": jnp.where(std > 0, std, 1.0).astype(x.dtype)})
        params["beta"] = Fixed(jnp.ones((), jnp.promote_types(x.dtype, jnp.float32)))
        if self.base is not None:
            params["base"] = Fixed(self.base._init(keys[1], x, self._of_base(context)))
        jax.eval_shape(lambda: self._network_energy(params, x[0], given))
        return params

    def _network_energy(self, params: Params, x: Array, context: Context) -> Array:
        energy = as_number("network", nets.apply(self.network, params["network"], *present(x, context)))
        return params["beta"].constant * energy.astype(jnp.promote_types(energy.dtype, jnp.float32))

    def _of_base(self, context: Context) -> Context:
        return None if self.base is None or self.base.context_shape is None else context


@dataclasses.dataclass(frozen=True)
class NoiseContrastive(Model):
    """A model known up to a constant, trained as a classifier of data and noise, with its log Z as one more parameter.

    The loss is `losses.noise_contrastive`, whose minimum over all functions is p = the law of the data, normalised. That log Z is
    no better than the training: `log_prob`, log f less log Z, stays UNNORMALIZED. The less noise and data differ, the better.

    Attributes:
      model: an `UnnormalizedModel` without a context, such as an `EnergyModel`.
      noise: a Distribution of the same events with an EXACT density and draws: a flow, a mixture, a density.
      num_noise: draws of noise for each datum, fresh in every step.

    Parameters: {"model": of the model, "log_normalizer": log Z, "noise": `Fixed`}. Those of noise that was trained before go in
    by `params | {"noise": gm.Fixed(its parameters)}`. `init` takes the log Z at which the median datum could as well be
    noise. Raises ValueError or TypeError for parts that do not fit.
    """

    model: UnnormalizedModel
    noise: Distribution
    num_noise: int = 1
    likelihood = Likelihood.UNNORMALIZED
    reparameterized = False

    def __post_init__(self):
        check_parts(self, model=UnnormalizedModel, noise=Distribution)
        check_count(num_noise=self.num_noise)
        _check_exact("noise", self.noise, self.model.event)
        for name, part in (("model", self.model), ("noise", self.noise)):
            if part.context_shape is not None:
                raise ValueError(f"{name} must have no context, got one of shape {part.context_shape}: there is one Z to learn")
        super().__post_init__()

    @property
    def event(self):
        return self.model.event

    @property
    def support(self):
        return self.model.support

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        own, noise = self.model._init(keys[0], x, None), self.noise._init(keys[1], x, None)

        def log_ratio(x):
            return self.model.log_prob_one(own, x) - self.noise.log_prob_one(noise, x)

        return {"model": own, "log_normalizer": jnp.median(vmap_events(log_ratio)(x)), "noise": Fixed(noise)}

    def loss(self, params, key, batch, *, step=None):
        x, _, weight = self.read(batch)
        noise = params["noise"].constant
        draws = vmap_events(lambda key: self.noise.sample_one(noise, key))(row_keys(key, self.num_noise * x.shape[0]))
        log_prob_fn = functools.partial(self.log_prob_one, params)
        return losses.noise_contrastive(log_prob_fn, functools.partial(self.noise.log_prob_one, noise), x, draws, weight=weight)

    def log_prob_one(self, params, x, context=None, key=None):
        return self.model.log_prob_one(params["model"], x) - params["log_normalizer"]

    def sample_one(self, params, key, context=None):
        return self.model.sample_one(params["model"], key)


def _check_exact(name: str, law: Distribution, event: Any) -> None:
    """Raises ValueError unless the part `name` has an exact density of these events."""
    if law.likelihood is not Likelihood.EXACT:
        raise ValueError(
            f"{name} must have an EXACT log_prob, such as a flow or a density has; that of {type(law).__name__} is "
            f"{law.likelihood.name}"
        )
    check(law.event == event, f"{name} must be a law of {event}, got one of {law.event}")
