"""Hierarchical variational autoencoders with top-down inference, of any number of levels (the ladder VAE, Sonderby et al. 2016,
arXiv:1602.02282; Vahdat & Kautz 2020, arXiv:2007.03898, sec. 3.1).

    p(x, z) = p(z_L) prod_l p(z_l | z_>l) p(x | z),      q(z | x) = q(z_L | x) prod_l q(z_l | z_>l, x)
    log p(x) >= E_q[log p(x | z) - sum_l KL(q(z_l | z_>l, x) || p(z_l | z_>l))]

Level 1 is the nearest to the data and L the top. Encoders go up, d_l = encoder_l(d_(l-1)) from d_0 = x. Decoders go down,
s_(l-1) = decoder_l(z_l, s_l), to the raw numbers s_0 of x. The prior of z_l sees the state s_l, its posterior s_l and d_l; the
state at the top is the context, if there is one. Nothing is special to Gaussians. To the rest of the library all levels are one
flat latent, the lowest level first.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import nets
from genmod.core.arrays import to_array
from genmod.core.batching import vmap_events
from genmod.core.checks import check, check_parts, check_shape
from genmod.core.description import Description
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.event import Real
from genmod.core.numerics import real
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import Head, VampPrior, as_distribution, kl_one
from genmod.losses.variational import ELBO, Latent, Objective
from genmod.models.base import LatentModel, as_raw, present


@dataclasses.dataclass(frozen=True)
class LatentLevel(Description):
    """One level z_l of latents, and its networks, Linen modules of one event.

    Attributes:
      encoder: d_(l-1) -> d_l, features of any shape; the lowest level sees x as real numbers.
      posterior: q(z_l | z_>l, x), conditional on what `merge` makes of d_l and s_l.
      prior: p(z_l | z_>l), conditional on s_l; one without a context_shape does not see it.
      decoder: (z_l, s_l) -> s_(l-1), a state of any shape; of the lowest level as many raw numbers as the head wants.
      merge: (d_l, s_l) -> the context of the posterior; None: all their entries in one vector.

    Where there is no state, at the top without a context, `decoder` and `merge` take their first argument alone.
    Raises ValueError for a posterior and a prior that do not fit each other or have no exact log_prob.
    """

    encoder: Any
    posterior: Distribution
    prior: Distribution
    decoder: Any
    merge: Any = None

    def __post_init__(self):
        object.__setattr__(self, "prior", as_distribution(self.prior))
        check_parts(self, posterior=Distribution, prior=Distribution)
        super().__post_init__()
        q, p = self.posterior, self.prior
        check(
            q.context_shape is not None, "posterior must be conditional: give it a context_shape, or use gm.densities.Amortized"
        )
        check(math.prod(q.event_shape) > 0, f"a level must have at least one latent, got shape {q.event_shape}")
        check(p.event == q.event, f"prior and posterior must have the same events, got {p.event} and {q.event}")
        check(not isinstance(p, VampPrior), "prior must not be a VampPrior, whose inputs only a gm.models.VAE encodes")
        for name, law in (("prior", p), ("posterior", q)):
            kind = f"that of {type(law).__name__} is {law.likelihood.name}"
            check(law.likelihood is Likelihood.EXACT, f"{name} must have an EXACT log_prob, {kind}")

    def merged(self, params: Params, features: Array, state: Context) -> Array:
        """What the posterior is conditional on."""
        inputs = present(features, state)
        if self.merge is None:
            return jnp.concatenate([a.reshape(-1) for a in inputs])
        return nets.apply(self.merge, params, *inputs)

    def state_below(self, params: Params, z: Array, state: Context) -> Array:
        """s_(l-1) of ONE z_l and s_l."""
        return nets.apply(self.decoder, params, *present(real(z), state))


class _Law(NamedTuple):
    """A distribution at its parameters and ONE context."""

    distribution: Distribution
    params: Params
    context: Context

    def log_prob(self, z: Array) -> Array:
        return self.distribution.log_prob_one(self.params, z, self.context)

    def draw(self, key: Key) -> tuple[Array, Array]:
        return self.distribution.sample_and_log_prob_one(self.params, key, self.context)


@dataclasses.dataclass(frozen=True)
class HierarchicalVAE(LatentModel):
    """A variational autoencoder with levels of latents (`gm.flows.hierarchical_autoencoder` builds one).

    Attributes:
      shape: of a datum.
      levels: the lowest first, at least one. With one it is a `VAE`.
      head: the law of x given the raw numbers.
      objective: as of a `VAE`. `ELBO` reports the rate of each level, takes `free_bits` for each, and has the KL of a level in
        closed form where one is known, given the draws above it.
      context_shape: of p(x | context), which is the state at the top.

    Parameters: {"encoder", "posterior", "decoder", "prior"}, a tuple by levels in each.
    Raises ValueError for parts that do not fit each other, at the latest by `init`.
    """

    shape: Shape
    levels: tuple[LatentLevel, ...]
    head: Head
    objective: Objective = ELBO()
    context_shape: Shape | None = None

    def __post_init__(self):
        check_parts(self, levels=tuple, head=Head)
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        check(self.levels, "levels must hold at least one LatentLevel, got none")
        super().__post_init__()
        for i, level in enumerate(self.levels):
            if not isinstance(level, LatentLevel):
                raise TypeError(f"levels[{i}] must be a LatentLevel, got {level!r}")
            wrong = f"{type(self.objective).__name__} wants reparameterised posteriors, levels[{i}] has {level.posterior}: "
            fits = level.posterior.reparameterized or not self.objective.wants_reparameterized
            check(fits, f"{wrong}train with gm.losses.ScoreFunctionELBO(), or relax it (gm.densities.StraightThrough)")

    @property
    def event(self):
        return self.head.event(self.shape)

    def split(self, z: ArrayLike) -> tuple[Array, ...]:
        """The latents of each level, the lowest first, of flat latents z, any axes + (their number,).

        Raises ValueError for another number of them, TypeError for what is no array of numbers.
        """
        z = real(jnp.asarray(to_array("z", z)))
        events = [level.posterior.event for level in self.levels]
        *ends, num = itertools.accumulate(math.prod(event.shape) for event in events)
        check(z.shape[-1:] == (num,), f"z must have {num} latents in its last axis, those of all levels, got shape {z.shape}")
        parts = zip(jnp.split(z, ends, -1), events, strict=True)
        dtypes = [event.dtype if jnp.issubdtype(event.dtype, jnp.integer) else z.dtype for event in events]
        return tuple(p.reshape(*z.shape[:-1], *e.shape).astype(dtype) for (p, e), dtype in zip(parts, dtypes, strict=True))

    @over_events
    def kl(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """KL(q(z_l | z_>l, x) || p(z_l | z_>l)) of each level, any axes + (num_levels,), the lowest first, in nats. Compiled.

        Each is given one draw of the levels above it; in closed form where one is known, else by a draw of its own. Their sum
        is a draw of the rate. Raises ValueError without a key.
        """
        latent = self.latent_one(params, x, context)  # type: ignore[arg-type]
        return latent.draw_levels(self._random(key))[2]  # type: ignore[misc]

    def encode_one(self, params: Params, x: Array, key: Key, context: Context = None) -> Array:
        """ONE draw of q(z | x), flat."""
        return self._draw_levels(params, self.features_one(params, x, context), context, key)[0]

    def decode_one(self, params: Params, z: Array, context: Context = None) -> Array:
        """E[x | z] of ONE flat latent, a float array of event_shape."""
        return self.head.mean(self._raw(params, z, context))

    def _init(self, key, x, context):
        keys = jax.random.split(key, (len(self.levels), 6))
        features, encoders, parts, state = [real(x)], [], [], context
        for level, own in zip(self.levels, keys, strict=True):
            encoders.append(nets.init(level.encoder, own[0], features[-1][0]))
            features.append(vmap_events(functools.partial(nets.apply, level.encoder, encoders[-1]))(features[-1]))
        for i in reversed(range(len(self.levels))):
            own, state = self._init_level(i, keys[i], features[i + 1], state)
            parts.insert(0, own)
        as_raw("the lowest decoder", state[0], self.shape, self.head)  # type: ignore[index]
        return {"encoder": tuple(encoders)} | {name: tuple(own[name] for own in parts) for name in parts[0]}

    def _init_level(self, i, keys, features, state):
        """(parameters of level i but its encoder's, the states below) of a batch of features and states."""
        level = self.levels[i]
        posterior, num = level.posterior, features.shape[0]
        given = tuple(a[0] for a in present(features, state))
        merge = {} if level.merge is None else nets.init(level.merge, keys[1], *given)
        axes = (0, None if state is None else 0)
        merged = vmap_events(functools.partial(level.merged, merge), axes)(features, state)
        wanted, found = posterior.context_shape, merged.shape[1:]
        check(wanted == found, f"the posterior of levels[{i}] wants a context of shape {wanted}, features and state make {found}")
        wanted, found = level.prior.context_shape, None if state is None else state.shape[1:]
        check(wanted in (None, found), f"the prior of levels[{i}] wants a context of shape {wanted}, the state there is {found}")
        z = jax.random.normal(keys[2], (num, *posterior.event_shape), features.dtype)
        z = z if isinstance(posterior.event, Real) else posterior.event.example(num)
        law = posterior._init(keys[5], z, merged)
        prior = level.prior._init(keys[3], z, None if wanted is None else state)
        decoder = nets.init(level.decoder, keys[4], *(a[0] for a in present(real(z), state)))
        below = vmap_events(functools.partial(level.state_below, decoder), axes)(z, state)
        return {"posterior": {"law": law, "merge": merge}, "decoder": decoder, "prior": prior}, below

    def sample_joint_one(self, params, key, context=None):
        keys = jax.random.split(key)
        z = self._draw_prior(params, context, keys[0])
        return z, self.head.sample(self._raw(params, z, context), keys[1])

    def features_one(self, params, x, context=None):
        features = [real(x)]
        for level, own in zip(self.levels, params["encoder"], strict=True):
            features.append(nets.apply(level.encoder, own, features[-1]))
        return tuple(features[1:])

    def latent_one(self, params, x, context=None, features=None):
        features = self.features_one(params, x, context) if features is None else features

        def log_q(params, features, z):
            return self._log_prob(params, context, z, functools.partial(self._posterior, params, features))

        return Latent(
            lambda key: self._draw_levels(params, features, context, key)[:2],
            lambda z: self.head.log_prob(self._raw(params, z, context), x).sum(),
            lambda z: self._log_prob(params, context, z, functools.partial(self._prior, params)),
            functools.partial(log_q, *jax.lax.stop_gradient((params, features))),
            log_q=functools.partial(log_q, params, features),
            draw_prior=functools.partial(self._draw_prior, params, context),
            features=features,
            with_features=lambda features: self.latent_one(params, x, context, features),
            draw_levels=functools.partial(self._draw_levels, params, features, context),
        )

    def _prior(self, params, i, state):
        law = self.levels[i].prior
        return _Law(law, params["prior"][i], None if law.context_shape is None else state)

    def _posterior(self, params, features, i, state):
        own, level = params["posterior"][i], self.levels[i]
        return _Law(level.posterior, own["law"], level.merged(own["merge"], features[i], state))

    def _descend(self, params: Params, context: Context, choose: Callable[[int, Context], tuple[Array, Any]]):
        """From the top down, where `choose(i, s_i)` gives (z_i, anything): (flat z, the list of these by level, s_0)."""
        state, latents, found = context, [], []
        for i in reversed(range(len(self.levels))):
            z, other = choose(i, state)
            latents.insert(0, real(z).reshape(-1))
            found.insert(0, other)
            state = self.levels[i].state_below(params["decoder"][i], z, state)
        return jnp.concatenate(latents), found, state

    def _log_prob(self, params, context, z, law):
        parts = self.split(z)
        _, log_probs, _ = self._descend(params, context, lambda i, state: (parts[i], law(i, state).log_prob(parts[i])))
        return jnp.stack(log_probs).sum()

    def _draw_prior(self, params, context, key):
        keys = jax.random.split(key, len(self.levels))
        return self._descend(params, context, lambda i, state: self._prior(params, i, state).draw(keys[i]))[0]

    def _draw_levels(self, params, features, context, key):
        keys = jax.random.split(key, len(self.levels))

        def choose(i, state):
            q, p = self._posterior(params, features, i, state), self._prior(params, i, state)
            z, log_q = q.draw(keys[i])
            closed = kl_one(*q, *p)
            return z, (log_q, log_q - p.log_prob(z) if closed is None else closed.sum())

        z, found, _ = self._descend(params, context, choose)
        log_q, rates = (jnp.stack(each) for each in zip(*found, strict=True))
        return z, log_q.sum(), rates

    def _raw(self, params, z, context):
        parts = self.split(z)
        state = self._descend(params, context, lambda i, state: (parts[i], None))[2]
        return as_raw("the lowest decoder", state, self.shape, self.head)  # type: ignore[arg-type]
