"""n-gram models: tables of the next token given the n - 1 before it, fitted by counting, exact.

    log p(x) = sum_t log p(x_t | x_{t-n+1}, ..., x_{t-1})

Before the first token stand starts: `end` for `Tokens`, else a number of their own, num_levels. Of counts n_c of a token after a
history, N = sum_c n_c, and V tokens:

    maximum_likelihood     n_c / N                                       uniform after a history that was never seen
    dirichlet_map          (n_c + alpha - 1) / (N + V (alpha - 1))       the mode of the posterior under Dirichlet(alpha)
    dirichlet_predictive   (n_c + alpha) / (N + V alpha)                 the mean of it: add-alpha; alpha = 1 is add-one

Orders 1 to n can be mixed, p = sum_k w_k p_k (Jelinek & Mercer 1980): that is again a table of order n.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.arrays import to_array
from genmod.core.checks import check_count, check_function, check_positive, check_row_weight
from genmod.core.distribution import Likelihood, over_events
from genmod.core.event import Levels, Tokens
from genmod.core.types import Array, Key, Params
from genmod.models.base import Model, likelihood_loss

_MAX_ENTRIES = 2**28


@dataclasses.dataclass(frozen=True)
class NGram(Model):
    """p(x_t | the n - 1 tokens before it), a table. EXACT.

        model = gm.models.NGram(gm.Tokens(16, 27), 2)
        params = gm.models.fit_ngram(model, words)

    Attributes:
      event: `Tokens`, whose log_prob counts the first `end`; or `Levels((T,), num_levels)`, windows of a stream.
      order: n; 1 is a unigram, 2 a bigram.

    Parameters: {"logits": (histories, V)}, one row for each history; they do not depend on T, and may be trained by `fit` too.
    Raises TypeError or ValueError for other events, and for a table of more than 2^28 entries.
    """

    event: Tokens | Levels
    order: int = 2

    likelihood = Likelihood.EXACT
    reparameterized = False

    def __post_init__(self):
        check_count(order=self.order)
        super().__post_init__()
        if not isinstance(self.event, Tokens | Levels):
            raise TypeError(f"event must be gm.Tokens or gm.Levels, got {self.event!r}")
        if len(self.event.shape) != 1 or not self.event.shape[0]:
            raise ValueError(f"event must be a sequence of at least one token, (T,), got shape {self.event.shape}")
        if self.num_histories * self.num_tokens > _MAX_ENTRIES:
            raise ValueError(
                f"an n-gram of order {self.order} over {self.num_tokens} tokens has too many entries; lower the order"
            )

    @property
    def num_tokens(self) -> int:
        """V."""
        return self.event.vocabulary if isinstance(self.event, Tokens) else self.event.num_levels

    @property
    def num_histories(self) -> int:
        """The rows of the table: a history is a number of order - 1 digits, the newest token the last."""
        return self._base ** (self.order - 1)

    @over_events
    def log_prob_steps(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """log p(x_t | x_<t) of every step, any axes + (T,), in nats; 0 after the end of `Tokens`. Compiled."""
        return self._log_prob_steps(params, x)  # type: ignore[arg-type]

    def histories(self, x: Any) -> Any:
        """The row of the table for every step of sequences x, (..., T): an array of that shape, in NumPy if x is."""
        xp = np if isinstance(x, np.ndarray) else jnp
        x = x.astype(xp.int32)
        found = xp.zeros_like(x)
        for k in range(self.order - 1, 0, -1):
            starts = xp.full((*x.shape[:-1], min(k, x.shape[-1])), self._start, xp.int32)
            found = found * self._base + xp.concatenate([starts, x[..., : x.shape[-1] - starts.shape[-1]]], -1)
        return found

    def loss(self, params, key, batch, *, step=None):
        return likelihood_loss(self, params, key, self.read(batch))

    def _init(self, key, x, context):
        return {"logits": jnp.zeros((self.num_histories, self.num_tokens))}

    def log_prob_one(self, params, x, context=None, key=None):
        return self._log_prob_steps(params, x).sum()

    def sample_one(self, params, key, context=None):
        end = self.event.end if isinstance(self.event, Tokens) else None

        def move(state, key):
            history, over = state
            x = jax.random.categorical(key, params["logits"][history]).astype(jnp.int32)
            x = x if end is None else jnp.where(over, end, x)
            over = over if end is None else over | (x == end)
            return ((history * self._base + x) % self.num_histories, over), x

        start = sum(self._start * self._base**k for k in range(self.order - 1))
        state = jnp.int32(start), jnp.array(False)
        return jax.lax.scan(move, state, jax.random.split(key, self.event.shape[0]))[1].astype(self.event.dtype)

    def _log_prob_steps(self, params, x: Array) -> Array:
        rows = jax.nn.log_softmax(params["logits"][self.histories(x)])
        log_p = jnp.take_along_axis(rows, x[:, None].astype(jnp.int32), 1)[:, 0]
        return jnp.where(self.event.mask(x), log_p, 0.0) if isinstance(self.event, Tokens) else log_p

    @property
    def _start(self) -> int:
        return self.event.end if isinstance(self.event, Tokens) else self.event.num_levels

    @property
    def _base(self) -> int:
        return self.num_tokens if isinstance(self.event, Tokens) else self.num_tokens + 1


def maximum_likelihood(counts: np.ndarray) -> np.ndarray:
    """n_c / N, of counts (..., V); uniform where N = 0."""
    return _normalized(np.asarray(counts, np.float64))


def dirichlet_map(counts: np.ndarray, alpha: float) -> np.ndarray:
    """(n_c + alpha - 1) / (N + V (alpha - 1)), of counts (..., V): the mode of the posterior under a symmetric Dirichlet.

    Raises ValueError for alpha below 1, where the posterior may have no mode inside.
    """
    check_positive(alpha=alpha)
    if alpha < 1:
        raise ValueError(f"alpha must be >= 1, got {alpha}; dirichlet_predictive takes any above 0")
    return _normalized(np.asarray(counts, np.float64) + (alpha - 1))


def dirichlet_predictive(counts: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """(n_c + alpha) / (N + V alpha), of counts (..., V): the mean of the posterior under a symmetric Dirichlet.

    Raises ValueError for an alpha that is not above 0.
    """
    check_positive(alpha=alpha)
    return _normalized(np.asarray(counts, np.float64) + alpha)


def fit_ngram(
    model: NGram, x: Any, *, estimate: Callable[[np.ndarray], np.ndarray] = maximum_likelihood, weight: Any = None
) -> Params:
    """Parameters by counting.

        params = fit_ngram(model, words, estimate=gm.call(dirichlet_predictive, alpha=0.1))

    Args:
      model: the n-gram. x: sequences of any length T, (n, T); of a stream x[None].
      estimate: counts (histories, V) -> probabilities of the same shape.
      weight: of the sequences, (n,), >= 0; None: all count equally.

    Raises TypeError or ValueError for tokens outside of the vocabulary, no sequences, weights that do not fit, and an estimate
    that gives no probabilities.
    """
    check_function(estimate=estimate)
    return _as_params(_estimated(estimate, _counts(model, x, weight)))


class InterpolatedNGram(NamedTuple):
    """Parameters of the mixture, and the weights of the orders 1 to n, (n,)."""

    params: Params
    weights: np.ndarray


def fit_interpolated_ngram(
    model: NGram,
    x: Any,
    *,
    held_out: Any = None,
    weights: Any = None,
    estimate: Callable[[np.ndarray], np.ndarray] = maximum_likelihood,
    num_rounds: int = 100,
) -> InterpolatedNGram:
    """The mixture of the orders 1 to n, p = sum_k w_k p_k, each fitted to x.

    After a history that order k has never seen, p_k is p_{k-1}.

    Args:
      model: the n-gram of order n. x: sequences of any length T, (n, T); of a stream x[None].
      held_out: more of them, also of another length; the weights are those under which these are most likely, by EM.
      weights: given ones, (n,). One of both is wanted.
      estimate: as in `fit_ngram`, of each order. num_rounds: of EM.

    Raises ValueError unless one of `held_out` and `weights` is given, and for weights that are no n numbers >= 0 of sum 1.
    """
    check_function(estimate=estimate)
    check_count(num_rounds=num_rounds)
    if (held_out is None) == (weights is None):
        raise ValueError("give held_out sequences, or weights: one of both")
    orders = [dataclasses.replace(model, order=k) for k in range(1, model.order + 1)]
    tables = _tables(orders, x, estimate)
    if weights is None:
        rows = _read(model, "held_out", held_out)
        counted = _counted(model, rows)
        each = [table[part.histories(rows)[counted], rows[counted]] for part, table in zip(orders, tables, strict=True)]
        found = _em_weights(np.stack(each), num_rounds)
    else:
        found = np.asarray(weights, np.float64)
        if found.shape != (model.order,) or not (found >= 0).all() or not np.isclose(found.sum(), 1.0):
            raise ValueError(f"weights must be {model.order} numbers >= 0 that add up to 1, got {weights}")
    # A history of fewer tokens is the newest digits of a longer one.
    history = np.arange(model.num_histories)
    mixed = np.zeros((model.num_histories, model.num_tokens))
    for w, part, table in zip(found, orders, tables, strict=True):
        mixed += w * table[history % part.num_histories]
    return InterpolatedNGram(_as_params(mixed), found)


def _counts(model: NGram, x: Any, weight: Any) -> np.ndarray:
    """How often each token came after each history, (histories, V), in float64."""
    rows = _read(model, "x", x)
    counted = _counted(model, rows)
    cells = model.histories(rows).astype(np.int64) * model.num_tokens + rows
    shares = None
    if weight is not None:
        weight = np.asarray(check_row_weight("weight", weight, len(rows)), np.float64)
        shares = np.broadcast_to(weight[:, None], rows.shape)[counted]
    size = model.num_histories * model.num_tokens
    return np.bincount(cells[counted], shares, size).astype(np.float64).reshape(model.num_histories, model.num_tokens)


def _tables(orders: list[NGram], x: Any, estimate: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """The probabilities of every order, (histories, V) each; those of unseen histories are of the order below."""
    tables = []
    for part in orders:
        counts = _counts(part, x, None)
        table = _estimated(estimate, counts)
        unseen = np.flatnonzero(counts.sum(1) == 0)
        if tables:
            table[unseen] = tables[-1][unseen % len(tables[-1])]
        tables.append(table)
    return tables


def _estimated(estimate: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray:
    found = np.array(estimate(counts), np.float64)
    if found.shape != counts.shape or not ((found >= 0).all() and np.allclose(found.sum(1), 1.0, atol=1e-6)):
        raise ValueError(f"estimate must give probabilities, {counts.shape} numbers >= 0 that sum to one in each row")
    return found


def _read(model: NGram, name: str, x: Any) -> np.ndarray:
    """Sequences of any length, (n, T), as tokens of the model."""
    x = to_array(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name} must hold sequences, (n, T) of any length T, got shape {x.shape}; a stream is {name}[None]")
    length = x.shape[-1] if x.size else model.event.shape[0]
    field = "max_length" if isinstance(model.event, Tokens) else "shape"
    event = dataclasses.replace(model.event, **{field: length if field == "max_length" else (length,)})
    return np.asarray(event.check(name, x, batched=True))


def _counted(model: NGram, x: np.ndarray) -> np.ndarray:
    """Which tokens a log_prob counts."""
    return np.asarray(model.event.mask(jnp.asarray(x))) if isinstance(model.event, Tokens) else np.ones(x.shape, bool)


def _em_weights(p: np.ndarray, num_rounds: int) -> np.ndarray:
    """The weights under which tokens of probabilities p, (orders, tokens), are most likely."""
    if not (p.max(0) > 0).all():
        raise ValueError("held_out holds a token that no order gives a probability; smooth them, estimate=dirichlet_predictive")
    weights = np.full(len(p), 1.0 / len(p))
    for _ in range(num_rounds):
        joint = weights[:, None] * p
        weights = (joint / joint.sum(0)).mean(1)
    return weights


def _normalized(p: np.ndarray) -> np.ndarray:
    total = p.sum(-1, keepdims=True)
    return np.where(total > 0, p / np.where(total > 0, total, 1.0), 1.0 / p.shape[-1])


def _as_params(probabilities: np.ndarray) -> Params:
    with np.errstate(divide="ignore"):  # of probability 0
        return {"logits": jnp.asarray(np.log(probabilities), jnp.result_type(float))}
