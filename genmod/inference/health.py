"""Whether the posterior of a latent-variable model says anything: KL by dimension, active units, mutual information.

    active unit    Var_x(E_q[z_i | x]) > 0.01                                              (Burda et al. 2015, arXiv:1509.00519)
    E_x KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || p(z)),   q(z) = 1/N sum_n q(z | x_n)   (Hoffman & Johnson 2016, ELBO surgery)

I(x; z) is the mutual information of z and the number of the datum among N; it is at most log N nats.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count, check_parts, check_positive
from genmod.core.description import Description
from genmod.core.keys import stream
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key, Params
from genmod.inference.estimate import Observed, checked_rows
from genmod.models.base import LatentModel

# Numbers of draws, and pairs of a latent and a datum, that are held in memory at once.
_AT_ONCE, _PAIRS_AT_ONCE = 10_000, 2**16


class PosteriorHealth(NamedTuple):
    """How much a posterior says about its data, in nats, in the mean over data.

    Attributes:
      kl: KL(q || prior) by latent dimension, of the shape of the closed form; a scalar where none is known.
      rate: the whole. rate_sem: its standard error over data.
      mean_variance: the variance over data of the mean of each latent. active_units: how many are above the threshold.
      mutual_information: I(x; z). mutual_information_sem: its standard error. marginal_kl: KL(q(z) || p(z)), the rate that says
        nothing about x.
      num_data: N of the mutual information, whose most is log N.
    """

    kl: Any
    rate: Any
    rate_sem: Any
    mean_variance: Any
    active_units: Any
    mutual_information: Any
    mutual_information_sem: Any
    marginal_kl: Any
    num_data: int

    def __str__(self):
        units = np.size(self.mean_variance)
        kl = " ".join(f"{value:.2f}" for value in np.sort(np.ravel(self.kl))[::-1])
        return "\n".join(
            [
                f"rate                {self.rate:.4f} +- {self.rate_sem:.4f} nats",
                f"by dimension        {kl}",
                f"active units        {int(self.active_units)} of {units}",
                f"mutual information  {self.mutual_information:.4f} +- {self.mutual_information_sem:.4f} nats, at most "
                f"{np.log(self.num_data):.2f}",
                f"KL(q(z) || p(z))    {self.marginal_kl:.4f} nats",
            ]
        )


def posterior_health(
    model: LatentModel,
    params: Params,
    x: Any,
    context: Any = None,
    *,
    key: Key,
    num_samples: int = 64,
    threshold: float = 0.01,
    num_data: int = 1_000,
) -> PosteriorHealth:
    """The health of the posterior on events x. Compiled.

    Args:
      model, params, x, context: as in `Observed`. key: of the draws.
      num_samples: draws of each posterior, at least two; the variance of its mean is estimated without bias.
      threshold: of the variance of an active unit.
      num_data: the mutual information is that of the first so many rows; each pair of these is compared.
    """
    settings = PosteriorValidation(model, num_samples, threshold, num_data)
    _, _, x, context, _ = checked_rows(Observed(model, params, x, context))
    return _health(settings, params, x, context, stream(key, "health"))._replace(num_data=min(num_data, x.shape[0]))


@dataclasses.dataclass(frozen=True)
class PosteriorValidation(Description):
    """`posterior_health` during training, beside the loss: (params, key, batch) -> dict of scalars.

        gm.fit(model, x, validation=held_out, validate=gm.training.Whole(PosteriorValidation(model)), key=key)

    It wants all held-out rows at once, by `Whole`. Attributes: as the arguments of `posterior_health`.
    """

    model: LatentModel
    num_samples: int = 64
    threshold: float = 0.01
    num_data: int = 1_000

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, model=LatentModel)
        check_count(num_samples=self.num_samples, num_data=self.num_data)
        check_positive(threshold=self.threshold)
        if self.num_samples < 2:
            raise ValueError("num_samples must be >= 2: the spread of the draws is taken from that of their means")

    def __call__(self, params: Params, key: Key, batch: Any) -> dict[str, Array]:
        """ "loss", "rate_nats", "kl_nats_0", ..., "active_units", "mutual_information_nats", "marginal_kl_nats"."""
        x, context, weight = self.model.read(batch)
        if weight is not None:
            raise ValueError("the health of a posterior counts all rows equally: leave out the weights of the validation")
        loss_key, key = jax.random.split(key)
        found = _health(self, params, x, context, key)
        by_dimension = {f"kl_nats_{i}": value for i, value in enumerate(found.kl.ravel())} if found.kl.size > 1 else {}
        return {
            "loss": self.model.loss(params, loss_key, batch)[0],
            "rate_nats": found.rate,
            "active_units": found.active_units.astype(found.rate.dtype),
            "mutual_information_nats": found.mutual_information,
            "marginal_kl_nats": found.marginal_kl,
        } | by_dimension


@functools.partial(jax.jit, static_argnums=0)
def _health(settings, params, x, context, key):
    model, num = settings.model, x.shape[0]

    def one(row):
        index, x, context = row
        features = model.features_one(params, x, context)
        latent = model.latent_one(params, x, context, features)
        keys = jax.random.split(jax.random.fold_in(key, index), settings.num_samples)
        z, log_q = jax.vmap(latent.draw)(keys)
        sampled = (log_q - jax.vmap(latent.log_prior)(z)).mean()
        kl = sampled if latent.kl is None else latent.kl
        return features, z[0], kl, z.mean(0), z.var(0, ddof=1)

    rows = jnp.arange(num), x, context
    features, z, kl, means, variances = jax.lax.map(one, rows, batch_size=min(num, max(1, _AT_ONCE // settings.num_samples)))
    rate, rate_sem = mean_and_sem(kl.reshape(num, -1).sum(1))
    # The means of finitely many draws vary by more than the means of the posteriors do.
    spread = means.var(0, ddof=1) - variances.mean(0) / settings.num_samples
    some = min(num, settings.num_data)
    information, sem = mean_and_sem(_information(model, params, *jax.tree.map(lambda a: a[:some], (x, context, features, z))))
    whole = rate if some == num else kl[:some].reshape(some, -1).sum(1).mean()
    return PosteriorHealth(
        kl.mean(0), rate, rate_sem, spread, jnp.sum(spread > settings.threshold), information, sem, whole - information, some
    )


def _information(model, params, x, context, features, z):
    """log q(z_n | x_n) - log 1/N sum_m q(z_n | x_m) of every row."""
    num = x.shape[0]

    def one(row):
        index, z = row
        log_q = jax.vmap(lambda x, c, f: model.latent_one(params, x, c, f).held_log_q(z))(x, context, features)
        return log_q[index] - jax.nn.logsumexp(log_q) + jnp.log(num)

    return jax.lax.map(one, (jnp.arange(num), z), batch_size=min(num, max(1, _PAIRS_AT_ONCE // num)))
