"""Sequence networks: causal maps of a sequence, to be read whole or step by step, with the same result.

    params = net.init(key, x)                       x: ONE sequence, (T, features), or (T,) tokens for a net that embeds them
    y = net.apply(params, x)                        (T, outputs); y_t depends on x_0 .. x_t
    carry, y_t = net.step(params, carry, x_t)       from carry = net.init_carry(params); the carry never changes its shapes
    carry, y = net.extend(params, carry, x)         any number of steps at once, such as a prompt

The contract: however a sequence is cut into pieces for `extend`, the outputs are those of `apply`, to rounding. A net
implements `extend`; the others follow from it. `jax.vmap` batches. The shift by which a model predicts x_t from x_<t is the
model's.

    gru = Stack((Pointwise(nn.Embed(27, 32)), Recurrent(nn.GRUCell(64)), Pointwise(nn.Dense(27))))    characters to logits
"""

import abc
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.checks import check_parts
from genmod.core.description import Description
from genmod.core.params import cast
from genmod.core.types import Array, Key, Params
from genmod.nets.functional import apply as apply_module, init as init_module

Carry = Any


class SequenceNet(Description, abc.ABC):
    """A causal map of sequences. All its functions are pure and see ONE sequence."""

    @abc.abstractmethod
    def init(self, key: Key, x: Array) -> Params:
        """Parameters for sequences like x, (T, features) or (T,), in the precision of x, at least float32."""

    @abc.abstractmethod
    def init_carry(self, params: Params, length: int | None = None) -> Carry:
        """The carry before the first step; with room for `length` steps where room is needed (None: as many as there can be)."""

    @abc.abstractmethod
    def extend(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """The carry after n more inputs, x of shape (n, features) or (n,), and their outputs, (n, outputs)."""

    def step(self, params: Params, carry: Carry, x_t: Array) -> tuple[Carry, Array]:
        """The carry after one more input, and its output, (outputs,)."""
        carry, y = self.extend(params, carry, jnp.asarray(x_t)[None])
        return carry, y[0]

    def apply(self, params: Params, x: Array) -> Array:
        """The outputs of a whole sequence, (T, outputs)."""
        return self.extend(params, self.init_carry(params, x.shape[0]), x)[1]


@dataclasses.dataclass(frozen=True)
class Stack(SequenceNet):
    """One net after the other."""

    nets: tuple[SequenceNet, ...]

    def __post_init__(self):
        super().__post_init__()
        wrong = [net for net in self.nets if not isinstance(net, SequenceNet)]
        if not self.nets or wrong:
            raise TypeError(
                f"nets must be a tuple of at least one SequenceNet, got {wrong[0] if wrong else ()!r}; "
                "a Linen module of one step stands in a Pointwise"
            )

    def init(self, key, x):
        params = []
        for net, k in zip(self.nets, jax.random.split(key, len(self.nets)), strict=True):
            params.append(net.init(k, x))
            y = jax.eval_shape(net.apply, params[-1], x)
            x = jnp.zeros(y.shape, y.dtype)
        return tuple(params)

    def init_carry(self, params, length=None):
        return tuple(net.init_carry(p, length) for net, p in zip(self.nets, params, strict=True))

    def extend(self, params, carry, x):
        new = []
        for net, p, c in zip(self.nets, params, carry, strict=True):
            c, x = net.extend(p, c, x)
            new.append(c)
        return tuple(new), x


@dataclasses.dataclass(frozen=True)
class Pointwise(SequenceNet):
    """A Linen module of one step, (features,) -> (outputs,), at every step by itself; `nn.Embed` takes a token, ()."""

    module: nn.Module

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, module=nn.Module)

    def init(self, key, x):
        return init_module(self.module, key, x[0])

    def init_carry(self, params, length=None):
        return ()

    def extend(self, params, carry, x):
        return carry, jax.vmap(lambda x_t: apply_module(self.module, params, x_t))(x)


@dataclasses.dataclass(frozen=True)
class Recurrent(SequenceNet):
    """A recurrent net of any Linen cell: nn.SimpleCell(64), nn.LSTMCell(64), nn.GRUCell(64), ... (T, features) -> (T, 64)."""

    cell: nn.RNNCellBase

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, cell=nn.RNNCellBase)

    def init(self, key, x):
        return init_module(_FirstStep(self.cell), key, check_sequence(x)[0])["cell"]

    def init_carry(self, params, length=None):
        # Linen reads the batch axes alone off this shape, and by default draws nothing from this key.
        return cast(self.cell.initialize_carry(jax.random.key(0), (1,)), params_dtype(params))

    def extend(self, params, carry, x):
        def move(old, x_t):
            new, y = apply_module(self.cell, params, old, x_t)
            return jax.tree.map(lambda n, o: n.astype(o.dtype), new, old), y  # a cell in bfloat16 has its carry in float32

        return jax.lax.scan(move, carry, x)


class _FirstStep(nn.Module):
    """A cell's first step, from which its parameters are made."""

    cell: nn.RNNCellBase

    def __call__(self, x):
        return self.cell(self.cell.initialize_carry(jax.random.key(0), x.shape), x)[1]


def check_sequence(x: Array) -> Array:
    """x, if it is one sequence of features; raises ValueError otherwise."""
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be a floating array of shape (T, features), got {x.dtype} of shape {x.shape}; "
            "put Pointwise(nn.Embed(...)) in front for tokens, and jax.vmap over sequences"
        )
    return x


def params_dtype(params: Params) -> Any:
    """The precision of a net's parameters, which is that of its carry."""
    return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(params)))
