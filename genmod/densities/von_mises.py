"""Angles: the von Mises law, as a distribution and as a head. Its mathematics and its draws stand in `densities.circular`.

    posterior = gm.densities.Amortized(gm.densities.Factorized(gm.densities.VonMisesHead(), (1,)), (64,))
    prior     = gm.densities.Uniform((1,), -math.pi, math.pi)
    decoder   = gm.nets.OnCircle(gm.nets.FlatNet(gm.nets.MLP((64,)), 784))

are those of a variational autoencoder whose latent lies on a circle (Davidson et al. 2018, arXiv:1804.00891); its rate is known
in closed form. Angles lie in (-pi, pi], as `flows.Circle` and `bijectors.CircularSpline` have them; outside log p is -inf.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check_positive
from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.core.types import Array, Params, Shape
from genmod.densities import circular
from genmod.densities.heads import Head


@dataclasses.dataclass(frozen=True)
class VonMises(Distribution):
    """Independent angles, each with a learned mean direction and concentration.

    Parameters: {"natural": shape + (2,)}, kappa (cos mu, sin mu) of each angle, any numbers; they start at 0, the uniform law.
    """

    shape: Shape
    support = (-math.pi, math.pi)

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()

    @property
    def event(self):
        return Real(self.shape)

    def _init(self, key, x, context):
        return {"natural": jnp.zeros((*self.shape, 2), jnp.promote_types(x.dtype, jnp.float32))}

    def log_prob_one(self, params, x, context=None, key=None):
        return circular.log_density(params["natural"], x.astype(jnp.promote_types(x.dtype, jnp.float32))).sum()

    def sample_one(self, params, key, context=None):
        return circular.draw_angles(params["natural"], key)

    def mean_direction(self, params: Params) -> Array:
        """mu of every angle, of the shape of an event; 0 where the law is uniform."""
        return circular.direction(params["natural"])

    def concentration(self, params: Params) -> Array:
        """kappa of every angle, of the shape of an event."""
        return jnp.hypot(params["natural"][..., 0], params["natural"][..., 1])


@dataclasses.dataclass(frozen=True)
class VonMisesHead(Head):
    """An angle in (-pi, pi]; two raw numbers r point to its mean direction, and their length to its concentration.

        kappa = g / sqrt(1 + (g / max_concentration)^2),    g = |r| (1 + |r|^2)

    It starts uniform at r = 0, where all is smooth, and a kappa of 1,000 takes a raw number of 10. The `mean` is the mean
    DIRECTION: the expectation of an angle as a number depends on where the circle is cut.
    """

    max_concentration: float = 1e4
    reparameterized = True

    def __post_init__(self):
        super().__post_init__()
        check_positive(max_concentration=self.max_concentration)

    @property
    def num_params(self):
        return 2

    def event(self, shape):
        return Real(shape)

    def natural(self, raw: Array) -> Array:
        """kappa (cos mu, sin mu) of every entry, of the shape of raw."""
        # Beyond this size, where squares would overflow at last, kappa is max_concentration to rounding: g is at least |r| and
        # |r|^3, so that g / max_concentration is above 1 / sqrt(eps).
        bound = self.max_concentration / math.sqrt(float(jnp.finfo(raw.dtype).eps))
        size = jax.lax.stop_gradient(jnp.abs(raw).max(-1, keepdims=True))
        far = size > min(bound, math.cbrt(bound))
        near = jnp.where(far, 0.0, raw)
        growth = 1.0 + jnp.sum(near**2, -1, keepdims=True)
        ratio = near / self.max_concentration * growth  # of length g / max_concentration
        scaled = jnp.where(far, raw / jnp.where(far, size, 1.0), 1.0)
        limit = self.max_concentration * scaled / jnp.sqrt(jnp.sum(scaled**2, -1, keepdims=True))
        return jnp.where(far, limit, near * growth / jnp.sqrt(1.0 + jnp.sum(ratio**2, -1, keepdims=True)))

    def _log_prob(self, raw, x):
        return circular.log_density(self.natural(raw), x)

    def _sample(self, raw, key):
        return circular.draw_angles(self.natural(raw), key)

    def _mean(self, raw):
        return circular.direction(self.natural(raw))

    def _kl(self, raw, other, other_raw):
        return circular.divergence(self.natural(raw), other.natural(other_raw))
