"""`exact`: a discrete model, state by state. Normalisation, entropy, divergences and moments are then sums, and samplers are
held against the masses.

    table = gm.exact(model, params)                 # any EXACT or UNNORMALIZED model of at most 2^20 states
    table.log_normalizer                            # log of the sum over all states: 0 of a normalised model, else log Z
    table.entropy, table.mean, table.kl(other)
    table.compare(model.sample(params, key, (10_000,)))     # Pearson's chi-square

Sums are taken in float64 NumPy; the log-probabilities are the model's, in its own precision.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy.special import logsumexp

from genmod.core.arrays import to_array
from genmod.core.checks import check_context, check_count
from genmod.core.distribution import Distribution, Likelihood, check_params
from genmod.core.enumeration import MAX_STATES, place_of, states
from genmod.core.event import Event
from genmod.core.keys import check_key
from genmod.core.types import Array, Key, Params, Shape

_FEWEST = 5.0  # expected draws in a cell of a chi-square


class SampleComparison(NamedTuple):
    """Draws against the masses of a table.

    Attributes:
      chi_square: Pearson's statistic. cells: how many it has; states of few expected draws share cells of about five.
      z: the statistic less its expectation, in standard deviations, for draws of the table: above 4 or 5 they are not.
      num_impossible: draws of states without mass.
    """

    chi_square: float
    cells: int
    z: float
    num_impossible: int


class ExactTable(NamedTuple):
    """A law of finitely many states.

    Attributes:
      event: what a state is. states: all of them, (S,) + event_shape.
      log_prob: of each state, normalised, (S,) float64, in nats. log_normalizer: log of the sum of the model's own masses.
    """

    event: Event
    states: np.ndarray
    log_prob: np.ndarray
    log_normalizer: float

    @property
    def prob(self) -> np.ndarray:
        """The mass of each state, (S,)."""
        return np.exp(self.log_prob)

    @property
    def entropy(self) -> float:
        """-sum p log p, in nats."""
        return self.cross_entropy(self)

    @property
    def mean(self) -> np.ndarray:
        """E[x], of event_shape."""
        return self.expectation(lambda x: x)

    @property
    def covariance(self) -> np.ndarray:
        """Cov[x] of the entries of an event in one row, (D, D)."""
        centred = (self.states - self.mean).reshape(len(self.states), -1)
        return (centred.T * self.prob) @ centred

    def expectation(self, fn: Callable[[np.ndarray], ArrayLike]) -> np.ndarray:
        """E[fn(x)]; `fn` takes all states, (S,) + event_shape, and gives a value of any shape for each."""
        values = np.asarray(fn(self.states), np.float64)
        if values.shape[:1] != self.prob.shape:
            raise ValueError(f"fn must give a value for each of {len(self.states)} states, got shape {values.shape}")
        return np.tensordot(self.prob, values, 1)

    def cross_entropy(self, other: "ExactTable") -> float:
        """-sum p log p_other, in nats; inf where `other` has no mass and this has."""
        self._check_same(other)
        held = self.log_prob > -np.inf
        return float(-np.sum(self.prob[held] * other.log_prob[held]))

    def kl(self, other: "ExactTable") -> float:
        """KL(this || other) in nats, for models of one kind of event."""
        return self.cross_entropy(other) - self.entropy

    def sample(self, key: Key, shape: Shape = ()) -> Array:
        """Draws, shape + event_shape, in the event's dtype."""
        last = np.flatnonzero(self.log_prob > -np.inf)[-1]  # rounding of the sum must not lead beyond it
        drawn = np.searchsorted(np.cumsum(self.prob), np.asarray(jax.random.uniform(check_key(key), shape)), side="right")
        return jax.numpy.asarray(self.states[np.minimum(drawn, last)], self.event.dtype)

    def places(self, x: ArrayLike) -> np.ndarray:
        """The place of each of the events x, (...,) + event_shape, in `states`.

        Raises TypeError or ValueError for what is no such event.
        """
        x = np.asarray(self.event.check("x", to_array("x", x)))
        axes = x.shape[: x.ndim - len(self.event.shape)]
        return place_of(self.event, x.reshape(*axes, -1).astype(np.int64))

    def compare(self, draws: ArrayLike) -> SampleComparison:
        """Independent draws, (n,) + event_shape, against the masses. Raises ValueError for fewer draws than two cells want."""
        counts = np.bincount(self.places(draws).ravel(), minlength=len(self.states)).astype(np.float64)
        cell = _cells(counts.sum() * self.prob)
        seen, wanted = (np.bincount(cell, a) for a in (counts, counts.sum() * self.prob))
        possible = wanted > 0
        seen, wanted, degrees = seen[possible], wanted[possible], int(possible.sum()) - 1
        if degrees < 1 and (self.log_prob > -np.inf).sum() > 1:
            raise ValueError(f"draws must be enough for two cells of {_FEWEST:.0f} expected draws, got {counts.sum():.0f} draws")
        chi_square = float(np.sum((seen - wanted) ** 2 / wanted))
        # The variance of the statistic: of few draws in a cell it is not 2 df.
        spread = 2 * degrees + float(np.sum(1 / wanted) - (len(wanted) ** 2 + 2 * len(wanted) - 2) / counts.sum())
        z = (chi_square - degrees) / math.sqrt(spread) if degrees and spread > 0 else 0.0
        return SampleComparison(chi_square, len(wanted), z, int(counts[self.log_prob == -np.inf].sum()))

    def _check_same(self, other):
        if self.event != other.event:
            raise ValueError(f"other must be a table of the same events, {self.event}, got {other.event}")


def exact(
    model: Distribution,
    params: Params,
    context: ArrayLike | None = None,
    *,
    max_states: int = MAX_STATES,
    batch_size: int = 65_536,
) -> ExactTable:
    """The table of a discrete model, by its log_prob at every state.

    Args:
      model: of `Levels` or `Tokens`, with an EXACT or UNNORMALIZED log_prob. params: its own.
      context: ONE context, of its context_shape.
      max_states: how many states are too many. batch_size: of them at a time.

    Raises TypeError for events that are not discrete, ValueError for more states than that, for a log_prob that is a bound, an
    estimate or none, and for one that is NaN or infinite.
    """
    check_params(model, params)
    check_count(max_states=max_states, batch_size=batch_size)
    context = check_context(type(model).__name__, context, model.context_shape)
    if model.likelihood not in (Likelihood.EXACT, Likelihood.UNNORMALIZED):
        raise ValueError(
            f"model must have an EXACT or UNNORMALIZED log_prob, that of {type(model).__name__} is {model.likelihood.name}"
        )
    all_states = states(model.event, max_states)
    parts = [all_states[start : start + batch_size] for start in range(0, len(all_states), batch_size)]
    # The last part has the size of the others: one program.
    padded = [np.concatenate([part, parts[0][: len(parts[0]) - len(part)]]) for part in parts]
    found = [np.asarray(model.log_prob(params, part, context), np.float64) for part in padded]
    log_prob = np.concatenate(found)[: len(all_states)]
    if np.isnan(log_prob).any() or (log_prob == np.inf).any():
        raise ValueError(f"log_prob of {type(model).__name__} is NaN or infinite at {int((~(log_prob < np.inf)).sum())} states")
    log_normalizer = float(logsumexp(log_prob))
    return ExactTable(model.event, all_states, log_prob - log_normalizer, log_normalizer)


def _cells(expected: np.ndarray) -> np.ndarray:
    """The cell of each state: one of its own for a state of enough expected draws; the others share, those of like mass."""
    rare = expected < _FEWEST
    order = np.flatnonzero(rare)[np.argsort(expected[rare], kind="stable")]
    before = np.cumsum(expected[order]) - expected[order]
    total = expected[order].sum()
    cell = np.empty(len(expected), np.int64)
    # The last cell takes what would not fill another.
    cell[order] = np.minimum(before // _FEWEST, max(total // _FEWEST - 1, 0))
    cell[~rare] = np.arange((~rare).sum()) + (cell[order].max() + 1 if len(order) else 0)
    return cell
