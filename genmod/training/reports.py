"""What a loss, a step or a validation may report: scalars by name."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from genmod.core.types import Array

RESERVED = "validation_"


def check_names(owner: str, metrics: Iterable[str], reserved: tuple[str, ...]) -> None:
    """Raises ValueError for a metric whose name `fit` gives itself."""
    for name in metrics:
        if name in reserved or str(name).startswith(RESERVED):
            names = ", ".join(repr(name) for name in reserved)
            raise ValueError(
                f"{owner} must not name a metric {name!r}: {names} and names that begin with {RESERVED!r} are given by fit"
            )


def check_metrics(owner: str, metrics: Any) -> dict[str, Array]:
    """The metrics as scalar arrays of at least float32; TypeError or ValueError, naming the metric, for anything else."""
    if not isinstance(metrics, dict):
        raise TypeError(f"{owner} must give its metrics as a dict of scalars, got {type(metrics).__name__}")
    checked = {}
    for name, value in metrics.items():
        value = jnp.asarray(value)
        if value.shape != ():
            raise ValueError(f"{owner} must give scalars as metrics, got {name!r} of shape {value.shape}; take its mean")
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(f"{owner} must give real metrics, got {name!r} of {value.dtype}")
        checked[name] = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    return checked


def watched(metrics: Iterable[str]) -> list[str]:
    """The names of the metrics that must stay finite."""
    return [name for name in metrics if name in ("loss", "grad_norm") or name.endswith("_loss")]
