"""genmod: deep generative models in JAX, as static descriptions and pure functions of explicit parameters."""

from genmod import (
    base as base,
    bijectors as bijectors,
    data as data,
    denoisers as denoisers,
    densities as densities,
    divergence as divergence,
    flows as flows,
    losses as losses,
    metrics as metrics,
    models as models,
    nets as nets,
    ode as ode,
    paths as paths,
    plot as plot,
    predictors as predictors,
    run as run,
    samplers as samplers,
    schedules as schedules,
    transport as transport,
)
from genmod.base import Bijector as Bijector, Likelihood as Likelihood
from genmod.bijectors import check_bijection as check_bijection, health as health
from genmod.checkpoint import load as load, save as save
from genmod.conformance import check_likelihood as check_likelihood, check_sampler as check_sampler, check_score as check_score
from genmod.densities import as_distrax as as_distrax, from_distrax as from_distrax
from genmod.evaluate import evaluate as evaluate
from genmod.models import Model as Model
from genmod.step import GradientStep as GradientStep, Step as Step, TrainState as TrainState
from genmod.train import Fit as Fit, fit as fit

__version__ = "0.1.0"
