"""Neural filters: q(z_t | x_<=t) for every step of a sequence, trained on pairs of latents z_1..T and observations x_1..T.

    h_t = net(x_1 .. x_t),        log q(z_1..T | x_1..T) = sum_t log q(z_t | h_t)

`net` is causal, so that step t knows nothing of later observations; `law` is any conditional distribution of ONE step. Of pairs
drawn from a state-space model, maximum likelihood gives the filtering marginals p(z_t | x_<=t), each by itself. Their product is
not the law of the path z_1..T. It is a conditional distribution with a context (T, features), and may stand as the posterior of a
VAE.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from genmod import losses
from genmod.core.arrays import to_array
from genmod.core.batching import Batch, row_keys, vmap_events
from genmod.core.checks import check_count, check_parts
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.padding import Padded
from genmod.core.types import Array, Context, Key, Params
from genmod.densities import Stepwise
from genmod.models.base import Model
from genmod.nets import SequenceNet


@dataclasses.dataclass(frozen=True)
class Filtering(Model):
    """q(z_1..T | x_1..T) = prod_t q(z_t | x_<=t), an event z of shape (T,) + law.event_shape, a context x of shape (T, features).

        law = gm.flows.neural_spline_flow((2,), context_shape=(32,))
        model = gm.models.Filtering(gm.nets.Recurrent(nn.GRUCell(32)), law, length=50, num_features=3)
        fit = gm.fit(model, (z, x), key=key)

    Attributes:
      net: the causal network, (T, features) -> (T, outputs).
      law: of z_t, with context_shape (outputs,). `log_prob` is what its log_prob is.
      length: T. num_features: of an observation. Parameters do not depend on the length.

    Sequences of several lengths are padded: `gm.fit(model, Padded(z, x, num_steps), loss_fn=model.padded_loss, key=key)`.
    Online, one observation at a time: `init_carry` and `step`.
    Parameters: {"net", "law"}. Raises ValueError, at the latest by `init`, where net and law do not fit each other.
    """

    net: SequenceNet
    law: Distribution
    length: int
    num_features: int

    def __post_init__(self):
        check_parts(self, net=SequenceNet, law=Distribution)
        check_count(length=self.length, num_features=self.num_features)
        super().__post_init__()
        _ = self._steps  # refuses a law that is no law of a step

    @property
    def event(self):
        return self._steps.event

    @property
    def context_shape(self):
        return (self.length, self.num_features)

    @property
    def likelihood(self):
        return self.law.likelihood

    @property
    def reparameterized(self):
        return self.law.reparameterized

    @property
    def support(self):
        return self.law.support

    @over_events
    def log_prob_steps(self, params: Params, z: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """log q(z_t | x_<=t) of every step, any axes + (T,), in nats. Compiled."""
        return self._log_prob_steps(params, z, context, key)  # type: ignore[arg-type]

    def contexts_one(self, params: Params, x: Context) -> Array:
        """h_1..T of ONE sequence of observations, (T, outputs): the contexts of `law` at every step."""
        assert x is not None
        return self.net.apply(params["net"], x)

    def init_carry(self, params: Params, length: int | None = None) -> Any:
        """The carry before the first observation of ONE sequence; `length` as in `SequenceNet.init_carry`."""
        return self.net.init_carry(params["net"], length)

    def step(self, params: Params, carry: Any, x_t: ArrayLike) -> tuple[Any, Array]:
        """The carry after one more observation, (features,), and h_t, the context of `law` (params["law"]): of ONE sequence.

        Step by step these are `contexts_one` of the whole, to rounding.
        """
        return self.net.step(params["net"], carry, jnp.asarray(x_t))

    def loss(self, params, key, batch, *, step=None):
        z, x, weight = self.read(batch)
        log_prob = self._rows(params, key, z, x).sum(1)
        return losses.negative_log_likelihood(lambda _: log_prob, z, name=self.likelihood.nll_key, weight=weight)

    def padded_loss(
        self, params: Params, key: Key, batch: Padded, *, step: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """`loss` of sequences of several lengths: the sum over the real steps of each row, (weighted) mean over rows, in nats.

        Raises TypeError for num_steps that are no integers, ValueError for others than 1..T; while tracing, as in `fit`, values
        are not known, and those outside count as the nearest of 1..T.
        """
        z, x, weight = self.read(Batch(batch.x, batch.context, batch.weight))
        num_steps = _steps_in_range(batch.num_steps, z.shape[0], self.length)
        real = jnp.arange(self.length)[None] < num_steps[:, None]
        # Padding might lie outside of the law, with gradients that are no numbers: the first step stands in for it.
        log_prob = jnp.where(real, self._rows(params, key, *(_first_beyond(real, a) for a in (z, x))), 0.0).sum(1)
        return losses.negative_log_likelihood(lambda _: log_prob, z, name=self.likelihood.nll_key, weight=weight)

    def _init(self, key, x, context):
        assert context is not None
        keys = jax.random.split(key)
        net = self.net.init(keys[0], context[0])
        h = vmap_events(self.net.apply, (None, 0))(net, context)
        if h.shape[1:] != self._steps.context_shape:
            raise ValueError(f"net must give the law's contexts, {self._steps.context_shape} for a sequence, got {h.shape[1:]}")
        return {"net": net, "law": self._steps._init(keys[1], x, h)}

    def log_prob_one(self, params, x, context=None, key=None):
        return self._log_prob_steps(params, x, context, key).sum()

    def sample_one(self, params, key, context=None):
        return self._steps.sample_one(params["law"], key, self.contexts_one(params, context))

    def sample_and_log_prob_one(self, params, key, context=None):
        return self._steps.sample_and_log_prob_one(params["law"], key, self.contexts_one(params, context))

    @property
    def _steps(self) -> Stepwise:
        return Stepwise(self.law, self.length)

    def _log_prob_steps(self, params, z, context: Context, key):
        return self._steps.log_prob_steps_one(params["law"], z, self.contexts_one(params, context), key)

    def _rows(self, params, key, z, x):
        """log q of every step of every row, (n, T)."""
        keys = None if self.likelihood is Likelihood.EXACT else row_keys(key, z.shape[0])
        return vmap_events(self._log_prob_steps, (None, 0, 0, None if keys is None else 0))(params, z, x, keys)


def _steps_in_range(num_steps: Any, num: int, length: int) -> Array:
    """Checked numbers of steps, (num,) integers in 1..length."""
    num_steps = to_array("num_steps", num_steps)
    if num_steps.shape != (num,):
        raise ValueError(f"num_steps must have one entry for each of {num} rows, got shape {tuple(num_steps.shape)}")
    if not jnp.issubdtype(num_steps.dtype, jnp.integer):
        raise TypeError(f"num_steps must be integers, got {num_steps.dtype}; cast them")
    if not isinstance(num_steps, Tracer):
        known = np.asarray(num_steps)  # in NumPy, which does not trace
        if not ((known >= 1) & (known <= length)).all():
            found = f"{known.min()}..{known.max()}"
            raise ValueError(f"num_steps must be in 1..{length}, got values in {found}; drop empty sequences")
    return jnp.clip(jnp.asarray(num_steps, int), 1, length)


def _first_beyond(real: Array, a: Array) -> Array:
    """a, (n, T, ...), with its first step in the place of those that are not real."""
    return jnp.where(real.reshape(*real.shape, *(1,) * (a.ndim - 2)), a, a[:, :1])
