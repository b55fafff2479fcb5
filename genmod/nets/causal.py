"""Causal networks without recurrence, as `SequenceNet`s: dilated convolutions, and a Transformer."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_parts, check_shape
from genmod.core.types import Array
from genmod.nets.functional import apply as apply_module, init as init_module
from genmod.nets.positions import Positions, RotaryPositions
from genmod.nets.sequence import SequenceNet, check_sequence, params_dtype


@dataclasses.dataclass(frozen=True)
class CausalConv(SequenceNet):
    """Residual layers of gated, dilated, causal convolutions (WaveNet; van den Oord et al. 2016, arXiv:1609.03499, eq. 2).

    (T, features) -> (T, num_features). Layer l reads its input at t, t - d_l, ..., t - (kernel_size - 1) d_l; y_t thus sees
    1 + (kernel_size - 1) sum_l d_l inputs. The carry holds as many past inputs of each layer as it reads.
    """

    num_features: int = 64
    kernel_size: int = 2
    dilations: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self):
        super().__post_init__()
        check_count(num_features=self.num_features, kernel_size=self.kernel_size)
        object.__setattr__(self, "dilations", check_shape("dilations", self.dilations))
        for dilation in self.dilations:
            check_count(dilations=dilation)

    def init(self, key, x):
        return init_module(self._module, key, check_sequence(x), *self._buffers(x.dtype))

    def init_carry(self, params, length=None):
        return self._buffers(params_dtype(params))

    def extend(self, params, carry, x):
        carry, y = apply_module(self._module, params, x, *carry)
        return carry, y

    @property
    def _module(self):
        return _Convolutions(self.num_features, self.kernel_size, self.dilations)

    def _buffers(self, dtype) -> tuple[Array, ...]:
        return tuple(jnp.zeros(((self.kernel_size - 1) * d, self.num_features), dtype) for d in self.dilations)


class Cache(NamedTuple):
    """Keys and values of the steps so far, of each layer (num_heads, length, head features), and how many steps there were."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    num_steps: Array


@dataclasses.dataclass(frozen=True)
class CausalTransformer(SequenceNet):
    """A Transformer (Vaswani et al. 2017, arXiv:1706.03762) that sees the past: layer norms before the blocks.

        net = CausalTransformer(256, 64, positions=LearnedPositions())

    (T, features) -> (T, num_features), T at most `max_length`: a longer x is refused, and a piece that ends beyond the room
    of the carry is NaN throughout. The carry is a `Cache`.

    Attributes:
      max_length: of a sequence. num_features, num_layers, num_heads: of the blocks.
      positions: how steps are told apart, `RotaryPositions` or `LearnedPositions`.
    """

    max_length: int
    num_features: int = 64
    num_layers: int = 2
    num_heads: int = 4
    positions: Positions = RotaryPositions()

    def __post_init__(self):
        super().__post_init__()
        counts = ("max_length", "num_features", "num_layers", "num_heads")
        check_count(**{name: getattr(self, name) for name in counts})
        check_parts(self, positions=Positions)
        self.positions.check(self.num_features, self.num_heads)

    def init(self, key, x):
        return init_module(self._module, key, check_sequence(x), self._cache(x.shape[0], x.dtype))

    def init_carry(self, params, length=None):
        return self._cache(length, params_dtype(params))

    def extend(self, params, carry, x):
        self._check_length(x.shape[0])
        carry, y = apply_module(self._module, params, x, carry)
        return carry, y

    @property
    def _module(self):
        return _Transformer(self.max_length, self.num_features, self.num_layers, self.num_heads, self.positions)

    def _cache(self, length: int | None, dtype: Any) -> Cache:
        length = self.max_length if length is None else length
        self._check_length(length)
        blank = (jnp.zeros((self.num_heads, length, self.num_features // self.num_heads), dtype),) * self.num_layers
        return Cache(blank, blank, jnp.zeros((), jnp.int32))

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(f"a sequence must have at most max_length={self.max_length} steps, got {length}")


class _Convolutions(nn.Module):
    num_features: int
    kernel_size: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x, *buffers):
        n, new = x.shape[0], []
        h = nn.Dense(self.num_features)(x)  # (n, C)
        for d, buffer in zip(self.dilations, buffers, strict=True):
            past = jnp.concatenate([buffer.astype(h.dtype), h])  # ((kernel_size - 1) d + n, C)
            taps = jnp.concatenate([past[k * d : k * d + n] for k in range(self.kernel_size)], -1)  # (n, kernel_size C)
            filters, gates = jnp.split(nn.Dense(2 * self.num_features)(taps), 2, -1)
            h = h + nn.Dense(self.num_features)(jnp.tanh(filters) * nn.sigmoid(gates))
            new.append(past[n:].astype(buffer.dtype))
        return tuple(new), h


class _Transformer(nn.Module):
    max_length: int
    num_features: int
    num_layers: int
    num_heads: int
    positions: Positions

    @nn.compact
    def __call__(self, x, cache):
        n, length, size = x.shape[0], *cache.keys[0].shape[1:]
        steps = cache.num_steps + jnp.arange(n)
        visible = jnp.arange(length)[None] <= steps[:, None]  # (n, length)
        keys, values = [], []
        h = self.positions.at_input(_dense(self.num_features)(x), steps, self.max_length)  # (n, C)
        for past_keys, past_values in zip(cache.keys, cache.values, strict=True):
            normed = nn.LayerNorm()(h)
            q, k, v = (nn.DenseGeneral((self.num_heads, size))(normed) for _ in range(3))  # (n, H, C / H)
            k, q = (self.positions.at_attention(a, steps) for a in (k, q))
            keys.append(_written(past_keys, k, cache.num_steps))
            values.append(_written(past_values, v, cache.num_steps))
            scores = jnp.einsum("nhc,hlc->hnl", q, keys[-1]) / size**0.5
            weights = nn.softmax(jnp.where(visible[None], scores, -jnp.inf))
            attended = jnp.einsum("hnl,hlc->nhc", weights, values[-1])
            h = h + nn.DenseGeneral(self.num_features, axis=(-2, -1))(attended)
            hidden = _dense(4 * self.num_features)(nn.LayerNorm()(h))
            # The gradient computes gelu once more from its input: quicker than to write and read what lies between.
            h = h + _dense(self.num_features)(jax.checkpoint(nn.gelu)(hidden))
        # Beyond the cache a step would overwrite the last one without a word.
        y = jnp.where(cache.num_steps + n <= length, nn.LayerNorm()(h), jnp.nan)
        return Cache(tuple(keys), tuple(values), cache.num_steps + n), y


def _written(past: Array, new: Array, start: Array) -> Array:
    """Keys or values with those of the n steps from `start` on, (n, H, C / H), in their place: (H, length, C / H)."""
    zero = jnp.zeros_like(start)
    return jax.lax.dynamic_update_slice(past, new.swapaxes(0, 1).astype(past.dtype), (zero, start, zero))


def _product(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
    """The product x @ kernel of a Dense layer, whose kernel gets an axis of one, (inputs, 1, outputs).

    The numbers are the same. But without it XLA on CPU takes the kernel's gradient, over a batch of sequences, as one product of
    two transposed arrays, which is two to three times slower than a product that is then transposed.
    """
    return jax.lax.dot_general(x, kernel[:, None], dimensions, precision)[..., 0, :]


_dense = functools.partial(nn.Dense, dot_general=_product)
