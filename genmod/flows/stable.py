"""RealNVP as a posterior: draws and their log q in one cheap pass, and layers that keep a reverse KL in high dimensions stable.

See `gm.inference.fit_posterior`, and `genmod.flows.vector` for the common arguments.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from genmod import nets
from genmod.bijectors import LOFT, ActNorm, SoftClippedAffine, conditioned
from genmod.core.types import Shape
from genmod.flows.layers import Activation, coupling, stacked
from genmod.models.flow import Flow


def stable_real_nvp(
    event_shape: Shape,
    num_layers: int = 16,
    *,
    upper: float = 0.1,
    lower: float = 2.0,
    threshold: float = 100.0,
    hidden_sizes: Sequence[int] = (128,),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    seed: int = 0,
    dtype: Any = None,
    spectral_bound: float | None = None,
) -> Flow:
    """RealNVP with softly clipped scales, LOFT, and a last affine layer (Andrade 2024, arXiv:2402.16408).

    The last layer takes location and scale from the batch at `init`; heavy tails come from `base=gm.densities.LearnedStudentT`.

    Args:
      event_shape: (D,). num_layers: couplings.
      upper, lower: limits of the log-scale of a coupling, see `bijectors.SoftClippedAffine`. threshold: of `bijectors.LOFT`.
      spectral_bound: of the hidden kernels of the networks, see `nets.SpectralNorm`; None: they are free.
      The others are common to all flows.
    """
    layer = coupling(SoftClippedAffine(upper, lower), event_shape, hidden_sizes, activation, context_shape, dtype)
    if spectral_bound is not None:
        layer = dataclasses.replace(layer, conditioner=nets.SpectralNorm(layer.conditioner, spectral_bound))
    flow = stacked(layer, event_shape, num_layers, base, False, seed, last=(LOFT(threshold), ActNorm()), unroll=8)
    return dataclasses.replace(flow, bijector=conditioned(flow.bijector))
