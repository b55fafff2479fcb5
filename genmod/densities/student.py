"""`LearnedStudentT`: independent Student coordinates whose tails are learned.

Draws are those of the polar method: in the plane the radius of Student's t has a closed inverse distribution function, and
either coordinate has the law that is wanted (Bailey 1994, 10.1090/S0025-5718-1994-1203737-X),

    x = sqrt(n expm1(2 E / n)) cos(2 pi U),  E ~ Exp(1),  U ~ U(0, 1),

of n degrees of freedom; n -> infinity is the method of Box and Muller. The gradient of n is that of this formula. By a quotient
of a normal and a gamma draw it would be that of the incomplete gamma function, at twenty times the cost.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy import stats

from genmod.core.checks import check_positive
from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.core.types import Array, Params, Shape


@dataclasses.dataclass(frozen=True)
class LearnedStudentT(Distribution):
    """Student's t in every coordinate, each with 1 + exp(raw) degrees of freedom, learned.

    As the base of a flow that is trained by the reverse KL it finds the tails of a heavy-tailed posterior, which no flow of
    affine layers makes of a Gaussian (Andrade 2024, arXiv:2402.16408). Draws carry the gradient of the degrees of freedom.

    Attributes:
      shape: of an event. df: of the start, above 1.
    """

    shape: Shape
    df: float = 20.0

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()
        check_positive(df=self.df)
        if not self.df > 1:
            raise ValueError(f"df must be > 1, got {self.df}")

    @property
    def event(self):
        return Real(self.shape)

    def _init(self, key, x, context):
        return {"raw": jnp.full(self.shape, jnp.log(self.df - 1.0), x.dtype)}

    def log_prob_one(self, params, x, context=None, key=None):
        return stats.t.logpdf(x.astype(jnp.promote_types(x.dtype, jnp.float32)), self.degrees(params)).sum()

    def sample_one(self, params, key, context=None):
        keys, degrees = jax.random.split(key), self.degrees(params)
        # Above zero, where the root has a slope.
        exponential = jax.random.exponential(keys[0], self.shape, degrees.dtype) + float(jnp.finfo(degrees.dtype).tiny) ** 0.5
        angle = 2.0 * jnp.pi * jax.random.uniform(keys[1], self.shape, degrees.dtype)
        return jnp.sqrt(degrees * jnp.expm1(2.0 * exponential / degrees)) * jnp.cos(angle)

    def degrees(self, params: Params) -> Array:
        """The degrees of freedom of every entry, of the shape of an event."""
        return 1.0 + jnp.exp(params["raw"])
