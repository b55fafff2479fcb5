"""Checkpoints by Orbax: atomic (a half-written one does not exist), verified on loading, and data only (no code, no pickle)."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from genmod.base import Params, describe


class Checkpoints:
    """A folder of numbered checkpoints of one pytree and a JSON note; the last `keep` stay.

    Use as a context manager, or call `close`.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, tree: Any, note: dict[str, Any]) -> None:
        """Writes `tree` and `note` as checkpoint `step`; it exists whole or not at all."""
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), note=ocp.args.JsonSave(note))
        self._manager.save(step, args=args, force=True)
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The number of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def note(self, step: int) -> dict[str, Any]:
        """The JSON note of checkpoint `step`; raises ValueError if it cannot be read."""
        return self._restore(step, note=ocp.args.JsonRestore())["note"]

    def load(self, step: int, like: Any) -> Any:
        """The tree of checkpoint `step`, in the structure, shapes and dtypes of `like`; raises ValueError if it differs."""
        return self._restore(step, tree=ocp.args.StandardRestore(jax.tree.map(_abstract, like)))["tree"]

    def close(self) -> None:
        self._manager.close()

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
                f"checkpoint {self.directory / str(step)} is damaged or of another model ({reason}); "
                "delete that folder to start from the one before, or choose another folder"
            ) from error


def save(path: str | Path, model: Any, params: Params) -> None:
    """Writes a model's parameters, with its description, to the folder `path` (replaced atomically if it exists)."""
    with Checkpoints(path, keep=1) as checkpoints:
        step = checkpoints.latest_step()
        checkpoints.save(0 if step is None else step + 1, params, {"model": describe(model)})


def load(path: str | Path, model: Any, like: Params) -> Params:
    """The parameters that `save` wrote for an equal `model`; `like` gives their shapes (`model.init(...)`).

    Raises FileNotFoundError where nothing is saved, ValueError for another model or a damaged file.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no saved model at {path}")
    with Checkpoints(path, keep=1) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise FileNotFoundError(f"no saved model at {path}")
        check_same("model", checkpoints.note(step).get("model"), describe(model), path)
        return checkpoints.load(step, like)


def check_same(name: str, found: Any, wanted: Any, path: str | Path) -> None:
    """Raises ValueError, naming the first difference, where a checkpoint was written for something else."""
    difference = _first_difference(name, found, wanted)
    if difference:
        raise ValueError(f"the checkpoint in {path} is of another run: {difference}; choose another folder or delete it")


def _first_difference(name: str, found: Any, wanted: Any) -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = [(f"{name}.{k}", found.get(k), wanted.get(k)) for k in sorted(found.keys() | wanted.keys())]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(f"{name}[{i}]", f, w) for i, (f, w) in enumerate(zip(found, wanted, strict=True))]
    else:
        return None if found == wanted else f"{name} is {found!r} there and {wanted!r} here"
    return next((d for pair in pairs if (d := _first_difference(*pair))), None)


def _abstract(leaf):
    # With its sharding, so that a checkpoint goes back to the devices that `like` lives on.
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
