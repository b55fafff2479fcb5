"""Sampler kernels in BlackJAX's form, and the driver of any such kernel."""

from genmod.samplers.annealed import (
    Annealed as Annealed,
    Population as Population,
    annealed_importance as annealed_importance,
    geometric_bridge as geometric_bridge,
    reverse_annealed_importance as reverse_annealed_importance,
    sequence_bridge as sequence_bridge,
    sequential_monte_carlo as sequential_monte_carlo,
    sigmoid_levels as sigmoid_levels,
)
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
