"""Training steps, the seam where a family brings its own game, chain or schedule of updates:

    init(params, key, batch) -> state        step(state, key, batch) -> (state, metrics)

`train` owns the number of the step, the keys and the minibatches; a step owns its state and nothing else. What most steps do
with a gradient stands here as functions: `clip`, `apply_gradients`, `ema`.
"""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from genmod.core.checks import check
from genmod.core.description import Call, Description, canonical, made
from genmod.core.params import trainable, with_trainable
from genmod.core.types import Array, Key, Params
from genmod.models.base import Model
from genmod.training.reports import check_metrics, check_names, watched

LossFn = Callable[..., tuple[Array, dict[str, Array]]]


class Step(Description, abc.ABC):
    """One training step; subclasses are frozen dataclasses.

    Attributes:
      num_batches: how many minibatches one call takes; above 1 they come stacked on a leading axis.
      reads_events: whether batches are events of a model, which `fit` then checks as those of its loss; else any pytree.
    """

    num_batches: int = 1
    reads_events: bool = False

    @abc.abstractmethod
    def init(self, params: Params, key: Key, batch: Any) -> Any:
        """The state of step 0, any pytree of arrays; `batch` has the shapes of what a call gets."""

    @abc.abstractmethod
    def __call__(self, state: Any, key: Key, batch: Any) -> tuple[Any, dict[str, Array]]:
        """(the next state, metrics by name): scalars, among them "loss" or a name that ends in "_loss".

        Training stops when "loss", "grad_norm" or a name that ends in "_loss" is not finite. "step" and names that begin with
        "validation_" are reserved.
        """

    @abc.abstractmethod
    def evaluation_params(self, state: Any) -> Params:
        """The parameters to validate, to return and to sample from: an average of them, or one player's."""

    def sharding(self, state: Any) -> Any:
        """How the state lies on a mesh, an optional hook: a pytree prefix of `PartitionSpec`s; None: a copy on every device."""
        return None


class Skips(NamedTuple):
    """Of a step that may be skipped: how many were, in a row, and the metrics of the last that was not."""

    in_a_row: Array
    metrics: dict[str, Array]


class GradientState(NamedTuple):
    """The state of a `GradientStep`: parameters, optimizer, the average (None without `ema_decay`), the number of updates, and
    what is known of skipped steps (None without `max_skips`)."""

    params: Params
    opt_state: Any
    ema: Params | None
    count: Array  # type: ignore[assignment]
    skips: Skips | None = None


@dataclasses.dataclass(frozen=True)
class GradientStep(Step):
    """The default step: one gradient of the objective, clipped, through any Optax optimizer.

    Attributes:
      objective: a Model, whose `loss` is taken, or a function (params, key, batch, *, step=None) -> (loss, metrics); one
        without `step` is called without it.
      optimizer: any Optax optimizer, or `gm.call(optax.adam, 1e-3)`; those that want value and gradient (L-BFGS) get them.
      clip_norm: bound on the global norm of the gradient; None for no bound.
      ema_decay: decay of an exponential moving average of the parameters, see `ema`; None for no average.
      max_skips: how many steps in a row may have a loss, a gradient or new parameters that are not finite. They are left out: the
        state stays, the metrics are those of the step before, and "skipped" counts them. The next one stops training, and so
        does the first of all.

    `Fixed` parts of the parameters get no gradient, no update and no weight decay. Raises TypeError or ValueError for a field
    of another kind, a clip_norm that is not positive, an ema_decay outside [0, 1), or a negative max_skips.
    """

    objective: Model | LossFn
    optimizer: Any
    clip_norm: float | None = None
    ema_decay: float | None = None
    max_skips: int = 0

    def __post_init__(self):
        optimizer = made(self.optimizer)
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        if not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(
                f"optimizer must be one of Optax, such as optax.adam(1e-3) or gm.call(optax.adam, 1e-3), got {optimizer!r}"
            )
        object.__setattr__(self, "optimizer", canonical(optimizer))  # equal optimizers share a compilation
        super().__post_init__()
        check(self.clip_norm is None or self.clip_norm > 0, f"clip_norm must be > 0, got {self.clip_norm}")
        check(self.ema_decay is None or 0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if isinstance(self.max_skips, bool) or not isinstance(self.max_skips, int) or self.max_skips < 0:
            raise ValueError(f"max_skips must be an integer >= 0, got {self.max_skips!r}")
        _ = self._takes_step

    @functools.cached_property
    def _takes_step(self) -> bool:
        return takes_step(self.objective.loss if isinstance(self.objective, Model) else self.objective)

    def init(self, params: Params, key: Key, batch: Any) -> GradientState:
        check_trainable(params)
        average = None if self.ema_decay is None else jax.tree.map(jnp.copy, params)  # a state may be donated
        state = GradientState(params, self.optimizer.init(trainable(params)), average, jnp.zeros((), jnp.int32))
        if not self.max_skips:
            return state
        metrics = jax.eval_shape(dataclasses.replace(self, max_skips=0), state, key, batch)[1]
        zeros = {name: jnp.zeros(metric.shape, metric.dtype) for name, metric in metrics.items()}
        return state._replace(skips=Skips(jnp.zeros((), jnp.int32), zeros))

    def __call__(self, state: GradientState, key: Key, batch: Any) -> tuple[GradientState, dict[str, Array]]:
        loss_fn = self.objective.loss if isinstance(self.objective, Model) else self.objective
        options = {"step": state.count} if self._takes_step else {}

        # One frame between here and the model's loss: Python's depth of calls is limited, and deep models use it.
        def objective(trained):
            return checked_loss(loss_fn(with_trainable(state.params, trained), key, batch, **options))

        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(trainable(state.params))
        grads, norm = clip(grads, self.clip_norm)
        params, opt_state = apply_gradients(
            self.optimizer, grads, state.opt_state, state.params, value=loss, value_fn=lambda trained: objective(trained)[0]
        )
        average = None if self.ema_decay is None else ema(state.ema, params, self.ema_decay, state.count)
        metrics = {"loss": loss, **metrics, "grad_norm": norm}
        after = GradientState(params, opt_state, average, state.count + 1, state.skips)
        return (after, metrics) if state.skips is None else self._or_skip(state, after, metrics)

    def _or_skip(self, before: GradientState, after: GradientState, metrics: dict) -> tuple[GradientState, dict[str, Array]]:
        skips = before.skips
        assert skips is not None
        values = [metrics[name] for name in watched(metrics)] + jax.tree.leaves(trainable(after.params))
        good = functools.reduce(jnp.logical_and, [jnp.isfinite(value).all() for value in values])
        in_a_row = jnp.where(good, 0, skips.in_a_row + 1)
        # Beyond the limit, and before there is a good step, all is shown as it is, and training stops.
        taken = good | (in_a_row > self.max_skips) | (before.count == 0)
        before, after = before._replace(skips=None), after._replace(skips=None)
        state = jax.tree.map(lambda new, old: jnp.where(taken, new, old), after, before)
        metrics = {name: jnp.where(taken, value, skips.metrics[name]) for name, value in metrics.items()}
        return state._replace(skips=Skips(in_a_row, metrics)), metrics | {"skipped": 1.0 - good}

    def evaluation_params(self, state: GradientState) -> Params:
        return state.params if state.ema is None else state.ema


def clip(grads: Params, max_norm: float | None = None) -> tuple[Params, Array]:
    """(the gradient, scaled down to a global norm of at most `max_norm`, and its norm before that).

    The norm is right from 1e-37 to 1e37, though the squares of entries overflow float32 at 1e19 and vanish at 1e-19.
    """
    norm = _norm(grads)
    if max_norm is None:
        return grads, norm

    def scaled(g):
        return jnp.where(norm > max_norm, g.astype(norm.dtype) / norm * max_norm, g).astype(g.dtype)

    return jax.tree.map(scaled, grads), norm


def apply_gradients(
    optimizer: optax.GradientTransformation,
    grads: Params,
    opt_state: Any,
    params: Params,
    *,
    value: Array | None = None,
    value_fn: Callable[[Params], Array] | None = None,
) -> tuple[Params, Any]:
    """(parameters after one update, the optimizer's state); `Fixed` parts stay as they are.

    Args:
      optimizer: any of Optax; opt_state began as `optimizer.init(trainable(params))`.
      grads: the gradient with respect to `trainable(params)`, or to params.
      value, value_fn: the loss, and the loss as a function of `trainable(params)`, for optimizers that want them: L-BFGS
        searches along a line, reduce-on-plateau watches the value.
    """
    trained, grads = trainable(params), trainable(grads)
    extra = {} if value is None else {"value": value, "grad": grads, "value_fn": value_fn}
    updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, opt_state, trained, **extra)
    return with_trainable(params, optax.apply_updates(trained, updates)), opt_state


def ema(average: Params, params: Params, decay: float, count: Array) -> Params:
    """The exponential moving average with `params` taken in, `count` others having been before; `Fixed` parts are the newest.

    Its k-th value weighs the newest parameters by max(1 - decay, 1 / k): the plain mean at first, without a bias towards
    the start.
    """
    weight = jnp.maximum(1.0 - decay, 1.0 / (count + 1))
    mixed = jax.tree.map(lambda e, p: e + weight.astype(e.dtype) * (p - e), trainable(average), trainable(params))
    return with_trainable(params, mixed)


def takes_step(fn: Callable) -> bool:
    """Whether a loss (params, key, batch, *, step=None) has that `step`; TypeError for what cannot be called in this way."""
    if not callable(fn):
        raise TypeError(f"a loss must be a Model or a function (params, key, batch, *, step=None) -> (loss, metrics), got {fn!r}")
    while isinstance(fn, Call) and not fn.args:
        fn = fn.fn
    try:
        signature = inspect.signature(fn)
    except ValueError:  # of a function written in C nothing is known
        return False
    try:
        signature.bind(None, None, None)
    except TypeError:
        raise TypeError(
            f"a loss must take (params, key, batch, *, step=None) and return (loss, metrics), got one of {signature}"
        ) from None
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    return "step" in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds


def check_trainable(params: Params) -> None:
    """Raises TypeError, naming the first array that is no floating-point one, where no gradient can be taken."""
    for path, leaf in jax.tree.leaves_with_path(trainable(params)):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, which has no gradient; put what is not trained "
                "in a Fixed"
            )


def _norm(grads: Params) -> Array:
    leaves = [g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in jax.tree.leaves(grads)]
    zero = jnp.zeros((), jnp.result_type(jnp.float32, *leaves))

    def compute(loop):
        _, scale, tries = loop
        norm = jnp.sqrt(sum((jnp.sum(jnp.square(g * scale.astype(g.dtype))) for g in leaves), zero))
        return norm / scale, jnp.where(norm < 1e-15, 2.0**60, 2.0**-60).astype(zero.dtype), tries + 1

    def unsure(loop):
        norm, _, tries = loop
        return (tries == 0) | ((tries == 1) & ~((norm > 1e-15) & jnp.isfinite(norm)))

    # Where the squares overflow or vanish, once more with entries of another scale. A loop, whose body is compiled once.
    return jax.lax.while_loop(unsure, compute, (zero, zero + 1, jnp.int32(0)))[0]


def checked_loss(result: Any) -> tuple[Array, dict[str, Array]]:
    """What a loss returned; TypeError or ValueError unless it is (a scalar, a dict of scalars)."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise TypeError(f"a loss must return (loss, metrics), a scalar and a dict, got {jax.tree.map(jnp.shape, result)!r}")
    loss, metrics = result
    if jnp.shape(loss) != ():
        raise ValueError(f"a loss must be a scalar, got shape {jnp.shape(loss)}; take the mean over the batch")
    check_names("a model's loss", metrics, ("loss", "grad_norm", "step"))
    return loss, check_metrics("a model's loss", metrics)


def check_step(step: Any) -> Any:
    """`step` if it is one, or a hashable object with a step's methods; raises TypeError that says what it lacks."""
    if isinstance(step, type):
        raise TypeError(f"step must be an object, got the class {step.__name__}; write {step.__name__}(...)")
    if not isinstance(step, Step):
        lacking = [name for name in ("init", "__call__", "evaluation_params") if not callable(getattr(step, name, None))]
        if lacking:
            raise TypeError(f"step must be a gm.Step, or have its methods, got a {type(step).__name__} without {lacking[0]}")
    try:
        hash(step)
    except TypeError:
        raise TypeError(f"step must be hashable, a frozen dataclass of plain values, got a {type(step).__name__}") from None
    if not isinstance(num := num_batches(step), int) or num < 1:
        raise ValueError(f"num_batches of {type(step).__name__} must be an integer >= 1, got {num!r}")
    return step


def num_batches(step: Any) -> int:
    """How many minibatches one call takes; 1 where a user's own class does not say."""
    return getattr(step, "num_batches", 1)


def specs(step: Any, state: Any) -> Any:
    """Its `sharding` of the state; None where a user's own class does not say."""
    return step.sharding(state) if hasattr(step, "sharding") else None
