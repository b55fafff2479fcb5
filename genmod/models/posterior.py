"""Posteriors of a simulator's parameters theta, p(theta | x), learned from pairs (theta, x) alone: simulation-based inference.

    posterior    NPE    gm.flows.neural_spline_flow(theta_shape, context_shape=x_shape, support=...), fitted to Batch(theta, x)
    likelihood   NLE    a conditional law of x, fitted to Batch(x, theta): log p(theta | x) = log p(theta) + log q(x | theta) - c
    ratio        NRE    `RatioEstimator`, fitted to Batch(theta, x):         log p(theta | x) = log p(theta) + h(theta, x)

NPE is a flow, with exact log_prob and draws (Papamakarios & Murray 2016, arXiv:1605.06376). The others are known up to a
constant; their draws come from a population that is tempered from the prior:

    nle = gm.models.LikelihoodPosterior(prior, likelihood)
    nle.population({"prior": {}, "model": fit.params}, key, x, 1_000).positions
"""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import losses, nets
from genmod.core.batching import row_keys, vmap_events
from genmod.core.checks import check, check_context, check_count, check_parts, check_positive
from genmod.core.distribution import Distribution, Likelihood, call_program, over_events
from genmod.core.event import Real
from genmod.core.keys import check_key
from genmod.core.numerics import real
from genmod.core.params import Fixed
from genmod.core.types import Array, Key, Params
from genmod.models.base import Model, as_number
from genmod.samplers import TemperedPopulation, ensemble_tempered

# Members of populations that move at once.
_AT_ONCE = 2**14


class BayesPosterior(Distribution, abc.ABC):
    """p(theta | x) in proportion to prior(theta) exp(log_likelihood(theta, x)); the context is x, `log_prob` UNNORMALIZED.

    Attributes:
      prior: p(theta), a Distribution with an EXACT density and draws; its parameters are params["prior"].
    """

    prior: Distribution

    likelihood = Likelihood.UNNORMALIZED
    reparameterized = False

    @abc.abstractmethod
    def log_likelihood_one(self, params: Params, theta: Array, x: Array) -> Array:
        """log p(x | theta) of ONE pair, in nats, up to a function of x."""

    @abc.abstractmethod
    def prior_params(self, params: Params) -> Params:
        """The parameters of the prior."""

    @property
    def event(self):
        return self.prior.event

    @property
    def support(self):
        return self.prior.support

    def log_prob_one(self, params, x, context=None, key=None):
        log_prior = self.prior.log_prob_one(self.prior_params(params), x)
        # Where the prior is zero a network may give anything.
        return jnp.where(log_prior > -jnp.inf, log_prior + self.log_likelihood_one(params, x, context), -jnp.inf)  # type: ignore

    def sample_one(self, params, key, context=None):
        raise NotImplementedError(
            f"{type(self).__name__} has no draws one by one; population(params, key, x, num).positions are draws"
        )

    def population(
        self, params: Params, key: Key, x: ArrayLike, num: int, *, num_steps: int = 20, target_size: float = 0.5
    ) -> TemperedPopulation:
        """Draws of p(theta | x) by `samplers.ensemble_tempered`, which begins at draws of the prior. Compiled.

        Args:
          x: any axes + context_shape: a population for each.
          num: of its members, (num,) + event_shape behind the axes of x.
          num_steps, target_size: of the sampler.

        Returns a `TemperedPopulation` with the axes of x in front; its `level` is 1 where the sampler arrived. Raises
        ValueError or TypeError for arrays and counts that do not fit.
        """
        check_count(num=num, num_steps=num_steps)
        check(isinstance(self.event, Real), f"a population wants a prior over real numbers, got one over {self.event}")
        x = jnp.asarray(check_context(type(self).__name__, x, self.context_shape, batch=None, any_batch=True, name="x"))
        return call_program(_populations, self, params, (self, num, num_steps, target_size), check_key(key), x)


@dataclasses.dataclass(frozen=True)
class LikelihoodPosterior(BayesPosterior):
    """p(theta | x) of a prior and a model of p(x | theta), exact or learned (neural likelihood: Papamakarios et al. 2019,
    arXiv:1805.07226).

    Attributes:
      prior: p(theta). model: p(x | theta), any Distribution whose context is theta and whose log_prob is EXACT, or UNNORMALIZED
        with a constant that does not depend on theta.

    Parameters: {"prior", "model"}. Raises ValueError or TypeError for parts that do not fit each other.
    """

    prior: Distribution
    model: Distribution

    def __post_init__(self):
        super().__post_init__()
        _check_prior(self.prior)
        check_parts(self, model=Distribution)
        if self.model.likelihood not in (Likelihood.EXACT, Likelihood.UNNORMALIZED):
            raise ValueError(
                f"model must have a log_prob that is EXACT or UNNORMALIZED, got {self.model.likelihood.name} of {self.model}"
            )
        check(
            self.model.context_shape == self.prior.event_shape,
            f"model must have the context theta, of shape {self.prior.event_shape}, got {self.model.context_shape}",
        )

    @property
    def context_shape(self):
        return self.model.event_shape

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        return {"prior": self.prior._init(keys[0], x, None), "model": self.model._init(keys[1], self._data(context), x)}  # type: ignore

    def prior_params(self, params):
        return params["prior"]

    def log_likelihood_one(self, params, theta, x):
        return self.model.log_prob_one(params["model"], self._data(x), theta)

    def _data(self, x):
        # Integers come as real numbers, since integer contexts are class labels.
        return x if isinstance(self.model.event, Real) else x.astype(self.model.event.dtype)


@dataclasses.dataclass(frozen=True)
class RatioEstimator(Model, BayesPosterior):
    """p(theta | x) in proportion to prior(theta) exp(h(theta, x)): h is a classifier that tells pairs that belong together from
    pairs that do not, so that h tends to log p(x | theta) / p(x) (Hermans et al. 2020, arXiv:1903.04057).

    Attributes:
      prior: p(theta). network: a Linen module (theta, x) -> one number; both standardised by the first batch.
      context_shape: of x.
      num_contrastive: other theta for each x, of the same batch. odds: see `losses.contrastive_ratio`.

    Its event is theta, its context x: it is fitted to Batch(theta, x), as a conditional flow is. The normaliser of exp(h) times
    the prior is 1 in the limit of perfect training only, so `log_prob` stays UNNORMALIZED; `log_ratio` is h.

    Parameters: {"network", "units": `Fixed` means and scales of theta and x, "prior": `Fixed`}. Raises ValueError or TypeError
    for parts that do not fit each other; `init` for a network with another output.
    """

    prior: Distribution
    network: Any
    context_shape: tuple[int, ...]
    num_contrastive: int = 4
    odds: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check_prior(self.prior)
        check_count(num_contrastive=self.num_contrastive)
        check_positive(odds=self.odds)
        if self.context_shape is None:
            raise ValueError("context_shape must be that of x, got None")

    def prior_params(self, params):
        return params["prior"].constant

    def log_likelihood_one(self, params, theta, x):
        units = params["units"].constant
        inputs = [
            (real(a).astype(u["mean"].dtype) - u["mean"]) / u["scale"] for a, u in ((theta, units["x"]), (x, units["context"]))
        ]
        h = as_number("network", nets.apply(self.network, params["network"], *inputs))
        return h.astype(jnp.promote_types(h.dtype, jnp.float32))

    @over_events
    def log_ratio(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """h(theta, x), which tends to log p(x | theta) / p(x), in nats; `x` is theta and `context` is x. Compiled."""
        return self.log_likelihood_one(params, x, context)  # type: ignore[arg-type]

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        fn = functools.partial(self.log_likelihood_one, params)
        options = {"num_contrastive": self.num_contrastive, "odds": self.odds}
        return losses.contrastive_ratio(fn, x, context, key, weight=weight, **options)

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        given = jnp.asarray(context)
        units = {"x": _units(x), "context": _units(given)}
        params = {"network": nets.init(self.network, keys[0], *(unit["mean"] for unit in units.values()))}
        params |= {"units": Fixed(units), "prior": Fixed(self.prior._init(keys[1], x, None))}
        jax.eval_shape(lambda: self.log_likelihood_one(params, x[0], given[0]))
        return params


def _units(rows: Array) -> dict[str, Array]:
    rows = real(rows)
    std = rows.std(0)
    return {"mean": rows.mean(0), "scale": jnp.where(std > 0, std, 1.0).astype(rows.dtype)}


def _check_prior(prior: Any) -> None:
    if not isinstance(prior, Distribution):
        raise TypeError(f"prior must be a Distribution such as gm.densities.Uniform, got {prior!r}")
    if prior.likelihood is not Likelihood.EXACT or prior.context_shape is not None:
        raise ValueError(f"prior must have an EXACT log_prob and no context, got {prior}")


@functools.partial(jax.jit, static_argnums=0)
def _populations(static, params, key, x):
    posterior, num, num_steps, target_size = static
    axes = x.shape[: x.ndim - len(posterior.context_shape)]
    prior, own = posterior.prior, posterior.prior_params(params)

    def one(key, x):
        prior_key, move_key = jax.random.split(key)
        draws = vmap_events(lambda key: prior.sample_one(own, key))(row_keys(prior_key, num))
        likelihood_fn = functools.partial(posterior.log_likelihood_one, params, x=x)
        prior_fn = functools.partial(prior.log_prob_one, own)
        return ensemble_tempered(move_key, prior_fn, likelihood_fn, draws, num_steps=num_steps, target_size=target_size)

    rows = x.reshape(-1, *posterior.context_shape)
    found = jax.lax.map(lambda row: one(*row), (row_keys(key, rows.shape[0]), rows), batch_size=_AT_ONCE // num + 1)
    return jax.tree.map(lambda leaf: leaf.reshape(*axes, *leaf.shape[1:]), found)
