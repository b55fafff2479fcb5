"""Variational autoencoders: p(x) = int p(z) p(x | z) dz, trained with q(z | x) through a bound (Kingma & Welling 2013,
arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082).

    log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z))

A VAE is five parts, none of which is special to Gaussians: a prior, any `Distribution`; an encoder, a network from x to features;
a posterior, any conditional `Distribution` of z given the features; a decoder, a network from z to raw numbers; and a `Head`, the
law of x given these.

    posterior = gm.densities.Amortized(gm.densities.Factorized(gm.densities.NormalHead(), (2,)), (64,))
    model = gm.models.VAE((64,), encoder, posterior, decoder, gm.densities.BernoulliHead())
"""

import dataclasses
import math
from typing import Any

import jax
from jax.typing import ArrayLike

from genmod import nets
from genmod.core.batching import vmap_events
from genmod.core.checks import check_parts, check_shape
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.event import Real
from genmod.core.numerics import real
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import Amortized, Head, Normal, VampPrior, as_distribution, kl_one
from genmod.losses.variational import ELBO, Latent, Objective
from genmod.models.base import LatentModel, as_raw, present


@dataclasses.dataclass(frozen=True)
class VAE(LatentModel):
    """A variational autoencoder.

    Attributes:
      shape: of a datum.
      encoder: a Linen module x -> features, of the posterior's context_shape; with a context, (x, context) -> features. It sees
        x as real numbers.
      posterior: q(z | features).
      decoder: a Linen module z -> raw numbers, as many as shape + (head.num_params,) has, of any shape; with a context and
        `decode_context`, (z, context) -> raw numbers.
      head: the law of x given the raw numbers.
      prior: of z; conditional on the model's context where it has a context_shape. None: standard normal. A `VampPrior` is made
        of the posterior.
      objective: what `loss` minimises and `log_prob` is: a LOWER_BOUND, a draw that wants a key. For a posterior that is not
        reparameterised, `ScoreFunctionELBO`.
      context_shape: of p(x | context). decode_context: whether the decoder sees it; where it does not, and the prior does, the
        model is an identifiable VAE (Khemakhem et al. 2020, arXiv:1907.04809).

    Parameters: {"encoder", "posterior", "decoder", "prior"}.
    Raises ValueError for parts that do not fit each other, at the latest by `init`.
    """

    shape: Shape
    encoder: Any
    posterior: Distribution
    decoder: Any
    head: Head
    prior: Distribution = None  # type: ignore[assignment]
    objective: Objective = ELBO()
    context_shape: Shape | None = None
    decode_context: bool = True

    def __post_init__(self):
        check_parts(self, posterior=Distribution, head=Head)
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        prior = Normal(self.posterior.event_shape) if self.prior is None else as_distribution(self.prior)
        object.__setattr__(self, "prior", prior)
        super().__post_init__()
        if self.posterior.context_shape is None:
            raise ValueError("posterior must be conditional on the encoder's features: give it a context_shape, or use Amortized")
        if math.prod(self.posterior.event_shape) == 0:
            raise ValueError(f"the latent must have at least one entry, got shape {self.posterior.event_shape}")
        if prior.event != self.posterior.event:
            raise ValueError(f"prior and posterior must have the same events, got {prior.event} and {self.posterior.event}")
        if prior.context_shape not in (None, self.context_shape):
            raise ValueError(f"prior wants a context of shape {prior.context_shape}, the model has {self.context_shape}")
        for name, law in (("prior", prior), ("posterior", self.posterior)):
            if law.likelihood is not Likelihood.EXACT:
                raise ValueError(
                    f"{name} must have an EXACT log_prob, that of {type(law).__name__} is {law.likelihood.name}, and no bound is "
                    "made of it: of a continuous flow take divergence=Exact(), of a diffusion bound=None"
                )
        if self.objective.wants_reparameterized and not self.posterior.reparameterized:
            raise ValueError(
                f"{type(self.objective).__name__} wants a reparameterised posterior, the gradient would be wrong without a word; "
                f"got {self.posterior}: train with gm.losses.ScoreFunctionELBO(), or relax it (gm.densities.StraightThrough)"
            )

    @property
    def event(self):
        return self.head.event(self.shape)

    @over_events
    def kl(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """KL(q(z | x) || p(z)) by latent dimension, any axes + the shape of the closed form, in nats. Compiled.

        Raises NotImplementedError where no closed form is known.
        """
        found = self.latent_one(params, x, context).kl  # type: ignore[arg-type]
        if found is None:
            raise NotImplementedError(f"KL({type(self.posterior).__name__} || {type(self.prior).__name__}) has no closed form")
        return found

    def encode_one(self, params: Params, x: Array, key: Key, context: Context = None) -> Array:
        """ONE draw of q(z | x)."""
        return self.posterior.sample_one(params["posterior"], key, self.features_one(params, x, context))

    def decode_one(self, params: Params, z: Array, context: Context = None) -> Array:
        """E[x | z] of ONE latent, a float array of event_shape."""
        return self.head.mean(self._raw(params, z, context))

    def _init(self, key, x, context):
        keys = jax.random.split(key, 4)
        seen, given = real(x), None if context is None else context[0]
        encoder = nets.init(self.encoder, keys[0], *present(seen[0], given))
        features = vmap_events(
            lambda x, c: nets.apply(self.encoder, encoder, *present(x, c)), (0, None if context is None else 0)
        )(seen, context)
        if features.shape[1:] != self.posterior.context_shape:
            raise ValueError(
                f"the encoder must give features of the posterior's context_shape, {self.posterior.context_shape}, got "
                f"{features.shape[1:]}"
            )
        z = jax.random.normal(keys[1], (x.shape[0], *self.posterior.event_shape), seen.dtype)
        z = z if isinstance(self.posterior.event, Real) else self.posterior.event.example(x.shape[0])
        posterior = self.posterior._init(keys[1], z, features)
        decoder = nets.init(self.decoder, keys[2], *present(real(z)[0], given if self.decode_context else None))
        prior = self.prior._init(keys[3], x if isinstance(self.prior, VampPrior) else z, context if self._conditional else None)
        params = {"encoder": encoder, "posterior": posterior, "decoder": decoder, "prior": prior}
        jax.eval_shape(lambda: self._raw(params, z[0], given))
        return params

    def sample_joint_one(self, params, key, context=None):
        keys = jax.random.split(key)
        z = self.prior.sample_one(self._prior_params(params), keys[0], context if self._conditional else None)
        return z, self.head.sample(self._raw(params, z, context), keys[1])

    def features_one(self, params, x, context=None):
        return nets.apply(self.encoder, params["encoder"], *present(real(x), context))

    def latent_one(self, params, x, context=None, features=None):
        features = self.features_one(params, x, context) if features is None else features
        posterior, q_params, seen = _at(self.posterior, params["posterior"], features)
        held = jax.lax.stop_gradient((q_params, seen))
        prior_params, given = self._prior_params(params), context if self._conditional else None
        return Latent(
            lambda key: posterior.sample_and_log_prob_one(q_params, key, seen),
            lambda z: self.head.log_prob(self._raw(params, z, context), x).sum(),
            lambda z: self.prior.log_prob_one(prior_params, z, given),
            lambda z: posterior.log_prob_one(held[0], z, held[1]),
            kl_one(posterior, q_params, seen, self.prior, prior_params, given),
            lambda z: posterior.log_prob_one(q_params, z, seen),
            lambda key: self.prior.sample_one(prior_params, key, given),
            features,
            lambda features: self.latent_one(params, x, context, features),
        )

    @property
    def _conditional(self):
        return self.prior.context_shape is not None

    def _raw(self, params, z, context):
        inputs = present(real(z), context if self.decode_context else None)
        return as_raw("the decoder", nets.apply(self.decoder, params["decoder"], *inputs), self.shape, self.head)

    def _prior_params(self, params):
        if not isinstance(self.prior, VampPrior):
            return params["prior"]
        features = jax.vmap(lambda x: self.features_one(params, x))(params["prior"]["inputs"])
        return {"features": features, "posterior": params["posterior"]}


def _at(law: Distribution, params: Params, context: Context) -> tuple[Distribution, Params, Context]:
    """An `Amortized` law at its context, any other as it is: the draw and the KL then share one product, backwards too."""
    return (law.distribution, law.at(params, context), None) if isinstance(law, Amortized) else (law, params, context)
