"""`train`: one compiled training loop for every step, whatever it trains.

The loop runs many steps per dispatch, with data, minibatches, keys and the best parameters on the device. Minibatch i and the key
of step i are pure functions of (key, i): no random state is stored, and a run that was killed and resumed is equal, bit for bit,
to one that was not. Dispatches end at fixed numbers of steps, so that sums of metrics do not depend on where a run began.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from genmod.core.checks import check_count, check_function
from genmod.core.info import FAILED
from genmod.core.keys import check_key
from genmod.core.types import Array, Key, Params
from genmod.training.checkpoint import described, load_state
from genmod.training.diagnosis import NotFinite
from genmod.training.program import Carry, Program, advance, begin, begin_plainly, validate as measure_rows
from genmod.training.reading import read_rows
from genmod.training.recorder import Record, Recorder
from genmod.training.sharding import check_mesh, place
from genmod.training.sources import Ended, as_source, fingerprint, read_all
from genmod.training.step import GradientStep, Step, check_step, num_batches, specs
from genmod.training.validation import Best, FinalLoss, Measure, Whole


class Fit(NamedTuple):
    """What training returns.

    Attributes:
      params: the best by validation (the last, or their average, without validation).
      last_params: the last (their average where the step keeps one).
      history: metric name -> array, one row per `validate_every` steps (training metrics are means over them).
      state: the state of the step, to go on from.
      step: how many steps were done.
    """

    params: Params
    last_params: Params
    history: dict[str, np.ndarray]
    state: Any
    step: int


def train(
    step: Step,
    params: Params | Partial,
    data: Any,
    *,
    key: Key,
    num_steps: int = 5_000,
    batch_size: int = 256,
    validation: Any = None,
    validate: Callable[..., dict[str, Array]] | Whole | None = None,
    monitor: str = "loss",
    validate_every: int = 100,
    patience: int | None = None,
    steps_per_dispatch: int | None = None,
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1_000,
    log: str | Path | None = None,
    callback: Callable[[int, dict[str, float], Params], None] | None = None,
    progress: bool = True,
    state: Any = None,
    identity: dict[str, Any] | None = None,
) -> Fit:
    """Calls a step again and again on minibatches drawn without replacement, epoch after epoch; it knows no model.

    Args:
      step: a `Step`, such as `GradientStep(loss_fn, optax.adam(1e-3))`.
      params: the first parameters, or a `jax.tree_util.Partial` that makes them of a key.
      data: any pytree of arrays with one leading axis, an iterator or a loader of such batches, or None.
      validation: like data, but finite. validate, monitor: see `fit`; None: the final loss of a `GradientStep`.
      state: a `Fit` or a checkpoint folder to go on from; see `fit`.
      identity: JSON that tells this run from others in its checkpoint, beside what `train` sees itself.
      The other arguments are those of `fit`.

    Returns and raises as `fit`.
    """
    check_options(num_steps, batch_size, validate_every, steps_per_dispatch, checkpoint_every, patience)
    origin, given = state, state is not None or not isinstance(params, Partial)
    step, key, source = check_step(step), check_key(key), as_source(data, batch_size, read_rows)
    mesh = check_mesh(mesh, source.batch_size)
    held_out = read_all("validation", validation, read_rows)
    measure = _measure(step, held_out, validate, monitor, patience, source.arrays is not None)
    if callback is not None:
        check_function(callback=callback)
    run = {}
    if checkpoint is not None:
        run = _identity(step, params, source, held_out, measure, validate_every, key) | (identity or {})

    per_step = num_batches(step)
    program = Program(step, source.batch_size if source.resident else None, mesh)
    data, held_out = place(source.example(per_step), mesh), place(held_out, mesh)
    params = place(params, mesh)
    state, order = (begin_plainly if _is_small(params) else begin)(program, params, data, source.num_rows, key)
    if origin is not None:
        state = load_state(origin, state)
        run = run | ({"state": fingerprint(state)} if run else {})
    state = place(state, mesh, specs(step, state))
    best = None
    if measure is not None:
        best = Best(step.evaluation_params(state), *place(jax.device_put((_infinity(), np.int32(0))), mesh))

    grain = min(steps_per_dispatch or validate_every, validate_every, source.limit(per_step))
    size = min(grain, num_steps)
    with Recorder(step, run, checkpoint, checkpoint_every, log, progress) as recorder:
        record = recorder.resume(Record(0, state, best, [], {}), num_steps)
        if record.step < num_steps:
            source.resume(record.step * per_step, record.position)
        if measure is not None and record.step == 0 and given:  # a start that was given may be the best
            first = jax.device_put(np.int32(0))
            record = record._replace(best=measure_rows(measure, step, state, place(first, mesh), best, held_out, key)[1])
        carry = Carry(record.state, *place((jax.device_put(np.int32(record.step)), order), mesh))
        while record.step < num_steps and not _out_of_patience(record, patience):
            now, stop = record.step, _next_stop(record.step, grain, validate_every, num_steps)
            if source.arrays is not None and not source.resident:
                try:
                    data = place(source.take(stop - now, size, per_step), mesh)
                except Ended:
                    if now == 0:
                        raise
                    warnings.warn(f"the data iterator ended: there is nothing to do after {now} steps", stacklevel=2)
                    break
            before = carry
            carry, report = advance(program, before, data, key, np.int32(stop))
            if stop < num_steps:
                wanted = _next_stop(stop, grain, validate_every, num_steps) - stop
                reached_steps = source.prefetch(wanted, size, per_step)
                if reached_steps < wanted:
                    num_steps = stop + reached_steps
                    warnings.warn(f"the data iterator ended: training stops after {num_steps} steps", stacklevel=2)
            due, values, best = stop % validate_every == 0 or stop == num_steps, {}, record.best
            if due and measure is not None:
                values, best = measure_rows(measure, step, carry.state, carry.step, best, held_out, key)
            report, values, reached = jax.device_get((report, values, carry.step))
            if not report.ok:
                bad = int(reached) - 1
                good, report_of_good = advance(program, before, data, key, np.int32(bad))
                pending = _add(record.pending, report_of_good.total)
                position = None if checkpoint is None else source.position((bad - now) * per_step)
                recorder.newest = Record(bad, good.state, record.best, record.rows, pending, position)
                raise NotFinite(_not_finite(bad, report.last, checkpoint), bad, step.evaluation_params(good.state))
            if values and not np.isfinite(values[monitor]):
                raise FloatingPointError(f"the validation {monitor} is {float(values[monitor])} at step {stop}: {_OUTSIDE}")
            pending = _add(record.pending, report.total)
            row, rows = None, record.rows
            if due:
                since = rows[-1]["step"] if rows else 0
                row = {"step": stop} | {name: value / (stop - since) for name, value in pending.items()}
                row |= {f"validation_{name}": float(value) for name, value in values.items()}
                rows, pending = [*rows, row], {}
            position = None if checkpoint is None else source.position((stop - now) * per_step)
            record = Record(stop, carry.state, best, rows, pending, position)
            recorder.report(record, row, last=stop == num_steps or _out_of_patience(record, patience))
            if callback is not None and row is not None:
                metrics = {name: value for name, value in row.items() if name != "step"}
                callback(stop, metrics, step.evaluation_params(carry.state))
    last = step.evaluation_params(record.state)
    names = sorted({name for row in record.rows for name in row})
    history = {name: np.array([row.get(name, np.nan) for row in record.rows]) for name in names}
    return Fit(last if record.best is None else record.best.params, last, history, record.state, record.step)


def check_options(num_steps, batch_size, validate_every, steps_per_dispatch, checkpoint_every, patience) -> None:
    """Raises ValueError for the first count that is none."""
    check_count(num_steps=num_steps, batch_size=batch_size, validate_every=validate_every, checkpoint_every=checkpoint_every)
    if steps_per_dispatch is not None:
        check_count(steps_per_dispatch=steps_per_dispatch)
    if patience is not None:
        check_count(patience=patience)


def _measure(step, held_out, validate, monitor, patience, has_data) -> Measure | None:
    """What is measured of the held-out rows, None for nothing."""
    if held_out is None and patience is not None:
        raise ValueError(f"patience={patience} wants validation=...")
    if validate is not None:
        check_function(validate=validate.fn if isinstance(validate, Whole) else validate)
        if held_out is None and has_data:
            raise ValueError("validate=... wants validation=..., the rows to measure on")
        return Measure(validate, monitor)
    if held_out is None:
        return None
    if not isinstance(step, GradientStep):
        raise ValueError("validation with a step of your own wants validate=fn, fn(params, key, batch) -> dict of scalars")
    if monitor != "loss":
        raise ValueError(f"monitor={monitor!r} wants validate=fn, which gives it; without one there is the loss alone")
    return Measure(FinalLoss(step.objective), monitor)


def _identity(step, params, source, held_out, measure, validate_every, key) -> dict[str, Any]:
    """What must be equal for a run to go on from a checkpoint."""
    return {
        "step": described("step", step),
        "params": "made by init" if isinstance(params, Partial) else fingerprint(params),
        "data": source.fingerprint(),
        "validation": fingerprint(held_out),
        "validate": described("validate", measure),
        "batch_size": source.batch_size,
        "validate_every": validate_every,
        "key": np.asarray(jax.random.key_data(key)).tolist(),
    }


def _is_small(params: Any) -> bool:
    """Whether the first state takes no time to compute: on a CPU, and not from images."""
    return jax.default_backend() == "cpu" and all(np.ndim(leaf) <= 2 for leaf in jax.tree.leaves(params))


def _next_stop(now: int, grain: int, validate_every: int, num_steps: int) -> int:
    """Where the dispatch from step `now` ends. The first has one step: something moves early."""
    ends = ((now // every + 1) * every for every in (grain, validate_every))
    return min(*ends, num_steps, 1 if now == 0 else num_steps)


def _out_of_patience(record: Record, patience: int | None) -> bool:
    if patience is None or record.best is None or not record.rows:
        return False
    return sum(row["step"] > int(record.best.step) for row in record.rows) >= patience


def _add(pending: dict[str, float], total: dict[str, Array]) -> dict[str, float]:
    return {name: pending.get(name, 0.0) + float(value) for name, value in total.items()}


def _infinity() -> np.ndarray:
    return np.asarray(np.inf, jnp.result_type(float))


_OUTSIDE = "a validation point lies outside the support of the model, or the model has diverged"


def _not_finite(step: int, metrics: dict[str, Array], checkpoint: Any) -> str:
    # Beside the loss, what is not finite and what counts failures: an unsolved ODE is the commonest reason where there is one.
    first = [name for name in ("loss", "grad_norm") if name in metrics]
    others = [name for name in metrics if name.endswith("_loss") and name not in first and not np.isfinite(metrics[name])]
    failed = [FAILED] if FAILED in metrics and metrics[FAILED] > 0 else []
    values = ", ".join(f"{name} = {float(metrics[name]):.4g}" for name in [*first, *others, *failed])
    if step == 0:
        return (
            f"training stopped at step 0: {values}. These are the first parameters: look at the data, not at the learning rate."
        )
    go_on = (
        "" if checkpoint is None else f" The state before it is saved: state={str(checkpoint)!r} and another checkpoint go on."
    )
    return (
        f"training stopped at step {step}: {values}. Try a lower learning rate or clip_norm=1.0, look for outliers in the data, "
        f"or pass over such steps by max_skips=...{go_on}"
    )
