"""Transformers given only in one direction: their inverse is found numerically and differentiated implicitly.

For x = f(z; raw), increasing in z, the root z(raw, x) has dz = (dx - (df/draw) draw) / (df/dz): no gradient passes
through the iterations, and derivatives of any order are exact at the root.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check_count, check_function
from genmod.core.types import Array


@dataclasses.dataclass(frozen=True)
class ScalarFunction(Transformer):
    """Any increasing `fn(raw, z) -> x` of a scalar z and `num_raw` parameters, the identity at raw = 0.

    `fn` is a plain module-level function of scalars written in jax.numpy, increasing and unbounded in z. `forward` costs
    one evaluation with its derivative, `inverse` about ten of them: put the layer in `Invert` where densities are trained.
    Where no inverse is found it is NaN, and the layer counts it in its info.
    """

    fn: Callable[[Array, Array], Array]
    num_raw: int
    numerical_inverse = True
    onto_reals = True

    def __post_init__(self):
        super().__post_init__()
        check_function(fn=self.fn)
        check_count(num_raw=self.num_raw)

    @property
    def num_params(self) -> int:
        return self.num_raw

    def forward(self, raw, z):
        return _elementwise(functools.partial(value_and_log_slope, self.fn), raw, z)

    def inverse(self, raw, x):
        def one(raw, x):
            z = monotone_root(self.fn, raw, x)
            return z, -value_and_log_slope(self.fn, raw, z)[1]

        return _elementwise(one, raw, x)


@dataclasses.dataclass(frozen=True)
class DeepSigmoidal(Transformer):
    """The deep sigmoidal flow, x = logit(sum_j w_j sigmoid(a_j z + b_j)), `num_layers` times (NAF; Huang et al. 2018,
    arXiv:1804.00779, eq. 8). Weights w on the simplex, a > 0. A universal monotone map; the inverse is numerical.

    Unit j reads its shift at its own gain c_j: units equal at the start would otherwise stay equal for ever. (No gains
    +c and -c: the shift moves by c times a gradient proportional to c, so the sign drops out.)
    """

    num_units: int = 8
    num_layers: int = 1
    numerical_inverse = True
    onto_reals = True

    def __post_init__(self):
        super().__post_init__()
        check_count(num_units=self.num_units, num_layers=self.num_layers)

    @property
    def num_params(self) -> int:
        return 3 * self.num_units * self.num_layers

    def forward(self, raw, z):
        return _elementwise(functools.partial(value_and_log_slope, self._map), raw, z)

    def inverse(self, raw, x):
        return ScalarFunction(self._map, self.num_params).inverse(raw, x)

    def _map(self, raw, z):
        gain = 2.0 * np.arange(1, self.num_units + 1) / self.num_units  # plain numbers, made at trace time
        for weight, scale, shift in raw.reshape(self.num_layers, 3, self.num_units):
            log_w = jax.nn.log_softmax(weight)
            a = jnp.exp(3.0 * jnp.tanh(scale / 3.0))
            u = a * z + shift * gain.astype(shift.dtype)
            # log p and log (1 - p) apart: their difference is the logit, with no cancellation in either tail.
            z = jax.nn.logsumexp(log_w + jax.nn.log_sigmoid(u)) - jax.nn.logsumexp(log_w + jax.nn.log_sigmoid(-u))
        return z


def value_and_log_slope(fn: Callable[[Array, Array], Array], raw: Array, z: Array) -> tuple[Array, Array]:
    """fn(raw, z) and the log of its derivative in z, for a scalar z."""
    x, slope = jax.jvp(lambda z: fn(raw, z), (z,), (jnp.ones_like(z),))
    return x, jnp.log(slope)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def monotone_root(fn: Callable[[Array, Array], Array], raw: Array, x: Array) -> Array:
    """The z with fn(raw, z) = x, for fn increasing in the scalar z: bracketing, then Newton steps kept inside the bracket.

    Accurate to the rounding of fn. NaN where there is none (fn bounded below x), or none is found.
    """
    eps = jnp.finfo(x.dtype).eps
    num_steps = 120 if x.dtype == jnp.float32 else 240

    def too_narrow(bracket):
        low, high, tries = bracket
        return ((fn(raw, low) > x) | (fn(raw, high) < x)) & (tries < 60)

    def widen(bracket):
        low, high, tries = bracket
        width = 2 * (high - low)
        return jnp.where(fn(raw, low) > x, low - width, low), jnp.where(fn(raw, high) < x, high + width, high), tries + 1

    def unfinished(state):
        _, _, z, change, step, reached = state
        return reached & (change > 2 * eps * jnp.abs(z)) & (step < num_steps)

    def refine(state):
        low, high, z, change, step, reached = state
        value, slope = jax.jvp(lambda z: fn(raw, z), (z,), (jnp.ones_like(z),))
        low, high = jnp.where(value < x, z, low), jnp.where(value > x, z, high)
        newton = z - (value - x) / slope
        # Newton where it stays in the bracket and at least halves the step, else bisection: convergence is certain.
        good = (newton >= low) & (newton <= high) & (jnp.abs(newton - z) <= 0.5 * change)
        new = jnp.where(value == x, z, jnp.where(good, newton, 0.5 * (low + high)))
        return low, high, new, jnp.abs(new - z), step + 1, reached

    width = 1 + jnp.abs(x)  # an absolute one would be lost in the rounding of a large x
    low, high, _ = jax.lax.while_loop(too_narrow, widen, (x - width, x + width, 0))
    reached = (fn(raw, low) <= x) & (fn(raw, high) >= x)
    start = (low, high, jnp.clip(x, low, high), jnp.full_like(x, jnp.inf), 0, reached)
    *_, z, change, _, reached = jax.lax.while_loop(unfinished, refine, start)
    return jnp.where(reached & (change <= 2 * eps * jnp.abs(z)), z, jnp.nan)


@monotone_root.defjvp
def _monotone_root_jvp(fn, primals, tangents):
    raw, x = primals
    raw_dot, x_dot = tangents
    z = monotone_root(fn, raw, x)
    _, by_raw = jax.jvp(lambda raw: fn(raw, z), (raw,), (raw_dot,))
    _, slope = jax.jvp(lambda z: fn(raw, z), (z,), (jnp.ones_like(z),))
    return z, (x_dot - by_raw) / slope


def _elementwise(one, raw, value):
    """`one(raw (P,), value ()) -> (scalar, scalar)` over all leading axes."""
    out, log_slope = jax.vmap(one)(raw.reshape(-1, raw.shape[-1]), value.reshape(-1))
    return out.reshape(value.shape), log_slope.reshape(value.shape)
