"""`evidence`: log Z = log int f(z) dz of a density known up to its constant, log p(x) = log int p(x, z) dz above all.

    gm.evidence(Observed(model, params, x), ImportanceSampling(5_000), key=key)           # of every row of x
    gm.evidence(target(log_prob_fn, proposal, proposal_params), SMC(), key=key)           # of one density

A method is a static description, and every result says what it is: the value in nats, its standard error, on which side of the
truth its expectation lies, and from how many draws it comes.
"""

import abc
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.batching import row_keys, vmap_events
from genmod.core.checks import check_context, check_count
from genmod.core.description import Description
from genmod.core.distribution import Distribution, check_params
from genmod.core.keys import check_key
from genmod.core.types import Array, Context, Key, Params
from genmod.losses.variational import Latent
from genmod.models.base import LatentModel

# Latents that are held in memory at once, rows times those of each.
_AT_ONCE = 10_000
_SIDES = {-1: "a lower bound in expectation", 0: "no bound", 1: "an upper bound in expectation"}


class Evidence(NamedTuple):
    """An estimate of a log-evidence, in nats; arrays with a leading axis of rows where it is that of data.

    Attributes:
      value: the estimate. sem: its standard error, 0 of what is not random, nan where it is not known.
      side: -1: the expectation of `value` is at most the truth; +1: at least; 0: `value` is exact, or approximates and bounds
        nothing.
      num_draws: the latents that it is made of, for each row: draws, chains, particles, nodes.
      extras: more by name, such as `k_hat`, `effective_size`, `acceptance_rate`.
    """

    value: Any
    sem: Any
    side: int
    num_draws: int
    extras: dict[str, Any]

    def total(self) -> "Evidence":
        """That of all rows together: the sum, with its standard error; extras are left out."""
        return self._replace(value=np.sum(self.value), sem=np.sqrt(np.sum(np.square(self.sem))), extras={})

    def __str__(self):
        rows = np.size(self.value)
        mean, sem = np.mean(self.value), np.sqrt(np.sum(np.square(self.sem))) / rows
        parts = [f"log evidence {mean:.4f} +- {sem:.4f} nats{f' in the mean of {rows:,} rows' if np.ndim(self.value) else ''}"]
        parts += [_SIDES[self.side], f"{self.num_draws:,} latents"]
        parts += [f"{name} {np.mean(value):.3g}" for name, value in self.extras.items()]
        return ", ".join(parts)


class BayesFactor(NamedTuple):
    """The log of a ratio of evidences, in nats: its value, standard error and side, as those of `Evidence`."""

    value: Any
    sem: Any
    side: int


class Observed(NamedTuple):
    """Data of a model with a latent: one evidence for each row.

    Attributes:
      model: a `LatentModel`. params: of it. x: (n,) + event_shape. context: (n,) + context_shape.
      features: of the posterior in the place of the encoder's, with a leading axis of n: those of `refine`.
    """

    model: LatentModel
    params: Params
    x: Any
    context: Any = None
    features: Any = None


class Problem(NamedTuple):
    """What a method gets, of ONE evidence.

    Attributes:
      latent: f(z) = p(x | z) p(z), proposal and prior as functions.
      z: latents that the user gave; None without.
      given: (params, x, context) of a model, () otherwise.
    """

    latent: Latent
    z: Any = None
    given: tuple[Any, ...] = ()

    def log_joint(self, z: Any) -> Array:
        """log f(z)."""
        return self.latent.log_likelihood(z) + self.latent.log_prior(z)


class Estimate(NamedTuple):
    """What a method gives, of ONE evidence: value and standard error in nats, and more by name."""

    value: Array
    sem: Array
    extras: dict[str, Array]


class EvidenceMethod(Description, abc.ABC):
    """A way to estimate an evidence.

    Attributes:
      side: as that of `Evidence`.
      wants_z: what the method wants as `z`, in words; None: nothing. random: whether it wants a key.
      warning: what a user of the result must know.
    """

    side: int = 0
    wants_z: str | None = None
    random: bool = True
    warning: str | None = None

    @abc.abstractmethod
    def num_draws(self, z: Any) -> int:
        """How many latents an estimate is made of, where the user gave `z`."""

    @abc.abstractmethod
    def estimate_one(self, problem: Problem, key: Any) -> Estimate:
        """Of ONE evidence; traced."""


def target(log_prob_fn: Callable[[Array], Array], proposal: Distribution, params: Params, context: Context = None) -> Latent:
    """A density f(z) = exp(log_prob_fn(z)) whose log Z is wanted, with a proposal q: of importance weights f / q, and where
    annealing begins.

    Args:
      log_prob_fn: z -> log f(z), one number in nats: the log-joint of Bayes' rule, an energy with its sign changed.
      proposal: q, a normalised `Distribution` over z. params, context: of it.
    """

    def log_q(z):
        return proposal.log_prob_one(params, z, context)

    return Latent(
        lambda key: proposal.sample_and_log_prob_one(params, key, context),
        lambda z: log_prob_fn(z) - log_q(z),
        log_q,
        log_q,
        log_q=log_q,
        draw_prior=lambda key: proposal.sample_one(params, key, context),
    )


def bayesian(
    log_likelihood_fn: Callable[[Array], Array],
    prior: Distribution,
    params: Params,
    proposal: Distribution | None = None,
    proposal_params: Params = None,
) -> Latent:
    """Bayes' rule: f(z) = exp(log_likelihood_fn(z)) prior(z), whose Z is the marginal likelihood of the data.

    Args:
      log_likelihood_fn: z -> log p(data | z), in nats, of parameters z.
      prior: a normalised `Distribution` over z, where annealing begins. params: of it.
      proposal: of importance weights, with its params; None: the prior.
    """
    q, q_params = (prior, params) if proposal is None else (proposal, proposal_params)
    proposed = target(log_likelihood_fn, q, q_params)
    return proposed._replace(
        log_likelihood=log_likelihood_fn,
        log_prior=lambda z: prior.log_prob_one(params, z),
        draw_prior=lambda key: prior.sample_one(params, key),
    )


def evidence(problem: Latent | Observed, method: EvidenceMethod, *, key: Key | None = None, z: Any = None) -> Evidence:
    """The log-evidence by a method. Compiled, of `Observed` data once for a model and a method, of functions at every call.

    Args:
      problem: `Observed` data of a model, or one density by `target`, `bayesian`, or a `Latent` of one's own.
      method: such as `ImportanceSampling(5_000)`, `AIS()`, `SMC()`.
      key: of the draws; methods that are not random do without.
      z: latents, where the method wants them: exact draws of the posterior (`ReverseAIS`, `HarmonicMean`), (m,) + the shape of
        z; a point (`BIC`, `LaplaceEvidence`). Of `Observed` data with a leading axis of rows before these.

    Returns an `Evidence`. Raises TypeError or ValueError for a problem or method of another kind, for a missing key, and for z
    that is missing or not wanted.
    """
    if not isinstance(method, EvidenceMethod):
        raise TypeError(f"method must be an EvidenceMethod such as ImportanceSampling(5_000), got {method!r}")
    _check_wanted(method, key, z)
    z = None if z is None else jax.tree.map(jnp.asarray, z)
    if isinstance(problem, Observed):
        estimate = _of_rows(checked_rows(problem, z), method, key, z)
    elif isinstance(problem, Latent):
        estimate = jax.jit(lambda key, z: method.estimate_one(Problem(problem, z), key))(key, z)
    else:
        raise TypeError(f"problem must be Observed(model, params, x), or a Latent made by target(...), got {problem!r}")
    if method.warning is not None:
        warnings.warn(method.warning, UserWarning, stacklevel=2)
    first = jax.tree.map(lambda leaf: leaf[0], z) if isinstance(problem, Observed) else z
    return Evidence(estimate.value, estimate.sem, method.side, method.num_draws(first), estimate.extras)


def simulate(model: LatentModel, params: Params, key: Key, num: int, context: Any = None) -> tuple[Any, Any]:
    """(z, x): `num` draws of the model, with their latents: each z is an exact draw of the posterior of its x. Compiled.

    `evidence(Observed(model, params, x), ReverseAIS(), key=key, z=z[:, None])`. The context, (num,) + context_shape, is as in
    `Observed`.
    """
    if not isinstance(model, LatentModel):
        raise TypeError(f"model must be a LatentModel such as gm.models.VAE, got {model!r}")
    check_count(num=num)
    check_params(model, params)
    context = check_context(type(model).__name__, context, model.context_shape, batch=(num,))
    return _simulate(model, params, check_key(key), num, context)


def bayes_factor(a: Evidence, b: Evidence) -> BayesFactor:
    """log p(data | a) - log p(data | b), in nats, of independent estimates.

    A lower bound in expectation where a is one and b an upper bound; the other way round an upper bound; otherwise side 0.
    """
    side = a.side if a.side == -b.side else 0
    return BayesFactor(a.value - b.value, np.hypot(a.sem, b.sem), side)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _simulate(model, params, key, num, context):
    axes = (0, None if context is None else 0)
    return vmap_events(lambda key, c: model.sample_joint_one(params, key, c), axes)(row_keys(key, num), context)


def _check_wanted(method, key, z):
    name = type(method).__name__
    if method.random:
        if key is None:
            raise ValueError(f"{name} is random: pass key=jax.random.key(seed)")
        check_key(key)
    if method.wants_z is not None and z is None:
        raise ValueError(f"{name} wants z=...: {method.wants_z}")
    if method.wants_z is None and z is not None:
        raise ValueError(f"{name} takes no z; leave it out")


def checked_rows(problem: Observed, z: Any = None) -> Observed:
    """The same, checked: x and context as arrays; raises TypeError or ValueError for what does not fit the model."""
    model, params, x, context, features = problem
    if not isinstance(model, LatentModel):
        raise TypeError(f"model must be a LatentModel such as gm.models.VAE, got {model!r}; of any density make a target(...)")
    check_params(model, params)
    x = jnp.asarray(model.event.check("x", x, batched=True))
    context = check_context(type(model).__name__, context, model.context_shape, batch=x.shape[:1])
    for name, tree in (("features", features), ("z", z)):
        for leaf in jax.tree.leaves(tree):
            if leaf.shape[:1] != x.shape[:1]:
                raise ValueError(f"{name} must have a leading axis of one entry for each of {x.shape[0]} rows, got {leaf.shape}")
    return Observed(model, params, x, None if context is None else jnp.asarray(context), features)


def _of_rows(problem: Observed, method: EvidenceMethod, key: Any, z: Any) -> Estimate:
    return _rows(problem.model, method, problem.params, *problem[2:], z, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rows(model, method, params, x, context, features, z, key):
    def one(row):
        index, x, context, features, z = row
        latent = model.latent_one(params, x, context, features)
        own = None if key is None else jax.random.fold_in(key, index)
        return method.estimate_one(Problem(latent, z, (params, x, context)), own)

    size = max(1, _AT_ONCE // method.num_draws(jax.tree.map(lambda leaf: leaf[0], z)))
    return jax.lax.map(one, (jnp.arange(x.shape[0]), x, context, features, z), batch_size=min(size, x.shape[0]))
