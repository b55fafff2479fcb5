"""`fit`: one compiled training loop for every family.

The loop runs many optimizer steps per dispatch, with data, validation, best parameters and EMA on the device. Minibatch i
and the key of step i are pure functions of (key, i): no random state is stored, and a run that was killed and resumed is
equal, bit for bit, to one that was not.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genmod.base import Array, Description, Key, Params, check_positive, describe, trainable_mask
from genmod.batches import EpochSampler, Source, checked_pair
from genmod.keys import check_key, stream
from genmod.models.base import Model
from genmod.recorder import Recorder

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
class GradientStep(Description):
    """The default step: one gradient of `loss_fn(params, key, x, context)`, clipped, through any Optax optimizer.

    `clip_norm` bounds the global norm of the gradient; `ema_decay` keeps an exponential moving average of the
    parameters, debiased as Adam's (the average of those seen so far). Arrays under a key "fixed" are not updated.
    """

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    clip_norm: float | None = None
    ema_decay: float | None = None

    def init(self, params: Params) -> TrainState:
        ema = None if self.ema_decay is None else jax.tree.map(jnp.array, params)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), ema, None)

    def __call__(self, state: TrainState, key: Key, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        x, context = batch
        (loss, metrics), grads = jax.value_and_grad(self.loss_fn, has_aux=True)(state.params, key, x, context)
        norm = optax.global_norm(grads)
        if self.clip_norm is not None:
            factor = jnp.minimum(1.0, self.clip_norm / (norm + 1e-12))
            grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        mask = trainable_mask(state.params)
        updates = jax.tree.map(lambda u, trained: u if trained else jnp.zeros_like(u), updates, mask)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.ema_decay is not None:
            # The k-th average weighs its newest member by at least 1/k: no bias towards the first parameters.
            weight = jnp.maximum(1.0 - self.ema_decay, 1.0 / (state.step + 1))
            ema = jax.tree.map(lambda e, p: e + weight.astype(e.dtype) * (p - e), ema, params)
        metrics = {"loss": loss, **metrics, "grad_norm": norm}
        return TrainState(state.step + 1, params, opt_state, ema, state.extra), metrics


class Best(NamedTuple):
    """The parameters of the lowest validation loss so far."""

    params: Params
    loss: Array
    step: Array


class Fit(NamedTuple):
    """What `fit` returns.

    params: the best by validation (the last, or their EMA, without validation). last_params: the last (EMA if averaged).
    history: metric name -> array, one row per dispatch of `validate_every` steps (training metrics are means over it).
    state: the TrainState, to go on from.
    """

    params: Params
    last_params: Params
    history: dict[str, np.ndarray]
    state: TrainState


@dataclasses.dataclass(frozen=True)
class _Program(Description):
    """The static part of the compiled loop: equal programs share one compilation."""

    step: Any
    loss_fn: LossFn
    batch_size: int
    max_steps: int
    resident: bool
    mesh: Mesh | None


def fit(
    model: Model,
    data: Any,
    *,
    key: Key,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 5_000,
    batch_size: int = 256,
    validation: Any = None,
    validate_every: int = 100,
    patience: int | None = None,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    loss_fn: LossFn | None = None,
    step: Step | None = None,
    params: Params | None = None,
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1_000,
    log: str | Path | None = None,
    progress: bool = True,
) -> Fit:
    """Trains a model by stochastic gradients on minibatches drawn without replacement, epoch after epoch.

    Args:
      model: any Model. data: x of shape (n,) + event_shape, or a pair (x, context); an iterator of such batches where the
        data outgrow memory; None for a `loss_fn` that needs none (then pass `params`).
      key: one key; it fixes initialisation, minibatches and the noise of the loss.
      optimizer: any Optax optimizer (None: Adam 1e-3). Pass the same object again and nothing is compiled again.
      validation: like data. Its loss is taken every `validate_every` steps; training stops after `patience`
        validations without a new best. (Of n rows in k blocks of at most 4,096, up to k - 1 are left out.)
      clip_norm, ema_decay: see `GradientStep`. loss_fn: in place of `model.loss`, (params, key, x, context) -> (loss,
        metrics). step: in place of the whole default step.
      params: start from these instead of `model.init`.
      mesh: a one-axis `jax.sharding.Mesh`: each batch is sharded over its devices.
      checkpoint: a folder; the run resumes from its newest checkpoint. `checkpoint_every` in steps.
      log: a JSONL file, one line per dispatch.

    Returns a `Fit`.
    Raises TypeError or ValueError for unfit arguments, data that are not finite, or a checkpoint of another run;
    FloatingPointError, naming the step, when the loss or its gradient stops being finite (the state before that step is
    in the checkpoint).
    """
    check_positive(num_steps=num_steps, batch_size=batch_size, validate_every=validate_every, checkpoint_every=checkpoint_every)
    check_key(key)
    source = Source.of(model, data, batch_size)
    held_out = None if validation is None else checked_pair("validation", validation, model)
    batch_size = source.batch_size
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(f"batch_size must be a multiple of the {mesh.size} devices of the mesh, got {batch_size}")
    if step is None:
        loss_fn = model.loss if loss_fn is None else loss_fn
        step = GradientStep(loss_fn, _default_optimizer() if optimizer is None else optimizer, clip_norm, ema_decay)
    program = _Program(step, loss_fn or model.loss, batch_size, validate_every, source.resident, mesh)
    if params is None:
        params = model.init(stream(key, "init"), *source.example())
    state = jax.jit(step.init)(params)
    best = Best(_averaged(state), jnp.array(jnp.inf, float), jnp.zeros((), jnp.int32))
    run = _Run(program, source, _place(held_out, mesh), key, num_steps, patience)
    note = {"model": describe(model), "data": source.fingerprint(), "batch_size": batch_size, "key": _key_data(key)}
    recorder = Recorder(checkpoint, checkpoint_every, note, log, progress)
    with recorder:
        state, best, rows = recorder.resume(_place(state, mesh), _place(best, mesh), num_steps)
        state, best, rows = run.loop(state, best, rows, recorder)
    last = _averaged(state)
    names = sorted({name for row in rows for name in row})
    history = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    return Fit(best.params if held_out is not None else last, last, history, state)


@functools.cache
def _default_optimizer():
    return optax.adam(1e-3)


def _averaged(state: TrainState) -> Params:
    return state.params if state.ema is None else state.ema


def _place(tree, mesh):
    return tree if mesh is None or tree is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _key_data(key: Key) -> list[int]:
    return np.asarray(jax.random.key_data(key)).tolist()


class _Carry(NamedTuple):
    """What goes from dispatch to dispatch; the permutation is that of the epoch of state.step."""

    state: TrainState
    best: Best
    permutation: Array | None


class _Report(NamedTuple):
    """What a dispatch tells the host: summed metrics, those of the last step, validation loss, and whether all was finite."""

    total: dict[str, Array]
    last: dict[str, Array]
    validation_loss: Array
    ok: Array


@functools.partial(jax.jit, static_argnums=0)
def _advance(program: _Program, carry: _Carry, data, held_out, key: Key, stop: Array) -> tuple[_Carry, _Report]:
    """Steps state.step .. stop - 1 (fewer if one is not finite), then validation."""
    start = carry.state.step
    sampler = _sampler(program, data, key)
    noise = stream(key, "train")

    def one_step(state, permutation):
        if sampler is None:
            batch = jax.tree.map(lambda a: a[state.step - start], data)
        else:
            batch, permutation = sampler.draw(state.step, permutation)
        if program.mesh is not None:
            spread = NamedSharding(program.mesh, PartitionSpec(program.mesh.axis_names[0]))
            batch = jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, spread), batch)
        state, metrics = program.step(state, jax.random.fold_in(noise, state.step), batch)
        return state, permutation, metrics

    def unfinished(loop):
        state, _, _, _, ok = loop
        return (state.step < stop) & ok

    def body(loop):
        state, permutation, total, _, _ = loop
        state, permutation, metrics = one_step(state, permutation)
        watched = [metrics[name] for name in ("loss", "grad_norm") if name in metrics]
        ok = functools.reduce(jnp.logical_and, [jnp.isfinite(m) for m in watched])
        return state, permutation, jax.tree.map(jnp.add, total, metrics), metrics, ok

    shapes = jax.eval_shape(one_step, carry.state, carry.permutation)[2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    begin = carry.state, carry.permutation, zeros, zeros, jnp.array(True)
    state, permutation, total, last, ok = jax.lax.while_loop(unfinished, body, begin)
    value, best = jnp.array(jnp.inf, float), carry.best
    if held_out is not None:
        value = _validation_loss(program, _averaged(state), held_out, stream(key, "validation"))
        fresh = Best(_averaged(state), value.astype(best.loss.dtype), state.step)
        best = jax.tree.map(lambda new, old: jnp.where(value < carry.best.loss, new, old), fresh, best)
    return _Carry(state, best, permutation), _Report(total, last, value, ok)


def _sampler(program: _Program, data: Any, key: Key) -> EpochSampler | None:
    return EpochSampler(data, stream(key, "batches"), program.batch_size) if program.resident else None


def _validation_loss(program, params, held_out, key):
    num_rows = jax.tree.leaves(held_out)[0].shape[0]
    num_blocks = -(-num_rows // 4096)
    size = num_rows // num_blocks
    blocks = jax.tree.map(lambda a: a[: num_blocks * size].reshape(num_blocks, size, *a.shape[1:]), held_out)

    def one(block):
        (x, context), i = block
        return program.loss_fn(params, jax.random.fold_in(key, i), x, context)[0]

    return jax.lax.map(one, (blocks, jnp.arange(num_blocks))).mean()


class _Run(NamedTuple):
    program: _Program
    source: Source
    held_out: Any
    key: Key
    num_steps: int
    patience: int | None

    def loop(self, state: TrainState, best: Best, rows: list[dict], recorder: Recorder):
        """Dispatches until num_steps or out of patience; (state, best, rows)."""
        self.source.skip(int(state.step))
        data = _place(self.source.arrays, self.program.mesh) if self.source.resident else None
        sampler = _sampler(self.program, data, self.key)
        carry = _Carry(state, best, None if sampler is None else _place(sampler.first(state.step), self.program.mesh))
        every = self.program.max_steps
        while (now := int(carry.state.step)) < self.num_steps and not self._out_of_patience(rows, carry.best):
            stop = min((now // every + 1) * every, self.num_steps)
            batches = data if self.source.resident else _place(self.source.take(stop - now), self.program.mesh)
            before = carry
            carry, report = self._advance(before, batches, stop)
            if not report.ok:
                bad = int(carry.state.step) - 1
                good, _ = self._advance(before, batches, bad)
                recorder.save(good.state, good.best, rows)
                raise FloatingPointError(_not_finite(bad, report.last))
            row = {"step": stop} | {k: float(v) / (stop - now) for k, v in report.total.items()}
            rows.append(row | ({"validation_loss": float(report.validation_loss)} if self.held_out is not None else {}))
            last = stop == self.num_steps or self._out_of_patience(rows, carry.best)
            recorder.report(carry.state, carry.best, rows, last=last)
        return carry.state, carry.best, rows

    def _advance(self, carry, data, stop):
        return _advance(self.program, carry, data, self.held_out, self.key, jnp.asarray(stop, jnp.int32))

    def _out_of_patience(self, rows, best) -> bool:
        if self.patience is None or self.held_out is None or not rows:
            return False
        since = [row for row in rows if row["step"] > int(best.step)]
        return len(since) >= self.patience


def _not_finite(step: int, metrics: dict[str, Array]) -> str:
    values = ", ".join(f"{name} = {float(metrics[name]):.4g}" for name in ("loss", "grad_norm") if name in metrics)
    return (
        f"training stopped at step {step}: {values}. The state before it is the last good one; "
        "try a lower learning rate, clip_norm=1.0, or look for outliers in the data"
    )
