"""Units of likelihoods: bits per dimension, of image models; nats and bits per token, and perplexity, of language models."""

import math
from typing import Any

import numpy as np

from genmod.core.types import Shape


def bits_per_dim(nll_nats: Any, event_shape: Shape) -> Any:
    """A negative log-likelihood of an event, in nats, as bits per dimension: nll / (D log 2), D = the size of event_shape.

    Of integer data (`gm.models.Dequantized`); of real data the number depends on their units. Scales standard errors too.
    Raises ValueError for an event without entries.
    """
    if not math.prod(event_shape):
        raise ValueError(f"event_shape must hold at least one entry, got {event_shape}")
    return nll_nats / (math.prod(event_shape) * math.log(2.0))


def nats_per_token(nll_nats: Any, num_tokens: Any) -> float:
    """sum of NLL / sum of tokens: of events' NLL in nats, (n,), and their `event.num_units`, (n,); or of two totals.

    Raises ValueError unless there are as many of both, and at least one token.
    """
    nll, num = np.asarray(nll_nats, np.float64), np.asarray(num_tokens, np.float64)
    if nll.shape != num.shape or num.sum() < 1:
        raise ValueError(f"num_tokens must count tokens for each of nll_nats, got shapes {num.shape} and {nll.shape}")
    return float(nll.sum() / num.sum())


def bits_per_token(nll_nats: Any, num_tokens: Any) -> float:
    """`nats_per_token` in bits: of characters, bits per character."""
    return nats_per_token(nll_nats, num_tokens) / math.log(2.0)


def perplexity(nll_nats: Any, num_tokens: Any) -> float:
    """exp(`nats_per_token`): among as many equally likely tokens the choice would be as hard."""
    return math.exp(nats_per_token(nll_nats, num_tokens))
