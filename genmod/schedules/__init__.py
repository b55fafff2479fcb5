"""Noise schedules: alpha(t) and sigma(t) of x_t = alpha x_0 + sigma eps, from data at t = 0 to noise at t = 1."""

from genmod.schedules.base import Schedule as Schedule, check_schedule as check_schedule
from genmod.schedules.continuous import (
    EDM as EDM,
    Cosine as Cosine,
    Custom as Custom,
    Straight as Straight,
    SubVariancePreserving as SubVariancePreserving,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from genmod.schedules.discrete import CosineBetas as CosineBetas, Discrete as Discrete, LinearBetas as LinearBetas
from genmod.schedules.kinds import (
    KINDS as KINDS,
    Kind as Kind,
    check_kinds as check_kinds,
    convert as convert,
    noise_error as noise_error,
    target_of as target_of,
)
