"""Flow matching: a vector field learned by regression, sampled and scored by solving its ODE.

    loss   E |v(x_t, t, context) - d x_t / dt|^2,   x_t on a conditional path from x0 ~ base (t = 0) to x1 ~ data (t = 1)
    sample x(1) of dx/dt = v, x(0) ~ base;          log_prob exact through the change of variables of the same ODE

(Lipman et al. 2022, arXiv:2210.02747; Albergo & Vanden-Eijnden 2022, arXiv:2209.15571; Liu et al. 2022, arXiv:2209.03003;
Tong et al. 2023, arXiv:2302.00482.) The parts: a path and a pairing of its two ends (`gm.transport`), a base density and a `CNF`.
`Flow(model.bijector, model.base)` is the same model trained by maximum likelihood, with the same parameters.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from genmod import losses, nets
from genmod.bijectors import CNF, Chain
from genmod.bijectors.base import Bijector
from genmod.bijectors.chain import inverse_rows
from genmod.bijectors.context import conditioned, inner
from genmod.core.batching import row_keys
from genmod.core.checks import check_parts
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Real
from genmod.core.info import mark_failed
from genmod.core.params import Fixed, check_held
from genmod.core.types import Array, Context, Key, Params
from genmod.denoising.levels import even_fractions
from genmod.densities import Normal, as_distribution
from genmod.models.base import Model
from genmod.models.flow import Pushforward
from genmod.transport import Independent, Linear, Pairing, Path


@dataclasses.dataclass(frozen=True)
class FlowMatching(Pushforward):
    """A continuous flow trained by regression on conditional velocities.

    Attributes:
      cnf: the flow whose field is trained.
      base: the source of the path; any Distribution, of ours or of Distrax, for two-sided paths.
      path, coupling: how x0 and x1 are joined, and which x0 meets which x1 within a batch.
      data_side: a layer between the flow and the data, held as it was initialised (`Standardize`): the regression is done on
        its latent side. None: the flow ends at the data.
      context_dropout: share of training examples that lose their context, for guidance; the field then takes `present`, as
        `nets.Guided` does.

    Raises TypeError for parts of the wrong kind, ValueError for a path that takes a normal source for granted and another base,
    and for a context_dropout outside [0, 1) or without a guided field.
    """

    cnf: CNF
    base: Distribution
    path: Path = Linear()
    coupling: Pairing = Independent()
    data_side: Bijector | None = None
    context_dropout: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "base", as_distribution(self.base))
        check_parts(self, cnf=CNF, path=Path, coupling=Pairing)
        if self.data_side is not None:
            check_parts(self, data_side=Bijector)
        super().__post_init__()
        if self.base.context_shape is not None:
            raise ValueError(f"base must be no conditional distribution, got one with context_shape={self.base.context_shape}")
        wanted = self.path.source_scale
        if wanted is not None and self.base != Normal(self.base.event_shape, wanted):
            raise ValueError(
                f"{self.path} goes from N(0, {wanted:g}^2) to the data, but the base is {self.base}: use "
                f"gm.densities.Normal({self.base.event_shape}, {wanted:g}), or a path from any source such as Linear()"
            )
        nets.check_guidance(self.cnf.field, self.context_dropout, self.cnf.context_shape)

    @functools.cached_property
    def bijector(self):
        """The whole map, the flow and its data side; a context is standardised."""
        return Chain((self._conditioned, *(() if self.data_side is None else (self.data_side,))))

    @functools.cached_property
    def _conditioned(self) -> Bijector:
        return conditioned(self.cnf)

    def velocity(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """v(x, t, context) of a batch on the latent side of the fixed layers: (n,) + event_shape, (n,), (n,) + context_shape."""
        axes = (None, 0, 0, None if context is None else 0)
        return jax.vmap(self.cnf.velocity, axes)(self.field_params(params), x, t, self.field_context(params, context))

    def _init(self, key, x, context):
        params = super()._init(key, x, context)
        check_held("data_side", params["bijector"][1:])
        # The source is where it was put: no part of the regression moves it.
        return params | ({"base": Fixed(params["base"])} if "base" in params else {})

    def field_params(self, params: Params) -> Params:
        """The parameters of the field among those of the model."""
        return inner(self._conditioned, params["bijector"][0], None)[0]

    def field_context(self, params: Params, context: Context) -> Context:
        """Contexts as the field sees them, of any leading axes."""
        return inner(self._conditioned, params["bijector"][0], context)[1]

    def latent(self, params: Params, x: Array) -> Array:
        """Data x, (n,) + event_shape, on the latent side of the data side, where the ODE lives."""
        return (
            x if self.data_side is None else inverse_rows(self.data_side, jax.lax.stop_gradient(params["bijector"][1]), x, None)
        )

    def regression(
        self,
        params: Params,
        key: Key,
        x0: Array,
        x1: Array,
        context: Context = None,
        weight: Array | None = None,
        *,
        first_time_only: bool = False,
    ) -> tuple[Array, dict[str, Array]]:
        """(loss, metrics) of pairs on the latent side.

        Args:
          x0, x1: row i of one paired with row i of the other, (n,) + event shape. context, weight: of the rows.
          first_time_only: train the velocity at t = 0 alone.
        """
        keys = jax.random.split(key, 3)
        num, dtype = x1.shape[0], jnp.promote_types(x1.dtype, jnp.float32)
        low, high = self.path.times
        fractions = even_fractions(keys[0], num, dtype)
        t = jnp.zeros(num, dtype) if first_time_only else low + (high - low) * fractions
        noise = jax.random.normal(keys[1], x1.shape, dtype) if self.path.noisy else jnp.zeros_like(x1)
        present = jax.random.bernoulli(keys[2], 1.0 - self.context_dropout, (num,)).astype(dtype)
        field_params, context = self.field_params(params), self.field_context(params, context)

        def velocity(x, t, context, present):
            options = {"present": present} if self.context_dropout else {}
            return self.cnf.velocity(field_params, x, t, context, **options)

        def velocities(x, t):
            return jax.vmap(velocity, (0, 0, None if context is None else 0, 0))(x, t, context, present)

        path, sizes = self.path.point_and_velocity, self.path.sizes(t)[1]
        return losses.flow_matching(velocities, path, x0, x1, t, noise, sizes=sizes, weight=weight)

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        source_key, coupling_key, regression_key = jax.random.split(key, 3)
        x1 = self.latent(params, x)
        base = jax.lax.stop_gradient(self.base_params(params))
        x0 = jax.vmap(self.base.sample_one, (None, 0))(base, row_keys(source_key, x1.shape[0])).astype(x1.dtype)
        seen = None if context is None else jax.lax.stop_gradient(self.field_context(params, context))
        indices, info = self.coupling.with_info(x0, x1, seen, coupling_key)
        loss, metrics = self.regression(params, regression_key, x0[indices], x1, context, weight)
        return loss, metrics | info


@dataclasses.dataclass(frozen=True)
class Reflow(Model):
    """The pairs (z, x) that a flow joins, stacked to events (2,) + event_shape: rectified flow's second round and on.

    `sample` draws pairs z ~ base, x = flow(z); `fit` on such pairs trains the field to join them by straight lines (Liu et al.
    2022, arXiv:2209.03003, alg. 1), which lowers no marginal and straightens the paths:

        pairs = Reflow(first).sample(params, key, (50_000,))
        second = gm.fit(Reflow(first), pairs, key=key, params=params)     # parameters of `first`, straighter

    `one_step=True` trains the velocity at t = 0 only, so that one Euler step, z + v(z, 0), is the map: distillation.
    Raises ValueError for a flow whose source has not the scale of the data.
    """

    flow: FlowMatching
    one_step: bool = False

    likelihood = Likelihood.NONE
    own_precision = True

    def __post_init__(self):
        super().__post_init__()
        scale = self.flow.path.source_scale
        if scale not in (None, 1.0):
            raise ValueError(
                f"flow wants a source of the data's scale, as its field is sized by its path; got {self.flow.path}, from "
                f"N(0, {scale:g}^2). Train the first round on transport.OptimalTransport() or Linear()"
            )

    @functools.cached_property
    def event(self):
        return Real((2, *self.flow.event_shape))

    @property
    def context_shape(self):
        return self.flow.context_shape

    def _init(self, key, x, context):
        return self.flow._init(key, x[:, 1], context)

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        x0, x1 = x[:, 0], self.flow.latent(params, x[:, 1])
        straight = dataclasses.replace(self.flow, path=Linear())  # whatever the path of the first round
        return straight.regression(params, key, x0, x1, context, weight, first_time_only=self.one_step)

    def log_prob_one(self, params, x, context=None, key=None):
        raise NotImplementedError("a pair (z, flow(z)) has no density: it lies on a graph. Take log_prob of the flow")

    def sample_one(self, params, key, context=None):
        z = self.flow.draw_base_one(params, key)
        x, _, info = self.flow.bijector._move(params["bijector"], z, context, None, False, False)
        return jnp.stack([z, mark_failed(x, info)])
