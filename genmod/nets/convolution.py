"""Convolutions of stride 1 that stay fast in a loop, as a JAX primitive with transposes of its own.

Inside `lax.scan` and `lax.while_loop` XLA's CPU backend takes the gradients of a convolution through a generic loop, 20 to
100 times slower than outside (jax-ml/jax#12868): their dimensions are in an order that it has no fast code for. Here every
derivative is itself a convolution in the order (N, H, W, C) x (kh, kw, C_in, C_out), with explicit transpositions. All of
`jit`, `vmap`, `grad`, forward mode, `shard_map` and their compositions work as with `lax.conv_general_dilated`. (Not `jet`, and
not gradients under a mesh of explicit axes: use automatic ones.)
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from genmod.core.types import Array, Shape


class Conv(nn.Module):
    """A convolution of images batch + (H, W, C), zero-padded to the same size.

    Attributes:
      features: channels of the output.
      kernel_size: height and width of the kernel, odd.
      kernel_init: initialiser of the kernel; the bias starts at zero.
      dtype: of the arithmetic; None: that of the input and the parameters.
    """

    features: int
    kernel_size: int = 3
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel, bias = self.param("kernel", self.kernel_init, shape), self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        out = convolve(x.reshape(-1, *x.shape[-3:]), kernel)
        return out.reshape(*x.shape[:-1], self.features) + jnp.broadcast_to(bias, (*x.shape[:-1], self.features))


def convolve(x: Array, kernel: Array) -> Array:
    """x (N, H, W, C_in) * kernel (kh, kw, C_in, C_out), both odd, zero-padded -> (N, H, W, C_out).

    Raises ValueError for even kernels and for other shapes, TypeError where the dtypes differ.
    """
    if kernel.ndim == 4 and (kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0):
        raise ValueError(f"convolve wants a kernel of odd height and width, got {kernel.shape}")
    return convolve_before(x, kernel, tuple(size // 2 for size in kernel.shape[:2]))


def convolve_before(x: Array, kernel: Array, before: Shape) -> Array:
    """A convolution whose kernel reaches `before` rows up and columns left of a pixel, and the rest of it down and right.

    x (N, H, W, C_in) * kernel (kh, kw, C_in, C_out), zero-padded -> (N, H, W, C_out). A kernel of before + 1 rows sees no row
    below its pixel: no arithmetic is spent on a mask.

    Raises ValueError for other shapes and for `before` outside the kernel, TypeError where the dtypes differ.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2] != x.shape[3]:
        raise ValueError(f"x must be (N, H, W, C) and kernel (kh, kw, C, C_out), got {x.shape} and {kernel.shape}")
    if not all(0 <= b < size for b, size in zip(before, kernel.shape[:2], strict=True)):
        raise ValueError(f"before must be within the kernel of {kernel.shape[:2]} rows and columns, got {before}")
    if x.dtype != kernel.dtype:
        raise TypeError(f"x and kernel must be of one dtype, got {x.dtype} and {kernel.dtype}")
    return _conv_p.bind(*_varying_alike(x, kernel), before=tuple(before))


def _varying_alike(*arrays):
    """The arrays, marked as varying over the same axes of a `shard_map`; the transpose of the mark is the sum over shards."""
    own = [_varying_axes(a) for a in arrays]
    missing = [tuple(frozenset().union(*own) - axes) for axes in own]
    return [jax.lax.pcast(a, axes, to="varying") if axes else a for a, axes in zip(arrays, missing, strict=True)]


def _varying_axes(a):
    kind = jax.typeof(a)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma  # JAX from 0.10, before


def _conv(x, kernel, *, before):
    return _convolve_padded(x, kernel, _margins(before, kernel.shape))


def _margins(before, shape):
    """(Rows before, rows after) a pixel that a kernel of this shape reaches, and columns."""
    return [(b, size - 1 - b) for b, size in zip(before, shape[:2], strict=True)]


def _convolve_padded(x, kernel, margins):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), margins, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _transpose_x(cotangent, x, kernel, *, before):
    after = tuple(after for _, after in _margins(before, kernel.shape))
    return convolve_before(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), after)


def _transpose_kernel(cotangent, x, kernel, *, before):
    # Channels as the batch and the batch as channels: the cotangent, as large as the image, is the kernel.
    margins = _margins(before, kernel.aval.shape)
    return _convolve_padded(x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), margins).transpose(1, 2, 0, 3)


def _batched(arguments, axes, *, before):
    (x, kernel), (x_axis, kernel_axis) = arguments, axes
    if kernel_axis is not None:  # one kernel for each: an ensemble
        return jax.vmap(functools.partial(_conv, before=before), (x_axis, kernel_axis))(x, kernel), 0
    x = jnp.moveaxis(x, x_axis, 0)
    out = convolve_before(x.reshape(-1, *x.shape[2:]), kernel, before)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0


_conv_p = Primitive("genmod_conv")
_conv_p.def_impl(jax.jit(_conv, static_argnames="before"))
_conv_p.def_abstract_eval(lambda x, kernel, *, before: x.update(shape=(*x.shape[:3], kernel.shape[3]), weak_type=False))
ad.defbilinear(_conv_p, _transpose_x, _transpose_kernel)
batching.primitive_batchers[_conv_p] = _batched
mlir.register_lowering(_conv_p, mlir.lower_fun(_conv, multiple_results=False))
