"""Static quadrature rules in float64 NumPy, for densities and entropies.

- `panels`: composite Gauss-Legendre, 16 nodes a panel; for a Gaussian of standard
  deviation sd that slides along a curve, panels of 5 sd integrate it to about 1e-12.
- `bessel_i0e`: e^{-z} I_0(z) = (1/pi) int_0^pi e^{z (cos t - 1)} dt, by the trapezoid
  rule, which converges spectrally for a periodic integrand.
- `grid_entropy`: H = -sum_ij p_ij log p_ij h^2 on a square grid of spacing h, for a
  density that is a mixture of products, p_ij = sum_k w_k a_k(x_i) b_k(y_j); so the
  whole grid is one matrix product. Smooth integrands make the rule spectral.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ORDER = 16
_MAX_CELLS = 20_000_000


@functools.lru_cache(maxsize=1)
def _rule() -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(_ORDER)


def panels(lower: float, upper: float, width: float, grading: int = 0) -> tuple[Floats, Floats]:
    """Composite Gauss-Legendre quadrature.

    Args:
      lower, upper: ends of the interval. width: the greatest length of a panel.
      grading: how often the first and last panel are cut, each time at a quarter from the end: seen from far away the end of a
        curve outweighs the rest exponentially.

    Returns nodes and weights, (k,) each.
    """
    breaks = np.linspace(lower, upper, max(1, math.ceil((upper - lower) / width)) + 1)
    cuts = (breaks[1] - breaks[0]) * 0.25 ** np.arange(1, grading + 1)
    return composite(np.sort(np.concatenate([breaks, lower + cuts, upper - cuts])))


def composite(breaks: Floats) -> tuple[Floats, Floats]:
    """Gauss-Legendre with 16 nodes between consecutive increasing breaks."""
    nodes, weights = _rule()
    half = np.diff(breaks)[:, None] / 2
    return (breaks[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()


def log_gaussian(x: Floats, mean: Floats, sd: Floats | float) -> Floats:
    """log N(x; mean, sd^2), elementwise with NumPy broadcasting."""
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)


def bessel_i0e(z: Floats) -> Floats:
    """e^{-z} I_0(z) for z >= 0, any shape."""
    num = 32 + 8 * math.ceil(math.sqrt(float(np.max(z))))
    t = (np.arange(num) + 0.5) * math.pi / num
    return np.exp(z[..., None] * (np.cos(t) - 1)).mean(-1)


def entropy_1d(log_prob: Floats, weights: Floats) -> float:
    """-sum_i w_i p_i log p_i for log-densities and quadrature weights (k,), (k,)."""
    return float(-np.sum(weights * np.exp(log_prob) * log_prob))


def mixture_entropy(weights: tuple[float, ...], means: tuple[float, ...], sds: tuple[float, ...]) -> float:
    """Entropy in nats of the mixture sum_k w_k N(mu_k, sd_k^2) on the line.

    Composite Gauss-Legendre over mu_k +- 12 sd_k with a breakpoint at each multiple
    of a component's sd, so components of very different widths are all resolved.
    """
    mean, sd = np.asarray(means), np.asarray(sds)
    breaks = np.unique(np.concatenate([m + s * np.arange(-12.0, 13.0) for m, s in zip(means, sds, strict=True)]))
    x, node_weights = composite(breaks)
    with np.errstate(divide="ignore"):  # a weight of zero is allowed
        log_weights = np.log(np.asarray(weights))
    terms = log_weights + log_gaussian(x[:, None], mean, sd)
    log_prob = np.logaddexp.reduce(terms, axis=1)
    return entropy_1d(log_prob, node_weights)


def square_grid(centres: Floats, reach: float, spacing: float) -> tuple[Floats, Floats]:
    """The two axes of a grid that goes `reach` beyond the outermost centres (k, 2).

    Raises:
        ValueError: the grid would have more than 20 million cells (noise far too small).
    """
    lower, upper = centres.min(0) - reach, centres.max(0) + reach
    m, n = (math.ceil(length / spacing) + 1 for length in upper - lower)
    if m * n > _MAX_CELLS:
        raise ValueError(
            f"the entropy must not need more than {_MAX_CELLS} cells, got a grid of {m} x {n}, for the noise is very small; "
            "use a larger noise"
        )
    return lower[0] + spacing * np.arange(m), lower[1] + spacing * np.arange(n)


def grid_entropy(a: Floats, b: Floats, weights: Floats, spacing: float) -> float:
    """Entropy in nats of p_ij = sum_k w_k a_ki b_kj on a square grid.

    Args:
      a, b: the factors along the two axes, (k, m) and (k, n). weights: w, (k,).
      spacing: of the grid.
    """
    p = (a * weights[:, None]).T @ b
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return float(-np.sum(p * log_p) * spacing**2)


def blurred_points_entropy(centres: Floats, weights: Floats, sd: float) -> float:
    """Entropy of sum_k w_k N(c_k, sd^2 I) in the plane; centres (k, 2), weights (k,).

    A grid of spacing sd / 4 (error about 1e-10), 9 sd beyond the outermost centres.
    """
    axes = square_grid(centres, 9 * sd, sd / 4)
    a, b = (np.exp(log_gaussian(axis, c[:, None], sd)) for axis, c in zip(axes, centres.T, strict=True))
    return grid_entropy(a, b, weights, sd / 4)
