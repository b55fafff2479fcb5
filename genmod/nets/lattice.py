"""Networks on periodic lattices, which know no place: they commute with translations, in any number of directions.

A feature map is an array lattice + (channels,).
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from genmod.core.checks import check, check_count, check_positive, check_shape, check_whole, check_widths
from genmod.core.types import Array, Shape

# Up to so many sites the last direction is a dense, circulant matrix, from all sites of a row to all: on a CPU its products cost
# less than the copies that rolls want. One net 1-8-8-2, batch 64, with its gradient, ms: 0.48 on 8 x 8 (by rolls alone 1.2, by
# XLA's convolution 1.3), 2.7 on 16 x 16 (5.6, 4.6).
_DENSE_SITES = 16


class PeriodicConv(nn.Module):
    """A convolution around a periodic lattice of any number of directions: lattice + (C,) -> lattice + (features,).

        y_x = b + sum_o W_o h_{x + o},      o from -r to r in each direction, kernel_size = 2 r + 1

    Attributes:
      features: channels of the output. kernel_size: sites in each direction, odd.
      kernel_init: of W, whose last axes are (C, features); the bias b starts at zero.

    Raises ValueError for a kernel_size that is even, and for an x without a lattice.
    """

    features: int
    kernel_size: int = 3
    kernel_init: Callable = nn.initializers.lecun_normal()

    def __post_init__(self):
        check_count(features=self.features)
        _check_kernel_size(self.kernel_size)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check(x.ndim > 1, f"x must have shape lattice + (C,) with at least one direction, got {x.shape}")
        shape = (x.ndim - 1) * (self.kernel_size,) + (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias)
        out = _convolved(x, kernel)
        return out + jnp.broadcast_to(bias, out.shape)


def _check_kernel_size(kernel_size: int) -> None:
    check_count(kernel_size=kernel_size)
    check(kernel_size % 2 == 1, f"kernel_size must be odd, so that it has a middle, got {kernel_size}")


def _convolved(x: Array, kernel: Array) -> Array:
    """sum_o W_o h_{x + o} as ONE matrix product.

    Rolls along all directions but a dense one gather its rows, or, where the output has no more channels than x, are taken of its
    columns and added: the narrower side is copied.
    """
    *lattice, channels = x.shape
    size, num, features = kernel.shape[0], len(lattice), kernel.shape[-1]
    offsets = range(-(size // 2), size // 2 + 1)
    if lattice[-1] <= _DENSE_SITES:
        sites, num = np.arange(lattice[-1]), num - 1
        moves = (sites[:, None] + np.asarray(offsets)[:, None, None]) % lattice[-1] == sites  # (offset, to, from)
        kernel = jnp.einsum("oji,...ocd->...icjd", moves.astype(kernel.dtype), kernel)
        kernel = kernel.reshape(*kernel.shape[:num], lattice[-1] * channels, lattice[-1] * features)
        x = x.reshape(*lattice[:-1], lattice[-1] * channels)
    # From here: x of `num` directions + (inputs,), kernel of as many offsets + (inputs, outputs).
    if features > channels:
        for axis in range(num):
            x = jnp.concatenate([jnp.roll(x, -offset, axis) for offset in offsets], -1)
        # The offset of the last direction changes slowest in the rows.
        kernel = kernel.transpose(*reversed(range(num)), num, num + 1)
        return _product(x, kernel.reshape(-1, kernel.shape[-1])).reshape(*lattice, features)
    by_offset = _product(x, jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1))
    out = by_offset.reshape(*lattice[:num], *kernel.shape[:num], kernel.shape[-1])
    for axis in reversed(range(num)):
        parts = [jax.lax.index_in_dim(out, i, num + axis, keepdims=False) for i in range(size)]
        out = sum((jnp.roll(part, -offset, axis) for part, offset in zip(parts, offsets, strict=True)), jnp.zeros((), x.dtype))
    return out.reshape(*lattice, features)


def _product(x: Array, matrix: Array) -> Array:
    """x @ matrix. The barrier keeps XLA from folding a transpose into the product that is the gradient of the matrix, which on a
    CPU then takes 220 us in the place of 92 [512 rows, 64 to 192]."""
    return jnp.matmul(x, jax.lax.optimization_barrier(matrix.T).T)


class PeriodicNet(nn.Module):
    """Periodic convolutions with an activation after each, the last of which is linear and starts at zero.

    Attributes:
      num_outputs: channels of the output. hidden_channels: of the layers before. kernel_size: of all.
      activation: after each layer but the last.

    Raises TypeError or ValueError for hidden_channels that are no integers >= 1, ValueError for a kernel_size that is even.
    """

    num_outputs: int
    hidden_channels: Sequence[int] = (8, 8)
    kernel_size: int = 3
    activation: Callable[[Array], Array] = nn.leaky_relu

    def __post_init__(self):
        check_count(num_outputs=self.num_outputs)
        _check_kernel_size(self.kernel_size)
        self.hidden_channels = check_widths("hidden_channels", self.hidden_channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for channels in self.hidden_channels:
            x = self.activation(PeriodicConv(channels, self.kernel_size)(x))
        return PeriodicConv(self.num_outputs, self.kernel_size, kernel_init=nn.initializers.zeros)(x)


class SignSymmetric(nn.Module):
    """A network of x whose first `num_odd` channels change their sign with x, and whose other channels do not.

        odd (n(x) - n(-x)) / 2,  even (n(x) + n(-x)) / 2,       n = `body`

    With shifts odd and log-scales even an affine coupling commutes with x -> -x.
    """

    body: nn.Module
    num_odd: int = 1

    def __post_init__(self):
        check_whole(num_odd=self.num_odd)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        of_x, of_minus = self.body(x), self.body(-x)
        odd = jnp.arange(of_x.shape[-1]) < self.num_odd
        return 0.5 * (of_x + jnp.where(odd, -of_minus, of_minus))


class LatticeVelocity(nn.Module):
    """A vector field on a periodic lattice, odd in phi and equal in all places and directions (after Gerdes et al. 2022,
    arXiv:2207.00283, sec. 3):

        v_x(phi, t) = sum_y sum_f K_f(x - y, t) h_f(phi_y),        h_0 = phi, h_f = sin(f w phi) for f = 1 .. num_frequencies

    K_f reaches over the whole lattice, and is the same for displacements that reflections, and exchanges of directions of equal
    length, turn into each other. In time it is piecewise linear between `num_times` knots. Only the functions of ONE site are not
    linear, so that the divergence is sum_f K_f(0, t) sum_x h_f'(phi_x), exact at no cost.

    (phi, t) -> (v, div v), for ONE field of the lattice's shape. v starts at zero.

    Attributes:
      num_frequencies: of the sines. frequency: w at the start, above 0; it learns.
      num_times: knots, at least 2, at equal distances from t = 0 to 1. There v has a kink in time: equal steps of an integrator
        keep their order where each knot is the end of a step, with 6 knots if their number is a multiple of 5.
    """

    num_frequencies: int = 8
    num_times: int = 6
    frequency: float = 1.0

    def __post_init__(self):
        check_count(num_frequencies=self.num_frequencies, num_times=self.num_times)
        check(self.num_times >= 2, f"num_times must be at least 2, got {self.num_times}")
        check_positive(frequency=self.frequency)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, t: Array) -> tuple[Array, Array]:
        orbits = displacement_orbits(x.shape)
        num = self.num_frequencies
        frequency = self.param("frequency", nn.initializers.constant(self.frequency), ())
        weights = self.param("weights", nn.initializers.zeros, (self.num_times, num + 1, int(orbits.max()) + 1))
        hats = jnp.maximum(1.0 - jnp.abs(t * (self.num_times - 1) - jnp.arange(self.num_times)), 0.0)
        by_orbit = jnp.tensordot(hats.astype(x.dtype), weights, 1)  # (features, orbits)
        sines, cosines = _harmonics(frequency * x.ravel(), num)
        kernel = by_orbit[:, displacements(x.shape, orbits)]  # (features, to, from)
        # In full precision on every backend: the divergence is that of the exact product.
        value = jnp.einsum("fxy,fy->x", kernel, jnp.stack([x.ravel(), *sines]), precision=jax.lax.Precision.HIGHEST)
        slopes = jnp.stack([jnp.asarray(x.size, x.dtype), *(f * frequency * c.sum() for f, c in enumerate(cosines, 1))])
        return value.reshape(x.shape), jnp.vdot(by_orbit[:, orbits.ravel()[0]], slopes)


def _harmonics(angle: Array, num: int) -> tuple[list[Array], list[Array]]:
    """sin(f angle) and cos(f angle) for f = 1 .. num, by the recurrence of Chebyshev: two functions are evaluated, not 2 num."""
    sines, cosines = [jnp.zeros_like(angle), jnp.sin(angle)], [jnp.ones_like(angle), jnp.cos(angle)]
    for _ in range(num - 1):
        for values in (sines, cosines):
            values.append(2 * cosines[1] * values[-1] - values[-2])
    return sines[1:], cosines[1:]


def displacement_orbits(shape: Shape) -> np.ndarray:
    """For each displacement on the lattice the number of its orbit under reflections and exchanges of directions of equal length,
    an array of the lattice's shape; 0 is the displacement 0."""
    shape = check_shape("shape", shape, least=1)
    folded = [np.minimum(np.arange(size), size - np.arange(size)) for size in shape]
    grid = np.stack(np.meshgrid(*folded, indexing="ij"), -1)
    for length in set(shape):
        axes = [axis for axis, size in enumerate(shape) if size == length]
        grid[..., axes] = np.sort(grid[..., axes], -1)
    _, numbers = np.unique(grid.reshape(-1, len(shape)), axis=0, return_inverse=True)
    return numbers.reshape(shape)


def displacements(shape: Shape, orbits: np.ndarray) -> np.ndarray:
    """The orbit of y - x for each pair of sites, (V, V)."""
    sites = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), -1)
    between = (sites[None] - sites[:, None]) % np.asarray(shape)
    return orbits[tuple(np.moveaxis(between, -1, 0))]
