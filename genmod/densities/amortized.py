"""`Amortized`: any distribution made conditional, its parameters moved by a linear map of the context.

    p(x | c) = p(x; params + kernel c)

With the features of an encoder as the context this is amortised inference: planar, radial and Sylvester flows whose parameters
all come from the encoder (Rezende & Mohamed 2015, arXiv:1505.05770; van den Berg et al. 2018, arXiv:1803.05649, sec. 4), and
Gaussians whose mean and scale do (Kingma & Welling 2013, arXiv:1312.6114).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check_parts, check_shape
from genmod.core.distribution import Distribution
from genmod.core.params import trainable, with_trainable
from genmod.core.types import Array, Context, Params, Shape


@dataclasses.dataclass(frozen=True)
class Amortized(Distribution):
    """`distribution`, whose trainable parameters depend linearly on a context.

    The kernel starts at zero: whatever the context, the start is that of the distribution.
    Parameters: {"distribution": ..., "kernel": (number of trainable scalars, size of a context)}.
    Raises ValueError for a distribution that has a context of its own, or nothing to train.
    """

    distribution: Distribution
    context_shape: Shape

    def __post_init__(self):
        check_parts(self, distribution=Distribution)
        object.__setattr__(self, "context_shape", check_shape("context_shape", self.context_shape, least=1))
        super().__post_init__()
        if self.distribution.context_shape is not None:
            raise ValueError(
                f"distribution must have no context of its own, got {type(self.distribution).__name__} with "
                f"context_shape={self.distribution.context_shape}; use it as it is"
            )

    @property
    def event(self):
        return self.distribution.event

    @property
    def likelihood(self):
        return self.distribution.likelihood

    @property
    def reparameterized(self):
        return self.distribution.reparameterized

    @property
    def support(self):
        return self.distribution.support

    def _init(self, key, x, context):
        params = self.distribution._init(key, x, None)
        num = sum(leaf.size for leaf in jax.tree.leaves(trainable(params)))
        if num == 0:
            raise ValueError(f"distribution must have parameters that a context can move, got {self.distribution}")
        dtype = jnp.result_type(*jax.tree.leaves(trainable(params)))
        return {"distribution": params, "kernel": jnp.zeros((num, math.prod(self.context_shape)), dtype)}

    def at(self, params: Params, context: Context) -> Params:
        """The parameters of `distribution` at ONE context."""
        assert context is not None
        held = params["distribution"]
        leaves, structure = jax.tree.flatten(trainable(held))
        kernel = params["kernel"]
        moves = jnp.matmul(kernel, context.reshape(-1).astype(kernel.dtype))
        moved, start = [], 0
        for leaf in leaves:
            moved.append(leaf + moves[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
            start += leaf.size
        return with_trainable(held, jax.tree.unflatten(structure, moved))

    def log_prob_info_one(self, params, x, context=None, key=None):
        return self.distribution.log_prob_info_one(self.at(params, context), x, None, key)

    def log_prob_one(self, params, x, context=None, key=None):
        return self.distribution.log_prob_one(self.at(params, context), x, None, key)

    def sample_info_one(self, params, key, context=None):
        return self.distribution.sample_info_one(self.at(params, context), key)

    def sample_one(self, params, key, context=None):
        return self.distribution.sample_one(self.at(params, context), key)

    def sample_and_log_prob_one(self, params, key, context=None) -> tuple[Array, Array]:
        return self.distribution.sample_and_log_prob_one(self.at(params, context), key)
