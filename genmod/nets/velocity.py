"""Networks of time: vector fields v(x, t, context) for continuous flows, flow matching and diffusion."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from genmod.core.checks import check_whole, check_widths
from genmod.core.numerics import flat_context
from genmod.core.types import Array, Shape
from genmod.nets.mlp import uniform_bias


class VelocityMLP(nn.Module):
    """A multilayer perceptron of (x, t, context) -> array of the shape of x, every layer of which reads c = (t, context).

    The last layer is linear and starts at zero: the flow starts as the identity.

    Attributes:
      hidden_sizes: widths of the hidden layers. activation: after each.
      conditioning: "concat", W h + b + U c, or "concat_squash", (W h + b) sigmoid(G c) + U c: the two of FFJORD (Grathwohl et
        al. 2018, arXiv:1810.01367, app. B).
      num_frequencies: adds sin and cos of 2^k pi t, k below it, to c, for fields that change fast.
      dtype: of the arithmetic; None: that of the input.

    Raises TypeError or ValueError for hidden_sizes that are no integers >= 1, and for an unknown conditioning.
    """

    hidden_sizes: Sequence[int] = (64, 64, 64)
    activation: Callable[[Array], Array] = nn.tanh
    conditioning: Literal["concat", "concat_squash"] = "concat"
    num_frequencies: int = 0
    dtype: Any = None

    def __post_init__(self):
        self.hidden_sizes = check_widths("hidden_sizes", self.hidden_sizes)
        if self.conditioning not in ("concat", "concat_squash"):
            raise ValueError(f"conditioning must be 'concat' or 'concat_squash', got {self.conditioning!r}")
        check_whole(num_frequencies=self.num_frequencies)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, t: Array, context: Array | None = None) -> Array:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        angles = jnp.pi * t * 2.0 ** jnp.arange(self.num_frequencies, dtype=dtype)
        conditions = [t.reshape(1), jnp.sin(angles), jnp.cos(angles)] if self.num_frequencies else [t.reshape(1)]
        if context is not None:
            conditions.append(flat_context(context, dtype))
        condition = jnp.concatenate([c.astype(dtype) for c in conditions])
        hidden = x.reshape(-1)
        for i, size in enumerate(self.hidden_sizes):
            hidden = self.activation(self._layer(hidden, condition, size, f"layer_{i}", nn.initializers.lecun_normal()))
        hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
        return self._layer(hidden, condition, x.size, "out", nn.initializers.zeros, None).reshape(x.shape)

    def _layer(self, hidden, condition, size, name, kernel_init, dtype: Any = ...):
        dtype = self.dtype if dtype is ... else dtype
        bias_init = (
            uniform_bias(hidden.shape[-1] + condition.shape[-1]) if kernel_init is not nn.initializers.zeros else kernel_init
        )
        out = nn.Dense(size, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)(hidden)

        def of_condition(suffix, init=kernel_init):
            return nn.Dense(size, use_bias=False, dtype=dtype, kernel_init=init, name=f"{name}_{suffix}")(condition)

        if self.conditioning == "concat_squash":
            out = out * nn.sigmoid(of_condition("gate", nn.initializers.lecun_normal()))
        return out + of_condition("shift")


def check_guidance(network: Any, context_dropout: float, context_shape: Shape | None) -> None:
    """Raises ValueError where a network that is told of a missing context, the share of examples that lose theirs and the
    context do not fit together."""
    if not 0 <= context_dropout < 1:
        raise ValueError(f"context_dropout must be in [0, 1), got {context_dropout}")
    if isinstance(network, Guided) and network.weight != 1.0 and not context_dropout:
        raise ValueError(f"guidance={network.weight} wants an unconditional branch: train it with context_dropout > 0")
    guided = "present" in inspect.signature(type(network).__call__).parameters
    if (context_dropout and not guided) or (guided and context_shape is None):
        raise ValueError(
            "guidance and context_dropout want context_shape=... and a network that takes `present`: nets.Guided(body)"
        )


class Scaled(nn.Module):
    """A field of any size by a network of unit size: v(x, t, context) = velocity_size body(x / point_size, t, context).

    `sizes(t)` gives (point_size, velocity_size), the root mean squares of x_t and of its velocity: those of a path,
    `transport.Path.sizes`. The network then reads and returns numbers of about unit size at every time.
    """

    body: nn.Module
    sizes: Callable[[Array], tuple[Array, Array]]

    @nn.compact
    def __call__(self, x: Array, t: Array, context: Array | None = None) -> Array:
        point, velocity = (size.astype(x.dtype) for size in self.sizes(t))
        return velocity * (self.body(x / point, t) if context is None else self.body(x / point, t, context))


class Guided(nn.Module):
    """A conditional field with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6 with weight = 1 + w).

        v = v(x, t, none) + weight (v(x, t, context) - v(x, t, none))

    `body(x, t, c)` reads c = (present context, present), flat: the context times a flag, and the flag; flag 0 is "no context".
    Train with `FlowMatching(context_dropout=...)`; weight 1 is the plain conditional field at the price of one pass, 0 the
    unconditional one. The same parameters serve every weight.
    """

    body: nn.Module
    weight: float = 1.0

    @nn.compact
    def __call__(self, x: Array, t: Array, context: Array, present: Array | None = None) -> Array:
        def field(present):
            flag = jnp.asarray(present, x.dtype).reshape(1)
            return self.body(x, t, jnp.concatenate([flat_context(context, x.dtype) * flag, flag]))

        if present is not None or self.weight == 1.0:
            return field(1.0 if present is None else present)
        if self.weight == 0.0:
            return field(0.0)
        without = field(0.0)
        return without + self.weight * (field(1.0) - without)
