"""Maximum likelihood: -E_data[log p(x)], the forward KL(data || model) up to the entropy of the data."""

from collections.abc import Callable

from genmod.base import Array
from genmod.metrics import mean_and_sem


def negative_log_likelihood(
    log_prob_fn: Callable[[Array], Array], x: Array, *, name: str = "nll_nats"
) -> tuple[Array, dict[str, Array]]:
    """Mean of -log p over the batch, with its standard error.

    `log_prob_fn` maps the batch x, (n,) + event shape, to (n,) log-densities of whole events (summed over the event).
    Returns (loss, {name: loss, name + "_sem": standard error}); `name` says what the log-density is.
    """
    mean, sem = mean_and_sem(-log_prob_fn(x))
    return mean, {name: mean, f"{name}_sem": sem}
