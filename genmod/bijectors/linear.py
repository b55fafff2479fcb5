"""Affine maps of a vector, x = A z + b: every usual parameterisation of A, each with log |det A| by its cheapest route.

All start at (or near) the identity. Log-determinants are of ABSOLUTE values: negative diagonals are
right as they stand. General matrices cost O(D^3) once, triangular ones O(D^2), Householder O(D K).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.base import Bijector
from genmod.bijectors.permutation import check_order, dot, inverse_order, take
from genmod.core.checks import check_count
from genmod.core.types import Array


@dataclasses.dataclass(frozen=True)
class ScalarAffine(Bijector):
    """x = scale z + shift with ONE scale and one shift for the whole event (any shape)."""

    onto_reals = True
    reads_data = False

    def _init(self, key, x, context):
        return {"scale": jnp.ones((), x.dtype), "shift": jnp.zeros((), x.dtype)}

    def _forward(self, params, z, context):
        return params["scale"] * z + params["shift"], z.size * jnp.log(jnp.abs(params["scale"]))

    def _inverse(self, params, x, context):
        return (x - params["shift"]) / params["scale"], -x.size * jnp.log(jnp.abs(params["scale"]))


@dataclasses.dataclass(frozen=True)
class DiagonalAffine(Bijector):
    """x = scale z + shift, one scale of any sign and one shift per coordinate (any event shape)."""

    onto_reals = True
    reads_data = False

    def _init(self, key, x, context):
        return {"scale": jnp.ones(x.shape[1:], x.dtype), "shift": jnp.zeros(x.shape[1:], x.dtype)}

    def _forward(self, params, z, context):
        return params["scale"] * z + params["shift"], jnp.log(jnp.abs(params["scale"])).sum()

    def _inverse(self, params, x, context):
        return (x - params["shift"]) / params["scale"], -jnp.log(jnp.abs(params["scale"])).sum()


@dataclasses.dataclass(frozen=True)
class MatrixAffine(Bijector):
    """x = A z + b with a free matrix A; log |det A| and the solve go through LAPACK's pivoted LU."""

    onto_reals = True
    reads_data = False

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        return {"matrix": jnp.eye(dim, dtype=x.dtype), "shift": jnp.zeros(dim, x.dtype)}

    def _forward(self, params, z, context):
        return dot(params["matrix"], z) + params["shift"], jnp.linalg.slogdet(params["matrix"])[1]

    def _inverse(self, params, x, context):
        z = jnp.linalg.solve(params["matrix"], x - params["shift"])
        return z, -jnp.linalg.slogdet(params["matrix"])[1]


@dataclasses.dataclass(frozen=True)
class TriangularAffine(Bijector):
    """x = T z + b with T triangular; its diagonal may have any sign, log |det T| = sum log |T_ii|."""

    onto_reals = True
    lower: bool = True
    reads_data = False

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        return {"matrix": jnp.eye(dim, dtype=x.dtype), "shift": jnp.zeros(dim, x.dtype)}

    def _forward(self, params, z, context):
        matrix = self._triangle(params["matrix"])
        return dot(matrix, z) + params["shift"], log_abs_diagonal(matrix)

    def _inverse(self, params, x, context):
        matrix = self._triangle(params["matrix"])
        z = jax.scipy.linalg.solve_triangular(matrix, x - params["shift"], lower=self.lower)
        return z, -log_abs_diagonal(matrix)

    def _triangle(self, matrix):
        return jnp.tril(matrix) if self.lower else jnp.triu(matrix)


@dataclasses.dataclass(frozen=True)
class LowRankAffine(Bijector):
    """x = (diag(d) + U V^T) z + b with U, V of shape (D, rank): O(D rank^2) in both directions.

    det = prod d_i det(I + V^T diag(1/d) U) (matrix determinant lemma); the inverse is Woodbury's.
    """

    onto_reals = True
    rank: int = 1
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_count(rank=self.rank)

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        # V random, U zero: the identity, from which gradients can move.
        v = jax.random.normal(key, (dim, self.rank), x.dtype) / np.sqrt(dim)
        return {
            "log_diagonal": jnp.zeros(dim, x.dtype),
            "u": jnp.zeros((dim, self.rank), x.dtype),
            "v": v,
            "shift": jnp.zeros(dim, x.dtype),
        }

    def _forward(self, params, z, context):
        x = jnp.exp(params["log_diagonal"]) * z + dot(params["u"], dot(params["v"].T, z)) + params["shift"]
        return x, self._log_det(params)

    def _inverse(self, params, x, context):
        inverse_diagonal = jnp.exp(-params["log_diagonal"])
        y = inverse_diagonal * (x - params["shift"])
        z = y - inverse_diagonal * dot(params["u"], jnp.linalg.solve(self._capacitance(params), dot(params["v"].T, y)))
        return z, -self._log_det(params)

    def _capacitance(self, params):
        scaled = jnp.exp(-params["log_diagonal"])[:, None] * params["u"]
        return jnp.eye(self.rank, dtype=scaled.dtype) + dot(params["v"].T, scaled)

    def _log_det(self, params):
        return params["log_diagonal"].sum() + jnp.linalg.slogdet(self._capacitance(params))[1]


@dataclasses.dataclass(frozen=True)
class LULinear(Bijector):
    """x = P L U z + b: P a fixed permutation, L unit lower triangular, U upper with a positive diagonal.

    Glow's linear layer (Kingma & Dhariwal 2018, arXiv:1807.03039, eq. 10): log |det| = sum log U_ii in O(D), the inverse
    by two triangular solves. `order` is P as x_i = y_order[i]; None is no permutation.
    """

    onto_reals = True
    order: tuple[int, ...] | None = None
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_order(self.order)

    @property
    def event_shape(self):
        return None if self.order is None else (len(self.order),)

    def _init(self, key, x, context):
        dim = vector_dim(self, x)
        zeros = jnp.zeros((dim, dim), x.dtype)
        return {"lower": zeros, "upper": zeros, "log_diagonal": jnp.zeros(dim, x.dtype), "shift": jnp.zeros(dim, x.dtype)}

    def _forward(self, params, z, context):
        lower, upper = self._factors(params)
        x = take(dot(lower, dot(upper, z)), self.order)
        return x + params["shift"], params["log_diagonal"].sum()

    def _inverse(self, params, x, context):
        lower, upper = self._factors(params)
        y = take(x - params["shift"], inverse_order(self.order))
        y = jax.scipy.linalg.solve_triangular(lower, y, lower=True, unit_diagonal=True)
        return jax.scipy.linalg.solve_triangular(upper, y, lower=False), -params["log_diagonal"].sum()

    def _factors(self, params):
        identity = jnp.eye(params["lower"].shape[0], dtype=params["lower"].dtype)
        return jnp.tril(params["lower"], -1) + identity, jnp.triu(params["upper"], 1) + jnp.diag(jnp.exp(params["log_diagonal"]))


@dataclasses.dataclass(frozen=True)
class Householder(Bijector):
    """x = Q z, Q = H_1 ... H_K a product of reflections H = I - 2 v v^T / |v|^2 (Tomczak & Welling 2016, arXiv:1611.09630).

    Orthogonal, so the log-determinant is 0 and the inverse is the transpose; K = D reaches every orthogonal matrix of
    determinant (-1)^D. For even K reflections start in equal pairs: the identity.
    """

    onto_reals = True
    num_reflections: int = 2
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_count(num_reflections=self.num_reflections)

    def _init(self, key, x, context):
        half = jax.random.normal(key, ((self.num_reflections + 1) // 2, vector_dim(self, x)), x.dtype)
        return {"vectors": jnp.repeat(half, 2, axis=0)[: self.num_reflections]}

    def _forward(self, params, z, context):
        return reflect(params["vectors"][::-1], z), 0.0

    def _inverse(self, params, x, context):
        return reflect(params["vectors"], x), 0.0


def reflect(vectors: Array, z: Array) -> Array:
    """z through the reflections (K, D), first row first."""

    def one(z, v):
        return z - 2.0 * v * dot(v, z) / dot(v, v), None

    return jax.lax.scan(one, z, vectors)[0]


def vector_dim(bijector: Bijector, x: Array) -> int:
    """D of a batch of vectors, (n, D); raises ValueError for events of another rank."""
    if x.ndim != 2:
        raise ValueError(f"{type(bijector).__name__} takes vectors, batches of shape (n, D), got {x.shape}")
    return x.shape[1]


def log_abs_diagonal(matrix: Array) -> Array:
    """log |det| of a triangular matrix."""
    return jnp.log(jnp.abs(jnp.diagonal(matrix))).sum()
