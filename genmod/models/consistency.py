"""Consistency models: a function that takes any point of a diffusion's probability flow to its end at the data at once.

    f(x_t, t) = x_low along every path of the flow,   f(x, low) = x;      sample  f(z, high),  z ~ N(0, prior_scale^2)

(Song et al. 2023, arXiv:2303.01469; Song & Dhariwal 2023, arXiv:2310.14189.) t = 0 is data and t = 1 noise, and (low, high) are
the `times` of the schedule. With r = sigma / alpha, d the scale of the data, and F what the network says as EDM's prediction,

    f(x, t) = alpha_low (d^2 / ((r - r_low)^2 + d^2) x / alpha + d (r - r_low) / sqrt(r^2 + d^2) F)

(the first paper's app. C): but for r_low it is EDM's denoiser, so that the parameters of a diffusion are a beginning. Without a
teacher f is trained from data alone, with one it learns the steps of the teacher's flow.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp

from genmod import losses, nets
from genmod.bijectors import Chain, ProbabilityFlow
from genmod.bijectors.base import Bijector
from genmod.bijectors.chain import inverse_rows
from genmod.bijectors.context import Conditioned, conditioned, inner
from genmod.core.checks import check, check_count, check_parts, check_shape
from genmod.core.distribution import Likelihood
from genmod.core.event import Real
from genmod.core.params import Fixed, check_held
from genmod.core.types import Array, Context, Interval, Key, Params, Shape
from genmod.denoising import EDMGrid, Heun, Learned, NeighboringLevels, Predictor, Schedule, Stepper, convert, denoisers
from genmod.models.base import Model


def without_guidance(predictor: Predictor) -> Predictor:
    """The predictor, of the same parameters, with its context taken at weight 1 where it is guided."""
    if isinstance(predictor, Learned) and isinstance(predictor.network, nets.Guided):
        return dataclasses.replace(predictor, network=dataclasses.replace(predictor.network, weight=1.0))
    return predictor


@dataclasses.dataclass(frozen=True)
class Consistency(Model):
    """A one-step generator on the network and the schedule of a diffusion.

    Attributes:
      predictor: the network, of any kind, and the schedule.
      shape: of an event on the side of the noise.
      data_side: a layer between the noise and the data, held as it was initialised (`Standardize`). None: none.
      levels: which neighbouring noise levels are compared.
      huber_scale: c of the pseudo-Huber distance; None: 0.00054 times the root of the event's size (arXiv:2310.14189, sec. 3.3);
        inf: the squared distance, whose minimum is the mean over what is not known of a path.
      gap_power: p of the weight 1 / (r_t - r_s)^p of a pair of levels. 1 is that of training from data; 0, that of distillation,
        attends to the large noise from which one evaluation starts.
      teacher: the predictor of a diffusion, on the same schedule, whose flow is distilled. None: training from data, whose loss
        is no measure of the fit: its target moves along.
      clip: as that of the `Diffusion` that is distilled.
      solver: of the teacher's flow, without noise. num_solves: its steps from a level to the next, at the levels between.
      num_steps: evaluations of a draw: beyond the first, noise is put back and f taken again (arXiv:2303.01469, alg. 1), at the
        times of an `EDMGrid`. Of few `levels` it must divide the number: f has seen no times but theirs.
      context_dropout: as in a `Diffusion`, for training from data.

    Has no log_prob. Parameters: {"bijector": as those of a `Diffusion` of the same predictor}, and "teacher", a `Fixed`; of a
    distillation they come from `taught`, not from `init`. Raises TypeError for parts of the wrong kind, ValueError for
    numbers out of range and for a teacher on another schedule or with another context.
    """

    predictor: Predictor
    shape: Shape
    data_side: Bijector | None = None
    levels: NeighboringLevels = NeighboringLevels()
    huber_scale: float | None = None
    gap_power: float = 1.0
    teacher: Predictor | None = None
    solver: Stepper = Heun()
    num_solves: int = 1
    num_steps: int = 1
    context_dropout: float = 0.0
    clip: Interval | None = None

    likelihood = Likelihood.NONE
    own_precision = True

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        super().__post_init__()
        check_parts(self, predictor=Predictor, levels=NeighboringLevels, solver=Stepper)
        if self.data_side is not None:
            check_parts(self, data_side=Bijector)
        if self.teacher is not None:
            check_parts(self, teacher=Predictor)
            for name in ("schedule", "context_shape"):
                own, other = getattr(self.predictor, name), getattr(self.teacher, name)
                check(own == other, f"teacher and predictor must have one {name}, got {other} and {own}")
            check(not self.context_dropout, "context_dropout is for training from data: a teacher sees every context")
        weight = getattr(getattr(self.predictor, "network", None), "weight", 1.0)
        check(
            weight == 1.0,
            f"network must not be guided, as ends of paths do not mix: got weight={weight}; distil a guided teacher",
        )
        check(not self.solver.noisy, f"solver must be without noise, such as Heun(), got {self.solver}")
        check_count(num_steps=self.num_steps, num_solves=self.num_solves)
        check(math.isfinite(self.gap_power), f"gap_power must be finite, got {self.gap_power}")
        if self.huber_scale is not None:
            check(self.huber_scale > 0, f"huber_scale must be > 0, inf for the squared distance, got {self.huber_scale}")
        nets.check_guidance(getattr(self.predictor, "network", None), self.context_dropout, self.context_shape)

    @functools.cached_property
    def bijector(self) -> Bijector:
        """The probability flow that the network would have as a diffusion, and the data side: the layout of the parameters."""
        return Chain((self._conditioned, *(() if self.data_side is None else (self.data_side,))))

    @functools.cached_property
    def _conditioned(self) -> Bijector:
        return conditioned(ProbabilityFlow(self.predictor))

    @functools.cached_property
    def event(self):
        return Real(self.shape if self.data_side is None else self.data_side.data_shape(self.shape))

    @property
    def context_shape(self):
        return self.predictor.context_shape

    @property
    def schedule(self) -> Schedule:
        """Of the predictor, and of the teacher."""
        return self.predictor.schedule

    @property
    def loss_measures_fit(self) -> bool:
        """That of a distillation does."""
        return self.teacher is not None

    @property
    def _from_data(self) -> "Consistency":
        return dataclasses.replace(self, teacher=None)

    def _init(self, key, x, context):
        if self.teacher is not None:
            raise ValueError("a distillation begins with its teacher: in the place of init take taught(teacher_params)")
        params = {"bijector": self.bijector.init_rows(key, x, context)}
        check_held("data_side", params["bijector"][1:])
        return params

    def layout(self, key, x, context=None):
        if self.teacher is None:
            return self._init(key, x, context)
        own = self._from_data._init(key, x, context)
        theirs = dataclasses.replace(self._from_data, predictor=without_guidance(self.teacher))._init(key, x, context)
        held = {"network": theirs["bijector"][0], "range": denoisers.wide_range(jnp.asarray(x, float))}
        return own | {"teacher": Fixed(held)}

    def taught(self, teacher_params: Params, params: Params | None = None) -> Params:
        """The parameters of a distillation at its start.

        Args:
          teacher_params: of the `Diffusion` that is distilled; its data side and its statistics of the contexts are kept.
          params: of the student's network, those that `init` of the same model without a teacher makes; None: those of the
            teacher, which has the same network.

        Raises ValueError for a model without a teacher, and for parameters that do not fit.
        """
        if self.teacher is None:
            raise ValueError("a model without a teacher has nobody to be taught by; take its init")
        for name, given in (("teacher_params", teacher_params), ("params", params)):
            known = isinstance(given, dict) and "bijector" in given
            check(known or (given is None and name == "params"), f"{name} must be the params of a fit, a dict, got {type(given)}")
        same = params is not None or without_guidance(self.teacher) == self.predictor
        check(same, "the student's predictor is another than that of its teacher: give params, those of its own init")
        theirs = dataclasses.replace(self._from_data, predictor=without_guidance(self.teacher), context_dropout=0.0)
        own = {"bijector": teacher_params["bijector"]} if params is None else {"bijector": params["bijector"]}
        for name, model, found in (
            ("teacher_params", theirs, {"bijector": teacher_params["bijector"]}),
            ("the teacher's network is another: params", self._from_data, own),
        ):
            if (difference := model.misfit(found)) is not None:
                raise ValueError(f"{name} must be those of the network {model.predictor}: {difference}")
        network, *sides = teacher_params["bijector"]
        if params is not None:
            mine = params["bijector"][0]
            mine = network | {"bijector": mine["bijector"]} if isinstance(self._conditioned, Conditioned) else mine
        else:
            mine = network
        largest = jnp.asarray(jnp.finfo(jnp.result_type(float)).max)
        everywhere = -largest, largest
        held = {"network": network, "range": teacher_params["range"].constant if "range" in teacher_params else everywhere}
        return {"bijector": (mine, *sides), "teacher": Fixed(held)}

    def endpoint(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        """f(x, t, context) of ONE event on the side of the noise: where its path is at the low end of the schedule."""
        network, context = inner(self._conditioned, params["bijector"][0], context)
        return self._endpoint(network, x, t, context)

    def _endpoint(self, network, x, t, context, **options):
        schedule, scale = self.schedule, self.predictor.data_scale
        value = self.predictor.predict(network, x, t, context, **options)
        value = convert(schedule, t, x, value, self.predictor.kind, "edm", data_scale=scale)
        low = jnp.full_like(t, schedule.times[0])
        ratio = schedule.sigma(t) / schedule.alpha(t)
        ahead = ratio - schedule.sigma(low) / schedule.alpha(low)
        kept = scale**2 / (ahead**2 + scale**2)
        moved = scale * ahead / jnp.sqrt(ratio**2 + scale**2)
        return schedule.alpha(low) * (kept * x / schedule.alpha(t) + moved * value)

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        level_key, noise_key, drop_key, solver_key = jax.random.split(key, 4)
        x0 = x
        if self.data_side is not None:
            x0 = inverse_rows(self.data_side, jax.lax.stop_gradient(params["bijector"][1]), x, None)
        num, dtype = x0.shape[0], jnp.promote_types(x0.dtype, jnp.float32)
        s, t, gap = self.levels(level_key, num, self.schedule, step, dtype)
        eps = jax.random.normal(noise_key, x0.shape, dtype)
        later = jax.vmap(self.schedule.perturb)(t, x0, eps)
        if self.teacher is None:
            earlier = jax.vmap(self.schedule.perturb)(s, x0, eps)
        else:
            axes = (None, 0, 0, 0, None if context is None else 0, None)
            earlier = jax.vmap(self._teacher_step, axes)(params, later, t, s, context, solver_key)
        network, context = inner(self._conditioned, params["bijector"][0], context)
        present = jax.random.bernoulli(drop_key, 1.0 - self.context_dropout, (num,)).astype(dtype)

        def endpoint(x, t, context, present):
            return self._endpoint(network, x, t, context, **({"present": present} if self.context_dropout else {}))

        def endpoints(x, t):
            return jax.vmap(endpoint, (0, 0, None if context is None else 0, 0))(x, t, context, present)

        scale = 0.00054 * math.sqrt(math.prod(self.shape)) if self.huber_scale is None else self.huber_scale
        return losses.consistency_matching(
            endpoints, (later, t), (earlier, s), scale=scale, weights=gap**-self.gap_power, weight=weight
        )

    def _teacher_step(self, params: Params, x: Array, t: Array, s: Array, context: Context, key: Key) -> Array:
        """ONE event at time t after the teacher's flow has taken it to time s."""
        teacher = self.teacher
        assert teacher is not None
        held = params["teacher"].constant
        network, seen = inner(conditioned(ProbabilityFlow(teacher)), held["network"], context)

        def known(x, t):
            return teacher.denoise(network, x, t, seen)

        if self.clip is not None:
            denoiser = denoisers.clipped(known, *self.clip)
        else:
            denoiser = denoisers.kept_in_range(known, self.schedule, *held["range"]) if "range" in held else known
        carry = self.solver.init(x)
        for before, after in itertools.pairwise(self.levels.between(self.schedule, t, s, self.num_solves)):
            x, carry = self.solver.step(key, denoiser, self.schedule, x, before, after, carry)
        return x

    def sample_one(self, params, key, context=None):
        floats = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        dtype = jnp.result_type(*floats) if floats else jnp.result_type(float)
        keys = jax.random.split(key, self.num_steps)
        times = jnp.asarray(EDMGrid(self.num_steps, self.levels.rho).times(self.schedule), dtype)
        x = self.schedule.prior(self.shape).sample_one({}, keys[0]).astype(dtype)
        x = self.endpoint(params, x, times[0], context)
        for key, t in zip(keys[1:], times[1:-1], strict=True):
            kept, noise = self.schedule.transition(times[-1], t)
            x = self.endpoint(params, kept * x + noise * jax.random.normal(key, self.shape, dtype), t, context)
        return x if self.data_side is None else self.data_side._move(params["bijector"][1], x, None, None, False, False)[0]

    def log_prob_one(self, params, x, context=None, key=None):
        raise NotImplementedError("Consistency has no log_prob: it is a map without an inverse; a Diffusion has one")
