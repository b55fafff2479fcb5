"""The Model protocol: a distribution that can be trained.

    loss(params, key, batch, *, step=None) -> (scalar, metrics)

A family is one file in this folder: it implements `event`, `_init`, `loss`, and the hooks of `Distribution` that it has.
"""

import abc
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import losses
from genmod.core.batching import Batch, row_keys, to_batch, vmap_events
from genmod.core.checks import check, check_context, check_row_weight
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.numerics import same_precision
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import Head
from genmod.losses.variational import ELBO, Latent, Objective, log_weights


class Model(Distribution, abc.ABC):
    """A distribution with an objective.

    Attributes:
      loss_measures_fit: whether less loss on held-out data is a better fit, so that `fit` may validate by it; a class says it.
    """

    loss_measures_fit = True

    @abc.abstractmethod
    def loss(self, params: Params, key: Key, batch: Any, *, step: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """(scalar loss, metrics by name) of a batch: sum over the event, (weighted) mean over the batch, in nats.

        Args:
          batch: a `Batch`, or events x, or a pair (x, context); `read` makes a checked Batch of any.
          step: the number of the training step, for objectives that are annealed; None: the final objective.

        Not compiled: `fit` compiles it with the rest of its step. Metrics are scalars, of any names but those that `fit`
        gives itself ("loss", "grad_norm", "step", and all that begin with "validation_").
        """

    def read(self, batch: Any) -> Batch:
        """A batch in its standard form, checked against `event` and `context_shape`, class labels one-hot.

        Raises TypeError for the wrong kind of number and for a NamedTuple that is no Batch; ValueError for arrays that do not
        fit.
        """
        batch = to_batch("batch", batch)
        x = jnp.asarray(self.event.check("batch", batch.x, batched=True))
        context = check_context(type(self).__name__, batch.context, self.context_shape, batch=x.shape[:1])
        if context is not None:
            context = jnp.asarray(context)
            context = context if self.own_precision else same_precision(context, x)
        weight = None if batch.weight is None else jnp.asarray(check_row_weight("weight", batch.weight, x.shape[0]))
        return Batch(x, context, weight)


class RateDistortion(NamedTuple):
    """KL(q || prior) and -E_q log p(x | z) of each event, in nats; their sum bounds -log p(x) from above."""

    rate: Array
    distortion: Array


class LatentModel(Model, abc.ABC):
    """p(x) = int p(z) p(x | z) dz, with a posterior q(z | features) whose features come from x.

    Its three hooks are what evidence, gaps and the health of posteriors are measured by (`genmod.inference`). Its loss and its
    `log_prob`, a draw that wants a key, are those of its objective.

    Attributes:
      objective: what `loss` minimises, and the LOWER_BOUND that `log_prob` is.
    """

    objective: Objective  # a field or a property: a subclass says it

    likelihood = Likelihood.LOWER_BOUND
    reparameterized = False

    def __post_init__(self):
        super().__post_init__()
        objective = getattr(self, "objective", None)
        if not isinstance(objective, Objective):
            raise TypeError(f"objective of {type(self).__name__} must be one such as gm.losses.ELBO(), got {objective!r}")

    @abc.abstractmethod
    def features_one(self, params: Params, x: Array, context: Context = None) -> Any:
        """What the posterior of ONE event is a function of: the output of the encoder, an array or a pytree of arrays."""

    @abc.abstractmethod
    def latent_one(self, params: Params, x: Array, context: Context = None, features: Any = None) -> Latent:
        """The inference problem of ONE event; `features` in the place of those of the encoder.

        By its `with_features`, where it has one, `losses.SemiAmortized` refines them.
        """

    @abc.abstractmethod
    def sample_joint_one(self, params: Params, key: Key, context: Context = None) -> tuple[Array, Array]:
        """(z, x): ONE draw of the model with its latent, which is an exact draw of p(z | x)."""

    @over_events
    def rate_distortion(
        self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None
    ) -> RateDistortion:
        """The two parts of the evidence bound of events x, any axes + event_shape, by one draw for each. Compiled.

        Raises ValueError without a key: the distortion is a random draw.
        """
        terms = ELBO().terms_one(self.latent_one(params, x, context), self._random(key))  # type: ignore[arg-type]
        return RateDistortion(terms["rate"].sum(), terms["distortion"])

    def log_weights_one(self, params: Params, x: Array, context: Context, key: Key, num_samples: int) -> Array:
        """log p(x, z) - log q(z | x) of ONE event at draws of q, (num_samples,): what estimates of the evidence are made of.

        Args:
          x: the event. context: of it. key: of the draws. num_samples: how many.
        """
        return log_weights(self.latent_one(params, x, context), key, num_samples)

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)

        def one(x, context, key):
            return self.objective.terms_one(self.latent_one(params, x, context), key)

        axes = (0, None if context is None else 0, 0)
        return self.objective.loss(vmap_events(one, axes)(x, context, row_keys(key, x.shape[0])), weight, step)

    def log_prob_one(self, params, x, context=None, key=None):
        return self.objective.bound_one(self.latent_one(params, x, context), self._random(key))

    def sample_one(self, params, key, context=None):
        return self.sample_joint_one(params, key, context)[1]

    def _random(self, key: Key | None) -> Key:
        if key is None:
            raise ValueError(f"the bound of a {type(self).__name__} is a random draw: pass key=...")
        return key


def likelihood_loss(model: Model, params: Params, key: Key, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """The loss of a model that is trained by its log_prob_one: the (weighted) mean of -log p over a batch that was read."""
    x, context, weight = batch
    keys = None if model.likelihood is Likelihood.EXACT else row_keys(key, x.shape[0])
    axes = (None, 0, None if context is None else 0, None if keys is None else 0)
    log_prob = vmap_events(model.log_prob_one, axes)(params, x, context, keys)
    return losses.negative_log_likelihood(lambda _: log_prob, x, name=model.likelihood.nll_key, weight=weight)


def present(*inputs: Array | None) -> tuple[Array, ...]:
    """The inputs of a network that are there: an optional context or state is None where there is none."""
    return tuple(a for a in inputs if a is not None)


def as_number(owner: str, output: Array) -> Array:
    """What a network gave for ONE event as a scalar. Raises ValueError, which names the network `owner`, for more numbers."""
    wanted = f"{owner} must give one number for ONE event"
    remedy = "gm.nets.FlatNet(body, 1) does, behind convolutions nn.Sequential((body, nn.Dense(1)))"
    check(output.size == 1, f"{wanted}, got {output.shape}; {remedy}")
    return output.reshape(())


def as_raw(owner: str, raw: Array, shape: Shape, head: Head) -> Array:
    """The raw numbers of a head for ONE event of this shape, shape + (num_params,), from as many in any shape.

    Raises ValueError, which names the network `owner`, for another number of them.
    """
    wanted = (*shape, head.num_params)
    num = math.prod(wanted)
    check(raw.size == num, f"{owner} must give {num} raw numbers, {wanted} of {head}, got {raw.shape}")
    return raw.reshape(wanted)


class GameModel(Model, abc.ABC):
    """A model whose players, each `params[player]`, have losses of their own: what `GameStep` of `genmod.training` wants.

    Attributes:
      players: their names, in the order of their turns.
    """

    players: tuple[str, ...]  # a subclass says them
    loss_measures_fit = False

    @abc.abstractmethod
    def player_loss(
        self, player: str, params: Params, key: Key, batch: Any, *, step: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """(the scalar loss of ONE player, metrics by name), as `loss` has them; only `params[player]` moves to lower it."""

    def after_update(self, player: str, own: Params) -> Params:
        """`own`, the params[player] after an update, with the state in it that no gradient moves; an optional hook.

        A `GameStep` calls it; a `GradientStep` of the `loss` does not.
        """
        return own

    def loss(self, params, key, batch, *, step=None):
        """The sum of the players' losses, each as a function of its own parameters alone: no measure of the fit.

        Its gradient is that of all players at once.
        """
        total, metrics = jnp.zeros(()), {}
        for player in self.players:
            seen = jax.lax.stop_gradient(params) | {player: params[player]}
            loss, more = self.player_loss(player, seen, key, batch, step=step)
            total, metrics = total + loss, metrics | more | {f"{player}_loss": loss}
        return total, metrics


class EMModel(Model, abc.ABC):
    """A model whose likelihood rises by expectation and maximisation: what `fit_em` of `genmod.training` wants.

    `init` is where it begins. Rows are weighted, and sums over several blocks of rows are added.
    """

    @abc.abstractmethod
    def e_step(self, params: Params, x: Array, weight: Array) -> tuple[Array, Any]:
        """Of rows x, (n,) + event_shape, and weights (n,): log p(x) of each, (n,), and the sums, a pytree, that m_step wants."""

    @abc.abstractmethod
    def m_step(self, params: Params, statistics: Any) -> Params:
        """The parameters that maximise the expected log-likelihood, plus `log_prior`, of the sums found at `params`."""

    @property
    @abc.abstractmethod
    def num_free(self) -> int:
        """The number of free parameters, for information criteria."""

    @property
    def least_rows(self) -> int:
        """The least number of data from which it can be fitted."""
        return 2

    def log_prior(self, params: Params) -> Array:
        """What an M-step adds to the log-likelihood, in nats; 0 where it adds nothing."""
        return jnp.zeros(())

    def vacant(self, statistics: Any) -> Array | None:
        """Whether a part of the model holds no data; None where there are no such parts."""
        return None

    def refilled(self, params: Params, statistics: Any, x: Array, weight: Array) -> Params:
        """Parameters whose vacant part stands near the ONE event x, of this weight, which the model explains worst. They are
        kept if they raise the likelihood."""
        raise NotImplementedError(f"{type(self).__name__} has no vacant parts")
