"""Monotone rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032; Gregory & Delbourgo 1982).

On [-bound, bound] the map is K rational quadratics through knots (z_k, x_k) with slopes d_k; with bin width w, height h,
s = h / w and xi = (z - z_k) / w,

    x = x_k + h (s xi^2 + d_k xi (1 - xi)) / (s + (d_k + d_k+1 - 2 s) xi (1 - xi)).

Raw widths, heights and log-slopes are softly bounded, so that no slope can vanish and the float32 inverse stays accurate.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check_count
from genmod.core.numerics import soft_bound
from genmod.core.types import Array

# Bins differ by at most a factor exp(2 x 2), knot slopes lie in exp(+-3): measured to fit as well as no bound at all.
_LOGIT_BOUND, _LOG_SLOPE_BOUND = 2.0, 3.0


@dataclasses.dataclass(frozen=True)
class RationalQuadraticSpline(Transformer):
    """K bins on [-bound, bound] and the identity outside (linear tails), continuously differentiable everywhere.

    Raw parameters: K widths, K heights, K - 1 interior slopes.
    """

    num_bins: int = 8
    bound: float = 4.0

    def __post_init__(self):
        super().__post_init__()
        _check_spline(self.num_bins, self.bound)

    @property
    def interval(self):
        return (-self.bound, self.bound)

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins - 1

    def forward(self, raw, z):
        return self._piecewise(_forward_bin, raw, z, searched=0)

    def inverse(self, raw, x):
        return self._piecewise(_inverse_bin, raw, x, searched=1)

    def _piecewise(self, bin_map, raw, value, searched):
        inside = jnp.abs(value) < self.bound
        safe = jnp.where(inside, value, 0.0)  # outside, the bin formula would give NaN gradients
        logits, log_slopes = _columns(raw, 2 * self.num_bins)
        end = jnp.zeros_like(value)  # log-slope 0 joins the straight tails
        out, log_slope = _spline(bin_map, logits, [end, *log_slopes, end], safe, self.bound, searched)
        return jnp.where(inside, out, value), jnp.where(inside, log_slope, 0.0)


@dataclasses.dataclass(frozen=True)
class CircularSpline(Transformer):
    """A spline of the circle [-bound, bound) with a learned rotation (Rezende et al. 2020, arXiv:2002.02428, sec. 2.1).

    The slopes at the two ends are one parameter. Raw parameters: K widths, K heights, K slopes, 1 angle. It
    is a bijection of the circle, not of the line: values outside are wrapped into it first, so the base must live there
    too, as `densities.Uniform(shape, -bound, bound)` does.
    """

    num_bins: int = 8
    bound: float = float(np.pi)

    def __post_init__(self):
        super().__post_init__()
        _check_spline(self.num_bins, self.bound)

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins + 1

    def forward(self, raw, z):
        logits, log_slopes, angle = self._parts(raw)
        x, log_slope = _spline(_forward_bin, logits, log_slopes, self._wrap(z), self.bound, 0)
        return self._wrap(x + angle), log_slope

    def inverse(self, raw, x):
        logits, log_slopes, angle = self._parts(raw)
        return _spline(_inverse_bin, logits, log_slopes, self._wrap(x - angle), self.bound, 1)

    def _parts(self, raw):
        logits, (*log_slopes, angle) = _columns(raw, 2 * self.num_bins)
        return logits, [*log_slopes, log_slopes[0]], angle * (self.bound / np.pi)

    def _wrap(self, x):
        return jnp.mod(x + self.bound, 2 * self.bound) - self.bound


def _check_spline(num_bins: int, bound: float) -> None:
    check_count(num_bins=num_bins)
    if not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound}")


def _columns(raw: Array, num_logits: int) -> tuple[Array, list[Array]]:
    """The raw bin sizes as one array, the raw log-slopes as a list of arrays."""
    logits, rest = jnp.split(raw, [num_logits], -1)
    return logits, _unstack(rest)


def _unstack(x: Array) -> list[Array]:
    return [column.squeeze(-1) for column in jnp.split(x, x.shape[-1], -1)] if x.shape[-1] else []


@functools.partial(jax.checkpoint, static_argnums=(0, 4, 5))
def _spline(bin_map, logits, log_slopes, value, bound, searched):
    """Finds the bin of `value` among the input knots (searched=0) or the output knots (1) and maps within it.

    The few bins are written out as separate arrays: sums and choices over them fuse into one elementwise loop, measured
    5-10 times faster on CPU than reductions over a short last axis, and without a gather on any backend.
    """
    widths, heights = _bins(logits, bound)
    # No gradient passes through the choice of a bin: the map is continuous across knots.
    sizes = jax.lax.stop_gradient((widths, heights)[searched])
    knots = list(itertools.accumulate(sizes[:-1], initial=jnp.full_like(value, -bound)))[1:]
    past = [value >= knot for knot in knots]
    here = [a & ~b for a, b in zip([True, *past], [*past, False], strict=True)]

    def pick(per_bin):
        terms = (jnp.where(chosen, column, 0.0) for chosen, column in zip(here, per_bin, strict=True))
        return functools.reduce(jnp.add, terms)

    def left(sizes):
        return sum((jnp.where(beyond, size, 0.0) for beyond, size in zip(past, sizes, strict=False)), -bound)

    slope_0, slope_1 = (jnp.exp(soft_bound(pick(s), _LOG_SLOPE_BOUND)) for s in (log_slopes[:-1], log_slopes[1:]))
    return bin_map(value, left(widths), pick(widths), left(heights), pick(heights), slope_0, slope_1)


def _bins(logits: Array, bound: float) -> tuple[list[Array], list[Array]]:
    """Widths and heights of the bins, each list summing to 2 bound."""
    sizes = _unstack(jnp.exp(soft_bound(logits, _LOGIT_BOUND)))
    num_bins = len(sizes) // 2
    widths, heights = sizes[:num_bins], sizes[num_bins:]
    return [2 * bound / sum(widths) * w for w in widths], [2 * bound / sum(heights) * h for h in heights]


def _forward_bin(z, z_k, width, x_k, height, slope_0, slope_1):
    mean_slope = height / width
    xi = (z - z_k) / width
    xi_1mxi = xi * (1 - xi)
    denominator = mean_slope + (slope_0 + slope_1 - 2 * mean_slope) * xi_1mxi
    x = x_k + height * (mean_slope * xi**2 + slope_0 * xi_1mxi) / denominator
    return x, _log_slope(xi, xi_1mxi, mean_slope, slope_0, slope_1, denominator)


def _inverse_bin(x, z_k, width, x_k, height, slope_0, slope_1):
    mean_slope = height / width
    y = x - x_k
    bend = y * (slope_0 + slope_1 - 2 * mean_slope)
    a = height * (mean_slope - slope_0) + bend
    b = height * slope_0 - bend
    c = -mean_slope * y
    # b > 0 and c <= 0 in the bin: this form of the root never subtracts nearly equal numbers.
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, jnp.finfo(x.dtype).tiny))
    xi = -2 * c / (b + root)
    xi_1mxi = xi * (1 - xi)
    denominator = mean_slope + (slope_0 + slope_1 - 2 * mean_slope) * xi_1mxi
    return z_k + xi * width, -_log_slope(xi, xi_1mxi, mean_slope, slope_0, slope_1, denominator)


def _log_slope(xi, xi_1mxi, mean_slope, slope_0, slope_1, denominator):
    numerator = slope_1 * xi**2 + 2 * mean_slope * xi_1mxi + slope_0 * (1 - xi) ** 2
    return 2 * jnp.log(mean_slope) + jnp.log(numerator) - 2 * jnp.log(denominator)
