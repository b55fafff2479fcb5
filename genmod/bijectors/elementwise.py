"""Fixed scalar maps, applied to every coordinate of an event of any shape. None has parameters.

Use them to move a support: `Sigmoid` maps R to (0, 1), `Exp` and `Softplus` to (0, inf), `Tanh` to (-1, 1); `Invert` turns
each round. log |dx/dz| is written in the form that keeps its digits in the tails. Where an event has a coordinate that no z
reaches, log |det dz/dx| is -inf, and so is the log-density, with a finite gradient.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.bijectors.base import InfoBijector
from genmod.core.numerics import kept_inside, within
from genmod.core.types import REALS, Array, Interval


class ScalarMap(InfoBijector, abc.ABC):
    """A parameter-free x_i = f(z_i) of the interval `domain`, open unless `closed`, onto `codomain`: f, its inverse, log |f'|."""

    domain: Interval = REALS
    codomain: Interval = REALS
    closed: bool = False
    reads_data = False

    @abc.abstractmethod
    def _map(self, z: Array) -> Array: ...

    @abc.abstractmethod
    def _unmap(self, x: Array) -> Array: ...

    @abc.abstractmethod
    def _log_slope(self, z: Array) -> Array: ...

    def _log_slope_at(self, x: Array) -> Array:
        """log |f'| where f is x: an optional hook, for maps whose z near an end of the domain is rounded."""
        return self._log_slope(self._unmap(x))

    def _init(self, key, x, context):
        return {}

    def image(self, interval, inverse=False):
        own, other = (self.codomain, self.domain) if inverse else (self.domain, self.codomain)
        if not within(interval, own):
            raise ValueError(f"{self!r} is a map of {own} to {other}{', inverted' * inverse}, got values in {interval}")
        return other if within(own, interval) else None

    def _move(self, params, event, context, key, inverse, log_det):
        event, outside = kept_inside(event, self.codomain if inverse else self.domain, self.closed)
        if not log_det:
            moved = self._unmap(event) if inverse else self._map(event)
            return (moved if outside is None else jnp.where(outside, jnp.nan, moved)), 0.0, {}
        moved = self._unmap(event) if inverse else self._map(event)
        total = -self._log_slope_at(event).sum() if inverse else self._log_slope(event).sum()
        return moved, total if outside is None else jnp.where(outside, -jnp.inf, total), {}


@dataclasses.dataclass(frozen=True)
class Tanh(ScalarMap):
    """x = tanh z, R to (-1, 1); log x' = 2 (log 2 - z - softplus(-2 z))."""

    codomain = (-1.0, 1.0)

    def _map(self, z):
        return jnp.tanh(z)

    def _unmap(self, x):
        return jnp.arctanh(x)

    def _log_slope(self, z):
        return 2.0 * (math.log(2.0) - z - jax.nn.softplus(-2.0 * z))


@dataclasses.dataclass(frozen=True)
class Sigmoid(ScalarMap):
    """x = 1 / (1 + exp(-z)), R to (0, 1); log x' = -softplus(z) - softplus(-z)."""

    codomain = (0.0, 1.0)

    def _map(self, z):
        return jax.nn.sigmoid(z)

    def _unmap(self, x):
        return jnp.log(x) - jnp.log1p(-x)

    def _log_slope(self, z):
        return -jax.nn.softplus(z) - jax.nn.softplus(-z)


@dataclasses.dataclass(frozen=True)
class Logit(ScalarMap):
    """x = log(z / (1 - z)), (0, 1) to R; log x' = -log z - log(1 - z)."""

    domain = (0.0, 1.0)

    def _map(self, z):
        return jnp.log(z) - jnp.log1p(-z)

    def _unmap(self, x):
        return jax.nn.sigmoid(x)

    def _log_slope(self, z):
        return -jnp.log(z) - jnp.log1p(-z)

    def _log_slope_at(self, x):
        return jax.nn.softplus(x) + jax.nn.softplus(-x)


@dataclasses.dataclass(frozen=True)
class AlphaLogit(ScalarMap):
    """x = logit(alpha + (1 - 2 alpha) z), [0, 1] to R, of pixels (Papamakarios et al. 2017, arXiv:1705.07057).

    RealNVP's logit(alpha + (1 - alpha) z) made symmetric (arXiv:1605.08803, sec. 4.1). alpha > 0 keeps the ends 0 and 1
    finite. It maps what lies a little outside too, from -alpha / (1 - 2 alpha) on. As the last layer of an image flow it
    stands inverted, `Invert(AlphaLogit())`.
    """

    alpha: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha must be in (0, 1/2), got {self.alpha}")

    @property
    def domain(self):
        margin = self.alpha / (1 - 2 * self.alpha)
        return (-margin, 1 + margin)

    def _map(self, z):
        log_p, log_rest = self._logs(z)
        return log_p - log_rest

    def _unmap(self, x):
        return (jax.nn.sigmoid(x) - self.alpha) / (1 - 2 * self.alpha)

    def _log_slope(self, z):
        log_p, log_rest = self._logs(z)
        return math.log(1 - 2 * self.alpha) - log_p - log_rest

    def _log_slope_at(self, x):
        return math.log(1 - 2 * self.alpha) + jax.nn.softplus(x) + jax.nn.softplus(-x)

    def _logs(self, z):
        """log p and log(1 - p), p = alpha + (1 - 2 alpha) z; each exact near its own end."""
        return tuple(jnp.log(self.alpha + (1 - 2 * self.alpha) * part) for part in (z, 1 - z))


@dataclasses.dataclass(frozen=True)
class Rescale(ScalarMap):
    """x = scale z + shift with constants, for a change of units; log x' = log |scale|."""

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not (math.isfinite(self.scale) and self.scale != 0 and math.isfinite(self.shift)):
            raise ValueError(f"scale must be finite and not 0, shift finite, got scale={self.scale}, shift={self.shift}")

    def image(self, interval, inverse=False):
        ends = [(end - self.shift) / self.scale if inverse else self.scale * end + self.shift for end in interval]
        return (min(ends), max(ends))

    def _map(self, z):
        return self.scale * z + self.shift

    def _unmap(self, x):
        return (x - self.shift) / self.scale

    def _log_slope(self, z):
        return jnp.full_like(z, math.log(abs(self.scale)))


@dataclasses.dataclass(frozen=True)
class Angle(ScalarMap):
    """From the circle [-pi, pi] to one in other units, [low, high], whose ends are one point: degrees, hours, days of a year."""

    low: float = -math.pi
    high: float = math.pi
    domain = (-math.pi, math.pi)
    closed = True

    def __post_init__(self):
        super().__post_init__()
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low and high must be finite, low < high, got low={self.low}, high={self.high}")

    @property
    def codomain(self):
        return (self.low, self.high)

    def _map(self, z):
        return self.low + (z + math.pi) * ((self.high - self.low) / (2 * math.pi))

    def _unmap(self, x):
        return jnp.clip((x - self.low) * (2 * math.pi / (self.high - self.low)) - math.pi, -math.pi, math.pi)

    def _log_slope(self, z):
        return jnp.full_like(z, math.log((self.high - self.low) / (2 * math.pi)))


@dataclasses.dataclass(frozen=True)
class Softplus(ScalarMap):
    """x = log(1 + exp z), R to (0, inf); log x' = -softplus(-z)."""

    codomain = (0.0, math.inf)

    def _map(self, z):
        return jax.nn.softplus(z)

    def _unmap(self, x):
        return x + jnp.log(-jnp.expm1(-x))

    def _log_slope(self, z):
        return -jax.nn.softplus(-z)


@dataclasses.dataclass(frozen=True)
class Exp(ScalarMap):
    """x = exp z, R to (0, inf); log x' = z."""

    codomain = (0.0, math.inf)

    def _map(self, z):
        return jnp.exp(z)

    def _unmap(self, x):
        return jnp.log(x)

    def _log_slope(self, z):
        return z


@dataclasses.dataclass(frozen=True)
class Power(ScalarMap):
    """x = sign(z) |z|^power, power > 0, an odd map of R (of (0, inf) to itself on positive z).

    log x' = log power + (power - 1) log |z|, infinite at z = 0 unless power = 1.
    """

    power: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        if not self.power > 0:
            raise ValueError(f"power must be > 0, got {self.power}")

    def _map(self, z):
        return jnp.sign(z) * jnp.abs(z) ** self.power

    def _unmap(self, x):
        return jnp.sign(x) * jnp.abs(x) ** (1.0 / self.power)

    def _log_slope(self, z):
        return math.log(self.power) + (self.power - 1.0) * jnp.log(jnp.abs(z))
