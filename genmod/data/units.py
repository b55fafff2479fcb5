"""Data in units of their own, for columns that float32 does not resolve: times since an epoch, coordinates of a map.

    z = (x - shift) / scale,    log p(x) = log p(z) - log_scale,    log_scale = sum log scale

x is float64 on the host, in the user's units; z, of mean 0 and variance 1 in every column, is what a model is trained on in JAX's
precision. Both directions are computed in float64, so that no digit of x is lost before it is centred. Contexts may be given
units in the same way; `log_scale` is for events alone.

    units = gm.data.Units.of(train)
    fit = gm.fit(flow, units.to(train), key=key)
    log_prob = flow.log_prob(fit.params, units.to(test)) - units.log_scale      # nats, in the units of x
    x = units.back(flow.sample(fit.params, key, (1_000,)))                      # float64
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from genmod.core.arrays import ColumnKind, column_kind, column_names, refusal, to_context
from genmod.core.types import Shape


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """A shift and a scale for every entry of an event, float64 of its shape; `Units.of(x)` makes them from data.

    columns: the names of a table's columns, which a later table must have in the same order; None: of an array. `to_dict` and
    `from_dict` go to JSON and back without loss. Raises ValueError for shapes that differ, for numbers that are not finite, and
    for a scale that is not positive.
    """

    shift: np.ndarray
    scale: np.ndarray
    columns: tuple[str, ...] | None = None

    def __post_init__(self):
        for name in ("shift", "scale"):
            value = np.array(getattr(self, name), np.float64)
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if self.shift.shape != self.scale.shape:
            raise ValueError(
                f"shift and scale must have one shape, that of an event, got {self.shift.shape} and {self.scale.shape}"
            )
        if not (np.isfinite(self.shift).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("shift must be finite, scale finite and > 0")

    @classmethod
    def of(cls, x: Any) -> Self:
        """Mean and standard deviation of x, (n,) + event shape with n >= 2, over the rows; also a table of pandas or polars.

        Two passes over deviations that are first scaled to at most 1. Raises TypeError for what holds no numbers, ValueError
        for fewer rows, for NaN and infinite values, and for a constant column, which has no scale.
        """
        names, given = column_names(x), _real("x", x)
        x = given.astype(np.float64)
        if x.ndim < 1 or len(x) < 2 or not x.size:
            raise ValueError(f"x must have shape (n,) + event shape with n >= 2 rows, got {x.shape}")
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            raise ValueError(
                f"x must be finite, got {len(bad)} values that are not, the first ({x[tuple(bad[0])]}) in row {bad[0][0]} (from "
                "0); drop or fill them"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # of columns that are refused below
            mean = x[0] + (x - x[0]).mean(0)
            mean = mean + (x - mean).mean(0)  # what the rounding of a long sum has left
            deviation = x - mean
            largest = np.abs(deviation).max(0)
            constant = largest <= 2 * float(jnp.finfo(given.dtype).eps) * np.abs(mean)
        if not np.isfinite(largest).all():
            raise ValueError(f"x spans more than float64 holds in {_first(~np.isfinite(largest), names)}; change its unit")
        if constant.any():
            raise ValueError(f"x is constant in {_first(constant, names)}, which has no scale; drop it")
        return cls(mean, largest * np.sqrt(((deviation / largest) ** 2).mean(0)), None if names is None else tuple(names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Units) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.shift.tobytes(), self.scale.tobytes(), self.columns))

    @property
    def event_shape(self) -> Shape:
        """The shape of one event."""
        return self.shift.shape

    @property
    def log_scale(self) -> float:
        """The sum of the logs of the scales: log p(x) = log p(z) - log_scale, in nats."""
        return math.fsum(np.log(self.scale).ravel())

    def to(self, x: Any) -> np.ndarray:
        """z of events x, any axes + event shape, in JAX's default precision; raises as `back`."""
        return ((self._events("x", x) - self.shift) / self.scale).astype(jnp.result_type(float))

    def back(self, z: Any) -> np.ndarray:
        """x of events z, any axes + event shape, in float64.

        Raises TypeError for what holds no real numbers, ValueError for another event shape.
        """
        return self.shift + self.scale * self._events("z", z)

    def to_dict(self) -> dict[str, Any]:
        """{"shift": ..., "scale": ..., "columns": ...} of nested lists, for JSON."""
        columns = None if self.columns is None else list(self.columns)
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist(), "columns": columns}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The units that `to_dict` wrote down."""
        columns = values.get("columns")
        return cls(np.asarray(values["shift"]), np.asarray(values["scale"]), None if columns is None else tuple(columns))

    def _events(self, name, value):
        names = column_names(value)
        if names is not None and self.columns is not None and tuple(names) != self.columns:
            raise ValueError(f"{name} must have the columns {', '.join(self.columns)} in this order, got {', '.join(names)}")
        array = _real(name, value)
        if array.shape[array.ndim - len(self.event_shape) :] != self.event_shape or array.ndim < len(self.event_shape):
            raise ValueError(f"{name} must have shape (...,) + {self.event_shape}, got {array.shape}")
        return array.astype(np.float64)


def _real(name: str, value: Any) -> np.ndarray:
    """Numbers on the host, in their own precision; integers, such as seconds since an epoch, as float64."""
    array = np.asarray(to_context(name, value))
    kind = column_kind(array.dtype)
    if kind is ColumnKind.INTEGERS:
        return array.astype(np.float64)
    if kind is not ColumnKind.REAL:
        raise refusal(name, kind, (), str(array.dtype))
    return array


def _first(which: np.ndarray, names: list[str] | None) -> str:
    """The first of some columns, or entries of an event, as messages name it."""
    place = tuple(int(i) for i in np.argwhere(which)[0])
    if not place:
        return "all rows"
    return f"column {names[place[0]] if names else place[0]}" if len(place) == 1 else f"entry {place}"
