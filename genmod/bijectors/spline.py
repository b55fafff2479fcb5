"""Monotone rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032; Gregory & Delbourgo 1982).

On [-bound, bound] the map is K rational quadratics through knots (z_k, x_k) with slopes d_k; with bin width w, height h,
s = h / w and xi = (z - z_k) / w,

    x = x_k + h (s xi^2 + d_k xi (1 - xi)) / (s + (d_k + d_k+1 - 2 s) xi (1 - xi)).

Raw widths, heights and log-slopes are softly bounded, so that no slope can vanish and the float32 inverse stays accurate.
"""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check_count
from genmod.core.numerics import soft_bound, within

# Bins differ by at most a factor exp(2 x 2), knot slopes lie in exp(+-3): measured to fit as well as no bound at all.
_LOGIT_BOUND, _LOG_SLOPE_BOUND = 2.0, 3.0


@dataclasses.dataclass(frozen=True)
class RationalQuadraticSpline(Transformer):
    """K bins on [-bound, bound] and the identity outside (linear tails), continuously differentiable everywhere.

    Raw parameters: K widths, K heights, K - 1 interior slopes.
    """

    num_bins: int = 8
    bound: float = 4.0
    onto_reals = True

    def __post_init__(self):
        super().__post_init__()
        _check_spline(self.num_bins, self.bound)

    @property
    def interval(self):
        return (-self.bound, self.bound)

    @property
    def knots(self):
        return _even_knots(self.num_bins, self.bound)

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
        logits, log_slopes = jnp.split(raw, [2 * self.num_bins], -1)
        log_slopes = jnp.pad(log_slopes, [(0, 0)] * (log_slopes.ndim - 1) + [(1, 1)])  # log-slope 0 joins the straight tails
        out, log_slope = _spline(bin_map, logits, log_slopes, safe, self.bound, searched)
        return jnp.where(inside, out, value), jnp.where(inside, log_slope, 0.0)


@dataclasses.dataclass(frozen=True)
class CircularSpline(Transformer):
    """A spline of the circle [-bound, bound) with a learned rotation (Rezende et al. 2020, arXiv:2002.02428, sec. 2.1).

    The slopes at the two ends are one parameter, and networks see cosine and sine of a coordinate, so that nothing jumps where
    the circle closes. Raw parameters: K widths, K heights, K slopes, 1 angle. It is a bijection of the circle, not of the line:
    the layer wraps values outside into it, and the base must live there too, as `densities.Uniform(shape, -bound, bound)` does.
    """

    num_bins: int = 8
    bound: float = float(np.pi)
    num_features = 2

    def __post_init__(self):
        super().__post_init__()
        _check_spline(self.num_bins, self.bound)

    @property
    def knots(self):
        return _even_knots(self.num_bins, self.bound)

    @property
    def num_params(self) -> int:
        return 3 * self.num_bins + 1

    def features(self, z):
        angle = z * (np.pi / self.bound)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)

    def image(self, interval):
        circle = (-self.bound, self.bound)
        if not within(interval, circle):
            raise ValueError(f"{self!r} is a map of the circle [-{self.bound:.6g}, {self.bound:.6g}), got values in {interval}")
        return circle  # its parts go anywhere on it

    def forward(self, raw, z):
        logits, log_slopes, angle = self._parts(raw)
        x, log_slope = _spline(_forward_bin, logits, log_slopes, self._wrap(z), self.bound, 0)
        return self._wrap(x + angle), log_slope

    def inverse(self, raw, x):
        logits, log_slopes, angle = self._parts(raw)
        return _spline(_inverse_bin, logits, log_slopes, self._wrap(x - angle), self.bound, 1)

    def _parts(self, raw):
        logits, log_slopes, angle = jnp.split(raw, [2 * self.num_bins, 3 * self.num_bins], -1)
        log_slopes = jnp.concatenate([log_slopes, log_slopes[..., :1]], -1)
        return logits, log_slopes, angle.squeeze(-1) * (self.bound / np.pi)

    def _wrap(self, x):
        return jnp.mod(x + self.bound, 2 * self.bound) - self.bound


def _check_spline(num_bins: int, bound: float) -> None:
    check_count(num_bins=num_bins)
    if not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound}")


def _even_knots(num_bins: int, bound: float) -> tuple[float, ...]:
    return tuple(np.linspace(-bound, bound, num_bins + 1).tolist())


@functools.partial(jax.checkpoint, static_argnums=(0, 4, 5))
def _spline(bin_map, logits, log_slopes, value, bound, searched):
    """Finds the bin of `value` among the input knots (searched=0) or the output knots (1) and maps within it."""
    sizes = [2 * bound * jax.nn.softmax(soft_bound(part, _LOGIT_BOUND), -1) for part in jnp.split(logits, 2, -1)]
    # No gradient passes through the choice of a bin: the map is continuous across knots.
    knots = jnp.cumsum(jax.lax.stop_gradient(sizes[searched][..., :-1]), -1) - bound
    index = jnp.sum(value[..., None] >= knots, -1)
    (width, left), (height, low) = ((_entry(part, index), _sum_before(part, index) - bound) for part in sizes)
    slope_0, slope_1 = (jnp.exp(soft_bound(_entry(log_slopes, index + i), _LOG_SLOPE_BOUND)) for i in (0, 1))
    out, log_slope = bin_map(value, left, width, low, height, slope_0, slope_1)
    # Bins add up to 2 bound to rounding; what passes the end would lie outside of the base.
    return jnp.where(out > bound, bound, jnp.where(out < -bound, -bound, out)), log_slope


def _choice(relation):
    """The function (x, index) -> sum of the x[..., j] with relation(j, index): linear in x.

    Forwards, the few entries are written out as separate arrays, which fuse into one elementwise loop: on CPU 5-10 times
    faster than a gather or a reduction over a short last axis. The derivative is one masked sum, so that the program of
    a gradient does not grow with the number of bins.
    """

    @jax.custom_jvp
    def choose(x, index):
        terms = [jnp.where(relation(j, index), column, 0.0) for j, column in enumerate(jnp.moveaxis(x, -1, 0))]
        return functools.reduce(jnp.add, terms)

    @choose.defjvp
    def _(primals, tangents):
        x, index = primals
        chosen = relation(jax.lax.broadcasted_iota(index.dtype, x.shape, x.ndim - 1), index[..., None])
        return choose(x, index), jnp.sum(jnp.where(chosen, tangents[0], 0.0), -1)

    return choose


_entry, _sum_before = _choice(operator.eq), _choice(operator.lt)


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
