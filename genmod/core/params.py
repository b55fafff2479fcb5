"""Parameters: a plain pytree of arrays. What belongs to a model but is not trained stands in a `Fixed`.

    params = {"kernel": w, "statistics": Fixed({"mean": m, "std": s})}

`Fixed` parts are initialised, saved and loaded with the rest; no gradient, optimizer or weight decay reaches them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genmod.core.types import Array, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed:
    """A part of the parameters, any pytree, that training leaves as it is."""

    tree: Any

    @property
    def constant(self) -> Any:
        """The tree, through which no gradient passes."""
        return jax.lax.stop_gradient(self.tree)


def _is_fixed(node: Any) -> bool:
    return isinstance(node, Fixed)


def trainable(params: Params) -> Params:
    """The parameters with every `Fixed` part emptied: what an optimizer sees."""
    return jax.tree.map(lambda node: Fixed(None) if _is_fixed(node) else node, params, is_leaf=_is_fixed)


def with_trainable(params: Params, trained: Params) -> Params:
    """`trained`, shaped like `trainable(params)`, with the `Fixed` parts of `params` put back."""
    return jax.tree.map(lambda old, new: old if _is_fixed(old) else new, params, trained, is_leaf=_is_fixed)


def check_held(name: str, params: Params) -> None:
    """Raises ValueError unless all parameters of the part `name` are `Fixed`: an optimizer would move the others."""
    if jax.tree.leaves(trainable(params)):
        raise ValueError(f"{name} must have nothing to train (Standardize() or Rescale(...)): it is held as it was initialised")


def trainable_mask(params: Params) -> Params:
    """A pytree of bools like `params`: False inside a `Fixed`, True elsewhere."""

    def mask(node):
        return jax.tree.map(lambda _: not _is_fixed(node), node)

    return jax.tree.map(mask, params, is_leaf=_is_fixed)


def cast(params: Params, dtype: Any) -> Params:
    """The floating arrays of `params` as `dtype`, the rest untouched."""
    return jax.tree.map(lambda p: p.astype(dtype) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)


def interpolated(start: Params, end: Params, share: Array) -> Params:
    """(1 - share) start + share end, `end` exactly at share = 1; of integers, such as permutations, those of `end`."""

    def between(a, b):
        if not jnp.issubdtype(jnp.result_type(b), jnp.inexact):
            return b
        return (1 - share).astype(b.dtype) * a + share.astype(b.dtype) * b

    return jax.tree.map(between, start, end)


def num_params(params: Params) -> int:
    """The number of trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(trainable(params)))
