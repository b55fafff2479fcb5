"""`cramer_rao`: the variance of an estimator, by simulation, against the least that an unbiased one can have.

    Var[T] >= J (n I)^-1 J^T,   J = df / d theta,  I the Fisher information of one datum      (Rao 1945; Cramer 1946)

for an estimator T of f(theta) from n independent data. A biased estimator may have a smaller variance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_function
from genmod.core.keys import check_key
from genmod.core.params import trainable, with_trainable
from genmod.core.programs import program_of
from genmod.core.types import Array, Key, Params
from genmod.inference.fisher import positive_definite
from genmod.inference.nodes import Law, checked_law


class CramerRao(NamedTuple):
    """An estimator of k numbers against the bound, (k,) each, and standard errors of the simulation.

    Attributes:
      truth: f(theta). bias: of the estimator. variance: of the estimator. bound: the least variance of an unbiased one.
      ratio: variance / bound: 1 of an efficient estimator, below 1 of none that is unbiased.
      bias_sem, variance_sem, ratio_sem: standard errors.
    """

    truth: np.ndarray
    bias: np.ndarray
    variance: np.ndarray
    bound: np.ndarray
    ratio: np.ndarray
    bias_sem: np.ndarray
    variance_sem: np.ndarray
    ratio_sem: np.ndarray

    def __str__(self):
        lines = []
        for values in zip(*self, strict=True):
            truth, bias, variance, bound, ratio, bias_sem, variance_sem, ratio_sem = values
            lines.append(
                f"truth {truth:.6g}, bias {bias:.2g} +- {bias_sem:.1g}, variance {variance:.6g} +- {variance_sem:.1g}, "
                f"bound {bound:.6g}, ratio {ratio:.4f} +- {ratio_sem:.4f}"
            )
        return "\n".join(lines)


def cramer_rao(
    law: Law,
    estimator_fn: Callable[[Array], Array],
    quantity_fn: Callable[[Params], Array],
    *,
    num_data: int,
    information: ArrayLike,
    key: Key,
    num_repeats: int = 10_000,
) -> CramerRao:
    """The bias and the variance of an estimator, by simulated data, and the bound. All data are held at once.

    Args:
      law: of the data, with the true parameters.
      estimator_fn: data, (num_data,) + event_shape, -> a number or (k,) numbers.
      quantity_fn: params -> what is estimated, of the same shape.
      num_data: of one estimate. num_repeats: how many estimates. key: of the data.
      information: of one datum at the true parameters, (D, D): `fisher_information(law, method).matrix`.

    Returns a `CramerRao`. Raises TypeError or ValueError for arguments of another kind, and for an information that is singular.
    """
    law = checked_law("law", law)
    check_function(estimator_fn=estimator_fn, quantity_fn=quantity_fn)
    check_count(num_data=num_data, num_repeats=num_repeats)
    if num_repeats < 2:
        raise ValueError(f"num_repeats must be >= 2, got {num_repeats}")
    truth, bound = _bound(law, quantity_fn, information, num_data)
    data = law.distribution.sample(law.params, check_key(key), (num_repeats, num_data), law.context)
    found = np.asarray(program_of(estimator_fn, _of_each)(data), np.float64).reshape(num_repeats, -1)
    if found.shape[1] != truth.size:
        raise ValueError(f"estimator_fn must give as many numbers as quantity_fn, {truth.size}, got {found.shape[1]}")
    centred = found - found.mean(0)
    variance = np.sum(centred**2, 0) / (num_repeats - 1)
    variance_sem = np.sqrt(np.maximum(np.mean(centred**4, 0) - variance**2, 0) / num_repeats)
    return CramerRao(
        truth,
        found.mean(0) - truth,
        variance,
        bound,
        variance / bound,
        np.sqrt(variance / num_repeats),
        variance_sem,
        variance_sem / bound,
    )


def _bound(law: Law, quantity_fn: Callable, information: Any, num_data: int) -> tuple[np.ndarray, np.ndarray]:
    theta, unravel = ravel_pytree(trainable(law.params))

    def quantity(theta):
        return jnp.ravel(quantity_fn(with_trainable(law.params, unravel(theta))))

    matrix, jacobian = np.asarray(information), np.asarray(jax.jacobian(quantity)(theta), np.float64)
    if matrix.shape != (theta.size, theta.size):
        raise ValueError(f"information must have shape {(theta.size, theta.size)}, got {matrix.shape}")
    if not positive_definite(matrix):
        raise ValueError("information must be positive definite: the law has parameters, or combinations of them, without effect")
    inverse = np.linalg.inv(num_data * matrix.astype(np.float64))
    return np.asarray(quantity(theta), np.float64), np.einsum("ki,ij,kj->k", jacobian, inverse, jacobian)


def _of_each(estimator_fn: Callable, data: Array) -> Array:
    return jax.vmap(estimator_fn)(data)
