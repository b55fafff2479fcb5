"""Posteriors q(z | features) for amortised inference: Gaussians, and flows whose parameters or whose networks see the features.

    amortized_posterior(shape, context_shape)           a diagonal Gaussian (Kingma & Welling 2013, arXiv:1312.6114)
    ... (..., Planar(), 16), Radial(), Sylvester()      flows whose parameters all come from the encoder (Rezende & Mohamed 2015,
                                                        arXiv:1505.05770; van den Berg et al. 2018, arXiv:1803.05649)
    ... (..., iaf_layer(...), 4), coupling_layer(...)   flows whose networks read the features (Kingma et al. 2016,
                                                        arXiv:1606.04934)

Every draw comes with its log q in one pass of the cheap direction, z_0 -> z.
"""

from collections.abc import Sequence

import jax

from genmod import nets
from genmod.bijectors import (
    Affine,
    Autoregressive,
    Chain,
    Coupling,
    Permutation,
    Repeat,
    Reverse,
    Transformer,
    random_order,
)
from genmod.bijectors.base import Bijector
from genmod.core.checks import check_count, check_shape
from genmod.core.distribution import Distribution
from genmod.core.types import Shape
from genmod.densities import Amortized, Factorized, FullNormal, NormalHead
from genmod.flows.layers import Activation, check_vector
from genmod.models.flow import Flow


def amortized_posterior(
    latent_shape: Shape, context_shape: Shape, layer: Bijector | None = None, num_layers: int = 4
) -> Distribution:
    """q(z | features), a diagonal Gaussian of the features pushed through `num_layers` of `layer`.

    Args:
      latent_shape: of z. context_shape: of the features.
      layer: a bijector that reads the features (context_shape), or one without a context, whose parameters then are linear in
        them. None: the Gaussian alone.
      num_layers: how many of it.

    Raises ValueError for sizes below one, and for a layer of another context.
    """
    latent_shape = check_shape("latent_shape", latent_shape, least=1)
    gaussian = Factorized(NormalHead(), latent_shape)  # of bounded log-scales: an unusual datum shall not overflow
    if layer is None:
        return Amortized(gaussian, context_shape)
    check_count(num_layers=num_layers)
    if layer.context_shape is not None:
        return Flow(Repeat(layer, num_layers), Amortized(gaussian, context_shape))
    return Amortized(Flow(Repeat(layer, num_layers), gaussian), context_shape)


def full_gaussian_posterior(latent_shape: Shape, context_shape: Shape) -> Distribution:
    """A Gaussian whose mean and Cholesky factor are linear in the features."""
    return Amortized(FullNormal(latent_shape), context_shape)


def iaf_layer(
    latent_shape: Shape, context_shape: Shape, hidden_sizes: Sequence[int] = (128,), activation: Activation = jax.nn.elu
) -> Bijector:
    """An inverse autoregressive layer that reads the features, and reverses the order for the next (arXiv:1606.04934, alg. 1)."""
    check_vector(latent_shape)
    network = nets.MADE(hidden_sizes, activation)
    return Chain((Autoregressive(Affine(), network, context_shape=context_shape), Reverse()))


def coupling_layer(
    latent_shape: Shape,
    context_shape: Shape,
    hidden_sizes: Sequence[int] = (128,),
    activation: Activation = jax.nn.relu,
    *,
    transformer: Transformer = Affine(),
    seed: int = 0,
) -> Bijector:
    """A coupling that reads the features, and a random permutation: RealNVP with `Affine()`, a neural spline flow with
    `RationalQuadraticSpline()` as `transformer`."""
    dim = check_vector(latent_shape)
    layer = Coupling(transformer, nets.MLP(hidden_sizes, activation), dim // 2, context_shape)
    return Chain((layer, Permutation(random_order(dim, seed)))) if dim > 1 else layer
