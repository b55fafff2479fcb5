"""The door: a Linen module as two pure functions of one example."""

from typing import Any

import flax.linen as nn
import jax

from genmod.base import Array, Key, Params, cast


def init(module: nn.Module, key: Key, *inputs: Array) -> Params:
    """The module's parameters for one example, in the dtype of the first input (so that float64 data train in float64).

    Raises ValueError if the module keeps anything but parameters (BatchNorm statistics, caches): hidden state has no
    place in a pure function.
    """
    variables = module.init(key, *inputs)
    state = sorted(set(variables) - {"params"})
    if state:
        raise ValueError(
            f"{type(module).__name__} keeps mutable collections {state}; use layers without state (LayerNorm, GroupNorm)"
        )
    return cast(variables.get("params", {}), inputs[0].dtype)


def apply(module: nn.Module, params: Params, *inputs: Array, **kwargs: Any) -> jax.Array:
    """The module's output for one example."""
    return module.apply({"params": params}, *inputs, **kwargs)  # type: ignore[return-value]
