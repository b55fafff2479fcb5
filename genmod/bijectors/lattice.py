"""Bijectors of fields on periodic lattices, of any number of directions, that commute with its symmetries."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genmod import nets
from genmod.bijectors.base import InfoBijector
from genmod.bijectors.continuous import ContinuousFlow
from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check, check_parts, check_time
from genmod.core.types import Array, Context, Params, Shape
from genmod.dynamics import Adaptive, Integrator
from genmod.dynamics.divergence import Divergence, DivergenceEstimator, Exact


@dataclasses.dataclass(frozen=True)
class LatticeCoupling(InfoBijector):
    """The sites of one colour of a checkerboard pass unchanged and parameterise a transformer of the others (Albergo, Kanwar &
    Shanahan 2019, arXiv:1904.12072, eq. 10):

        x_a = z_a,  x_b = tau(z_b; net(z_a)),  log_det = sum_b log |dtau/dz_b|

    Attributes:
      transformer: the scalar bijection of a site.
      network: a Linen module of a feature map, lattice + (1,) -> lattice + (num_params,); it sees zeros in the place of the sites
        that change. With a `nets.PeriodicNet` the layer commutes with the translations that map each colour onto itself.
      odd: whether the sites whose coordinates have an odd sum pass unchanged; else those with an even one.

    Raises ValueError where a direction has an odd number of sites, so that two neighbours around the end would be of one colour,
    and for a network with another output.
    """

    transformer: Transformer
    network: Any
    odd: bool = False
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, transformer=Transformer)

    def image(self, interval, inverse=False):
        return self.transformer.image(interval)

    def _init(self, key, x, context):
        kept = self._kept(x.shape[1:])
        params = nets.init(self.network, key, jnp.where(kept, x[0], 0.0)[..., None])
        jax.eval_shape(lambda: self._raw(params, kept, x[0]))
        return params

    def _move(self, params, event, context, key, inverse, log_det):
        kept = self._kept(event.shape)
        raw = self._raw(params, kept, event)
        moved, log_slope = (self.transformer.inverse if inverse else self.transformer.forward)(raw, event)
        merged = jnp.where(kept, event, moved)
        return merged, jnp.where(kept, 0.0, log_slope).sum(), self.transformer.info(merged, inverse)

    def _raw(self, params, kept, event):
        raw = nets.apply(self.network, params, jnp.where(kept, event, 0.0)[..., None])
        wanted = (*event.shape, self.transformer.num_params)
        check(raw.shape == wanted, f"network must give {wanted}, the raw numbers of {self.transformer}, got {raw.shape}")
        return raw.astype(event.dtype)

    def _kept(self, shape: Shape) -> np.ndarray:
        """The sites that pass unchanged, bools of the lattice's shape."""
        check_even("event_shape", shape)
        return np.indices(shape).sum(0) % 2 == int(self.odd)


def check_even(name: str, shape: Shape) -> None:
    """Raises ValueError unless a checkerboard closes around a lattice of this shape."""
    if not shape or any(size % 2 for size in shape):
        raise ValueError(
            f"{name} must have an even number of sites in each direction, so that a checkerboard closes around the lattice, "
            f"got {shape}"
        )


@dataclasses.dataclass(frozen=True)
class LatticeODE(ContinuousFlow):
    """The flow map of a field that gives its own divergence (Gerdes et al. 2022, arXiv:2207.00283), from t = 0 (latent) to t = 1.

    Attributes:
      field: a Linen module (x, t) -> (v, div v), such as `nets.LatticeVelocity`.
      integrator: one that controls its error, where the flow is trained by the reverse KL. Equal steps do not, and training finds
        that: ten of `RK4` on an 8 x 8 lattice ended 10 nats below the least that a law can reach. To measure a trained flow they
        serve: with twice as many the log-determinant must not change.

    Map and log-determinant are as accurate as the integrator. Raises ValueError for a field with another output, such as v alone,
    for which there is `CNF`, and for a t outside [0, 1].
    """

    field: Any
    integrator: Integrator = Adaptive()
    reads_data = False

    @property
    def divergence(self) -> DivergenceEstimator:
        return Exact()

    def velocity(self, params: Params, x: Array, t: Array, context: Context = None) -> Array:
        return self._of_field(params, x, t)[0]

    def divergence_one(self, params, x, t, context, probes):
        value, divergence = self._of_field(params, x, t)
        return Divergence(value, divergence[None], jnp.zeros((), x.dtype))

    def _of_field(self, params, x, t):
        found = nets.apply(self.field, params, x, check_time(t))
        shapes = [jnp.shape(part) for part in found] if isinstance(found, tuple) else jnp.shape(found)
        if shapes != [x.shape, ()]:
            raise ValueError(f"field must give a pair (v, div v) of shapes {x.shape} and (), got {shapes}; see LatticeODE")
        return found[0].astype(x.dtype), found[1].astype(x.dtype)

    def _init(self, key, x, context):
        params = nets.init(self.field, key, x[0], jnp.zeros((), x.dtype))
        jax.eval_shape(lambda: self.velocity(params, x[0], jnp.zeros((), x.dtype)))
        return params
