"""`RandomFunctionPosterior`: a Gaussian given features, whose mean is a random function of them, a Gaussian process around what
a network says (Kim & Pavlovic 2021, arXiv:2102.03151).

    z_d = m_d(h) + a_d g_d(h) + s_d(h) eps,      g_d ~ GP(0, k),  k(h, h') = exp(-|h - h'|^2 / (2 l^2)),  eps ~ N(0, 1)

m and s are those of a conditional Gaussian, the base. g is known through M inducing variables, its values u = L v at the rows of
H, where L L^T = k(H, H): the prior is p(v) = N(0, I), and q(v) = N(mu, R R^T) is learned (Titsias 2009; whitened as in Hensman et
al. 2015, arXiv:1411.2005). With the function integrated out, q(z | h) is a Gaussian again: with b = L^-1 k(H, h)

    mean_d = m_d + a_d mu_d . b,        variance_d = s_d^2 + a_d^2 (1 - |b|^2 + |R_d^T b|^2)

The paper makes the scale s random too; the law is then no Gaussian any more, and its density has no closed form. Here s is that
of the base.

The bound of q(z | h) is a bound on log p(x) by itself. The function's own KL(q(v) || p(v)), once for all data, keeps the function
near its prior, whose mean is the network, where data say nothing: `models.Penalized` adds it.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_positive
from genmod.core.distribution import Distribution
from genmod.core.types import Array, Context, Params
from genmod.densities.amortized import Amortized
from genmod.densities.factorized import Factorized
from genmod.densities.heads import NormalHead

# Variance of a noise in the inducing variables, in units of that of g. It is part of the model, so that the formulas stay exact.
NUGGET = 1e-4
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class RandomFunctionPosterior(Distribution):
    """A conditional Gaussian, `base`, and a Gaussian process in its mean, integrated out.

    Attributes:
      base: the law without the process, `gm.flows.amortized_posterior(shape, context_shape)`.
      num_inducing: M; the inducing inputs start at the first features of the example batch.
      amplitude: a of every entry at the start, in units of z; it is learned.

    At the start q(v) = p(v): the mean is that of the base, its variance grows by amplitude^2, and `function_kl` is zero.
    Parameters: {"base", "inputs": (M,) + context_shape, "log_length": (), "log_amplitude": event_shape, "mean": (M, D),
    "lower": (D, M, M), "log_scale": (D, M)}, D the size of an event.
    Raises TypeError for a base that is no Gaussian of independent entries, ValueError for fewer rows than M at `init`.
    """

    base: Distribution
    num_inducing: int = 32
    amplitude: float = 0.1

    def __post_init__(self):
        law = self.base.distribution if isinstance(self.base, Amortized) else None
        if not isinstance(law, Factorized) or not isinstance(law.head, NormalHead):
            raise TypeError(f"base must be Amortized(Factorized(NormalHead(), shape), context_shape), got {self.base!r}")
        check_count(num_inducing=self.num_inducing)
        check_positive(amplitude=self.amplitude)
        super().__post_init__()

    @property
    def event(self):
        return self.base.event

    @property
    def context_shape(self):
        return self.base.context_shape

    def moments(self, params: Params, context: Context) -> tuple[Array, Array]:
        """(mean, log of the standard deviation) of q(z | context) of ONE context, each of event_shape."""
        assert context is not None
        assert isinstance(self.base, Amortized) and isinstance(self.base.distribution, Factorized)
        mean, log_scale = normal_moments(self.base.distribution, self.base.at(params["base"], context))
        inputs = params["inputs"].reshape(self.num_inducing, -1)
        b = self._weights(params, inputs, context.reshape(1, -1).astype(inputs.dtype))
        spread = jnp.einsum("dmk,m->dk", self._factors(params), b, precision="highest")
        share = jnp.maximum(1.0 - jnp.sum(b**2), 0.0) + jnp.sum(spread**2, 1)
        amplitude = jnp.exp(params["log_amplitude"])
        mean = mean + amplitude * jnp.matmul(b, params["mean"], precision="highest").reshape(mean.shape)
        variance = jnp.exp(2.0 * log_scale) + amplitude**2 * share.reshape(mean.shape)
        return mean, 0.5 * jnp.log(variance)

    def function_kl(self, params: Params) -> Array:
        """KL(q(v) || p(v)), of the whole function, in nats: a scalar, once for all data."""
        factors = self._factors(params)
        size = params["mean"].size
        return 0.5 * (jnp.sum(factors**2) + jnp.sum(params["mean"] ** 2) - size) - params["log_scale"].sum()

    def _init(self, key, x, context):
        assert context is not None
        if context.shape[0] < self.num_inducing:
            raise ValueError(
                f"num_inducing={self.num_inducing} inducing inputs want as many rows to start at, got {context.shape[0]}"
            )
        base = self.base._init(key, x, context)
        dtype = base["kernel"].dtype
        inputs = context[: self.num_inducing].astype(dtype)
        # The root mean square of the distances between features, at which the kernel is 1 / sqrt(e).
        distance = jnp.sqrt(2.0 * jnp.sum(jnp.var(context.astype(dtype), axis=0)))
        num, dim = self.num_inducing, math.prod(self.event_shape)
        return {
            "base": base,
            "inputs": inputs,
            "log_length": jnp.log(jnp.where(distance > 0, distance, 1.0)),
            "log_amplitude": jnp.full(self.event_shape, math.log(self.amplitude), dtype),
            "mean": jnp.zeros((num, dim), dtype),
            "lower": jnp.zeros((dim, num, num), dtype),
            "log_scale": jnp.zeros((dim, num), dtype),
        }

    def _weights(self, params, inputs, features):
        """b = L^-1 k(H, h), (M,)."""

        def kernel(a, b):
            squares = jnp.sum((a[:, None] - b[None]) ** 2, -1)
            return jnp.exp(-0.5 * squares * jnp.exp(-2.0 * params["log_length"]))

        gram = kernel(inputs, inputs) + NUGGET * jnp.eye(inputs.shape[0], dtype=inputs.dtype)
        factor = jnp.linalg.cholesky(gram)
        return jax.scipy.linalg.solve_triangular(factor, kernel(inputs, features)[:, 0], lower=True)

    def _factors(self, params):
        """R of every entry, (D, M, M)."""
        return jnp.tril(params["lower"], -1) + jax.vmap(jnp.diag)(jnp.exp(params["log_scale"]))

    def log_prob_one(self, params, x, context=None, key=None):
        mean, log_scale = self.moments(params, context)
        return jnp.sum(-0.5 * ((x - mean) * jnp.exp(-log_scale)) ** 2 - log_scale - _HALF_LOG_2PI)

    def sample_one(self, params, key, context=None):
        mean, log_scale = self.moments(params, context)
        return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, mean.dtype)


def normal_moments(law: Factorized, params: Params) -> tuple[Array, Array]:
    """(mean, log of the standard deviation) of every entry of a `Factorized(NormalHead(...), shape)`."""
    assert isinstance(law.head, NormalHead)
    return law.head.mean(params["raw"]), law.head.log_scale(params["raw"])
