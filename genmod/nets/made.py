"""MADE: a multilayer perceptron whose output i reads only inputs before i (Germain et al. 2015, arXiv:1502.03509).

Inputs have degrees 1..D. A hidden unit of degree m reads units and inputs of degree <= m; output i reads hidden units of
degree < i. The context, of degree 0, reaches everything. Hidden units are SORTED by degree, which buys `scan`: when the
inputs are produced one after the other (autoregressive sampling), a unit of degree m can be computed once, right after
x_m, so that all D conditionals together cost about one pass of the network instead of D.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from genmod.core.checks import check_count, check_widths
from genmod.core.types import Array, Params
from genmod.nets.mlp import uniform_bias


class MADE(nn.Module):
    """(D,) or (D, num_features) and an optional flat context -> (D, num_outputs); row i depends on x_<i and the context only.

    The last layer starts at zero.

    Attributes:
      hidden_sizes: widths of the hidden layers. activation: after each.
      direct: whether outputs also read the inputs before them linearly, past the hidden layers (sec. 4).
      num_outputs: numbers per coordinate, set by the layer that uses the network.
      dtype: of the arithmetic; None: that of the input.

    Raises TypeError or ValueError for hidden_sizes that are no integers >= 1, and for a context without a hidden layer.
    """

    hidden_sizes: Sequence[int] = (128, 128)
    activation: Callable[[Array], Array] = nn.relu
    direct: bool = False
    num_outputs: int = 1
    dtype: Any = None

    def __post_init__(self):
        self.hidden_sizes = check_widths("hidden_sizes", self.hidden_sizes)
        if self.direct and not self.hidden_sizes:
            raise ValueError("direct connections pass hidden layers, got hidden_sizes=(); without any they are all there is")
        check_count(num_outputs=self.num_outputs)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        if context is not None and not self.hidden_sizes:
            raise ValueError("a MADE without hidden layers cannot read a context; give it hidden_sizes")
        dim, hidden = x.shape[0], x.reshape(-1)
        degrees = _degrees(dim, self.hidden_sizes, context is not None, hidden.shape[0] // dim)
        num_context = 0 if context is None else context.shape[0]
        for i, size in enumerate(self.hidden_sizes):
            mask = degrees[i][:, None] <= degrees[i + 1][None, :]
            kernel = self.param(f"kernel_{i}", nn.initializers.lecun_normal(), (mask.shape[0], size))
            bias = self.param(f"bias_{i}", uniform_bias(mask.shape[0] + num_context * (i == 0)), (size,))
            hidden, kernel, bias = promote_dtype(hidden, kernel, bias, dtype=self.dtype)
            hidden = hidden @ (kernel * mask) + bias
            if i == 0 and context is not None:
                hidden = hidden + nn.Dense(size, use_bias=False, dtype=self.dtype, name="context")(context)
            hidden = self.activation(hidden)
        if self.direct:
            hidden = jnp.concatenate(promote_dtype(hidden, x.reshape(-1)))
        mask = self._output_mask(degrees)
        kernel = self.param("kernel_out", nn.initializers.zeros, (mask.shape[0], dim, self.num_outputs))
        bias = self.param("bias_out", nn.initializers.zeros, (dim, self.num_outputs))
        hidden, kernel, bias = promote_dtype(hidden, kernel, bias)
        return jnp.tensordot(hidden, kernel * mask, 1) + bias

    def scan(
        self,
        params: Params,
        next_input: Callable[[Array, Array], tuple[Array, Array]],
        per_dim: Array,
        context: Array | None,
        features: Callable[[Array], Array] = lambda x: x,
    ) -> tuple[Array, Array]:
        """Produces x one coordinate at a time: `x_i, extra_i = next_input(row_i, per_dim[i])`, row_i = output row i given x_<i.

        Equal to D passes of `__call__` at about the cost of one. The arithmetic is that of the parameters: a `__call__` in
        bfloat16 agrees to bfloat16's rounding only.

        Args:
          params: of this network.
          next_input: (row (num_outputs,), value ()) -> (x_i, extra_i), scalars.
          per_dim: what it is given beside the row, (D,).
          context: flat, or None.
          features: x -> what the network reads of it, coordinate by coordinate: (D,) or (D, num_features).

        Returns (x, extra), each (D,).
        """
        dim, dtype = per_dim.shape[0], per_dim.dtype
        degrees = _degrees(dim, self.hidden_sizes, context is not None, features(per_dim).size // dim)
        layers = [self._sequential_layer(params, i, degrees) for i in range(len(self.hidden_sizes))]
        if context is not None:
            kernel, bias, start, width = layers[0]
            layers[0] = kernel, bias + context @ params["context"]["kernel"], start, width
        output = params["kernel_out"] * self._output_mask(degrees)

        def step(carry, inputs):
            x, *hidden = carry
            i, starts, kernel_out, bias_out, value = inputs
            seen = below = features(x).reshape(-1)
            for n, (kernel, bias, _, width) in enumerate(layers):
                # Units of degree i (and perhaps a few of higher degree, which a later step overwrites, unread until then).
                rows = jax.lax.dynamic_slice_in_dim(kernel, starts[n], width)
                units = self.activation(rows @ below + jax.lax.dynamic_slice_in_dim(bias, starts[n], width))
                below = hidden[n] = jax.lax.dynamic_update_slice_in_dim(hidden[n], units, starts[n], 0)
            below = jnp.concatenate([below, seen]) if self.direct else below
            x_i, extra = next_input(below @ kernel_out + bias_out, value)
            x = jax.lax.dynamic_update_slice_in_dim(x, x_i[None], i, 0)
            return (x, *hidden), extra

        blank = (jnp.zeros(dim, dtype), *(jnp.zeros(size, dtype) for size in self.hidden_sizes))
        starts = jnp.stack([jnp.asarray(start) for *_, start, _ in layers], 1) if layers else jnp.zeros((dim, 0), int)
        inputs = (jnp.arange(dim), starts, jnp.moveaxis(output, 1, 0), params["bias_out"], per_dim)
        (x, *_), extra = jax.lax.scan(step, blank, inputs)
        return x, extra

    def _output_mask(self, degrees: list[np.ndarray]) -> np.ndarray:
        """(units of the last layer, then the inputs if `direct`; D; 1): which of them output i reads."""
        last = np.concatenate([degrees[-1], degrees[0]]) if self.direct else degrees[-1]
        return last[:, None, None] < np.arange(1, degrees[0].max() + 1)[:, None]

    def _sequential_layer(self, params: Params, i: int, degrees: list[np.ndarray]) -> tuple[Array, Array, np.ndarray, int]:
        """Masked kernel (units, inputs), bias, first unit of every degree, and the largest number of units of one degree."""
        dim, units = int(degrees[0].max()), degrees[i + 1]
        kernel = params[f"kernel_{i}"] * (degrees[i][:, None] <= units[None, :])
        width = int(np.bincount(units).max())
        start = np.minimum(np.searchsorted(units, np.arange(dim)), len(units) - width)
        return kernel.T, params[f"bias_{i}"], start, width


def _degrees(dim: int, hidden_sizes: Sequence[int], conditional: bool, num_features: int) -> list[np.ndarray]:
    """Degrees of the inputs and of each hidden layer, spread evenly over lowest..D-1 and sorted."""
    lowest = 0 if conditional or dim == 1 else 1  # degree 0 reads the context alone
    spread = [lowest + np.arange(size) * (dim - lowest) // size for size in hidden_sizes]
    return [np.repeat(np.arange(1, dim + 1), num_features), *spread]
