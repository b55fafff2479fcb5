"""Multilayer perceptrons, and the zero-initialised last layer with which every conditioner ends."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_widths
from genmod.core.types import Array
from genmod.nets.convolution import Conv


def uniform_bias(num_inputs: int) -> Callable:
    """U(-1/sqrt(n), 1/sqrt(n)): non-zero biases, without which a network of ONE input starts with all its kinks at 0."""
    bound = 1.0 / math.sqrt(max(num_inputs, 1))
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class MLP(nn.Module):
    """Dense layers with an activation after each: (num_inputs,) -> (hidden_sizes[-1],) features.

    Attributes:
      hidden_sizes: widths of the layers.
      activation: after each layer. layer_norm: whether each is normalised before it.
      dtype: of the arithmetic, jnp.bfloat16 with float32 parameters; None: that of the input.

    Raises TypeError or ValueError for hidden_sizes that are no integers >= 1.
    """

    hidden_sizes: Sequence[int] = (128, 128)
    activation: Callable[[Array], Array] = nn.relu
    layer_norm: bool = False
    dtype: Any = None

    def __post_init__(self):
        self.hidden_sizes = check_widths("hidden_sizes", self.hidden_sizes)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in self.hidden_sizes:
            x = nn.Dense(size, dtype=self.dtype, bias_init=uniform_bias(x.shape[-1]))(x)
            if self.layer_norm:
                x = nn.LayerNorm(dtype=self.dtype)(x)
            x = self.activation(x)
        return x


class ZeroHead(nn.Module):
    """`body`, any module that gives features, followed by a linear layer of zeros: the output starts at exactly zero.

    The layer is dense in the last axis; behind a body with a `head_kernel` above 1 it is a convolution of that size.
    """

    body: nn.Module
    num_outputs: int

    def __post_init__(self):
        check_count(num_outputs=self.num_outputs)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = self.body(x)
        features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        kernel = getattr(self.body, "head_kernel", 1)
        if kernel > 1:
            return Conv(self.num_outputs, kernel, kernel_init=nn.initializers.zeros)(features)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)(features)


class FlatNet(nn.Module):
    """Any number of arrays -> `body` of all their entries in one vector -> a linear layer, or none.

    The form of an encoder, FlatNet(MLP((400,))), and of a decoder, FlatNet(MLP((400,)), 784), with a context or without.

    Attributes:
      body: a module of a vector. num_outputs: of the linear layer, which is in float32 at least; None: the features of the body.
    """

    body: nn.Module
    num_outputs: int | None = None

    def __post_init__(self):
        if self.num_outputs is not None:
            check_count(num_outputs=self.num_outputs)
        super().__post_init__()

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        dtype = jnp.result_type(*inputs)
        features = self.body(jnp.concatenate([x.reshape(-1).astype(dtype) for x in inputs]))
        if self.num_outputs is None:
            return features
        return nn.Dense(self.num_outputs)(features.astype(jnp.promote_types(features.dtype, jnp.float32)))
