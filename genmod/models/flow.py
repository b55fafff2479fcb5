"""Normalizing flows: a base density pushed through a bijector (Papamakarios et al. 2021, arXiv:1912.02762).

x = f(z), z ~ p_base;    log p(x) = log p_base(f^-1(x)) + log |det df^-1/dx|

`Pushforward` is what all of them have in common, however they are trained; `Flow` is trained by maximum likelihood.
"""

import abc
import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import losses
from genmod.bijectors import as_bijector
from genmod.bijectors.base import Bijector
from genmod.core.batching import row_keys, vmap_events
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.event import Real
from genmod.core.info import FAILED, mark_failed
from genmod.core.numerics import kept_inside, same_precision
from genmod.core.params import Fixed
from genmod.core.statistics import mean_and_sem
from genmod.core.types import REALS, Array, Context, Key, Params
from genmod.densities import Normal, as_distribution
from genmod.models.base import Model


class Pushforward(Model, abc.ABC):
    """A model that samples its base density and moves the draws by its bijector; subclasses say how it is trained.

    `log_prob` is exact unless the bijector's log-determinant is an estimate. Where an ODE solve fails, samples and
    log-densities are NaN; the methods `*_with_info` return the last state and the count. A context reaches the bijector, the
    base, or both.
    Parameters: {"bijector": ...}, and "base" where the base density learns.
    """

    bijector: Bijector
    base: Distribution
    own_precision = True

    def __post_init__(self):
        super().__post_init__()
        shapes = {self.bijector.context_shape, self.base.context_shape} - {None}
        if len(shapes) > 1:
            raise ValueError(
                f"base and bijector must have the same context, got context_shape={self.base.context_shape} and "
                f"{self.bijector.context_shape}"
            )
        _ = self.support  # refuses a base that leaves the domain of a layer

    @functools.cached_property
    def event(self):
        return Real(self.bijector.data_shape(self.base.event_shape))

    @property
    def context_shape(self):
        return self.bijector.context_shape if self.base.context_shape is None else self.base.context_shape

    @property
    def likelihood(self):
        return max(self.bijector.likelihood, self.base.likelihood)

    @property
    def reparameterized(self):
        return self.base.reparameterized

    @functools.cached_property
    def support(self):
        return None if self.base.support is None else self.bijector.image(self.base.support)

    @over_events
    def encode(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """The latents z of events x, any axes + event_shape. Compiled."""
        z, _, info = self.bijector._move(params["bijector"], x, self._of_bijector(context), None, True, False)  # type: ignore[arg-type]
        return mark_failed(z, info)

    @over_events(event=lambda self: self.base.event)
    def decode(self, params: Params, z: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """The events x of latents z, any axes + base.event_shape: the inverse of `encode`. Compiled."""
        x, _, info = self.bijector._move(params["bijector"], z, self._of_bijector(context), None, False, False)  # type: ignore[arg-type]
        return mark_failed(x, info)

    def tempered(self, temperature: float) -> Self:
        """The same model, with the same parameters, whose base is narrowed to `temperature` times its standard deviation.

        Glow's samples at reduced temperature (Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 6); `log_prob` is that of the
        narrowed law. Raises ValueError for a base that is not a Normal, and for a temperature that is not in (0, inf).
        """
        if not isinstance(self.base, Normal):
            raise ValueError(f"temperature={temperature} wants a Normal base, got {type(self.base).__name__}")
        return dataclasses.replace(self, base=self.base.tempered(temperature))  # type: ignore[type-var]

    def draw_base_one(self, params: Params, key: Key, context: Context = None) -> Array:
        """ONE draw of the base density, in the precision of the parameters."""
        floats = [a.dtype for a in jax.tree.leaves(params) if jnp.issubdtype(a.dtype, jnp.floating)]
        self._check_bound(params)
        z = self.base.sample_one(self.base_params(params), key, self._of_base(context, *jax.tree.leaves(params)))
        return z.astype(jnp.result_type(*floats)) if floats else z

    def push_one(self, params: Params, z: Array, context: Context = None, key: Key | None = None) -> tuple[Array, Array]:
        """(x, log p(x)) of ONE latent event z."""
        x, log_det, info = self.bijector._move(params["bijector"], z, self._of_bijector(context), key, False, True)
        lost = log_det == -jnp.inf  # the draw left the domain of a layer
        x, log_det = jnp.where(lost, jnp.nan, x), jnp.where(lost, jnp.nan, log_det)
        log_prob = self._log_base(params, z, context, key) - log_det
        return mark_failed(x, info), mark_failed(log_prob, info)

    def log_prob_info_one(self, params, x, context=None, key=None):
        self._check_bound(params)
        x, outside = kept_inside(x, self.support or REALS, closed=True)
        z, log_det, info = self.bijector._move(params["bijector"], x, self._of_bijector(context), key, True, True)
        log_prob = self.checked_scalar(self._log_base(params, z, context, key) + log_det)
        return log_prob if outside is None else jnp.where(outside, -jnp.inf, log_prob), info

    def base_params(self, params: Params) -> Params:
        """The parameters of the base among those of the model."""
        base = params.get("base", {})
        return base.constant if isinstance(base, Fixed) else base

    def _of_bijector(self, context):
        return None if self.bijector.context_shape is None else context

    def _of_base(self, context, *arrays):
        """The context as the base's hooks get it, in the precision of the arrays unless it has one of its own."""
        if self.base.context_shape is None:
            return None
        return context if self.base.own_precision else same_precision(context, *arrays)

    def _log_base(self, params, z, context, key):
        """log p of the latent event, by a key of its own where that is random."""
        own_key = None if key is None else jax.random.fold_in(key, 1)
        return self.base.checked_scalar(self.base.log_prob_one(self.base_params(params), z, self._of_base(context, z), own_key))

    def _check_bound(self, params):
        """Parameters of a layer of another event shape might broadcast; known while tracing, so it costs nothing."""
        shape = self.bijector.bound_shape(params["bijector"])
        if shape is not None and shape != self.event_shape:
            raise ValueError(f"params must be those of events of shape {self.event_shape}, got those of shape {shape}")

    def log_prob_one(self, params, x, context=None, key=None):
        return mark_failed(*self.log_prob_info_one(params, x, context, key))

    def sample_info_one(self, params, key, context=None):
        z = self.draw_base_one(params, key, context)
        x, _, info = self.bijector._move(params["bijector"], z, self._of_bijector(context), None, False, False)
        return x, info

    def sample_one(self, params, key, context=None):
        return mark_failed(*self.sample_info_one(params, key, context))

    def sample_and_log_prob_one(self, params, key, context=None):
        if self.bijector.likelihood is Likelihood.EXACT:
            return self.push_one(params, self.draw_base_one(params, key, context), context)
        # An estimate of the log-determinant wants a stream of its own.
        keys = jax.random.split(key)
        return self.push_one(params, self.draw_base_one(params, keys[0], context), context, keys[1])

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        params = {"bijector": self.bijector.init_rows(keys[0], x, self._of_bijector(context))}
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        z = jnp.zeros((1, *self.base.event_shape), dtype)
        base = self.base._init(keys[1], z, self._of_base(context, z))
        return params | ({"base": base} if base else {})


@dataclasses.dataclass(frozen=True)
class Flow(Pushforward):
    """A flow trained by maximum likelihood, with exact log_prob (unless the bijector's is an estimate) and exact samples.

    Attributes:
      bijector: of ours, or of Distrax. base: any Distribution, or one of Distrax.
      penalties: weights of entries of the bijector's info in the loss: (("kinetic_energy", 0.01),) for a `CNF` that tracks it.

    Parameters: {"bijector": ...}, and "base" where the base density learns.
    """

    bijector: Bijector
    base: Distribution
    penalties: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "bijector", as_bijector(self.bijector))
        object.__setattr__(self, "base", as_distribution(self.base))
        super().__post_init__()

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        keys = None if self.likelihood == Likelihood.EXACT else row_keys(key, x.shape[0])
        axes = (None, 0, None if context is None else 0, None if keys is None else 0)
        log_prob, info = vmap_events(self.log_prob_info_one, axes)(params, x, context, keys)
        loss, metrics = losses.negative_log_likelihood(lambda _: log_prob, x, name=self.likelihood.nll_key, weight=weight)
        metrics |= {name: mean_and_sem(value, weight)[0] for name, value in info.items() if name != "log_det_variance"}
        for name, penalty in self.penalties:
            if name not in metrics:
                raise ValueError(f"penalties name {name!r}, which the bijector does not report; it has {sorted(info)}")
            loss = loss + penalty * metrics[name]
        # A density read off a solve that did not arrive is no density: the loss is not finite, and `fit` stops and says why.
        return (loss if FAILED not in info else jnp.where(metrics[FAILED] > 0, jnp.nan, loss)), metrics
