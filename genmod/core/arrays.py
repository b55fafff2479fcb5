"""From what people have to arrays of NumPy or JAX: tables, columns, tensors, lists.

No package of tables or tensors is imported. A table is what has `columns` and `to_numpy` (pandas, polars), a column what has
`to_numpy` (their series and indices), a tensor what has `detach` and `cpu` (PyTorch); everything else says what it is by
`__dlpack__` or `__array__`.

A density of real numbers grows without bound on values that repeat, as a narrow peak on each of them pays: on integers among
the columns of a table, and on a column that is constant. Both are refused by name, as are columns that hold no numbers.
"""

import datetime
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ColumnKind(enum.Enum):
    """What a column holds: the word for it, and what to do where a density of real numbers is wanted."""

    REAL = ("real numbers", "")
    INTEGERS = (
        "integers",
        "a density of real numbers would grow without bound on them: cast {it} to float if {measured}, "
        "dequantise {it} (add uniform noise), or drop {it}",
    )
    BOOLEANS = (
        "booleans",
        "a density of real numbers would grow without bound on them: dequantise {it} (add uniform noise), or drop {it}",
    )
    TEXT = ("text", "encode {it} as numbers, or drop {it}")
    CATEGORIES = ("categories", "encode {it} as numbers, or drop {it}")
    DATES = ("dates", "convert {it} to numbers, such as days since the first, or drop {it}")
    DURATIONS = ("time spans", "convert {it} to numbers, such as seconds, or drop {it}")
    COMPLEX = ("complex numbers", "take real and imaginary parts, or drop {it}")
    OBJECTS = ("objects", "convert {it} to numbers, or drop {it}")


_CODES = {
    **dict.fromkeys("iu", ColumnKind.INTEGERS),
    **dict.fromkeys("SU", ColumnKind.TEXT),
    "f": ColumnKind.REAL,
    "b": ColumnKind.BOOLEANS,
    "M": ColumnKind.DATES,
    "m": ColumnKind.DURATIONS,
    "c": ColumnKind.COMPLEX,
}
_TYPES = (
    (bool, ColumnKind.BOOLEANS),
    (str, ColumnKind.TEXT),
    (datetime.date, ColumnKind.DATES),
    (datetime.timedelta, ColumnKind.DURATIONS),
)
_DTYPES = {
    ColumnKind.REAL: np.float64,
    ColumnKind.INTEGERS: np.int64,
    ColumnKind.BOOLEANS: np.bool_,
}  # of numbers that came as objects


class Column(NamedTuple):
    """A column of n rows: its name as messages show it ("" for none), what it holds, its values (n,), how many of them are
    missing, and an example for the message ("'red' in row 3")."""

    name: str
    kind: ColumnKind
    values: np.ndarray
    num_missing: int = 0
    example: str = ""


def to_array(name: str, value: Any) -> Any:
    """`value` as an array of events: tables (n, d), columns (n,), tensors, lists and numbers; NumPy and JAX arrays as they are.

    Real columns of several precisions take the highest. A table of integers alone is one of integers, of booleans alone one of
    booleans. bfloat16 of PyTorch becomes float32.

    Raises TypeError for what is no array of numbers and for integers or booleans among real columns, ValueError for missing
    values. Both name `name` and the column.
    """
    return _convert(name, value, _join_events)


def to_context(name: str, value: Any) -> Any:
    """`value` as an array of contexts: as `to_array`, but integers and booleans among real columns become real numbers.

    A model is conditional on a context and has no density of it, so it may repeat. Raises as `to_array`.
    """
    return _convert(name, value, _join_contexts)


def column_names(value: Any) -> list[str] | None:
    """The names of the columns of a table as messages show them, None for what is no table."""
    return [repr(label) for label in value.columns] if is_table(value) else None


def check_varying(name: str, x: Any, columns: Sequence[str] | None = None) -> None:
    """Raises ValueError for the constant columns of real x, (n, d), by the names in `columns` (None: by number).

    For data from which a density is to be learnt; where one is evaluated, a column may well be constant.
    """
    if x.ndim != 2 or len(x) < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        return
    constant = np.flatnonzero(np.asarray((x == x[:1]).all(0)))
    if len(constant):
        names = [str(i) if columns is None else columns[i] for i in constant.tolist()]
        are, them = ("is", "it") if len(names) == 1 else ("are", "them")
        subject = _subject(name, names)
        raise ValueError(f"{subject} {are} constant; a density of real numbers would grow without bound there: drop {them}")


def table_columns(table: Any) -> list[Column]:
    """The columns of a table."""
    items = table.items() if hasattr(table, "items") else zip(table.columns, table.get_columns(), strict=True)
    return [_column(repr(label), column) for label, column in items]


def join_real(name: str, columns: Sequence[Column]) -> np.ndarray:
    """Real columns as an array (n, d).

    Raises TypeError for columns that hold anything else, ValueError for missing values, both by the names of the columns.
    """
    _check_numbers(name, columns)
    for kind in (ColumnKind.INTEGERS, ColumnKind.BOOLEANS):
        if found := [column.name for column in columns if column.kind is kind]:
            raise refusal(name, kind, found)
    return _stack(columns)


def _join_events(name: str, columns: Sequence[Column]) -> np.ndarray:
    if any(column.kind is ColumnKind.REAL for column in columns):
        return join_real(name, columns)
    return _join_contexts(name, columns)


def _join_contexts(name: str, columns: Sequence[Column]) -> np.ndarray:
    _check_numbers(name, columns)
    return _stack(columns)


def _check_numbers(name: str, columns: Sequence[Column]) -> None:
    if not columns:
        raise ValueError(f"{name} must have at least one column, got a table without any")
    for kind in ColumnKind:
        if kind not in _DTYPES and (found := [column for column in columns if column.kind is kind]):
            raise refusal(name, kind, [column.name for column in found], found[0].example)
    if found := [column for column in columns if column.num_missing]:
        have, up_to = ("has", "") if len(found) == 1 else ("have", "up to ")
        rows = f"{up_to}{max(column.num_missing for column in found)} of {len(found[0].values)} rows"
        subject = _subject(name, [column.name for column in found])
        raise ValueError(f"{subject} {have} missing values (NaN, None or NA) in {rows}; fill them, or drop the rows")


def _stack(columns: Sequence[Column]) -> np.ndarray:
    real = [column.values.dtype for column in columns if column.kind is ColumnKind.REAL]
    dtype = np.result_type(*(real or [column.values.dtype for column in columns]))
    if not real and dtype.kind == "f":  # what NumPy makes of int64 and uint64
        dtype = np.dtype(np.int64)
    return np.stack([column.values.astype(dtype, copy=False) for column in columns], axis=1)


def column_kind(dtype: Any) -> ColumnKind:
    """What an array of this dtype holds."""
    return ColumnKind.REAL if jnp.issubdtype(dtype, jnp.floating) else _CODES.get(dtype.kind, ColumnKind.OBJECTS)


def refusal(name: str, kind: ColumnKind, columns: Sequence[str] = (), example: str = "") -> TypeError:
    """The error that says what these columns of the argument `name` hold, all of it without columns, and the remedy."""
    noun, remedy = kind.value
    several = len(columns) > 1
    it = "them" if several else "it"
    remedy = remedy.format(it=it, measured="they are measurements" if several else "it is a measurement")
    holds = f"{'hold' if several else 'holds'} {noun}{example and f' ({example})'}"
    return TypeError(f"{_subject(name, columns)} {holds}; {remedy}")


def _subject(name: str, columns: Sequence[str]) -> str:
    """What a message speaks of: the argument and at most five of its columns, for a table may have hundreds."""
    if not any(columns):
        return name
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return f"{name}: {'column' if len(columns) == 1 else 'columns'} {', '.join(columns[:5])}{more}"


def _convert(name: str, value: Any, joined: Callable[[str, Sequence[Column]], np.ndarray]) -> Any:
    if type(value) is np.ndarray or isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ma.MaskedArray):
        if num := int(np.ma.count_masked(value)):
            raise ValueError(f"{name} has {num} masked values; fill them, or drop the rows")
        return value.data
    if is_table(value):
        return joined(name, table_columns(value))
    if hasattr(value, "to_numpy") and (hasattr(value, "isna") or hasattr(value, "is_null")):
        label = getattr(value, "name", None)
        column = _column("" if label is None else repr(label), value)
        return joined(name, [column])[:, 0]
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return _from_torch(value.detach().cpu())
    if hasattr(value, "__jax_array__"):
        return jnp.asarray(value)
    return _from_dlpack(value) if hasattr(value, "__dlpack__") else _from_others(name, value)


def is_table(value: Any) -> bool:
    """Whether `value` is a table of named columns, as those of pandas and polars."""
    # Of the class: a series of pandas shows its labels as attributes.
    return hasattr(value, "to_numpy") and hasattr(type(value), "columns")


def _column(name: str, column: Any) -> Column:
    """A series or an index of pandas, polars, or another that has their methods."""
    values = np.asarray(column.to_numpy())
    missing = np.zeros(values.shape, bool)
    for method in ("isna", "is_null"):
        if hasattr(column, method):
            missing = missing | np.asarray(getattr(column, method)())
    if values.dtype.kind == "f":
        missing = missing | np.isnan(values)
    present = np.flatnonzero(~missing)
    kind = _kind(column.dtype, values, present)
    if kind in _DTYPES and values.dtype == object and len(present) == len(values):
        values = values.astype(_DTYPES[kind])
    example = f"'{values[present[0]]!s:.30}' in row {present[0]}" if len(present) and kind not in _DTYPES else ""
    return Column(name, kind, values, len(values) - len(present), example)


def _kind(dtype: Any, values: np.ndarray, present: np.ndarray) -> ColumnKind:
    if hasattr(dtype, "categories"):
        return ColumnKind.CATEGORIES
    if values.ndim != 1:  # entries that are lists or records
        return ColumnKind.OBJECTS
    code = getattr(dtype, "kind", values.dtype.kind)  # pandas knows numbers that come as objects, NumPy those of polars
    if code in _CODES:
        return _CODES[code]
    if not len(present):
        return ColumnKind.REAL  # nothing but missing values, which is what the message will be about
    first = values[present[0]]
    return next((kind for of, kind in _TYPES if isinstance(first, of)), ColumnKind.OBJECTS)


def _from_torch(tensor: Any) -> np.ndarray:
    try:
        return tensor.numpy()
    except TypeError:  # NumPy has no bfloat16
        return tensor.float().numpy()


def _from_dlpack(value: Any) -> Any:
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError):  # it lies on another device, or has a dtype that NumPy lacks
        return jnp.from_dlpack(value)


def _from_others(name: str, value: Any) -> Any:
    try:
        array = np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # a list of arrays, while they are traced
        return jnp.asarray(value)
    except ValueError as error:  # ragged lists
        raise TypeError(f"{name} must be an array of numbers, got a {type(value).__name__} that is none: {error}") from None
    if not (array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, jnp.number)):
        entries = f" of {array.dtype}" if array.ndim else ""
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}{entries}")
    return array
