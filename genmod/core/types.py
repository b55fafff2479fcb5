"""The types that signatures speak of."""

from typing import Any

import jax

Array = jax.Array
Key = jax.Array
Params = Any
Context = Array | None
Info = dict[str, Array]
Shape = tuple[int, ...]
