"""Bits per dimension, the unit of image models."""

import math
from typing import Any

from genmod.core.types import Shape


def bits_per_dim(nll_nats: Any, event_shape: Shape) -> Any:
    """A negative log-likelihood of an event, in nats, as bits per dimension: nll / (D log 2), D = the size of event_shape.

    Of integer data (`gm.models.Dequantized`); of real data the number depends on their units. Scales standard errors too.
    Raises ValueError for an event without entries.
    """
    if not math.prod(event_shape):
        raise ValueError(f"event_shape must hold at least one entry, got {event_shape}")
    return nll_nats / (math.prod(event_shape) * math.log(2.0))
