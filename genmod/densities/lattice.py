"""Real fields on a periodic lattice, of density exp(-S) up to a constant.

    S(phi) = sum_x [m2 phi_x^2 + lam phi_x^4 + sum_mu (2 phi_x^2 - phi_x phi_{x+mu} - phi_x phi_{x-mu})]
           = sum_x [m2 phi_x^2 + lam phi_x^4 + sum_mu (phi_x - phi_{x+mu})^2]

as in arXiv:1904.12072 and arXiv:2101.08176; mu runs over the directions, lengths are in units of the lattice. The second form is
computed: it does not cancel. With lam = 0 the field is Gaussian, its Fourier modes are independent, k_mu = 2 pi n / L_mu:

    S = phi' M phi,    M(k) = m2 + 2 sum_mu (1 - cos k_mu),    covariance (2 M)^-1,    log Z = sum_k log(pi / M(k)) / 2

A law is a function of ONE field, too, so that it stands where a `log_prob_fn` is wanted: `law(x)` is -S(x). For another action
write `FromFunctions(shape, log_prob_fn=..., likelihood=Likelihood.UNNORMALIZED)`.
"""

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.checks import check, check_shape
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Real
from genmod.core.types import REALS, Array, Shape


class LatticeField(Distribution, abc.ABC):
    """A law of real fields on a periodic lattice, with the action of the module's docstring.

    Attributes:
      shape: of the lattice, any number of directions of at least two sites each.
      mass_squared: m2. coupling: lam. In lattice units.
    """

    shape: Shape
    mass_squared: float
    coupling: float
    support = REALS

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape, least=2))
        check(len(self.shape) > 0, "shape must have at least one direction, got ()")
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name != "shape":
                object.__setattr__(self, field.name, _number(field.name, getattr(self, field.name)))
        check(
            self.coupling >= 0,
            f"coupling must be >= 0, got {self.coupling}; exp(-S) grows without bound for a negative one, and Z is infinite",
        )
        check(
            self.coupling > 0 or self.mass_squared > 0,
            f"mass_squared must be > 0 where the coupling is 0, got {self.mass_squared}; exp(-S) does not fall off for constant "
            "fields, and Z is infinite",
        )
        super().__post_init__()

    @property
    def event(self):
        return Real(self.shape)

    @property
    def num_sites(self) -> int:
        """V."""
        return math.prod(self.shape)

    def action_one(self, x: Array) -> Array:
        """S of ONE field, a scalar; differentiable."""
        if jnp.shape(x) != self.shape:
            raise ValueError(f"x must be ONE field of shape {self.shape}, got {jnp.shape(x)}; for many of them call action")
        return _action(x, len(self.shape), self.mass_squared, self.coupling)

    def action(self, x: ArrayLike) -> Array:
        """S of fields, any axes + the lattice's shape. Compiled."""
        return _actions(jnp.asarray(self.event.check("x", x)), len(self.shape), self.mass_squared, self.coupling)

    def __call__(self, x: Array) -> Array:
        """-S of ONE field: the log-density without its constant."""
        return -self.action_one(x)

    def _init(self, key, x, context):
        return {}


@dataclasses.dataclass(frozen=True)
class PhiFour(LatticeField):
    """Scalar phi^4 theory: log f(x) = -S(x); Z is not known, and there are no draws.

    Raises ValueError where Z is infinite: for a coupling below 0, and for coupling 0 with mass_squared <= 0.
    """

    shape: Shape
    mass_squared: float
    coupling: float

    @property
    def likelihood(self):
        return Likelihood.UNNORMALIZED

    def log_prob_one(self, params, x, context=None, key=None):
        return self(x)


@dataclasses.dataclass(frozen=True)
class FreeField(LatticeField):
    """The Gaussian case, lam = 0: log_prob = -S - log Z exactly, exact draws, exact observables.

    Raises ValueError for mass_squared <= 0, where Z is infinite.
    """

    shape: Shape
    mass_squared: float
    coupling = 0.0

    @property
    def log_normalizer(self) -> float:
        """log Z, of the integral of exp(-S), in nats."""
        return 0.5 * float(np.log(math.pi / _modes(self.shape, self.mass_squared)).sum())

    @property
    def propagator(self) -> np.ndarray:
        """<phi_0 phi_x> for every x, an array of the lattice's shape; <phi^2> stands at 0."""
        return np.fft.ifftn(0.5 / _modes(self.shape, self.mass_squared)).real

    def correlator(self, direction: int = 0) -> np.ndarray:
        """G(t), (T,): the propagator at distance t along `direction`, summed over the other directions (zero momentum)."""
        check(direction in range(len(self.shape)), f"direction must be in 0..{len(self.shape) - 1}, got {direction}")
        return self.propagator.sum(tuple(axis for axis in range(len(self.shape)) if axis != direction))

    @property
    def susceptibility(self) -> float:
        """chi2 = sum_x <phi_0 phi_x> = 1 / (2 m2)."""
        return 0.5 / self.mass_squared

    @property
    def pole_mass(self) -> float:
        """m with G(t) proportional to cosh(m (t - T / 2)): cosh m = 1 + m2 / 2, on every lattice."""
        return math.acosh(1.0 + 0.5 * self.mass_squared)

    def log_prob_one(self, params, x, context=None, key=None):
        return self(x) - self.log_normalizer

    def sample_one(self, params, key, context=None):
        z = jax.random.normal(key, self.shape)
        scale = jnp.asarray(np.sqrt(0.5 / _modes(self.shape, self.mass_squared)), z.dtype)
        return _along_all(jnp.fft.ifft, scale * _along_all(jnp.fft.fft, z)).real


def _action(x: Array, num_directions: int, mass_squared: float, coupling: float) -> Array:
    """Of fields with any leading axes."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(-num_directions, 0))
    squares = x**2
    density = mass_squared * squares + coupling * squares**2
    for axis in axes:
        density = density + (x - jnp.roll(x, -1, axis)) ** 2
    return density.sum(axes)


_actions = jax.jit(_action, static_argnums=(1, 2, 3))


@functools.lru_cache(maxsize=16)
def _modes(shape: Shape, mass_squared: float) -> np.ndarray:
    """M(k) on the grid of the discrete Fourier transform, of the lattice's shape."""
    lines = [4.0 * np.sin(np.pi * np.arange(size) / size) ** 2 for size in shape]  # 2 (1 - cos k), without cancellation
    modes = mass_squared + np.sum(np.meshgrid(*lines, indexing="ij"), 0)
    modes.flags.writeable = False
    return modes


def _along_all(transform, x: Array) -> Array:
    # One direction after the other: XLA's own transform knows at most three.
    for axis in range(x.ndim):
        x = transform(x, axis=axis)
    return x


def _number(name: str, value: float) -> float:
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    check(math.isfinite(value), f"{name} must be finite, got {value}")
    return float(value)
