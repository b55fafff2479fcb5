"""Evidence without chance: in closed form, by a sum over all latents, and by expansions at one point."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from genmod.core.checks import check_count, check_function
from genmod.inference.estimate import Estimate, EvidenceMethod
from genmod.inference.laplace import laplace_approximation


@dataclasses.dataclass(frozen=True)
class ExactEvidence(EvidenceMethod):
    """A closed form: conjugacy, or the exact log-density of a model.

    log_evidence_fn: of `Observed` data (params, x, context) -> log p(x) of ONE row; otherwise latent -> log Z.
    """

    log_evidence_fn: Callable[..., Any]

    random = False

    def __post_init__(self):
        super().__post_init__()
        check_function(log_evidence_fn=self.log_evidence_fn)

    def num_draws(self, z):
        return 1

    def estimate_one(self, problem, key):
        value = jnp.asarray(self.log_evidence_fn(*(problem.given or (problem.latent,))))
        return Estimate(value, jnp.zeros_like(value), {})


@dataclasses.dataclass(frozen=True)
class Enumeration(EvidenceMethod):
    """log sum_i exp(log f(z_i) + log_weight_i) over all latents, or over the nodes of a quadrature rule.

    points_fn: () -> (latents with a leading axis of m, log-weights (m,), which are 0 for discrete latents).
    """

    points_fn: Callable[[], tuple[Any, Any]]

    random = False

    def __post_init__(self):
        super().__post_init__()
        check_function(points_fn=self.points_fn)

    def num_draws(self, z):
        return jax.tree.leaves(self.points_fn())[-1].shape[0]

    def estimate_one(self, problem, key):
        z, log_weights = jax.tree.map(jnp.asarray, self.points_fn())
        values = jax.vmap(problem.log_joint)(z) + log_weights
        return Estimate(jax.nn.logsumexp(values), jnp.zeros_like(values[0]), {})


@dataclasses.dataclass(frozen=True)
class BIC(EvidenceMethod):
    """log p(data | z*) - k / 2 log n at the maximum-likelihood estimate z* of k = its size parameters (Schwarz 1978).

    It leaves out the prior and terms that do not grow with the number of data, and bounds nothing.

    Attributes:
      num_data: n. num_parameters: k; None: the size of z.
    """

    num_data: int
    num_parameters: int | None = None

    random = False
    wants_z = "the maximum-likelihood estimate, one point of the shape of z"

    def __post_init__(self):
        super().__post_init__()
        check_count(num_data=self.num_data)
        if self.num_parameters is not None:
            check_count(num_parameters=self.num_parameters)

    def num_draws(self, z):
        return 1

    def estimate_one(self, problem, key):
        size = sum(leaf.size for leaf in jax.tree.leaves(problem.z)) if self.num_parameters is None else self.num_parameters
        value = problem.latent.log_likelihood(problem.z) - 0.5 * size * math.log(self.num_data)
        return Estimate(value, jnp.zeros_like(value), {})


@dataclasses.dataclass(frozen=True)
class LaplaceEvidence(EvidenceMethod):
    """log f(m) + D / 2 log 2 pi - 1 / 2 log det H at the mode m of f near z: exact where f is Gaussian, and bounds nothing.

    Of several modes it counts the one that the search finds. Extras: `converged`. nan where there is no maximum.
    """

    num_steps: int = 1_000

    random = False
    wants_z = "where the search for the mode begins, one point of the shape of z"

    def __post_init__(self):
        super().__post_init__()
        check_count(num_steps=self.num_steps)

    def num_draws(self, z):
        return 1

    def estimate_one(self, problem, key):
        start, unravel = ravel_pytree(problem.z)
        found = laplace_approximation(lambda z: problem.log_joint(unravel(z)), start, num_steps=self.num_steps)
        return Estimate(found.log_evidence, jnp.zeros_like(found.log_evidence), {"converged": found.converged})
