"""Maximum likelihood: -E_data[log p(x)], the forward KL(data || model) up to the entropy of the data."""

from collections.abc import Callable

from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array


def negative_log_likelihood(
    log_prob_fn: Callable[[Array], Array], x: Array, *, name: str = "nll_nats", weight: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """The (weighted) mean of -log p over a batch, with its standard error.

    Args:
      log_prob_fn: x (n,) + event shape -> (n,) log-densities of whole events, summed over the event, in nats.
      x: the batch.
      name: what the log-density is.
      weight: (n,), of the rows; None: all equal.

    Returns (loss, {name: loss, name + "_sem": standard error}).
    """
    mean, sem = mean_and_sem(-log_prob_fn(x), weight)
    return mean, {name: mean, f"{name}_sem": sem}
