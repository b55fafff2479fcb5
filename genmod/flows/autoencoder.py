"""Autoencoders of the parts that most begin with: of one level of latents, of several, and of codes."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from genmod import nets
from genmod.bijectors.base import Bijector
from genmod.core.checks import check_count, check_shape, check_widths
from genmod.core.distribution import Distribution
from genmod.core.types import Shape
from genmod.densities import Amortized, Factorized, Head, Normal, NormalHead
from genmod.flows.layers import Activation
from genmod.flows.posteriors import amortized_posterior
from genmod.losses.variational import ELBO, Objective
from genmod.models.hierarchical_vae import HierarchicalVAE, LatentLevel
from genmod.models.vae import VAE
from genmod.models.vector_quantized import VQVAE


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
    event_shape, hidden_sizes = _checked(event_shape, hidden_sizes)
    check_count(latent_dim=latent_dim)
    num_raw = math.prod(event_shape) * head.num_params
    encoder = encoder or nets.FlatNet(nets.MLP(hidden_sizes, activation, dtype=dtype))
    decoder = decoder or nets.FlatNet(nets.MLP(hidden_sizes[::-1], activation, dtype=dtype), num_raw)
    law = amortized_posterior((latent_dim,), hidden_sizes[-1:], layer, num_layers)
    return VAE(event_shape, encoder, law, decoder, head, prior, objective, context_shape)  # type: ignore[arg-type]


def hierarchical_autoencoder(
    event_shape: Shape,
    latent_dims: Sequence[int],
    *,
    head: Head = NormalHead(),
    hidden_sizes: Sequence[int] = (400, 400),
    activation: Activation = jax.nn.relu,
    objective: Objective = ELBO(),
    encoder: Any = None,
    decoder: Any = None,
    context_shape: Shape | None = None,
    dtype: Any = None,
) -> HierarchicalVAE:
    """A VAE with levels of Gaussian latents and top-down inference (Sonderby et al. 2016, arXiv:1602.02282).

        model = gm.flows.hierarchical_autoencoder((28, 28, 1), (32, 16), head=gm.densities.BernoulliHead())

    Args:
      event_shape: of a datum.
      latent_dims: entries of z_1, ..., z_L, the lowest level first.
      head: the law of x given the latents.
      hidden_sizes, activation, dtype: of the multilayer perceptrons of every level; those that go down have them in reverse. A
        posterior sees the features of its level and the state through one layer of `hidden_sizes[-1]`.
      objective: see `HierarchicalVAE`.
      encoder: of the lowest level, a Linen module x -> features of any shape (`nets.ConvEncoder` for images).
      decoder: of the lowest level, a Linen module (z_1, state) -> event_shape + (head.num_params,) raw numbers; with one level
        and no context z_1 -> raw numbers.
      context_shape: of p(x | context); (num_classes,) for class labels.

    Raises ValueError or TypeError for sizes that are no integers >= 1, and for parts that do not fit each other.
    """
    event_shape, hidden_sizes = _checked(event_shape, hidden_sizes)
    latent_dims = _checked_widths("latent_dims", latent_dims)
    num_raw, top = math.prod(event_shape) * head.num_params, len(latent_dims) - 1

    def mlp(sizes, num_outputs=None):
        return nets.FlatNet(nets.MLP(sizes, activation, dtype=dtype), num_outputs)

    levels = []
    for i, dim in enumerate(latent_dims):
        state_shape = hidden_sizes[:1] if i < top else context_shape  # that of the net above, whose widths are in reverse
        up = encoder if i == 0 and encoder is not None else mlp(hidden_sizes)
        down = mlp(hidden_sizes[::-1], num_raw if i == 0 else None)
        down = decoder if i == 0 and decoder is not None else down
        prior = Normal((dim,)) if i == top else Amortized(Factorized(NormalHead(), (dim,)), hidden_sizes[:1])
        merge = None if state_shape is None else mlp(hidden_sizes[-1:])
        levels.append(LatentLevel(up, amortized_posterior((dim,), hidden_sizes[-1:]), prior, down, merge))
    return HierarchicalVAE(event_shape, tuple(levels), head, objective, context_shape)


def vector_quantized_autoencoder(
    event_shape: Shape,
    num_codes: int,
    *,
    positions: Shape = (16,),
    code_dim: int = 8,
    head: Head = NormalHead(),
    hidden_sizes: Sequence[int] = (400, 400),
    activation: Activation = jax.nn.relu,
    prior: Distribution | None = None,
    commitment: float = 0.25,
    encoder: Any = None,
    decoder: Any = None,
    context_shape: Shape | None = None,
    dtype: Any = None,
) -> VQVAE:
    """A VQ-VAE of multilayer perceptrons (van den Oord et al. 2017, arXiv:1711.00937).

        model = gm.flows.vector_quantized_autoencoder((28, 28, 1), 64, head=gm.densities.BernoulliHead())

    Args:
      event_shape: of a datum.
      num_codes, positions, code_dim: of the codebook and of the codes of a datum, see `VQVAE`.
      head: the law of x given its codes.
      hidden_sizes, activation, dtype: of the two networks, unless you give your own; the decoder has them in reverse.
      prior, commitment: see `VQVAE`.
      encoder: a Linen module x -> positions + (code_dim,) features.
      decoder: a Linen module positions + (code_dim,) -> event_shape + (head.num_params,) raw numbers.
      context_shape: of p(x | context); (num_classes,) for class labels.

    Raises ValueError or TypeError for sizes that are no integers >= 1, and for parts that do not fit each other.
    """
    event_shape, hidden_sizes = _checked(event_shape, hidden_sizes)
    positions = check_shape("positions", positions, least=1)
    check_count(code_dim=code_dim)
    num_raw, num_features = math.prod(event_shape) * head.num_params, math.prod(positions) * code_dim
    encoder = encoder or nets.FlatNet(nets.MLP(hidden_sizes, activation, dtype=dtype), num_features)
    decoder = decoder or nets.FlatNet(nets.MLP(hidden_sizes[::-1], activation, dtype=dtype), num_raw)
    return VQVAE(
        event_shape,
        encoder,
        decoder,
        head,
        positions,
        num_codes,
        code_dim,
        prior,  # type: ignore[arg-type]
        commitment,
        context_shape,
    )


def _checked(event_shape: Shape, hidden_sizes: Sequence[int]) -> tuple[Shape, Shape]:
    return check_shape("event_shape", event_shape, least=1), _checked_widths("hidden_sizes", hidden_sizes)


def _checked_widths(name: str, widths: Sequence[int]) -> Shape:
    checked = check_widths(name, widths)
    if not checked:
        raise ValueError(f"{name} must hold at least one width, got none")
    return checked
