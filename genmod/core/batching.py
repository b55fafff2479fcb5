"""From one event to batches. Hooks see ONE event; everything here is about the axes in front of it.

`vmap_events` is a `jax.vmap` whose axis has a name. By that name an adaptive ODE solve finds the other events of its batch
and takes one step size for all; under a plain `jax.vmap` each event is solved by itself.

`over_events` turns a hook into a public method: the arguments are checked at this one door, and batch axes are added, reshaped
and taken away inside of one compiled program.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.types import Array, Key, Shape

EVENTS = "genmod_events"


class Batch(NamedTuple):
    """Rows of data: events x, (n,) + event_shape; contexts, (n,) + context_shape, or None; weights of the rows, (n,), or None."""

    x: Any
    context: Any = None
    weight: Any = None


def to_batch(name: str, data: Any) -> Batch:
    """`data` as a Batch, unchecked: a Batch as it is, else x, (x, context) or (x, context, weight).

    Raises TypeError for another NamedTuple, whose third field is no weight, and ValueError for a tuple of another length.
    """
    if isinstance(data, Batch):
        return data
    if not isinstance(data, tuple):
        return Batch(data)
    if type(data) is not tuple:
        raise TypeError(
            f"{name} must be x, (x, context) or gm.Batch(x, context, weight), got {type(data).__name__}, which wants a loss that "
            "knows its fields: pass loss_fn=... (for gm.models.Padded, loss_fn=model.padded_loss), or make a gm.Batch of it"
        )
    if not 1 <= len(data) <= 3:
        raise ValueError(f"{name} must be x, (x, context) or (x, context, weight), got a tuple of {len(data)}")
    return Batch(*data)


def vmap_events(fn: Callable, in_axes: Any = 0) -> Callable:
    """`jax.vmap` over events."""
    return jax.vmap(fn, in_axes, axis_name=EVENTS)


def row_keys(key: Key | None, num: int) -> Any:
    """One key for each of `num` rows, (num,); that of a row does not depend on how many there are. None of None."""
    return None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))


def vmap_blocks(fn: Callable, *batched: Any, blocks: bool = True) -> Any:
    """`vmap_events(fn)` over the leading axis, on CPU in blocks that stay in the cache (1.5 times faster).

    A block has about 1,000 rows, fewer where events are large. None among the arguments is passed on as it is, and so are
    pytrees of batched arrays. blocks=False: all rows at once, each on the device where it lies.
    """
    leaves = jax.tree.leaves(batched)
    axes = tuple(None if a is None else 0 for a in batched)
    num, shape = leaves[0].shape[0], leaves[0].shape[1:]
    if isinstance(num, int) and num == 0:  # an adaptive solve has no step size for no events
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), batched)
        return jax.tree.map(lambda a: jnp.zeros((0, *a.shape[1:]), a.dtype), jax.eval_shape(vmap_events(fn, axes), *one))
    if not blocks or not isinstance(num, int):  # `jax.export` may leave the number of rows open
        return vmap_events(fn, axes)(*batched)
    size = max(16, min(1_000, 2**16 // max(1, math.prod(shape))))
    num_blocks = max(1, round(num / size)) if jax.default_backend() == "cpu" else 1
    if num_blocks == 1:
        return vmap_events(fn, axes)(*batched)
    rows = -(-num // num_blocks)
    padding = num_blocks * rows - num  # filled with the first rows, cut off again below

    def cut(a):
        return jnp.concatenate([a, a[:padding]]).reshape(num_blocks, rows, *a.shape[1:])

    out = jax.lax.map(lambda block: vmap_events(fn, axes)(*block), jax.tree.map(cut, batched))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num], out)


def broadcast_rows(shape: Shape, *arguments: tuple[Array | None, int]) -> tuple[Shape, list[Array | None]]:
    """The common batch shape of `shape` and of all arguments, and each argument with that batch flattened to one axis.

    An argument is (array, how many of its trailing axes belong to one event); None stays None. Raises ValueError for batch
    axes that do not broadcast.
    """
    batches = [a.shape[: a.ndim - rank] for a, rank in arguments if a is not None]
    try:
        batch = jnp.broadcast_shapes(shape, *batches)
    except ValueError:
        given = " and ".join(map(str, batches))
        raise ValueError(f"the batch axes of x and context must broadcast against each other, got {given}") from None
    rows = []
    for a, rank in arguments:
        if a is not None:
            event = a.shape[a.ndim - rank :]
            if a.shape[: a.ndim - rank] != batch:
                a = jnp.broadcast_to(a, (*batch, *event))
            a = a.reshape(math.prod(batch), *event)
        rows.append(a)
    return batch, rows


def unflatten(batch: Shape, tree: Any) -> Any:
    """A pytree of arrays with one batch axis, which becomes `batch`."""
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), tree)
