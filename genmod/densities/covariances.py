"""Covariances of K Gaussians, and the estimate of each kind: the best that is nowhere smaller than a floor.

    full        L_k L_k^T          tied      L L^T, one for all          diagonal    diag(s_k^2)         spherical   s_k^2 I

Parameters are free real numbers: log-scales, which are the logarithms of the diagonal of L, and what stands below it. The maximum
of the likelihood over covariances whose eigenvalues are at least `floor` has the eigenvectors of the scatter, and its eigenvalues
raised to the floor; EM with it never lowers the likelihood.

Arrays of residuals x - mean are (K, D, n): the long axis is the last.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from genmod.core.checks import check_positive
from genmod.core.description import Description
from genmod.core.types import Array, Params


class Covariance(Description, abc.ABC):
    """What covariances K Gaussians of D dimensions have.

    floor: the least variance in any direction, in squared units of the data. Without it a component that holds one datum would
    have an infinite likelihood.
    """

    floor: float

    def __post_init__(self):
        super().__post_init__()
        check_positive(floor=self.floor)

    @abc.abstractmethod
    def second(self, residual: Array, weight: Array) -> Array:
        """What `estimate` wants of the sum of weighted r r^T; residual (K, D, n), weight (K, n). Sums of rows may be added."""

    @abc.abstractmethod
    def estimate(self, total: Array, second: Array, shift: Array) -> Params:
        """The parameters of greatest likelihood.

        Args:
          total: the weight of each component, (K,), above zero.
          second: of `second`, about the old means. shift: new means less old ones, (K, D).
        """

    @abc.abstractmethod
    def whiten(self, params: Params, residual: Array) -> Array:
        """L_k^-1 r of residuals (K, D, n)."""

    @abc.abstractmethod
    def log_det(self, params: Params, dim: int) -> Array:
        """log |det L_k|, (K,), or (1,) where all are equal."""

    @abc.abstractmethod
    def color_one(self, params: Params, which: Array, noise: Array) -> Array:
        """L_k noise of ONE component `which` and one noise (D,)."""

    @abc.abstractmethod
    def num_free(self, num_components: int, dim: int) -> int:
        """The number of free parameters."""

    def of_factor(self, factor: Array, num_components: int) -> Params:
        """The parameters of this kind, equal for all components, that fit data of covariance factor factor^T (D, D) best."""
        columns = jnp.broadcast_to(factor, (num_components, *factor.shape))  # residuals of that covariance
        one = jnp.ones(columns.shape[:2], factor.dtype)
        return self.estimate(one[:, 0], self.second(columns, one), jnp.zeros_like(one))

    @abc.abstractmethod
    def kept(self, old: Params, new: Params, keep: Array) -> Params:
        """`new`, and `old` for the components where `keep`, (K,)."""


@dataclasses.dataclass(frozen=True)
class FullCovariance(Covariance):
    """A covariance matrix of its own for every component: {"log_scale": (K, D), "lower": (K, D, D)}."""

    floor: float = 1e-6

    def second(self, residual, weight):
        return _outer(residual, weight)

    def estimate(self, total, second, shift):
        mean = second / total[:, None, None]
        factor = jax.vmap(floored_factor, (0, None))(mean - shift[:, :, None] * shift[:, None, :], self.floor)
        return jax.vmap(parameters_of)(factor)

    def whiten(self, params, residual):
        return _product(jax.vmap(inverse_factor)(params), residual)

    def log_det(self, params, dim):
        return params["log_scale"].sum(-1)

    def color_one(self, params, which, noise):
        return jnp.matmul(factor_of(jax.tree.map(lambda a: a[which], params)), noise, precision="highest")

    def num_free(self, num_components, dim):
        return num_components * dim * (dim + 1) // 2

    def kept(self, old, new, keep):
        return _kept(old, new, keep)


@dataclasses.dataclass(frozen=True)
class TiedCovariance(Covariance):
    """One covariance matrix for all components: {"log_scale": (D,), "lower": (D, D)}."""

    floor: float = 1e-6

    def second(self, residual, weight):
        return _outer(residual, weight).sum(0)

    def estimate(self, total, second, shift):
        between = jnp.matmul(shift.T * total[None], shift, precision="highest")
        return parameters_of(floored_factor((second - between) / total.sum(), self.floor))

    def whiten(self, params, residual):
        inverse = inverse_factor(params)
        return _product(jnp.broadcast_to(inverse, (residual.shape[0], *inverse.shape)), residual)

    def log_det(self, params, dim):
        return params["log_scale"].sum()[None]

    def color_one(self, params, which, noise):
        return jnp.matmul(factor_of(params), noise, precision="highest")

    def num_free(self, num_components, dim):
        return dim * (dim + 1) // 2

    def kept(self, old, new, keep):
        return new


@dataclasses.dataclass(frozen=True)
class DiagonalCovariance(Covariance):
    """Independent coordinates, with scales of their own for every component: {"log_scale": (K, D)}."""

    floor: float = 1e-6

    def second(self, residual, weight):
        return jnp.sum(weight[:, None] * residual**2, -1)

    def estimate(self, total, second, shift):
        return {"log_scale": 0.5 * jnp.log(jnp.maximum(second / total[:, None] - shift**2, self.floor))}

    def whiten(self, params, residual):
        return residual * jnp.exp(-params["log_scale"])[:, :, None]

    def log_det(self, params, dim):
        return params["log_scale"].sum(-1)

    def color_one(self, params, which, noise):
        return jnp.exp(params["log_scale"][which]) * noise

    def num_free(self, num_components, dim):
        return num_components * dim

    def kept(self, old, new, keep):
        return _kept(old, new, keep)


@dataclasses.dataclass(frozen=True)
class SphericalCovariance(Covariance):
    """One scale for all coordinates of a component: {"log_scale": (K,)}."""

    floor: float = 1e-6

    def second(self, residual, weight):
        return jnp.sum(weight * jnp.sum(residual**2, 1), -1)

    def estimate(self, total, second, shift):
        variance = (second / total - jnp.sum(shift**2, -1)) / shift.shape[1]
        return {"log_scale": 0.5 * jnp.log(jnp.maximum(variance, self.floor))}

    def whiten(self, params, residual):
        return residual * jnp.exp(-params["log_scale"])[:, None, None]

    def log_det(self, params, dim):
        return dim * params["log_scale"]

    def color_one(self, params, which, noise):
        return jnp.exp(params["log_scale"][which]) * noise

    def num_free(self, num_components, dim):
        return num_components

    def kept(self, old, new, keep):
        return _kept(old, new, keep)


# --- factors -------------------------------------------------------------------------------------------------------------------


def floored_factor(matrix: Array, floor: float) -> Array:
    """The lower Cholesky factor of a symmetric (D, D) matrix whose eigenvalues below `floor` are raised to it."""
    matrix = 0.5 * (matrix + matrix.T)
    plain = jnp.linalg.cholesky(matrix)
    inverse = jax.scipy.linalg.solve_triangular(plain, jnp.eye(matrix.shape[0], dtype=matrix.dtype), lower=True)
    # |L^-1|^2 bounds the inverse of the least eigenvalue: far from the floor no rounding of an eigendecomposition is wanted.
    enough = jnp.isfinite(inverse).all() & (jnp.sum(inverse**2) * floor <= 1.0)
    values, vectors = jnp.linalg.eigh(matrix)
    least = jnp.maximum(floor, jnp.finfo(matrix.dtype).eps * values[-1])
    root = jnp.sqrt(jnp.maximum(values, least))
    upper = jnp.linalg.qr(root[:, None] * vectors.T, mode="r")  # which exists where rounding lets Cholesky's factor fail
    raised = (upper * jnp.sign(jnp.diagonal(upper))[:, None]).T
    return jnp.where(enough, plain, raised)


def parameters_of(factor: Array) -> Params:
    """Free parameters of a lower triangular factor (D, D) with a positive diagonal."""
    return {"log_scale": jnp.log(jnp.diagonal(factor)), "lower": jnp.tril(factor, -1)}


def factor_of(params: Params) -> Array:
    """The lower triangular factor (D, D) of its free parameters."""
    return jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["log_scale"]))


def inverse_factor(params: Params) -> Array:
    """The inverse of `factor_of`."""
    identity = jnp.eye(params["log_scale"].size, dtype=params["log_scale"].dtype)
    return jax.scipy.linalg.solve_triangular(factor_of(params), identity, lower=True)


def _kept(old: Params, new: Params, keep: Array) -> Params:
    return jax.tree.map(lambda a, b: jnp.where(keep.reshape(-1, *(1,) * (a.ndim - 1)), a, b), old, new)


def _outer(residual: Array, weight: Array) -> Array:
    """The sum of weight r r^T, (K, D, D)."""
    return jnp.einsum("kin,kjn->kij", residual * weight[:, None], residual, precision="highest")


def _product(matrix: Array, residual: Array) -> Array:
    """(K, D, D) matrices times (K, D, n)."""
    return jnp.einsum("kij,kjn->kin", matrix, residual, precision="highest")
