"""Real tables as data sets: rows are events, columns are dimensions.

`table` takes a file, a table of pandas or polars, or an array; `digits`, `breast_cancer` and `wine` come with scikit-learn;
`miniboone` is read from the folder named by GENMOD_DATA. Nothing is scaled here: a change of units moves every log-density, so
models standardise inside themselves. Their densities are unknown, so `.log_prob` and `.entropy` are None.

Refused by name, because no density of real numbers exists there: columns of integers, of booleans, of text, of dates, and
constant ones; missing and infinite values.
"""

import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from genmod.core.arrays import (
    ColumnKind,
    check_varying,
    column_kind,
    is_table,
    join_real,
    refusal,
    table_columns,
    to_array,
)
from genmod.core.rounding import warn_of_coarse_columns
from genmod.data.dataset import Dataset, split
from genmod.data.files import data_file, read, sklearn_datasets

_MIN_ROWS = 10
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def table(source: Any, seed: int = 0) -> Dataset:
    """A table (n, d), split 80/10/10 with `seed`.

        data = gm.data.table("my.csv")
        data = gm.data.table(pandas.read_csv("my.csv").drop(columns="city").astype({"age": float}))

    Args:
      source: the path of a .npy, .npz or .csv file, a table of pandas or polars, or an array. A .csv may have a header row. A
        .npz holds one array, or arrays `train`, `validation` (or `val`, `valid`) and `test`, which are kept as they are. An
        array (n,) is taken as (n, 1).

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: a column holds integers, booleans, text, dates or objects.
        ValueError: a column is constant; values are missing or infinite; wrong rank, fewer than 10 rows; unknown suffix,
            splits of different width, unknown .npz keys.
    """
    if is_table(source):
        columns = table_columns(source)
        x = _checked(join_real("source", columns), "source", [column.name for column in columns])
        return Dataset("table", *map(_array, split(x, seed=seed)))
    if isinstance(source, str | os.PathLike):
        return _read_table(pathlib.Path(source), seed)
    return Dataset("table", *map(_array, split(_checked(np.asarray(to_array("source", source)), "source"), seed=seed)))


def _read_table(path: pathlib.Path, seed: int) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give the path of a .npy, .npz or .csv table")
    arrays, columns = read(path)
    if len(arrays) == 1:
        ((key, x),) = arrays.items()
        where = path.name if key == "" else f"{path.name}[{key!r}]"
        return Dataset(path.stem, *map(_array, split(_checked(x, where, columns), seed=seed)))
    found = {name: [k for k in keys if k in arrays] for name, keys in _SPLITS.items()}
    if any(len(keys) != 1 for keys in found.values()) or len(arrays) != 3:
        raise ValueError(
            f"{path.name} must hold one array, or train, validation and test, got {sorted(arrays)}; save it with "
            "numpy.savez(path, train=..., validation=..., test=...)"
        )
    parts = [
        _checked(arrays[keys[0]], f"{path.name}[{keys[0]!r}]", None, _MIN_ROWS if name == "train" else 1)
        for name, keys in found.items()
    ]
    if len({x.shape[1] for x in parts}) != 1:
        raise ValueError(
            f"the splits of {path.name} must have equally many columns, got {', '.join(str(x.shape[1]) for x in parts)}; save "
            "the same columns in each"
        )
    return Dataset(path.stem, *map(_array, parts))


def miniboone(seed: int = 0) -> Dataset:
    """MINIBOONE, 43 columns, in a small-data protocol: 2956 / 328 / 3648 rows.

    The published validation split is cut 90/10 with `seed` into train and validation,
    and `test` is the published test split, with the preprocessing of Papamakarios et al.
    (2017). Numbers are NOT comparable with those of models trained on the full 29556 rows.

    Raises:
        FileNotFoundError: GENMOD_DATA is not set, or lacks the file.
        ValueError: the file does not hold `val` and `test`.
    """
    path = data_file("miniboone/miniboone_val_test.npz")
    arrays, _ = read(path)
    if not {"val", "test"} <= set(arrays):
        raise ValueError(f"{path.name} must hold 'val' and 'test', got {sorted(arrays)}; fetch it again")
    val, test = (_checked(arrays[k], f"{path.name}[{k!r}]") for k in ("val", "test"))
    order = np.random.default_rng(seed).permutation(len(val))
    num_train = len(val) - len(val) // 10
    return Dataset("miniboone", *map(_array, (val[order[:num_train]], val[order[num_train:]], test)))


def digits(seed: int = 0) -> Dataset:
    """scikit-learn's 8 x 8 digits, 1797 x 64, dequantised to x = (k + U[0, 1)) / 17.

    k in 0..16 is the grey level and the noise is always the same, so x is in [0, 1). A
    model's E[log p(x)] - 64 log 17 is a LOWER bound on its log-probability of the integers.
    Split 80/10/10 with `seed`.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    levels = sklearn_datasets().load_digits().data
    noise = np.random.default_rng(0).random(levels.shape)
    return _split_dataset("digits", (levels + noise) / 17, seed)


def breast_cancer(seed: int = 0) -> Dataset:
    """The Wisconsin diagnostic breast cancer table, 569 x 30, raw units, split 80/10/10.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    return _split_dataset("breast_cancer", sklearn_datasets().load_breast_cancer().data, seed)


def wine(seed: int = 0) -> Dataset:
    """The UCI wine table, 178 x 13, raw units, split 80/10/10 with `seed`.

    Values are rounded (proline to integers), so a very flexible model can overfit the grid.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    return _split_dataset("wine", sklearn_datasets().load_wine().data, seed)


def _split_dataset(name: str, x: np.ndarray, seed: int) -> Dataset:
    return Dataset(name, *map(_array, split(_checked(x, name), seed=seed)))


def _array(x: np.ndarray) -> Any:
    return jnp.asarray(x, jnp.result_type(float))


def _checked(x: np.ndarray, where: str, columns: list[str] | None = None, min_rows: int = _MIN_ROWS) -> np.ndarray:
    """x as a float table (n, d) with n >= min_rows, finite entries and no constant column, or a clear error."""
    kind = column_kind(x.dtype)
    if kind is not ColumnKind.REAL:
        raise refusal(where, kind, (), str(x.dtype))
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2:
        raise ValueError(f"{where} must have shape (rows, columns), got {x.shape}; reshape it to two axes")
    if len(x) < min_rows or not x.size:
        raise ValueError(f"{where} must have at least {min_rows} rows and one column, got shape {x.shape}")
    with np.errstate(over="ignore"):  # a value too large for JAX's float type becomes inf
        bad = np.argwhere(~np.isfinite(x.astype(jnp.result_type(float))))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        name = column if columns is None else columns[column]
        raise ValueError(
            f"{where} must be finite, got {len(bad)} values that are not, the first ({x[row, column]}) in row {row} (from 0) of "
            f"column {name}; drop or fill them"
        )
    check_varying(where, x, columns)
    if x.dtype == np.float64:
        warn_of_coarse_columns(where, x, columns)
    return x
