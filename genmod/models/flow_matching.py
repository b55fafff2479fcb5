"""Flow matching: a vector field learned by regression, sampled and scored by solving its ODE.

    loss   E |v(x_t, t, context) - d x_t / dt|^2,   x_t on a conditional path from x0 ~ base (t = 0) to x1 ~ data (t = 1)
    sample x(1) of dx/dt = v, x(0) ~ base;          log_prob exact through the change of variables of the same ODE

(Lipman et al. 2022, arXiv:2210.02747; Albergo & Vanden-Eijnden 2022, arXiv:2209.15571; Liu et al. 2022, arXiv:2209.03003;
Tong et al. 2023, arXiv:2302.00482.) The parts: a path (`gm.paths`), a coupling of the two ends (`gm.transport`), a base density
and a `CNF`. `Flow(model.bijector, model.base)` is the same model trained by maximum likelihood, with the same parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp

from genmod import losses, nets
from genmod.base import Array, Bijector, Context, Key, Likelihood, Params
from genmod.bijectors.combinators import before_inner, inner_layer, inner_params
from genmod.bijectors.ode import CNF
from genmod.checks import check_parts
from genmod.densities import Density, Normal
from genmod.models.base import Model, vmap_blocks
from genmod.models.pushforward import Pushforward
from genmod.paths import Linear, Path
from genmod.transport import Coupling, Independent


@dataclasses.dataclass(frozen=True)
class FlowMatching(Pushforward):
    """A continuous flow trained by regression on conditional velocities.

    Attributes:
      bijector: a `CNF`, or a `Chain` of one and of layers towards the data, held as they were initialised (`Standardize`): the
        regression is done on their latent side.
      base: the source of the path, any Density for two-sided paths.
      path, coupling: how x0 and x1 are joined, and which x0 meets which x1 within a batch.
      context_dropout: share of training examples that lose their context, for guidance; the field then takes `present`, as
        `nets.Guided` does.

    Raises ValueError for another bijector, for a path that takes a normal source for granted and another base, and for a
    context_dropout outside [0, 1) or without a guided field.
    """

    bijector: Bijector
    base: Density
    path: Path = Linear()
    coupling: Coupling = Independent()
    context_dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _ = self.cnf
        check_parts(self, path=Path, coupling=Coupling)
        wanted = self.path.source_scale
        if wanted is not None and self.base != Normal(self.base.event_shape, wanted):
            raise ValueError(
                f"{self.path} goes from N(0, {wanted:g}^2) to the data, but the base is {self.base}: use "
                f"gm.densities.Normal({self.base.event_shape}, {wanted:g}), or a path from any source such as Linear()"
            )
        nets.check_guidance(self.cnf.field, self.context_dropout, self.cnf.context_shape)

    @property
    def cnf(self) -> CNF:
        """The continuous flow whose field is trained."""
        layer = inner_layer(self.bijector)
        if not isinstance(layer, CNF):
            raise ValueError(f"bijector must be a CNF or a Chain that starts with one, got {self.bijector}")
        return layer

    def velocity(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """v(x, t, context) of a batch on the latent side of the fixed layers: (n,) + event_shape, (n,), (n,) + context_shape."""
        axes = (None, 0, 0, None if context is None else 0)
        return jax.vmap(self.cnf.velocity, axes)(self.field_params(params), x, t, context)

    def field_params(self, params: Params) -> Params:
        """The parameters of the field among those of the model."""
        return inner_params(self.bijector, params["bijector"])

    def latent(self, params: Params, x: Array) -> Array:
        """Data x, (n,) + event_shape, on the side of the fixed layers where the ODE lives."""
        return before_inner(self.bijector, params["bijector"], x)

    def regression(self, params: Params, key: Key, x0: Array, x1: Array, context: Context, *, first_time_only: bool = False):
        """(loss, metrics) of pairs (x0, x1) on the latent side, row by row; `first_time_only` trains the velocity at t = 0."""
        keys = jax.random.split(key, 3)
        num, dtype = x1.shape[0], jnp.promote_types(x1.dtype, jnp.float32)
        low, high = self.path.times
        fractions = losses.even_fractions(keys[0], num, dtype)
        t = jnp.zeros(num, dtype) if first_time_only else low + (high - low) * fractions
        noise = jax.random.normal(keys[1], x1.shape, dtype) if self.path.noisy else jnp.zeros_like(x1)
        present = jax.random.bernoulli(keys[2], 1.0 - self.context_dropout, (num,)).astype(dtype)
        field_params = self.field_params(params)

        def velocity(x, t, context, present):
            options = {"present": present} if self.context_dropout else {}
            return self.cnf.velocity(field_params, x, t, context, **options)

        def velocities(x, t):
            return jax.vmap(velocity, (0, 0, None if context is None else 0, 0))(x, t, context, present)

        return losses.flow_matching(velocities, self.path.point_and_velocity, x0, x1, t, noise)

    def _loss(self, params, key, x, context):
        source_key, coupling_key, regression_key = jax.random.split(key, 3)
        x1 = self.latent(params, x)
        base = jax.lax.stop_gradient(params.get("base", {}))
        x0 = self.base.sample(base, source_key, x1.shape[:1], x1.dtype)
        x0 = x0[self.coupling(x0, x1, context, coupling_key)]
        return self.regression(params, regression_key, x0, x1, context)


@dataclasses.dataclass(frozen=True)
class Reflow(Model):
    """The pairs (z, x) that a flow joins, stacked to events (2,) + event_shape: rectified flow's second round and on.

    `sample` draws pairs z ~ base, x = flow(z); `fit` on such pairs trains the field to join them by straight lines (Liu et al.
    2022, arXiv:2209.03003, alg. 1), which lowers no marginal and straightens the paths:

        pairs = Reflow(first).sample(params, key, (50_000,))
        second = gm.fit(Reflow(first), pairs, key=key, params=params)     # parameters of `first`, straighter

    `one_step=True` trains the velocity at t = 0 only, so that one Euler step, z + v(z, 0), is the map: distillation.
    """

    flow: FlowMatching
    one_step: bool = False

    @property
    def event_shape(self):
        return (2, *self.flow.event_shape)

    @property
    def context_shape(self):
        return self.flow.context_shape

    @property
    def likelihood(self):
        return Likelihood.NONE

    def _init(self, key, x, context):
        return self.flow.init(key, x[:, 1], context)

    def _loss(self, params, key, x, context):
        x0, x1 = x[:, 0], self.flow.latent(params, x[:, 1])
        straight = dataclasses.replace(self.flow, path=Linear())  # whatever the path of the first round
        return straight.regression(params, key, x0, x1, context, first_time_only=self.one_step)

    def _log_prob(self, params, x, context, key):
        raise NotImplementedError("a pair (z, flow(z)) has no density: it lies on a graph. Take log_prob of the flow")

    def _sample(self, params, key, num, context):
        _, z, _ = self.flow.draw_base(params, key, num)

        def pair(z, context):
            return jnp.stack([z, self.flow.bijector.forward(params["bijector"], z, context)])

        return vmap_blocks(pair, z, context)
