"""Laws of which a mixture is made: K of one kind at once, their parameters along one axis.

    log p(x | k)                                         log_probs
    sums over rows of what the best parameters depend on   statistics
    the best parameters                                  update

so that a mixture of any of them is fitted by one algorithm (expectation and maximisation).
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check_parts, check_positive
from genmod.core.description import Description
from genmod.core.event import Event, Levels, Real
from genmod.core.spread import Chosen
from genmod.core.types import Array, Key, Params, Shape
from genmod.densities.covariances import Covariance, FullCovariance, floored_factor

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
# A component whose share of the data is smaller has none: what it would be estimated from is rounding.
VACANT = 1e-8


class Components(Description, abc.ABC):
    """K laws of one kind. Rows x are (n,) + event_shape, weights (K, n), and the axis of length K leads all parameters but
    those that the laws share."""

    event: Event

    @abc.abstractmethod
    def flat(self, x: Array) -> Array:
        """Rows as vectors (n, D), in units in which distances mean something."""

    @abc.abstractmethod
    def start(self, key: Key, x: Array, chosen: Chosen) -> Params:
        """Parameters of as many laws as there are chosen rows of x, about which the rows gather."""

    @abc.abstractmethod
    def log_probs(self, params: Params, x: Array) -> Array:
        """log p(x | k), (K, n)."""

    @abc.abstractmethod
    def statistics(self, params: Params, x: Array, weight: Array) -> Params:
        """Sums over the rows, a pytree; those of several blocks of rows are added."""

    @abc.abstractmethod
    def update(self, params: Params, total: Array, statistics: Params) -> Params:
        """The parameters of greatest (penalised) likelihood, where `total` (K,) is the weight of each component."""

    @abc.abstractmethod
    def placed(self, params: Params, which: Array, like: Array, x: Array) -> Params:
        """The parameters with those of component `which` about the ONE event x, otherwise similar to component `like`."""

    @abc.abstractmethod
    def sample_one(self, params: Params, which: Array, key: Key) -> Array:
        """ONE draw of component `which`."""

    @abc.abstractmethod
    def num_free(self, num_components: int) -> int:
        """The number of free parameters of so many laws."""

    def log_prior(self, params: Params) -> Array:
        """What `update` adds to the log-likelihood, in nats; 0 without a penalty."""
        return jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class GaussianComponents(Components):
    """N(mean_k, Sigma_k) over the entries of an event: {"mean": (K, D), "covariance": of its kind}."""

    shape: Shape
    covariance: Covariance = FullCovariance()

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()
        check_parts(self, covariance=Covariance)

    @property
    def event(self):
        return Real(self.shape)

    def flat(self, x):
        rows = x.reshape(x.shape[0], -1)
        scale = rows.std(0)
        return rows / jnp.where(scale > 0, scale, 1.0)[None]

    def start(self, key, x, chosen):
        """Means are those of the rows nearest to each centre; covariances are that of all rows about these means, for those of
        a few rows would be too narrow."""
        rows = x.reshape(x.shape[0], -1)
        rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
        num = chosen.rows.size
        total = jnp.zeros(num, rows.dtype).at[chosen.nearest].add(1.0)
        mean = jnp.zeros((num, rows.shape[1]), rows.dtype).at[chosen.nearest].add(rows) / jnp.maximum(total, 1.0)[:, None]
        mean = jnp.where((total > 0)[:, None], mean, rows[chosen.rows])
        around = rows - mean[chosen.nearest]
        scatter = jnp.matmul(around.T, around, precision="highest") / rows.shape[0]
        covariance = self.covariance.of_factor(floored_factor(scatter, self.covariance.floor), num)
        # Without rows, as where centres coincide, a component begins beside its centre.
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        beside = jax.vmap(lambda which, z: self.covariance.color_one(covariance, which, z))(jnp.arange(num), noise)
        return {"mean": jnp.where((total > 0)[:, None], mean, mean + beside), "covariance": covariance}

    def log_probs(self, params, x):
        residual = self._residual(params, x)
        z = self.covariance.whiten(params["covariance"], residual)
        dim = residual.shape[1]
        constant = self.covariance.log_det(params["covariance"], dim) + dim * _HALF_LOG_2PI
        return -0.5 * jnp.sum(z**2, 1) - constant[:, None]

    def statistics(self, params, x, weight):
        residual = self._residual(params, x)
        first = jnp.sum(residual * weight[:, None], -1)
        return {"first": first, "second": self.covariance.second(residual, weight)}

    def update(self, params, total, statistics):
        vacant = total < VACANT * total.sum()
        held = jnp.where(vacant, 1.0, total)
        shift = jnp.where(vacant[:, None], 0.0, statistics["first"] / held[:, None])
        covariance = self.covariance.estimate(held, statistics["second"], shift)
        covariance = self.covariance.kept(params["covariance"], covariance, vacant)
        return {"mean": params["mean"] + shift, "covariance": covariance}

    def placed(self, params, which, like, x):
        covariance = jax.tree.map(lambda a: a.at[which].set(a[like]), params["covariance"])
        here = jnp.arange(params["mean"].shape[0]) == which
        covariance = self.covariance.kept(covariance, params["covariance"], here)
        return {"mean": params["mean"].at[which].set(x.reshape(-1)), "covariance": covariance}

    def sample_one(self, params, which, key):
        noise = jax.random.normal(key, params["mean"].shape[1:], params["mean"].dtype)
        x = params["mean"][which] + self.covariance.color_one(params["covariance"], which, noise)
        return x.reshape(self.shape)

    def num_free(self, num_components):
        dim = math.prod(self.shape)
        return num_components * dim + self.covariance.num_free(num_components, dim)

    def _residual(self, params, x):
        rows = x.reshape(1, x.shape[0], -1).swapaxes(1, 2)
        rows = rows.astype(jnp.promote_types(x.dtype, jnp.float32))
        return rows - params["mean"][:, :, None]


@dataclasses.dataclass(frozen=True)
class CategoricalComponents(Components):
    """Independent entries of L levels; of two levels these are Bernoulli laws.

    Parameters {"logits": (K,) + shape + (L - 1,)}: log p(x = l) - log p(x = 0) for l = 1 .. L - 1.

    pseudo_counts: so many data of each level are added to every entry of every component: the best parameters are those under a
    Dirichlet(1 + pseudo_counts) prior (a Beta for two levels). Without them a level that was never seen would be impossible.
    """

    shape: Shape
    num_levels: int = 2
    pseudo_counts: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()
        check_positive(pseudo_counts=self.pseudo_counts)
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {self.num_levels}")

    @property
    def event(self):
        return Levels(self.shape, self.num_levels)

    def flat(self, x):
        return self._hot(x, jnp.result_type(float))

    def start(self, key, x, chosen):
        """From the rows nearest to each centre, one half, and from all rows in random shares."""
        hot, num = self.flat(x), chosen.rows.size
        shares = jax.nn.softmax(jax.random.normal(key, (num, x.shape[0]), hot.dtype), 0)
        weight = 0.5 * (shares + jax.nn.one_hot(chosen.nearest, num, axis=0, dtype=hot.dtype))
        return self._estimate(weight.sum(1), jnp.matmul(weight, hot, precision="highest"))

    def log_probs(self, params, x):
        logits = params["logits"].reshape(params["logits"].shape[0], -1)
        scores = jnp.matmul(logits, self._hot(x, logits.dtype).T, precision="highest")
        entries = jax.nn.logsumexp(self._with_first(params["logits"]), -1)
        return scores - entries.reshape(scores.shape[0], -1).sum(1)[:, None]

    def statistics(self, params, x, weight):
        return {"counts": jnp.matmul(weight, self._hot(x, weight.dtype), precision="highest")}

    def update(self, params, total, statistics):
        return self._estimate(total, statistics["counts"])

    def placed(self, params, which, like, x):
        logits = params["logits"][like] * 0.5 + 2.0 * (self._hot(x[None], params["logits"].dtype) - 0.5).reshape(
            params["logits"].shape[1:]
        )
        return {"logits": params["logits"].at[which].set(logits)}

    def sample_one(self, params, which, key):
        return jax.random.categorical(key, self._with_first(params["logits"][which])).astype(self.event.dtype)

    def num_free(self, num_components):
        return num_components * math.prod(self.shape) * (self.num_levels - 1)

    def log_prior(self, params):
        return self.pseudo_counts * jax.nn.log_softmax(self._with_first(params["logits"])).sum()

    def _hot(self, x: Array, dtype) -> Array:
        """Of every entry, whether it is at level 1, 2, ...: (n, D (L - 1))."""
        return jax.nn.one_hot(x.astype(jnp.int32), self.num_levels, dtype=dtype)[..., 1:].reshape(x.shape[0], -1)

    def _with_first(self, logits: Array) -> Array:
        """The logits of all levels, that of level 0 being 0."""
        return jnp.concatenate([jnp.zeros_like(logits[..., :1]), logits], -1)

    def _estimate(self, total: Array, counts: Array) -> Params:
        counts = counts.reshape(counts.shape[0], *self.shape, self.num_levels - 1)
        first = total.reshape(-1, *(1,) * (counts.ndim - 1)) - counts.sum(-1, keepdims=True)
        a = self.pseudo_counts
        return {"logits": jnp.log(jnp.maximum(counts, 0.0) + a) - jnp.log(jnp.maximum(first, 0.0) + a)}
