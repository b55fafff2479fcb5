"""Objectives of latent-variable models: bounds on log p(x) = log E_q[w], w = p(x, z) / q(z | x), from draws of q.

    ELBO      E log w                                                 (Kingma & Welling 2013, arXiv:1312.6114, eq. 3)
    IWAE      E log 1/K sum_k w_k                                     (Burda et al. 2015, arXiv:1509.00519, eq. 8)
    Renyi     E 1 / (1 - alpha) log 1/K sum_k w_k^(1 - alpha)         (Li & Turner 2016, arXiv:1602.02311, eq. 14)

Each is a lower bound in expectation. `rate` is KL(q || prior) and `distortion` -E log p(x | z), both in nats: their sum is the
bound, rate + distortion >= -log p(x) (Alemi et al. 2017, arXiv:1711.00464).

An objective takes FUNCTIONS of one datum's latent, a `Latent`; it knows no model.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_count
from genmod.core.description import Call, Description, made
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key

Schedule = Callable[[Any], Any]
# A step at which every annealing has ended.
_LAST_STEP = 2**30


class Latent(NamedTuple):
    """The inference problem of ONE datum x, as functions of its latent z.

    Attributes:
      draw: key -> (z, log q(z | x)), a reparameterised draw.
      log_likelihood: z -> log p(x | z). log_prior: z -> log p(z).
      held_log_q: z -> log q(z | x), through whose parameters no gradient passes.
      kl: KL(q || prior), of any shape, whose entries are those of independent latents; None where no closed form is known.
      log_q: z -> log q(z | x), with the gradient of its parameters at a z that is held; what the score function wants.
      draw_prior: key -> z of the prior; where annealing begins.
      features: what the posterior is a function of. with_features: features -> the Latent of other ones; what refinement wants.
      draw_levels: key -> (z, log q(z | x), rates), the draw of `draw` for the same key, where z is made of L levels, each under a
        prior given the levels above it: `rates`, (L,), are KL(q || prior) of each level given those above it in this draw, in
        closed form where one is known. The mean of their sum is the rate. None: z has no levels.
    """

    draw: Callable[[Key], tuple[Array, Array]]
    log_likelihood: Callable[[Array], Array]
    log_prior: Callable[[Array], Array]
    held_log_q: Callable[[Array], Array]
    kl: Array | None = None
    log_q: Callable[[Array], Array] | None = None
    draw_prior: Callable[[Key], Array] | None = None
    features: Any = None
    with_features: Callable[[Any], "Latent"] | None = None
    draw_levels: Callable[[Key], tuple[Array, Array, Array]] | None = None


class Objective(Description, abc.ABC):
    """What a latent-variable model is trained by, and the bound that its `log_prob` is.

    num_samples: draws of q for each datum.
    wants_reparameterized: whether its gradient is wrong unless draws of q carry that of all parameters of q.
    """

    num_samples: int
    wants_reparameterized: bool = True

    @abc.abstractmethod
    def terms_one(self, latent: Latent, key: Key) -> dict[str, Array]:
        """What the loss needs of one datum, arrays by name."""

    @abc.abstractmethod
    def loss(self, terms: dict[str, Array], weight: Array | None, step: Array | None) -> tuple[Array, dict[str, Array]]:
        """(loss, metrics) of a batch.

        Args:
          terms: those of `terms_one`, with a leading axis of rows. weight: of the rows, (n,); None: all equal.
          step: of training; None: annealing is over.
        """

    @abc.abstractmethod
    def bound_one(self, latent: Latent, key: Key) -> Array:
        """A draw of the lower bound on log p(x) of one datum, in nats."""


def log_weights(latent: Latent, key: Key, num_samples: int) -> Array:
    """log w of independent draws of q, (num_samples,)."""

    def one(key):
        z, log_q = latent.draw(key)
        return latent.log_likelihood(z) + latent.log_prior(z) - log_q

    return by_draws(one, key, num_samples)


def by_draws(fn: Callable[[Key], Any], key: Key, num: int) -> Any:
    """`fn` of `num` independent keys, on a leading axis.

    One draw is not batched: behind that of the rows, an axis of one draw costs the gradient of every matrix a copy.
    """
    keys = jax.random.split(key, num)
    return jax.tree.map(lambda a: a[None], fn(keys[0])) if num == 1 else jax.vmap(fn)(keys)


def importance_bound(log_weights: Array) -> Array:
    """log 1/K sum_k w_k of (K, ...) log-weights: with draws of q a lower bound on log p(x) in expectation, rising in K."""
    return jax.nn.logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])


def renyi_bound(log_weights: Array, alpha: float) -> Array:
    """1 / (1 - alpha) log 1/K sum_k w_k^(1 - alpha) of (K, ...) log-weights; their mean at alpha = 1."""
    if alpha == 1:
        return log_weights.mean(0)
    return importance_bound((1.0 - alpha) * log_weights) / (1.0 - alpha)


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
    """Distortion + beta rate.

    Attributes:
      num_samples: draws of q for each datum.
      beta: weight of the rate (Higgins et al. 2017, beta-VAE), a number, or an Optax schedule of the step, which anneals it:
        `gm.call(optax.linear_schedule, 0.0, 1.0, 5_000)`. A beta other than 1 is also the posterior of a likelihood tempered to
        the power 1 / beta.
      free_bits: nats that every latent dimension, or every level of latents that has levels, may cost for nothing: its rate, in
        the mean over the batch, counts from there (Kingma et al. 2016, arXiv:1606.04934, eq. 15).
      analytic_kl: the rate in closed form where one is known; else by the draws.
      stick_the_landing: drop the score term of a sampled rate, whose mean is zero: at the exact posterior the gradient then
        vanishes draw by draw (Roeder et al. 2017, arXiv:1703.09194, eq. 5). The rate is then always by the draws.

    Of latents with levels the metrics hold "rate_nats_level_1", ..., in closed form where one is known.
    Raises ValueError for free_bits where the rate has no closed form by dimensions, and for stick_the_landing with it.
    """

    num_samples: int = 1
    beta: float | Schedule | Call = 1.0
    free_bits: float = 0.0
    analytic_kl: bool = True
    stick_the_landing: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_count(num_samples=self.num_samples)
        if not callable(self.beta):
            check(self.beta >= 0, f"beta must be >= 0 or a schedule of the step, got {self.beta}")
        check(self.free_bits >= 0, f"free_bits must be >= 0, got {self.free_bits}")
        if self.free_bits and (self.stick_the_landing or not self.analytic_kl):
            raise ValueError("free_bits wants the rate of each dimension in closed form: analytic_kl, no stick_the_landing")

    def terms_one(self, latent, key):
        return self._terms(latent, key, self.stick_the_landing)

    def _terms(self, latent, key, held):
        leveled = latent.draw_levels is not None
        closed = None if held or leveled else self.closed_rate(latent)

        def one(key):
            z, log_q, *levels = (latent.draw_levels or latent.draw)(key)
            log_q = latent.held_log_q(z) if held else log_q
            sampled = jnp.zeros_like(log_q) if closed is not None else log_q - latent.log_prior(z)
            return latent.log_likelihood(z), sampled, levels

        log_likelihood, sampled, levels = by_draws(one, key, self.num_samples)
        terms = {"distortion": -log_likelihood.mean(), "rate": sampled.mean() if closed is None else closed}
        if not leveled:
            return terms
        by_level = levels[0].mean(0)
        return terms | ({"rate": by_level} if self.analytic_kl and not held else {}) | {"rate_by_level": by_level}

    def closed_rate(self, latent: Latent) -> Array | None:
        """KL(q || prior) where it is wanted and known in closed form, else None; ValueError for free_bits without it."""
        closed = latent.kl if self.analytic_kl else None
        if self.free_bits and (closed is None or not closed.shape):
            raise ValueError(
                f"free_bits={self.free_bits} wants the KL of each latent dimension in closed form, which this posterior and this "
                "prior have not: take a factorized posterior under a Normal or Factorized prior, or leave free_bits out"
            )
        return closed

    def loss(self, terms, weight, step):
        per_row = terms["rate"].reshape(terms["rate"].shape[0], -1)
        distortion, distortion_sem = mean_and_sem(terms["distortion"], weight)
        rate, rate_sem = mean_and_sem(per_row.sum(1), weight)
        counted = rate
        if self.free_bits:
            share = jnp.full(per_row.shape[:1], 1 / per_row.shape[0]) if weight is None else weight / weight.sum()
            counted = jnp.maximum(jnp.sum(share[:, None] * per_row, 0), self.free_bits).sum()
        beta = self.beta_at(step)
        total, total_sem = mean_and_sem(terms["distortion"] + per_row.sum(1), weight)
        metrics = {"rate_nats": rate, "rate_nats_sem": rate_sem, "distortion_nats": distortion}
        metrics |= {"distortion_nats_sem": distortion_sem, "nll_upper_bound_nats": total, "nll_upper_bound_nats_sem": total_sem}
        for i, level in enumerate(terms["rate_by_level"].T if "rate_by_level" in terms else (), 1):
            metrics[f"rate_nats_level_{i}"] = mean_and_sem(level, weight)[0]
        return distortion + beta * counted, metrics | ({"beta": jnp.asarray(beta)} if callable(self.beta) else {})

    def beta_at(self, step: Array | None) -> Any:
        """The weight of the rate at a step; None: at the end."""
        if not callable(self.beta):
            return self.beta
        return made(self.beta)(_LAST_STEP if step is None else step)

    def bound_one(self, latent, key):
        terms = self._terms(latent, key, held=False)
        return -terms["distortion"] - terms["rate"].sum()


@dataclasses.dataclass(frozen=True)
class IWAE(Objective):
    """The importance-weighted bound of `num_samples` draws.

    doubly_reparameterized: the gradient of the encoder by draws with squared weights, whose signal does not die as K grows
    (Tucker et al. 2018, arXiv:1810.04152, eq. 8); that of the decoder and the prior is the same.
    """

    num_samples: int = 50
    doubly_reparameterized: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_count(num_samples=self.num_samples)

    def terms_one(self, latent, key):
        if not self.doubly_reparameterized:
            bound = self.bound_one(latent, key)
            return {"loss": -bound, "bound": bound}

        def log_weight(z):
            return latent.log_likelihood(z) + latent.log_prior(z) - latent.held_log_q(z)

        z, _ = jax.vmap(latent.draw)(jax.random.split(key, self.num_samples))
        held = jax.lax.stop_gradient(jax.vmap(log_weight)(z))
        share = jax.nn.softmax(held)
        # Through z, which is the encoder's, a share counts twice.
        log_w = jax.vmap(lambda z, share: log_weight(_scale_gradient(z, share)))(z, share)
        return {"loss": -jnp.sum(share * log_w), "bound": importance_bound(held)}

    def loss(self, terms, weight, step):
        loss, _ = mean_and_sem(terms["loss"], weight)
        bound, sem = mean_and_sem(-terms["bound"], weight)
        return loss, {"nll_upper_bound_nats": bound, "nll_upper_bound_nats_sem": sem}

    def bound_one(self, latent, key):
        return importance_bound(log_weights(latent, key, self.num_samples))


@dataclasses.dataclass(frozen=True)
class Renyi(Objective):
    """The variational Renyi bound of `num_samples` draws: alpha = 0 is IWAE, alpha -> 1 the ELBO; alpha >= 0."""

    alpha: float = 0.5
    num_samples: int = 10

    def __post_init__(self):
        super().__post_init__()
        check(self.alpha >= 0, f"alpha must be >= 0, where the bound is a lower one, got {self.alpha}")
        check_count(num_samples=self.num_samples)

    def terms_one(self, latent, key):
        return {"bound": self.bound_one(latent, key)}

    def loss(self, terms, weight, step):
        loss, sem = mean_and_sem(-terms["bound"], weight)
        return loss, {"nll_upper_bound_nats": loss, "nll_upper_bound_nats_sem": sem}

    def bound_one(self, latent, key):
        return renyi_bound(log_weights(latent, key, self.num_samples), self.alpha)


@jax.custom_vjp
def _scale_gradient(z, factor):
    """z, whose gradient is multiplied by a factor."""
    return z


_scale_gradient.defvjp(
    lambda z, factor: (z, factor),
    lambda factor, cotangent: (jax.tree.map(lambda c: factor * c, cotangent), jnp.zeros_like(factor)),
)
