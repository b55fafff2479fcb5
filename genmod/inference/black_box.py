"""Black-box variational inference: any reparameterised distribution q fitted to any log-density by the reverse KL.

    ELBO = E_q[log f(x) - log q(x)] = log Z - KL(q || f / Z)          (Ranganath et al. 2014, arXiv:1401.0118; Kucukelbir et al.
                                                                      2017, arXiv:1603.00788; flows: Rezende & Mohamed 2015,
                                                                      arXiv:1505.05770, eq. 15)

With log f(x) = log p(data | x) + log p(x), the joint, the ELBO is a lower bound on the log-evidence, and q approximates the
posterior:

    q = gm.densities.Factorized(gm.densities.NormalHead(), (D,))        mean field
    q = gm.densities.FullNormal((D,))                                   a full Gaussian
    q = gm.flows.stable_real_nvp((D,))                                  a flow; any whose draws are cheap

How good q is says `posterior_report`: the ELBO, and the importance weights f / q (Yao et al. 2018, arXiv:1802.02538).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_function, check_parts
from genmod.core.description import Call, Description, call, made
from genmod.core.distribution import Distribution, check_params
from genmod.core.keys import check_key, stream
from genmod.core.programs import program_of
from genmod.core.statistics import independence_acceptance, mean_and_sem
from genmod.core.types import Array, Key, Params
from genmod.losses import reverse_kl
from genmod.samplers.weights import log_mean, pareto_k_hat
from genmod.training import Fit, GradientStep, train

LogProb = Callable[[Array], Array]
Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class ReverseKL(Description):
    """E_q[log q(x) - b log f(x)] as a loss for `gm.fit` and `gm.train`, without data: every step has its own draws of q.

    Attributes:
      log_prob_fn: log f of ONE position, up to a constant. distribution: q.
      num_samples: draws of q for a step.
      stick_the_landing: drop the score term of the gradient, see `losses.reverse_kl`. That takes the log_prob of draws: False for
        a flow whose inverse is costly, such as an inverse autoregressive one.
      temper: b, an Optax schedule of the step that ends at 1 (or `gm.call` of one): a small b lets q find modes that lie apart
        (Rezende & Mohamed 2015, eq. 20). None: 1 throughout.

    Raises TypeError for parts of another kind, ValueError for a q whose draws carry no gradient or that has a context.
    """

    log_prob_fn: LogProb
    distribution: Distribution
    num_samples: int = 64
    stick_the_landing: bool = True
    temper: Schedule | Call | None = None

    def __post_init__(self):
        check_function(log_prob_fn=self.log_prob_fn)
        check_parts(self, distribution=Distribution)
        super().__post_init__()
        check_count(num_samples=self.num_samples)
        name = type(self.distribution).__name__
        if not self.distribution.reparameterized:
            raise ValueError(f"distribution must have draws that carry the gradient of its parameters, those of {name} do not")
        if self.distribution.context_shape is not None:
            raise ValueError(f"distribution must have no context, got {name} with {self.distribution.context_shape}")

    def __call__(self, params: Params, key: Key, batch: Any, *, step: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """(loss, metrics) of `losses.reverse_kl`; step None: of the target itself, b = 1."""
        temper = None if self.temper is None or step is None else self._temper(step)

        def target(x):
            log_f = jax.vmap(self.log_prob_fn)(x)
            return log_f if temper is None else temper * log_f

        loss, metrics = reverse_kl(
            self.distribution.sample_and_log_prob,
            target,
            params,
            key,
            self.num_samples,
            stick_the_landing=self.stick_the_landing,
            log_prob_fn=self.distribution.log_prob,
        )
        return loss, metrics | ({} if temper is None else {"temper": temper})

    def _temper(self, step):
        schedule = made(self.temper)
        assert callable(schedule)
        return jnp.asarray(schedule(step))


class PosteriorReport(NamedTuple):
    """How good an approximation q of f is, by `num_samples` draws of q; all in nats.

    Attributes:
      elbo, elbo_sem: the lower bound on log Z, and its standard error.
      log_evidence, log_evidence_sem: log Z by importance sampling, a lower bound in expectation, which converges; its excess over
        the ELBO estimates KL(q || f / Z).
      ess_fraction: effective share of the weights f / q, which cannot see mass that q never visits.
      acceptance_rate: of independence Metropolis-Hastings with draws of q as proposals, E[min(w, w')] / E[w] for the weights w of
        two draws.
      k_hat: shape of the tail of the weights; above 0.7 importance sampling cannot be trusted.
    """

    elbo: Array
    elbo_sem: Array
    log_evidence: Array
    log_evidence_sem: Array
    ess_fraction: Array
    acceptance_rate: Array
    k_hat: Array
    num_samples: int


class PosteriorFit(NamedTuple):
    """What `fit_posterior` returns: the `Fit`, whose `params` are those of q, and the report on it."""

    fit: Fit
    report: PosteriorReport


def fit_posterior(
    log_prob_fn: LogProb,
    distribution: Distribution,
    *,
    key: Key,
    start: ArrayLike | None = None,
    params: Params | None = None,
    optimizer: optax.GradientTransformation | Call | None = None,
    num_steps: int = 5_000,
    num_samples: int = 64,
    stick_the_landing: bool = True,
    temper: Schedule | Call | None = None,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    max_skips: int = 0,
    num_report: int = 10_000,
    **options: Any,
) -> PosteriorFit:
    """Fits a distribution q to a log-density by the reverse KL, and reports how good it is.

    Args:
      log_prob_fn: log f of one position, up to the constant that the evidence is about; a function of a module, or a
        `gm.densities.Target`, does not compile again.
      distribution: q, reparameterised, over the positions.
      key: of the parameters, the draws and the report.
      start: positions near the posterior, (n,) + event_shape, such as draws of a coarser approximation, for layers that read
        data when they are initialised (`ActNorm`, `Whiten`). params: of q, to start from instead.
      optimizer: any of Optax, or `gm.call` of one; None: Adam, from 3e-3 down to zero along a cosine.
      num_samples, stick_the_landing, temper: see `ReverseKL`. clip_norm, ema_decay, max_skips: see `GradientStep`.
      num_report: draws for the report.
      options: of `gm.train`, such as validate, checkpoint, log, callback, progress.

    Returns a `PosteriorFit`, (fit, report). Raises as `ReverseKL` and `gm.train`; ValueError for a log_prob_fn that does not
    return one number.
    """
    loss = ReverseKL(log_prob_fn, distribution, num_samples, stick_the_landing, temper)
    check_count(num_steps=num_steps)
    key = check_key(key)
    if params is None:
        x = np.zeros((1, *distribution.event_shape), jnp.result_type(float)) if start is None else start
        params = distribution.init(stream(key, "params"), x)
    check_params(distribution, params)
    _check_log_prob(log_prob_fn, distribution, params)
    if optimizer is None:
        optimizer = call(_adam, num_steps)
    step = GradientStep(loss, optimizer, clip_norm=clip_norm, ema_decay=ema_decay, max_skips=max_skips)
    fit = train(step, params, None, key=stream(key, "train"), num_steps=num_steps, **options)
    report = posterior_report(log_prob_fn, distribution, fit.params, stream(key, "report"), num_report)
    return PosteriorFit(fit, report)


def posterior_report(
    log_prob_fn: LogProb, distribution: Distribution, params: Params, key: Key, num_samples: int = 10_000
) -> PosteriorReport:
    """How good q is as an approximation of the law with log-density `log_prob_fn`. Compiled.

    Args:
      log_prob_fn: log f of one position. distribution, params: q.
      key: of its draws. num_samples: how many of them, at least 25 for a k-hat.

    Returns a `PosteriorReport`.
    """
    check_function(log_prob_fn=log_prob_fn)
    check_count(num_samples=num_samples)
    check_params(distribution, params)
    values = program_of(log_prob_fn, _report, distribution, num_samples)(params, check_key(key))
    return PosteriorReport(**values, num_samples=num_samples)


def _report(log_prob_fn: LogProb, distribution: Distribution, num_samples: int, params: Params, key: Key) -> dict[str, Array]:
    x, log_q = distribution._sample_and_log_prob(params, key, num_samples)
    log_weights = jax.vmap(log_prob_fn)(x) - log_q
    elbo, sem = mean_and_sem(log_weights)
    evidence = log_mean(log_weights)
    return {
        "elbo": elbo,
        "elbo_sem": sem,
        "log_evidence": evidence.value,
        "log_evidence_sem": evidence.sem,
        "ess_fraction": evidence.effective_size / num_samples,
        "acceptance_rate": independence_acceptance(log_weights),
        "k_hat": pareto_k_hat(log_weights),
    }


def _adam(num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))


def _check_log_prob(log_prob_fn: LogProb, distribution: Distribution, params: Params) -> None:
    draw = functools.partial(distribution.sample_one, params)
    shape = jax.eval_shape(lambda key: log_prob_fn(draw(key)), jax.random.key(0)).shape
    if shape:
        raise ValueError(f"log_prob_fn must return one number for one position, got shape {shape}")
