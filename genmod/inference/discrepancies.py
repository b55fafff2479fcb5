"""How far one law is from another, and how spread it is: entropy, cross-entropy, divergences, distances.

    KL                 E_p[log p - log q]
    CrossEntropy       E_p[-log q] = H(p) + KL(p || q)
    JensenShannon      KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2. The optimum of a GAN is twice this less 2 log 2
    RenyiDivergence    log E_p[(p / q)^(a - 1)] / (a - 1); the KL in the limit a -> 1
    ChiSquare          E_p[p / q] - 1 = exp(Renyi of order 2) - 1 = N / ESS - 1, of weights p / q at many draws of q
    Wasserstein        min E[|x - y|^r]^(1/r) over couplings of p and q; on the line by quantiles

    discrepancy(Law(p, params), Law(q, other), KL(), MonteCarlo(100_000), key=key)

is of p from q; the other direction swaps the two. A method is `ClosedForm()`, or a way to take expectations under p
(`inference/nodes.py`). Draws of p, not of q, see all of the mass that q must have. Where p / q has heavy tails under p the mean
of its powers may be infinite, and any sample of it finite: k-hat says so, which must stay below 0.7.
"""

import abc
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_positive
from genmod.core.description import Description
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key
from genmod.densities.closed_forms import entropy_one, renyi_one, wasserstein_one
from genmod.densities.divergence import kl_one
from genmod.inference.nodes import Enumerated, ExpectationMethod, Law, Nodes, Quadrature, checked_law, checked_method
from genmod.samplers.weights import log_mean, pareto_k_hat


class Discrepancy(NamedTuple):
    """A number about one law or two.

    Attributes:
      value: in nats; of `ChiSquare` a pure number, of `Wasserstein` in the units of x.
      sem: its standard error: 0 of what is not random, nan where it is not known.
      method: the name of the method. extras: more by name; `k_hat` of draws for `RenyiDivergence` and `ChiSquare`.
    """

    value: float
    sem: float
    method: str
    extras: dict[str, float]


@dataclasses.dataclass(frozen=True)
class ClosedForm(Description):
    """A formula, where one is known (`densities/closed_forms.py`, `kl_one`)."""


class DiscrepancyKind(Description, abc.ABC):
    """What is to be computed of two laws."""

    @abc.abstractmethod
    def closed(self, p: Law, q: Law) -> Array | None:
        """A scalar; None where no closed form is known."""

    @abc.abstractmethod
    def estimate(self, p: Law, q: Law, method: ExpectationMethod, key: Key | None) -> tuple[float, float, dict[str, float]]:
        """Value, standard error, extras."""


@dataclasses.dataclass(frozen=True)
class KL(DiscrepancyKind):
    """E_p[log p - log q], in nats; inf where p has mass and q has none."""

    def closed(self, p, q):
        found = kl_one(*p, *q)
        return None if found is None else found.sum()

    def estimate(self, p, q, method, key):
        nodes = method.nodes(p, key)
        return (*_mean(nodes.log_prob - method.log_prob(q, nodes.x), nodes, method), {})


@dataclasses.dataclass(frozen=True)
class CrossEntropy(DiscrepancyKind):
    """E_p[-log q], in nats: the expected loss of the model q on data of p."""

    def closed(self, p, q):
        parts = entropy_one(*p), kl_one(*p, *q)
        return None if parts[0] is None or parts[1] is None else parts[0] + parts[1].sum()

    def estimate(self, p, q, method, key):
        nodes = method.nodes(p, key)
        return (*_mean(-method.log_prob(q, nodes.x), nodes, method), {})


@dataclasses.dataclass(frozen=True)
class JensenShannon(DiscrepancyKind):
    """KL(p || m) / 2 + KL(q || m) / 2, in nats, m = (p + q) / 2: at most log 2.

    With d = 2 JensenShannon, the sum without halves, the best discriminator of a GAN has the value d - 2 log 2.
    """

    def closed(self, p, q):
        return None

    def estimate(self, p, q, method, key):
        keys = (None, None) if key is None else jax.random.split(key)
        halves = []
        for this, other, own in ((p, q, keys[0]), (q, p, keys[1])):
            nodes = method.nodes(this, own)
            both = np.logaddexp(nodes.log_prob, method.log_prob(other, nodes.x)) - math.log(2)
            halves.append(_mean(nodes.log_prob - both, nodes, method))
        (value, sem), (other_value, other_sem) = halves
        return 0.5 * (value + other_value), 0.5 * math.hypot(sem, other_sem), {}


@dataclasses.dataclass(frozen=True)
class RenyiDivergence(DiscrepancyKind):
    """log E_p[(p / q)^(a - 1)] / (a - 1), in nats, of order a = `alpha`, positive and not 1 (that is `KL`).

    It rises with the order (van Erven & Harremoes 2014, arXiv:1206.2459).
    """

    alpha: float

    def __post_init__(self):
        super().__post_init__()
        check_positive(alpha=self.alpha)
        if self.alpha == 1:
            raise ValueError("alpha must not be 1, got 1; Renyi's divergence of order 1 is KL()")

    def closed(self, p, q):
        return renyi_one(*p, *q, alpha=self.alpha)

    def estimate(self, p, q, method, key):
        value, sem, extras = _log_power(p, q, self.alpha - 1, method, key)
        return value / (self.alpha - 1), sem / abs(self.alpha - 1), extras


@dataclasses.dataclass(frozen=True)
class ChiSquare(DiscrepancyKind):
    """E_p[p / q] - 1, the variance of the weights p / q at draws of q."""

    def closed(self, p, q):
        found = renyi_one(*p, *q, alpha=2.0)
        return None if found is None else jnp.expm1(found)

    def estimate(self, p, q, method, key):
        value, sem, extras = _log_power(p, q, 1.0, method, key)
        with np.errstate(over="ignore"):
            return float(np.expm1(value)), float(np.exp(value) * sem) if sem else 0.0, extras


@dataclasses.dataclass(frozen=True)
class Wasserstein(DiscrepancyKind):
    """min E[|x - y|^r]^(1/r), r = `order` >= 1, in the units of x.

    In closed form of Gaussians; by quantiles of laws of one number, on a `Quadrature` or `Enumerated`.
    """

    order: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.order < math.inf:
            raise ValueError(f"order must be a finite number >= 1, got {self.order!r}")

    def closed(self, p, q):
        return wasserstein_one(*p, *q, order=self.order)

    def estimate(self, p, q, method, key):
        if math.prod(p.distribution.event_shape) != 1 or not isinstance(method, Quadrature | Enumerated):
            raise TypeError(
                "Wasserstein wants laws of one number and Quadrature or Enumerated, or ClosedForm() of Gaussians, got "
                f"{p.distribution.event} and {method}; gm.metrics.wasserstein takes samples, whose distance is too large"
            )
        sides = [_quantiles(method.nodes(law, key), isinstance(method, Quadrature)) for law in (p, q)]
        levels = np.unique(np.concatenate([[0.0, 1.0], *(np.clip(side[1], 0, 1) for side in sides)]))
        middle = 0.5 * (levels[1:] + levels[:-1])
        x, y = (_at(middle, *side, isinstance(method, Quadrature)) for side in sides)
        return float(np.sum(np.diff(levels) * np.abs(x - y) ** self.order) ** (1 / self.order)), 0.0, {}


def discrepancy(
    p: Law, q: Law, kind: DiscrepancyKind, method: ClosedForm | ExpectationMethod, *, key: Key | None = None
) -> Discrepancy:
    """How far p is from q, by a method.

    Args:
      p, q: laws of the same events, with EXACT log_probs; for `Enumerated` they may be UNNORMALIZED.
      kind: `KL()`, `CrossEntropy()`, `JensenShannon()`, `RenyiDivergence(alpha)`, `ChiSquare()`, `Wasserstein(order)`.
      method: `ClosedForm()`, `MonteCarlo(num_draws)`, `Quadrature(low, high)` or `Enumerated()`.
      key: of the draws; methods that are not random do without.

    Returns a `Discrepancy`. Raises TypeError or ValueError for laws and methods of another kind, and where no closed form is
    known.
    """
    normalized = not isinstance(method, Enumerated)
    p, q = checked_law("p", p, normalized=normalized), checked_law("q", q, normalized=normalized)
    if p.distribution.event != q.distribution.event:
        raise ValueError(f"p and q must have the same events, got {p.distribution.event} and {q.distribution.event}")
    if not isinstance(kind, DiscrepancyKind):
        raise TypeError(f"kind must be a kind of discrepancy such as KL(), got {kind!r}")
    if isinstance(method, ClosedForm):
        value = _closed(kind, p.distribution, q.distribution, (p.params, p.context), (q.params, q.context))
        return _formula(value, type(kind).__name__, p, q)
    return Discrepancy(*_named(kind.estimate(p, q, checked_method(method, key), key), method))


def entropy(p: Law, method: ClosedForm | ExpectationMethod, *, key: Key | None = None) -> Discrepancy:
    """-E_p[log p], in nats; of real laws the differential entropy, which may be negative. Arguments as those of `discrepancy`."""
    p = checked_law("p", p, normalized=not isinstance(method, Enumerated))
    if isinstance(method, ClosedForm):
        return _formula(_closed_entropy(*p), "entropy", p)
    nodes = checked_method(method, key).nodes(p, key)
    return Discrepancy(*_named((*_mean(-nodes.log_prob, nodes, method), {}), method))


_closed_entropy = jax.jit(entropy_one, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _closed(kind, p, q, of_p, of_q):
    return kind.closed(Law(p, *of_p), Law(q, *of_q))


@jax.jit
def _spread(log_weights):
    return log_mean(log_weights).sem, pareto_k_hat(log_weights)


def _formula(value: Array | None, what: str, *laws: Law) -> Discrepancy:
    if value is None:
        names = " and ".join(type(law.distribution).__name__ for law in laws)
        raise ValueError(
            f"no closed form of {what} is known for {names}; take MonteCarlo(100_000), Quadrature(...) or Enumerated()"
        )
    return Discrepancy(float(value), 0.0, "ClosedForm", {})


def _named(found: tuple[float, float, dict[str, float]], method: ExpectationMethod) -> tuple[Any, ...]:
    return found[0], found[1], type(method).__name__, found[2]


def _mean(values: np.ndarray, nodes: Nodes, method: ExpectationMethod) -> tuple[float, float]:
    """The expectation of values at the nodes, and its standard error."""
    if not np.isfinite(values).all():
        return float(np.sum(nodes.weight * values)), math.nan if method.random else 0.0
    return float(np.sum(nodes.weight * values)), float(mean_and_sem(values)[1]) if method.random else 0.0


def _log_power(p: Law, q: Law, power: float, method: ExpectationMethod, key: Key | None) -> tuple[float, float, dict[str, float]]:
    """log E_p[(p / q)^power], its standard error, and k-hat of the powers."""
    nodes = method.nodes(p, key)
    log_powers = power * (nodes.log_prob - method.log_prob(q, nodes.x))
    value = float(np.logaddexp.reduce(log_powers + np.log(nodes.weight)))
    if not method.random:
        return value, 0.0, {}
    if not np.isfinite(value):
        return value, math.nan, {"k_hat": math.inf}
    centred = jnp.asarray(log_powers - value)  # in single precision a large common part would hide the differences
    sem, k_hat = _spread(centred)
    return value, float(sem), {"k_hat": float(k_hat)}


def _quantiles(nodes: Nodes, continuous: bool) -> tuple[np.ndarray, np.ndarray]:
    """The values of one number in rising order, and the distribution function there, at most 1."""
    x, order = np.asarray(nodes.x, np.float64).ravel(), slice(None)
    order = np.argsort(x)
    x, share = x[order], nodes.weight[order] / nodes.weight.sum()
    # A node of a grid stands in the middle of its mass, a state has all of it.
    return x, np.cumsum(share) - (0.5 * share if continuous else 0.0)


def _at(levels: np.ndarray, x: np.ndarray, cumulative: np.ndarray, continuous: bool) -> np.ndarray:
    """The quantiles at levels within (0, 1)."""
    if continuous:
        return np.interp(levels, cumulative, x)
    return x[np.minimum(np.searchsorted(cumulative, levels), len(x) - 1)]
