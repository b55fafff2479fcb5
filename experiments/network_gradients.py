"""Norms of gradients at initialisation, against depth and against time, and what they should be in wide networks.

Layers are h' = s h + W a(h), s = 1 with a residual connection and 0 without; with layer norm a(h) is the activation of h
standardised. W is square, of variance gain / n: gain 1 is Xavier's initialisation, 2 He's. With q the mean square of h and g the
gradient of a random linear function of the output,

    q' = s q + gain E a(sqrt(q) z)^2,    E|g|^2 = (s + gain E a'(sqrt(q) z)^2) E|g'|^2,    z ~ N(0, 1)

(Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232.) Layer norm puts q = 1 into both
expectations and divides the second by q. The law is that of infinite width n; for ReLU and leaky ReLU without the rest, whose
factors are gain / 2 and gain (1 + slope^2) / 2, it is exact at any width (Hanin 2018, arXiv:1801.03744).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from genmod.core.keys import stream

ACTIVATIONS: dict[str, Callable] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "leaky ReLU": functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    "GELU": functools.partial(jax.nn.gelu, approximate=False),
}


class Variant(NamedTuple):
    """A kind of layer."""

    initialisation: str
    gain: float
    residual: float
    layer_norm: bool

    @property
    def layer(self) -> str:
        """Its name but for the initialisation."""
        return ("residual" if self.residual else "plain") + (", layer norm" if self.layer_norm else "")


VARIANTS = [
    Variant(name, gain, residual, layer_norm)
    for (name, gain), residual, layer_norm in itertools.product((("Xavier", 1.0), ("He", 2.0)), (0.0, 1.0), (False, True))
]


class Cell(NamedTuple):
    """A recurrent cell: its Linen module of n features, and the bias that is added to the gate that keeps the past."""

    module: Callable[[int], nn.RNNCellBase]
    gate: str = ""
    """Where that gate's bias stands among the parameters; none without one."""
    bias: float = 0.0


def _identity(h):
    return h


CELLS = {
    "RNN": Cell(nn.SimpleCell),
    "linear RNN": Cell(functools.partial(nn.SimpleCell, activation_fn=_identity)),
    "LSTM": Cell(nn.LSTMCell, "hf"),
    "LSTM, forget bias 2": Cell(nn.LSTMCell, "hf", 2.0),
    "GRU": Cell(nn.GRUCell, "iz"),
    "GRU, update bias 2": Cell(nn.GRUCell, "iz", 2.0),
}


def against_depth(key: jax.Array, width: int, depth: int, num_draws: int) -> dict[str, np.ndarray]:
    """By activation, (num_draws, variants, depth + 1): the norm of the gradient with respect to h of every layer, input first.

    Each draw has weights, an input ~ N(0, I) and a unit vector of its own, which all activations and variants share.
    """

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 3)
        make = jax.nn.initializers.glorot_normal()
        weights = jax.vmap(lambda key: make(key, (width, width)))(jax.random.split(keys[0], depth))
        x, readout = (jax.random.normal(k, (width,)) for k in keys[1:])
        readout /= jnp.linalg.norm(readout)
        return {name: _layer_gradients(fn, weights, x, readout) for name, fn in ACTIVATIONS.items()}

    found = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=8))(jax.random.split(key, num_draws))
    return {name: np.asarray(norms, np.float64) for name, norms in found.items()}


def _layer_gradients(activation: Callable, weights: jax.Array, x: jax.Array, readout: jax.Array) -> jax.Array:
    gain, residual, layer_norm = (jnp.asarray([v[i] for v in VARIANTS], x.dtype)[:, None] for i in (1, 2, 3))

    def layer(h, each):
        weight, shift = each
        seen = jnp.where(layer_norm > 0, jax.nn.standardize(h, axis=-1, epsilon=1e-6), h)
        return residual * h + jnp.sqrt(gain) * (activation(seen) @ weight) + shift, None

    def out(shifts):
        first = jnp.broadcast_to(x, (len(VARIANTS), x.size)) + shifts[0]
        return (jax.lax.scan(layer, first, (weights, shifts[1:]))[0] @ readout).sum()

    # The gradient with respect to a shift of h is that with respect to h.
    gradients = jax.grad(out)(jnp.zeros((len(weights) + 1, len(VARIANTS), x.size), x.dtype))
    return _norms(gradients).T


def depth_law(activation: Callable, variant: Variant, depth: int) -> np.ndarray:
    """E|g|^2 with respect to h of every layer for a unit gradient of the output, (depth + 1,), input first, at infinite width."""
    q, factors = 1.0, []
    for _ in range(depth):
        square, slope = _moments(activation, 1.0 if variant.layer_norm else q)
        factors.append(variant.residual + variant.gain * slope / (q if variant.layer_norm else 1.0))
        q = variant.residual * q + variant.gain * square
    return np.concatenate([np.cumprod(factors[::-1])[::-1], [1.0]])


def factor(norms: np.ndarray) -> gm.metrics.Measured:
    """By what E|g|^2 is multiplied per layer, from norms (draws, layers + 1) whose last are 1."""
    squares, depth = norms[:, 0] ** 2, norms.shape[1] - 1
    mean, sem = map(float, gm.metrics.mean_and_sem(squares))
    value = mean ** (1.0 / depth)
    return gm.metrics.Measured(value, value * sem / mean / depth)


def against_time(key: jax.Array, cell: Cell, num_features: int, num_steps: int, num_draws: int) -> tuple[np.ndarray, float]:
    """Norms of the gradient of the last output with respect to the input of t steps before, (draws, steps), and the mean square
    of the outputs."""
    net = gm.nets.Recurrent(cell.module(num_features))
    norms, squares = _time_gradients(net, cell.gate, num_steps, jax.random.split(key, num_draws), jnp.asarray(cell.bias))
    return np.asarray(norms, np.float64), float(squares.mean())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _time_gradients(net: gm.nets.Recurrent, gate: str, num_steps: int, keys: jax.Array, bias: jax.Array):
    num_features = net.cell.features  # type: ignore[attr-defined]

    def draw(key):
        x = jax.random.normal(stream(key, "x"), (num_steps, num_features))
        readout = jax.random.normal(stream(key, "readout"), (num_features,))
        params = dict(net.init(stream(key, "init"), x))
        if gate:
            params[gate] = params[gate] | {"bias": params[gate]["bias"] + bias}

        def last(x):
            y = net.apply(params, x)
            return y[-1] @ (readout / jnp.linalg.norm(readout)), jnp.square(y).mean()

        gradient, square = jax.grad(last, has_aux=True)(x)
        return _norms(gradient)[::-1], square

    return jax.lax.map(draw, keys, batch_size=8)


def time_law(cell: Cell, output_square: float) -> float:
    """By what E|g|^2 is multiplied per step, at infinite width; of gated cells by the gate that keeps the past alone.

    Pre-activations have variance 1 + E y^2: weights of the input are of variance 1 / n, those of the state orthogonal. E y^2
    follows for the RNN; for gated cells it is `output_square`. Other ways back in time than the gate make their factor larger.
    """
    if cell.gate:
        return _moments(lambda z: jax.nn.sigmoid(z + cell.bias), 1.0 + output_square)[0]
    activation = getattr(cell.module(1), "activation_fn")  # noqa: B009
    if activation is _identity:
        return 1.0
    q = 1.0
    for _ in range(200):
        q = 1.0 + _moments(activation, q)[0]
    return _moments(activation, q)[1]


def step_factor(norms: np.ndarray) -> gm.metrics.Measured:
    """By what E|g|^2 is multiplied per step, over the middle third of the steps: the first are apart, the last start at zero."""
    start, end = norms.shape[1] // 3, 2 * norms.shape[1] // 3
    before, after = norms[:, start] ** 2, norms[:, end] ** 2
    value = (after.mean() / before.mean()) ** (1.0 / (end - start))
    # The delta method for a ratio of means.
    relative = float(gm.metrics.mean_and_sem(after / after.mean() - before / before.mean())[1])
    return gm.metrics.Measured(float(value), float(value) * relative / (end - start))


def _moments(activation: Callable, q: float) -> tuple[float, float]:
    """E a(sqrt(q) z)^2 and E a'(sqrt(q) z)^2. The nodes lie symmetrically about 0, so that kinks there cost nothing."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    z = jnp.asarray(nodes * np.sqrt(q), jnp.float32)
    values, slopes = (np.asarray(fn(z), np.float64) for fn in (activation, jax.vmap(jax.grad(activation))))
    weights = weights / weights.sum()
    return float(weights @ values**2), float(weights @ slopes**2)


def _norms(x: Any) -> jax.Array:
    """Norms over the last axis, without underflow of the squares."""
    size = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), jnp.finfo(x.dtype).tiny)
    return size[..., 0] * jnp.linalg.norm(x / size, axis=-1)
