"""Causal networks without recurrence, as `SequenceNet`s: dilated convolutions, and a Transformer."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_shape
from genmod.core.types import Array
from genmod.nets.functional import apply as apply_module, init as init_module
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
    """Keys and values of the steps so far, (num_layers, length, num_heads, head features), and how many steps there were."""

    keys: Array
    values: Array
    num_steps: Array


@dataclasses.dataclass(frozen=True)
class CausalTransformer(SequenceNet):
    """A Transformer (Vaswani et al. 2017, arXiv:1706.03762) that sees the past: layer norms before the blocks, rotary positions.

    (T, features) -> (T, num_features), T at most `max_length`: steps beyond it give NaN. Positions enter as rotations of keys
    and queries (Su et al. 2021, arXiv:2104.09864, eq. 34). The carry is a `Cache`.
    """

    max_length: int
    num_features: int = 64
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self):
        super().__post_init__()
        counts = ("max_length", "num_features", "num_layers", "num_heads")
        check_count(**{name: getattr(self, name) for name in counts})
        if self.num_features % (2 * self.num_heads):
            raise ValueError(
                "num_features must be a multiple of 2 num_heads, as rotary positions turn pairs of features; "
                f"got num_features={self.num_features}, num_heads={self.num_heads}"
            )

    def init(self, key, x):
        return init_module(self._module, key, check_sequence(x), *self._cache(x.shape[0], x.dtype))

    def init_carry(self, params, length=None):
        return self._cache(length, params_dtype(params))

    def extend(self, params, carry, x):
        self._check_length(x.shape[0])
        carry, y = apply_module(self._module, params, x, *carry)
        return carry, y

    @property
    def _module(self):
        return _Transformer(self.num_features, self.num_layers, self.num_heads)

    def _cache(self, length: int | None, dtype: Any) -> Cache:
        length = self.max_length if length is None else length
        self._check_length(length)
        blank = jnp.zeros((self.num_layers, length, self.num_heads, self.num_features // self.num_heads), dtype)
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
    num_features: int
    num_layers: int
    num_heads: int

    @nn.compact
    def __call__(self, x, keys, values, num_steps):
        n, length = x.shape[0], keys.shape[1]
        positions = num_steps + jnp.arange(n)
        visible = jnp.arange(length)[None] <= positions[:, None]  # (n, length)
        h = nn.Dense(self.num_features)(x)  # (n, C)
        for layer in range(self.num_layers):
            normed = nn.LayerNorm()(h)
            q, k, v = (nn.DenseGeneral((self.num_heads, keys.shape[-1]))(normed) for _ in range(3))  # (n, H, C / H)
            start = (jnp.int32(layer), num_steps, jnp.int32(0), jnp.int32(0))
            keys = jax.lax.dynamic_update_slice(keys, _rotate(k, positions)[None].astype(keys.dtype), start)
            values = jax.lax.dynamic_update_slice(values, v[None].astype(values.dtype), start)
            scores = jnp.einsum("nhc,lhc->hnl", _rotate(q, positions), keys[layer]) / keys.shape[-1] ** 0.5
            weights = nn.softmax(jnp.where(visible[None], scores, -jnp.inf))
            attended = jnp.einsum("hnl,lhc->nhc", weights, values[layer])
            h = h + nn.DenseGeneral(self.num_features, axis=(-2, -1))(attended)
            hidden = nn.gelu(nn.Dense(4 * self.num_features)(nn.LayerNorm()(h)))
            h = h + nn.Dense(self.num_features)(hidden)
        # Beyond the cache a step would overwrite the last one without a word.
        y = jnp.where(num_steps + n <= length, nn.LayerNorm()(h), jnp.nan)
        return Cache(keys, values, num_steps + n), y


def _rotate(x: Array, positions: Array) -> Array:
    """Turns the pairs (x_i, x_{i + C/2}) of x, (n, H, C), by the angles position / 10000^(2 i / C)."""
    half = x.shape[-1] // 2
    speed = 10_000.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
    angle = positions.astype(x.dtype)[:, None, None] * speed[None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
