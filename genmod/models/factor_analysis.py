"""Factor analysis and probabilistic PCA: Gaussians whose covariance is of low rank plus noise, with exact log_prob.

    z ~ N(0, I_M),  x | z ~ N(mean + W z, Psi),     x ~ N(mean, W W^T + Psi)

with Psi diagonal (factor analysis) or s^2 I (probabilistic PCA, Tipping & Bishop 1999, J. R. Stat. Soc. B 61(3)). With
A = Psi^-1/2 W, y = Psi^-1/2 (x - mean) and G = I + A^T A, M x M,

    z | x ~ N(m, G^-1),  m = G^-1 A^T y
    log p(x) = -1/2 (|y - A m|^2 + |m|^2 + log det G + log det Psi + D log 2 pi)

by Woodbury and Sylvester, with a sum of squares in the place of the difference |y|^2 - m^T G m, which would cancel. W is known
up to a rotation of the factors.
"""

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_positive, check_weighted
from genmod.core.distribution import over_events
from genmod.core.event import Real
from genmod.core.types import Array, Key, Params, Shape
from genmod.models.base import EMModel, likelihood_loss

_LOG_2PI = math.log(2 * math.pi)


class _LinearGaussian(EMModel, abc.ABC):
    """x = mean + W z + noise. Parameters {"mean": (D,), "loading": W (D, M), "log_scale": of the noise's standard deviation}."""

    shape: Shape
    num_factors: int
    floor: float

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()
        check_count(num_factors=self.num_factors)
        check_positive(floor=self.floor)
        if self.num_factors >= self.dim:
            raise ValueError(f"num_factors must be below the {self.dim} dimensions of an event, got {self.num_factors}")

    @property
    def event(self):
        return Real(self.shape)

    @property
    def dim(self) -> int:
        """The number of dimensions of an event."""
        return math.prod(self.event.shape)

    @abc.abstractmethod
    def _log_scale(self, variance: Array) -> Array:
        """The parameter of the noise whose variances (D,) fit best when each is on its own."""

    @over_events
    def posterior(self, params: Params, x: ArrayLike, context: None = None, *, key: Key | None = None) -> tuple[Array, Array]:
        """p(z | x) of events x, any axes + event_shape: its mean, axes + (M,), and its covariance, axes + (M, M). Compiled."""
        mean, _, _, factor = self._explain(params, x[None])  # type: ignore[index]
        return mean[0], _inverse(factor)

    def covariance(self, params: Params) -> Array:
        """W W^T + Psi, (D, D)."""
        scale = jnp.broadcast_to(params["log_scale"], (self.dim,))
        low_rank = jnp.matmul(params["loading"], params["loading"].T, precision="highest")
        return low_rank + jnp.diag(jnp.exp(2.0 * scale))

    def _init(self, key, x, context):
        """The mean and the variances of the data, one half of these explained by random loadings."""
        rows = x.reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32))
        variance = jnp.maximum(rows.var(0), self.floor)
        noise = jax.random.normal(key, (self.dim, self.num_factors), rows.dtype)
        loading = noise * jnp.sqrt(0.5 * variance / self.num_factors)[:, None]
        return {"mean": rows.mean(0), "loading": loading, "log_scale": self._log_scale(0.5 * variance)}

    def loss(self, params, key, batch, *, step=None):
        return likelihood_loss(self, params, key, self.read(batch))

    def log_prob_one(self, params, x, context=None, key=None):
        return self._explain(params, x[None])[1][0]

    def sample_one(self, params, key, context=None):
        keys, dtype = jax.random.split(key), params["mean"].dtype
        z = jax.random.normal(keys[0], (self.num_factors,), dtype)
        noise = jax.random.normal(keys[1], (self.dim,), dtype)
        x = params["mean"] + jnp.matmul(params["loading"], z, precision="highest") + jnp.exp(params["log_scale"]) * noise
        return x.reshape(self.shape)

    def _explain(self, params: Params, x: Array) -> tuple[Array, Array, Array, Array]:
        """Posterior means m of rows, (n, M), their log p(x), (n,), y - A m, (n, D), and the Cholesky factor of G."""
        log_scale = jnp.broadcast_to(params["log_scale"], (self.dim,))
        y = (self._rows(x) - params["mean"][None]) * jnp.exp(-log_scale)[None]
        loading = params["loading"] * jnp.exp(-log_scale)[:, None]
        gram = jnp.matmul(loading.T, loading, precision="highest")
        factor = jnp.linalg.cholesky(jnp.eye(self.num_factors, dtype=gram.dtype) + gram)
        mean = jax.scipy.linalg.cho_solve((factor, True), jnp.matmul(y, loading, precision="highest").T).T
        rest = y - jnp.matmul(mean, loading.T, precision="highest")
        log_det = 2.0 * (jnp.log(jnp.diagonal(factor)).sum() + log_scale.sum())
        squares = jnp.sum(rest**2, 1) + jnp.sum(mean**2, 1)
        return mean, -0.5 * (squares + log_det + self.dim * _LOG_2PI), rest, factor

    def _rows(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32))

    # --- expectation and maximisation (Rubin & Thayer 1982, with the mean estimated along) --------------------------------------

    # In terms of u = x - mean - W z, what the old parameters leave unexplained. In terms of x the variance of the noise would be
    # a difference of numbers of the size of x^2: in float32 nothing is left of it where the noise is 1e-3 of x.

    def e_step(self, params, x, weight):
        mean, log_prob, rest, factor = self._explain(params, x)
        total, spread = weight.sum(), _inverse(factor)
        u = rest * jnp.exp(jnp.broadcast_to(params["log_scale"], (1, self.dim)))  # its mean given x
        z = jnp.concatenate([mean, jnp.ones_like(mean[:, :1])], 1)  # the last regressor is the shift of the mean
        weighted = z * weight[:, None]
        shared = jnp.matmul(params["loading"], spread, precision="highest")  # -cov(u, z | x)
        statistics = {
            "total": total,
            "uz": jnp.matmul(u.T, weighted, precision="highest") - total * jnp.pad(shared, ((0, 0), (0, 1))),
            "zz": jnp.matmul(z.T, weighted, precision="highest") + total * jnp.pad(spread, (0, 1)),
            "uu": jnp.sum(u**2 * weight[:, None], 0) + total * jnp.sum(shared * params["loading"], 1),
        }
        return log_prob, statistics

    def m_step(self, params, statistics):
        """The regression of u on [z, 1], by which loading and mean move, and what it leaves unexplained."""
        change = jax.scipy.linalg.solve(statistics["zz"], statistics["uz"].T, assume_a="pos").T
        variance = (statistics["uu"] - jnp.sum(change * statistics["uz"], 1)) / statistics["total"]
        return {
            "mean": params["mean"] + change[:, -1],
            "loading": params["loading"] + change[:, :-1],
            "log_scale": self._log_scale(variance),
        }


@dataclasses.dataclass(frozen=True)
class FactorAnalysis(_LinearGaussian):
    """x = mean + W z + noise with a variance of its own for every entry; fitted by `fit_em` or by gradients.

    Attributes:
      shape: of an event. num_factors: M, below the number D of its entries.
      floor: the least variance of noise, in squared units of the data; EM ends there in a Heywood case.

    Parameters: {"mean": (D,), "loading": W (D, M), "log_scale": (D,)}.
    """

    shape: Shape
    num_factors: int
    floor: float = 1e-6

    @property
    def num_free(self):
        rotations = self.num_factors * (self.num_factors - 1) // 2
        return self.dim * (self.num_factors + 2) - rotations

    def _log_scale(self, variance):
        return 0.5 * jnp.log(jnp.maximum(variance, self.floor))


@dataclasses.dataclass(frozen=True)
class ProbabilisticPCA(_LinearGaussian):
    """x = mean + W z + noise of one variance in all directions; fitted in closed form by `closed_form`, or by EM or gradients.

    Attributes:
      shape: of an event. num_factors: M, below the number D of its entries.
      floor: the least variance of noise, in squared units of the data.

    Parameters: {"mean": (D,), "loading": W (D, M), "log_scale": ()}.
    """

    shape: Shape
    num_factors: int
    floor: float = 1e-6

    @property
    def num_free(self):
        rotations = self.num_factors * (self.num_factors - 1) // 2
        return self.dim * (self.num_factors + 1) + 1 - rotations

    def closed_form(self, x: ArrayLike, weight: ArrayLike | None = None) -> Params:
        """The parameters of greatest likelihood (Tipping & Bishop 1999, eq. 7 and 8).

            s^2 = mean of the D - M least eigenvalues of the covariance,    W = U (Lambda - s^2 I)^1/2

        x: events, (n,) + event_shape, at least two. weight: how often each counts, (n,), or None. Raises as `init`, and for
        values as `check_weighted`.
        """
        x, weight = check_weighted(self.event.check("x", x, batched=True), weight, least=self.least_rows)
        return _closed_form(self, x, jnp.ones(x.shape[0]) if weight is None else weight)

    def _log_scale(self, variance):
        return 0.5 * jnp.log(jnp.maximum(variance.mean(), self.floor))


@functools.partial(jax.jit, static_argnums=0)
def _closed_form(model: ProbabilisticPCA, x: Array, weight: Array) -> Params:
    rows = model._rows(x)
    share = (weight / weight.sum()).astype(rows.dtype)[:, None]
    mean = jnp.sum(share * rows, 0)
    residual = rows - mean[None]
    covariance = jnp.matmul((residual * share).T, residual, precision="highest")
    values, vectors = jnp.linalg.eigh(covariance)  # rising
    rest = model.dim - model.num_factors
    largest = vectors[:, rest:]
    # The mean of the least values, by what is left of the rows: float32 keeps nothing of a value that is 1e-7 of the largest.
    left = residual - jnp.matmul(jnp.matmul(residual, largest, precision="highest"), largest.T, precision="highest")
    variance = jnp.maximum(jnp.sum(share * left**2) / rest, model.floor)
    loading = largest * jnp.sqrt(jnp.maximum(values[rest:] - variance, 0.0))[None]
    return {"mean": mean, "loading": loading, "log_scale": 0.5 * jnp.log(variance)}


def _inverse(factor: Array) -> Array:
    """G^-1 of the Cholesky factor of G."""
    return jax.scipy.linalg.cho_solve((factor, True), jnp.eye(factor.shape[0], dtype=factor.dtype))
