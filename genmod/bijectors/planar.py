"""Planar, radial and Sylvester flows: rank-one, radial and rank-M perturbations of the identity.

`forward` is closed; `inverse` solves scalar monotone equations numerically (planar: one, Sylvester: M) with implicit
gradients, except the radial flow's, which is a quadratic. A root that is not found is NaN, and the layer counts it in its info.
To train a DENSITY put them in `Invert`, so that data to base is the cheap direction. A context, where declared, shifts the bias
through a linear map that starts at zero.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from genmod.bijectors.base import Bijector, InfoBijector
from genmod.bijectors.linear import reflect, vector_dim
from genmod.bijectors.numerical import monotone_root
from genmod.bijectors.permutation import dot
from genmod.core.checks import check_count
from genmod.core.info import lost_roots
from genmod.core.numerics import flat_context
from genmod.core.types import Array, Context, Shape


@dataclasses.dataclass(frozen=True)
class Planar(InfoBijector):
    """x = z + u tanh(w.z + b) (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 10).

    det = 1 + u.w h'(w.z + b); u is moved along w so that w.u > -1, which makes the map invertible (ibid., app. A.1).
    """

    onto_reals = True
    context_shape: Shape | None = None
    reads_data = False

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        w = jax.random.normal(key, (dim,), x.dtype) / jnp.sqrt(jnp.asarray(dim, x.dtype))
        # m(0) = 0 below: u = 0 is the identity.
        return {"w": w, "u": jnp.zeros(dim, x.dtype), "b": jnp.zeros((), x.dtype), **_context_kernel(context, (), x.dtype)}

    def _move(self, params, event, context, key, inverse, log_det):
        w, u, w_dot_u = self._direction(params)
        bias, along = _bias(params, context), dot(w, event)
        a = monotone_root(_along_w, jnp.stack([w_dot_u, bias]), along) if inverse else along
        h = jnp.tanh(a + bias)
        total = jnp.log1p(w_dot_u * (1 - h**2))
        if not inverse:
            return event + u * h, total, {}
        z = event - u * h
        return z, -total, lost_roots(z)

    def _direction(self, params):
        """w, the constrained u, and w.u = m(w.u_free) with m of `_above_minus_one`."""
        w, u = params["w"], params["u"]
        free = dot(w, u)
        constrained = _above_minus_one(free)
        return w, u + (constrained - free) * w / jnp.maximum(dot(w, w), jnp.finfo(w.dtype).tiny), constrained


def _along_w(raw, a):
    return a + raw[0] * jnp.tanh(a + raw[1])


@dataclasses.dataclass(frozen=True)
class Radial(Bijector):
    """x = z + beta (z - c) / (alpha + |z - c|) (Rezende & Mohamed 2015, eq. 14), alpha > 0, beta > -alpha.

    With r = |z - c|, g = 1 + beta / (alpha + r): det = g^(D-1) (1 + alpha beta / (alpha + r)^2). A context moves c.
    """

    onto_reals = True
    context_shape: Shape | None = None
    reads_data = False

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        center = jax.random.normal(key, (dim,), x.dtype)
        zero = jnp.zeros((), x.dtype)
        return {"b": center, "log_alpha": zero, "ratio": zero, **_context_kernel(context, (dim,), x.dtype)}

    def _forward(self, params, z, context):
        center, alpha, beta = self._shape(params, context)
        offset = z - center
        r = _safe_norm(offset)
        return center + offset * (1 + beta / (alpha + r)), self._log_det(r, alpha, beta, z.size)

    def _inverse(self, params, x, context):
        center, alpha, beta = self._shape(params, context)
        offset = x - center
        distance = _safe_norm(offset)
        # distance = r + beta r / (alpha + r): the positive root of r^2 + (alpha + beta - distance) r - alpha distance.
        half = 0.5 * (alpha + beta - distance)
        root = jnp.sqrt(half**2 + alpha * distance)
        positive = half > 0
        r = jnp.where(positive, alpha * distance / jnp.where(positive, half + root, 1.0), root - half)
        return center + offset / (1 + beta / (alpha + r)), -self._log_det(r, alpha, beta, x.size)

    def _shape(self, params, context):
        alpha = jnp.exp(params["log_alpha"])
        return _bias(params, context), alpha, alpha * _above_minus_one(params["ratio"])

    def _log_det(self, r, alpha, beta, dim):
        return (dim - 1) * jnp.log1p(beta / (alpha + r)) + jnp.log1p(alpha * beta / (alpha + r) ** 2)


@dataclasses.dataclass(frozen=True)
class Sylvester(InfoBijector):
    """x = z + Q R tanh(S Q^T z + b), R and S upper triangular M x M (van den Berg et al. 2018, arXiv:1803.05649, eq. 13).

    Sylvester's identity gives det = det(I_M + diag(h') S R) = prod_i (1 + h'_i S_ii R_ii), with R_ii S_ii > -1 for an
    invertible map. `basis` says what Q (D x M, orthonormal columns) is: "orthogonal" (QR of a free matrix),
    "householder" (`num_units` reflections), or "triangular" (the identity, M = D; alternate with permutations).
    """

    onto_reals = True
    num_units: int | None = None
    basis: Literal["orthogonal", "householder", "triangular"] = "orthogonal"
    context_shape: Shape | None = None
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        if self.num_units is not None:
            check_count(num_units=self.num_units)
        if self.basis not in ("orthogonal", "householder", "triangular"):
            raise ValueError(f"basis must be 'orthogonal', 'householder' or 'triangular', got {self.basis!r}")
        if self.basis == "triangular" and self.num_units is not None:
            raise ValueError("basis='triangular' has as many units as coordinates; leave num_units=None")

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        m = dim if self.num_units is None else self.num_units
        if m > dim:
            raise ValueError(f"num_units must be at most the dimension {dim}, got {m}")
        keys = jax.random.split(key, 2)
        params = {
            "r": jnp.zeros((m, m), x.dtype),
            "s": jnp.triu(jax.random.normal(keys[0], (m, m), x.dtype)) / jnp.sqrt(jnp.asarray(m, x.dtype)),
            "b": jnp.zeros(m, x.dtype),
            **_context_kernel(context, (m,), x.dtype),
        }
        shape = {"orthogonal": (dim, m), "householder": (m, dim)}.get(self.basis)
        return params if shape is None else params | {"q": jax.random.normal(keys[1], shape, x.dtype)}

    def _move(self, params, event, context, key, inverse, log_det):
        r, s, products = self._triangles(params)
        q, bias = self._q(params, event.shape[0]), _bias(params, context)
        y = dot(q.T, event)
        h = self._solved(r, s, bias, y) if inverse else jnp.tanh(dot(s, y) + bias)
        total = jnp.log1p((1 - h**2) * products).sum()
        if not inverse:
            return event + dot(q, dot(r, h)), total, {}
        z = event - dot(q, dot(r, h))
        return z, -total, lost_roots(z)

    def _solved(self, r, s, bias, y):
        """tanh(S v + b) at the v = Q^T z with v + R tanh(S v + b) = y, from the last row up: each is a scalar equation."""

        def row(carry, i):
            v, h = carry
            raw = jnp.stack([r[i, i], s[i, i], bias[i] + dot(s[i], v)])
            v_i = monotone_root(_one_unit, raw, y[i] - dot(r[i], h))
            return (v.at[i].set(v_i), h.at[i].set(jnp.tanh(raw[1] * v_i + raw[2]))), None

        start = jnp.zeros_like(y), jnp.zeros_like(y)
        return jax.lax.scan(row, start, jnp.arange(y.shape[0]), reverse=True)[0][1]

    def _triangles(self, params):
        """R, S, and their diagonal products R_ii S_ii > -1. S_ii = exp(.) > 0, R_ii = m(free) / S_ii."""
        scale = jnp.exp(jnp.tanh(jnp.diagonal(params["s"])))
        products = _above_minus_one(jnp.diagonal(params["r"]) * scale)
        r = jnp.triu(params["r"], 1) + jnp.diag(products / scale)
        return r, jnp.triu(params["s"], 1) + jnp.diag(scale), products

    def _q(self, params, dim):
        if self.basis == "orthogonal":
            return jnp.linalg.qr(params["q"])[0]
        m = params["b"].shape[0]
        columns = jnp.eye(dim, m, dtype=params["b"].dtype)
        return columns if self.basis == "triangular" else jax.vmap(reflect, (None, 1), 1)(params["q"], columns)


def _one_unit(raw, v):
    return v + raw[0] * jnp.tanh(raw[1] * v + raw[2])


def _above_minus_one(free: Array) -> Array:
    """(1 - d) softplus(free + log(e - 1)) - 1 + d, d = 1e-3: 0 at 0, and never nearer than d to -1, where a slope vanishes."""
    floor = 1e-3
    return (1 - floor) * (jax.nn.softplus(free + jnp.log(jnp.expm1(jnp.ones((), free.dtype)))) - 1)


def _bias(params, context: Context) -> Array:
    return params["b"] if context is None else params["b"] + dot(flat_context(context, params["kernel"].dtype), params["kernel"])


def _context_kernel(context: Context, shape: Shape, dtype) -> dict[str, Array]:
    return {} if context is None else {"kernel": jnp.zeros((context[0].size, *shape), dtype)}


def _safe_norm(x: Array) -> Array:
    """|x| with gradient zero, not NaN, at the origin."""
    square = dot(x, x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
