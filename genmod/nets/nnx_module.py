"""A user's Flax NNX module where a Linen module is asked for: split once, kept as a pure dict, merged at each call."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx

from genmod.core.types import Array


class NNXModule(nn.Module):
    """`NNXModule(make)` with `make(rngs) -> nnx.Module`; its `nnx.Param` state becomes ordinary parameters.

    Raises ValueError for a module with other state (BatchNorm statistics, dropout counters), which a pure function
    would freeze or repeat without a word.
    """

    make: Callable[[nnx.Rngs], Any]

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        # The graph is made abstractly (no arithmetic, no array); the values come from `params`.
        abstract = nnx.eval_shape(lambda: self.make(nnx.Rngs(0)))
        graph, shapes, rest = nnx.split(abstract, nnx.Param, ...)
        stateful = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]
        if stateful:
            raise ValueError(f"the NNX module keeps state beside its parameters: {stateful}; use layers without state")
        state = self.param("nnx", lambda key: nnx.to_pure_dict(nnx.state(self.make(nnx.Rngs(key)), nnx.Param)))
        nnx.replace_by_pure_dict(shapes, state)
        return nnx.merge(graph, shapes)(*inputs)
