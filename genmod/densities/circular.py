"""The von Mises law of angles, elementwise, by its natural parameters: two numbers eta = kappa (cos mu, sin mu) for each angle.

    p(x) = exp(eta . (cos x, sin x)) / (2 pi I_0(kappa)),  x in (-pi, pi]
    E (cos x, sin x) = A(kappa) eta / kappa,               A = I_1 / I_0

Smooth in eta, also at eta = 0, the uniform law. Concentrations from 0 to 1e6 and beyond: all is said by i0e, by 1 - A and by
squares of sin((x - mu) / 2), so that nothing of the size of kappa cancels.

Draws by rejection from a wrapped Cauchy law (Best & Fisher 1979, "Efficient simulation of the von Mises distribution"). Their
gradient is implicit (Figurnov et al. 2018, arXiv:1805.08498): a draw moves with the velocity v of a flow of probability,

    dp/dtheta = -d(p v)/dx
    along mu, in kappa     v = -(dF/dkappa) / p,  F(x) = int_mu^x p, by the rule of Gauss and Legendre
    across, in mu          v = 1 - exp(-kappa cos(x - mu)) / I_0(kappa)

To a solution v of the equation any c / p may be added (Jankowiak & Obermeyer 2018, arXiv:1806.01851). The plain rotation v = 1
has no limit for kappa -> 0, where the velocity in eta is v / kappa. The v above is the solution of least E v^2, and has one.
The gradient is that of expectations of functions of the CIRCLE, equal at -pi and pi; it is right to first order only.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, i1e

from genmod.core.types import Array, Key
from genmod.densities.heads import constant_like

_LOG_2PI = math.log(2 * math.pi)
_NUM_NODES = 24
_EAST = np.array([1.0, 0.0])
# One proposal is taken with probability 0.66 or more: 2^-99 is left to chance.
_MAX_PROPOSALS = 64


def direction(eta: Array) -> Array:
    """The mean direction mu in (-pi, pi] of natural parameters (..., 2); 0 of the uniform law."""
    uniform = (eta == 0).all(-1)
    return jnp.arctan2(jnp.where(uniform, 0.0, eta[..., 1]), jnp.where(uniform, 1.0, eta[..., 0]))


def log_density(eta: Array, x: Array) -> Array:
    """log p of angles x, (...), in nats; -inf outside of [-pi, pi]."""
    inside = jnp.abs(x) <= math.pi
    x = jnp.where(inside, x, 0.0)
    near, squares, kappa, mu = _split(eta)
    small = eta[..., 0] * jnp.cos(x) + eta[..., 1] * jnp.sin(x) - _small_log_i0(squares)
    large = -2.0 * kappa * jnp.sin(0.5 * (x - mu)) ** 2 - _log_i0e(kappa)
    return jnp.where(inside, jnp.where(near, small, large) - _LOG_2PI, -jnp.inf)


def divergence(eta: Array, other: Array) -> Array:
    """KL of every angle from the von Mises law of `other`, in nats."""
    near, squares, kappa, mu = _split(eta)
    other_near, other_squares, other_kappa, other_mu = _split(other)
    lost = _complement(kappa)
    mean = jnp.where(near, _small_slope(squares), (1.0 - lost) / kappa)  # E (cos x, sin x) = mean eta
    entropy = jnp.where(near, _small_log_i0(squares) - squares * mean, kappa * lost + _log_i0e(kappa))
    log_i0 = jnp.where(other_near, _small_log_i0(other_squares), other_kappa + _log_i0e(other_kappa))
    apart = lost + 2.0 * (1.0 - lost) * jnp.sin(0.5 * (mu - other_mu)) ** 2
    far = _log_i0e(other_kappa) + other_kappa * apart
    cross = jnp.where(near | other_near, log_i0 - mean * jnp.sum(eta * other, -1), far)
    return cross - entropy


def draw_angles(eta: Array, key: Key) -> Array:
    """An angle for each of (..., 2) natural parameters, that carries their gradient."""
    held = jax.lax.stop_gradient(eta)
    kappa = jnp.hypot(held[..., 0], held[..., 1])
    # r = (1 + sqrt(1 + 4 kappa^2)) / (2 kappa) of the paper is large for small kappa; excess = kappa (r - 1) is in (1/2, 1].
    excess = 0.5 + 0.5 / (jnp.hypot(1.0, 2.0 * kappa) + 2.0 * kappa)
    narrow = jnp.sqrt(excess / (excess + 2.0 * kappa))

    def unfinished(loop):
        return ~loop[2].all() & (loop[3] < _MAX_PROPOSALS)

    def propose(loop):
        key, angle, done, count = loop
        key, *keys = jax.random.split(key, 3)
        half = math.pi * (jax.random.uniform(keys[0], kappa.shape, kappa.dtype) - 0.5)
        proposal = 2.0 * jnp.arctan2(narrow * jnp.sin(half), jnp.cos(half))
        c = excess + 2.0 * kappa * jnp.sin(0.5 * proposal) ** 2
        taken = jnp.log(jax.random.uniform(keys[1], kappa.shape, kappa.dtype)) <= jnp.log(c) + 1.0 - c
        return key, jnp.where(done, angle, proposal), done | taken, count + 1

    start = key, jnp.zeros_like(kappa), jnp.zeros(kappa.shape, bool), 0
    angle = jax.lax.while_loop(unfinished, propose, start)[1]
    inner = math.pi * (1.0 - float(jnp.finfo(kappa.dtype).eps))  # float32's pi is no number of [-pi, pi] in float64
    return _carried(eta, jnp.clip(_wrapped(direction(held) + angle), -inner, inner))


def velocity(eta: Array, z: Array) -> Array:
    """d z / d eta of draws z, (...), as in the module's text: (..., 2)."""
    kappa = jnp.hypot(eta[..., 0], eta[..., 1])
    along = jnp.where((kappa > 0)[..., None], eta / jnp.where(kappa > 0, kappa, 1.0)[..., None], constant_like(_EAST, eta))
    across = jnp.stack([-along[..., 1], along[..., 0]], -1)
    offset = _wrapped(z - jnp.arctan2(along[..., 1], along[..., 0]))
    return _radial(kappa, offset)[..., None] * along + _turning(kappa, offset)[..., None] * across


def _radial(kappa: Array, offset: Array) -> Array:
    """dz/dkappa at z = mu + offset: int_end^offset (A - cos t) exp(kappa (cos t - cos offset)) dt.

    From the mean, end = 0, as from the antipode: the whole integral is zero. Beyond one unit of the exponent the way goes
    outwards, where the integrand falls, and ends where it is exp(-40).
    """
    sign, offset = jnp.where(offset < 0, -1.0, 1.0).astype(offset.dtype), jnp.abs(offset)
    square = jnp.sin(0.5 * offset) ** 2
    inwards = kappa * square <= 0.5
    reach = jnp.minimum(square + 20.0 / jnp.where(inwards, 1.0, kappa), 1.0)
    length = jnp.where(inwards, 0.0, 2.0 * jnp.arcsin(jnp.sqrt(reach))) - offset
    nodes, weights = _nodes()
    step = length[..., None] * constant_like(nodes, length[..., None])
    middle = offset[..., None] + 0.5 * step
    exponent = -2.0 * kappa[..., None] * jnp.sin(middle) * jnp.sin(0.5 * step)
    lost = jnp.where(kappa < 1, 1.0 - kappa * _small_slope(jnp.minimum(kappa, 1.0) ** 2), _complement(jnp.maximum(kappa, 1.0)))
    cosine_less_mean = lost[..., None] - 2.0 * jnp.sin(0.5 * (offset[..., None] + step)) ** 2
    return sign * length * jnp.sum(constant_like(weights, step) * cosine_less_mean * jnp.exp(exponent), -1)


def _turning(kappa: Array, offset: Array) -> Array:
    """(dz/dmu) / kappa at z = mu + offset; cos(offset) at kappa = 0."""
    small = kappa * jnp.cos(offset) + _small_log_i0(jnp.minimum(kappa, 1.0) ** 2)
    large = 2.0 * kappa * jnp.cos(0.5 * offset) ** 2 + _log_i0e(jnp.maximum(kappa, 1.0))
    turned = -jnp.expm1(-jnp.where(kappa < 1, small, large))
    return jnp.where(kappa > 0, turned / jnp.where(kappa > 0, kappa, 1.0), jnp.cos(offset))


@jax.custom_jvp
def _carried(eta: Array, z: Array) -> Array:
    """z, that moves with eta."""
    return z


@_carried.defjvp
def _carried_jvp(primals, tangents):
    (eta, z), (eta_dot, z_dot) = primals, tangents
    return z, z_dot + jnp.sum(velocity(eta, z) * eta_dot, -1)


def _split(eta: Array) -> tuple[Array, Array, Array, Array]:
    """(whether kappa < 1, kappa^2 there, kappa and mu elsewhere): each harmless where it is not used."""
    near = jnp.sum(eta**2, -1) < 1.0
    small = jnp.where(near[..., None], eta, 0.0)
    large = jnp.where(near[..., None], constant_like(_EAST, eta), eta)
    return near, jnp.sum(small**2, -1), jnp.hypot(large[..., 0], large[..., 1]), jnp.arctan2(large[..., 1], large[..., 0])


def _small_log_i0(squares: Array) -> Array:
    """log I_0(kappa) of kappa^2 <= 1, by its power series."""
    return jnp.log1p(_i0_less_one(squares))


def _i0_less_one(squares: Array) -> Array:
    y = 0.25 * squares
    value = jnp.ones_like(y)
    for k in range(10, 1, -1):
        value = 1.0 + value * y / k**2
    return y * value


def _small_slope(squares: Array) -> Array:
    """A(kappa) / kappa of kappa^2 <= 1."""
    y = 0.25 * squares
    value = jnp.ones_like(y)
    for k in range(10, 0, -1):
        value = 1.0 + value * y / (k * (k + 1))
    return 0.5 * value / (1.0 + _i0_less_one(squares))


def _wrapped(x: Array) -> Array:
    """An angle in [-2 pi, 2 pi] as one in (-pi, pi]."""
    return x - 2 * math.pi * ((x > math.pi).astype(x.dtype) - (x <= -math.pi).astype(x.dtype))


@jax.custom_jvp
def _log_i0e(kappa: Array) -> Array:
    """log(exp(-kappa) I_0(kappa)), kappa >= 1."""
    return jnp.log(i0e(kappa))


@_log_i0e.defjvp
def _log_i0e_jvp(primals, tangents):
    return _log_i0e(*primals), -_complement(*primals) * tangents[0]


@jax.custom_jvp
def _complement(kappa: Array) -> Array:
    """1 - A(kappa), kappa >= 1."""
    far = kappa > _far(kappa.dtype)
    inverse = 1.0 / jnp.where(far, kappa, 1e3)
    series = jnp.zeros_like(kappa)
    for c in reversed(_coefficients()):
        series = (series + c) * inverse
    near = jnp.where(far, 1.0, kappa)
    return jnp.where(far, series, 1.0 - i1e(near) / i0e(near))


@_complement.defjvp
def _complement_jvp(primals, tangents):
    (kappa,), (kappa_dot,) = primals, tangents
    lost, far = _complement(kappa), kappa > _far(kappa.dtype)
    inverse = 1.0 / jnp.where(far, kappa, 1e3)
    series = jnp.zeros_like(kappa)
    for k, c in reversed(list(enumerate(_coefficients(), 1))):
        series = (series + k * c) * inverse
    near = jnp.where(far, 1.0, kappa)
    # A' = 1 - A / kappa - A^2
    return lost, -jnp.where(far, series * inverse, lost * (2.0 - lost) - (1.0 - lost) / near) * kappa_dot


def _far(dtype: jnp.dtype) -> float:
    """From here on the asymptotic series of 1 - A is the better one."""
    return 30.0 if jnp.finfo(dtype).bits > 32 else 10.0


@functools.cache
def _coefficients() -> tuple[float, ...]:
    """c_k of 1 - A(kappa) = sum_k c_k kappa^-k; the equation A' = 1 - A / kappa - A^2, order by order."""
    c = [0.0, 0.5]
    for k in range(2, 13):
        c.append(0.5 * ((k - 2) * c[k - 1] + sum(c[i] * c[k - i] for i in range(1, k))))
    return tuple(c[1:])


@functools.cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Nodes in (0, 1) and weights of Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    return 0.5 * (nodes + 1.0), 0.5 * weights
