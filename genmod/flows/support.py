"""Where the columns of a table lie: on the line, the half-line, an interval or a circle, and the layers that fit."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from genmod.bijectors import Angle, Chain, Columns, Exp, Rescale, Sigmoid, Standardize
from genmod.bijectors.base import Bijector
from genmod.core.description import Description
from genmod.core.types import Interval
from genmod.densities import Normal, Product, Uniform


@dataclasses.dataclass(frozen=True)
class Circle(Description):
    """A coordinate that closes: `high` is `low` again. Angles in radians by default; Circle(0, 24) for the time of day."""

    low: float = -math.pi
    high: float = math.pi

    def __post_init__(self):
        super().__post_init__()
        _check_ends((self.low, self.high))


Support = Literal["real", "positive"] | Interval | Circle


def check_support(support: Sequence[Support], dim: int) -> tuple[Support, ...]:
    """The support of each of `dim` columns; raises ValueError for another number of them and for what is none."""
    if isinstance(support, str) or len(support) != dim:
        raise ValueError(f"support must say where each of {dim} columns lies, got {support!r}")
    for kind in support:
        if isinstance(kind, tuple):
            _check_ends(kind)
        elif not isinstance(kind, Circle) and kind not in ("real", "positive"):
            raise ValueError(f"a support must be 'real', 'positive', (low, high) or a Circle, got {kind!r}")
    return tuple(support)


def data_side(support: Sequence[Support], standardize: bool) -> Bijector:
    """From where the layers work, the line and the circle [-pi, pi), to the columns."""
    return Columns(tuple(_column(kind, standardize) for kind in support))


def base_of(support: Sequence[Support]) -> Product:
    """Normal on lines, uniform on circles."""
    return Product(tuple(Uniform((), -math.pi, math.pi) if isinstance(kind, Circle) else Normal(()) for kind in support))


def _column(kind: Support, standardize: bool) -> Bijector:
    scale: tuple[Any, ...] = (Standardize(),) if standardize else ()
    if isinstance(kind, Circle):
        return Angle(kind.low, kind.high)
    if isinstance(kind, tuple):
        return Chain((*scale, Sigmoid(), Rescale(kind[1] - kind[0], kind[0])))
    return Chain((*scale, Exp()) if kind == "positive" else scale)


def _check_ends(interval: Any) -> None:
    if not (len(interval) == 2 and all(math.isfinite(end) for end in interval) and interval[0] < interval[1]):
        raise ValueError(f"an interval must be (low, high), finite, low < high, got {interval!r}")
