"""Maximum likelihood by expectation and maximisation, for any `EMModel` (Dempster, Laird & Rubin 1977).

    J(params) = (sum_n w_n log p(x_n) + log_prior(params)) / sum_n w_n        nats per datum

A sweep goes once through the data, in blocks of rows, and adds up what the M-step wants; but for rounding it never lowers J.
Memory beyond the data is that of one block.

Rounding hides a rise of less than about 4 eps |J|: in float32, 5e-5 nats where J is -100. A `tolerance` below that is compared
with the mean rise of several sweeps, so many that their sum could be seen, but of no more than 50.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_positive, check_weighted
from genmod.core.keys import check_key, stream
from genmod.core.types import Array, Key, Params
from genmod.models.base import EMModel

# A start reads at most so many rows: what it costs is then small beside a sweep, and more rows would move it little.
_START_ROWS = 2**14
# J is known to so many eps |J|, and so many sweeps without a rise are the end.
_ROUNDING = 4
_PATIENCE = 50


class EMFit(NamedTuple):
    """The best of several runs.

    Attributes:
      params: its parameters. objective: its J, in nats per datum; the mean log-likelihood where the model has no log_prior.
      history: J of all runs at the start and after every sweep, (num_restarts, num_sweeps + 1), NaN after the end of a run.
      objectives: the best J of every run, (num_restarts,); it is that of its end but for rounding.
      converged: whether the best run ended because J rose no more. False where the sweeps ran out, and where J fell at the end by
        more than the tolerance and its rounding: the precision does not suffice. Standardise the data, or take float64.
    """

    params: Params
    objective: Array
    history: Array
    objectives: Array
    converged: Array


def fit_em(
    model: EMModel,
    x: ArrayLike,
    *,
    key: Key | None = None,
    params: Params | None = None,
    weight: ArrayLike | None = None,
    num_restarts: int = 8,
    num_sweeps: int = 500,
    tolerance: float = 1e-6,
    block_rows: int | None = None,
) -> EMFit:
    """Expectation and maximisation from several starts, one after another. One compiled program.

    Args:
      model: an `EMModel`. x: events, (n,) + event_shape.
      key: of the starts, each the model's `init` of at most 16,384 rows.
      params: begin from these, once, and not from `init`; then no key is wanted.
      weight: how often each row counts, (n,), >= 0; None: once.
      num_restarts: how many starts; the best J wins. num_sweeps: at most so many of each.
      tolerance: a run ends when a sweep raises J by no more, in nats per datum; below the rounding of J, the mean of some sweeps.
      block_rows: rows that are worked on at once; None: as many as stay in the cache.

    Returns an `EMFit`. Raises ValueError or TypeError for arguments that do not fit, data that are not finite among them.
    """
    if not isinstance(model, EMModel):
        raise TypeError(f"model must be an EMModel, got a {type(model).__name__}; gm.fit trains any model by gradients")
    check_count(num_restarts=num_restarts, num_sweeps=num_sweeps)
    check_positive(tolerance=tolerance)
    if block_rows is not None:
        check_count(block_rows=block_rows)
    x = model.event.check("x", x, batched=True)
    if isinstance(x, Tracer) or isinstance(weight, Tracer):
        raise TypeError("x must be known data, and weight: fit_em is compiled itself, and cannot be traced")
    x, weight = check_weighted(x, weight, least=model.least_rows)
    if (key is None) == (params is None):
        raise ValueError("fit_em wants key=..., of random starts, or params=..., to begin from; give one of them")
    options = (model, num_sweeps, tolerance, block_rows or _block_rows(model))
    if params is not None:
        if (difference := model.misfit(params)) is not None:
            raise ValueError(f"params must be those of this {type(model).__name__}, made by its init: {difference}")
        return _best_of(options, None, jax.tree.map(lambda a: jnp.asarray(a)[None], params), x, weight)
    return _best_of(options, jax.random.split(stream(check_key(key), "em"), num_restarts), None, x, weight)  # type: ignore[arg-type]


def _block_rows(model: EMModel) -> int:
    size = max(1, math.prod(model.event_shape))
    return max(64, (2**13 if jax.default_backend() == "cpu" else 2**18) // size)


class _Blocks(NamedTuple):
    """The data in blocks of rows, (num, rows) + event_shape, and the weights; rows that fill the last block weigh nothing."""

    x: Array
    weight: Array


def _blocks(x: Array, weight: Array | None, block_rows: int, dtype: Any) -> _Blocks:
    n = x.shape[0]
    num = -(-n // block_rows)
    rows = -(-n // num)
    padding = num * rows - n
    weight = jnp.ones(n, dtype) if weight is None else weight
    if padding:
        x = jnp.concatenate([x, x[:padding]])
        weight = jnp.concatenate([weight, jnp.zeros(padding, dtype)])
    return _Blocks(x.reshape(num, rows, *x.shape[1:]), weight.reshape(num, rows))


@functools.partial(jax.jit, static_argnums=0)
def _best_of(options: tuple, keys: Key | None, starts: Params | None, x: Array, weight: Array | None) -> EMFit:
    model, num_sweeps, tolerance, block_rows = options
    dtype = jnp.promote_types(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
    blocks = _blocks(x, weight, block_rows, dtype)

    def run(start):
        params = _start(model, start, x, weight) if keys is not None else start
        return _run(model, num_sweeps, tolerance, params, blocks)

    found, ends, history, converged = jax.lax.map(run, starts if keys is None else keys)
    best = jnp.argmax(jnp.where(jnp.isnan(ends), -jnp.inf, ends))
    return EMFit(jax.tree.map(lambda a: a[best], found), ends[best], history, ends, converged[best])


def _start(model: EMModel, key: Key, x: Array, weight: Array | None) -> Params:
    keys = jax.random.split(key)
    num = min(x.shape[0], _START_ROWS)
    if weight is not None:
        x = x[jax.random.choice(keys[0], x.shape[0], (num,), p=weight / weight.sum())]
    elif num < x.shape[0]:
        x = x[jax.random.randint(keys[0], (num,), 0, x.shape[0])]
    return model._init(keys[1], x, None)


class _Stall(NamedTuple):
    """Since when J has not risen: J at the last rise that could be seen, the number of that sweep, whether it fell since, and
    whether the run ends."""

    mark: Array
    num: Array
    fell: Array
    ended: Array


class _Loop(NamedTuple):
    """Where a run stands: parameters that were measured, those that are measured next, by a sweep or as a trial, and the best."""

    params: Params
    objective: Array
    statistics: Any
    best: tuple[Params, Array]
    candidate: Params
    trial: Array
    refill: Array
    history: Array
    num: Array
    stall: _Stall


def _run(model: EMModel, num_sweeps: int, tolerance: float, params: Params, blocks: _Blocks) -> tuple:
    """One run: (its best parameters, their J, the history of J, whether it converged)."""

    def unfinished(loop):
        return loop.trial | ((loop.num < num_sweeps) & ~loop.stall.ended)

    def step(loop):
        centre = jnp.where(jnp.isfinite(loop.objective), loop.objective, 0.0)
        rise, statistics = _expect(model, loop.candidate, blocks, centre)
        taken = ~loop.trial | (rise > 0)
        old, new = (loop.params, loop.objective, loop.statistics), (loop.candidate, centre + rise, statistics)
        params, objective, statistics = _where(taken, new, old)
        num = loop.num + ~loop.trial  # a trial is a part of the sweep before it
        history = loop.history.at[num].set(objective)
        best = _where((num == 0) | (objective > loop.best[1]), (params, objective), loop.best)
        risen = jnp.where(taken, centre - loop.stall.mark + rise, loop.objective - loop.stall.mark)
        stall = _stalled(loop.stall, objective, num, jnp.where(taken, rise, 0.0), risen, tolerance)
        candidate, trial = _next(model, params, statistics, blocks, may_try=loop.refill & ~loop.trial)
        return _Loop(params, objective, statistics, best, candidate, trial, loop.refill & taken, history, num, stall)

    objective, statistics = jax.eval_shape(lambda: _expect(model, params, blocks, 0.0))
    statistics = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), statistics)
    worst, history = jnp.full((), -jnp.inf, objective.dtype), jnp.full(num_sweeps + 1, jnp.nan, objective.dtype)
    no, yes = jnp.array(False), jnp.array(True)
    stall = _Stall(worst, jnp.int32(-1), no, no)
    loop = _Loop(params, worst, statistics, (params, worst), params, no, yes, history, jnp.int32(-1), stall)
    loop = jax.lax.while_loop(unfinished, step, loop)
    return *loop.best, loop.history, loop.stall.ended & ~loop.stall.fell & jnp.isfinite(loop.objective)


def _stalled(stall: _Stall, objective: Array, num: Array, rise: Array, risen: Array, tolerance: float) -> _Stall:
    """The stall after sweep `num`, which raised J by `rise` to `objective`; it has `risen` since the mark."""
    wanted = (num - stall.num).astype(objective.dtype) * tolerance
    rounding = _ROUNDING * jnp.finfo(objective.dtype).eps * jnp.abs(objective)
    higher = (num == 0) | (risen > jnp.maximum(wanted, rounding))
    fell = ~higher & (stall.fell | (rise < -jnp.maximum(tolerance, rounding)))
    waiting = (wanted < rounding) & (num - stall.num < _PATIENCE)
    ended = ~higher & ~waiting & (num > stall.num)
    return _Stall(jnp.where(higher, objective, stall.mark), jnp.where(higher, num, stall.num), fell, ended)


def _where(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _next(model: EMModel, params: Params, statistics: Any, blocks: _Blocks, may_try: Array) -> tuple[Params, Array]:
    """What is measured next, and whether it is a trial: a vacant part at the row that the model explains worst."""
    vacant = model.vacant(statistics)
    if vacant is None:
        return model.m_step(params, statistics), jnp.array(False)
    trial = vacant & may_try
    candidate = jax.lax.cond(
        trial,
        lambda: model.refilled(params, statistics, *_worst(model, params, blocks)),
        lambda: model.m_step(params, statistics),
    )
    return candidate, trial


def _expect(model: EMModel, params: Params, blocks: _Blocks, centre: ArrayLike) -> tuple[Array, Any]:
    """J less `centre`, which is taken off before the sums so that they round little, and the sums of the E-step."""

    def one(x, weight):
        log_prob, statistics = model.e_step(params, x, weight)
        return jnp.sum((log_prob - centre) * weight), statistics

    def add(total, block):
        return jax.tree.map(jnp.add, total, one(*block)), None

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, blocks.x[0], blocks.weight[0]))
    (total, statistics), _ = jax.lax.scan(add, zeros, blocks)
    return (total + model.log_prior(params)) / blocks.weight.sum(), statistics


def _worst(model: EMModel, params: Params, blocks: _Blocks) -> tuple[Array, Array]:
    """The row of least log p(x), and its weight."""

    def one(block):
        log_prob, _ = model.e_step(params, *block)
        where = jnp.argmin(jnp.where(block.weight > 0, log_prob, jnp.inf))
        return jnp.where(block.weight[where] > 0, log_prob[where], jnp.inf), block.x[where], block.weight[where]

    log_prob, x, weight = jax.lax.map(one, blocks)
    where = jnp.argmin(log_prob)
    return x[where], weight[where]
