"""Samplers: pure functions of a score or a denoiser, one event at a time; `jax.vmap` over keys and starts draws many."""

from genmod.samplers.grids import (
    EDMGrid as EDMGrid,
    Grid as Grid,
    Quadratic as Quadratic,
    Times as Times,
    Uniform as Uniform,
    UniformLogSNR as UniformLogSNR,
)
from genmod.samplers.langevin import annealed_langevin as annealed_langevin, langevin as langevin
from genmod.samplers.reverse_diffusion import (
    ReverseODE as ReverseODE,
    ReverseSDE as ReverseSDE,
    Sampler as Sampler,
    Steps as Steps,
)
from genmod.samplers.steppers import (
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
