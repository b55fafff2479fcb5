"""Metrics: arrays in, a value and its standard error out."""

from genmod.metrics.mean import mean_and_sem as mean_and_sem
from genmod.metrics.wasserstein import wasserstein as wasserstein
