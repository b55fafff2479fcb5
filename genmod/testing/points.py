"""Where `check_bijection` looks: at all rows given, far from them on both sides, and where pieces of a map may meet.

Numbers are of float32, so that both precisions see the same points. No point lies where the map is known not to be.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from genmod.bijectors.base import Bijector
from genmod.bijectors.transformers import Transformer
from genmod.core.description import Description
from genmod.core.types import REALS, Interval, Shape

NOWHERE: Interval = (math.inf, -math.inf)


class Points(NamedTuple):
    """Events, (n,) + shape, the context of each or None, and in words where each of them lies."""

    events: np.ndarray
    contexts: np.ndarray | None
    places: tuple[str, ...]


def points_of(events: Any, contexts: Any, name: str) -> Points:
    """The rows of a batch."""
    events = rounded(events)
    contexts = None if contexts is None else np.asarray(contexts)
    if contexts is not None and np.issubdtype(contexts.dtype, np.floating):
        contexts = rounded(contexts)
    return Points(events, contexts, tuple(f"{name}[{i}]" for i in range(len(events))))


def rounded(values: Any) -> np.ndarray:
    """To numbers of float32."""
    return np.asarray(values, np.float32).astype(np.float64)


def flat(events: np.ndarray) -> np.ndarray:
    """(n,) + shape as (n, D)."""
    return events.reshape(len(events), math.prod(events.shape[1:]))


def pick(points: Points, rows: Any) -> Points:
    """Some of the points, by index or mask."""
    rows = np.arange(len(points.events))[rows]
    contexts = None if points.contexts is None else points.contexts[rows]
    return Points(points.events[rows], contexts, tuple(points.places[i] for i in rows))


def joined(*parts: Points) -> Points:
    """All points of several sets."""
    contexts = None if parts[0].contexts is None else np.concatenate([part.contexts for part in parts])  # type: ignore[misc]
    return Points(np.concatenate([part.events for part in parts]), contexts, sum((part.places for part in parts), ()))


def hull(points: Points) -> Interval:
    """The largest interval that every coordinate spans; NOWHERE where there is none."""
    rows = flat(points.events)
    low, high = float(rows.min(0).max()), float(rows.max(0).min())
    return (low, high) if low < high else NOWHERE


@dataclasses.dataclass(frozen=True)
class Territory:
    """Where a map is defined: of latents, or of data where `inverse`. `box`: outside of it nothing is known."""

    bijector: Bijector
    inverse: bool
    box: Interval = REALS

    @property
    def unbounded(self) -> bool:
        """Whether every number is inside, as far as is known."""
        return self.box == REALS and not _refuses(self.bijector, REALS, self.inverse)

    def holds(self, low: float, high: float) -> bool:
        """Whether coordinates from `low` to `high` lie inside."""
        margin = 1e-6 * (1 + max(abs(low), abs(high)))
        inside = self.box[0] <= low - margin and high + margin <= self.box[1]
        return inside and not _refuses(self.bijector, (low - margin, high + margin), self.inverse)

    def within(self, points: Points) -> Points:
        """Those of the points that lie inside."""
        rows = flat(points.events)
        return pick(points, [self.holds(float(row.min()), float(row.max())) if row.size else True for row in rows])


def territory(bijector: Bijector, inverse: bool, stated: Interval, unknown: Interval, partly: Interval) -> Territory:
    """What `bijector.image` says about where it is defined, within `stated`.

    Args:
      bijector, inverse: whose domain; with `inverse` its range.
      stated: what the caller says.
      unknown: where to look if the bijector says nothing.
      partly: where to look if it says that it is not defined everywhere, and not where it is.
    """
    if not _refuses(bijector, REALS, inverse):
        box = unknown if bijector.image(REALS, inverse) is None else REALS
    else:
        knows = any(_refuses(bijector, beyond, inverse) for beyond in ((1e9, 2e9), (-2e9, -1e9)))
        box = REALS if knows else partly
    return Territory(bijector, inverse, (max(box[0], stated[0]), min(box[1], stated[1])))


def _refuses(bijector: Bijector, interval: Interval, inverse: bool) -> bool:
    try:
        bijector.image(interval, inverse)
    except ValueError:
        return True
    return False


def far_points(points: Points, factor: float, inside: Territory) -> Points:
    """`factor` times as far from the mean, and as far on the other side of it."""
    if not len(points.events):
        return points
    mean = points.events.mean(0)
    sides = [
        points._replace(
            events=rounded(mean + sign * factor * (points.events - mean)),
            places=tuple(f"{place}, {sign * factor:g} times as far from the mean" for place in points.places),
        )
        for sign in (1, -1)
    ]
    return inside.within(joined(*sides))


def knots_of(description: Any) -> set[float]:
    """Where the pieces of the transformers in a description meet, before anything is learned."""
    parts = description if isinstance(description, tuple) else ()
    if isinstance(description, Description):
        parts = tuple(getattr(description, field.name) for field in dataclasses.fields(description))  # type: ignore[arg-type]
    own = description.knots if isinstance(description, Transformer) else ()
    return set(own).union(*map(knots_of, parts))


def special_points(values: np.ndarray, shape: Shape, rows: Points, inside: Territory) -> Points:
    """Events of `shape` whose coordinates are all at one of the values, and `rows` with one coordinate there."""
    if not len(rows.events):
        return rows
    name, events, contexts, places = "x" if inside.inverse else "z", [], [], []
    size = math.prod(shape)
    for i, value in enumerate(v for v in values.tolist() if inside.holds(v, v)):
        row, at = i % len(rows.events), i % max(size, 1)
        one = rows.events[row].reshape(-1).copy()
        one[at : at + 1] = value
        both = ((np.full(size, value), f"every {name}_i = {value:g}"), (one, f"{name}_{at} = {value:g}"))
        for event, place in both[: max(1, min(size, 2))]:
            events.append(event.reshape(shape))
            contexts.append(None if rows.contexts is None else rows.contexts[row])
            places.append(place)
    if not events:
        return pick(rows, slice(0))
    found = Points(np.stack(events), None if rows.contexts is None else np.stack(contexts), tuple(places))
    return inside.within(found)
