"""Relaxed discrete laws, whose draws carry the gradient of their parameters.

`RelaxedCategorical`, `RelaxedBernoulli` and `RelaxedPoisson` are laws of real numbers that tend to those of one-hot vectors, bits
and counts as the temperature falls. `StraightThrough` of one is the discrete law itself, with the gradient of the relaxed one.

    relaxed            log_prob is a density, and the bound is that of the RELAXED model, prior and posterior alike. Its gradient
                       is exact; its rate is sampled, for no closed form is known.
    straight-through   log_prob is a mass, and the bound is that of the discrete model, its rate in closed form. The gradient has
                       a bias (Jang et al. 2016, arXiv:1611.01144, sec. 2.2; Bengio et al. 2013, arXiv:1308.3432).

At a low temperature a relaxed law is near the discrete one, and its gradients have a large variance. The temperature is no
parameter: models that differ in it have the same parameters, so that it may be lowered from one `fit` to the next.

    latent = gm.densities.StraightThrough(gm.densities.RelaxedCategorical((20,), 10, 0.5))
    model = gm.models.VAE(shape, encoder, gm.densities.Amortized(latent, (64,)), decoder, head, latent)
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_count, check_parts, check_positive, check_shape
from genmod.core.distribution import Distribution
from genmod.core.event import Atoms, Real
from genmod.core.relaxation import binary_concrete, gumbel_softmax, one_hot_of_largest, straight_through
from genmod.core.types import Array, Key, Shape
from genmod.densities.heads import BernoulliHead, CategoricalHead, Head


class Relaxed(Distribution, abc.ABC):
    """Independent entries, each a relaxation of a discrete `head`; parameters {"raw": shape + (num_params,)}, zero at first.

    Attributes:
      shape: of the entries. temperature: > 0. head: the law of an entry at temperature zero.
    """

    shape: Shape
    temperature: float

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        super().__post_init__()
        check_positive(temperature=self.temperature)

    @property
    @abc.abstractmethod
    def head(self) -> Head:
        """The discrete law of an entry."""

    @property
    def event(self):
        return Real(self.shape)

    @abc.abstractmethod
    def draws(self, raw: Array, key: Key) -> tuple[Array, Array]:
        """(a relaxed draw, a draw of the discrete law), by the same noise."""

    @abc.abstractmethod
    def log_mass(self, raw: Array, x: Array) -> Array:
        """log P(x) of every entry of the discrete law, as a smooth function of real x: a gradient passes through x.

        -inf of values that the discrete law cannot give.
        """

    def _init(self, key, x, context):
        return {"raw": jnp.zeros((*self.shape, self.head.num_params), jnp.promote_types(x.dtype, jnp.float32))}

    def sample_one(self, params, key, context=None):
        return self.draws(params["raw"], key)[0]


@dataclasses.dataclass(frozen=True)
class RelaxedCategorical(Relaxed):
    """Points y of the simplex by Gumbel-softmax, in the place of one-hot vectors: events of shape + (num_levels,).

        log p(y) = log (K - 1)! + (K - 1) log t + sum_k (l_k - (t + 1) log y_k) - K logsumexp_k (l_k - t log y_k)

    in the first K - 1 coordinates, of logits l and temperature t (Maddison et al. 2016, arXiv:1611.00712, definition 1). -inf off
    the open simplex. Entries are kept at the smallest normal number or above it, which changes draws at temperatures below 0.2.
    """

    shape: Shape
    num_levels: int
    temperature: float = 0.5
    support = (0.0, 1.0)

    def __post_init__(self):
        check_count(num_levels=self.num_levels)
        check(self.num_levels >= 2, f"num_levels must be >= 2, got {self.num_levels}")
        super().__post_init__()

    @property
    def head(self):
        return CategoricalHead(self.num_levels)

    @property
    def event(self):
        return Real((*self.shape, self.num_levels))

    def draws(self, raw, key):
        soft = gumbel_softmax(raw, key, self.temperature)
        return jnp.maximum(soft, jnp.finfo(soft.dtype).tiny), one_hot_of_largest(soft)

    def log_mass(self, raw, x):
        possible = (x == one_hot_of_largest(x)).all(-1)
        return jnp.where(possible, jnp.sum(x * jax.nn.log_softmax(raw), -1), -jnp.inf)

    def log_prob_one(self, params, x, context=None, key=None):
        raw, t, num = params["raw"], self.temperature, self.num_levels
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rounding = 4 * num * float(jnp.finfo(x.dtype).eps)
        inside = (x > 0).all(-1) & (jnp.abs(x.sum(-1) - 1.0) < rounding)
        log_x = jnp.log(jnp.where(inside[..., None], x, 1.0 / num))
        constant = math.lgamma(num) + (num - 1) * math.log(t)
        value = constant + jnp.sum(raw - (t + 1.0) * log_x, -1) - num * jax.nn.logsumexp(raw - t * log_x, -1)
        return jnp.where(inside, value, -jnp.inf).sum()


@dataclasses.dataclass(frozen=True)
class RelaxedBernoulli(Relaxed):
    """Numbers y in (0, 1) in the place of bits: the binary concrete law (Maddison et al. 2016, arXiv:1611.00712, appendix B).

        t logit(y) - l ~ Logistic(0, 1)

    of logit l and temperature t. log p is -inf outside of (0, 1). Draws are kept inside by one rounding, which changes one in two
    thousand at temperature 0.5.
    """

    shape: Shape
    temperature: float = 0.5
    support = (0.0, 1.0)

    @property
    def head(self):
        return BernoulliHead()

    def draws(self, raw, key):
        soft = binary_concrete(raw[..., 0], key, self.temperature)
        info = jnp.finfo(soft.dtype)
        return jnp.clip(soft, info.epsneg, 1.0 - info.epsneg), soft > 0.5

    def log_mass(self, raw, x):
        value = x * jax.nn.log_sigmoid(raw[..., 0]) + (1.0 - x) * jax.nn.log_sigmoid(-raw[..., 0])
        return jnp.where((x == 0) | (x == 1), value, -jnp.inf)

    def log_prob_one(self, params, x, context=None, key=None):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        inside = (x > 0) & (x < 1)
        x = jnp.where(inside, x, 0.5)
        log_x, log_rest = jnp.log(x), jnp.log1p(-x)
        noise = self.temperature * (log_x - log_rest) - params["raw"][..., 0]
        value = math.log(self.temperature) + jax.scipy.stats.logistic.logpdf(noise) - log_x - log_rest
        return jnp.where(inside, value, -jnp.inf).sum()


@dataclasses.dataclass(frozen=True)
class StraightThrough(Distribution):
    """The discrete law that `relaxed` tends to, as real numbers (one-hot vectors, bits, counts), with the gradient of `relaxed`.

    `log_prob` is exact, a mass; the gradient of the draws has a bias that no number of draws removes, which
    `gm.losses.gradient_variance` measures. Two of one kind have a KL in closed form: as the posterior and the prior of a VAE
    they give the exact bound. Parameters: those of `relaxed`.
    """

    relaxed: Relaxed

    def __post_init__(self):
        check_parts(self, relaxed=Relaxed)
        super().__post_init__()

    @property
    def event(self):
        return Atoms(self.relaxed.event_shape)

    def _init(self, key, x, context):
        return self.relaxed._init(key, x, context)

    def log_prob_one(self, params, x, context=None, key=None):
        return self.relaxed.log_mass(params["raw"], x).sum()

    def sample_one(self, params, key, context=None):
        soft, hard = self.relaxed.draws(params["raw"], key)
        return straight_through(hard, soft)
