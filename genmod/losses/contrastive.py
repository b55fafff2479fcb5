"""Contrast: the loss whose gradient is that of -log p(data), for p = f / Z of unknown Z, by draws of the model.

    loss = E_samples[log f] - E_data[log f],        grad E_data[-log p] = E_p[grad log f] - E_data[grad log f]

No gradient passes through the rows. With samples that are draws of p the gradient is without bias; with the ends of chains that
began at the data it is that of contrastive divergence (Hinton 2002, 10.1162/089976602760128018). The value of the loss is no
likelihood, and no measure of the fit.
"""

from collections.abc import Callable
from typing import Any

import jax

from genmod.core.batching import vmap_events
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array


def contrast(
    log_prob_fn: Callable[[Any], Array],
    data: Any,
    samples: Any,
    *,
    weight: Array | None = None,
    sample_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """(E_samples[log f] - E_data[log f], the mean energy of the data), means over rows.

    Args:
      log_prob_fn: of ONE row, log f in nats. data, samples: rows, pytrees with a leading axis; not as many of both.
      weight, sample_weight: of the rows of data and of samples; None: the same for all.
    """
    data, samples = jax.lax.stop_gradient((data, samples))
    of_data, _ = mean_and_sem(vmap_events(log_prob_fn)(data), weight)
    of_samples, _ = mean_and_sem(vmap_events(log_prob_fn)(samples), sample_weight)
    return of_samples - of_data, {"energy_nats": -of_data}
