"""Builder of diffusion models: a network, a schedule and a sampler; see `models.Diffusion` for what may be put together."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from genmod import nets
from genmod.base import Array, Bijector, Shape
from genmod.bijectors import Chain, ProbabilityFlow, Standardize
from genmod.divergence import DivergenceEstimator, Exact
from genmod.losses import Simple, TimeSampler, UniformTimes, Weighting
from genmod.models.diffusion import Bound, Diffusion
from genmod.models.flow import Flow
from genmod.ode import Adaptive, Integrator
from genmod.predictors import Learned
from genmod.samplers import Sampler, Steps
from genmod.schedules import Kind, Schedule, VariancePreserving


def diffusion(
    event_shape: Shape,
    *,
    schedule: Schedule = VariancePreserving(),
    kind: Kind = "eps",
    hidden_sizes: Sequence[int] = (256, 256, 256),
    activation: Callable[[Array], Array] = jax.nn.silu,
    network: Any = None,
    weighting: Weighting = Simple(),
    times: TimeSampler = UniformTimes(),
    sampler: Sampler = Steps(),
    bound: Bound | None = None,
    divergence: DivergenceEstimator = Exact(),
    integrator: Integrator = Adaptive(),
    context_dropout: float = 0.0,
    guidance: float = 1.0,
    context_shape: Shape | None = None,
    data_scale: float = 1.0,
    scaling: Bijector | None = Standardize(),
    dtype: Any = None,
) -> Diffusion:
    """A diffusion of vectors by a multilayer perceptron, or of any events by a `network` of your own.

    event_shape; network: a Linen module (x, c) or (x, c, context) -> array of the shape of x, c a scalar noise level
    (`nets.UNet` for images; None: `nets.VelocityMLP` of `hidden_sizes`). scaling: a layer between the diffusion and the data,
    held as it was initialised, so that densities are those of the user's data; with `Standardize()` a `data_scale` of 1 is
    right, for images take `Rescale(0.5, 0.5)`, from [-1, 1] to [0, 1]. `context_dropout` > 0 trains for classifier-free
    `guidance`. hidden_sizes, activation, dtype: of the network, unless you give your own.
    """
    network = network or nets.VelocityMLP(tuple(hidden_sizes), activation, num_frequencies=4, dtype=dtype)
    if context_dropout or guidance != 1.0:
        network = nets.Guided(network, guidance)
    flow = ProbabilityFlow(Learned(network, schedule, kind, data_scale, context_shape), integrator, divergence)
    layers = Chain((flow, *(() if scaling is None else (scaling,))))
    return Diffusion(Flow(layers, schedule.prior(tuple(event_shape))), weighting, times, sampler, context_dropout, bound)
