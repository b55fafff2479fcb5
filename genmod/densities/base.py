"""The door to Distrax's distributions, and what a base density may be.

A base density, a prior or a source is any `Distribution` of one event. Any `distrax.Distribution` of batch shape () can stand
in its place: `as_distribution` freezes it.
"""

import dataclasses
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.description import Description, describe
from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.core.types import Shape
from genmod.densities.standard import Normal


@dataclasses.dataclass(frozen=True)
class Frozen(Description):
    """A pytree of arrays that somebody else's class holds together, as a hashable value; build it with `freeze`.

    Attributes:
      kind: the name of that class. identity: its description, by which two are equal.
      structure, leaves: the pytree, its arrays in NumPy.
    """

    kind: str = dataclasses.field(compare=False)
    identity: str = dataclasses.field(repr=False)
    structure: Any = dataclasses.field(compare=False, repr=False)
    leaves: tuple[np.ndarray, ...] = dataclasses.field(compare=False, repr=False)

    def __post_init__(self):  # arrays are not hashable; the identity says what they are
        pass

    def __hash__(self):
        return hash(self.identity)

    def thaw(self, dtype: Any = None) -> Any:
        """The pytree again, its floats in `dtype`."""
        # Copies: of an array without axes that a scan has seen in float32, JAX remembers the float32 for ever.
        arrays = [jnp.asarray(np.array(leaf)) for leaf in self.leaves]
        if dtype is not None:
            arrays = [a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arrays]
        return jax.tree.unflatten(self.structure, arrays)


def freeze(tree: Any) -> Frozen:
    """A Distrax object with its arrays as constants, equal to its equal."""
    leaves, structure = jax.tree.flatten(tree)
    return Frozen(type(tree).__name__, repr(describe(tree)), structure, tuple(np.asarray(leaf) for leaf in leaves))


@dataclasses.dataclass(frozen=True)
class FromDistrax(Distribution):
    """A `distrax.Distribution` of batch shape (), kept as it is; build it with `as_distribution`."""

    shape: Shape
    frozen: Frozen

    @property
    def event(self):
        return Real(self.shape)

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):  # Distrax broadcasts
            return jnp.asarray(self.frozen.thaw(x.dtype).log_prob(x))

    def sample_one(self, params, key, context=None):
        with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
            return self.frozen.thaw().sample(seed=key)


def as_distribution(base: Any, event_shape: Shape | None = None) -> Distribution:
    """`base` as a Distribution: a Distrax distribution is kept fixed; None is the standard normal of `event_shape`.

    Raises TypeError for anything else, ValueError where `event_shape` is given and another.
    """
    if base is None and event_shape is not None:
        return Normal(event_shape)
    if isinstance(base, distrax.Distribution):
        if base.batch_shape:
            raise ValueError(f"base must have batch shape (), got {base.batch_shape}; wrap it in distrax.Independent")
        base = FromDistrax(tuple(base.event_shape), freeze(base))
    if not isinstance(base, Distribution):
        raise TypeError(f"base must be a Distribution such as gm.densities.Normal, or a distrax.Distribution, got {base!r}")
    if event_shape is not None and base.event_shape != event_shape:
        raise ValueError(f"base has event shape {base.event_shape}, the flow {event_shape}")
    return base
