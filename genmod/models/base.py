"""The Model protocol: a distribution that can be trained.

    loss(params, key, batch, *, step=None) -> (scalar, metrics)

A family is one file in this folder: it implements `event`, `_init`, `loss`, and the hooks of `Distribution` that it has.
"""

import abc
from typing import Any

import jax.numpy as jnp

from genmod.core.arrays import to_array
from genmod.core.batching import Batch
from genmod.core.checks import check_context
from genmod.core.distribution import Distribution
from genmod.core.numerics import same_precision
from genmod.core.types import Array, Context, Key, Params
from genmod.losses.variational import Latent


class Model(Distribution, abc.ABC):
    """A distribution with an objective."""

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

        Raises TypeError for the wrong kind of number, ValueError for arrays that do not fit.
        """
        if not isinstance(batch, Batch):
            batch = Batch(*batch) if isinstance(batch, tuple) else Batch(batch)
        x = jnp.asarray(self.event.check("batch", batch.x, batched=True))
        context = check_context(type(self).__name__, batch.context, self.context_shape, batch=x.shape[:1])
        if context is not None:
            context = jnp.asarray(context)
            context = context if self.own_precision else same_precision(context, x)
        weight = None if batch.weight is None else jnp.asarray(to_array("weight", batch.weight))
        if weight is not None and weight.shape != x.shape[:1]:
            raise ValueError(f"weight must have one entry for each of {x.shape[0]} rows, got shape {weight.shape}")
        return Batch(x, context, weight)


class LatentModel(Model, abc.ABC):
    """p(x) = int p(z) p(x | z) dz, with a posterior q(z | features) whose features come from x.

    What evidence, gaps and the health of posteriors are measured by (`genmod.inference`).
    """

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
