"""`fit`: one compiled training loop for every family.

The loop runs many optimizer steps per dispatch, with data, validation, best parameters and EMA on the device. Minibatch i
and the key of step i are pure functions of (key, i): no random state is stored, and a run that was killed and resumed is
equal, bit for bit, to one that was not.
"""

import dataclasses
import functools
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from genmod.base import Array, Description, Key, Params, check_positive, describe, trainable_mask
from genmod.checkpoint import Checkpoints, check_same
from genmod.keys import check_key, stream
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
    source = _Source.of(model, data, batch_size)
    held_out = None if validation is None else _checked_pair("validation", validation, model)
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
    best = Best(_averaged(state), jnp.full((), jnp.inf), jnp.zeros((), jnp.int32))
    run = _Run(program, source, _place(held_out, mesh), key, num_steps, patience)
    note = {"model": describe(model), "data": source.fingerprint(), "batch_size": batch_size, "key": _key_data(key)}
    keeper = _Keeper(checkpoint, checkpoint_every, note, log, progress)
    with keeper:
        state, best, rows = keeper.resume(_place(state, mesh), _place(best, mesh), num_steps)
        state, best, rows = run.loop(state, best, rows, keeper)
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


# --- the compiled part ---------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _advance(program: _Program, state: TrainState, best: Best, data, held_out, key: Key, stop: Array):
    """Steps state.step .. stop - 1 (fewer if one is not finite), then validation.

    Returns (state, best, summed metrics, validation loss, ok, metrics of the last step).
    """
    start = state.step
    draw = _epoch_sampler(program, data, stream(key, "batches")) if program.resident else None
    noise = stream(key, "train")

    def one_step(state, permutation):
        if draw is None:
            batch = jax.tree.map(lambda a: a[state.step - start], data)
        else:
            batch, permutation = draw(state.step, permutation)
        if program.mesh is not None:
            spread = NamedSharding(program.mesh, PartitionSpec(program.mesh.axis_names[0]))
            batch = jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, spread), batch)
        state, metrics = program.step(state, jax.random.fold_in(noise, state.step), batch)
        return state, permutation, metrics

    first = None if draw is None else draw.first(start)
    shapes = jax.eval_shape(one_step, state, first)[2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def unfinished(carry):
        state, _, _, _, ok = carry
        return (state.step < stop) & ok

    def body(carry):
        state, permutation, total, _, _ = carry
        state, permutation, metrics = one_step(state, permutation)
        watched = [metrics[name] for name in ("loss", "grad_norm") if name in metrics]
        ok = functools.reduce(jnp.logical_and, [jnp.isfinite(m) for m in watched])
        return state, permutation, jax.tree.map(jnp.add, total, metrics), metrics, ok

    state, _, total, last, ok = jax.lax.while_loop(unfinished, body, (state, first, zeros, zeros, jnp.array(True)))
    value = jnp.full((), jnp.inf)
    if held_out is not None:
        value = _validation_loss(program, _averaged(state), held_out, stream(key, "validation"))
        better = value < best.loss
        fresh = Best(_averaged(state), value.astype(best.loss.dtype), state.step)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), fresh, best)
    return state, best, total, value, ok, last


class _epoch_sampler:
    """Minibatch i of a shuffled epoch as a pure function of (key, i): the permutation of epoch e has key fold_in(key, e)."""

    def __init__(self, program, data, key):
        self.data, self.key, self.size = data, key, program.batch_size
        self.num_rows = jax.tree.leaves(data)[0].shape[0] if jax.tree.leaves(data) else 0
        self.per_epoch = max(1, self.num_rows // self.size)

    def first(self, step):
        return self._permutation(step // self.per_epoch)

    def __call__(self, step, permutation):
        if not self.num_rows:
            return self.data, permutation
        epoch, place = step // self.per_epoch, step % self.per_epoch
        permutation = jax.lax.cond(place == 0, lambda: self._permutation(epoch), lambda: permutation)
        rows = jax.lax.dynamic_slice_in_dim(permutation, place * self.size, self.size)
        return jax.tree.map(lambda a: a[rows], self.data), permutation

    def _permutation(self, epoch):
        return jax.random.permutation(jax.random.fold_in(self.key, epoch), self.num_rows)


def _validation_loss(program, params, held_out, key):
    num_rows = jax.tree.leaves(held_out)[0].shape[0]
    num_blocks = -(-num_rows // 4096)
    size = num_rows // num_blocks
    blocks = jax.tree.map(lambda a: a[: num_blocks * size].reshape(num_blocks, size, *a.shape[1:]), held_out)

    def one(block):
        (x, context), i = block
        return program.loss_fn(params, jax.random.fold_in(key, i), x, context)[0]

    return jax.lax.map(one, (blocks, jnp.arange(num_blocks))).mean()


# --- the host's part -----------------------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """Where batches come from: arrays on the device, or an iterator of batches."""

    arrays: Any
    batches: Iterator | None
    batch_size: int
    num_rows: int

    @property
    def resident(self) -> bool:
        return self.batches is None

    @classmethod
    def of(cls, model: Model, data: Any, batch_size: int) -> "_Source":
        if data is None:
            return cls((None, None), None, batch_size, 0)
        if isinstance(data, Iterator):
            first = _checked_pair("data", next(data, None), model)
            rest = (_checked_pair("data", batch, model) for batch in data)
            return cls(first, itertools.chain([first], rest), len(first[0]), 0)
        arrays = _checked_pair("data", data, model)
        num_rows = arrays[0].shape[0]
        return cls(arrays, None, min(batch_size, num_rows), num_rows)

    def example(self) -> tuple[Any, ...]:
        if self.arrays[0] is None:
            raise ValueError("data=None wants params=..., for instance model.init(key, an example batch)")
        return self.arrays if self.arrays[1] is not None else self.arrays[:1]

    def fingerprint(self) -> dict[str, Any]:
        if not self.resident:
            return {"rows": "streamed"}
        leaves = [np.asarray(a) for a in jax.tree.leaves(self.arrays)]
        return {"rows": self.num_rows, "crc32": [zlib.crc32(a.tobytes()) for a in leaves]}

    def take(self, num: int):
        if self.batches is None:
            return self.arrays
        got = list(itertools.islice(self.batches, num))
        if len(got) < num:
            raise ValueError("the data iterator ended before num_steps batches; let it repeat, or ask for fewer steps")
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *got)


class _Run(NamedTuple):
    program: _Program
    source: _Source
    held_out: Any
    key: Key
    num_steps: int
    patience: int | None

    def loop(self, state: TrainState, best: Best, rows: list[dict], keeper: "_Keeper"):
        """Dispatches until num_steps or out of patience; (state, best, rows)."""
        every = self.program.max_steps
        begun = int(state.step)
        if begun and not self.source.resident:
            self.source.take(begun)
        data = _place(self.source.arrays, self.program.mesh) if self.source.resident else None
        while (now := int(state.step)) < self.num_steps and not self._out_of_patience(rows, best):
            stop = min((now // every + 1) * every, self.num_steps)
            batches = data if self.source.resident else _place(self.source.take(stop - now), self.program.mesh)
            before, best_before = state, best
            state, best, total, value, ok, last = self._advance(before, best, batches, stop)
            if not ok:
                bad = int(state.step) - 1
                state, best, *_ = self._advance(before, best_before, batches, bad)
                keeper.save(state, best, rows)
                raise FloatingPointError(_not_finite(bad, last))
            row = {"step": stop} | {k: float(v) / (stop - now) for k, v in total.items()}
            rows.append(row | ({"validation_loss": float(value)} if self.held_out is not None else {}))
            keeper.report(state, best, rows, last=stop == self.num_steps or self._out_of_patience(rows, best))
        return state, best, rows

    def _advance(self, state, best, data, stop):
        return _advance(self.program, state, best, data, self.held_out, self.key, jnp.asarray(stop, jnp.int32))

    def _out_of_patience(self, rows, best) -> bool:
        if self.patience is None or self.held_out is None or not rows:
            return False
        since = [row for row in rows if row["step"] > int(best.step)]
        return len(since) >= self.patience


class _Keeper:
    """Keeps what a run leaves behind: checkpoints, the JSONL log and the progress bar."""

    def __init__(self, checkpoint, every: int, note: dict, log, progress: bool):
        self.checkpoints = None if checkpoint is None else Checkpoints(checkpoint)
        self.every, self.note, self.progress = every, note, progress
        self.log = None if log is None else Path(log)
        self.bar: Any = None
        self.saved = 0
        self.begun = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()
        if self.checkpoints is not None:
            self.checkpoints.close()

    def resume(self, state: TrainState, best: Best, num_steps: int):
        rows: list[dict] = []
        step = None if self.checkpoints is None else self.checkpoints.latest_step()
        if self.checkpoints is not None and step is not None:
            note = self.checkpoints.note(step)
            rows = note.pop("rows", [])
            for name, wanted in self.note.items():
                check_same(name, note.get(name), wanted, self.checkpoints.directory)
            state, best = self.checkpoints.load(step, (state, best))
            self.saved = step
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if self.progress:
            self.bar = tqdm(total=num_steps, initial=int(state.step), unit="step", dynamic_ncols=True)
        return state, best, rows

    def report(self, state: TrainState, best: Best, rows: list[dict], last: bool) -> None:
        row = rows[-1]
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.bar is not None:
            self.bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "validation_loss") if k in row}, refresh=False)
            self.bar.update(row["step"] - self.bar.n)
        if last or row["step"] - self.saved >= self.every:
            self.save(state, best, rows)

    def save(self, state: TrainState, best: Best, rows: list[dict]) -> None:
        step = int(state.step)
        if self.checkpoints is not None and step != self.checkpoints.latest_step():
            self.checkpoints.save(step, (state, best), self.note | {"rows": rows})
            self.saved = step


def _checked_pair(name: str, data: Any, model: Model) -> tuple[Array, Array | None]:
    """(x, context) on the device, checked for shape and for values that are not finite."""
    if data is None:
        raise ValueError(f"{name} is empty")
    x, context = data if isinstance(data, tuple) else (data, None)
    if not hasattr(x, "dtype"):
        x = np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {x.dtype}; dequantise discrete data and cast to float")
    if x.ndim < 1 or x.shape[1:] != model.event_shape or x.shape[0] < 1:
        raise ValueError(f"{name} must have shape (n,) + {model.event_shape} with n >= 1, got {x.shape}")
    x = jnp.asarray(x)
    if context is not None:
        context = jnp.asarray(context)
    if (context is None) != (model.context_shape is None):
        wanted = f"a pair (x, context), context of shape (n,) + {model.context_shape}" if context is None else "x alone"
        raise ValueError(f"{name} must be {wanted} for this model")
    if context is not None and context.shape != (x.shape[0], *(model.context_shape or ())):
        raise ValueError(f"the context of {name} must have shape {(x.shape[0], *(model.context_shape or ()))}, got {context.shape}")
    finite = np.asarray(jnp.isfinite(x).reshape(x.shape[0], -1).all(1))
    if not finite.all():
        raise ValueError(f"{name} has {int((~finite).sum())} rows with NaN or infinite values, the first is row {int(np.argmin(finite))}")
    return x, context


def _not_finite(step: int, metrics: dict[str, Array]) -> str:
    values = ", ".join(f"{name} = {float(metrics[name]):.4g}" for name in ("loss", "grad_norm") if name in metrics)
    return (
        f"training stopped at step {step}: {values}. The state before it is the last good one; "
        "try a lower learning rate, clip_norm=1.0, or look for outliers in the data"
    )
