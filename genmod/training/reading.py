"""From what users call data to pytrees of arrays with one leading axis, the rows; and their checks, once, at this door.

with a model's own loss     x, (x, context), (x, context, weight), or a dict of these names  ->  a `Batch` that fits the model
with a loss or step         any pytree of arrays whose leading axes agree                    ->  the same pytree
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.arrays import check_varying, column_names, to_array, to_context
from genmod.core.batching import Batch, to_batch
from genmod.core.checks import check_context, check_row_weight
from genmod.core.distribution import Likelihood
from genmod.core.rounding import warn_of_coarse_columns
from genmod.models.base import Model

_ARRAY_PROTOCOLS = ("__array__", "__jax_array__", "__dlpack__", "to_numpy", "detach")


def is_stream(data: Any) -> bool:
    """Whether data are an iterator or a loader of batches, not arrays and not a pytree of them."""
    if isinstance(data, Iterator):
        return True
    return isinstance(data, Iterable) and not isinstance(data, Mapping | list | tuple | str | bytes) and not _is_array(data)


def read_rows(name: str, data: Any) -> Any:
    """Any pytree of arrays, tables, tensors or lists of numbers as the same pytree of arrays whose leading axes agree."""
    places = jax.tree.leaves_with_path(data, is_leaf=_is_numbers)
    if not places:
        raise ValueError(f"{name} is empty")
    labels = [f"{name}{jax.tree_util.keystr(path)}" for path, _ in places]
    arrays = [to_array(label, _no_dataset(label, leaf)) for label, (_, leaf) in zip(labels, places, strict=True)]
    for label, array in zip(labels, arrays, strict=True):
        if array.ndim == 0:
            raise ValueError(f"{label} must have a leading axis, the rows, got a scalar")
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(
                f"the arrays of {name} must have as many rows each, got {arrays[0].shape[0]} in {labels[0]} and "
                f"{array.shape[0]} in {label}"
            )
    if arrays[0].shape[0] == 0:
        raise ValueError(f"{name} must hold at least one row, got shape {arrays[0].shape}")
    return jax.tree.unflatten(jax.tree.structure(data, is_leaf=_is_numbers), arrays)


@dataclasses.dataclass(frozen=True)
class Events:
    """The reader of a model's own loss: (name, data) -> Batch, checked against the model."""

    model: Model

    def __call__(self, name: str, data: Any) -> Batch:
        """The batch; raises TypeError or ValueError, in one sentence that names the part, for what does not fit the model."""
        x, context, weight = self._parts(name, data)
        x = self.model.event.check(name, to_array(name, _no_dataset(name, x)), batched=True)
        check_finite(name, x)
        context = self._context(name, context, x.shape[0])
        weight = None if weight is None else check_row_weight(f"the weight of {name}", weight, x.shape[0])
        return Batch(x, context, weight)

    def check_table(self, name: str, data: Any) -> None:
        """Refuses constant columns where a density is to be learnt, which has no largest value there; warns of whole numbers."""
        x = self._parts(name, data).x
        if self.model.likelihood <= Likelihood.LOWER_BOUND:
            array, names = to_array(name, x), column_names(x)
            check_varying(name, array, names)
            warn_of_whole_numbers(name, array, names)

    def _parts(self, name, data):
        if isinstance(data, list) and data and _is_array(data[0]) and np.ndim(data[0]) == len(self.model.event_shape) + 1:
            data = tuple(data)  # loaders make lists of the parts
        return _parts(name, data)

    def _context(self, name, context, num):
        shape = self.model.context_shape
        if shape is None and context is not None:
            raise ValueError(
                f"{name} must be x alone, or (x, None, weight): {type(self.model).__name__} takes no context; "
                "build it with context_shape=..."
            )
        if shape is None:
            return None
        if context is None:
            raise ValueError(f"{name} must be a pair (x, context), context of shape (n,) + {shape}, for this model")
        context = check_context(type(self.model).__name__, context, shape, batch=(num,), name=f"the context of {name}")
        check_finite(f"the context of {name}", context)
        if jnp.issubdtype(context.dtype, jnp.integer) and context.dtype.itemsize >= 4 and _on_host(context):
            warn_of_coarse_columns(f"the context of {name}", np.asarray(context))
        return context


def _parts(name: str, data: Any) -> Batch:
    """x, context and weight as the user gave them."""
    if isinstance(data, Mapping):
        unknown = [key for key in data if key not in Batch._fields]
        if unknown or "x" not in data:
            raise ValueError(
                f"{name} must be a dict of x and, where there are any, context and weight, got {list(data)}; "
                "with loss_fn= or step= it may be any pytree"
            )
        return Batch(**data)
    return to_batch(name, data)


def check_finite(name: str, array: Any) -> None:
    """Raises ValueError, naming the first row, for NaN and infinite values."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    xp = np if _on_host(array) else jnp
    array = np.asarray(array) if xp is np else array
    if not xp.isfinite(array).all():
        bad = np.flatnonzero(~np.asarray(xp.isfinite(array).reshape(array.shape[0], -1).all(1)))
        raise ValueError(f"{name} has {len(bad)} rows with NaN or infinite values, the first is row {bad[0]}")


def _on_host(array: Any) -> bool:
    """Whether NumPy reads it without a transfer: its own arrays, and those on one CPU, where JAX would compile a program."""
    return not isinstance(array, jax.Array) or (len(array.devices()) == 1 and next(iter(array.devices())).platform == "cpu")


def warn_of_rounding(name: str, data: Any) -> None:
    """Warns, once, of a column of float64 that float32 does not resolve: its range is below 1,000 roundings of its values."""
    if jnp.result_type(float) == np.float64:
        return
    for path, leaf in jax.tree.leaves_with_path(data, is_leaf=_is_numbers):
        array, label = to_context(name, leaf), name + jax.tree_util.keystr(path)
        if array.dtype == np.float64 and warn_of_coarse_columns(label, array, column_names(leaf)):
            return


def warn_of_whole_numbers(name: str, x: Any, names: Sequence[str] | None = None) -> None:
    """Warns of columns of real x, (n, d), that hold whole numbers alone, and of one that counts the rows.

    As for constant columns a density has no largest value there: a peak on each number pays more the narrower it is.
    """
    if x.ndim != 2 or len(x) < 20 or not jnp.issubdtype(x.dtype, jnp.floating):
        return
    some = np.asarray(x[:1_000], np.float64)
    columns = {int(i): np.asarray(x[:, int(i)], np.float64) for i in np.flatnonzero((some == np.floor(some)).all(0))}
    index = 0 in columns and bool((np.diff(columns[0]) == 1).all())
    whole = [0] if index else [i for i, column in columns.items() if _whole(column)]
    if not whole:
        return
    of = [f"column {names[i] if names else i}" for i in whole[:5]]
    if index:
        says = f"{of[0]} of {name} counts the rows: it is an index, not data; drop it"
    else:
        says = (
            f"{', '.join(of)} of {name} hold{'s' * (len(whole) == 1)} whole numbers alone; a density of real numbers grows "
            "without bound on them, so that log_prob means little: add uniform noise in [0, 1), or drop what is a label"
        )
    warnings.warn(says, stacklevel=2)


def _whole(column: np.ndarray) -> bool:
    # Large whole numbers with few repeats are measurements that were rounded: of times, populations, prices.
    return bool((column == np.floor(column)).all()) and len(np.unique(column)) < 0.5 * len(column)


def _no_dataset(name: str, data: Any) -> Any:
    """data, unless they are a data set with parts, or one whose rows are had one by one."""
    if getattr(data, "train", None) is not None and getattr(data, "test", None) is not None:
        raise TypeError(f"{name} must be arrays, got a {type(data).__name__}; pass its .train or .validation")
    rows = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if rows and not isinstance(data, Sequence | Mapping | str) and not _is_array(data):
        raise TypeError(
            f"{name} must be arrays or an iterable of batches, got a {type(data).__name__}; put it in a loader that makes batches"
        )
    if isinstance(data, Model):
        raise TypeError(f"{name} must be arrays, got a {type(data).__name__}")
    return data


def _is_array(data: Any) -> bool:
    return any(hasattr(data, protocol) for protocol in _ARRAY_PROTOCOLS)


def _is_numbers(node: Any) -> bool:
    """Whether a list is one array written out, not a list of arrays."""
    return isinstance(node, list) and bool(node) and all(isinstance(entry, int | float) or _is_numbers(entry) for entry in node)
