"""The door: a Linen module as two pure functions of one example, whose inputs are arrays or pytrees of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.params import cast
from genmod.core.types import Key, Params


def init(module: nn.Module, key: Key, *inputs: Any) -> Params:
    """The module's parameters for one example, in the precision of the inputs, at least float32 (float64 data train in float64).

    Raises ValueError if the module keeps anything but parameters (BatchNorm statistics, caches): hidden state has no
    place in a pure function.
    """
    variables = module.init(key, *inputs)
    state = sorted(set(variables) - {"params"})
    if state:
        raise ValueError(
            f"{type(module).__name__} keeps mutable collections {state}; use layers without state (LayerNorm, GroupNorm)"
        )
    floats = [a.dtype for a in jax.tree.leaves(inputs) if jnp.issubdtype(a.dtype, jnp.floating)]
    params = variables.get("params", {})
    return cast(params, jnp.result_type(jnp.float32, *floats)) if floats else params


def apply(module: nn.Module, params: Params, *inputs: Any, **kwargs: Any) -> jax.Array:
    """The module's output for one example."""
    return module.apply({"params": params}, *inputs, **kwargs)  # type: ignore[return-value]
