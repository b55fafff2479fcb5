"""Evidence by independent draws: importance sampling, the bounds of training, the harmonic mean."""

import dataclasses

import jax

from genmod.core.checks import check_count, check_parts
from genmod.core.statistics import mean_and_sem
from genmod.inference.estimate import Estimate, EvidenceMethod
from genmod.losses.variational import IWAE, Objective, log_weights
from genmod.samplers.weights import log_mean, pareto_k_hat

_IWAE = IWAE(50)


@dataclasses.dataclass(frozen=True)
class ImportanceSampling(EvidenceMethod):
    """log 1/S sum_s f(z_s) / q(z_s), of S = `num_samples` draws of the proposal q.

    A lower bound in expectation, which converges. Extras: `k_hat` (above 0.7 the proposal misses too much, see
    `genmod.samplers.weights`), `effective_size`.
    """

    num_samples: int = 5_000

    side = -1

    def __post_init__(self):
        super().__post_init__()
        check_count(num_samples=self.num_samples)

    def num_draws(self, z):
        return self.num_samples

    def estimate_one(self, problem, key):
        log_w = log_weights(problem.latent, key, self.num_samples)
        found = log_mean(log_w)
        extras = {"k_hat": pareto_k_hat(log_w), "effective_size": found.effective_size}
        return Estimate(found.value, found.sem, extras)


@dataclasses.dataclass(frozen=True)
class MeanBound(EvidenceMethod):
    """The mean of `num_repeats` draws of a bound: `ELBO(K)`, `IWAE(K)`, `Renyi(alpha, K)` of `genmod.losses`.

    Its standard error is that of the bound's estimate; how far the bound lies below the evidence it does not say.
    """

    objective: Objective = _IWAE
    num_repeats: int = 100

    side = -1

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, objective=Objective)
        check_count(num_repeats=self.num_repeats)

    def num_draws(self, z):
        return self.num_repeats * self.objective.num_samples

    def estimate_one(self, problem, key):
        bounds = jax.vmap(lambda key: self.objective.bound_one(problem.latent, key))(jax.random.split(key, self.num_repeats))
        return Estimate(*mean_and_sem(bounds), {})


@dataclasses.dataclass(frozen=True)
class HarmonicMean(EvidenceMethod):
    """-log 1/m sum_i 1 / p(x | z_i), of draws z_i of the POSTERIOR (Newton & Raftery 1994): not to be trusted.

    The variance of 1 / p(x | z) is infinite wherever the prior is wider than the likelihood by more than a little, as it is as
    a rule; the estimate then lies above the truth and hardly depends on the prior. It is here for comparison. An upper bound in
    expectation. Extras: `k_hat` of the weights 1 / p(x | z); above 1/2 their variance is infinite.
    """

    side = 1
    random = False
    wants_z = "draws of the posterior p(z | x), exact or of a chain, (m,) + the shape of z"
    warning = "the harmonic mean may have infinite variance: its value and standard error cannot be trusted"

    def num_draws(self, z):
        return jax.tree.leaves(z)[0].shape[0]

    def estimate_one(self, problem, key):
        log_w = -jax.vmap(problem.latent.log_likelihood)(problem.z)
        found = log_mean(log_w)
        return Estimate(-found.value, found.sem, {"k_hat": pareto_k_hat(log_w), "effective_size": found.effective_size})
