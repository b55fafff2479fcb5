"""Distributions to start from: bases of flows, priors, sources, noise. Any `distrax.Distribution` may stand in their place."""

from genmod.densities.amortized import Amortized as Amortized
from genmod.densities.base import FromDistrax as FromDistrax, as_distribution as as_distribution
from genmod.densities.closed_forms import (
    entropy_one as entropy_one,
    renyi_one as renyi_one,
    wasserstein_one as wasserstein_one,
)
from genmod.densities.components import (
    CategoricalComponents as CategoricalComponents,
    Components as Components,
    GaussianComponents as GaussianComponents,
)
from genmod.densities.covariances import (
    Covariance as Covariance,
    DiagonalCovariance as DiagonalCovariance,
    FullCovariance as FullCovariance,
    SphericalCovariance as SphericalCovariance,
    TiedCovariance as TiedCovariance,
)
from genmod.densities.divergence import kl_one as kl_one
from genmod.densities.factorized import Factorized as Factorized
from genmod.densities.functions import FromFunctions as FromFunctions
from genmod.densities.heads import (
    BernoulliHead as BernoulliHead,
    CategoricalHead as CategoricalHead,
    Head as Head,
    NormalHead as NormalHead,
    PoissonHead as PoissonHead,
)
from genmod.densities.interpolation import (
    linear_interpolation as linear_interpolation,
    spherical_interpolation as spherical_interpolation,
)
from genmod.densities.lattice import FreeField as FreeField, LatticeField as LatticeField, PhiFour as PhiFour
from genmod.densities.learned import FullNormal as FullNormal, GaussianMixture as GaussianMixture
from genmod.densities.mixture_heads import (
    DiscretizedLogisticHead as DiscretizedLogisticHead,
    NormalMixtureHead as NormalMixtureHead,
)
from genmod.densities.product import Product as Product
from genmod.densities.radial import (
    Epanechnikov as Epanechnikov,
    GaussianDensity as GaussianDensity,
    RadialDensity as RadialDensity,
)
from genmod.densities.random_function import RandomFunctionPosterior as RandomFunctionPosterior
from genmod.densities.relaxed import (
    Relaxed as Relaxed,
    RelaxedBernoulli as RelaxedBernoulli,
    RelaxedCategorical as RelaxedCategorical,
    StraightThrough as StraightThrough,
)
from genmod.densities.relaxed_counts import RelaxedPoisson as RelaxedPoisson
from genmod.densities.simulators import (
    ExactPosterior as ExactPosterior,
    LinearGaussianSimulator as LinearGaussianSimulator,
    QueueSimulator as QueueSimulator,
    Simulator as Simulator,
    TwoMoonsSimulator as TwoMoonsSimulator,
)
from genmod.densities.standard import Laplace as Laplace, Normal as Normal, StudentT as StudentT, Uniform as Uniform
from genmod.densities.stepwise import Stepwise as Stepwise
from genmod.densities.student import LearnedStudentT as LearnedStudentT
from genmod.densities.targets import (
    ConjugateRegression as ConjugateRegression,
    CorrelatedStudentT as CorrelatedStudentT,
    Target as Target,
    ThreeGaussians as ThreeGaussians,
)
from genmod.densities.truncation import keep_nucleus as keep_nucleus, keep_top_k as keep_top_k, tempered as tempered
from genmod.densities.uniform_levels import UniformLevels as UniformLevels
from genmod.densities.unit_layers import (
    BernoulliUnits as BernoulliUnits,
    GaussianUnits as GaussianUnits,
    SoftmaxUnits as SoftmaxUnits,
    UnitLayer as UnitLayer,
)
from genmod.densities.vamp import VampPrior as VampPrior
from genmod.densities.von_mises import VonMises as VonMises, VonMisesHead as VonMisesHead
