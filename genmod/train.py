"""`fit`: one compiled training loop for every family.

The loop runs many optimizer steps per dispatch, with data, validation, best parameters and EMA on the device. Minibatch i
and the key of step i are pure functions of (key, i): no random state is stored, and a run that was killed and resumed is
equal, bit for bit, to one that was not.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genmod.base import FAILED, Array, Description, Key, Params, describe
from genmod.batches import EpochSampler, Source, checked_pair, fingerprint
from genmod.checks import check_count
from genmod.keys import check_key, stream
from genmod.models.base import Model
from genmod.recorder import Recorder
from genmod.step import GradientStep, LossFn, ModelLoss, Step, TrainState


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
        validations without a new best. (Of n rows in k blocks of at most 4,096, fewer where events are large, up to k - 1
        are left out.)
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
    check_count(num_steps=num_steps, batch_size=batch_size, validate_every=validate_every, checkpoint_every=checkpoint_every)
    check_key(key)
    source = Source.of(model, data, batch_size)
    held_out = None if validation is None else checked_pair("validation", validation, model)
    batch_size = source.batch_size
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(f"batch_size must be a multiple of the {mesh.size} devices of the mesh, got {batch_size}")
    if patience is not None and (patience < 1 or validation is None):
        raise ValueError(f"patience must be >= 1 and wants validation=..., got {patience}")
    loss_fn = ModelLoss(model) if loss_fn is None else loss_fn
    if step is None:
        step = GradientStep(loss_fn, _default_optimizer() if optimizer is None else optimizer, clip_norm, ema_decay)
    elif not (optimizer is None and clip_norm is None and ema_decay is None):
        raise ValueError("optimizer, clip_norm and ema_decay belong to the default step; leave them out with step=...")
    program = _Program(step, loss_fn, batch_size, validate_every, source.resident, mesh)
    if params is None:
        params = model.init(stream(key, "init"), *source.example())
    state = _init_state(step, params)
    best = Best(_averaged(state), jnp.array(jnp.inf, float), jnp.zeros((), jnp.int32))
    run = _Run(program, source, _place(held_out, mesh), key, num_steps, patience)
    note = {} if checkpoint is None else _note(model, program, source, held_out, key)
    recorder = Recorder(checkpoint, checkpoint_every, note, log, progress)
    with recorder:
        state, best, rows = recorder.resume(_place(state, mesh), _place(best, mesh), num_steps)
        state, best, rows = run.loop(state, best, rows, recorder)
    last = _averaged(state)
    names = sorted({name for row in rows for name in row})
    history = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    return Fit(best.params if held_out is not None else last, last, history, state)


def _note(model: Model, program: _Program, source: Source, held_out: Any, key: Key) -> dict[str, Any]:
    """What must be equal for a run to go on from a checkpoint."""
    return {
        "model": describe(model),
        "step": describe(program.step),
        "data": source.fingerprint(),
        "validation": fingerprint(held_out),
        "batch_size": program.batch_size,
        "validate_every": program.max_steps,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }


@functools.partial(jax.jit, static_argnums=0)
def _init_state(step, params):
    return step.init(params)


@functools.cache
def _default_optimizer():
    return optax.adam(1e-3)


def _averaged(state: TrainState) -> Params:
    return state.params if state.ema is None else state.ema


def _place(tree, mesh):
    return tree if mesh is None or tree is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


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
    # The last update has no loss yet to betray it.
    leaves = [leaf for leaf in jax.tree.leaves(state.params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    ok = functools.reduce(jnp.logical_and, [jnp.isfinite(leaf).all() for leaf in leaves], ok)
    value, best = jnp.array(jnp.inf, float), carry.best
    if held_out is not None:
        value = _validation_loss(program, _averaged(state), held_out, stream(key, "validation"))
        fresh = Best(_averaged(state), value.astype(best.loss.dtype), state.step)
        best = jax.tree.map(lambda new, old: jnp.where(value < carry.best.loss, new, old), fresh, best)
    return _Carry(state, best, permutation), _Report(total, last, value, ok)


def _sampler(program: _Program, data: Any, key: Key) -> EpochSampler | None:
    return EpochSampler(data, stream(key, "batches"), program.batch_size) if program.resident else None


def _validation_loss(program, params, held_out, key):
    num_rows, *shape = held_out[0].shape
    num_blocks = -(-num_rows // max(64, min(4096, 2**18 // max(1, math.prod(shape)))))
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
            if self.held_out is not None and not np.isfinite(report.validation_loss):
                recorder.save(before.state, before.best, rows)
                raise FloatingPointError(f"the validation loss is {float(report.validation_loss)} at step {stop}: {_OUTSIDE}")
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


_OUTSIDE = "a validation point lies outside the support of the model, or the model has diverged"


def _not_finite(step: int, metrics: dict[str, Array]) -> str:
    # Beside the loss, what counts failures: an ODE that was not solved is the commonest reason where there is one.
    names = [name for name in ("loss", "grad_norm", FAILED) if name in metrics and (name != FAILED or metrics[name] > 0)]
    values = ", ".join(f"{name} = {float(metrics[name]):.4g}" for name in names)
    return (
        f"training stopped at step {step}: {values}. The state before it is the last good one; "
        "try a lower learning rate or clip_norm=1.0 (in another checkpoint folder), or look for outliers in the data"
    )
