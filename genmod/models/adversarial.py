"""Generative adversarial networks: a generator x = G(z), z ~ p(z), and a critic D(x) that tells data from its samples
(Goodfellow et al. 2014, arXiv:1406.2661).

    latent = gm.densities.Normal((8,))
    gan = gm.models.GAN((2,), latent, gm.nets.FlatNet(gm.nets.MLP((64, 64)), 2), gm.nets.FlatNet(gm.nets.MLP((64, 64)), 1))
    step = gm.training.GameStep(gan, (
        gm.training.Player("critic", gm.call(optax.adam, 1e-3, b1=0.5), num_updates=2),
        gm.training.Player("generator", gm.call(optax.adam, 1e-4, b1=0.5), ema_decay=0.999),
    ))
    fit = gm.fit(gan, x, key=key, step=step)
    gan.sample(fit.params, key, (1_000,))          # of the averaged generator
    gan.judge(fit.params, x)                       # D(x); of the logistic losses an estimate of log p/q

There is no log_prob. What the critic knows of p/q corrects the samples: see `samplers.ratios`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import losses, nets
from genmod.core.batching import row_keys, vmap_events
from genmod.core.checks import check, check_function, check_parts, check_positive
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.event import Real
from genmod.core.numerics import real
from genmod.core.params import trainable
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import as_distribution
from genmod.losses.adversarial import NON_SATURATING, AdversarialLoss, Penalty
from genmod.models.base import GameModel, as_number, present

# The vectors of a spectral norm begin after so many iterations; then each update of the critic is followed by one.
_FIRST_ITERATIONS = 20


@dataclasses.dataclass(frozen=True)
class GAN(GameModel):
    """A generative adversarial network: the game of the players "critic" and "generator".

    Attributes:
      shape: of a datum, real numbers.
      latent: p(z), any `Distribution`; conditional on the model's context where it has a context_shape.
      generator: a Linen module z -> as many numbers as `shape` has, of any shape; with a context, (z, context) -> numbers.
      critic: a Linen module x -> one number; with a context, (x, context) -> one number.
      objective: one of `losses.adversarial`. penalties: functions of that module, or `gm.call` of one with other settings.
      spectral_bound: the largest singular value of each kernel of the critic (Miyato et al. 2018, arXiv:1802.05957); None: they
        are free. The vectors of its power iteration are parameters, `Fixed`, that go on with each update.
      context_shape: of p(x | context).

    Parameters: {"generator": {"latent", "network"}, "critic": {"network"}}, with a bound also "vectors" of the critic.
    Raises ValueError for parts that do not fit each other, at the latest by `init`.
    """

    shape: Shape
    latent: Distribution
    generator: Any
    critic: Any
    objective: AdversarialLoss = NON_SATURATING
    penalties: tuple[Penalty, ...] = ()
    spectral_bound: float | None = None
    context_shape: Shape | None = None
    players = ("critic", "generator")
    likelihood = Likelihood.NONE

    def __post_init__(self):
        object.__setattr__(self, "latent", as_distribution(self.latent))
        object.__setattr__(self, "shape", self.event.shape)
        object.__setattr__(self, "penalties", tuple(self.penalties))
        super().__post_init__()
        check_parts(self, objective=AdversarialLoss)
        check_function(**{f"penalties[{i}]": penalty for i, penalty in enumerate(self.penalties)})
        if self.spectral_bound is not None:
            check_positive(spectral_bound=self.spectral_bound)
        if self.latent.context_shape not in (None, self.context_shape):
            raise ValueError(f"latent wants a context of shape {self.latent.context_shape}, the model has {self.context_shape}")

    @functools.cached_property
    def event(self):
        return Real(self.shape)

    def decode_one(self, params: Params, z: Array, context: Context = None) -> Array:
        """G(z) of ONE latent, an array of event_shape, in at least float32."""
        x = nets.apply(self.generator, params["generator"]["network"], *present(real(z), context))
        num = math.prod(self.shape)
        check(x.size == num, f"the generator must give {num} numbers, those of an event {self.shape}, got {x.shape}")
        return x.reshape(self.shape).astype(jnp.promote_types(x.dtype, jnp.float32))

    def judge_one(self, params: Params, x: Array, context: Context = None) -> Array:
        """D(x) of ONE event, a scalar, in at least float32."""
        return self._judge(self._critic_network(params), x, context)

    @over_events(event=lambda self: self.latent.event)
    def decode(self, params: Params, z: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """G(z) of latents z, any axes + latent.event_shape. Compiled."""
        return self.decode_one(params, z, context)  # type: ignore[arg-type]

    @over_events
    def judge(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """D(x) of events x, any axes + event_shape. Compiled."""
        return self.judge_one(params, x, context)  # type: ignore[arg-type]

    def sample_one(self, params, key, context=None):
        z = self.latent.sample_one(params["generator"]["latent"], key, context if self._conditional else None)
        return self.decode_one(params, z, context)

    def player_loss(self, player, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        keys = jax.random.split(key)
        axes = (None, 0, None if context is None else 0)
        samples = vmap_events(self.sample_one, axes)(params, row_keys(keys[0], x.shape[0]), context)
        critic_fn = functools.partial(self._judge, self._critic_network(params))
        if player == "generator":
            return losses.generator_loss(self.objective, critic_fn, samples, context, sample_weight=weight)
        options = {"key": keys[1], "penalties": self.penalties, "weight": weight, "sample_weight": weight}
        return losses.critic_loss(self.objective, critic_fn, x, samples, context, **options)

    def after_update(self, player, own):
        if player != "critic" or self.spectral_bound is None:
            return own
        return own | {"vectors": nets.spectrally_normalized(own["network"], own["vectors"])[1]}

    def _init(self, key, x, context):
        keys = jax.random.split(key, 5)
        given = None if context is None else context[0]
        z = jax.random.normal(keys[0], (x.shape[0], *self.latent.event_shape), x.dtype)
        z = z if isinstance(self.latent.event, Real) else self.latent.event.example(x.shape[0])
        latent = self.latent._init(keys[1], z, context if self._conditional else None)
        if jax.tree.leaves(trainable(latent)) and not self.latent.reparameterized:
            raise ValueError(f"latent must be reparameterised where it has parameters to train, got {self.latent}")
        generator = nets.init(self.generator, keys[2], *present(real(z)[0], given))
        network = nets.init(self.critic, keys[3], *present(x[0], given))
        params = {"generator": {"latent": latent, "network": generator}, "critic": {"network": network}}
        if self.spectral_bound is not None:
            first = nets.spectral_state(keys[4], network)
            params["critic"]["vectors"] = nets.spectrally_normalized(network, first, num_iterations=_FIRST_ITERATIONS)[1]
        jax.eval_shape(lambda: (self.decode_one(params, z[0], given), self.judge_one(params, x[0], given)))
        return params

    @property
    def _conditional(self):
        return self.latent.context_shape is not None

    def _critic_network(self, params):
        own = params["critic"]
        if self.spectral_bound is None:
            return own["network"]
        return nets.spectrally_normalized(own["network"], own["vectors"], bound=self.spectral_bound)[0]

    def _judge(self, network, x, context):
        output = as_number("the critic", nets.apply(self.critic, network, *present(x, context)))
        return output.astype(jnp.promote_types(output.dtype, jnp.float32))
