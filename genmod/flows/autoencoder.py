"""`variational_autoencoder`: the parts of a `models.VAE` that most begin with."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from genmod import nets
from genmod.bijectors.base import Bijector
from genmod.core.checks import check_count, check_shape, check_widths
from genmod.core.distribution import Distribution
from genmod.core.types import Shape
from genmod.densities import Head, NormalHead
from genmod.flows.layers import Activation
from genmod.flows.posteriors import amortized_posterior
from genmod.losses.variational import ELBO, Objective
from genmod.models.vae import VAE


def variational_autoencoder(
    event_shape: Shape,
    latent_dim: int,
    *,
    head: Head = NormalHead(),
    hidden_sizes: Sequence[int] = (400, 400),
    activation: Activation = jax.nn.relu,
    layer: Bijector | None = None,
    num_layers: int = 4,
    prior: Distribution | None = None,
    objective: Objective = ELBO(),
    encoder: Any = None,
    decoder: Any = None,
    context_shape: Shape | None = None,
    dtype: Any = None,
) -> VAE:
    """A VAE with a Gaussian posterior, or one by flows (Kingma & Welling 2013, arXiv:1312.6114).

        model = gm.flows.variational_autoencoder((28, 28, 1), 50, head=gm.densities.BernoulliHead(), hidden_sizes=(200, 200))

    Args:
      event_shape: of a datum. latent_dim: entries of z, a vector.
      head: the law of x given z.
      hidden_sizes, activation, dtype: of two multilayer perceptrons, unless you give your own; the decoder has them in reverse.
      layer, num_layers: of the flow behind the Gaussian, as of `amortized_posterior`; the context of a layer that has one is of
        shape `hidden_sizes[-1:]`.
      prior: of z; None: standard normal.
      objective: see `VAE`.
      encoder: a Linen module x -> features, a vector of `hidden_sizes[-1]` (`nets.ConvEncoder` for images).
      decoder: a Linen module z -> event_shape + (head.num_params,) raw numbers (`nets.ConvDecoder` for images).
      context_shape: of p(x | context); (num_classes,) for class labels.

    Raises ValueError or TypeError for sizes that are no integers >= 1, and for parts that do not fit each other.
    """
    event_shape, hidden_sizes = check_shape("event_shape", event_shape, least=1), check_widths("hidden_sizes", hidden_sizes)
    check_count(latent_dim=latent_dim)
    if not hidden_sizes:
        raise ValueError("hidden_sizes must hold at least one width, got none")
    num_raw = math.prod(event_shape) * head.num_params
    encoder = encoder or nets.FlatNet(nets.MLP(hidden_sizes, activation, dtype=dtype))
    decoder = decoder or nets.FlatNet(nets.MLP(hidden_sizes[::-1], activation, dtype=dtype), num_raw)
    law = amortized_posterior((latent_dim,), hidden_sizes[-1:], layer, num_layers)
    return VAE(event_shape, encoder, law, decoder, head, prior, objective, context_shape)  # type: ignore[arg-type]
