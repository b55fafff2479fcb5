"""Flows on images (H, W, C): multi-scale RealNVP and Glow, and the flow of variational dequantisation.

`real_nvp_image` and `glow` are densities of real images in [0, 1] (and a little around it, `AlphaLogit`);
`gm.models.Dequantized(flow, num_levels=256)` makes of one a model of integer images.

Common arguments:
  event_shape: (H, W, C) of an image.
  num_layers: couplings per scale (and kind).
  num_scales: levels of the `MultiScale`; None: as many as the size allows, up to 3.
  hidden_channels, dtype: width and arithmetic of the conditioners, unless you give your own.
  conditioner: a Linen module (H, W, channels) -> features.
  transformer: of the couplings: `Affine()`, a spline, ...
  alpha: of the logit that takes [0, 1] to R; None: no logit, for images that are not in [0, 1].
  context_shape: (K,) for classes, as integers 0 .. K - 1 or one-hot, or for a feature vector; (H, W, K) for an image.
  base: a density of the flat latents, (H W C,), of ours or of Distrax; None: standard normal.

`flow.bijector` is the `MultiScale`, whose `unpack` names the latents of each scale; of a conditional flow it stands within a
`Conditioned`, which standardises contexts.
"""

from collections.abc import Callable
from typing import Any, Literal

from genmod import nets
from genmod.bijectors import (
    ActNorm,
    Affine,
    AlphaLogit,
    Chain,
    Checkerboard,
    Conv1x1,
    Coupling,
    Elementwise,
    Invert,
    MultiScale,
    Permutation,
    Repeat,
    Sigmoid,
    Split,
    Squeeze,
    Transformer,
    conditioned,
)
from genmod.bijectors.base import Bijector
from genmod.core.checks import check_count, check_shape
from genmod.core.types import Shape
from genmod.densities import Normal, as_distribution
from genmod.models.flow import Flow


def glow(
    event_shape: Shape,
    num_layers: int = 16,
    *,
    num_scales: int | None = None,
    hidden_channels: int = 64,
    conditioner: Any = None,
    transformer: Transformer = Affine(),
    linear: Literal["plu", "free"] = "plu",
    alpha: float | None = 0.05,
    context_shape: Shape | None = None,
    base: Any = None,
    dtype: Any = None,
) -> Flow:
    """Glow: per scale a squeeze and `num_layers` steps of actnorm, 1x1 convolution and channel coupling.

    Kingma & Dhariwal 2018, arXiv:1807.03039, fig. 2; published for CIFAR-10 with num_layers=32, num_scales=3,
    hidden_channels=512.

    Args:
      linear: how the 1x1 convolutions are written, as in `Conv1x1`. The others: see the module.
    """
    shape = _image_shape(event_shape)
    check_count(num_layers=num_layers)
    halvings = _halvings(shape)
    num_scales = min(3, max(1, halvings)) if num_scales is None else num_scales
    check_count(num_scales=num_scales)
    network = nets.GlowNet(hidden_channels, dtype=dtype) if conditioner is None else conditioner
    levels = []
    for i in range(num_scales):
        channels = shape[-1] * 2 ** (i + 2)  # a squeeze times 4, a split by 2
        coupling = Coupling(transformer, network, channels // 2, context_shape)
        levels.append(Chain((Repeat(Chain((coupling, Conv1x1(linear), ActNorm())), num_layers), Squeeze())))
    return _multi_scale(shape, levels, Split(network, context_shape), network, alpha, base, context_shape)


def real_nvp_image(
    event_shape: Shape,
    num_layers: int = 3,
    *,
    num_scales: int | None = None,
    hidden_channels: int = 32,
    conditioner: Any = None,
    transformer: Transformer = Affine(),
    alpha: float | None = 0.05,
    context_shape: Shape | None = None,
    base: Any = None,
    dtype: Any = None,
) -> Flow:
    """Multi-scale RealNVP: per scale `num_layers` checkerboard couplings, a squeeze and as many channel couplings.

    The last scale is `num_layers` + 1 checkerboard couplings (Dinh et al. 2016, arXiv:1605.08803, sec. 3.6). Each coupling
    is followed by an actnorm in the place of batch normalisation.

    Args: see the module.
    """
    shape = _image_shape(event_shape)
    check_count(num_layers=num_layers)
    num_scales = min(3, 1 + _halvings(shape, pixels=2)) if num_scales is None else num_scales
    check_count(num_scales=num_scales)
    network = nets.ResNet(hidden_channels, dtype=dtype) if conditioner is None else conditioner

    def checkerboard(i):
        return Chain((Coupling(transformer, network, Checkerboard(odd=bool(i % 2)), context_shape), ActNorm()))

    levels: list[Bijector] = []
    for i in range(num_scales - 1):
        channels = shape[-1] * 2 ** (i + 2)  # a squeeze times 4, a split by 2
        exchange = Permutation((*range(channels // 2, channels), *range(channels // 2)))
        channel = Chain((Coupling(transformer, network, channels // 2, context_shape), exchange, ActNorm()))
        levels.append(Chain((Repeat(channel, num_layers), Squeeze(), _alternating(checkerboard, num_layers))))
    levels.append(_alternating(checkerboard, num_layers + 1))
    return _multi_scale(shape, levels, Split(), network, alpha, base, context_shape)


def dequantizer(event_shape: Shape, num_layers: int = 4, *, hidden_channels: int = 32, conditioner: Any = None) -> Flow:
    """q(u | x) for `gm.models.Dequantized`: a flow of noise in (0, 1) given the image, close to uniform at the start.

    Variational dequantisation (Ho et al. 2019, arXiv:1902.00275, sec. 3.1).

    Args:
      event_shape: (H, W, C) of the images; height and width must be even.
      num_layers: couplings. hidden_channels, conditioner: of their networks, as in the module.
    """
    shape = _image_shape(event_shape)
    check_count(num_layers=num_layers)
    network = nets.GlowNet(hidden_channels) if conditioner is None else conditioner
    squeezed = Squeeze().latent_shape(shape)
    step = Chain((Coupling(Affine(), network, squeezed[-1] // 2, shape), Conv1x1()))
    # The first layer sees the image alone: mean and scale of the noise in each pixel.
    layers = Chain((Repeat(step, num_layers), Coupling(Affine(), network, 0, shape), Squeeze(), Sigmoid()))
    return Flow(layers, Normal(squeezed, scale=1.7))  # sigmoid(1.7 N(0, 1)) is nearly uniform


def _multi_scale(
    shape: Shape,
    levels: list[Bijector],
    split: Split,
    network: Any,
    alpha: float | None,
    base: Any,
    context_shape: Shape | None,
) -> Flow:
    """The levels between a learned Gaussian of the last latents and the logit of the data."""
    top = Elementwise(Affine()) if context_shape is None else Coupling(Affine(), network, 0, context_shape)
    levels[-1] = Chain((top, levels[-1]))
    if alpha is not None:
        levels[0] = Chain((levels[0], Invert(AlphaLogit(alpha))))
    bijector = MultiScale(shape, tuple(levels), split)
    base = as_distribution(base, bijector.latent_shape(shape))
    return Flow(conditioned(bijector), base)


def _alternating(layer: Callable[[int], Bijector], num: int) -> Bijector:
    """layer(0), layer(1), layer(0), ...: pairs in one scan, and one more for odd numbers."""
    pairs: tuple[Bijector, ...] = (Repeat(Chain((layer(0), layer(1))), num // 2),) if num > 1 else ()
    return Chain((*pairs, *((layer(0),) if num % 2 else ())))


def _image_shape(event_shape: Shape) -> Shape:
    shape = check_shape("event_shape", event_shape, least=1)
    if len(shape) != 3:
        raise ValueError(f"event_shape must be (H, W, C), that of images, got {event_shape!r}")
    return shape


def _halvings(shape: Shape, pixels: int = 1) -> int:
    """How often height and width can be halved and `pixels` remain."""
    height, width, num = *shape[:2], 0
    while height % 2 == 0 and width % 2 == 0 and height * width >= 4 * pixels:
        height, width, num = height // 2, width // 2, num + 1
    return num
