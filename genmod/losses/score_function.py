"""The ELBO of posteriors whose draws carry no gradient: discrete latents, mixtures.

    grad_q E_q[f(z)] = E_q[(f(z) - b) grad log q(z | x)],  f = -log p(x | z) + beta (log q(z | x) - log p(z))

with the mean of f over the other draws as the baseline b of each (`leave_one_out`). The gradient of the decoder and of the prior
is the plain one.
"""

import dataclasses

import jax

from genmod.core.checks import check
from genmod.core.description import Call
from genmod.losses.gradient_estimators import leave_one_out, score_function_surrogate
from genmod.losses.variational import ELBO, Objective, Schedule


@dataclasses.dataclass(frozen=True)
class ScoreFunctionELBO(Objective):
    """`ELBO`, whose gradient is that of the score function with a leave-one-out baseline (arXiv:1602.06725): for any posterior.

    Attributes:
      num_samples: draws of q for each datum, at least two. The variance of the gradient falls with them.
      beta, free_bits, analytic_kl: as in `ELBO`. A rate in closed form has an exact gradient.

    The value is that of `ELBO`. Raises ValueError for one draw, which has no others to compare with.
    """

    num_samples: int = 8
    beta: float | Schedule | Call = 1.0
    free_bits: float = 0.0
    analytic_kl: bool = True

    wants_reparameterized = False

    def __post_init__(self):
        super().__post_init__()
        _ = self._plain  # checks the rest
        check(self.num_samples >= 2, f"num_samples must be >= 2, each draw is compared with the others, got {self.num_samples}")

    @property
    def _plain(self):
        return ELBO(self.num_samples, self.beta, self.free_bits, self.analytic_kl)

    def terms_one(self, latent, key):
        log_q_fn = latent.log_q
        if log_q_fn is None:
            raise ValueError("ScoreFunctionELBO wants Latent.log_q, z -> log q(z | x) with the gradient of its parameters")

        def one(key):
            z = jax.lax.stop_gradient(latent.draw(key)[0])
            return latent.log_likelihood(z), latent.log_prior(z), log_q_fn(z)

        log_likelihood, log_prior, log_q = jax.vmap(one)(jax.random.split(key, self.num_samples))
        distortion = score_function_surrogate(-log_likelihood, log_q, leave_one_out)
        closed = self._plain.closed_rate(latent)
        if closed is not None:
            return {"distortion": distortion, "rate": closed}
        # The gradient of log q at fixed draws has mean zero: left out.
        sampled = jax.lax.stop_gradient(log_q) - log_prior
        return {"distortion": distortion, "rate": score_function_surrogate(sampled, log_q, leave_one_out)}

    def loss(self, terms, weight, step):
        return self._plain.loss(terms, weight, step)

    def bound_one(self, latent, key):
        return self._plain.bound_one(latent, key)
