"""Every bijector and every flow builder, small: one line each, and the whole contract runs on it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod import denoising, flows, metrics
from genmod.bijectors import (
    CNF,
    LOFT,
    ActNorm,
    Additive,
    Affine,
    AlphaLogit,
    Angle,
    Autoregressive,
    Chain,
    Checkerboard,
    CircularSpline,
    Columns,
    Conditioned,
    Conv1x1,
    Coupling,
    DeepSigmoidal,
    DiagonalAffine,
    Elementwise,
    Exp,
    Householder,
    Invert,
    LatticeCoupling,
    LatticeODE,
    Logit,
    LowRankAffine,
    LULinear,
    MatrixAffine,
    MultiScale,
    PerCoordinate,
    Permutation,
    Planar,
    Power,
    ProbabilityFlow,
    Radial,
    RationalQuadraticSpline,
    Repeat,
    Rescale,
    Reverse,
    ScalarAffine,
    ScalarFunction,
    Sigmoid,
    SoftClippedAffine,
    Softplus,
    Split,
    Squeeze,
    Standardize,
    Sylvester,
    Tanh,
    TriangularAffine,
    Whiten,
    from_distrax,
    random_order,
)
from genmod.bijectors.base import Bijector
from genmod.core.distribution import Distribution
from genmod.core.event import Levels, Real
from genmod.core.numerics import soft_bound
from genmod.core.types import REALS, Array, Interval, Shape
from genmod.denoising.predictors import Learned
from genmod.densities import (
    BernoulliHead,
    BernoulliUnits,
    GaussianUnits,
    Normal,
    NormalHead,
    RandomFunctionPosterior,
    Stepwise,
    TiedCovariance,
)
from genmod.dynamics import RK4, Adaptive, FixedSteps
from genmod.models import (
    GAN,
    AutoregressiveModel,
    BoltzmannMachine,
    Diffusion,
    EnergyModel,
    FactorAnalysis,
    Filtering,
    KernelDensity,
    MADEModel,
    Model,
    NGram,
    NoiseContrastive,
    Normalized,
    Penalized,
    PixelCNN,
    ProbabilisticPCA,
    Pushforward,
    RestrictedBoltzmannMachine,
    language_model,
    mixture_of_gaussians,
    mixture_of_levels,
)
from genmod.nets import (
    MADE,
    MLP,
    CausalTransformer,
    FlatNet,
    GatedAttentionNet,
    GatedPixelCNN,
    GlowNet,
    LatticeVelocity,
    PeriodicNet,
    Pointwise,
    Recurrent,
    ResNet,
    Stack,
    VelocityMLP,
)


def in_circle(z: Array) -> Array:
    return 3.0 * jnp.tanh(z)


def wavy(raw: Array, z: Array) -> Array:
    """Increasing in z, the identity at raw = 0."""
    scale = jnp.exp(soft_bound(raw[0], 2.0))
    return scale * (z + 0.7 * jnp.tanh(raw[1]) * jnp.sin(z)) + raw[2]


class Case(NamedTuple):
    """A bijector and what it promises.

    domain maps R^D into the latent domain. identity: it starts as the identity. far: how many times as far from the mean
    as data a point may lie; None where the range is bounded, so that such a point has no inverse. singular: values at which
    it has no slope or an infinite one. latents: where they may lie, if not everywhere. slow: not in the default run.
    """

    bijector: Bijector
    shape: Shape = (4,)
    domain: Callable[[Array], Array] = lambda z: z
    identity: bool = True
    far: float | None = 10.0
    slow: bool = False
    singular: tuple[float, ...] = ()
    latents: Interval = REALS


MLP8, MADE12 = MLP((8,), jnp.tanh), MADE((12, 12), jnp.tanh)
SPLINE = RationalQuadraticSpline(num_bins=5, bound=3.0)
GLOW8 = GlowNet(8, jnp.tanh)
VELOCITY8 = VelocityMLP((8,), jnp.tanh)
# Forward and reverse mode; in float64 the tolerance decides, in float32 the smallest step, so that it is exact to both.
TO_ROUNDING = Adaptive(
    diffrax.Dopri8(),
    adjoint=diffrax.DirectAdjoint(),
    max_steps=64,
    controller=diffrax.PIDController(1e-14, 1e-14, dtmin=1 / 24, force_dtmin=True),
)
WITH_CONTEXT = {"context_shape": (3,)}
MASK = (False, True, True, False)

TRANSFORMERS = {
    "additive": Additive(),
    "affine": Affine(),
    "soft_clipped_affine": SoftClippedAffine(),
    "spline": SPLINE,
    "circular_spline": CircularSpline(num_bins=4),
    "deep_sigmoidal": DeepSigmoidal(num_units=4),
    "scalar_function": ScalarFunction(wavy, 3),
}


def _with_each_transformer(name, make, fast=tuple(TRANSFORMERS)) -> dict[str, Case]:
    special = {"circular_spline": {"domain": in_circle, "far": None}}
    return {f"{name}_{t}": Case(make(tau), slow=t not in fast, **special.get(t, {})) for t, tau in TRANSFORMERS.items()}


with jax.enable_x64(True):  # a Distrax bijector keeps the precision in which it was made
    DISTRAX_SCALAR = distrax.ScalarAffine(shift=1.0, scale=-2.5)
    DISTRAX_LINEAR = distrax.TriangularLinear(jnp.array([[2.0, 0, 0], [1, -3.0, 0], [0.5, 1, 1]]))

BIJECTORS: dict[str, Case] = {
    # Fixed scalar maps.
    "tanh": Case(Tanh(), (2, 3), identity=False, far=None),
    "sigmoid": Case(Sigmoid(), (2, 3), identity=False, far=None),
    "logit": Case(Logit(), (2, 3), jax.nn.sigmoid, identity=False, far=3.0),
    "softplus": Case(Softplus(), (2, 3), identity=False, far=None, slow=True),
    "exp": Case(Exp(), (2, 3), identity=False, far=None),
    "power": Case(Power(3.0), (2, 3), identity=False, singular=(0.0,)),
    "power_of_scalar": Case(Power(0.5), (), jnp.exp, identity=False, far=None, singular=(0.0,), slow=True),
    "loft": Case(LOFT(1.5), (2, 3), identity=False),
    # Linear maps.
    "scalar_affine": Case(ScalarAffine(), (2, 3)),
    "diagonal_affine": Case(DiagonalAffine(), (2, 3)),
    "matrix_affine": Case(MatrixAffine(), slow=True),
    "lower_triangular_affine": Case(TriangularAffine()),
    "upper_triangular_affine": Case(TriangularAffine(lower=False), slow=True),
    "low_rank_affine": Case(LowRankAffine(2), slow=True),
    "lu_linear": Case(LULinear()),
    "lu_linear_with_order": Case(LULinear(random_order(4, 1)), identity=False, slow=True),
    "householder": Case(Householder(2)),
    "householder_odd": Case(Householder(3), identity=False, slow=True),
    "permutation": Case(Permutation((2, 0, 3, 1)), identity=False),
    "permutation_of_channels": Case(Permutation((2, 0, 1)), (2, 2, 3), identity=False, slow=True),
    "reverse": Case(Reverse(), (2, 3), identity=False),
    # Layers set from data.
    "act_norm": Case(ActNorm(), identity=False),
    "act_norm_of_image": Case(ActNorm(), (2, 2, 3), identity=False, slow=True),
    "standardize": Case(Standardize(), identity=False),
    "whiten": Case(Whiten(), identity=False),
    # Transformers in the layers that take one.
    **_with_each_transformer("elementwise", Elementwise, [t for t in TRANSFORMERS if t != "deep_sigmoidal"]),
    **_with_each_transformer("coupling", lambda tau: Coupling(tau, MLP8, 2), ("affine", "spline")),
    **_with_each_transformer("autoregressive", lambda tau: Autoregressive(tau, MADE12), ("affine",)),
    "elementwise_of_image": Case(Elementwise(Affine()), (2, 2, 3), slow=True),
    "elementwise_two_sigmoidal_layers": Case(Elementwise(DeepSigmoidal(3, num_layers=2)), slow=True),
    "coupling_mask": Case(Coupling(Affine(), MLP8, MASK), slow=True),
    "coupling_split_0": Case(Coupling(Affine(), MLP8, 0), slow=True),
    "coupling_conditional": Case(Coupling(Affine(), MLP8, MASK, **WITH_CONTEXT), slow=True),
    "coupling_split_0_conditional": Case(Coupling(Affine(), MLP8, 0, context_shape=(2, 2)), slow=True),
    "autoregressive_order": Case(Autoregressive(Affine(), MADE12, (2, 0, 3, 1)), slow=True),
    "autoregressive_conditional": Case(Autoregressive(Affine(), MADE12, (1, 0, 3, 2), **WITH_CONTEXT), slow=True),
    # Hidden layers narrower than the event: some degrees have no unit.
    "autoregressive_narrow": Case(Autoregressive(Affine(), MADE((3, 2), jnp.tanh)), (6,), slow=True),
    "autoregressive_linear": Case(Autoregressive(Affine(), MADE(())), slow=True),
    # Images.
    "alpha_logit": Case(AlphaLogit(), (2, 2, 1), jax.nn.sigmoid, identity=False, far=None),
    "rescale": Case(Rescale(-2.0, 0.5), (2, 2, 1), identity=False),
    "squeeze": Case(Squeeze(), (2, 2, 4), identity=False),
    "conv_1x1": Case(Conv1x1(), (2, 2, 3), identity=False),
    "conv_1x1_free": Case(Conv1x1("free"), (2, 2, 3), identity=False, slow=True),
    "coupling_of_channels": Case(Coupling(Affine(), GLOW8, 1, **WITH_CONTEXT), (2, 2, 3), slow=True),
    "coupling_of_channels_spline": Case(Coupling(SPLINE, GatedAttentionNet(4, num_heads=2), 1), (2, 2, 2), slow=True),
    "coupling_mask_of_channels": Case(Coupling(Affine(), GLOW8, (False, True, False)), (2, 2, 3), slow=True),
    "coupling_checkerboard": Case(Coupling(Affine(), GLOW8, Checkerboard()), (3, 2, 1), slow=True),
    "coupling_checkerboard_of_image": Case(Coupling(Affine(), GLOW8, Checkerboard(odd=True), (4, 4, 1)), (2, 2, 2), slow=True),
    # In the default run by way of the flows of test_image_flows.py.
    "split": Case(Split(GLOW8), (2, 2, 3), slow=True),
    "multi_scale": Case(MultiScale((4, 2, 1), (Squeeze(), Conv1x1()), Split(GLOW8)), (8,), identity=False, slow=True),
    # Perturbations of the identity.
    "planar": Case(Planar()),
    "planar_conditional": Case(Planar(**WITH_CONTEXT), slow=True),
    "radial": Case(Radial()),
    "radial_conditional": Case(Radial(**WITH_CONTEXT), slow=True),
    "sylvester": Case(Sylvester(2)),
    "sylvester_householder": Case(Sylvester(3, "householder"), slow=True),
    "sylvester_triangular": Case(Sylvester(None, "triangular"), slow=True),
    "sylvester_conditional": Case(Sylvester(2, **WITH_CONTEXT), slow=True),
    # Continuous flows. The contract is exact to rounding, so these take many steps.
    "cnf_fixed_steps": Case(CNF(VELOCITY8, FixedSteps(1_000, RK4())), (2,), slow=True),
    "cnf_adaptive": Case(CNF(VELOCITY8, TO_ROUNDING), (2,), slow=True),
    "cnf_conditional": Case(CNF(VELOCITY8, FixedSteps(1_000, RK4()), **WITH_CONTEXT), (2, 1), slow=True),
    "probability_flow": Case(
        ProbabilityFlow(Learned(VELOCITY8, denoising.Cosine(1.0, -1.0)), FixedSteps(2_000, RK4())),
        (2,),
        slow=True,
    ),
    # Fields on lattices.
    "lattice_coupling": Case(LatticeCoupling(Affine(), PeriodicNet(2, (3,), activation=jnp.tanh)), (2, 4)),
    "lattice_coupling_odd_spline": Case(
        LatticeCoupling(SPLINE, PeriodicNet(SPLINE.num_params, (3,), activation=jnp.tanh), True), (4,), slow=True
    ),
    "lattice_ode": Case(LatticeODE(LatticeVelocity(1, 3), FixedSteps(2_000, RK4())), (2, 2), slow=True),
    "angle": Case(Angle(0.0, 24.0), (2, 3), in_circle, identity=False, far=None),
    "columns": Case(Columns((ScalarAffine(), Exp(), ScalarAffine(), Sigmoid())), identity=False, far=None, slow=True),
    "coupling_per_coordinate": Case(
        Coupling(PerCoordinate((SPLINE, CircularSpline(4)) * 2), MLP8, MASK), domain=in_circle, far=None, slow=True
    ),
    "conditioned": Case(Conditioned(Coupling(Affine(), MLP8, MASK, **WITH_CONTEXT)), slow=True),
    # Combinators.
    "invert": Case(Invert(Autoregressive(Affine(), MADE12))),
    "invert_conditional": Case(Invert(Autoregressive(Affine(), MADE12, **WITH_CONTEXT)), slow=True),
    "invert_exp": Case(Invert(Exp()), (2, 3), jnp.exp, identity=False, slow=True),
    "chain": Case(Chain((ActNorm(), Planar(), LULinear(), Reverse())), identity=False),
    "chain_empty": Case(Chain(()), (2, 3)),
    "chain_conditional": Case(
        Chain((Coupling(Affine(), MLP8, 2, **WITH_CONTEXT), Reverse(), ScalarAffine())), identity=False, slow=True
    ),
    "repeat": Case(Repeat(Chain((Coupling(Affine(), MLP8, 2), Reverse())), 3), identity=False),
    "repeat_unrolled": Case(Repeat(Coupling(Affine(), MLP8, 2), 3, unroll=2), slow=True),
    "repeat_conditional": Case(Repeat(Invert(Autoregressive(Affine(), MADE12, **WITH_CONTEXT)), 2), slow=True),
    "repeat_data_dependent": Case(Repeat(Chain((Coupling(Affine(), MLP8, 2), ActNorm())), 3), identity=False, slow=True),
    # Bijectors of Distrax, also as members of ours.
    "from_distrax_scalar": Case(from_distrax(DISTRAX_SCALAR), identity=False),
    # Distrax takes exp z for sigmoid z below z = -9.
    "from_distrax_block": Case(from_distrax(distrax.Block(distrax.Sigmoid(), 1)), identity=False, far=None, latents=(-9.0, 9.0)),
    "from_distrax_linear": Case(from_distrax(DISTRAX_LINEAR), (3,), identity=False, slow=True),
    "chain_of_distrax": Case(Chain((LULinear(), DISTRAX_SCALAR, distrax.Sigmoid())), identity=False, far=None),
    "repeat_of_distrax": Case(Repeat(DISTRAX_LINEAR, 2), (3,), identity=False, slow=True),
    "invert_of_distrax": Case(Invert(DISTRAX_SCALAR), (2, 3), identity=False, slow=True),
}

SMALL = {"num_layers": 2, "hidden_sizes": (8,), "activation": jnp.tanh}

# name -> builder of (event_shape, **options), made small by its defaults here.
FLOWS: dict[str, Callable[..., Pushforward]] = {
    "affine": flows.affine,
    "nice": functools.partial(flows.nice, **SMALL),
    "real_nvp": functools.partial(flows.real_nvp, **SMALL),
    "stable_real_nvp": functools.partial(flows.stable_real_nvp, **SMALL),
    "stable_real_nvp_spectral": functools.partial(flows.stable_real_nvp, spectral_bound=2.0, **SMALL),
    "glow_1d": functools.partial(flows.glow_1d, **SMALL),
    "neural_spline_flow": functools.partial(flows.neural_spline_flow, num_bins=4, **SMALL),
    "masked_autoregressive_flow": functools.partial(flows.masked_autoregressive_flow, **SMALL),
    "inverse_autoregressive_flow": functools.partial(flows.inverse_autoregressive_flow, **SMALL),
    "autoregressive_spline_flow": functools.partial(flows.autoregressive_spline_flow, num_bins=4, **SMALL),
    "neural_autoregressive_flow": functools.partial(flows.neural_autoregressive_flow, num_units=4, **SMALL),
    "planar_flow": functools.partial(flows.planar_flow, num_layers=3),
    "radial_flow": functools.partial(flows.radial_flow, num_layers=3),
    "sylvester_flow": functools.partial(flows.sylvester_flow, num_layers=2),
    "sylvester_flow_householder": functools.partial(flows.sylvester_flow, num_layers=2, basis="householder"),
    "sylvester_flow_triangular": functools.partial(flows.sylvester_flow, num_layers=2, basis="triangular"),
    "ffjord": functools.partial(flows.ffjord, integrator=FixedSteps(16), hidden_sizes=(8,)),
    "flow_matching": functools.partial(flows.flow_matching, integrator=FixedSteps(16), hidden_sizes=(8,)),
}

IMAGE = {"num_layers": 2, "num_scales": 2, "conditioner": GLOW8}

# name -> builder of flows of images (event_shape, **options), small.
IMAGE_FLOWS: dict[str, Callable[..., Pushforward]] = {
    "glow": functools.partial(flows.glow, **IMAGE),
    "glow_conditional": functools.partial(flows.glow, **IMAGE, linear="free", context_shape=(4, 4, 1)),
    "glow_spline_attention": functools.partial(
        flows.glow, num_layers=1, num_scales=2, transformer=SPLINE, conditioner=GatedAttentionNet(4, num_heads=2)
    ),
    "real_nvp_image": functools.partial(flows.real_nvp_image, num_layers=2, num_scales=2, conditioner=ResNet(8, 1, jnp.tanh)),
}

# name -> builder of flows of fields on periodic lattices (event_shape, **options), small. They take no context, and the first
# wants an even number of sites.
LATTICE_FLOWS: dict[str, Callable[..., Pushforward]] = {
    "lattice_coupling_flow": functools.partial(flows.lattice_coupling_flow, num_layers=2, hidden_channels=(4,)),
    "lattice_ode": functools.partial(flows.lattice_ode, num_frequencies=2, num_times=3),
}

# The flows of noise given integers, for gm.models.Dequantized.
DEQUANTIZERS: dict[str, Callable[..., Pushforward]] = {
    "dequantizer": functools.partial(flows.dequantizer, num_layers=2, conditioner=GLOW8),
}


def _falling(t):
    return jnp.cos(1.4 * t)


def _growing(t):
    return 0.01 + t**2


# The builders of diffusions, small.
DIFFUSIONS: dict[str, Callable[..., Diffusion]] = {
    "diffusion": functools.partial(flows.diffusion, hidden_sizes=(8,), integrator=FixedSteps(16)),
}

# The builders of one-step generators that need no teacher, small.
ONE_STEP: dict[str, Callable[..., Model]] = {
    "consistency": functools.partial(flows.consistency, hidden_sizes=(8,)),
    "mean_flow": functools.partial(flows.mean_flow, hidden_sizes=(8,)),
}

# The builders of models with latents, small.
AUTOENCODERS: dict[str, Callable[..., Model]] = {
    "variational_autoencoder": functools.partial(flows.variational_autoencoder, latent_dim=2, hidden_sizes=(8,)),
    "hierarchical_autoencoder": functools.partial(flows.hierarchical_autoencoder, latent_dims=(2, 1), hidden_sizes=(8,)),
    "vector_quantized_autoencoder": functools.partial(
        flows.vector_quantized_autoencoder, num_codes=4, positions=(2,), code_dim=3, hidden_sizes=(8,)
    ),
}

ENERGY8 = EnergyModel((3,), FlatNet(MLP8, 1), Normal((3,)), num_sweeps=5)
GAUSSIAN4 = flows.amortized_posterior((2,), (4,))


def _price(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


# Laws and models that have no builder, small.
LAWS: dict[str, Distribution] = {
    "random_function": RandomFunctionPosterior(GAUSSIAN4, 3),
    "stepwise": Stepwise(GAUSSIAN4, 3),
    "filtering": Filtering(Recurrent(nn.GRUCell(4)), GAUSSIAN4, 3, 2),
    "penalized": Penalized(FLOWS["affine"]((3,)), _price, 10),
    "mixture_of_gaussians": mixture_of_gaussians((3,), 2),
    "tied_mixture": mixture_of_gaussians((3,), 2, TiedCovariance()),
    "mixture_of_levels": mixture_of_levels((3,), 2, 3),
    "factor_analysis": FactorAnalysis((3,), 2),
    "probabilistic_pca": ProbabilisticPCA((3,), 2),
    "kernel_density": KernelDensity((3,)),
    "autoregressive": AutoregressiveModel(Real((3,)), Stack((Recurrent(nn.GRUCell(4)), Pointwise(nn.Dense(2)))), NormalHead()),
    "language_model": language_model(Levels((3,), 4), CausalTransformer(3, 8, 1, 2), num_features=4),
    "made": MADEModel((3,), MADE12, BernoulliHead()),
    "ngram": NGram(Levels((3,), 4)),
    "boltzmann": BoltzmannMachine((3,), 2, num_sweeps=5),
    "restricted_boltzmann": RestrictedBoltzmannMachine(BernoulliUnits((3,)), BernoulliUnits((2,)), num_sweeps=5),
    "normalized": Normalized(RestrictedBoltzmannMachine(GaussianUnits((3,)), BernoulliUnits((2,)))),
    "energy": ENERGY8,
    "noise_contrastive": NoiseContrastive(ENERGY8, Normal((3,))),
    "gan": GAN((3,), Normal((2,)), FlatNet(MLP8, 3), FlatNet(MLP8, 1), spectral_bound=2.0),
    "pixel_cnn": PixelCNN((2, 3, 1), GatedPixelCNN(4, 2, first_kernel_size=3), BernoulliHead()),
}

SCHEDULES: dict[str, denoising.Schedule] = {
    "variance_preserving": denoising.VariancePreserving(),
    "sub_variance_preserving": denoising.SubVariancePreserving(),
    "cosine": denoising.Cosine(),
    "variance_exploding": denoising.VarianceExploding(),
    "edm": denoising.EDM(),
    "straight": denoising.Straight(),
    "linear_betas": denoising.LinearBetas(),
    "cosine_betas": denoising.CosineBetas(),
    "custom": denoising.CustomSchedule(_falling, _growing),
}


class StepperCase(NamedTuple):
    """A stepper; `order` of a deterministic one, or the number of steps after which a random one draws from the law."""

    stepper: denoising.Stepper
    order: int | None = None
    num_steps: int = 128
    slow: bool = False


STEPPERS: dict[str, StepperCase] = {
    "ddim": StepperCase(denoising.DDIM(), 1),
    "euler": StepperCase(denoising.Euler(), 1),
    "heun": StepperCase(denoising.Heun(), 2),
    "dpm_solver": StepperCase(denoising.DPMSolverPlusPlus(), 2),
    "ddim_half_random": StepperCase(denoising.DDIM(0.5), num_steps=256, slow=True),
    "ancestral": StepperCase(denoising.Ancestral()),
    "ancestral_forward": StepperCase(denoising.Ancestral("forward"), num_steps=256, slow=True),
    "heun_churned": StepperCase(denoising.Heun(churn=0.2), num_steps=64, slow=True),
    "euler_maruyama": StepperCase(denoising.EulerMaruyama(), num_steps=256),
    "predictor_corrector": StepperCase(denoising.PredictorCorrector()),
    "predictor_corrector_of_ddim": StepperCase(denoising.PredictorCorrector(denoising.DDIM(), 2), slow=True),
    "annealed_langevin": StepperCase(denoising.AnnealedLangevin(0.4, 40), num_steps=32, slow=True),
}


class MetricCase(NamedTuple):
    """A metric of (samples, data) and what it promises.

    symmetric: exchanging the two changes nothing. equal: what it gives of one sample twice, within `within`. permutable: the
    order of rows does not matter. A metric without an order or a seed is all of these.
    """

    fn: Callable
    equal: float = 0.0
    within: float = 0.0
    symmetric: bool = True
    permutable: bool = True


def _named(fn: Callable, name: str) -> Callable:
    return lambda x, y: fn(x, y)[name]


# Of 60 rows: an unbiased estimate of 0 is off by the order of 1/60.
METRICS: dict[str, MetricCase] = {
    "wasserstein": MetricCase(metrics.wasserstein),
    "sliced_wasserstein": MetricCase(metrics.sliced_wasserstein),
    "max_sliced_wasserstein": MetricCase(metrics.max_sliced_wasserstein, permutable=False),
    "sinkhorn_divergence": MetricCase(functools.partial(metrics.sinkhorn_divergence, epsilon=0.2), within=1e-4),
    "squared_mmd": MetricCase(metrics.squared_mmd, within=0.05),
    "biased_squared_mmd": MetricCase(functools.partial(metrics.squared_mmd, statistic="biased"), within=1e-12),
    "energy_distance": MetricCase(metrics.energy_distance, within=0.1),
    "kid": MetricCase(metrics.kid, within=0.5),
    "kid_of_subsets": MetricCase(
        functools.partial(metrics.kid_of_subsets, subset_size=20, num_subsets=5), within=1.0, symmetric=False, permutable=False
    ),
    "cmmd": MetricCase(metrics.cmmd, within=1.0),
    "mmd_p_value": MetricCase(
        functools.partial(metrics.mmd_p_value, num_permutations=99), equal=1.0, within=0.05, symmetric=False, permutable=False
    ),
    "frechet_distance": MetricCase(metrics.frechet_distance, within=1e-10),
    "extrapolated_frechet_distance": MetricCase(metrics.extrapolated_frechet_distance, within=1e-10, permutable=False),
    "precision": MetricCase(_named(metrics.precision_recall, "precision"), equal=1.0, symmetric=False),
    "recall": MetricCase(_named(metrics.precision_recall, "recall"), equal=1.0, symmetric=False),
    "density": MetricCase(_named(metrics.density_coverage, "density"), equal=1.2, within=1e-12, symmetric=False),
    "coverage": MetricCase(_named(metrics.density_coverage, "coverage"), equal=1.0, symmetric=False),
    "c2st": MetricCase(
        functools.partial(metrics.c2st, hidden_sizes=(), num_steps=20, learning_rate=0.1),
        equal=0.5,
        within=0.25,
        symmetric=False,
        permutable=False,
    ),
}
