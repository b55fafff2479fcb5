"""genmod: deep generative models in JAX, as static descriptions and pure functions of explicit parameters."""

from genmod import (
    bijectors as bijectors,
    core as core,
    data as data,
    denoising as denoising,
    densities as densities,
    dynamics as dynamics,
    flows as flows,
    inference as inference,
    lab as lab,
    losses as losses,
    metrics as metrics,
    models as models,
    nets as nets,
    samplers as samplers,
    testing as testing,
    training as training,
    transport as transport,
)
from genmod.bijectors import Bijector as Bijector, as_distrax as as_distrax, from_distrax as from_distrax
from genmod.core.batching import Batch as Batch
from genmod.core.description import Description as Description, call as call, describe as describe
from genmod.core.distribution import Distribution as Distribution, Likelihood as Likelihood
from genmod.core.event import (
    Atoms as Atoms,
    Counts as Counts,
    Event as Event,
    Levels as Levels,
    Real as Real,
    Tokens as Tokens,
)
from genmod.core.params import Fixed as Fixed, num_params as num_params
from genmod.evaluation import evaluate as evaluate
from genmod.inference import bayes_factor as bayes_factor, evidence as evidence, exact as exact
from genmod.models import Model as Model
from genmod.testing import (
    check_bijection as check_bijection,
    check_density as check_density,
    check_likelihood as check_likelihood,
    check_sampler as check_sampler,
    check_score as check_score,
    health as health,
)
from genmod.training import (
    Fit as Fit,
    GradientStep as GradientStep,
    Step as Step,
    fit as fit,
    fit_ensemble as fit_ensemble,
    load as load,
    save as save,
    train as train,
)

__version__ = "0.1.0"
