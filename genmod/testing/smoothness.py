"""Whether a map is as smooth as promised: continuously differentiable, so that no density jumps.

At special points the derivatives on both sides are compared. Elsewhere lines between latents are searched for jumps of the
log-determinant: where it changes by far more over one cell than over its neighbours, the cell is cut, and so on. In a smooth
function nothing stands out of small cells; a jump stays.
"""

from typing import NamedTuple

import numpy as np

from genmod.core.types import Params
from genmod.testing.points import Points, Territory, flat, joined
from genmod.testing.probe import Probe
from genmod.testing.reports import Row

# A second derivative of 1e4 changes a slope by 1e-5 over a step of 1e-9: more is a kink.
_STEP, _FINEST, _ALLOWED, _SMOOTH = 1e-9, 1e-10, 1e-5, 1e-7
_NUM_LINES, _NUM_NODES, _NUM_CELLS, _NUM_PARTS = 3, 64, 4, 16


def kinks(probe: Probe, params: Params, sides: dict[bool, Points], values: np.ndarray) -> Row:
    """Derivatives just before, at and behind special points.

    Args:
      probe, params: in float64.
      sides: latents (False) and data (True), some of whose coordinates are at one of the `values`; these are moved.

    Returns the largest change of a log-determinant, or of a Jacobian in units of its norm.
    """
    worst = Row("derivatives on both sides of special points", 0.0, _ALLOWED)
    for inverse, points in sides.items():
        if not len(points.events):
            continue
        steps = _STEP * (1 + np.abs(points.events)) * np.isin(points.events, values)
        three = joined(*(points._replace(events=points.events + sign * steps) for sign in (-1, 0, 1)))
        moved = probe.move(params, three, inverse, probe.wide)
        before, at, behind = np.split(moved.jacobian, 3)
        bends = np.linalg.norm([before - at, behind - at], axis=(-2, -1)).max(0) / np.linalg.norm(at, axis=(-2, -1))
        before, at, behind = np.split(moved.log_det, 3)
        errors = np.maximum(bends, np.abs([before - at, behind - at]).max(0))
        i = int(np.argmax(errors))  # that of a NaN, where there is one
        if not errors[i] <= worst.error:
            worst = worst._replace(error=float(errors[i]), note=f"at {points.places[i]}")
    return worst


class _Lines(NamedTuple):
    """Straight lines start + s step, 0 <= s <= 1, (k,) + shape, with the context of each or None."""

    start: np.ndarray
    step: np.ndarray
    contexts: np.ndarray | None

    def at(self, which: np.ndarray, s: np.ndarray) -> Points:
        """Points s, (c, m), of the lines `which`, (c,): c m rows."""
        wide = s.reshape(*s.shape, *[1] * (self.start.ndim - 1))
        events = self.start[which][:, None] + wide * self.step[which][:, None]
        contexts = None if self.contexts is None else np.repeat(self.contexts[which], s.shape[1], 0)
        return Points(events.reshape(-1, *self.start.shape[1:]), contexts, ("",) * s.size)


def jumps(probe: Probe, params: Params, latents: Points, inside: Territory, singular: tuple[float, ...]) -> Row:
    """The largest jump of the log-determinant, and of the map where its domain is unbounded, along lines through latents.

    Args:
      probe, params: in float64.
      latents: of data. inside: where others lie.
      singular: values that no coordinate takes.
    """
    name = "jumps between latents"
    if not len(latents.events):
        return Row(name, 0.0, _ALLOWED)
    lines = _lines(latents, inside)
    circular = not inside.unbounded

    def standing_out(which, s):
        """How far the change over each cell stands out of its neighbours, (c, m - 1)."""
        moved = probe.move(params, lines.at(which, s), False, probe.wide)
        features = [moved.log_det]
        if not circular:  # where a circle closes, the map of it jumps
            x = flat(moved.value)
            features.append(np.arcsinh(x @ np.cos(np.arange(x.shape[1]))))
        changes = np.diff(np.stack([f.reshape(s.shape) for f in features]), axis=-1)
        around = np.pad(changes, [(0, 0), (0, 0), (1, 1)], mode="reflect")
        usual = np.median([around[..., :-2], changes, around[..., 2:]], axis=0)
        excess = np.abs(changes - usual).max(0)
        return np.where(np.isnan(excess), np.inf, excess)

    which = np.arange(len(lines.start))
    s = np.tile(np.linspace(0, 1, _NUM_NODES), (len(which), 1))
    excess = standing_out(which, s)
    events = lines.at(which, s).events.reshape(*s.shape, -1)
    for value in singular:
        side = np.sign(events - value)
        excess[(side[:, 1:] * side[:, :-1] <= 0).any(-1)] = 0.0
    cells = np.argsort(-excess, axis=1)[:, :_NUM_CELLS]
    which, low, width = np.repeat(which, cells.shape[1]), s[0, cells].reshape(-1), s[0, 1]
    error = np.take_along_axis(excess, cells, 1).reshape(-1)
    while width > _FINEST and np.isfinite(error).all() and (error > _SMOOTH).any():
        which, low = which[error > _SMOOTH], low[error > _SMOOTH]
        s = low[:, None] + width * np.linspace(0, 1, _NUM_PARTS + 1)
        excess, width = standing_out(which, s), width / _NUM_PARTS
        part = excess.argmax(1)
        error, low = excess[np.arange(len(part)), part], s[np.arange(len(part)), part]
    i = int(np.argmax(error))
    place = np.array2string(lines.at(which[i : i + 1], low[i : i + 1, None]).events.reshape(-1), precision=3, threshold=6)
    return Row(name, float(error[i]), _ALLOWED, f"at z = {place}")


def _lines(latents: Points, inside: Territory) -> _Lines:
    """From each of the first latents to that farthest from it, and as far beyond on both sides where that is allowed."""
    start = latents.events[:_NUM_LINES]
    farthest = ((flat(start)[:, None] - flat(latents.events)) ** 2).sum(-1).argmax(1)
    step = latents.events[farthest] - start
    longer = Points(np.concatenate([start - step, start + 2 * step]), None, ("",) * (2 * len(start)))
    if len(inside.within(longer).events) == len(longer.events):
        start, step = start - step, 3 * step
    return _Lines(start, step, None if latents.contexts is None else latents.contexts[: len(start)])
