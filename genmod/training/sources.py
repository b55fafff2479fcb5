"""Where minibatches come from: arrays that live on the device, a stream of batches, or nothing at all.

A source hands the compiled loop what it needs for the steps now .. stop - 1: resident rows, of which the loop cuts its
minibatches itself; batches of a stream stacked on a leading axis.
"""

import abc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.description import describe
from genmod.training.batches import padded
from genmod.training.position import Positioned, go_to, position
from genmod.training.reading import is_stream, warn_of_rounding

# The batches of one dispatch are stacked on the device in one piece: this is the largest, in bytes.
STACK_BYTES = 2**28


class Ended(ValueError):
    """The batches of a stream do not reach."""


class Source(abc.ABC):
    """Minibatches.

    Attributes:
      arrays: the data, or the first batch of a stream; None without data.
      num_rows: how many rows `arrays` has, a scalar.
      batch_size: rows of a minibatch. resident: whether the loop cuts minibatches out of what `take` gives.
    """

    arrays: Any
    num_rows: np.int32
    batch_size: int
    resident: bool

    @abc.abstractmethod
    def example(self, per_step: int) -> Any:
        """Data of the form that `take` gives, from which the state of a step may begin."""

    @abc.abstractmethod
    def limit(self, per_step: int) -> int:
        """The largest number of steps of one dispatch, each of `per_step` minibatches."""

    @abc.abstractmethod
    def resume(self, num: int, place: Any) -> None:
        """Goes on after the first `num` minibatches: to the `place` that `position` gave there, where there is one."""

    @abc.abstractmethod
    def take(self, num: int, size: int, per_step: int) -> Any:
        """What the loop needs for the next `num` steps: all rows, or a stack (size, per_step, ...), whose rest is filling.

        Raises ValueError where the batches do not reach.
        """

    @abc.abstractmethod
    def prefetch(self, num: int, size: int, per_step: int) -> int:
        """Makes the next `take` ready while the device is busy; for how many of the `num` steps the data reach."""

    @abc.abstractmethod
    def position(self, num: int) -> Any:
        """Where it was after the first `num` minibatches of the last `take`, as JSON; None where it cannot or need not tell.

        What was read ahead does not count. Raises TypeError where an iterator's state is no JSON.
        """

    @abc.abstractmethod
    def fingerprint(self) -> Any:
        """What a checkpoint remembers of the data."""


class Resident(Source):
    """Arrays on the device, or None for no data. They need no memory of where they were: minibatch i is a function of i.

    The first `num_rows` are the data; there may be more, see `padded`.
    """

    def __init__(self, arrays: Any, batch_size: int):
        self.resident = arrays is not None
        num = num_rows(arrays) if self.resident else 0
        self.num_rows, self.batch_size = np.int32(num), min(batch_size, num) if self.resident else batch_size
        longer = padded(arrays) if num > self.batch_size else None  # one batch of all rows is a program of its own
        self._rows = jax.device_put(arrays if longer is None else longer)
        self.arrays = self._rows if longer is None else arrays

    def example(self, per_step):
        return self._rows

    def limit(self, per_step):
        return 2**31 - 1

    def resume(self, num, place):
        pass

    def take(self, num, size, per_step):
        return self._rows

    def prefetch(self, num, size, per_step):
        return num

    def position(self, num):
        return None

    def fingerprint(self):
        return fingerprint(self.arrays)


class Stream(Source):
    """Batches of an iterator, or of a loader again and again; a shorter last batch of a loader is left out of each turn.

    Iterators that are `Positioned` are asked for their place before and after the batches of each dispatch.
    """

    resident = False

    def __init__(self, data: Any, read: Callable[[str, Any], Any]):
        self._data, self._repeats = data, not isinstance(data, Iterator)
        self._iterator, self._read, self._turn = iter(data), read, 1
        self._before = self._after = self._place()  # the places before and after the batches that were taken last
        try:
            first = next(self._iterator)
        except StopIteration:
            raise ValueError("data is empty, or an iterator at its end; pass a new one") from None
        self._waiting, self._num_good = [first], 0  # batches of this turn that had the right size
        self._num_taken, self._ready = 0, None  # ready: what comes next, and the place after it
        host = read("data", first)
        warn_of_rounding("data", host)
        self.arrays = jax.device_put(host)
        self.batch_size = num_rows(self.arrays)
        self.num_rows = np.int32(self.batch_size)

    def fingerprint(self):
        return "streamed"

    def example(self, per_step):
        return jax.tree.map(lambda a: np.stack([np.asarray(a)] * per_step)[None], self.arrays)

    def limit(self, per_step):
        size = sum(a.nbytes for a in jax.tree.leaves(self.arrays)) * per_step
        return max(1, STACK_BYTES // max(1, size))

    def resume(self, num, place):
        if place is not None and isinstance(self._iterator, Positioned):
            for _ in range(self._turn, place["turn"]):  # a loader may shuffle anew for each of its iterators
                self._iterator = iter(self._data)
            go_to(self._iterator, place)
            self._turn, self._waiting, self._num_good, num = place["turn"], [], 1, place["past"]
        for _ in itertools.islice(self._batches(), num):
            pass
        if not self._waiting:
            self._after = self._place()

    def take(self, num, size, per_step):
        ready, self._ready = self._ready, None
        if ready is None:
            made, reached = self._stack(num, size, per_step)
            if reached < num:
                raise Ended("the data iterator ended before num_steps batches; let it repeat, or ask for fewer steps")
            ready = made, self._place()
        self._num_taken, self._before, (made, self._after) = num * per_step, self._after, ready
        if isinstance(made, Exception):
            raise made
        return made

    def prefetch(self, num, size, per_step):
        try:
            made, reached = self._stack(num, size, per_step)
        except Exception as error:  # it belongs to the steps that want these batches
            made, reached = error, num
        self._ready = made, self._place()
        return reached

    def position(self, num):
        place, past = (self._after, 0) if num == self._num_taken else (self._before, num)
        if isinstance(place, Exception):
            raise place
        return None if place is None else place | {"past": past}

    def _place(self) -> Any:
        """Where the iterator is; an exception stays unraised until a checkpoint wants the place."""
        try:
            place = position(self._iterator)
        except Exception as error:
            return error
        return None if place is None else place | {"turn": self._turn}

    def _batches(self) -> Iterator[Any]:
        """The batches from here on, read; those of a loader without end."""
        while True:
            for batch in itertools.chain(self._waiting, self._iterator):
                self._waiting = []
                batch = self._read("data", batch)
                rows = num_rows(batch)
                if rows < self.batch_size and self._repeats:
                    continue
                if rows != self.batch_size:
                    raise ValueError(f"the batches of data must have one size, got {rows} rows after {self.batch_size}")
                self._num_good += 1
                yield batch
            if not (self._repeats and self._num_good):
                return
            self._iterator, self._turn, self._num_good = iter(self._data), self._turn + 1, 0

    def _stack(self, num, size, per_step):
        got = list(itertools.islice(self._batches(), num * per_step))
        reached = len(got) // per_step
        if not reached:
            return None, 0
        got = got[: reached * per_step]
        got += got[-1:] * ((size - reached) * per_step)  # one shape for all dispatches: the loop does not come to these
        return jax.device_put(jax.tree.map(lambda *leaves: _stacked(leaves, per_step), *got)), reached


def as_source(data: Any, batch_size: int, read: Callable[[str, Any], Any]) -> Source:
    """The source of what a user calls data; `read(name, data)` makes arrays of them."""
    if isinstance(data, Source):
        return data
    if data is None:
        return Resident(None, batch_size)
    if is_stream(data):
        return Stream(data, read)
    arrays = read("data", data)
    warn_of_rounding("data", data)
    return Resident(arrays, batch_size)


def read_all(name: str, data: Any, read: Callable[[str, Any], Any]) -> Any:
    """Arrays, or all batches of a finite iterable put together, on the device; None of None."""
    if data is None:
        return None
    if not is_stream(data):
        return jax.device_put(read(name, data))
    batches = [read(name, batch) for batch in data]
    if not batches:
        raise ValueError(f"{name} is empty")
    return jax.device_put(jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *batches))


def num_rows(arrays: Any) -> int:
    """The length of the leading axis."""
    return jax.tree.leaves(arrays)[0].shape[0]


def fingerprint(arrays: Any) -> list[Any]:
    """Dtype, shape and checksum of every array of a pytree."""
    return [describe(a if _is_key(a) else np.asarray(a)) for a in jax.tree.leaves(arrays)]


def _stacked(leaves, per_step):
    xp = jnp if isinstance(leaves[0], jax.Array) else np
    return xp.stack(leaves).reshape(-1, per_step, *leaves[0].shape)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
