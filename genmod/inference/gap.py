"""Where a bound loses: log p(x) - ELBO of each datum in three parts, and the refinement that takes one of them back.

    log p - ELBO  =  (log p - log p^)  +  (log p^ - L*)  +  (L* - ELBO)
                     estimator error     approximation     amortisation

L* is the ELBO of the best posterior of the family, found for each datum by itself; log p^ is an estimate of log p
(Cremer et al. 2018, arXiv:1801.03558). Gradient steps from the encoder's output towards L* are semi-amortised
inference (Kim et al. 2018, arXiv:1802.02550); `losses.SemiAmortized` trains with them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genmod.core.checks import check_count
from genmod.core.description import Call, canonical
from genmod.core.keys import stream
from genmod.core.params import num_params, trainable, with_trainable
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Context, Key, Params
from genmod.inference.estimate import EvidenceMethod, Observed, checked_rows, evidence
from genmod.inference.importance import ImportanceSampling
from genmod.losses.refinement import GradientSteps, adam_of_features
from genmod.losses.variational import ELBO
from genmod.models.base import LatentModel

# Draws times rows, and numbers that are moved, which are held in memory at once.
_AT_ONCE, _NUMBERS_AT_ONCE = 10_000, 2**24
_ESTIMATE, _REFERENCE = ImportanceSampling(500), ImportanceSampling(10_000)


class GapReport(NamedTuple):
    """The parts of log p - ELBO, (n,) each, in nats, and their standard errors.

    Attributes:
      evidence: log p by the reference. elbo: of the encoder's posterior.
      estimator: reference - estimate of log p. approximation: estimate - L*. amortization: L* - ELBO.
    """

    evidence: Any
    elbo: Any
    estimator: Any
    approximation: Any
    amortization: Any
    evidence_sem: Any
    elbo_sem: Any
    estimator_sem: Any
    approximation_sem: Any
    amortization_sem: Any

    def __str__(self):
        lines = []
        for name in ("evidence", "elbo", "estimator", "approximation", "amortization"):
            values, sems = np.asarray(getattr(self, name)), np.asarray(getattr(self, f"{name}_sem"))
            lines.append(f"{name:<14}{values.mean():10.4f} +- {np.sqrt((sems**2).sum()) / values.size:.4f} nats")
        return "\n".join([f"means over {np.size(self.elbo):,} data, +- error of the estimates", *lines])


def refine(
    model: LatentModel,
    params: Params,
    x: Any,
    context: Any = None,
    *,
    key: Key,
    num_steps: int = 20,
    optimizer: optax.GradientTransformation | Call | None = None,
    num_samples: int = 8,
) -> Any:
    """The features of each row's posterior after gradient steps on its ELBO, from the encoder's output. Compiled.

    The refined bound is `evidence(Observed(model, params, x, context, features), MeanBound(ELBO(), 100), key=key)`.

    Args:
      model, params, x, context: as in `Observed`. key: of the draws.
      num_steps: of each row. num_samples: draws of each gradient.
      optimizer: any Optax optimizer, which each row has to itself; None: Adam, whose first step moves each of F features by 1 / F
        (what depends on all of them then moves alike for any F), and which falls to zero along a cosine.

    Returns features with a leading axis of rows. Raises as `evidence`.
    """
    check_count(num_steps=num_steps, num_samples=num_samples)
    _, _, x, context, _ = checked_rows(Observed(model, params, x, context))
    static = model, num_steps, canonical(optimizer), num_samples
    return _refine(static, params, x, context, stream(key, "refine"))


def refine_one(
    model: LatentModel,
    params: Params,
    x: Array,
    key: Key,
    context: Context = None,
    *,
    num_steps: int = 20,
    optimizer: optax.GradientTransformation | Call | None = None,
    num_samples: int = 8,
) -> Any:
    """`refine` of ONE event, to be traced: inside of a loss, gradients pass through the steps."""
    begin = {"features": model.features_one(params, x, context)}
    return _raised(model, params, x, context, key, begin, num_steps, optimizer, num_samples)["features"]


def gap_report(
    model: LatentModel,
    params: Params,
    x: Any,
    context: Any = None,
    *,
    key: Key,
    estimate: EvidenceMethod = _ESTIMATE,
    reference: EvidenceMethod = _REFERENCE,
    num_steps: int = 500,
    optimizer: optax.GradientTransformation | Call | None = None,
    num_samples: int = 16,
    num_draws: int = 1_000,
) -> GapReport:
    """The three parts of log p - ELBO of every row.

    The best posterior of the family is found by `num_steps` gradient steps on the features AND the parameters of the posterior
    (those under params["posterior"]), of each row by itself.

    Args:
      model, params, x, context: as in `Observed`. key: of everything random.
      estimate: of log p, whose error is measured.
      reference: what it is measured against: exact where there is such a thing, `Enumeration`; more draws; or `AIS` of many
        levels, whose errors are of another kind.
      optimizer: as in `refine`. num_samples: draws of each gradient.
      num_draws: of the ELBOs, the same for both.

    Returns a `GapReport`. Raises as `evidence`.
    """
    check_count(num_steps=num_steps, num_samples=num_samples, num_draws=num_draws)
    _, _, x, context, _ = rows = checked_rows(Observed(model, params, x, context))
    static = model, num_steps, canonical(optimizer), num_samples, num_draws
    best, elbo, amortization = _bounds(static, params, x, context, stream(key, "gap"))
    estimated = evidence(rows, estimate, key=stream(key, "estimate"))
    exact = evidence(rows, reference, key=stream(key, "reference"))
    return GapReport(
        exact.value,
        elbo[0],
        exact.value - estimated.value,
        estimated.value - best[0],
        amortization[0],
        exact.sem,
        elbo[1],
        jnp.hypot(exact.sem, estimated.sem),
        jnp.hypot(estimated.sem, best[1]),
        amortization[1],
    )


@functools.partial(jax.jit, static_argnums=0)
def _refine(static, params, x, context, key):
    model, num_steps, optimizer, num_samples = static

    def one(row):
        index, x, context = row
        begin = {"features": model.features_one(params, x, context)}
        own = jax.random.fold_in(key, index)
        return _raised(model, params, x, context, own, begin, num_steps, optimizer, num_samples)["features"]

    rows = jnp.arange(x.shape[0]), x, context
    return jax.lax.map(one, rows, batch_size=min(x.shape[0], max(1, _AT_ONCE // num_samples)))


@functools.partial(jax.jit, static_argnums=0)
def _bounds(static, params, x, context, key):
    """(mean, standard error) of L*, of the ELBO, and of their difference, (n,) each."""
    model, num_steps, optimizer, num_samples, num_draws = static

    def one(row):
        index, x, context = row
        raise_key, draw_key = jax.random.split(jax.random.fold_in(key, index))
        begin = {"features": model.features_one(params, x, context), "posterior": trainable(params["posterior"])}
        best = _raised(model, params, x, context, raise_key, begin, num_steps, optimizer, num_samples)

        def draw(key):
            return tuple(_elbo(model, params, x, context, moved, key, 1) for moved in (best, begin))

        raised, elbo = jax.vmap(draw)(jax.random.split(draw_key, num_draws))
        return mean_and_sem(raised), mean_and_sem(elbo), mean_and_sem(raised - elbo)

    most = min(_AT_ONCE // max(num_samples, num_draws), _NUMBERS_AT_ONCE // max(1, num_params(params["posterior"])))
    return jax.lax.map(one, (jnp.arange(x.shape[0]), x, context), batch_size=min(x.shape[0], max(1, most)))


def _raised(model, params, x, context, key, begin, num_steps, optimizer, num_samples) -> Any:
    """What `begin` holds, moved up the ELBO of ONE event."""
    if optimizer is None:
        optimizer = adam_of_features(sum(leaf.size for leaf in jax.tree.leaves(begin["features"])), num_steps)

    def bound(moved, key):
        return _elbo(model, params, x, context, moved, key, num_samples)

    return GradientSteps(num_steps, optimizer).refine(bound, begin, key)


def _elbo(model, params, x, context, moved, key, num_samples):
    if "posterior" in moved:
        params = params | {"posterior": with_trainable(params["posterior"], moved["posterior"])}
    return ELBO(num_samples).bound_one(model.latent_one(params, x, context, moved["features"]), key)
