"""Where an iterator is, as plain JSON: a checkpoint remembers it, and a resumed run goes there without the batches in between.

The protocol is that of Grain's `DatasetIterator`: `get_state()` gives a dict of JSON values, or bytes, and `set_state` of an
equal iterator, wherever it is, takes it back to that place.
"""

import base64
import json
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Positioned(Protocol):
    """An iterator that can tell where it is."""

    def get_state(self) -> dict[str, Any] | bytes:
        """Its position: after the last element that it gave."""
        ...

    def set_state(self, state: Any) -> None:
        """Goes to a position that `get_state` gave."""
        ...


def position(iterator: Any) -> dict[str, Any] | None:
    """The position of an iterator as JSON, `{"state": ...}` or `{"bytes": base64}`; None where it cannot tell.

    Raises TypeError for a state that is neither JSON nor bytes.
    """
    if not isinstance(iterator, Positioned):
        return None
    try:
        state = iterator.get_state()
    except NotImplementedError:
        return None
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode("ascii")}
    copy: Any = None
    try:
        copy = json.loads(json.dumps(state))  # which stays as it is when the iterator goes on
        difference = "" if copy == state else f"from JSON it comes back as {copy!r:.200}"
    except (TypeError, ValueError) as error:
        difference = str(error)
    if difference:
        raise TypeError(
            "get_state() of the data iterator must give a dict of JSON values (text as keys, lists, plain numbers), or bytes, "
            f"for a checkpoint to hold it: {difference}"
        )
    return {"state": copy}


def go_to(iterator: Positioned, place: dict[str, Any]) -> None:
    """Sets an iterator to what `position` gave of an equal one."""
    iterator.set_state(base64.b64decode(place["bytes"]) if "bytes" in place else place["state"])
