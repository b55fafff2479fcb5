"""Evaluation of any model on held-out data: its negative log-likelihood by name, with errors, and its gap to the truth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.base import Array, Key, Likelihood, Params, num_params
from genmod.keys import stream
from genmod.metrics import mean_and_sem
from genmod.models.base import Model

_ALONE = 10_000


def evaluate(
    model: Model,
    params: Params,
    x: ArrayLike,
    context: ArrayLike | None = None,
    *,
    key: Key | None = None,
    true_log_prob: Callable[[Array], Array] | None = None,
    batch_size: int = 10_000,
    max_failed: float = 0.0,
) -> dict[str, float]:
    """Test metrics of `params` on x, (n,) + event_shape, as plain numbers, in nats; sums are taken in float64.

    The negative log-likelihood stands under a key that says what it is: `nll_nats` (exact), `nll_estimate_nats`,
    `nll_upper_bound_nats`; its standard error under the same key + `_sem`. With `true_log_prob`, `gap_nats` is the paired
    mean of log p_true(x) - log p_model(x), an estimate of KL(true || model), with `gap_nats_sem`. `num_params` is counted.

    key: for models whose log_prob is stochastic. max_failed: share of events whose log_prob may be NaN, also when taken
    alone (an ODE solve that did not arrive); they are counted in `num_failed` and left out of the means. Raises ValueError
    for a model without a normalised log_prob, for infinite values, and for more NaN than that.
    """
    if model.likelihood > Likelihood.LOWER_BOUND:
        raise ValueError(f"{type(model).__name__} has no normalised log_prob (it is {model.likelihood.name})")
    x = jnp.asarray(x)
    if x.ndim < 1 or x.shape[0] < 1:
        raise ValueError(f"x must be a batch of at least one event, got shape {x.shape}")
    context = None if context is None else jnp.asarray(context)
    shared = context is not None and context.shape == model.context_shape
    log_probs = []
    for i, start in enumerate(range(0, x.shape[0], batch_size)):
        rows = slice(start, start + batch_size)
        part_key = None if key is None else stream(key, "evaluate", i)
        part = model.log_prob(params, x[rows], context if context is None or shared else context[rows], key=part_key)
        log_probs.append(np.asarray(jax.device_get(part), np.float64))
    log_prob = np.concatenate(log_probs)
    for i in np.flatnonzero(np.isnan(log_prob))[:_ALONE]:
        # An ODE is solved batch by batch, so that one event which diverges takes its neighbours along.
        own = context if context is None or shared else context[i : i + 1]
        own_key = None if key is None else stream(key, "evaluate alone", int(i))
        log_prob[i] = np.asarray(model.log_prob(params, x[i : i + 1], own, key=own_key))[0]
    failed, num = np.isnan(log_prob), len(log_prob)
    bad = int((~np.isfinite(log_prob)).sum())
    if np.isinf(log_prob).any() or bad > max_failed * num or failed.all():
        raise ValueError(
            f"log_prob is not finite for {bad} of {num} events ({int(failed.sum())} of them NaN): outside the support, diverged, "
            "or an ODE solve that failed; max_failed=... leaves out a share of NaN and counts them"
        )
    log_prob = log_prob[~failed]
    name = model.likelihood.nll_key
    metrics = {"num_params": num_params(params)} | _named(name, -log_prob) | ({"num_failed": bad} if bad else {})
    if true_log_prob is not None:
        truth = np.asarray(jax.device_get(true_log_prob(x)), np.float64)
        if truth.shape != failed.shape or not np.isfinite(truth).all():
            raise ValueError(f"true_log_prob must give finite values of shape {failed.shape}, got shape {truth.shape}")
        metrics |= _named("gap_nats", truth[~failed] - log_prob)
    return metrics


def _named(name: str, values: np.ndarray) -> dict[str, float]:
    mean, sem = mean_and_sem(values)
    return {name: float(mean), f"{name}_sem": float(sem)}
