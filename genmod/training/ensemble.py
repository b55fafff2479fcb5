"""Ensembles: one model trained from several keys."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count
from genmod.core.keys import check_key
from genmod.core.types import Key
from genmod.models.base import Model
from genmod.training.fitting import fit
from genmod.training.loop import Fit


def fit_ensemble(model: Model, data: Any, *, key: Key, num_members: int, **options: Any) -> Fit:
    """`fit` from `num_members` keys, one run after the other: members differ in initialisation, minibatches and noise.

    The program is compiled once. `jax.vmap(model.log_prob, (0, None))(fit.params, x)` are the log-densities of the members,
    (members, n); their `jax.nn.logsumexp`, less the log of their number, is that of the equal mixture.

    Args:
      model, data: as in `fit`.
      key: split into one for each member.
      num_members: how many.
      options: of `fit`. A checkpoint folder has one folder for each member, "member_0" and on; a log one file for each. Of
        `callback` each member calls the same.

    Returns a `Fit` whose arrays have a leading axis of members, each with its own best parameters. Rows that a history lacks
    (patience ended one earlier) are NaN; `step` is that of the longest run.
    Raises as `fit`, and ValueError for `params` or `state`, which would make all members start alike.
    """
    check_count(num_members=num_members)
    if alike := [name for name in ("params", "state") if options.get(name) is not None]:
        raise ValueError(f"{alike[0]}=... would make all members start alike; leave it out of an ensemble")
    fits = []
    for i, own in enumerate(jax.random.split(check_key(key), num_members)):
        where = {}
        if options.get("checkpoint") is not None:
            where["checkpoint"] = Path(options["checkpoint"]) / f"member_{i}"
        if options.get("log") is not None:
            log = Path(options["log"])
            where["log"] = log.with_name(f"{log.stem}_{i}{log.suffix}")
        fits.append(fit(model, data, key=own, **(options | where)))

    def stacked(*trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    rows = max(len(each.history["step"]) for each in fits)
    history = {name: np.stack([_padded(each.history[name], rows) for each in fits]) for name in fits[0].history}
    params, last_params, state = (
        stacked(*trees) for trees in zip(*((f.params, f.last_params, f.state) for f in fits), strict=True)
    )
    return Fit(params, last_params, history, state, max(each.step for each in fits))


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([values, np.full(rows - len(values), np.nan)]) if len(values) < rows else values
