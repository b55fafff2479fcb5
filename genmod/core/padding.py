"""Rows of sequences of several lengths, as one batch."""

from typing import Any, NamedTuple


class Padded(NamedTuple):
    """Rows of sequences of several lengths. What stands beyond their ends is not looked at, but must be finite.

    Attributes:
      x: latents z, (n, T) + the shape of a step. context: observations, (n, T, features).
      num_steps: how many steps are real, (n,) integers in 1..T.
      weight: of the rows, (n,); None: all equal.
    """

    x: Any
    context: Any
    num_steps: Any
    weight: Any = None
