"""What several experiments share."""

from typing import Any

import jax
import optax

import genmod as gm


def adam_with_cosine(
    learning_rate: float, num_steps: int, warm_up: int = 0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam whose rate rises over `warm_up` steps (half of them all at most), then falls to zero along a cosine.

    weight_decay: decoupled, of AdamW, in units of the rate.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(warm_up, num_steps // 2), num_steps)
    return optax.adamw(schedule, weight_decay=weight_decay) if weight_decay else optax.adam(schedule)


def with_labels(data: gm.data.Dataset, part: str, labelled: bool, num: int | None = None) -> tuple[Any, Any]:
    """(the first `num` images of a part of the data, their classes one-hot, or None unless `labelled`)."""
    assert data.labels is not None
    labels = jax.nn.one_hot(getattr(data.labels, part)[:num], 10) if labelled else None
    return getattr(data, part)[:num], labels
