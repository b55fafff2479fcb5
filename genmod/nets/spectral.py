"""Spectral normalisation: kernels divided by their largest singular value (Miyato et al. 2018, arXiv:1802.05957, eq. 8).

    W -> bound W / s(W),    s(W) = u^T W v by power iteration: v <- W^T u / |W^T u|, u <- W v / |W v|

A kernel is a matrix (inputs, outputs), that of a convolution (height, width, channels, outputs) one of (height width channels,
outputs). The gradient is that with u and v held: where they have converged, exactly that of W / s(W).

    with state     state = spectral_state(key, params), then params, state = spectrally_normalized(params, state): each step of
                   training goes on from the vectors of the last, so that one iteration is enough (algorithm 1)
    without        SpectralNorm(module, bound), a module for a module, which iterates from fixed vectors at each call

A network of dense layers, with activations of slope at most 1, then has a Lipschitz constant of at most bound^layers. That of a
convolution may be larger, by up to the square root of the size of its kernel; masked kernels (`MADE`) are normalised unmasked.
Kernels (inputs, heads, dim), of queries, keys and values in attention and of `nn.DenseGeneral` with several axes of outputs, are
taken as matrices (inputs heads, dim) too: their layer, inputs -> (heads, dim), may be larger, by up to sqrt(min(heads, dim)).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_positive
from genmod.core.keys import check_key
from genmod.core.params import Fixed
from genmod.core.types import Array, Key, Params
from genmod.nets.functional import apply, init


def spectral_state(key: Key, params: Params) -> Fixed:
    """Random unit vectors u, (outputs,), of all kernels of `params`, by their place: the state of `spectrally_normalized`.

    Kernels are the arrays of two axes or more that are named "kernel". Raises ValueError where there is none.
    """
    kernels = _kernels(params)
    keys = jax.random.split(check_key(key), len(kernels))
    state = {}
    for (place, kernel), own in zip(kernels.items(), keys, strict=True):
        state[place] = _unit(jax.random.normal(own, kernel.shape[-1:], kernel.dtype))
    return Fixed(state)


def spectrally_normalized(params: Params, state: Fixed, *, bound: float = 1.0, num_iterations: int = 1) -> tuple[Params, Fixed]:
    """(the parameters with every kernel of largest singular value `bound`, the state to go on from).

    Args:
      params: of any module. state: of `spectral_state`, or of the call before; it may stand among the parameters of a step.
      bound: of the singular values, as far as the iteration has converged: too few iterations leave them larger.
      num_iterations: of the power method.

    Raises ValueError for a state of other kernels, a bound or a number that is not positive.
    """
    check_positive(bound=bound)
    check_count(num_iterations=num_iterations)
    kernels, vectors = _kernels(params), state.tree
    found = {place: u.shape for place, u in vectors.items()}
    if found != {place: kernel.shape[-1:] for place, kernel in kernels.items()}:
        raise ValueError(f"state must be that of spectral_state for these parameters, with kernels {[*kernels]}, got {[*found]}")
    norms, moved = {}, {}
    for place, kernel in kernels.items():
        norms[place], moved[place] = largest_singular_value(kernel, vectors[place], num_iterations)
    return _divided(params, norms, bound), Fixed(moved)


def largest_singular_value(kernel: Array, u: Array, num_iterations: int) -> tuple[Array, Array]:
    """(an estimate from below of the largest singular value of a kernel, the vector of its outputs), by power iteration from u.

    The gradient of the estimate in the kernel is the outer product of the vectors. The estimate is 0 for a kernel of zeros, which
    leaves u as it is: the iteration goes on when the kernel has grown.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    held = jax.lax.stop_gradient(matrix)

    def inputs(u):
        return _unit(jnp.matmul(held, u, precision="highest"))

    def iterate(_, u):
        outputs = jnp.matmul(inputs(u), held, precision="highest")
        return jnp.where((outputs == 0).all(), u, _unit(outputs))

    u = jax.lax.fori_loop(0, num_iterations, iterate, jax.lax.stop_gradient(u))
    return jnp.dot(jnp.matmul(inputs(u), matrix, precision="highest"), u, precision="highest"), u


class SpectralNorm(nn.Module):
    """`module` with every kernel of largest singular value `bound`, without state.

    Attributes:
      module: any module, an instance. bound: of each kernel as a matrix (all other axes, last axis). The layer itself may be
        larger for convolutions, and by up to sqrt(min(heads, dim)) for kernels (inputs, heads, dim) of attention.
      num_iterations: of the power method at each call, from vectors that are always the same. The singular values of a random
        kernel of 128 x 128 exceed the bound by some 1 % after 20 iterations, by 3 % after 10. The cost does not grow with the
        batch.

    Parameters: {"unnormalized": those of the module}. Raises TypeError for a module that is none, such as a class, and ValueError
    for a bound or a number that is not positive.
    """

    module: nn.Module
    bound: float = 1.0
    num_iterations: int = 20

    def __post_init__(self):
        if not isinstance(self.module, nn.Module):
            raise TypeError(f"module must be a Linen module, an instance such as gm.nets.MLP((64,)), got {self.module!r}")
        check_positive(bound=self.bound)
        check_count(num_iterations=self.num_iterations)
        super().__post_init__()

    @property
    def head_kernel(self) -> int:
        """That of the module, for `ZeroHead`."""
        return getattr(self.module, "head_kernel", 1)

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        module = self.module.clone(parent=None, name=None)
        params = self.param("unnormalized", lambda key: init(module, key, *inputs))
        start = spectral_state(jax.random.key(0), params)
        return apply(
            module, spectrally_normalized(params, start, bound=self.bound, num_iterations=self.num_iterations)[0], *inputs
        )


def _kernels(params: Params) -> dict[str, Array]:
    found = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        if _is_kernel(path, leaf):
            found[jax.tree_util.keystr(path)] = leaf
    if not found:
        raise ValueError('params must hold an array of two axes or more that is named "kernel": there is nothing to normalise')
    return found


def _is_kernel(path: Any, leaf: Array) -> bool:
    return bool(path) and getattr(path[-1], "key", None) == "kernel" and jnp.ndim(leaf) >= 2


def _divided(params: Params, norms: dict[str, Array], bound: float) -> Params:
    def divide(path, leaf):
        norm = norms.get(jax.tree_util.keystr(path))
        return leaf if norm is None else leaf * (bound / jnp.where(norm > 0, norm, 1.0)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(divide, params)


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(vector.dtype).tiny)
