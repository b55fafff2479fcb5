"""Columns of numbers that float32 does not resolve: a range below 1,000 roundings of the values, such as times since an epoch."""

import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np


def warn_of_coarse_columns(name: str, array: np.ndarray, columns: Sequence[str] | None = None) -> bool:
    """Warns of the first column of rows, (n, ...), that loses its digits as float32, where that is JAX's precision.

    Args:
      name: of the array, in the message.
      array: float64 or integers, at least one row.
      columns: their names; None: by number.

    Returns whether it warned.
    """
    if jnp.result_type(float) == np.float64 or not array.size:
        return False
    flat = array.reshape(array.shape[0], -1)
    low, high = flat.min(0).astype(np.float64), flat.max(0).astype(np.float64)
    limit = 1e3 * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
    coarse = np.flatnonzero((high > low) & (high - low < limit))
    if not len(coarse):
        return False
    column = coarse[0]
    warnings.warn(
        f"{_place(column, array.shape[1:], columns)}{name} lies between {low[column]:.9g} and {high[column]:.9g}, which float32 "
        "resolves only coarsely; standardise it on the host in float64, units = gm.data.Units.of(x) and units.to(x), or set "
        "jax_enable_x64",
        stacklevel=3,
    )
    return True


def _place(index: int, shape: tuple[int, ...], columns: Sequence[str] | None) -> str:
    if not shape:
        return ""
    place = [int(i) for i in np.unravel_index(index, shape)]
    return f"column {columns[index] if columns else place[0] if len(place) == 1 else tuple(place)} of "
