"""Events whose coordinates are of several kinds: on a line, a half-line, an interval, a circle.

`Columns` is a bijector per coordinate, for the side of the data; `PerCoordinate` a transformer per coordinate, for couplings.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.base import Bijector, InfoBijector
from genmod.bijectors.chain import common_context
from genmod.bijectors.distrax import as_bijector
from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check
from genmod.core.info import add_info


@dataclasses.dataclass(frozen=True)
class Columns(InfoBijector):
    """Coordinate i of a vector, (D,), through `bijectors[i]`; coordinates with equal bijectors are one event of it, (k,).

        Columns((Standardize(), Standardize(), Chain((Standardize(), Exp())), Rescale(np.pi / 180)))

    Parameters: a tuple, one entry for each different bijector, in the order of first appearance.
    Raises TypeError for a member that is no bijector, ValueError for none at all, for different contexts, and for an event of
    another length.
    """

    bijectors: tuple[Bijector, ...]

    def __post_init__(self):
        members = (as_bijector(bijector, f"bijectors[{i}]") for i, bijector in enumerate(self.bijectors))
        object.__setattr__(self, "bijectors", tuple(members))
        super().__post_init__()
        check(self.bijectors, "bijectors must hold one bijector for each coordinate, got none")
        common_context("the bijectors of Columns", self.bijectors)

    @property
    def event_shape(self):
        return (len(self.bijectors),)

    @property
    def context_shape(self):
        return common_context("the bijectors of Columns", self.bijectors)

    @property
    def likelihood(self):
        return max(bijector.likelihood for bijector in self.bijectors)

    @property
    def reads_data(self):
        return any(bijector.reads_data for bijector in self.bijectors)

    def image(self, interval, inverse=False):
        return _common(bijector.image(interval, inverse) for bijector in self.bijectors)

    def _init(self, key, x, context):
        return tuple(
            bijector.init_rows(jax.random.fold_in(key, i), x[:, at], context)
            for i, (bijector, at) in enumerate(_groups(self.bijectors))
        )

    def _move(self, params, event, context, key, inverse, log_det):
        total, parts, infos = jnp.zeros((), jnp.promote_types(event.dtype, jnp.float32)), [], []
        groups = _groups(self.bijectors)
        for i, (bijector, at) in enumerate(groups):
            own = context if bijector.context_shape is not None else None
            own_key = None if key is None else jax.random.fold_in(key, i)
            part, term, info = bijector._move(params[i], event[at], own, own_key, inverse, log_det)
            total, parts, infos = total + term, [*parts, part], [*infos, info]
        return _merged(parts, groups), total, add_info(*infos)


@dataclasses.dataclass(frozen=True)
class PerCoordinate(Transformer):
    """Coordinate i through `transformers[i]`, in a `Coupling` of a vector: splines on lines, circular ones on circles.

    Raw parameters: as many as the greediest takes. Raises TypeError for a member that is no transformer.
    """

    transformers: tuple[Transformer, ...]

    def __post_init__(self):
        super().__post_init__()
        wrong = [t for t in self.transformers if not isinstance(t, Transformer)]
        if wrong or not self.transformers:
            raise TypeError(f"transformers must hold one Transformer for each coordinate, got {wrong or 'none'}")

    @property
    def num_params(self) -> int:
        return max(t.num_params for t in self.transformers)

    @property
    def num_features(self):
        return max(t.num_features for t in self.transformers)

    @property
    def numerical_inverse(self):
        return any(t.numerical_inverse for t in self.transformers)

    def at(self, indices):
        return PerCoordinate(tuple(self.transformers[i] for i in indices))

    def image(self, interval):
        return _common(t.image(interval) for t in self.transformers)

    def features(self, z):
        groups = _groups(self.transformers)
        parts = [t.features(z[..., at]) for t, at in groups]
        widest = [(0, 0)] * z.ndim
        padded = [jnp.pad(part, [*widest, (0, self.num_features - part.shape[-1])]) for part in parts]
        return _merged(padded, groups, axis=-2)

    def forward(self, raw, z):
        return self._move(raw, z, inverse=False)

    def inverse(self, raw, x):
        return self._move(raw, x, inverse=True)

    def _move(self, raw, value, inverse):
        groups = _groups(self.transformers)
        moved = [(t.inverse if inverse else t.forward)(raw[..., at, : t.num_params], value[..., at]) for t, at in groups]
        values, log_slopes = zip(*moved, strict=True)
        return _merged(values, groups), _merged(log_slopes, groups)


def _common(images):
    """The image of every coordinate, None where they differ."""
    different = set(images)
    return different.pop() if len(different) == 1 else None


def _groups(parts):
    """[(part, the coordinates that have it)], by first appearance."""
    return [(part, np.flatnonzero([other == part for other in parts])) for part in dict.fromkeys(parts)]


def _merged(values, groups, axis=-1):
    """The values of the groups, coordinates in their own places again."""
    order = np.argsort(np.concatenate([at for _, at in groups]))
    return jnp.take(jnp.concatenate(values, axis), order, axis)
