"""`Penalized`: a model whose parameters have a price of their own, once for all data.

    loss(params) = loss of the model(params) + penalty(params) / num_data

Loss and penalty are in nats, and the loss is a mean over rows: num_data times the whole is the penalty and the sum over the data.

With penalty = -log p(params) the minimum is the mode of the posterior of the parameters, MAP. With the `function_kl` of a
`RandomFunctionPosterior` it is the global term of the bound (Kim & Pavlovic 2021, arXiv:2102.03151).
"""

import dataclasses
import types
from collections.abc import Callable

import jax.numpy as jnp

from genmod.core.checks import check_count, check_function, check_parts
from genmod.core.description import Description, call
from genmod.core.distribution import Distribution
from genmod.core.types import Array, Params
from genmod.densities import RandomFunctionPosterior
from genmod.models.base import Model


@dataclasses.dataclass(frozen=True)
class Penalized(Model):
    """A model, trained by its loss + penalty(params) / num_data. All else is the model's own, the parameters too.

        fit = gm.fit(gm.models.Penalized(vae, gm.models.FunctionKL(vae.posterior), len(x)), x, key=key)
        report = gm.inference.gap_report(vae, fit.params, x, key=key)

    Inference on latents is asked of `model` itself, with the same parameters. In `fit` the loss of held-out rows contains the
    penalty; what `gm.evaluate` reports does not.

    Attributes:
      model: any Model. num_data: how many rows the training data have.
      penalty: params -> a scalar, in nats: a function of a module, a `gm.call` or another description. -log p(params), of any
        prior, makes training find the maximum of the posterior.

    The loss reports `penalty_nats`, the penalty / num_data. Raises ValueError for a penalty that is no scalar.
    """

    model: Model
    penalty: Callable[[Params], Array]
    num_data: int

    def __post_init__(self):
        check_parts(self, model=Model)
        check_function(penalty=self.penalty)
        check_count(num_data=self.num_data)
        if isinstance(self.penalty, types.MethodType):  # these compare by the identity of their owner
            object.__setattr__(self, "penalty", call(self.penalty.__func__, self.penalty.__self__))
        super().__post_init__()

    @property
    def event(self):
        return self.model.event

    @property
    def context_shape(self):
        return self.model.context_shape

    @property
    def likelihood(self):
        return self.model.likelihood

    @property
    def reparameterized(self):
        return self.model.reparameterized

    @property
    def support(self):
        return self.model.support

    @property
    def own_precision(self):
        return self.model.own_precision

    def loss(self, params, key, batch, *, step=None):
        loss, metrics = self.model.loss(params, key, batch, step=step)
        penalty = jnp.asarray(self.penalty(params))
        if penalty.shape:
            raise ValueError(f"penalty must be a scalar, got shape {penalty.shape}; sum over the parameters")
        penalty = penalty / self.num_data
        return loss + penalty, metrics | {"penalty_nats": metrics.get("penalty_nats", 0.0) + penalty}  # of a penalised model both

    def _init(self, key, x, context):
        return self.model._init(key, x, context)

    def log_prob_one(self, params, x, context=None, key=None):
        return self.model.log_prob_one(params, x, context, key)

    def log_prob_info_one(self, params, x, context=None, key=None):
        return self.model.log_prob_info_one(params, x, context, key)

    def sample_one(self, params, key, context=None):
        return self.model.sample_one(params, key, context)

    def sample_info_one(self, params, key, context=None):
        return self.model.sample_info_one(params, key, context)

    def sample_and_log_prob_one(self, params, key, context=None):
        return self.model.sample_and_log_prob_one(params, key, context)


@dataclasses.dataclass(frozen=True)
class FunctionKL(Description):
    """The penalty of a model with a random posterior: the KL of the function, of the parameters under "posterior".

    Attributes:
      posterior: a `RandomFunctionPosterior`.
      level: that of the posterior in a `HierarchicalVAE`, 1 the nearest to the data; None: the model has no levels. For several
        random posteriors, penalise a `Penalized` model again.

    Called with parameters, raises ValueError where `level` does not say where these of the posterior are.
    """

    posterior: Distribution
    level: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, posterior=RandomFunctionPosterior)
        if self.level is not None:
            check_count(level=self.level)

    def __call__(self, params: Params) -> Array:
        """KL(q(v) || p(v)) in nats, a scalar."""
        assert isinstance(self.posterior, RandomFunctionPosterior)
        own = params["posterior"]
        levels = len(own) if isinstance(own, tuple | list) else None
        if levels is None and self.level is not None:
            raise ValueError(f"level must be None for a model without levels of latents, got {self.level}")
        if levels is not None and (self.level is None or self.level > levels):
            raise ValueError(f"level must be in 1..{levels}, that of the posterior, 1 the nearest to the data, got {self.level}")
        return self.posterior.function_kl(own if self.level is None else own[self.level - 1]["law"])
