"""Initial value problems dy/dt = f(t, y), solved by Diffrax. Only this folder imports Diffrax.

An **integrator** says how: `Adaptive`, any Diffrax solver with error control and any of its adjoints, or `FixedSteps`, a
scan of equal steps. Both solve ONE event; under `genmod.core.batching.vmap_events` an adaptive solve runs the whole batch with
one step size, whose error norm is the MAXIMUM over the events, so that a neighbour can only add accuracy. (One that diverges
on its way takes the batch with it to `max_steps`; `per_example` keeps it apart. One that is NaN from the start fails alone.)

A solve does not raise: after `max_steps` it returns the last state and says so in its info. Info holds scalars:

    num_steps        steps taken, rejected ones included
    rejected_steps   those thrown away by the error control
    nfe              evaluations of the field (known for explicit Runge-Kutta methods; one more for each rejection of the first
                     step by a method that reuses its last stage)
    failed_solves    1 where the end was not reached or is not finite

Stochastic equations: `SDESteps`. Divergences of fields, exact or estimated: `Exact`, `Hutchinson`, `HutchPlusPlus`.
"""

from genmod.dynamics.adaptive import Adaptive as Adaptive
from genmod.dynamics.base import Field as Field, Integrator as Integrator, State as State
from genmod.dynamics.divergence import (
    DivergenceEstimator as DivergenceEstimator,
    Exact as Exact,
    Hutchinson as Hutchinson,
    HutchPlusPlus as HutchPlusPlus,
)
from genmod.dynamics.explicit import RK4 as RK4
from genmod.dynamics.fixed import FixedSteps as FixedSteps
from genmod.dynamics.sde import SDESteps as SDESteps
