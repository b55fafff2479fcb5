"""Class labels as contexts: a model with context_shape = (K,), K >= 2, takes integers 0 .. K - 1 in the place of one-hot vectors.

    labels of shape batch  ->  one-hot vectors of shape batch + (K,)          bools are the labels of two classes

Integers of shape batch + (K,) are contexts of K numbers each, such as one-hot vectors or counts. Where neither is sure they are
refused. A one-hot row takes 4 K bytes: a million rows of 1,000 classes are 4 GB.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.core.types import Shape


def takes_labels(context_shape: Shape) -> bool:
    """Whether class labels may stand for contexts of this shape."""
    return len(context_shape) == 1 and context_shape[0] >= 2


def labels_as_one_hot(name: str, context: Any, context_shape: Shape, batch: Shape | None) -> Any:
    """The context, one-hot where it holds class labels, else as it is.

    Args:
      name: of the argument, in messages.
      context: an array. context_shape: of one context.
      batch: the axes of the events, which labels have or broadcast against; None where there are no events.

    Raises ValueError for labels that are known to lie outside of 0 .. K - 1, and for integers that could be either. A label that
    lies outside while it is being traced becomes NaN.
    """
    if not takes_labels(context_shape):
        return context
    num = context_shape[0]
    if not (jnp.issubdtype(context.dtype, jnp.integer) or (num == 2 and context.dtype == bool)):
        return context
    if context.shape != batch:
        if batch is not None and context.shape == batch + context_shape:
            return context
        if context.shape[-1:] == context_shape:
            raise ValueError(
                f"{name} of shape {context.shape} and {context.dtype} could be class labels, or contexts of {num} numbers: pass "
                f"jax.nn.one_hot(labels, {num}) for labels, or cast contexts to float"
            )
        if batch is not None and context.shape == (*batch, 1):
            raise ValueError(f"class labels in {name} must have shape {batch}, that of the events, got a column, {context.shape}")
    _check_range(name, context, num)
    return _one_hot(context, num)


def _check_range(name: str, labels: Any, num: int) -> None:
    if isinstance(labels, Tracer):
        return
    known = np.asarray(labels)
    known = known if known.dtype.itemsize == 8 else known.astype(np.int64)
    wrong = np.unique(known[(known < 0) | (known >= num)])
    if wrong.size:
        some = ", ".join(map(str, wrong[:5].tolist())) + (", ..." if wrong.size > 5 else "")
        raise ValueError(f"class labels in {name} must be in 0..{num - 1} with context_shape=({num},), got {some}")


def _one_hot(labels: Any, num: int) -> Any:
    dtype = jnp.result_type(float)
    if not isinstance(labels, jax.Array):  # of the host, where they stay
        rows = np.zeros((*labels.shape, num), dtype)
        np.put_along_axis(rows, np.asarray(labels, np.intp)[..., None], 1, -1)
        return rows
    labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)  # a small type may not hold `num`
    classes = jnp.arange(num, dtype=labels.dtype).reshape((1,) * labels.ndim + (num,))
    known = (labels >= 0) & (labels < num)
    return jnp.where(known[..., None], (labels[..., None] == classes).astype(dtype), jnp.nan)
