"""Named random streams. One `jax.random.key(seed)` per run; everything else is folded from it by name and number."""

import zlib

import jax
import jax.numpy as jnp

from genmod.core.types import Array, Key


def stream(key: Key, name: str, index: int | Array | None = None) -> Key:
    """The key of the stream `name`, or of its draw number `index`: a pure function of (key, name, index).

    Raises TypeError for anything but one typed key, `jax.random.key(seed)`.
    """
    check_key(key)
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key if index is None else jax.random.fold_in(key, index)


def check_key(key: Key) -> Key:
    """`key` itself if it is one typed PRNG key; raises TypeError otherwise."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        given = type(key).__name__ + ("" if dtype is None else f" of dtype {dtype}")
        raise TypeError(f"key must be a typed key, jax.random.key(seed), got {given}")
    if key.shape:
        raise TypeError(f"key must be one key, got an array of shape {key.shape}; index or split it")
    return key
