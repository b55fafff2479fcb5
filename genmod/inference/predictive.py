"""The posterior predictive of the Bayesian mixture of Gaussians, a mixture of Student laws (Bishop 2006, eq. 10.81).

p(x | data) ~ sum_k a_k / sum a  St(x | m_k, L_k^-1, nu_k + 1 - D),  L_k = (nu_k + 1 - D) b_k / (1 + b_k) W_k
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from genmod.core.checks import check_count
from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.core.types import Shape
from genmod.inference.mean_field import MixtureLaw, mixture_prior


@dataclasses.dataclass(frozen=True)
class MixturePredictive(Distribution):
    """The law of a new datum, whose parameters are a `MixtureLaw`: `predictive.log_prob(fit.posterior, x)`.

    Attributes:
      shape: (D,), of a datum. num_components: K.

    Raises ValueError for a shape that is not that of vectors.
    """

    shape: Shape
    num_components: int
    reparameterized = False

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()
        check_count(num_components=self.num_components)
        if len(self.shape) != 1:
            raise ValueError(f"MixturePredictive is a law of vectors, got shape {self.shape}")

    @property
    def event(self):
        return Real(self.shape)

    def _init(self, key, x, context):
        (dim,) = self.shape
        return mixture_prior(self.num_components, jnp.zeros(dim, x.dtype), jnp.eye(dim, dtype=x.dtype))

    def log_prob_one(self, params, x, context=None, key=None):
        (dim,) = self.shape

        def one(law: MixtureLaw):
            factor, dof = self._scale(law)
            z = jax.scipy.linalg.solve_triangular(factor, x - law.mean, lower=True)
            constant = gammaln(0.5 * (dof + dim)) - gammaln(0.5 * dof) - 0.5 * dim * jnp.log(dof * math.pi)
            log_det = jnp.log(jnp.diagonal(factor)).sum()
            return constant - log_det - 0.5 * (dof + dim) * jnp.log1p(jnp.sum(z**2) / dof)

        log_weight = jnp.log(params.concentration) - jnp.log(params.concentration.sum())
        return jax.nn.logsumexp(log_weight + jax.vmap(one)(params))

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key, 3)
        which = jax.random.categorical(keys[0], jnp.log(params.concentration))
        law = jax.tree.map(lambda a: a[which], params)
        factor, dof = self._scale(law)
        normal = jax.random.normal(keys[1], self.shape, factor.dtype)
        gamma = jax.random.gamma(keys[2], 0.5 * dof, dtype=factor.dtype)
        return law.mean + jnp.matmul(factor, normal, precision="highest") * jnp.sqrt(0.5 * dof / gamma)

    def _scale(self, law: MixtureLaw):
        """The Cholesky factor of L^-1 of one component, and its degrees of freedom."""
        dof = law.dof + 1.0 - self.shape[0]
        return jnp.linalg.cholesky(law.scatter) * jnp.sqrt((1.0 + law.strength) / (law.strength * dof)), dof
