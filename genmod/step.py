"""Training steps: `(TrainState, key, batch) -> (TrainState, metrics)`, the seam where a family brings its own game or chain."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from genmod.base import Array, Description, Key, Params, trainable_mask
from genmod.models.base import Model

Batch = Any
LossFn = Callable[..., tuple[Array, dict[str, Array]]]


class TrainState(NamedTuple):
    """What training changes. `ema` is None without averaging; `extra` belongs to the step (a chain, a second player)."""

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None
    extra: Any


class Step(Protocol):
    """One training step, hashable: `init` makes the state, the call advances it. Metrics hold at least `loss`."""

    def init(self, params: Params) -> TrainState: ...

    def __call__(self, state: TrainState, key: Key, batch: Batch) -> tuple[TrainState, dict[str, Array]]: ...


@dataclasses.dataclass(frozen=True)
class ModelLoss(Description):
    """`model.loss` as a value: equal for equal models, which the bound method is not."""

    model: Model

    def __call__(self, params: Params, key: Key, x: Array, context: Array | None) -> tuple[Array, dict[str, Array]]:
        return self.model.loss(params, key, x, context)


@dataclasses.dataclass(frozen=True)
class GradientStep(Description):
    """The default step: one gradient of `loss_fn(params, key, x, context)`, clipped, through any Optax optimizer.

    `clip_norm` bounds the global norm of the gradient; `ema_decay` keeps an exponential moving average of the
    parameters, debiased as Adam's (the average of those seen so far). Arrays under a key "fixed" are not updated.
    Raises ValueError for a clip_norm that is not positive or an ema_decay outside [0, 1).
    """

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    clip_norm: float | None = None
    ema_decay: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0, got {self.clip_norm}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

    def init(self, params: Params) -> TrainState:
        ema = None if self.ema_decay is None else jax.tree.map(jnp.array, params)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), ema, None)

    def __call__(self, state: TrainState, key: Key, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        x, context = batch
        (loss, metrics), grads = jax.value_and_grad(self.loss_fn, has_aux=True)(state.params, key, x, context)
        mask = trainable_mask(state.params)
        grads = jax.tree.map(lambda g, trained: g if trained else jnp.zeros_like(g), grads, mask)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        if self.clip_norm is not None:
            factor = jnp.minimum(1.0, self.clip_norm / (norm + 1e-12))
            grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u, trained: u if trained else jnp.zeros_like(u), updates, mask)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.ema_decay is not None:
            # The k-th average weighs its newest member by at least 1/k: no bias towards the first parameters.
            weight = jnp.maximum(1.0 - self.ema_decay, 1.0 / (state.step + 1))
            ema = jax.tree.map(lambda e, p: e + weight.astype(e.dtype) * (p - e), ema, params)
        metrics = {"loss": loss, **metrics, "grad_norm": norm}
        return TrainState(state.step + 1, params, opt_state, ema, state.extra), metrics
