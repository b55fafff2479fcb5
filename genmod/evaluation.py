"""Evaluation of any model on held-out data: its likelihood by name, its gap to the truth, and metrics of its samples."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.arrays import to_array, to_context
from genmod.core.checks import check_context, check_count, check_function, check_row_weight
from genmod.core.description import Call
from genmod.core.distribution import Likelihood, check_params
from genmod.core.event import Tokens
from genmod.core.keys import stream
from genmod.core.params import num_params
from genmod.core.statistics import Measured, mean_and_sem, ratio_and_sem
from genmod.core.types import Array, Key, Params, Shape
from genmod.models.base import Model

# At most so many events whose log_prob is NaN are taken again, each alone.
_ALONE = 10_000

Found = float | Measured
SampleMetric = Callable[[np.ndarray, np.ndarray], Found | dict[str, Found]]


def evaluate(
    model: Model,
    params: Params,
    x: Any,
    context: Any = None,
    *,
    weight: Any = None,
    key: Key | None = None,
    true_log_prob: Callable[[Array], Array] | None = None,
    metrics: Sequence[SampleMetric] = (),
    num_samples: int | None = None,
    batch_size: int = 10_000,
    max_failed: float = 0.0,
) -> dict[str, float]:
    """Test metrics of `params` on x, (n,) + event_shape, as plain numbers, in nats; sums are taken in float64.

    The mean of -log_prob stands under a key that says what it is: `nll_nats` (exact), `nll_estimate_nats`,
    `nll_upper_bound_nats`, `energy_nats` (up to a constant); its standard error under the same key + `_sem`. A model without
    a log_prob reports its `metrics` alone. `num_params` is counted; of `Tokens` also `nats_per_token`, over all tokens.

    Args:
      model: any Model, with its params.
      x: held-out events. context: of all, or one for each, (n,) + context_shape, or labels (n,). weight: one for each, (n,).
      key: for samples, and for models whose log_prob is random.
      true_log_prob: the exact log-density. `gap_nats` is then the paired mean of log p_true(x) - log p_model(x), an estimate
        of KL(true || model), with `gap_nats_sem`.
      metrics: functions (samples, x) of NumPy arrays -> float or `Measured` (value, key + `_sem`), or dict of them: `gm.metrics`.
      num_samples: how many samples these get; None: as many as x has rows. batch_size: rows at a time.
      max_failed: share of events whose log_prob may be NaN, also when taken alone (an ODE solve that did not arrive); they
        are counted in `num_failed` and left out of the means.

    Raises ValueError for a model of which nothing can be reported, for infinite values, and for more NaN than max_failed.
    """
    x = np.asarray(model.event.check("x", to_array("x", x), batched=True))
    contexts = _contexts(model, context, len(x))
    metrics = tuple(metrics) if isinstance(metrics, Sequence) else (metrics,)
    check_count(batch_size=batch_size)
    check_params(model, params)
    _check_reportable(model, metrics, weight, key, true_log_prob)
    found: dict[str, float] = {"num_params": num_params(params)}
    if model.likelihood < Likelihood.NONE:
        weight = None if weight is None else np.asarray(check_row_weight("weight", weight, len(x)), np.float64)
        log_prob = _log_prob(model, params, x, contexts, key, batch_size)
        good = _solved(log_prob, max_failed)
        rows = None if weight is None else weight[good]
        found |= _named(model.likelihood.nll_key, -log_prob[good], rows)
        found |= _per_token(model, x[good], -log_prob[good], rows)
        found |= {} if good.all() else {"num_failed": int((~good).sum())}
        if true_log_prob is not None:
            truth = np.asarray(jax.device_get(true_log_prob(jnp.asarray(x))), np.float64)
            if truth.shape != good.shape or not np.isfinite(truth).all():
                raise ValueError(f"true_log_prob must give finite values of shape {good.shape}, got shape {truth.shape}")
            found |= _named("gap_nats", (truth - log_prob)[good], rows)
    if metrics and key is not None:
        samples = _samples(
            model, params, stream(key, "evaluate samples"), contexts, len(x) if num_samples is None else num_samples, batch_size
        )
        for fn in metrics:
            found |= _measured(fn, samples, x, found)
    return found


def _check_reportable(model, metrics, weight, key, true_log_prob) -> None:
    name = type(model).__name__
    if weight is not None and metrics:
        raise ValueError("metrics compare samples with rows that all count equally: leave out weight, or metrics")
    for fn in metrics:
        check_function(metrics=fn)
    if model.likelihood is Likelihood.NONE and not metrics:
        raise ValueError(f"{name} has no log_prob to report; pass metrics=(fn, ...), functions (samples, x) -> float")
    if true_log_prob is not None and model.likelihood > Likelihood.LOWER_BOUND:
        raise ValueError(f"true_log_prob wants a model with a normalised log_prob; that of {name} is {model.likelihood.name}")
    if metrics and key is None:
        raise ValueError("metrics want samples, and samples want key=jax.random.key(seed)")


class _Contexts(NamedTuple):
    """No context, one for all events, or one for each."""

    shape: Shape | None
    values: Any

    @property
    def shared(self) -> bool:
        return self.values is None or self.values.shape == self.shape

    def of(self, rows: Any) -> Any:
        """The context of some rows; where there is one for each, they are gone through again and again."""
        return self.values if self.shared else self.values[rows % len(self.values)]


def _contexts(model, context, num) -> _Contexts:
    context = None if context is None else np.asarray(to_context("context", context))
    context = check_context(type(model).__name__, context, model.context_shape, batch=(num,), any_batch=True)
    contexts = _Contexts(model.context_shape, context)
    if not contexts.shared and context.shape != (num, *model.context_shape):
        wanted = f"{(num, *model.context_shape)}, one for each row, or {model.context_shape}, one for all"
        raise ValueError(f"context must have shape {wanted}, got {context.shape}")
    return contexts


def _log_prob(model, params, x, contexts, key, batch_size) -> np.ndarray:
    log_probs = []
    for i, start in enumerate(range(0, len(x), batch_size)):
        rows = np.arange(start, min(start + batch_size, len(x)))
        own_key = None if key is None else stream(key, "evaluate", i)
        part = model.log_prob(params, x[rows], contexts.of(rows), key=own_key)
        log_probs.append(np.asarray(jax.device_get(part), np.float64))
    log_prob = np.concatenate(log_probs)
    for i in np.flatnonzero(np.isnan(log_prob))[:_ALONE]:
        # An ODE is solved batch by batch, so that one event which diverges takes its neighbours along.
        own_key = None if key is None else stream(key, "evaluate alone", int(i))
        log_prob[i] = model.log_prob(params, x[i : i + 1], contexts.of(np.array([i])), key=own_key)[0]
    return log_prob


def _solved(log_prob: np.ndarray, max_failed: float) -> np.ndarray:
    """Which events count; raises ValueError where too many do not."""
    failed, num = np.isnan(log_prob), len(log_prob)
    bad = int((~np.isfinite(log_prob)).sum())
    if np.isinf(log_prob).any() or bad > max_failed * num or failed.all():
        raise ValueError(
            f"log_prob is not finite for {bad} of {num} events ({int(failed.sum())} of them NaN): outside the support, diverged, "
            "or an ODE solve that failed; max_failed=... leaves out a share of NaN and counts them"
        )
    return ~failed


def _samples(model, params, key, contexts, num, batch_size) -> np.ndarray:
    """Draws, (num,) + event_shape, on the host."""
    check_count(num_samples=num)
    parts = []
    for i, start in enumerate(range(0, num, batch_size)):
        rows = np.arange(start, min(start + batch_size, num))
        try:
            part = model.sample(params, stream(key, "draw", i), (len(rows),) if contexts.shared else (), contexts.of(rows))
        except NotImplementedError as error:
            raise ValueError(f"metrics want samples, which {type(model).__name__} does not give: {error}") from None
        parts.append(np.asarray(jax.device_get(part)))
    return np.concatenate(parts)


def _measured(fn: SampleMetric, samples: np.ndarray, x: np.ndarray, known: dict[str, float]) -> dict[str, float]:
    name = _function_name(fn)
    value = fn(samples, x)
    values: dict[str, Any] = {}
    for entry, number in (value if isinstance(value, dict) else {name: value}).items():
        values |= {entry: number.value, f"{entry}_sem": number.sem} if isinstance(number, Measured) else {entry: number}
    for entry, number in values.items():
        if np.ndim(number) != 0:
            raise ValueError(f"the metric {name} must give floats or a dict of floats, got {entry!r} of shape {np.shape(number)}")
        if entry in known:
            raise ValueError(f"the metric {name} gives {entry!r}, which is reported already; give it another name")
    return {entry: float(number) for entry, number in values.items()}


def _function_name(fn: Any) -> str:
    while isinstance(fn, Call | functools.partial):
        fn = fn.fn if isinstance(fn, Call) else fn.func
    return getattr(fn, "__name__", type(fn).__name__)


def _named(name: str, values: np.ndarray, weight: np.ndarray | None) -> dict[str, float]:
    mean, sem = mean_and_sem(values, weight)
    return {name: float(mean), f"{name}_sem": float(sem)}


def _per_token(model: Model, x: np.ndarray, nll: np.ndarray, weight: np.ndarray | None) -> dict[str, float]:
    if not isinstance(model.event, Tokens):
        return {}
    ratio, sem = ratio_and_sem(nll, np.asarray(model.event.num_units(jnp.asarray(x))), weight)
    return {"nats_per_token": float(ratio), "nats_per_token_sem": float(sem)}
