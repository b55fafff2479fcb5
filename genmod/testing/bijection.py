"""`check_bijection`: does a bijector keep its promises? Run it on every layer of your own.

Errors are held against what floating point allows: a value of size |z| is rounded by eps |z|, and the map back magnifies
that by the norm of its Jacobian.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.bijectors.base import Bijector
from genmod.bijectors.distrax import as_bijector
from genmod.core.distribution import Likelihood
from genmod.core.params import cast, trainable_mask
from genmod.core.types import Array, Key, Params
from genmod.testing.reports import Row, rows_text

# Rounding errors add up over the operations of a layer; a wrong sign or a forgotten term is larger by far.
_SLACK = 200.0


class BijectionReport(NamedTuple):
    """What `check_bijection` found; print it."""

    bijector: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        return rows_text(self.bijector, self.rows)


def check_bijection(
    bijector: Any,
    x: ArrayLike,
    context: ArrayLike | None = None,
    *,
    params: Params | None = None,
    key: Key | None = None,
    far: float | None = 10.0,
    large: float = 5.0,
    num_points: int = 8,
) -> BijectionReport:
    """Holds a bijector to the protocol and returns a readable report (`print(report)`, `report.passed`).

    Checked: log-determinants against the slogdet of the autodiff Jacobian in both directions; round trips in float32 and
    float64, also at points `far` times as far from the mean; gradients of the inverse against finite differences and
    finite at parameters of size `large`; jit = eager = vmap; dtypes kept.

    Args:
      bijector: of ours, of your own, or of Distrax.
      x: a batch of data, (n,) + event shape, inside the bijector's range. context: (n,) + context_shape.
      params: parameters to check at; None is `init` plus N(0, 0.3^2) noise, since at the identity little can be wrong.
      key: of that noise; None: always the same.
      far: None where the range is bounded, so that no far point is valid.
      large: standard deviation of the noise on the parameters at which gradients must be finite.
      num_points: how many of the data are looked at.

    Returns the report. Raises what the bijector raises, and TypeError for what is none; errors of value are rows of the report.
    """
    bijector = as_bijector(bijector)
    if bijector.likelihood is not Likelihood.EXACT:
        raise ValueError("check_bijection is for exact log-determinants; this bijector's is an estimate")
    key = jax.random.key(0) if key is None else key
    points = np.asarray(x)[:num_points]
    near = len(points)
    contexts = None if context is None else np.asarray(context)[:num_points]
    start = bijector.init(jax.random.fold_in(key, 0), jnp.asarray(x), context) if params is None else params
    params = _jitter(start, jax.random.fold_in(key, 1), 0.3) if params is None else params
    if far is not None:
        points = np.concatenate([points, points.mean(0) + far * (points - points.mean(0))])
        contexts = None if contexts is None else np.concatenate([contexts, contexts])
    rows = []
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype == np.float64):
            probe = _Probe(bijector, cast(params, dtype), None if contexts is None else jnp.asarray(contexts))
            rows += _values(np.dtype(dtype).name, probe, jnp.asarray(points, dtype), near)
            if dtype == np.float64:
                rows.append(_finite_differences(probe, jnp.asarray(points, dtype)[:near], jax.random.fold_in(key, 2)))
            else:
                rows.append(_jit_eager_vmap(probe, jnp.asarray(points, dtype)))
                probe.params = cast(_jitter(start, jax.random.fold_in(key, 3), large), dtype)
                rows.append(_finite_gradients(f"parameters of size {large:g}", probe, jnp.asarray(points, dtype)[:near]))
    return BijectionReport(repr(bijector), tuple(rows))


class _Maps(NamedTuple):
    """Both directions with their log-determinants and Jacobians at a batch of z and a batch of x."""

    x_of_z: Array
    forward_log_det: Array
    forward_jacobian: Array
    z_of_x: Array
    inverse_log_det: Array
    inverse_jacobian: Array


class _Probe:
    """A bijector at fixed parameters, batched over points and contexts; one compiled function for all values."""

    def __init__(self, bijector: Bijector, params: Params, context: Array | None):
        self.bijector, self.params, self.context = bijector, params, context
        self._maps = jax.jit(self._all)

    def maps(self, z: Array, x: Array) -> _Maps:
        return self._maps(self.params, z, x)

    def as_latents(self, x: Array) -> Array:
        """Some latent events, as many as x."""
        return x.reshape(x.shape[0], *self.bijector.latent_shape(x.shape[1:]))

    def scalar(self, params: Params, x: Array) -> Array:
        """Some smooth number that depends on everything the inverse returns."""
        z, log_det = self._batched(self.bijector.inverse_and_log_det, params, x)
        return jnp.sin(z).sum() + log_det.sum()

    def _all(self, params, z, x) -> _Maps:
        out = []
        for direction, events in ((self.bijector.forward_and_log_det, z), (self.bijector.inverse_and_log_det, x)):
            value_and_jacobian = jax.jacfwd(lambda *args, f=direction: ((y := f(*args))[0], y), argnums=1, has_aux=True)
            jacobian, value = self._batched(value_and_jacobian, params, events)
            size = int(np.prod(events.shape[1:], dtype=int))
            out += [*value, jacobian.reshape(events.shape[0], -1, size)]
        return _Maps(*out)

    def _batched(self, fn, params, events):
        context = None if self.context is None else self.context[: events.shape[0]]
        return jax.vmap(fn, (None, 0, None if context is None else 0))(params, events, context)


def _jitter(params: Params, key: Key, scale: float) -> Params:
    """`params` with noise of size `scale` on what is trained."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # NumPy: no compilation for every new shape
    noise = jax.tree.map(lambda p: np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)
    return jax.tree.map(lambda p, n, trained: p + n if trained else p, params, noise, trainable_mask(params))


def _values(name: str, probe: _Probe, x: Array, near: int) -> list[Row]:
    """Log-determinants, round trips and dtypes at the points x, of which the first `near` are not far points."""
    z = probe.maps(probe.as_latents(x), x).z_of_x
    maps = probe.maps(z, x)
    back = probe.maps(z, maps.x_of_z)
    rows = []
    if name == "float64":
        rows.append(_log_det("log_det forward = autodiff", maps.forward_log_det[:near], maps.forward_jacobian[:near]))
        rows.append(_log_det("log_det inverse = autodiff", maps.inverse_log_det[:near], maps.inverse_jacobian[:near]))
    for place, points in (("", slice(near)), (", far points", slice(near, None))):
        if x[points].size:
            size = 1 + _largest(z[points]) + _largest(x[points])
            norms = (1 + _norm(maps.forward_jacobian[points])) * (1 + _norm(maps.inverse_jacobian[points]))
            allowed = _SLACK * _eps(x) * size * norms
            errors = {
                "inverse(forward(z)) = z": back.z_of_x - z,
                "forward(inverse(x)) = x": maps.x_of_z - x,
                "log_dets opposite": back.inverse_log_det + maps.forward_log_det,
            }
            rows += [Row(f"{what}, {name}{place}", _largest(error[points]), allowed) for what, error in errors.items()]
    wrong = [out.dtype != x.dtype for out in maps]
    return [*rows, Row(f"outputs not {name}", float(sum(wrong)), 0.0)]


def _log_det(name: str, log_det: Array, jacobian: Array) -> Row:
    error = jnp.abs(log_det - jnp.linalg.slogdet(jacobian)[1]).max()
    # A relative error eps of the matrix moves slogdet by eps times its condition number.
    size = jnp.linalg.cond(jacobian).max() + jnp.abs(log_det).max()
    return Row(name, float(error), _SLACK * _eps(log_det) * float(size))


def _finite_differences(probe: _Probe, x: Array, key: Key) -> Row:
    """Directional derivative of the inverse and its log_det, in trainable parameters and x together."""
    direction = _jitter(jax.tree.map(jnp.zeros_like, (probe.params, x)), key, 1.0)
    mask = trainable_mask(probe.params), True
    direction = jax.tree.map(lambda d, trained: d if trained else jnp.zeros_like(d), direction, mask)
    value_and_slope = jax.jit(lambda h: jax.jvp(lambda h: probe.scalar(*_moved((probe.params, x), direction, h)), (h,), (1.0,)))
    exact = value_and_slope(0.0)[1]
    estimates = [(value_and_slope(h)[0] - value_and_slope(-h)[0]) / (2 * h) for h in (1e-6, 3e-6)]
    error = min(float(jnp.abs(exact - estimate)) for estimate in estimates)
    return Row("gradient of inverse = finite difference", error, 1e-4 * (1 + float(jnp.abs(exact))))


def _moved(start, direction, step):
    return jax.tree.map(lambda a, d: a + step * d, start, direction)


def _finite_gradients(name: str, probe: _Probe, x: Array) -> Row:
    gradients = jax.jit(jax.value_and_grad(probe.scalar, argnums=(0, 1)))(probe.params, x)
    bad = sum(int((~jnp.isfinite(v)).sum()) for v in jax.tree.leaves(gradients))
    return Row(f"non-finite gradients, {name}", float(bad), 0.0)


def _jit_eager_vmap(probe: _Probe, x: Array) -> Row:
    batched = probe.maps(probe.as_latents(x), x)
    context = None if probe.context is None else probe.context[0]
    z, log_det = probe.bijector.inverse_and_log_det(probe.params, x[0], context)
    # np.maximum, unlike max, keeps a NaN.
    error = float(np.maximum(_largest(z - batched.z_of_x[0]), _largest(log_det - batched.inverse_log_det[0])))
    allowed = _SLACK * _eps(x) * (1 + _largest(x[0])) * (1 + _norm(batched.inverse_jacobian[:1]))
    return Row("jit = eager = vmap", error, allowed)


def _largest(x: Array) -> float:
    return float(jnp.abs(x).max()) if x.size else 0.0


def _norm(jacobian: Array) -> float:
    return float(jnp.linalg.norm(jacobian, axis=(-2, -1)).max())


def _eps(x: Array) -> float:
    return float(jnp.finfo(x.dtype).eps)
