"""Sampler kernels in BlackJAX's form, and the driver of any such kernel."""

from genmod.samplers.base import Kernel as Kernel
from genmod.samplers.diffusions import (
    LangevinInfo as LangevinInfo,
    LangevinState as LangevinState,
    MalaState as MalaState,
    annealed_langevin as annealed_langevin,
    langevin as langevin,
    langevin_chain as langevin_chain,
    langevin_step as langevin_step,
    mala as mala,
    score_langevin as score_langevin,
)
from genmod.samplers.driver import Trace as Trace, run as run
from genmod.samplers.metropolis import (
    IndependenceState as IndependenceState,
    MetropolisInfo as MetropolisInfo,
    RandomWalkState as RandomWalkState,
    accept as accept,
    independence as independence,
    random_walk as random_walk,
)
