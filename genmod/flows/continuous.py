"""Continuous flows, by maximum likelihood (`ffjord`) or by regression (`flow_matching`), and diffusions (`diffusion`).

Equal arguments give equal fields: the parameters of one are those of the other, so that a run may begin with the one loss and
end with the other. Common arguments: `event_shape`; `hidden_sizes`, `activation` and `conditioning` of the `nets.VelocityMLP`
(or a Linen module of your own, `field`); `context_shape` for a conditional flow, (num_classes,) for class labels; `base`, any
Distribution or `distrax.Distribution` (None: standard normal); `integrator` and `divergence`; `standardize`, whether the data are
standardised by a fixed layer inside the model, so that densities are those of the user's data. Contexts always are
(`Conditioned`).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from genmod import nets
from genmod.bijectors import CNF, Chain, ProbabilityFlow, Repeat, Standardize, conditioned
from genmod.bijectors.base import Bijector
from genmod.bijectors.continuous import JACOBIAN_NORM, KINETIC_ENERGY
from genmod.core.checks import check_count, check_shape
from genmod.core.types import Array, Interval, Shape
from genmod.denoising import Sampler, Steps
from genmod.denoising.levels import SimpleWeighting, TimeSampler, UniformTimes, Weighting, warn_of_few_levels
from genmod.denoising.predictors import Learned
from genmod.denoising.schedules import Kind, Schedule, VariancePreserving
from genmod.densities import Normal, as_distribution
from genmod.dynamics import Adaptive, Integrator
from genmod.dynamics.divergence import DivergenceEstimator, Exact
from genmod.models.diffusion import Bound, Diffusion
from genmod.models.flow import Flow
from genmod.models.flow_matching import FlowMatching
from genmod.transport import Independent, Pairing
from genmod.transport.paths import OptimalTransport, Path


def ffjord(
    event_shape: Shape,
    num_layers: int = 1,
    *,
    hidden_sizes: Sequence[int] = (64, 64, 64),
    activation: Callable[[Array], Array] = jnp.tanh,
    conditioning: Literal["concat", "concat_squash"] = "concat",
    field: Any = None,
    divergence: DivergenceEstimator = Exact(),
    integrator: Integrator = Adaptive(),
    kinetic_energy: float | None = None,
    jacobian_norm: float | None = None,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    dtype: Any = None,
) -> Flow:
    """FFJORD: `num_layers` neural ODEs in a row, by maximum likelihood (Grathwohl et al. 2018, arXiv:1810.01367).

    `kinetic_energy` and `jacobian_norm` weigh RNODE's regularisers int |v|^2 dt and int |dv/dx|_F^2 dt in the loss (Finlay et
    al. 2020, arXiv:2002.02798); 0.0 reports them without a penalty, None leaves them out.
    """
    check_count(num_layers=num_layers)
    weights = {KINETIC_ENERGY: kinetic_energy, JACOBIAN_NORM: jacobian_norm}
    penalties = tuple((name, float(weight)) for name, weight in weights.items() if weight is not None)
    field = field or nets.VelocityMLP(hidden_sizes, activation, conditioning, dtype=dtype)
    cnf = CNF(field, integrator, divergence, context_shape, tuple(name for name, _ in penalties))
    layers = cnf if num_layers == 1 else Repeat(cnf, num_layers)
    layers = conditioned(layers)
    bijector = Chain((layers, *((Standardize(),) if standardize else ())))
    return Flow(bijector, as_distribution(base, check_shape("event_shape", event_shape)), penalties)


def flow_matching(
    event_shape: Shape,
    *,
    path: Path = OptimalTransport(),
    coupling: Pairing = Independent(),
    hidden_sizes: Sequence[int] = (256, 256, 256),
    activation: Callable[[Array], Array] = jax.nn.silu,
    conditioning: Literal["concat", "concat_squash"] = "concat",
    field: Any = None,
    divergence: DivergenceEstimator = Exact(),
    integrator: Integrator = Adaptive(),
    context_dropout: float = 0.0,
    guidance: float = 1.0,
    track_energy: bool = False,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    dtype: Any = None,
) -> FlowMatching:
    """Flow matching along `path` with the ends joined by `coupling` (Lipman et al. 2022, arXiv:2210.02747).

    `path=Linear()` with `transport.ExactAssignment()` or `Sinkhorn()` is OT-CFM, with `Independent()` I-CFM and rectified
    flow. On a path from a source of another scale (`Scheduled` by a variance-exploding schedule) the field is `nets.Scaled` and
    the loss weighs relative errors. Every draw of a `base` other than the normal one may be a source (None: the normal that the
    path wants). `context_dropout` > 0 trains for classifier-free `guidance`, whose weight `dataclasses.replace` of the built
    model's field may change afterwards. `track_energy` reports int |v|^2 dt of every sample in `sample_with_info`.
    """
    field = field or nets.VelocityMLP(hidden_sizes, activation, conditioning, dtype=dtype)
    if path.source_scale not in (None, 1.0):
        field = nets.Scaled(field, path.sizes)
    if context_dropout or guidance != 1.0:
        field = nets.Guided(field, guidance)
    cnf = CNF(field, integrator, divergence, context_shape, (KINETIC_ENERGY,) if track_energy else ())
    if base is None and path.source_scale is not None:
        base = Normal(check_shape("event_shape", event_shape), path.source_scale)
    data_side = Standardize() if standardize else None
    return FlowMatching(
        cnf, as_distribution(base, check_shape("event_shape", event_shape)), path, coupling, data_side, context_dropout
    )


def diffusion(
    event_shape: Shape,
    *,
    schedule: Schedule = VariancePreserving(),
    kind: Kind = "edm",
    hidden_sizes: Sequence[int] = (256, 256, 256),
    activation: Callable[[Array], Array] = jax.nn.silu,
    network: Any = None,
    weighting: Weighting = SimpleWeighting(),
    times: TimeSampler = UniformTimes(),
    sampler: Sampler = Steps(),
    bound: Bound | None = None,
    clip: Interval | None = None,
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
    right, for images take `Rescale(0.5, 0.5)`, from [-1, 1] to [0, 1], and `clip=(-1.0, 1.0)`. kind, weighting, sampler: the
    defaults are those of least error in `experiments.prediction_table` and `experiments.sampler_table`; warns where a few noise
    levels carry the whole loss. `context_dropout` > 0 trains for
    classifier-free `guidance`. hidden_sizes, activation, dtype: of the network, unless you give your own.
    """
    warn_of_few_levels(weighting, times, schedule, kind, data_scale)
    network = network or nets.VelocityMLP(hidden_sizes, activation, num_frequencies=4, dtype=dtype)
    if context_dropout or guidance != 1.0:
        network = nets.Guided(network, guidance)
    process = ProbabilityFlow(Learned(network, schedule, kind, data_scale, context_shape), integrator, divergence)
    shape = (
        check_shape("event_shape", event_shape)
        if scaling is None
        else scaling.latent_shape(check_shape("event_shape", event_shape))
    )
    return Diffusion(process, shape, scaling, weighting, times, sampler, context_dropout, bound, clip)
