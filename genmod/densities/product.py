"""Independent coordinates of different laws."""

import dataclasses

import jax
import jax.numpy as jnp

from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.densities.standard import Coordinatewise


@dataclasses.dataclass(frozen=True)
class Product(Distribution):
    """Coordinate i of a vector from `parts[i]`, a density of scalars: `Product((Normal(()), Uniform((), -1.0, 1.0)))`.

    Raises TypeError for a part that is no density of this module's scalars, ValueError for none at all.
    """

    parts: tuple[Coordinatewise, ...]

    def __post_init__(self):
        for i, part in enumerate(self.parts):
            if not isinstance(part, Coordinatewise) or part.shape != ():
                raise TypeError(f"parts[{i}] must be a density of scalars, such as gm.densities.Normal(()), got {part!r}")
        if not self.parts:
            raise ValueError("parts must hold at least one density, got none")
        super().__post_init__()

    @property
    def event(self):
        return Real((len(self.parts),))

    @property
    def support(self):
        supports = {part.support for part in self.parts}
        return supports.pop() if len(supports) == 1 else None

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        return sum((part.log_prob_one({}, x[i]) for i, part in enumerate(self.parts)), jnp.zeros((), x.dtype))

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key, len(self.parts))
        return jnp.stack([part.sample_one({}, key) for part, key in zip(self.parts, keys, strict=True)])
