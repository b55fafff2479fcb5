"""Noise schedules: alpha(t) and sigma(t) of x_t = alpha x_0 + sigma eps, from data at t = 0 to noise at t = 1."""

from genmod.denoising.schedules.base import Schedule as Schedule, check_schedule as check_schedule
from genmod.denoising.schedules.continuous import (
    EDM as EDM,
    Cosine as Cosine,
    CustomSchedule as CustomSchedule,
    Straight as Straight,
    SubVariancePreserving as SubVariancePreserving,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from genmod.denoising.schedules.discrete import CosineBetas as CosineBetas, Discrete as Discrete, LinearBetas as LinearBetas
from genmod.denoising.schedules.kinds import (
    KINDS as KINDS,
    Kind as Kind,
    check_kinds as check_kinds,
    convert as convert,
    noise_error as noise_error,
    prediction_size as prediction_size,
    target_of as target_of,
)
