"""`Stepwise`: a sequence whose steps are independent given a context for each step.

    q(z_1 .. z_T | c_1 .. c_T) = prod_t q(z_t | c_t)

With c_t the output of a causal network at step t it is a filter, q(z_t | x_<=t): `models.Filtering`, and a posterior of a
variational autoencoder over sequences whose encoder is a `nets.SequenceModule`.
"""

import dataclasses

import jax

from genmod.core.checks import check_count, check_parts
from genmod.core.distribution import Distribution
from genmod.core.event import Tokens
from genmod.core.types import Array, Context, Key, Params


@dataclasses.dataclass(frozen=True)
class Stepwise(Distribution):
    """`length` steps of a conditional `law`: events (T,) + those of the law, contexts (T,) + those of the law.

    Parameters are those of the law, the same at every step and for every length: `dataclasses.replace(model, length=...)` reads
    other sequences. Raises ValueError for a law without a context, and for one of whole sequences of tokens.
    """

    law: Distribution
    length: int

    def __post_init__(self):
        check_parts(self, law=Distribution)
        check_count(length=self.length)
        super().__post_init__()
        if self.law.context_shape is None:
            raise ValueError(f"law must be conditional on the context of its step, got {type(self.law).__name__} without one")
        if isinstance(self.law.event, Tokens):
            raise ValueError("law must be of ONE step, got a law of whole sequences of tokens")

    @property
    def event(self):
        return dataclasses.replace(self.law.event, shape=(self.length, *self.law.event_shape))  # type: ignore[type-var]

    @property
    def context_shape(self):
        assert self.law.context_shape is not None
        return (self.length, *self.law.context_shape)

    @property
    def likelihood(self):
        return self.law.likelihood

    @property
    def reparameterized(self):
        return self.law.reparameterized

    @property
    def support(self):
        return self.law.support

    @property
    def own_precision(self):
        return self.law.own_precision

    def log_prob_steps_one(self, params: Params, x: Array, context: Context, key: Key | None = None) -> Array:
        """log q(z_t | c_t) of every step of ONE event, (T,), in nats."""
        keys = None if key is None else jax.random.split(key, self.length)
        axes = (None, 0, 0, None if key is None else 0)
        return jax.vmap(self.law.log_prob_one, axes)(params, x, context, keys)

    def _init(self, key, x, context):
        assert context is not None
        return self.law._init(key, x.reshape(-1, *self.law.event_shape), context.reshape(-1, *self.context_shape[1:]))

    def log_prob_one(self, params, x, context=None, key=None):
        return self.log_prob_steps_one(params, x, context, key).sum()

    def sample_one(self, params, key, context=None):
        return jax.vmap(self.law.sample_one, (None, 0, 0))(params, jax.random.split(key, self.length), context)

    def sample_and_log_prob_one(self, params, key, context=None):
        keys = jax.random.split(key, self.length)
        z, log_prob = jax.vmap(self.law.sample_and_log_prob_one, (None, 0, 0))(params, keys, context)
        return z, log_prob.sum()
