"""The divergence of a vector field, div v(x) = tr J(x) with J = dv/dx: exact, or estimated from products J e.

    Exact        sum_i e_i^T J e_i                       D products
    Hutchinson   mean_k e_k^T J e_k,  E[e e^T] = I        K products, unbiased
    Hutch++      tr(Q^T J Q) + mean_k g_k^T (I - QQ^T) J (I - QQ^T) g_k,  Q a basis of the range of J S

The variance of one Hutchinson probe is sum_{i != j} A_ij^2 * 2 for Rademacher and 2 |A|_F^2 for Gaussian probes, with A the
symmetric part of J. Probes are drawn once (`probes`) and held fixed while an ODE is solved, so that the field that is
integrated is smooth and the estimate of its integral stays unbiased (Grathwohl et al. 2018, arXiv:1810.01367, sec. 3.1).
The products are forward-mode (`jvp`); they also give |J|_F^2, exact or as E |J e|^2.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count
from genmod.core.description import Description
from genmod.core.types import Array, Key, Shape

VectorField = Callable[[Array], Array]

# Up to so many products a loop is faster on CPU than one batch of them, which is compiled once whatever their number.
_LOOP = 8


class Divergence(NamedTuple):
    """v(x); one estimate of div v(x) per probe, (K,), whose mean is the estimate; and |dv/dx|_F^2."""

    value: Array
    estimates: Array
    squared_norm: Array


class DivergenceEstimator(Description, abc.ABC):
    """How a divergence is taken. `num_estimates` is the length of `Divergence.estimates`."""

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """True where nothing is random."""

    @property
    @abc.abstractmethod
    def num_estimates(self) -> int:
        """The number of estimates whose mean is the divergence."""

    @abc.abstractmethod
    def probes(self, key: Key, field: VectorField, x: Array) -> Array | None:
        """The directions for `__call__`, drawn for a solve that starts with `field` at x; None where there are none."""

    @abc.abstractmethod
    def __call__(self, field: VectorField, x: Array, probes: Any) -> Divergence:
        """The divergence of `field`, event -> event of the same shape, at one event x."""


@dataclasses.dataclass(frozen=True)
class Exact(DivergenceEstimator):
    """All D diagonal entries of the Jacobian, at D forward-mode products."""

    @property
    def exact(self):
        return True

    @property
    def num_estimates(self):
        return 1

    def probes(self, key, field, x):
        return None

    def __call__(self, field, x, probes):
        value, columns = _products(field, x, jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape))
        columns = columns.reshape(x.size, x.size)
        return Divergence(value, jnp.trace(columns)[None], jnp.sum(columns**2))


@dataclasses.dataclass(frozen=True)
class Hutchinson(DivergenceEstimator):
    """The mean of e^T J e over `num_probes` random directions (Hutchinson 1990, 10.1080/03610919008812866)."""

    num_probes: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"

    def __post_init__(self):
        super().__post_init__()
        check_count(num_probes=self.num_probes)
        _check_distribution(self.distribution)

    @property
    def exact(self):
        return False

    @property
    def num_estimates(self):
        return self.num_probes

    def probes(self, key, field, x):
        return _draw(self.distribution, key, (self.num_probes, *x.shape), x.dtype)

    def __call__(self, field, x, probes):
        value, products = _products(field, x, probes)
        return Divergence(value, _inner(probes, products), jnp.mean(_inner(products, products)))


@dataclasses.dataclass(frozen=True)
class HutchPlusPlus(DivergenceEstimator):
    """Hutch++ (Meyer et al. 2021, arXiv:2010.09649, alg. 1): exact on the range of J S, Hutchinson on the rest.

    `rank` sketching directions S and `num_probes` probes g, at rank + num_probes products per evaluation. Unbiased, with less
    variance than Hutchinson's where few singular values dominate. The basis Q of the range of J S is taken where a solve
    starts and held, as the probes are: a basis that followed the path would jump wherever J S loses rank, and an adaptive
    solver would stumble over every jump. No gradient goes through Q, which leaves the gradient unbiased.
    """

    rank: int = 1
    num_probes: int = 1
    distribution: Literal["rademacher", "normal"] = "rademacher"

    def __post_init__(self):
        super().__post_init__()
        check_count(rank=self.rank, num_probes=self.num_probes)
        _check_distribution(self.distribution)

    @property
    def exact(self):
        return False

    @property
    def num_estimates(self):
        return self.num_probes

    def probes(self, key, field, x):
        if self.rank > x.size:
            raise ValueError(f"rank must be at most the {x.size} dimensions of the event, got {self.rank}")
        directions = _draw(self.distribution, key, (self.rank + self.num_probes, *x.shape), x.dtype)
        _, image = _products(field, x, directions[: self.rank])
        basis = jnp.linalg.qr(image.reshape(-1, x.size).T)[0].T
        rest = directions[self.rank :].reshape(-1, x.size)
        rest = rest - _dot(_dot(rest, basis.T), basis)
        return jax.lax.stop_gradient(jnp.concatenate([basis, rest]).reshape(-1, *x.shape))

    def __call__(self, field, x, probes):
        value, products = _products(field, x, probes)
        quadratic, squares = _inner(probes, products), _inner(products, products)
        kept, rest = quadratic[: self.rank], quadratic[self.rank :]
        # |J|^2 = |J Q|^2 + |J (I - QQ^T)|^2, the second from the probes.
        return Divergence(value, jnp.sum(kept) + rest, jnp.sum(squares[: self.rank]) + jnp.mean(squares[self.rank :]))


def _products(field: VectorField, x: Array, directions: Array) -> tuple[Array, Array]:
    """v(x), and J e for every direction, (K,) + event shape."""
    value, product = jax.linearize(field, x)  # one pass for v, shared by all products
    if directions.shape[0] <= _LOOP:
        return value, jnp.stack([product(e) for e in directions])
    return value, jax.vmap(product)(directions)


def _inner(a: Array, b: Array) -> Array:
    return jnp.sum((a * b).reshape(a.shape[0], -1), 1)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _draw(distribution: str, key: Key, shape: Shape, dtype) -> Array:
    draw = jax.random.rademacher if distribution == "rademacher" else jax.random.normal
    return draw(key, shape, dtype)


def _check_distribution(distribution: str) -> None:
    if distribution not in ("rademacher", "normal"):
        raise ValueError(f"distribution must be 'rademacher' or 'normal', got {distribution!r}")
