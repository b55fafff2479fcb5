"""`LearnedStudentT`: independent Student coordinates whose tails are learned."""

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
        return jax.random.t(key, self.degrees(params), self.shape, params["raw"].dtype)

    def degrees(self, params: Params) -> Array:
        """The degrees of freedom of every entry, of the shape of an event."""
        return 1.0 + jnp.exp(params["raw"])
