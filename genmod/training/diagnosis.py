"""Why a loss is not finite at the start: the rows, and the columns of their values, that the model cannot explain."""

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.batching import Batch
from genmod.core.types import Key, Params
from genmod.models.base import Model

_MOST_ROWS = 2_000


class NotFinite(FloatingPointError):
    """Training has stopped. `step`: its number; `params`: the last that were finite."""

    def __init__(self, message: str, step: int, params: Params):
        super().__init__(message)
        self.step, self.params = step, params


def diagnosis(model: Model, params: Params, key: Key, batch: Batch) -> str:
    """A sentence on the rows whose own loss is not finite, "" where there are none or the model cannot say.

    Args:
      model, params: with which the loss is not finite.
      key: of the loss.
      batch: rows of data, of which the first 2,000 are looked at.
    """
    x = batch.x[:_MOST_ROWS]
    context, weight = (None if part is None else part[:_MOST_ROWS] for part in (batch.context, batch.weight))
    keep = None if weight is None else np.asarray(weight) > 0

    def loss(x, context):
        row = Batch(x[None], None if context is None else context[None])
        return model.loss(params, key, row)[0]

    try:
        losses = np.asarray(jax.jit(jax.vmap(loss, (0, None if context is None else 0)))(x, context))
    except Exception:  # a loss that wants a whole batch: the message goes out without this sentence
        return ""
    bad = ~np.isfinite(losses) & (True if keep is None else keep)
    if not bad.any():
        return ""
    rows = np.flatnonzero(bad)
    sentence = f" The loss is not finite at {len(rows):,} of the first {len(losses):,} rows, first at row {rows[0]}"
    flat = np.asarray(x.reshape(x.shape[0], -1)) if jnp.issubdtype(x.dtype, jnp.floating) else None
    if flat is not None:
        low, high = _range(model, flat[~bad])
        outside = np.flatnonzero((flat[rows[0]] <= low) | (flat[rows[0]] >= high))[:5]
        if len(outside):
            values = ", ".join(f"column {i} = {flat[rows[0], i]:.6g}" for i in outside)
            known = "" if model.support is None else f", outside of the model's support {model.support}"
            sentence += f" ({values}{known})"
    return sentence + "."


def _range(model: Model, good: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    """Between what values lie."""
    if model.support is not None:
        return model.support
    return (good.min(0), good.max(0)) if len(good) else (-np.inf, np.inf)
