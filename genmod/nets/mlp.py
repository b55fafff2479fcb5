"""Multilayer perceptrons, and the zero-initialised last layer with which every conditioner ends."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.base import Array
from genmod.nets.convolution import Conv


def uniform_bias(num_inputs: int) -> Callable:
    """U(-1/sqrt(n), 1/sqrt(n)): non-zero biases, without which a network of ONE input starts with all its kinks at 0."""
    bound = 1.0 / math.sqrt(max(num_inputs, 1))
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class MLP(nn.Module):
    """Dense layers with an activation after each: (num_inputs,) -> (hidden_sizes[-1],) features.

    `dtype=jnp.bfloat16` computes in bfloat16 with float32 parameters. `layer_norm` normalises before each activation.
    """

    hidden_sizes: Sequence[int] = (128, 128)
    activation: Callable[[Array], Array] = nn.relu
    layer_norm: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for size in self.hidden_sizes:
            x = nn.Dense(size, dtype=self.dtype, bias_init=uniform_bias(x.shape[-1]))(x)
            if self.layer_norm:
                x = nn.LayerNorm(dtype=self.dtype)(x)
            x = self.activation(x)
        return x


class Head(nn.Module):
    """`body`, any module that gives features, followed by a linear layer of zeros: the output starts at exactly zero.

    The layer is dense in the last axis; behind a body with a `head_kernel` above 1 it is a convolution of that size.
    """

    body: nn.Module
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = self.body(x)
        features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        kernel = getattr(self.body, "head_kernel", 1)
        if kernel > 1:
            return Conv(self.num_outputs, kernel, kernel_init=nn.initializers.zeros)(features)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros)(features)
