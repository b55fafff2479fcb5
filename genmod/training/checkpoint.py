"""Checkpoints by Orbax: atomic (a half-written one does not exist), verified on loading, and data only (no code, no pickle).

A checkpoint holds named pytrees, each as the list of its arrays, and a JSON note, in which the place, dtype and shape of every
array stand: a tree of another kind is told from a damaged file.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from genmod.core.description import describe
from genmod.core.types import Params
from genmod.models.base import Model
from genmod.training.step import GradientState

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


class Checkpoints:
    """A folder of numbered checkpoints; the last `keep` stay.

    Use as a context manager, or call `close`. An `exclusive` one is its folder's only one until then: BlockingIOError where
    another process, or another run of this one, has it.
    """

    def __init__(self, directory: str | Path, keep: int = 2, exclusive: bool = False):
        self.directory = Path(directory).absolute()
        self._lock = _lock(self.directory) if exclusive else None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, note: dict[str, Any], **trees: Any) -> None:
        """Writes the trees and the note as checkpoint `step`; it exists whole or not at all."""
        note = note | {"arrays": {name: _layout(tree) for name, tree in trees.items()}}
        items = {name: ocp.args.StandardSave(arrays) for name, tree in trees.items() if (arrays := _numbered(tree))}
        self._manager.save(step, args=ocp.args.Composite(note=ocp.args.JsonSave(note), **items), force=True)
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The number of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def note(self, step: int) -> dict[str, Any]:
        """The JSON note of checkpoint `step`; raises ValueError if it cannot be read."""
        return self._restore(step, note=ocp.args.JsonRestore())["note"]

    def load(self, step: int, name: str, like: Any) -> Any:
        """The tree `name` of checkpoint `step`, in the structure, shapes, dtypes and on the devices of `like`.

        Raises ValueError where it differs from `like`, naming the first difference, and where it is damaged.
        """
        found, wanted = (dict(layout) for layout in (self.note(step)["arrays"].get(name, []), _layout(like)))
        place = next((place for place in [*wanted, *found] if found.get(place) != wanted.get(place)), None)
        if place is not None:
            raise ValueError(
                f"{name} of checkpoint {self.directory / str(step)} is of another kind: {name}{place} is "
                f"{found.get(place, 'not there')} there and {wanted.get(place, 'not there')} here"
            )
        leaves, structure = jax.tree.flatten(like)
        abstract = {number: _abstract(leaf) for number, leaf in _numbered(like).items()}
        arrays = self._restore(step, **{name: ocp.args.StandardRestore(abstract)})[name] if abstract else {}
        restored = [_restored(arrays.get(_number(i)), leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, restored)

    def arrays(self, step: int, name: str) -> dict[str, Any]:
        """The arrays of the tree `name` of checkpoint `step`, of any structure, by their places."""
        stored = self._restore(step, **{name: ocp.args.StandardRestore()})[name]
        places = [place for place, _ in self.note(step)["arrays"].get(name, [])]
        return {place: stored[_number(i)] for i, place in enumerate(places) if _number(i) in stored}

    def close(self) -> None:
        self._manager.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restore(self, step, **args):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"checkpoint {self.directory / str(step)} is damaged ({reason}); restore it from a copy, or move it away to go "
                "on from the one before"
            ) from error


def _lock(directory: Path) -> Any:
    """An open file that no other run holds while this one does; the system lets go of it when its process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / ".lock").open("a+")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise BlockingIOError(
            f"the checkpoint folder {directory} is in use by another run (process {owner}); wait for it, or choose another folder"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def save(path: str | Path, model: Model, params: Params) -> None:
    """Writes a model's parameters, with its description, to the folder `path` (replaced atomically if it exists).

    Raises TypeError for a model that cannot be described completely.
    """
    note = {"run": {"model": described("model", model)}}
    with Checkpoints(path, keep=1) as checkpoints:
        step = checkpoints.latest_step()
        checkpoints.save(0 if step is None else step + 1, note, params=params)


def load(path: str | Path, model: Model, like: Params | None = None) -> Params:
    """The parameters that `save` wrote for an equal `model`, or the best so far of a run that `fit(checkpoint=path)` saves.

    Args:
      path: the folder. model: an equal model, in this process or another.
      like: parameters, or their shapes, where those of `model.init` on one example event are not right.

    Raises FileNotFoundError where nothing is saved; ValueError, naming the first difference, for another model, and for a
    damaged file.
    """
    with _newest(path, f"no saved model at {path}") as (checkpoints, step):
        found = checkpoints.note(step).get("run", {}).get("model")
        if found is None:
            raise ValueError(f"{path} holds a training state without a model, not one that fit or gm.save wrote")
        check_same("model", found, described("model", model), f"the parameters in {path} are of another model")
        return checkpoints.load(step, "params", _shapes(model, checkpoints.note(step)) if like is None else like)


@contextlib.contextmanager
def _newest(path: str | Path, missing: str) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a folder and the number of the newest; FileNotFoundError, with this message, where there is none."""
    if not Path(path).is_dir():  # which `Checkpoints` would make
        raise FileNotFoundError(missing)
    with Checkpoints(path) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise FileNotFoundError(missing)
        yield checkpoints, step


def load_state(origin: Any, fresh: Any) -> Any:
    """The state of a step to go on from: that of a `Fit`, or of the newest checkpoint in a folder.

    Args:
      origin: the `Fit`, or the folder. fresh: the state of step 0, whose kind the other must be.

    Of the state of a `GradientStep` only the parameters must be: another optimizer starts anew, with a warning, and so does an
    average that was not kept. Raises FileNotFoundError for a folder without a checkpoint, ValueError for a state of another kind.
    """
    if hasattr(origin, "last_params"):
        found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(origin.state)}
        return _like(found, dict(_layout(origin.state)), fresh)
    with _newest(origin, f"no checkpoint to go on from at {origin}") as (checkpoints, step):
        layout = checkpoints.note(step)["arrays"].get("state", [])
        if layout == _layout(fresh):
            return checkpoints.load(step, "state", fresh)
        return _like(checkpoints.arrays(step, "state"), dict(layout), fresh)


def _like(found: dict[str, Any], layout: dict[str, str], fresh: Any) -> Any:
    """`fresh` with the arrays that were found in their places; whole fields of a `GradientState`, all of another state."""
    wanted = dict(_layout(fresh))

    def differs(prefix):
        places = [place for place in [*wanted, *layout] if place.startswith(prefix)]
        return next((place for place in places if wanted.get(place) != layout.get(place)), None)

    needed = ".params" if isinstance(fresh, GradientState) else ""
    if (place := differs(needed)) is not None:
        raise ValueError(
            f"state must be of the same kind: state{place} is {layout.get(place, 'not there')} there and "
            f"{wanted.get(place, 'not there')} here"
        )

    def taken(path, leaf):
        place = jax.tree_util.keystr(path)
        if needed and differs("." + place.split(".")[1].split("[")[0]) is not None:
            return leaf
        if leaf.size == 0 or _is_key(found[place]):
            return found.get(place, leaf)
        return _restored(jnp.copy(found[place]), leaf)

    state = jax.tree_util.tree_map_with_path(taken, fresh)
    if needed and differs(".opt_state") is not None:
        warnings.warn("the optimizer is another one than that of the state: its own part of the state starts anew", stacklevel=4)
    if needed and state.ema is not None and differs(".ema") is not None:
        state = state._replace(ema=jax.tree.map(jnp.copy, state.params))
    return state


def check_same(name: str, found: Any, wanted: Any, message: str) -> None:
    """Raises ValueError, the message and the first difference, where a checkpoint was written for something else."""
    difference = _first_difference(name, found, wanted)
    if difference:
        raise ValueError(
            f"{message}: {difference}; choose another folder, to which state=... of `fit` takes the state of this one"
        )


def described(name: str, value: Any) -> Any:
    """`describe(value)`; the TypeError for what cannot be described names the argument `name`."""
    try:
        return describe(value)
    except TypeError as error:
        raise TypeError(name + str(error).removeprefix("value")) from None


def _shapes(model: Model, note: dict[str, Any]) -> Params:
    """The shapes of a model's parameters, in the precision in which they were saved: that of their data."""

    def init(key):
        context = None if model.context_shape is None else np.zeros((1, *model.context_shape), np.float32)
        return model.layout(key, model.event.example(), None if context is None else jnp.asarray(context))

    saved = {place: kind.split("[")[0] for place, kind in note["arrays"].get("params", [])}

    def as_saved(path, leaf):
        found = saved.get(jax.tree_util.keystr(path), "")
        return jax.ShapeDtypeStruct(leaf.shape, found) if "float" in found and _is_float(leaf) else leaf

    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(as_saved, shapes)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _first_difference(name: str, found: Any, wanted: Any) -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = [(f"{name}.{k}", found.get(k), wanted.get(k)) for k in sorted(found.keys() | wanted.keys())]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(f"{name}[{i}]", f, w) for i, (f, w) in enumerate(zip(found, wanted, strict=True))]
    else:
        return None if found == wanted else f"{name} is {found!r} there and {wanted!r} here"
    return next((d for pair in pairs if (d := _first_difference(*pair))), None)


def _number(index: int) -> str:
    return f"{index:05d}"


def _numbered(tree: Any) -> dict[str, Any]:
    """The leaves by number, so that Orbax need not know our nodes; typed keys as their data, and none of size 0."""
    leaves = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return {_number(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def _restored(array: Any, like: Any) -> Any:
    if array is None:
        return jnp.zeros(like.shape, like.dtype)
    return jax.random.wrap_key_data(array, impl=like.dtype._impl.name) if _is_key(like) else array


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _layout(tree: Any) -> list[list[str]]:
    return [[jax.tree_util.keystr(path), f"{leaf.dtype}{list(leaf.shape)}"] for path, leaf in jax.tree.leaves_with_path(tree)]


def _abstract(leaf):
    # With its sharding, so that a checkpoint goes back to the devices that `like` lives on.
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
