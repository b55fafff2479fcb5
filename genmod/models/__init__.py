"""Models, one file per family. `base.Model` is the protocol."""

from genmod.core.padding import Padded as Padded
from genmod.models.adversarial import GAN as GAN
from genmod.models.autoregressive import AutoregressiveModel as AutoregressiveModel, language_model as language_model
from genmod.models.base import EMModel as EMModel, GameModel as GameModel, Model as Model, RateDistortion as RateDistortion
from genmod.models.boltzmann import BoltzmannMachine as BoltzmannMachine
from genmod.models.consistency import Consistency as Consistency
from genmod.models.dequantized import Dequantized as Dequantized
from genmod.models.diffusion import Bound as Bound, Diffusion as Diffusion
from genmod.models.energy import EnergyModel as EnergyModel, NoiseContrastive as NoiseContrastive
from genmod.models.factor_analysis import FactorAnalysis as FactorAnalysis, ProbabilisticPCA as ProbabilisticPCA
from genmod.models.filtering import Filtering as Filtering
from genmod.models.flow import Flow as Flow, Pushforward as Pushforward
from genmod.models.flow_matching import FlowMatching as FlowMatching, Reflow as Reflow
from genmod.models.hierarchical_vae import HierarchicalVAE as HierarchicalVAE, LatentLevel as LatentLevel
from genmod.models.kernel import (
    Bandwidth as Bandwidth,
    FixedBandwidth as FixedBandwidth,
    KernelDensity as KernelDensity,
    KFold as KFold,
    LeaveOneOut as LeaveOneOut,
    Scott as Scott,
    Silverman as Silverman,
)
from genmod.models.made import MADEModel as MADEModel, random_orders as random_orders
from genmod.models.mean_flow import (
    LogitNormalSpans as LogitNormalSpans,
    MeanFlow as MeanFlow,
    Spans as Spans,
    UniformSpans as UniformSpans,
)
from genmod.models.mixture import (
    Mixture as Mixture,
    mixture_of_gaussians as mixture_of_gaussians,
    mixture_of_levels as mixture_of_levels,
)
from genmod.models.ngram import (
    InterpolatedNGram as InterpolatedNGram,
    NGram as NGram,
    dirichlet_map as dirichlet_map,
    dirichlet_predictive as dirichlet_predictive,
    fit_interpolated_ngram as fit_interpolated_ngram,
    fit_ngram as fit_ngram,
    maximum_likelihood as maximum_likelihood,
)
from genmod.models.penalized import FunctionKL as FunctionKL, Penalized as Penalized
from genmod.models.pixel_cnn import PixelCNN as PixelCNN
from genmod.models.posterior import (
    BayesPosterior as BayesPosterior,
    LikelihoodPosterior as LikelihoodPosterior,
    RatioEstimator as RatioEstimator,
)
from genmod.models.restricted_boltzmann import (
    RestrictedBoltzmannMachine as RestrictedBoltzmannMachine,
    gibbs_langevin as gibbs_langevin,
)
from genmod.models.score import ScoreModel as ScoreModel
from genmod.models.unnormalized import (
    Configuration as Configuration,
    Normalized as Normalized,
    States as States,
    UnnormalizedModel as UnnormalizedModel,
)
from genmod.models.vae import VAE as VAE
from genmod.models.vector_quantized import VQVAE as VQVAE, CodebookReport as CodebookReport
