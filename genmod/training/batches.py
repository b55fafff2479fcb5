"""Minibatches of resident data, without replacement, epoch after epoch.

Minibatch i is a pure function of (key, i): epoch e is cut from a permutation that belongs to (key, e), and rows that do not fill
a batch wait for the next shuffle. A loop carries the permutation along, so that it is made once an epoch.

The permutation sorts the rows by a hash of their numbers: with two words a, b of the epoch, row i comes at the rank of
mix(mix(i + a) ^ b), where mix is a bijection of 32-bit integers of almost no bias (lowbias32, github.com/skeeto/hash-prospector).
There are no ties. The hashes are sorted alone, and each tells its row by the inverse of the bijection: a sort that carries the
rows along takes three times as long (130 us against 40, of 1,000 rows), and one by random bits of JAX compiles 0.2 s longer.

How many rows there are is a traced number, `Order.num`. Arrays may be longer, see `padded`, so that one program serves many
numbers of rows; what lies beyond is never drawn, and the minibatches are those of the rows alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.types import Array, Key

# Of larger data the copy takes longer, and the compilation that it saves is little beside the run.
PADDED_BYTES = 2**26


class Order(NamedTuple):
    """The permutation of the rows in one epoch, the first `num` of these integers; the number of that epoch; two words of the
    key; and `num`, how many rows there are."""

    rows: Array
    epoch: Array
    seed: Array
    num: Array


def no_order(data: Any, num: Array, key: Key) -> Order:
    """The order of no epoch, for a loop to start with, wherever it starts; of the first `num` rows of the data."""
    words = jax.random.key_data(key)[jnp.array([0, -1])].astype(jnp.uint32)
    return Order(jnp.zeros(_length(data), jnp.int32), jnp.full((), -1, jnp.int32), words, num)


def draw(data: Any, batch_size: int, index: Array, order: Order) -> tuple[Any, Order]:
    """(minibatch `index`, the order to carry on)."""
    per_epoch = order.num // batch_size
    epoch, place = index // per_epoch, index % per_epoch
    rows = jax.lax.cond(
        order.epoch == epoch, lambda: order.rows, lambda: permutation(order.seed, epoch, order.num, _length(data))
    )
    drawn = jax.lax.dynamic_slice_in_dim(rows, place * batch_size, batch_size)
    return jax.tree.map(lambda a: a[drawn], data), order._replace(rows=rows, epoch=epoch)


def draw_several(data: Any, batch_size: int, index: Array, num: int, order: Order) -> tuple[Any, Order]:
    """(minibatches index .. index + num - 1 stacked, the order to carry on)."""

    def body(order, index):
        batch, order = draw(data, batch_size, index, order)
        return order, batch

    order, batches = jax.lax.scan(body, order, index + jnp.arange(num, dtype=jnp.int32))
    return batches, order


def permutation(seed: Array, epoch: Array, num: Array | int, length: int) -> Array:
    """(length,) integers, whose first `num` are a permutation of 0 .. num - 1; the others mean nothing.

    The permutation belongs to the words `seed`, (2,) of 32 bits, and the number of the epoch, whatever the length is.
    """
    number = jnp.asarray(epoch).astype(jnp.uint32)
    a, b = _mix(number + seed[0]), _mix(_mix(number ^ seed[1]) + seed[0])
    rows = jnp.arange(length, dtype=jnp.uint32)
    hashes = jnp.where(rows < jnp.asarray(num, jnp.uint32), _mix(_mix(rows + a) ^ b), jnp.uint32(2**32 - 1))
    ordered = jax.lax.sort(hashes, is_stable=False)
    return (_unmix(_unmix(ordered) ^ b) - a).astype(jnp.int32)


def padded(arrays: Any) -> Any:
    """The arrays on the host, with rows of zeros up to `bucket` of their number; None where they are to stay as they are.

    That is where they have such a length, are larger than 64 MiB, or where a user has put them on a device.
    """
    leaves, num = jax.tree.leaves(arrays), _length(arrays)
    length = bucket(num)
    if length == num or any(_is_placed(leaf) for leaf in leaves) or sum(leaf.nbytes for leaf in leaves) > PADDED_BYTES:
        return None

    def longer(leaf):
        made = np.zeros((length, *leaf.shape[1:]), leaf.dtype)
        made[:num] = leaf
        return made

    return jax.tree.map(longer, arrays)


def bucket(num: int) -> int:
    """The first of 9, 11, 13, 15, 18, 22, 26, 30, 36, ... that is at least `num`: at most 22 % more, from 9 on.

    These are odd numbers of four bits times powers of two. Round numbers, decimal or binary, lie well below one of them: 1,000
    and 1,100 rows share a length, and so do 10,000 and 11,000.
    """
    scale = 2 ** max(0, num.bit_length() - 4)
    return next(odd * scale for odd in (9, 11, 13, 15, 18) if odd * scale >= num)


def _is_placed(leaf: Any) -> bool:
    """Whether an array is committed to devices, or of keys, which are no numbers for NumPy."""
    return isinstance(leaf, jax.Array) and (leaf.committed or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


_FACTORS = 0x7FEB352D, 0x846CA68B
_INVERSES = tuple(pow(factor, -1, 2**32) for factor in _FACTORS)


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(_FACTORS[0])
    x = (x ^ (x >> 15)) * jnp.uint32(_FACTORS[1])
    return x ^ (x >> 16)


def _unmix(x: Array) -> Array:
    """The inverse of `_mix`; that of x ^ (x >> 15) is x ^ (x >> 15) ^ (x >> 30)."""
    x = (x ^ (x >> 16)) * jnp.uint32(_INVERSES[1])
    x = (x ^ (x >> 15) ^ (x >> 30)) * jnp.uint32(_INVERSES[0])
    return x ^ (x >> 16)


def _length(data: Any) -> int:
    return jax.tree.leaves(data)[0].shape[0]
