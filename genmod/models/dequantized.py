"""Discrete data by a density of continuous data: dequantisation (Theis et al. 2015, arXiv:1511.01844; Ho et al. 2019).

Integers x in {0, ..., n - 1}^D with noise u in [0, 1)^D become y = (x + u) / n in [0, 1)^D, and a density p of y gives a
lower bound on the probability of x,

    log P(x) = log int p((x + u) / n) n^-D du  >=  E_q(u|x)[log p((x + u) / n) - log q(u|x)] - D log n.

q is uniform, or a conditional flow (variational dequantisation, arXiv:1902.00275, eq. 10). With k draws of u the bound is
E log (1/k) sum_i exp(...), which rises to log P(x) with k (Burda et al. 2015, arXiv:1509.00519, eq. 8).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from genmod import losses
from genmod.core.batching import Batch, row_keys, vmap_events
from genmod.core.checks import check_count
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Levels, Real
from genmod.core.info import FAILED
from genmod.core.types import Array
from genmod.models.base import Model
from genmod.models.flow import Flow, Pushforward


@dataclasses.dataclass(frozen=True)
class Dequantized(Model):
    """A model of integer events, such as images of 8 bits: `model` is one of real events in [0, 1].

    Attributes:
      model: the density p of y; `model.event_shape` and its context are those of the integers.
      num_levels: n; 256 for 8 bits.
      dequantizer: q(u | x), a conditional distribution of events in (0, 1) whose context is x, scaled to [-1/2, 1/2]
        (`gm.flows.dequantizer`); None is uniform noise. A draw outside of [0, 1] makes the bound -inf.
      num_draws: k. Parameters do not depend on it: `dataclasses.replace(model, num_draws=16)` evaluates what was trained
        (or loaded, by the description that was trained).
      own_loss: train `model` by its own loss on y with uniform noise, not by the bound. None: where that loss is not the
        likelihood (`Diffusion`, `FlowMatching`: the gradient of their likelihood takes minutes to compile) and there is no
        dequantizer.

    `log_prob` is a LOWER_BOUND on log P(x) in nats, in expectation over `key`; bits per dimension follow with no offset
    (`gm.metrics.bits_per_dim`). `sample` returns integers. Parameters: {"model": ..., "dequantizer": ...}.
    Raises TypeError for real events, ValueError for integers outside 0..n-1 and for a log_prob without a key.
    """

    model: Model
    num_levels: int = 256
    dequantizer: Distribution | None = None
    num_draws: int = 1
    own_loss: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        check_count(num_levels=self.num_levels, num_draws=self.num_draws)
        if not isinstance(self.model, Model) or not isinstance(self.model.event, Real):
            raise TypeError(f"model must be a Model of real events, got {type(self.model).__name__}")
        if self.model.likelihood > Likelihood.LOWER_BOUND:
            raise ValueError(f"model must have a normalised log_prob, got one that is {self.model.likelihood.name}")
        q, shape = self.dequantizer, self.model.event_shape
        if self.own_loss is None:
            object.__setattr__(self, "own_loss", q is None and not isinstance(self.model, Flow))
        if q is not None and self.own_loss:
            raise ValueError("a dequantizer is trained by the bound: leave out dequantizer, or own_loss")
        if q is not None and (q.likelihood != Likelihood.EXACT or not q.reparameterized):
            raise ValueError("dequantizer must be a distribution with an exact log_prob and reparameterised draws")
        if q is not None and (q.event_shape, q.context_shape) != (shape, shape):
            raise ValueError(f"dequantizer must be of events {shape} given {shape}, got {q.event_shape} given {q.context_shape}")

    @functools.cached_property
    def event(self):
        return Levels(self.model.event_shape, self.num_levels)

    @property
    def context_shape(self):
        return self.model.context_shape

    @property
    def own_precision(self):
        return self.model.own_precision

    @property
    def likelihood(self):
        return max(Likelihood.LOWER_BOUND, self.model.likelihood)

    def dequantize(self, x: Array, u: Array | float = 0.5) -> Array:
        """y = (x + u) / n in [0, 1] of integers x, any batch axes; by default the middle of each level."""
        return (x.astype(jnp.result_type(float)) + u) / self.num_levels

    def quantize(self, y: Array) -> Array:
        """The integers x in 0..n-1 whose level y in [0, 1] lies in, clipped; any batch axes."""
        levels = jnp.clip(jnp.floor(y * self.num_levels), 0, self.num_levels - 1)
        return levels.astype(self.event.dtype)

    def tempered(self, temperature: float) -> "Dequantized":
        """The same model, with the same parameters, at `temperature` (see `Pushforward.tempered`)."""
        if not isinstance(self.model, Pushforward):
            raise ValueError(f"temperature={temperature} wants a flow, got {type(self.model).__name__}")
        return dataclasses.replace(self, model=self.model.tempered(temperature))

    def _init(self, key, x, context):
        keys = jax.random.split(key, 3)
        u = jax.random.uniform(keys[0], x.shape)
        params = {"model": self.model._init(keys[1], self.dequantize(x, u), context)}
        if self.dequantizer is not None:  # its own data are the noise, kept off the ends of (0, 1)
            params["dequantizer"] = self.dequantizer._init(keys[2], 0.01 + 0.98 * u, self._centred(x))
        return params

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        if self.own_loss:
            noise_key, model_key = jax.random.split(key)
            y = self.dequantize(x, jax.random.uniform(noise_key, x.shape))
            return self.model.loss(params["model"], model_key, Batch(y, context, weight), step=step)
        axes = (None, 0, None if context is None else 0, 0)
        bound = vmap_events(self.log_prob_one, axes)(params, x, context, row_keys(key, x.shape[0]))
        return losses.negative_log_likelihood(lambda _: bound, x, name=self.likelihood.nll_key, weight=weight)

    def log_prob_one(self, params, x, context=None, key=None):
        if key is None:
            raise ValueError("log_prob of dequantised data is a bound by random draws: pass key=...")
        if self.num_draws == 1:
            return self._one_draw(params, x, context, key)
        keys = jax.random.split(key, self.num_draws)
        bounds = jax.lax.map(lambda key: self._one_draw(params, x, context, key), keys)
        return jax.nn.logsumexp(bounds) - math.log(self.num_draws)

    def sample_one(self, params, key, context=None):
        return self.quantize(self.model.sample_one(params["model"], key, context))

    def sample_info_one(self, params, key, context=None):
        y, info = self.model.sample_info_one(params["model"], key, context)
        lost = ~jnp.isfinite(y).all()  # what is no number has no level
        return self.quantize(y), info | {FAILED: info.get(FAILED, 0.0) + lost.astype(jnp.float32)}

    def _one_draw(self, params, x, context, key):
        noise_key, model_key = jax.random.split(key)
        if self.dequantizer is None:
            u, log_q = jax.random.uniform(noise_key, x.shape), 0.0
        else:
            u, log_q = self.dequantizer.sample_and_log_prob_one(params["dequantizer"], noise_key, self._centred(x))
        log_p = self.model.log_prob_one(params["model"], self.dequantize(x, u), context, model_key)
        bound = log_p - log_q - x.size * math.log(self.num_levels)
        # Noise outside of [0, 1] belongs to another x: such a draw adds nothing to log P of this one.
        return jnp.where(((u >= 0) & (u <= 1)).all(), bound, -jnp.inf)

    def _centred(self, x):
        return self.dequantize(x) - 0.5
