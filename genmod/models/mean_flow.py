"""MeanFlow: the mean velocity of a flow between any two of its times, so that one evaluation jumps from noise to data.

    u(x_t, t, r) = (x_r - x_t) / (r - t) along the flow;      sample  x = z + u(z, 0, 1),  z ~ base

(Geng et al. 2025, arXiv:2505.13447.) It stands beside flow matching: t = 0 is noise and t = 1 data, t <= r, where the paper's
times run the other way (`losses.mean_flow` has the identity in ours). The parts are those of `FlowMatching`: a path and a pairing
of its ends (`gm.transport`), a base and a `CNF`, whose field reads the duration r - t too (`nets.MeanVelocity`) and at duration 0
is the velocity of the flow itself.
"""

import abc
import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from genmod import losses
from genmod.bijectors import CNF, Chain
from genmod.bijectors.base import Bijector
from genmod.bijectors.chain import inverse_rows
from genmod.bijectors.context import conditioned, inner
from genmod.core.batching import row_keys
from genmod.core.checks import check, check_count, check_parts, check_positive
from genmod.core.description import Description
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Real
from genmod.core.params import Fixed, check_held
from genmod.core.types import Array, Context, Key, Params
from genmod.denoising.levels import even_fractions
from genmod.densities import as_distribution
from genmod.models.base import Model
from genmod.nets import MeanVelocity
from genmod.transport import Independent, Linear, Pairing, Path


class Spans(Description, abc.ABC):
    """How the spans [t, r] of a batch are drawn.

    Attributes:
      share: of rows with r != t; the others learn the velocity of the flow itself.
      end_share: of these, with r = 1. The identity ties u only to itself at the same r, so that those are all that one evaluation
        needs; draws of several want the others too.
    """

    share: float
    end_share: float

    def __post_init__(self):
        super().__post_init__()
        check(0 <= self.share <= 1, f"share must be in [0, 1], got {self.share}")
        check(0 <= self.end_share <= 1, f"end_share must be in [0, 1], got {self.end_share}")

    def __call__(self, key: Key, num: int, dtype: Any = float) -> tuple[Array, Array]:
        """(t, r), each (num,), with 0 <= t <= r <= 1: two draws in order, and r = t in all but a `share` of the rows.

        Every row is as likely as another to be of the share, whatever the order of the data.
        """
        keys = jax.random.split(key)
        times = self._times(keys[0], (2, num), dtype)
        place = even_fractions(keys[1], num, dtype)
        to_end = place < self.share * self.end_share
        t, r = jnp.where(to_end, times[0], times.min(0)), jnp.where(to_end, 1.0, times.max(0))
        return t, jnp.where(place < self.share, r, t)

    @abc.abstractmethod
    def _times(self, key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        """Times in [0, 1], of this shape."""


@dataclasses.dataclass(frozen=True)
class LogitNormalSpans(Spans):
    """logit t ~ N(mean, std^2): times of the middle (Geng et al. 2025, table 1, whose mean of -0.4 is 0.4 in our times)."""

    share: float = 0.25
    mean: float = 0.4
    std: float = 1.0
    end_share: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check(math.isfinite(self.mean), f"mean must be finite, got {self.mean}")
        check_positive(std=self.std)

    def _times(self, key, shape, dtype):
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, shape, dtype))


@dataclasses.dataclass(frozen=True)
class UniformSpans(Spans):
    """Uniform times: the longest span, which one evaluation jumps, is seen too."""

    share: float = 0.5
    end_share: float = 0.0

    def _times(self, key, shape, dtype):
        return jax.random.uniform(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class MeanFlow(Model):
    """A one-step generator on the network, the path and the coupling of a flow.

    Attributes:
      cnf: the flow, whose field is a `nets.MeanVelocity`.
      base: the source of the path, any Distribution; it is not trained.
      path, coupling: as in `FlowMatching`.
      data_side: a layer between the flow and the data, held as it was initialised (`Standardize`). None: none.
      spans: which t and r the loss attends to.
      power: of the adaptive weight of the loss, `losses.mean_velocity_matching`; 0 for events of few dimensions.
      direction: of the derivative in the loss: "path", the velocity of the random path, as in the paper, or "flow", u(x, t, t),
        which has the same mean and less noise, for one more evaluation.
      num_steps: equal jumps of a draw, each one evaluation.
      context_dropout, guidance: the share of training examples that lose their context, and the weight w of classifier-free
        guidance, which is trained into u, w v + (1 - w) u(x, t, t, no context) in the place of v, so that a draw still costs
        one evaluation (Geng et al. 2025, sec. 4.2).

    Has no log_prob. Parameters: {"bijector": ...}, and "base" where the base has some. Raises TypeError for parts of the wrong
    kind, ValueError for numbers out of range, for a source that has not the scale of the data, and for guidance without a
    context or without a context_dropout.
    """

    cnf: CNF
    base: Distribution
    path: Path = Linear()
    coupling: Pairing = Independent()
    data_side: Bijector | None = None
    spans: Spans = LogitNormalSpans()
    power: float = 0.0
    direction: Literal["path", "flow"] = "flow"
    num_steps: int = 1
    context_dropout: float = 0.0
    guidance: float = 1.0

    likelihood = Likelihood.NONE
    own_precision = True

    def __post_init__(self):
        object.__setattr__(self, "base", as_distribution(self.base))
        super().__post_init__()
        check_parts(self, cnf=CNF, path=Path, coupling=Pairing, spans=Spans)
        if not isinstance(self.cnf.field, MeanVelocity):
            raise TypeError(f"the field of cnf must be a nets.MeanVelocity(body), to read the duration, got {self.cnf.field!r}")
        if self.data_side is not None:
            check_parts(self, data_side=Bijector)
        check(self.base.context_shape is None, "base must be no conditional distribution")
        check(
            self.path.source_scale in (None, 1.0),
            f"path wants a source of the data's scale, got {self.path}; take transport.OptimalTransport() or Linear()",
        )
        check(self.direction in ("path", "flow"), f"direction must be 'path' or 'flow', got {self.direction!r}")
        check(0 <= self.power < math.inf, f"power must be finite and >= 0, got {self.power}")
        check(math.isfinite(self.guidance), f"guidance must be finite, got {self.guidance}")
        learned = self.direction == "path" or self.spans.share < 1
        check(learned, "direction='flow' is learned from spans with r = t, of which share=1 leaves none; take direction='path'")
        check(0 <= self.context_dropout < 1, f"context_dropout must be in [0, 1), got {self.context_dropout}")
        check_count(num_steps=self.num_steps)
        check(self.context_dropout == 0 or self.context_shape is not None, "context_dropout wants context_shape=...")
        check(
            self.guidance == 1.0 or self.context_dropout > 0,
            f"guidance={self.guidance} wants an unconditional branch: train it with context_dropout > 0",
        )

    @functools.cached_property
    def bijector(self) -> Bijector:
        """The flow of the field at duration 0, and the data side; a context is standardised."""
        return Chain((self._conditioned, *(() if self.data_side is None else (self.data_side,))))

    @functools.cached_property
    def _conditioned(self) -> Bijector:
        return conditioned(self.cnf)

    @functools.cached_property
    def event(self):
        return Real(self.bijector.data_shape(self.base.event_shape))

    @property
    def context_shape(self):
        return self.cnf.context_shape

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        params = {"bijector": self.bijector.init_rows(keys[0], x, context)}
        check_held("data_side", params["bijector"][1:])
        z = jnp.zeros((1, *self.base.event_shape), jnp.promote_types(x.dtype, jnp.float32))
        base = self.base._init(keys[1], z, None)
        return params | ({"base": Fixed(base)} if base else {})

    def mean_velocity(self, params: Params, x: Array, t: Array, r: Array, context: Context = None) -> Array:
        """u(x, t, r, context) of ONE event on the latent side of the data side."""
        field, context = inner(self._conditioned, params["bijector"][0], context)
        return self.cnf.velocity(field, x, t, context, duration=r - t)

    def _base_params(self, params):
        return params["base"].constant if "base" in params else {}

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        source_key, coupling_key, span_key, noise_key, drop_key = jax.random.split(key, 5)
        x1 = x
        if self.data_side is not None:
            x1 = inverse_rows(self.data_side, jax.lax.stop_gradient(params["bijector"][1]), x, None)
        num, dtype = x1.shape[0], jnp.promote_types(x1.dtype, jnp.float32)
        draw = jax.vmap(self.base.sample_one, (None, 0))
        x0 = draw(self._base_params(params), row_keys(source_key, num)).astype(x1.dtype)
        field, context = inner(self._conditioned, params["bijector"][0], context)
        indices, info = self.coupling.with_info(x0, x1, jax.lax.stop_gradient(context), coupling_key)
        low, high = self.path.times
        t, r = (low + (high - low) * fraction for fraction in self.spans(span_key, num, dtype))
        noise = jax.random.normal(noise_key, x1.shape, dtype) if self.path.noisy else jnp.zeros_like(x1)
        points, velocity = jax.vmap(self.path.point_and_velocity)(t, x0[indices], x1, noise)
        present = jax.random.bernoulli(drop_key, 1.0 - self.context_dropout, (num,)).astype(dtype)

        def one(x, t, r, context, present):
            options = {} if context is None else {"present": present}
            return self.cnf.velocity(field, x, t, context, duration=r - t, **options)

        def mean_velocities(x, t, r, present=present):
            return jax.vmap(one, (0, 0, 0, None if context is None else 0, 0))(x, t, r, context, present)

        if self.guidance != 1.0:
            without = mean_velocities(points, t, t, jnp.zeros_like(present))
            weights = jnp.where(present > 0, self.guidance, 1.0).reshape(-1, *[1] * (x1.ndim - 1))
            velocity = jax.lax.stop_gradient(weights * velocity + (1.0 - weights) * without)
        direction = mean_velocities(points, t, t) if self.direction == "flow" else None
        loss, metrics = losses.mean_velocity_matching(
            mean_velocities, points, velocity, t, r, direction=direction, power=self.power, weight=weight
        )
        return loss, metrics | info

    def sample_one(self, params, key, context=None):
        floats = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        z = self.base.sample_one(self._base_params(params), key)
        z = z.astype(jnp.result_type(*floats)) if floats else z
        times = jnp.linspace(*self.path.times, self.num_steps + 1, dtype=z.dtype)

        def jump(x, span):
            t, r = span
            return x + (r - t) * self.mean_velocity(params, x, t, r, context), None

        x = jax.lax.scan(jump, z, (times[:-1], times[1:]))[0]
        return x if self.data_side is None else self.data_side._move(params["bijector"][1], x, None, None, False, False)[0]

    def log_prob_one(self, params, x, context=None, key=None):
        raise NotImplementedError("MeanFlow has no log_prob; the flow of its field at duration 0 has: Flow(bijector, base)")
