"""Info: how a numerical computation of one event went, a dict of scalars that add up over the parts of a composition."""

import jax.numpy as jnp

from genmod.core.types import Array, Info

FAILED = "failed_solves"


def lost_roots(moved: Array) -> Info:
    """Whether a root was not found, on which an entry of one `moved` event depends: it is NaN then."""
    return {FAILED: jnp.isnan(moved).any().astype(jnp.float32)}


def add_info(*infos: Info) -> Info:
    """The sum of several infos, entry by entry; what one has not counts as 0."""
    total: Info = {}
    for info in infos:
        for name, value in info.items():
            total[name] = total[name] + value if name in total else value
    return total


def mark_failed(value: Array, info: Info) -> Array:
    """`value`, NaN where a solve failed."""
    return jnp.where(info[FAILED] > 0, jnp.nan, value) if FAILED in info else value
