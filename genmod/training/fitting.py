"""`fit`: the thin front of `train` for models, one call for every family."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from genmod.core.batching import Batch
from genmod.core.description import Call, Description
from genmod.core.types import Array, Context, Key, Params
from genmod.models.base import GameModel, Model
from genmod.models.unnormalized import UnnormalizedModel
from genmod.training.checkpoint import described
from genmod.training.diagnosis import NotFinite, diagnosis
from genmod.training.games import GameStep, Player
from genmod.training.loop import Fit, check_options, train
from genmod.training.reading import Events, is_stream, read_rows
from genmod.training.sources import Source, as_source, read_all
from genmod.training.step import GradientStep, LossFn, Step
from genmod.training.validation import FinalLoss, Whole

# A deep image model passes its initial batch through every layer; vectors cost little, and `Whiten` wants all of them.
_INIT_NUMBERS = 2**20


def fit(
    model: Model,
    data: Any,
    *,
    key: Key,
    optimizer: optax.GradientTransformation | Call | None = None,
    num_steps: int = 5_000,
    batch_size: int = 256,
    validation: Any = None,
    validate: Callable[..., dict[str, Array]] | Whole | None = None,
    monitor: str = "loss",
    validate_every: int = 100,
    patience: int | None = None,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    max_skips: int = 0,
    loss_fn: LossFn | None = None,
    step: Step | None = None,
    params: Params | None = None,
    state: Fit | str | Path | None = None,
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1_000,
    log: str | Path | None = None,
    callback: Callable[[int, dict[str, float], Params], None] | None = None,
    progress: bool = True,
    steps_per_dispatch: int | None = None,
) -> Fit:
    """Trains a model by stochastic gradients on minibatches drawn without replacement, epoch after epoch.

    Args:
      model: any Model.
      data: events x, (n,) + event_shape; (x, context) or (x, context, weight), or a dict of these: arrays of NumPy, JAX or
        PyTorch, tables of pandas or polars, lists. With context_shape=(K,) contexts may be class labels, integers (n,) in
        0..K-1, which are stored as one-hot rows. An iterator of such batches, or a loader (PyTorch, Grain), which is gone
        through again and again; iterators with `get_state` and `set_state`, as Grain's have, keep their place in a checkpoint,
        others are gone through from their start when a run is resumed. With `loss_fn` or `step`, any pytree of arrays; None
        where these need no data.
      key: one key; it fixes initialisation, minibatches and the noise of the loss.
      optimizer: any Optax optimizer, also as `gm.call(optax.adam, 1e-3)`; None: Adam with 1e-3. Of a game, that of each player.
      batch_size: rows of a minibatch, of data that are not batches already.
      validation: like data, but finite. It is measured every `validate_every` steps.
      validate: what is measured: (params, key, batch) -> dict of scalars, averaged over blocks of rows; `Whole(fn)`: of all
        rows at once; None: the loss, of the final objective (step=None).
      monitor: the entry of `validate` whose minimum is best.
      validate_every: also the number of steps that one row of the history is about.
      patience: training stops after so many validations without a new best.
      clip_norm, ema_decay, max_skips: see `GradientStep`.
      loss_fn: in place of `model.loss`, (params, key, batch, *, step=None) -> (loss, metrics); its batch is as in data.
      step: in place of the whole default step, which is a `GradientStep`, or a `GameStep` of a `GameModel`.
      params: start from these instead of `model.init`.
      state: go on from a `Fit`, or from the newest state in a checkpoint folder, for `num_steps` more, with the data and the
        optimizer of this call: its averages are kept where it is of the same kind (another learning rate). With a loss or step
        of one's own `params` then only say the kind.
      mesh: a `jax.sharding.Mesh` of one axis: each batch is spread over its devices.
      checkpoint: a folder; the run is saved there every `checkpoint_every` steps, and resumes from there.
      log: a JSONL file, one line per row of the history.
      callback: called with (step, metrics, params) at each of these rows.
      steps_per_dispatch: at most so many steps between two looks of the host; None: `validate_every`.

    Returns a `Fit`.
    Raises TypeError or ValueError for unfit arguments, data that are not finite, or a checkpoint of another run or of more
    steps; FloatingPointError, naming the step, when the loss or its gradient stops being finite (the state before that step is
    in the checkpoint).
    """
    _check_model(model, data)
    check_options(num_steps, batch_size, validate_every, steps_per_dispatch, checkpoint_every, patience)
    own = loss_fn is not None or not (step is None or getattr(step, "reads_events", False))  # of a user's class, perhaps
    step = _step(model, optimizer, {"clip_norm": clip_norm, "ema_decay": ema_decay, "max_skips": max_skips}, loss_fn, step)
    read = read_rows if own else Events(model)
    if state is not None and params is not None and not own:
        raise ValueError("params=... and state=... both say where to begin; give one of them")
    source = as_source(data, batch_size, read)
    if isinstance(read, Events) and not (data is None or is_stream(data)):
        read.check_table("data", data)
    if validation is not None and validate is None:
        _check_measured(model, loss_fn)
        validate = None if isinstance(step, GradientStep) else FinalLoss(model)
    try:
        return train(
            step,
            _start(model, source) if params is None else _checked(model, params, own),
            source,
            key=key,
            num_steps=num_steps,
            validation=read_all("validation", validation, read),
            validate=validate,
            monitor=monitor,
            validate_every=validate_every,
            patience=patience,
            steps_per_dispatch=steps_per_dispatch,
            mesh=mesh,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            log=log,
            callback=callback,
            progress=progress,
            state=state,
            identity=None if checkpoint is None else {"model": described("model", model)},
        )
    except NotFinite as error:
        resident = isinstance(read, Events) and source.resident
        more = diagnosis(model, error.params, key, source.arrays) if error.step == 0 and resident else ""
        raise FloatingPointError(str(error) + more) from None


@dataclasses.dataclass(frozen=True)
class _Init(Description):
    """`model.init` on rows of the data: all of them; of images, random ones that hold about a million numbers."""

    model: Model

    def __call__(self, x: Array, context: Context, key: Key) -> Params:
        num = max(1, _INIT_NUMBERS // math.prod(x.shape[1:]))
        if x.ndim > 2 and num < x.shape[0]:
            rows = np.sort(np.random.default_rng(0).choice(x.shape[0], num, replace=False))
            x, context = x[rows], None if context is None else context[rows]
        return self.model._init(key, x, context)  # checked and compiled already


@dataclasses.dataclass(frozen=True)
class _InitAlone(Description):
    """`model.init` on one example event."""

    model: Model

    def __call__(self, key: Key) -> Params:
        return self.model._init(key, self.model.event.example(), _zero_context(self.model))


def _check_model(model: Any, data: Any) -> None:
    if isinstance(model, Model):
        return
    if isinstance(data, Model):
        raise TypeError(f"fit takes the model first, then the data: write fit({type(data).__name__}, data, ...)")
    raise TypeError(f"model must be a gm.models.Model, got a {type(model).__name__}")


def _check_measured(model: Model, loss_fn: LossFn | None) -> None:
    if loss_fn is not None or model.loss_measures_fit:
        return
    one = "gm.training.Whole(fn) of a metric of its samples is one"
    if isinstance(model, UnnormalizedModel) and type(model).states is not UnnormalizedModel.states:
        one = "where the states of one side are few, gm.training.FinalLoss(gm.models.Normalized(model)) is one"
    raise ValueError(f"validation of a {type(model).__name__} wants validate=...: its loss is no measure of the fit; {one}")


def _step(model, optimizer, options, loss_fn, step) -> Step:
    if step is None:
        optimizer = optax.adam(1e-3) if optimizer is None else optimizer
        if isinstance(model, GameModel) and loss_fn is None:
            if options.pop("max_skips"):
                raise ValueError(f"max_skips belongs to steps of one loss; a {type(model).__name__} is a game")
            return GameStep(model, tuple(Player(name, optimizer, **options) for name in model.players))
        return GradientStep(model if loss_fn is None else loss_fn, optimizer, **options)
    if loss_fn is not None:
        raise ValueError(
            "loss_fn belongs to the default step: leave it out with step=...; validation with step=... is validate=..."
        )
    if optimizer is not None or any(options.values()):
        raise ValueError(f"optimizer, {', '.join(options)} belong to the default step; leave them out with step=...")
    return step


def _start(model: Model, source: Source) -> Partial:
    """What makes the first parameters, of the data where there are any."""
    if source.arrays is None:
        if _reads_data(model):
            raise ValueError(
                f"data=None wants params=...: {type(model).__name__} takes its first parameters from data; "
                "pass params=model.init(key, an example batch)"
            )
        return Partial(_InitAlone(model))
    batch = source.arrays
    if not isinstance(batch, Batch):
        if isinstance(batch, tuple) and type(batch) is not tuple:
            batch = batch[:2]  # of a NamedTuple that a loss of its own reads, x and context
        try:
            batch = Events(model)("data", batch)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "params=... is wanted where data are no events of the model; pass params=model.init(key, an example batch) "
                f"({error})"
            ) from None
    return Partial(_Init(model), batch.x, batch.context)


def _reads_data(model: Model) -> bool:
    """Whether `init` reads the values of its example, and not its shape alone: then its results have the axis of a vmap."""
    example = model.event.example(), _zero_context(model)
    several = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), example)

    def init(example, key):
        return model.init(key, *example)

    try:
        jax.eval_shape(jax.vmap(init, in_axes=(0, None), out_axes=None), several, jax.eval_shape(lambda: jax.random.key(0)))
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        return True
    return False


def _checked(model: Model, params: Params, own: bool) -> Params:
    if isinstance(params, Fit):
        raise TypeError(f"params must be the parameters of {type(model).__name__}, got a whole Fit; pass its .params")
    difference = None if own else model.misfit(params)
    if difference is not None:
        raise ValueError(f"params must be those of this {type(model).__name__}, made by its init: {difference}")
    return params


def _zero_context(model: Model) -> Context:
    return None if model.context_shape is None else jnp.zeros((1, *model.context_shape))
