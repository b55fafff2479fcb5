"""Diffusion's parts: noise schedules, predictors and denoisers, the noise levels that a loss attends to, and samplers."""

from genmod.denoising import denoisers as denoisers
from genmod.denoising.grids import (
    CustomGrid as CustomGrid,
    EDMGrid as EDMGrid,
    Grid as Grid,
    LogSNRGrid as LogSNRGrid,
    QuadraticGrid as QuadraticGrid,
    UniformGrid as UniformGrid,
)
from genmod.denoising.levels import (
    DataWeighting as DataWeighting,
    EDMWeighting as EDMWeighting,
    LikelihoodWeighting as LikelihoodWeighting,
    LogNormalTimes as LogNormalTimes,
    MinSNR as MinSNR,
    SimpleWeighting as SimpleWeighting,
    TimeSampler as TimeSampler,
    UniformLogSNRTimes as UniformLogSNRTimes,
    UniformTimes as UniformTimes,
    VWeighting as VWeighting,
    Weighting as Weighting,
    even_fractions as even_fractions,
)
from genmod.denoising.neighbors import NeighboringLevels as NeighboringLevels, Neighbors as Neighbors
from genmod.denoising.predictors import Known as Known, Learned as Learned, Predictor as Predictor
from genmod.denoising.sampler import (
    ReverseODE as ReverseODE,
    ReverseSDE as ReverseSDE,
    Sampler as Sampler,
    Steps as Steps,
)
from genmod.denoising.schedules import (
    EDM as EDM,
    KINDS as KINDS,
    Cosine as Cosine,
    CosineBetas as CosineBetas,
    CustomSchedule as CustomSchedule,
    Discrete as Discrete,
    Kind as Kind,
    LinearBetas as LinearBetas,
    Schedule as Schedule,
    Straight as Straight,
    SubVariancePreserving as SubVariancePreserving,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
    check_kinds as check_kinds,
    check_schedule as check_schedule,
    convert as convert,
    noise_error as noise_error,
    target_of as target_of,
)
from genmod.denoising.steppers import (
    DDIM as DDIM,
    Ancestral as Ancestral,
    AnnealedLangevin as AnnealedLangevin,
    DPMSolverPlusPlus as DPMSolverPlusPlus,
    Euler as Euler,
    EulerMaruyama as EulerMaruyama,
    Heun as Heun,
    PredictorCorrector as PredictorCorrector,
    Stepper as Stepper,
)
