"""Errors of values, held against what floating point allows.

A value of size |z| is rounded by eps |z|. The map back magnifies that by the norm of its Jacobian, a log-determinant by the norm
of its gradient. A relative error eps of a matrix moves its slogdet by eps times the condition number.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from genmod.core.types import Params
from genmod.testing.points import Points, flat, pick
from genmod.testing.probe import Moved, Probe
from genmod.testing.reports import Row, worst, worst_of_each

# Rounding errors add up over the operations of a layer; a wrong sign or a forgotten term is larger by far.
SLACK = 200.0
_NAMES = {False: ("forward", "inverse(forward(z)) = z"), True: ("inverse", "forward(inverse(x)) = x")}


class Truth(NamedTuple):
    """What float64 says of points.

    Attributes:
      value, log_det: on the other side. size: of a point and of its value.
      of_log_det, round_trip: how many units eps rounding may cost the log-determinant, and the way there and back.
    """

    value: np.ndarray
    log_det: np.ndarray
    size: np.ndarray
    of_log_det: np.ndarray
    round_trip: np.ndarray


def there_and_back(
    probe: Probe, params: Params, points: Points, inverse: bool, thin: bool = False, truth: Truth | None = None
) -> tuple[list[Row], Truth]:
    """Round trips and log-determinants of points that exist on both sides.

    Args:
      probe, params: in the same precision.
      points: data where `inverse`, else latents. thin: as in `Probe.move`; then no log-determinant is compared with autodiff.
      truth: of the same points in float64, from an earlier call; None: this is it.
    """
    there = probe.move(params, points, inverse, thin)
    back = probe.move(params, points._replace(events=there.value), not inverse, thin)
    rows = []
    if truth is None:
        truth = _truth(points, there, back)
        if not thin:
            rows = [autodiff(probe, points, there, inverse)]
            rows.append(autodiff(probe, points._replace(events=there.value), back, not inverse))
    else:
        rows.append(_as_in_float64(probe, points, there, inverse, truth))
    allowed = SLACK * probe.eps * truth.round_trip
    # Data are numbers of float32. What a latent is sent to may round so far that no inverse can find the latent again.
    kept = np.full(len(allowed), True) if inverse else ~(allowed > truth.size)
    places = pick(points, kept).places
    direction, trip = _NAMES[inverse]
    errors = {trip: largest(back.value - points.events), "log_dets opposite": np.abs(there.log_det + back.log_det)}
    rows += [worst(f"{name}, {probe.dtype.name}", error[kept], allowed[kept], places) for name, error in errors.items()]
    wrong = sum(a.dtype != probe.dtype for moved in (there, back) for a in (moved.value, moved.log_det))
    return [*rows, Row(f"outputs not {probe.dtype.name}", float(wrong), 0.0)], truth


def one_way(probe: Probe, params: Params, latents: Points, truth: Truth | None = None) -> tuple[list[Row], Truth]:
    """Log-determinants of latents from which there may be no way back: x may round to the end of its range."""
    moved = probe.move(params, latents, False, probe.wide)
    if truth is not None:
        return [_as_in_float64(probe, latents, moved, False, truth)], truth
    truth = _truth(latents, moved, moved)
    if probe.wide:
        return [], truth
    # Autodiff may read a slope off x, which near the end of its range has lost the digits of it.
    lost = truth.size / _of_finite(lambda jacobians: np.linalg.svd(jacobians, compute_uv=False).min(-1), moved.jacobian)
    kept = ~(SLACK * probe.eps * lost > 0.1)
    return [autodiff(probe, pick(latents, kept), Moved(*(a[kept] for a in moved)), False, lost[kept])], truth


def autodiff(probe: Probe, points: Points, moved: Moved, inverse: bool, lost: np.ndarray | float = 0.0) -> Row:
    """Log-determinants against slogdet of the Jacobians, which have `lost` units eps of their own."""
    errors = np.abs(moved.log_det - np.linalg.slogdet(moved.jacobian)[1])
    allowed = SLACK * probe.eps * (_of_finite(np.linalg.cond, moved.jacobian) + _of_log_det(points, moved) + lost)
    return worst(f"log_det {_NAMES[inverse][0]} = autodiff", errors, allowed, points.places)


def independent(probe: Probe, params: Params, points: Points) -> Row:
    """Rows of data among other rows: nothing of them may change."""
    half = max(1, len(points.events) // 2)
    rows = []
    for inverse in (True, False):
        one = probe.move(params, points, inverse, probe.wide)
        other = probe.move(params, pick(points, np.arange(len(points.events)) % half), inverse, probe.wide)
        rows.append(equal("a row = the row in another batch", probe, pick(points, slice(half)), one, other))
        points = points._replace(events=one.value)
    return worst_of_each(rows)[0]


def equal(name: str, probe: Probe, points: Points, one: Moved, other: Moved) -> Row:
    """What the points are sent to in two ways; `one` and `other` may have more rows."""
    n = len(points.events)
    errors = largest(one.value[:n] - other.value[:n]), np.abs(one.log_det[:n] - other.log_det[:n])
    allowed = (1 + largest(points.events)) * (1 + one.norm[:n]), _of_log_det(points, Moved(*(a[:n] for a in one)))
    return worst(name, np.concatenate(errors), SLACK * probe.eps * np.concatenate(allowed), points.places * 2)


def largest(values: np.ndarray) -> np.ndarray:
    """The largest absolute entry of each event, (n,)."""
    return np.abs(flat(values)).max(-1, initial=0.0)


def _of_finite(fn: Callable[[np.ndarray], np.ndarray], jacobians: np.ndarray) -> np.ndarray:
    """fn of the matrices, (n,); NaN of those with an entry that is not finite."""
    finite = np.isfinite(jacobians).all((-2, -1))
    out = np.full(len(jacobians), np.nan)
    out[finite] = fn(jacobians[finite])
    return out


def _truth(points: Points, there: Moved, back: Moved) -> Truth:
    size = 1 + largest(points.events) + largest(there.value)
    return Truth(there.value, there.log_det, size, _of_log_det(points, there), size * (1 + there.norm) * (1 + back.norm))


def _of_log_det(points: Points, moved: Moved) -> np.ndarray:
    """What rounding may cost a log-determinant, in units eps."""
    return 1 + np.abs(moved.log_det) + (1 + largest(points.events)) * moved.slope


def _as_in_float64(probe: Probe, points: Points, moved: Moved, inverse: bool, truth: Truth) -> Row:
    kept = largest(truth.value) < np.finfo(probe.dtype).max  # what overflows is no fault
    errors = np.abs(moved.log_det - truth.log_det)[kept]
    allowed = SLACK * probe.eps * truth.of_log_det[kept]
    return worst(f"log_det {_NAMES[inverse][0]}, {probe.dtype.name} = float64", errors, allowed, pick(points, kept).places)
