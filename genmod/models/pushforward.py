"""Densities pushed through a bijector: what `Flow` and `FlowMatching` have in common, however they are trained.

x = f(z), z ~ p_base;    log p(x) = log p_base(f^-1(x)) + log |det df^-1/dx|
"""

import abc
import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.base import Array, Bijector, Context, Info, Key, Likelihood, Params, mark_failed
from genmod.checks import check_context, check_count, check_event
from genmod.densities import Density
from genmod.keys import check_key
from genmod.models.base import Model, vmap_blocks


class Pushforward(Model, abc.ABC):
    """A model that samples its base density and moves the draws by its bijector; subclasses say how it is trained.

    `log_prob` is exact unless the bijector's log-determinant is an estimate. Where an ODE solve fails, samples and
    log-densities are NaN; the functions `*_with_info` return the last state and the count.
    Parameters: {"bijector": ...}, and "base" where the base density learns.
    """

    bijector: Bijector
    base: Density

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.base, Density):
            raise TypeError(
                f"base must be a gm.densities.Density, got {type(self.base).__name__}; "
                "gm.densities.as_density(distribution, event_shape) makes one of a distrax.Distribution"
            )

    @property
    def event_shape(self):
        return self.bijector.data_shape(self.base.event_shape)

    @property
    def context_shape(self):
        return self.bijector.context_shape

    @property
    def likelihood(self):
        return max(self.bijector.likelihood, self.base.likelihood)

    def sample_and_log_prob(self, params: Params, key: Key, num: int, context: Array | None = None) -> tuple[Array, Array]:
        """`num` draws and their log-densities in ONE pass of the forward direction: (num,) + event_shape and (num,).

        context: one per draw, (num,) + context_shape. Differentiable in params (reparameterised); raises ValueError for a
        base whose draws are not, where gradients would be wrong without a word. Not compiled: call it inside your `jit`.
        """
        if not self.base.reparameterized:
            raise ValueError(
                f"draws of {type(self.base).__name__} do not carry the gradient of all its parameters; "
                "use another base for reverse KL, or sample and log_prob where no gradient is wanted"
            )
        context = self._one_context_each(context, num)
        _, z, keys = self.draw_base(params, check_key(key), num)
        return vmap_blocks(functools.partial(self.push, params), z, context, keys)

    def push(self, params: Params, z: Array, context: Context = None, key: Key | None = None) -> tuple[Array, Array]:
        """(x, log p(x)) of ONE latent event z."""
        x, log_det = self.bijector.forward_and_log_det(params["bijector"], z, context, key=key)
        return x, self.base.log_prob(params.get("base", {}), z) - log_det

    def encode(self, params: Params, x: ArrayLike, context: ArrayLike | None = None) -> Array:
        """The latents z of events x, (n,) + event_shape. context: one per event, or one for all. Compiled."""
        x = check_event("x", x, self.event_shape, batched=True)
        return _move(self, "inverse", params, x, self._one_context_each(context, x.shape[0]))

    def decode(self, params: Params, z: ArrayLike, context: ArrayLike | None = None) -> Array:
        """The events x of latents z, (n,) + base.event_shape: the inverse of `encode`. Compiled."""
        z = check_event("z", z, self.base.event_shape, batched=True)
        return _move(self, "forward", params, z, self._one_context_each(context, z.shape[0]))

    def tempered(self, temperature: float) -> Self:
        """The same model, with the same parameters, whose base is narrowed to `temperature` times its standard deviation.

        Glow's samples at reduced temperature (Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 6); `log_prob` is that of the
        narrowed law. Raises ValueError for a base that cannot be narrowed so, and for a temperature that is not in (0, inf).
        """
        return dataclasses.replace(self, base=self.base.tempered(temperature))  # type: ignore[type-var]

    def sample_with_info(self, params: Params, key: Key, num: int, context: Array | None = None) -> tuple[Array, Info]:
        """`num` draws, (num,) + event_shape, and how each was solved, a dict of (num,): `nfe`, `failed_solves`, ...

        context: one per draw, (num,) + context_shape, or one for all. Compiled.
        """
        check_count(num=num)
        return _sample_with_info(self, num, params, check_key(key), self._one_context_each(context, num))

    def log_prob_with_info(
        self, params: Params, x: Array, context: Array | None = None, *, key: Key | None = None
    ) -> tuple[Array, Info]:
        """log p(x) of events x, (n,) + event_shape, and a dict of (n,): `nfe`, `failed_solves`, ...

        Where the log-density is an estimate of several probes, the dict holds its standard error, `log_prob_sem`.
        context: one per event, (n,) + context_shape, or one for all. Compiled.
        """
        x = check_event("x", x, self.event_shape, batched=True)
        return _log_prob_with_info(self, params, x, self._one_context_each(context, x.shape[0]), key)

    def _one_context_each(self, context: ArrayLike | None, num: int) -> Context:
        if context is not None and self.context_shape is not None and jnp.shape(context) == self.context_shape:
            context = jnp.broadcast_to(jnp.asarray(context)[None], (num, *self.context_shape))
        return check_context(type(self).__name__, context, self.context_shape, batch=() if context is None else (num,))

    def draw_base(self, params: Params, key: Key, num: int) -> tuple[Params, Array, Array | None]:
        """(base parameters, draws (num,) + event_shape, a key for each draw's log-determinant where that is an estimate)."""
        # An estimate of the log-determinant wants a stream of its own; without one, the key is the base's alone.
        exact = self.bijector.likelihood == Likelihood.EXACT
        base_key, keys = (key, None) if exact else (jax.random.fold_in(key, 0), jax.random.split(jax.random.fold_in(key, 1), num))
        leaves = jax.tree.leaves(params)
        base = params.get("base", {})
        return base, self.base.sample(base, base_key, (num,), jnp.result_type(*leaves) if leaves else None), keys

    def _log_prob_and_info(self, params, x, context, key):
        z, log_det, info = self.bijector.inverse_with_info(params["bijector"], x, context, key=key)
        return self.base.log_prob(params.get("base", {}), z) + log_det, info

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        params = {"bijector": self.bijector.init(keys[0], x, context)}
        base = self.base.init(keys[1], x.dtype)
        return params | ({"base": base} if base else {})

    def _log_prob(self, params, x, context, key):
        return mark_failed(*self._log_prob_and_info(params, x, context, key))

    def _sample(self, params, key, num, context):
        _, z, _ = self.draw_base(params, key, num)
        return vmap_blocks(functools.partial(self.bijector.forward, params["bijector"]), z, context)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _move(model, direction, params, events, context):
    return vmap_blocks(functools.partial(getattr(model.bijector, direction), params["bijector"]), events, context)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample_with_info(model, num, params, key, context):
    def forward(z, context):
        x, _, info = model.bijector.forward_with_info(params["bijector"], z, context, log_det=False)
        return x, info

    return vmap_blocks(forward, model.draw_base(params, key, num)[1], context)


@functools.partial(jax.jit, static_argnums=0)
def _log_prob_with_info(model, params, x, context, key):
    keys = None if key is None else jax.random.split(key, x.shape[0])
    log_prob, info = vmap_blocks(functools.partial(model._log_prob_and_info, params), x, context, keys)
    if "log_det_variance" in info:
        info = info | {"log_prob_sem": jnp.sqrt(info["log_det_variance"])}
    return log_prob, info
