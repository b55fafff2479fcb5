"""Generators of one evaluation, on the networks and the schedules of flow matching and diffusion.

Arguments that they share with `flow_matching` and `diffusion` are those of flows/continuous.py. `num_steps` is how many
evaluations a draw takes; `dataclasses.replace(model, num_steps=...)` changes it after training.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from genmod import nets
from genmod.bijectors import CNF, Standardize
from genmod.bijectors.base import Bijector
from genmod.core.checks import check_shape
from genmod.core.types import Array, Shape
from genmod.denoising import EDM, Heun, Kind, Learned, NeighboringLevels, Schedule, Stepper
from genmod.densities import as_distribution
from genmod.models.consistency import Consistency, without_guidance
from genmod.models.diffusion import Diffusion
from genmod.models.mean_flow import LogitNormalSpans, MeanFlow, Spans
from genmod.transport import Independent, Linear, Pairing, Path


def consistency(
    event_shape: Shape,
    *,
    schedule: Schedule = EDM(),
    kind: Kind = "edm",
    hidden_sizes: Sequence[int] = (256, 256, 256),
    activation: Callable[[Array], Array] = jax.nn.silu,
    network: Any = None,
    levels: NeighboringLevels = NeighboringLevels(),
    huber_scale: float | None = None,
    num_steps: int = 1,
    context_dropout: float = 0.0,
    context_shape: Shape | None = None,
    data_scale: float = 1.0,
    scaling: Bijector | None = Standardize(),
    dtype: Any = None,
) -> Consistency:
    """A consistency model trained from data, without a teacher (Song & Dhariwal 2023, arXiv:2310.14189).

    `levels=NeighboringLevels(num_steps=...)` doubles the number of noise levels over so many steps of training.
    """
    network = network or nets.VelocityMLP(hidden_sizes, activation, num_frequencies=4, dtype=dtype)
    if context_dropout:
        network = nets.Guided(network, 1.0)
    shape = check_shape("event_shape", event_shape)
    return Consistency(
        Learned(network, schedule, kind, data_scale, context_shape),
        shape if scaling is None else scaling.latent_shape(shape),
        scaling,
        levels,
        huber_scale,
        num_steps=num_steps,
        context_dropout=context_dropout,
    )


def consistency_distillation(
    teacher: Diffusion,
    *,
    network: Any = None,
    levels: NeighboringLevels = NeighboringLevels(first=40, last=40),
    huber_scale: float | None = None,
    gap_power: float = 0.0,
    solver: Stepper = Heun(),
    num_solves: int = 1,
    num_steps: int = 1,
) -> Consistency:
    """A consistency model of a trained diffusion's probability flow (Song et al. 2023, arXiv:2303.01469, alg. 2).

        student = gm.flows.consistency_distillation(diffusion)
        fit = gm.fit(student, data, key=key, params=student.taught(diffusion_params))

    network: of the student; None: that of the teacher, with whose parameters it begins. Its guidance is distilled with it. Raises
    TypeError for a teacher that is no `Diffusion`, ValueError for one without a network where none is given.
    """
    if not isinstance(teacher, Diffusion):
        raise TypeError(f"teacher must be a gm.models.Diffusion, got {teacher!r}; its parameters go to taught(...)")
    known = teacher.predictor
    if network is not None:
        kind = known.kind if isinstance(known, Learned) else "edm"
        predictor = Learned(network, known.schedule, kind, known.data_scale, known.context_shape)
    elif isinstance(known, Learned):
        predictor = without_guidance(known)
    else:
        raise ValueError(f"a teacher without a network wants that of the student: network=..., got the predictor {known!r}")
    shape, clip = teacher.shape, teacher.clip
    return Consistency(
        predictor, shape, teacher.data_side, levels, huber_scale, gap_power, known, solver, num_solves, num_steps, clip=clip
    )


def mean_flow(
    event_shape: Shape,
    *,
    path: Path = Linear(),
    coupling: Pairing = Independent(),
    hidden_sizes: Sequence[int] = (256, 256, 256),
    activation: Callable[[Array], Array] = jax.nn.silu,
    conditioning: Literal["concat", "concat_squash"] = "concat",
    field: Any = None,
    spans: Spans = LogitNormalSpans(),
    power: float = 0.0,
    direction: Literal["path", "flow"] = "flow",
    num_steps: int = 1,
    context_dropout: float = 0.0,
    guidance: float = 1.0,
    context_shape: Shape | None = None,
    base: Any = None,
    standardize: bool = True,
    dtype: Any = None,
) -> MeanFlow:
    """The mean velocity of a flow along `path`, its ends joined by `coupling` (Geng et al. 2025, arXiv:2505.13447).

    field: a network (x, t, context) as that of `flow_matching`, which also reads the duration as a part of its context.
    """
    body = field or nets.VelocityMLP(hidden_sizes, activation, conditioning, dtype=dtype)
    cnf = CNF(nets.MeanVelocity(body), context_shape=context_shape)
    base = as_distribution(base, check_shape("event_shape", event_shape))
    data_side = Standardize() if standardize else None
    return MeanFlow(
        cnf,
        base,
        path,
        coupling,
        data_side,
        spans,
        power,
        direction,
        num_steps=num_steps,
        context_dropout=context_dropout,
        guidance=guidance,
    )
