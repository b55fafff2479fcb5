"""The rate-distortion curve of a latent-variable model, from one run: beta changes while training goes on.

    minimise  distortion + beta rate,    distortion = -E_q log p(x | z),  rate = KL(q(z | x) || p(z)),  both in nats

Where it is least, the slope of the curve is dD/dR = -beta. The sum distortion + rate bounds -log p(x) from above, and is least at
beta = 1 (Alemi et al. 2017, arXiv:1711.00464). For a given decoder the best posterior is the tempered one, that of a likelihood
to the power 1 / beta,

    q(z | x)  ~  p(z) p(x | z)^(1 / beta)

The betas are a schedule of the training step, constant over pieces of equal length: one program is compiled for all, and each
piece begins where the one before has ended, with the optimizer's averages.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.batching import row_keys
from genmod.core.checks import check_count
from genmod.core.description import Description
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key, Params
from genmod.losses.variational import ELBO
from genmod.models.base import LatentModel
from genmod.training import Fit, Whole, fit

# Rows times draws that are held in memory at once.
_AT_ONCE = 10_000


class RateDistortionCurve(NamedTuple):
    """Rate and distortion of held-out events at the end of each beta's training, in nats, NumPy arrays (number of betas,).

    Attributes:
      beta: in the order of training. rate, rate_sem, distortion, distortion_sem: means over events, and their standard errors.
      bound, bound_sem: rate + distortion, an upper bound on -log p(x), whose parts are of the same events.
      fit: the run: its last_params are those of the last beta, its history has a row for each.
    """

    beta: np.ndarray
    rate: np.ndarray
    rate_sem: np.ndarray
    distortion: np.ndarray
    distortion_sem: np.ndarray
    bound: np.ndarray
    bound_sem: np.ndarray
    fit: Fit

    def __str__(self):
        lines = ["    beta          rate (nats)    distortion (nats)           sum (nats)"]
        parts = (self.rate, self.rate_sem), (self.distortion, self.distortion_sem), (self.bound, self.bound_sem)
        for i, beta in enumerate(self.beta):
            lines.append(f"{beta:8.4g}  " + "  ".join(f"{f'{mean[i]:.4f} +- {sem[i]:.4f}':>19}" for mean, sem in parts))
        return "\n".join(lines)


def rate_distortion_curve(
    model: LatentModel,
    data: Any,
    validation: Any,
    *,
    betas: Any,
    key: Key,
    num_steps: int = 2_000,
    num_samples: int = 8,
    **options: Any,
) -> RateDistortionCurve:
    """Trains at one beta after the other, and measures rate and distortion at the end of each.

    Args:
      model: one whose `objective` is an `ELBO`, of any beta, without free_bits.
      data, validation: events x, or (x, context), as of `fit`, without weights; the curve is that of the validation.
      betas: positive. They are best given from small to large: latents that a large beta has emptied are slow to come back. The
        first may stand twice, since its training begins from nothing; each has a row.
      key: as of `fit`.
      num_steps: of each beta.
      num_samples: draws for each event that is measured.
      options: others of `fit`: batch_size, optimizer, params, checkpoint, ... A schedule of the learning rate counts the steps of
        the whole run: begin it anew at multiples of `num_steps` (`optax.join_schedules`).

    Raises TypeError or ValueError as `fit`, for betas that are not positive numbers, and for a model, an objective or options
    that the sweep cannot take.
    """
    if not isinstance(model, LatentModel):
        raise TypeError(f"model must be a LatentModel such as gm.models.VAE, got {type(model).__name__}: {model!r}")
    betas = _checked(betas)
    check_count(num_steps=num_steps, num_samples=num_samples)
    if validation is None:
        raise ValueError("validation must be events to measure on, got None; pass the data themselves if there are no others")
    own = {"loss_fn", "step", "validate", "validate_every", "monitor", "patience", "state"} & options.keys()
    if own:
        raise ValueError(f"{', '.join(sorted(own))} of fit are set by the sweep itself; leave them out")
    found = fit(
        _swept(model, _Pieces(betas, num_steps)),
        data,
        key=key,
        num_steps=num_steps * len(betas),
        validation=validation,
        validate=Whole(_Validation(model, num_samples)),
        validate_every=num_steps,
        **options,
    )
    seen = {}
    for part in ("rate", "distortion", "bound"):
        seen |= {part: found.history[f"validation_{part}_nats"], f"{part}_sem": found.history[f"validation_{part}_nats_sem"]}
    return RateDistortionCurve(np.array(betas), **seen, fit=found)


def _swept(model: LatentModel, schedule: "_Pieces") -> LatentModel:
    """The model whose beta is a schedule."""
    objective = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}.get("objective")  # type: ignore[arg-type]
    if not isinstance(objective, ELBO):
        raise TypeError(f"model must have an ELBO as its objective, whose beta is changed, got {objective!r}")
    if objective.free_bits:
        raise ValueError("model must have an objective without free_bits: where they count, beta is not the slope of the curve")
    return dataclasses.replace(model, objective=dataclasses.replace(objective, beta=schedule))  # type: ignore[type-var]


def _checked(betas: Any) -> tuple[float, ...]:
    """The betas as plain numbers; raises ValueError unless they are at least one, positive and finite."""
    array = np.asarray(betas, np.float64)
    if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"betas must be one or more positive finite numbers, got {betas!r}")
    return tuple(array.tolist())


@dataclasses.dataclass(frozen=True)
class _Pieces(Description):
    """The beta of a training step: `num_steps` of each; the last from there on."""

    betas: tuple[float, ...]
    num_steps: int

    def __call__(self, step: Array) -> Array:
        return jnp.asarray(self.betas)[jnp.minimum(step // self.num_steps, len(self.betas) - 1)]


@dataclasses.dataclass(frozen=True)
class _Validation(Description):
    """Rate and distortion of all held-out rows, by `num_samples` draws each; "loss" is their sum."""

    model: LatentModel
    num_samples: int = 8

    def __call__(self, params: Params, key: Key, batch: Any) -> dict[str, Array]:
        """ "rate_nats", "distortion_nats", their sum "bound_nats", "..._sem" of each, and "loss", the sum again."""
        x, context, weight = self.model.read(batch)
        if weight is not None:
            raise ValueError("a rate-distortion curve counts all rows equally: leave out the weights of the validation")
        objective = ELBO(self.num_samples)

        def one(row):
            x, context, key = row
            terms = objective.terms_one(self.model.latent_one(params, x, context), key)
            return terms["rate"].sum(), terms["distortion"]

        size = min(x.shape[0], max(1, _AT_ONCE // self.num_samples))
        rate, distortion = jax.lax.map(one, (x, context, row_keys(key, x.shape[0])), batch_size=size)
        found = {}
        for name, values in (("rate", rate), ("distortion", distortion), ("bound", rate + distortion)):
            found[f"{name}_nats"], found[f"{name}_nats_sem"] = mean_and_sem(values)
        return found | {"loss": found["bound_nats"]}
