"""Flows on vectors made of layers, each a few lines that choose parts. All return a `Flow`: exact log_prob, exact samples.

Common arguments:
  event_shape: (D,) of a vector. num_layers: of the flow.
  hidden_sizes, activation, dtype: of the networks; jnp.bfloat16 halves their precision, while bijectors and log-determinants
    stay in at least float32.
  num_bins, bound: of splines, which are the identity outside [-bound, bound].
  num_units, num_sigmoid_layers: of the `DeepSigmoidal` transformers. num_units, basis: of the `Sylvester` layers.
  context_shape: of a conditional flow. With (K,), K >= 2, contexts may be class labels, integers 0 .. K - 1 of the shape of the
    batch axes alone, which are made one-hot.
  base: a `gm.Distribution`, or one of Distrax; None: standard normal.
  support: where each column lies, of a flow of columns that are not all real: "real", "positive", (low, high), or a
    `flows.Circle(low, high)`; None: all real.
  standardize: whether fixed layers inside the model standardise the data and the contexts; densities are those of the user's
    data.
  seed: of the random permutations.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax

from genmod import nets
from genmod.bijectors import (
    ActNorm,
    Additive,
    Chain,
    CircularSpline,
    Coupling,
    DeepSigmoidal,
    DiagonalAffine,
    Invert,
    LULinear,
    PerCoordinate,
    Planar,
    Radial,
    RationalQuadraticSpline,
    Sylvester,
    Whiten,
    random_order,
)
from genmod.core.types import Shape
from genmod.flows.layers import Activation, affine_in, autoregressive, check_vector, coupling, masks, stacked
from genmod.flows.support import Circle, Support, base_of, check_support
from genmod.models.flow import Flow

# Layers in line per iteration of the scan, where a layer compiles fast: 15 % off a training step, a third off sampling
# (RealNVP, D = 64), for a second more of compilation.
_CHEAP = 8


def affine(event_shape: Shape, num_layers: int = 1, *, base: Any = None, standardize: bool = True) -> Flow:
    """z = W (x - b), W triangular, started at the whitening of the data: with the normal base a full Gaussian of maximum
    likelihood from the first step, the model that every other has to beat."""
    return stacked(Whiten(), event_shape, num_layers, base, standardize)


def nice(
    event_shape: Shape,
    num_layers: int = 8,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NICE: additive couplings and one diagonal scaling (Dinh et al. 2014, arXiv:1410.8516)."""
    layer = coupling(Additive(), event_shape, hidden_sizes, activation, context_shape, dtype)
    return stacked(
        layer, event_shape, num_layers, base, standardize, seed, last=(DiagonalAffine(),), unroll=_CHEAP, support=support
    )


def real_nvp(
    event_shape: Shape,
    num_layers: int = 8,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """RealNVP: affine couplings with permutations between them (Dinh et al. 2016, arXiv:1605.08803)."""
    layer = coupling(affine_in(event_shape), event_shape, hidden_sizes, activation, context_shape, dtype)
    return stacked(layer, event_shape, num_layers, base, standardize, seed, unroll=_CHEAP, support=support)


def glow_1d(
    event_shape: Shape,
    num_layers: int = 8,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """Glow's step on vectors: actnorm, LU linear, affine coupling (Kingma & Dhariwal 2018, arXiv:1807.03039)."""
    step = coupling(affine_in(event_shape), event_shape, hidden_sizes, activation, context_shape, dtype)
    layer = Chain((step, Invert(LULinear(random_order(check_vector(event_shape), seed))), ActNorm()))
    return stacked(layer, event_shape, num_layers, base, standardize, support=support)


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
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NSF: rational-quadratic spline couplings on [-bound, bound] (Durkan et al. 2019, arXiv:1906.04032).

    Columns that `support` puts on a `Circle` have circular splines and a uniform base (Rezende et al. 2020, arXiv:2002.02428);
    a base of one's own must live there too.
    """
    spline = RationalQuadraticSpline(num_bins, bound)
    if support is not None and any(isinstance(kind, Circle) for kind in support):
        support = check_support(support, check_vector(event_shape))
        circular = CircularSpline(num_bins)
        transformer = PerCoordinate(tuple(circular if isinstance(kind, Circle) else spline for kind in support))
        network = nets.MLP(hidden_sizes, activation, dtype=dtype)
        # Coordinates of several kinds cannot be permuted: pairs of complementary masks take the place of permutations.
        layers = Chain(tuple(Coupling(transformer, network, mask, context_shape) for mask in masks(len(support), seed)))
        base = base_of(support) if base is None else base
        return stacked(layers, event_shape, -(-num_layers // len(layers.bijectors)), base, standardize, support=support)
    layer = coupling(spline, event_shape, hidden_sizes, activation, context_shape, dtype)
    return stacked(layer, event_shape, num_layers, base, standardize, seed, support=support)


def masked_autoregressive_flow(
    event_shape: Shape,
    num_layers: int = 5,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """MAF: log_prob in one pass, samples at about one pass of each network too (Papamakarios et al. 2017, arXiv:1705.07057)."""
    layer = Invert(autoregressive(affine_in(event_shape), hidden_sizes, activation, context_shape, dtype))
    return stacked(layer, event_shape, num_layers, base, standardize, seed, support=support)


def inverse_autoregressive_flow(
    event_shape: Shape,
    num_layers: int = 5,
    *,
    hidden_sizes: Sequence[int] = (128, 128),
    activation: Activation = jax.nn.relu,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """IAF: samples in one pass, log_prob of given data coordinate by coordinate (Kingma et al. 2016, arXiv:1606.04934)."""
    layer = autoregressive(affine_in(event_shape), hidden_sizes, activation, context_shape, dtype)
    return stacked(layer, event_shape, num_layers, base, standardize, seed, support=support)


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
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NSF-AR: MAF with rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032, sec. 3.2)."""
    spline = RationalQuadraticSpline(num_bins, bound)
    layer = Invert(autoregressive(spline, hidden_sizes, activation, context_shape, dtype))
    return stacked(layer, event_shape, num_layers, base, standardize, seed, support=support)


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
    support: Sequence[Support] | None = None,
    seed: int = 0,
    dtype: Any = None,
) -> Flow:
    """NAF: MAF with deep sigmoidal transformers; samples through a numerical root (Huang et al. 2018, arXiv:1804.00779)."""
    transformer = DeepSigmoidal(num_units, num_sigmoid_layers)
    layer = Invert(autoregressive(transformer, hidden_sizes, activation, context_shape, dtype))
    return stacked(layer, event_shape, num_layers, base, standardize, seed, support=support)


def planar_flow(
    event_shape: Shape,
    num_layers: int = 32,
    *,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
) -> Flow:
    """Planar layers, inverted so that log_prob is closed-form (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 10)."""
    return stacked(Invert(Planar(context_shape)), event_shape, num_layers, base, standardize)


def radial_flow(
    event_shape: Shape,
    num_layers: int = 32,
    *,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
) -> Flow:
    """Radial layers (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 14)."""
    return stacked(Invert(Radial(context_shape)), event_shape, num_layers, base, standardize)


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
    return stacked(layer, event_shape, num_layers, base, standardize, permute)
