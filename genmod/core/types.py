"""The types that signatures speak of."""

import math
from typing import Any

import jax

Array = jax.Array
Key = jax.Array
Params = Any
Context = Array | None
Info = dict[str, Array]
Shape = tuple[int, ...]
Interval = tuple[float, float]

REALS: Interval = (-math.inf, math.inf)
