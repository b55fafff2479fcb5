"""Expectations under a law: E[f(x)] ~ sum_i w_i f(x_i), by draws, by a grid or over all states.

    MonteCarlo(100_000)             w_i = 1 / n
    Quadrature(-10.0, 10.0)         w_i = p(x_i) dx, the trapezoid rule on the line or in the plane
    Enumerated()                    w_i = P(x_i), of discrete laws; exact

A law is a distribution with its parameters and, where it is conditional, ONE context.
"""

import abc
import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_context, check_count, check_positive
from genmod.core.description import Description
from genmod.core.distribution import Distribution, Likelihood, check_params
from genmod.core.enumeration import MAX_STATES
from genmod.core.event import Real
from genmod.core.keys import check_key
from genmod.core.types import Key, Params
from genmod.inference.table import ExactTable, exact


class Law(NamedTuple):
    """A distribution, its parameters, and ONE context where it wants one.

    Attributes:
      distribution: any `Distribution`. params: of it; {} of one without. context: of its context_shape.
    """

    distribution: Distribution
    params: Params
    context: Any = None


class Nodes(NamedTuple):
    """Points with weights, none of which is zero, and the log-density of the law there: (n,) + event_shape, (n,), (n,)."""

    x: Any
    weight: np.ndarray
    log_prob: np.ndarray


class ExpectationMethod(Description, abc.ABC):
    """A way to take expectations under a `Law`. random: whether it wants a key."""

    random: bool = False

    @abc.abstractmethod
    def nodes(self, law: Law, key: Key | None) -> Nodes:
        """The points for this law. Raises TypeError or ValueError for a law to which the method does not apply."""

    def log_prob(self, law: Law, x: Any) -> np.ndarray:
        """log p of events, in nats, float64, (n,)."""
        return np.asarray(law.distribution.log_prob(law.params, x, law.context), np.float64)


@dataclasses.dataclass(frozen=True)
class MonteCarlo(ExpectationMethod):
    """`num_draws` independent draws. Of laws with an EXACT log_prob that can be drawn from."""

    num_draws: int = 100_000

    random = True

    def __post_init__(self):
        super().__post_init__()
        check_count(num_draws=self.num_draws)

    def nodes(self, law, key):
        x = law.distribution.sample(law.params, check_key(key), (self.num_draws,), law.context)  # type: ignore[arg-type]
        return Nodes(x, np.full(self.num_draws, 1 / self.num_draws), self.log_prob(law, x))


@dataclasses.dataclass(frozen=True)
class Quadrature(ExpectationMethod):
    """The trapezoid rule on a grid, of real laws of one or two numbers. Spectrally exact where the density is smooth and the box
    holds it; jumps cost an error of the order of the spacing.

    Attributes:
      low, high: the ends, one number for both axes or one for each.
      num: points along an axis. tolerance: how far the mass on the grid may be from 1.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    num: int = 2_001
    tolerance: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        check_count(num=self.num)
        check_positive(tolerance=self.tolerance)
        low, high = np.atleast_1d(self.low), np.atleast_1d(self.high)
        if self.num < 2 or low.ndim != 1 or low.size > 2 or high.size > 2 or not (low < high).all():
            raise ValueError(f"Quadrature wants low < high along one or two axes and num >= 2, got {self}")

    def axes(self, dim: int) -> list[np.ndarray]:
        """The points along each of `dim` axes."""
        ends = np.broadcast_to(self.low, (dim,)), np.broadcast_to(self.high, (dim,))
        return [np.linspace(low, high, self.num) for low, high in zip(*ends, strict=True)]

    def nodes(self, law, key=None):
        event, dim = law.distribution.event, math.prod(law.distribution.event_shape)
        if not isinstance(event, Real) or dim not in (1, 2) or max(np.size(self.low), np.size(self.high)) > dim:
            raise TypeError(f"Quadrature wants real events of as many numbers as it has axes, one or two, got {event}")
        axes = self.axes(dim)
        x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *event.shape).astype(event.dtype)
        rule = np.ones(self.num)
        rule[[0, -1]] = 0.5
        cells = math.prod(axis[1] - axis[0] for axis in axes) * (rule if dim == 1 else np.outer(rule, rule).ravel())
        log_prob = self.log_prob(law, x)
        weight = np.exp(log_prob) * cells
        if not abs(weight.sum() - 1) <= self.tolerance:
            raise ValueError(
                f"the grid of {self} must hold all mass of {type(law.distribution).__name__}, got {weight.sum():.6g} instead of "
                "1; widen it, refine it, or allow for what is left out by its tolerance"
            )
        held = weight > 0
        return Nodes(jnp.asarray(x[held]), weight[held], log_prob[held])


@dataclasses.dataclass(frozen=True)
class Enumerated(ExpectationMethod):
    """All states of a discrete law, by `exact`; of UNNORMALIZED ones too, which are normalised."""

    max_states: int = MAX_STATES

    def __post_init__(self):
        super().__post_init__()
        check_count(max_states=self.max_states)

    def table(self, law: Law) -> ExactTable:
        """The states and their masses."""
        return exact(law.distribution, law.params, law.context, max_states=self.max_states)

    def nodes(self, law, key=None):
        table = self.table(law)
        held = table.prob > 0
        return Nodes(jnp.asarray(table.states[held]), table.prob[held], table.log_prob[held])

    def log_prob(self, law, x):
        table = self.table(law)
        return table.log_prob[table.places(x)]


def checked_law(name: str, law: Any, *, normalized: bool = True) -> Law:
    """The same, its context as an array; raises TypeError or ValueError for what is no such law.

    Args:
      name: of the argument. normalized: whether its log_prob must be EXACT; else it may be UNNORMALIZED.
    """
    if not isinstance(law, Law) or not isinstance(law.distribution, Distribution):
        raise TypeError(f"{name} must be gm.inference.Law(distribution, params), got {law!r}")
    distribution, params, context = law
    check_params(distribution, params)
    kinds = (Likelihood.EXACT,) if normalized else (Likelihood.EXACT, Likelihood.UNNORMALIZED)
    if distribution.likelihood not in kinds:
        raise ValueError(
            f"{name} must have an {' or '.join(kind.name for kind in kinds)} log_prob, that of {type(distribution).__name__} is "
            f"{distribution.likelihood.name}"
        )
    context = check_context(type(distribution).__name__, context, distribution.context_shape)
    return Law(distribution, params, None if context is None else jnp.asarray(context))


def checked_method(method: Any, key: Key | None) -> ExpectationMethod:
    """`method`; raises TypeError for another kind, ValueError for a random one without a key."""
    if not isinstance(method, ExpectationMethod):
        raise TypeError(f"method must be MonteCarlo(...), Quadrature(low, high) or Enumerated(), got {method!r}")
    if method.random and key is None:
        raise ValueError(f"{type(method).__name__} is random: pass key=jax.random.key(seed)")
    return method
