"""Flows on vectors made of layers, each a few lines that choose parts. All return a `Flow`: exact log_prob, exact samples.

Common arguments:
  event_shape: (D,) of a vector. num_layers: of the flow.
  hidden_sizes, activation, dtype: of the networks; jnp.bfloat16 halves their precision, while bijectors and log-determinants
    stay in at least float32.
  num_bins, bound: of splines, which are the identity outside [-bound, bound].
  num_units, num_sigmoid_layers: of the `DeepSigmoidal` transformers. num_units, basis: of the `Sylvester` layers.
  context_shape: of a conditional flow.
  base: a `gm.Distribution`, or one of Distrax; None: standard normal.
  standardize: whether fixed layers inside the model standardise the data and the contexts; densities are those of the user's
    data.
  seed: of the random permutations.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from genmod import nets
from genmod.bijectors import (
    ActNorm,
    Additive,
    Affine,
    Autoregressive,
    Chain,
    Conditioned,
    Coupling,
    DeepSigmoidal,
    DiagonalAffine,
    Invert,
    LULinear,
    Permutation,
    Planar,
    Radial,
    RationalQuadraticSpline,
    Repeat,
    Standardize,
    Sylvester,
    Transformer,
    Whiten,
    random_order,
)
from genmod.bijectors.base import Bijector
from genmod.core.checks import check_count, check_shape
from genmod.core.types import Array, Shape
from genmod.densities import as_distribution
from genmod.models.flow import Flow

Activation = Callable[[Array], Array]

# Layers in line per iteration of the scan, where a layer compiles fast: 15 % off a training step, a third off sampling
# (RealNVP, D = 64), for a second more of compilation.
_CHEAP = 8


def affine(event_shape: Shape, num_layers: int = 1, *, base: Any = None, standardize: bool = True) -> Flow:
    """z = W (x - b), W triangular, started at the whitening of the data: with the normal base a full Gaussian of maximum
    likelihood from the first step, the model that every other has to beat."""
    return _flow(Whiten(), event_shape, num_layers, base, standardize)


def nice(
    event_shape: Shape,
    num_layers: int = 8,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NICE: additive couplings and one diagonal scaling (Dinh et al. 2014, arXiv:1410.8516)."""
    layer = _coupling(Additive(), event_shape, hidden_sizes, activation, context_shape, dtype)
    return _flow(layer, event_shape, num_layers, base, standardize, seed, last=(DiagonalAffine(),), unroll=_CHEAP)


def real_nvp(
    event_shape: Shape,
    num_layers: int = 8,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """RealNVP: affine couplings with permutations between them (Dinh et al. 2016, arXiv:1605.08803)."""
    layer = _coupling(Affine(), event_shape, hidden_sizes, activation, context_shape, dtype)
    return _flow(layer, event_shape, num_layers, base, standardize, seed, unroll=_CHEAP)


def glow_1d(
    event_shape: Shape,
    num_layers: int = 8,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """Glow's step on vectors: actnorm, LU linear, affine coupling (Kingma & Dhariwal 2018, arXiv:1807.03039)."""
    coupling = _coupling(Affine(), event_shape, hidden_sizes, activation, context_shape, dtype)
    layer = Chain((coupling, Invert(LULinear(random_order(_dim(event_shape), seed))), ActNorm()))
    return _flow(layer, event_shape, num_layers, base, standardize)


def neural_spline_flow(
    event_shape: Shape,
    num_layers: int = 8,
    *,
    num_bins: int = 8,
    bound: float = 4.0,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NSF: rational-quadratic spline couplings on [-bound, bound] (Durkan et al. 2019, arXiv:1906.04032)."""
    spline = RationalQuadraticSpline(num_bins, bound)
    layer = _coupling(spline, event_shape, hidden_sizes, activation, context_shape, dtype)
    return _flow(layer, event_shape, num_layers, base, standardize, seed)


def masked_autoregressive_flow(
    event_shape: Shape,
    num_layers: int = 5,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """MAF: log_prob in one pass, samples at about one pass of each network too (Papamakarios et al. 2017, arXiv:1705.07057)."""
    layer = Invert(_autoregressive(Affine(), hidden_sizes, activation, context_shape, dtype))
    return _flow(layer, event_shape, num_layers, base, standardize, seed)


def inverse_autoregressive_flow(
    event_shape: Shape,
    num_layers: int = 5,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """IAF: samples in one pass, log_prob of given data coordinate by coordinate (Kingma et al. 2016, arXiv:1606.04934)."""
    layer = _autoregressive(Affine(), hidden_sizes, activation, context_shape, dtype)
    return _flow(layer, event_shape, num_layers, base, standardize, seed)


def autoregressive_spline_flow(
    event_shape: Shape,
    num_layers: int = 5,
    *,
    num_bins: int = 8,
    bound: float = 4.0,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NSF-AR: MAF with rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032, sec. 3.2)."""
    spline = RationalQuadraticSpline(num_bins, bound)
    layer = Invert(_autoregressive(spline, hidden_sizes, activation, context_shape, dtype))
    return _flow(layer, event_shape, num_layers, base, standardize, seed)


def neural_autoregressive_flow(
    event_shape: Shape,
    num_layers: int = 2,
    *,
    num_units: int = 8,
    num_sigmoid_layers: int = 1,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NAF: MAF with deep sigmoidal transformers; samples through a numerical root (Huang et al. 2018, arXiv:1804.00779)."""
    transformer = DeepSigmoidal(num_units, num_sigmoid_layers)
    layer = Invert(_autoregressive(transformer, hidden_sizes, activation, context_shape, dtype))
    return _flow(layer, event_shape, num_layers, base, standardize, seed)


def planar_flow(
    event_shape: Shape,
    num_layers: int = 32,
    *,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
) -> Flow:
    """Planar layers, inverted so that log_prob is closed-form (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 10)."""
    return _flow(Invert(Planar(context_shape)), event_shape, num_layers, base, standardize)


def radial_flow(
    event_shape: Shape,
    num_layers: int = 32,
    *,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
) -> Flow:
    """Radial layers (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 14)."""
    return _flow(Invert(Radial(context_shape)), event_shape, num_layers, base, standardize)


def sylvester_flow(
    event_shape: Shape,
    num_layers: int = 16,
    *,
    num_units: int | None = None,
    basis: Literal["orthogonal", "householder", "triangular"] = "orthogonal",
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    seed: int = 0,
) -> Flow:
    """Sylvester layers, inverted so that log_prob is closed-form (van den Berg et al. 2018, arXiv:1803.05649)."""
    layer = Invert(Sylvester(num_units, basis, context_shape))
    # A triangular basis treats the coordinates in a fixed order, so that one needs permutations between the layers.
    permute = seed if basis == "triangular" else None
    return _flow(layer, event_shape, num_layers, base, standardize, permute)


def _flow(
    layer: Bijector,
    event_shape: Shape,
    num_layers: int,
    base: Any,
    standardize: bool,
    seed: int | None = None,
    last: tuple[Bijector, ...] = (),
    unroll: int = 1,
) -> Flow:
    """`num_layers` of `layer`, permutations between them if `seed` is given, standardisation at the end."""
    dim = _dim(event_shape)
    check_count(num_layers=num_layers)
    if seed is not None and dim > 1:
        layer = Chain((layer, Permutation(random_order(dim, seed))))
    layers = Repeat(layer, num_layers, min(unroll, num_layers))
    if standardize and layers.context_shape is not None:
        layers = Conditioned(layers)
    return Flow(Chain((layers, *last, *((Standardize(),) if standardize else ()))), as_distribution(base, (dim,)))


def _coupling(
    transformer: Transformer,
    event_shape: Shape,
    hidden_sizes: Sequence[int],
    activation: Activation,
    context_shape: Shape | None,
    dtype: Any,
) -> Coupling:
    network = nets.MLP(hidden_sizes, activation, dtype=dtype)
    return Coupling(transformer, network, _dim(event_shape) // 2, context_shape)


def _autoregressive(
    transformer: Transformer,
    hidden_sizes: Sequence[int],
    activation: Activation,
    context_shape: Shape | None,
    dtype: Any,
) -> Autoregressive:
    network = nets.MADE(hidden_sizes, activation, dtype=dtype)
    return Autoregressive(transformer, network, context_shape=context_shape)


def _dim(event_shape: Shape) -> int:
    shape = check_shape("event_shape", event_shape, least=1)
    if len(shape) != 1:
        raise ValueError(f"event_shape must be (D,), that of vectors, got {event_shape!r}")
    return shape[0]
