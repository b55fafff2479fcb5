"""Metrics: arrays in, a value and its standard error out."""

from genmod.core.statistics import mean_and_sem as mean_and_sem
from genmod.metrics.bits import bits_per_dim as bits_per_dim
from genmod.metrics.distances import wasserstein as wasserstein
from genmod.metrics.identifiability import (
    MatchedCorrelation as MatchedCorrelation,
    mean_canonical_correlation as mean_canonical_correlation,
    mean_correlation as mean_correlation,
)
from genmod.metrics.roc import auroc as auroc, roc_curve as roc_curve
