"""Kernel density estimates, with exact log_prob and draws (Silverman 1986; Scott 1992).

    p(x) = sum_i w_i K(L^-1 (x - x_i)) / |det L|,      L = h C

K is a law of unit scale, C C^T a covariance of the data (or I), h a factor that a rule chooses. All data are parameters, and
nothing is trained: `init`, or `of_data` where rows are weighted, is the whole fit.

The sum is a running logsumexp over blocks of data, so that memory does not grow with their number.
"""

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.batching import vmap_blocks
from genmod.core.checks import check_count, check_parts, check_positive, check_weighted
from genmod.core.description import Description
from genmod.core.event import Real
from genmod.core.params import Fixed
from genmod.core.types import Array, Params, Shape
from genmod.densities.covariances import Covariance, FullCovariance, floored_factor, inverse_factor, parameters_of
from genmod.densities.radial import GaussianDensity, RadialDensity
from genmod.models.base import Model, likelihood_loss

_BLOCK = 1_024
# The least variance of data by which a bandwidth is scaled, in squared units of the data: one row has none.
_FLOOR = 1e-12


class Bandwidth(Description, abc.ABC):
    """A rule for the factor h."""

    @abc.abstractmethod
    def factor(self, kernel: RadialDensity, z: Array, share: Array) -> Array:
        """h for data z = C^-1 x, (n, D), whose weights (n,) add up to one."""


@dataclasses.dataclass(frozen=True)
class Scott(Bandwidth):
    """h = n^(-1 / (D + 4)), n the effective number 1 / sum w^2 of data (Scott 1992, eq. 6.44)."""

    def factor(self, kernel, z, share):
        return _effective(share) ** (-1.0 / (z.shape[1] + 4))


@dataclasses.dataclass(frozen=True)
class Silverman(Bandwidth):
    """h = (n (D + 2) / 4)^(-1 / (D + 4)), best for Gaussian data (Silverman 1986, eq. 4.14)."""

    def factor(self, kernel, z, share):
        return (_effective(share) * (z.shape[1] + 2) / 4) ** (-1.0 / (z.shape[1] + 4))


@dataclasses.dataclass(frozen=True)
class FixedBandwidth(Bandwidth):
    """h as it is given."""

    value: float

    def __post_init__(self):
        super().__post_init__()
        check_positive(value=self.value)

    def factor(self, kernel, z, share):
        return jnp.asarray(self.value, z.dtype)


class _HeldOut(Bandwidth, abc.ABC):
    """h of the greatest likelihood of data that are left out, group by group, among multiples of Scott's.

    The candidates lie between `low` and `high` in equal ratios.
    """

    num_candidates: int
    low: float
    high: float

    def __post_init__(self):
        super().__post_init__()
        check_count(num_candidates=self.num_candidates)
        check_positive(low=self.low)
        if not self.low < self.high < math.inf:
            raise ValueError(f"{type(self).__name__} wants low < high < inf, got low={self.low}, high={self.high}")

    @abc.abstractmethod
    def groups(self, share: Array) -> Array:
        """Which data are left out together: the number of its group, 0 .. n - 1, for each of n weighted data, (n,) integers."""

    def factor(self, kernel, z, share):
        multiples = jnp.geomspace(self.low, self.high, self.num_candidates, dtype=z.dtype)
        factors, group = Scott().factor(kernel, z, share) * multiples, self.groups(share)

        def score(h):
            log_prob = left_out_log_probs(kernel, z / h, share, group)
            return jnp.sum(jnp.where(share > 0, share * log_prob, 0.0)) - z.shape[1] * jnp.log(h)

        scores = jax.lax.map(score, factors)
        # A kernel of bounded support may leave a datum alone at all candidates; the widest is the nearest to none.
        return jnp.where(jnp.isfinite(scores).any(), factors[jnp.argmax(scores)], factors[-1])


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(_HeldOut):
    """h of the greatest likelihood of each datum under all others, among `num_candidates` multiples of Scott's.

    They lie between `low` and `high` in equal ratios. Work grows with n^2 for each. Data that occur twice, as rounded ones do,
    lead to the least candidate: their likelihood has no maximum.
    """

    num_candidates: int = 32
    low: float = 0.1
    high: float = 3.0

    def groups(self, share):
        return jnp.arange(share.shape[0])


@dataclasses.dataclass(frozen=True)
class KFold(_HeldOut):
    """h of the greatest likelihood of each of `num_folds` parts of the data under all others, among multiples of Scott's.

    The candidates are those of `LeaveOneOut`, and so are the work and the need of data that occur once. Rows are spread over the
    folds at random, but in the same way at every call; the sizes of the folds differ by one row at most. Each estimate sees
    (k - 1) / k of the data, so that h is a little larger than by `LeaveOneOut`.
    """

    num_folds: int = 5
    num_candidates: int = 32
    low: float = 0.1
    high: float = 3.0

    def __post_init__(self):
        super().__post_init__()
        check_count(num_folds=self.num_folds)
        if self.num_folds < 2:
            raise ValueError(f"num_folds must be at least 2, got {self.num_folds}")

    def groups(self, share):
        # Data of no weight are counted last: they do not move the others from fold to fold.
        number = jnp.cumsum(share > 0) - 1
        bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(jax.random.key(0), i), dtype=jnp.uint32))(number)
        order = jnp.lexsort((bits, share <= 0))
        place = jnp.zeros_like(order).at[order].set(jnp.arange(share.shape[0], dtype=order.dtype))
        return place % self.num_folds


@dataclasses.dataclass(frozen=True)
class KernelDensity(Model):
    """A kernel density estimate; its parameters are the data, `Fixed`.

    Attributes:
      shape: of an event.
      bandwidth: the rule for h: `Scott()`, `Silverman()`, `LeaveOneOut()`, `KFold()`, or `FixedBandwidth(h)`.
      covariance: the kind of C C^T: full, diagonal or spherical; None: I, so that h has the units of the data.
      kernel: K, `GaussianDensity()` or `Epanechnikov()`, whose density is zero where no datum is near.

    Parameters: Fixed({"points": (n,) + shape, "logits": (n,), the weights before their softmax, "log_scale": (D,) and "lower":
    (D, D), the free parameters of L}).
    """

    shape: Shape
    bandwidth: Bandwidth = Scott()
    covariance: Covariance | None = FullCovariance(_FLOOR)
    kernel: RadialDensity = GaussianDensity()
    reparameterized = False

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()
        check_parts(self, bandwidth=Bandwidth, kernel=RadialDensity)
        if self.covariance is not None:
            check_parts(self, covariance=Covariance)

    @property
    def event(self):
        return Real(self.shape)

    def of_data(self, x: ArrayLike, weight: ArrayLike | None = None) -> Params:
        """The estimate from events x, (n,) + event_shape, that count as often as `weight`, (n,), says; None: once. Compiled.

        Raises TypeError or ValueError for arrays that do not fit, and for values as `check_weighted`.
        """
        x, weight = check_weighted(self.event.check("x", x, batched=True), weight)
        return _of_data(self, x, jnp.ones(x.shape[0]) if weight is None else weight)

    def _init(self, key, x, context):
        return _of_data(self, x, jnp.ones(x.shape[0]))

    def loss(self, params, key, batch, *, step=None):
        return likelihood_loss(self, params, key, self.read(batch))

    def log_prob_one(self, params, x, context=None, key=None):
        held = params.constant
        inverse = inverse_factor(held)
        points = held["points"].reshape(held["points"].shape[0], -1)
        mean = points.mean(0, keepdims=True)  # far from the origin whitening would round what differences are made of
        z = _whiten(inverse, x.reshape(1, -1).astype(points.dtype) - mean)[0]
        return (
            _log_sum(self.kernel, z, _whiten(inverse, points - mean), jax.nn.log_softmax(held["logits"]))
            - held["log_scale"].sum()
        )

    def sample_one(self, params, key, context=None):
        held = params.constant
        keys = jax.random.split(key)
        total = jnp.cumsum(jax.nn.softmax(held["logits"]))  # a search of it costs less than a categorical draw, log n
        uniform = jax.random.uniform(keys[0], (), total.dtype, maxval=total[-1])
        which = jnp.minimum(jnp.searchsorted(total, uniform, side="right"), total.size - 1)
        noise = self.kernel.sample_one(keys[1], held["log_scale"].size, total.dtype)
        factor = jnp.tril(held["lower"], -1) + jnp.diag(jnp.exp(held["log_scale"]))
        return held["points"][which] + jnp.matmul(factor, noise, precision="highest").reshape(self.shape)


@functools.partial(jax.jit, static_argnums=0)
def _of_data(model: KernelDensity, x: Array, weight: Array) -> Params:
    rows = x.reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    share = (weight / weight.sum()).astype(rows.dtype)
    centred = rows - rows.mean(0, keepdims=True)
    scale = _scale(model.covariance, centred, share)
    h = model.bandwidth.factor(model.kernel, _whiten(inverse_factor(parameters_of(scale)), centred), share)
    logits = jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))
    return Fixed({"points": rows.reshape(x.shape), "logits": logits} | parameters_of(h * scale))


def _scale(kind: Covariance | None, rows: Array, share: Array) -> Array:
    """C, (D, D), by the unbiased covariance of weighted data near the origin."""
    identity = jnp.eye(rows.shape[1], dtype=rows.dtype)
    if kind is None:
        return identity
    mean = jnp.sum(share[:, None] * rows, 0)
    residual = rows - mean[None]
    unbiased = jnp.maximum(1.0 - jnp.sum(share**2), jnp.finfo(rows.dtype).eps)
    covariance = jnp.matmul((residual * share[:, None]).T, residual, precision="highest") / unbiased
    params = kind.of_factor(floored_factor(covariance, kind.floor), 1)
    return jax.vmap(lambda column: kind.color_one(params, jnp.int32(0), column))(identity).T


def left_out_log_probs(kernel: RadialDensity, z: Array, share: Array, group: Array) -> Array:
    """log of the density of each datum under all others but those of its group g, (n,); z (n, D), w and g (n,), g in 0 .. n - 1.

    p_i = sum_{j: g_j != g_i} w_j K(z_i - z_j) / (1 - sum_{j: g_j = g_i} w_j)
    """
    log_share, left_out = jnp.log(share), jax.ops.segment_sum(share, group, z.shape[0])[group]

    def one(z_one, own):
        return _log_sum(kernel, z_one, z, log_share, group, own)

    return vmap_blocks(one, z, group) - jnp.log1p(-left_out)


def _log_sum(
    kernel: RadialDensity, z: Array, points: Array, log_weight: Array, group: Array | None = None, left_out: Array | int = -1
) -> Array:
    """log sum_i w_i K(z - z_i) over all points but those of the group `left_out`, of ONE z; None: no groups, all points."""
    num, dim = points.shape
    group = jnp.zeros(num, jnp.int32) if group is None else group
    rows = min(num, _BLOCK)
    padding = -num % rows
    points = jnp.concatenate([points, points[:1].repeat(padding, 0)]).reshape(-1, rows, dim)
    log_weight = jnp.pad(log_weight, (0, padding), constant_values=-jnp.inf).reshape(-1, rows)
    group = jnp.pad(group, (0, padding)).reshape(-1, rows)

    def add(carry, block):
        largest, total = carry
        points, log_weight, group = block
        squared = jnp.sum((z[None] - points) ** 2, 1)
        terms = jnp.where(group == left_out, -jnp.inf, log_weight + kernel.log_density(squared, dim))
        larger = jnp.maximum(largest, jax.lax.stop_gradient(terms.max()))
        return (larger, total * jnp.exp(largest - larger) + jnp.exp(terms - larger).sum()), None

    start = jnp.asarray(jnp.finfo(points.dtype).min, points.dtype), jnp.zeros((), points.dtype)
    (largest, total), _ = jax.lax.scan(add, start, (points, log_weight, group))
    return largest + jnp.log(total)  # -inf where every term is


def _effective(share: Array) -> Array:
    """1 / sum w^2, the number of data of equal weight that are worth as much."""
    return 1.0 / jnp.sum(share**2)


def _whiten(inverse: Array, rows: Array) -> Array:
    return jnp.matmul(rows, inverse.T, precision="highest")
