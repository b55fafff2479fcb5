"""Fisher information: what one datum tells about the parameters, at most.

    expected      I = E_p[s s^T] = -E_p[d^2 log p / d theta^2],  s = d log p(x | theta) / d theta     per datum
    empirical     1/n sum_i s_i s_i^T of data                                                         per datum
    observed      -sum_i d^2 log p(x_i | theta) / d theta^2                                           of all data

The two expected forms agree where derivatives may be taken under the integral. The empirical form tends to I only where the model
is true; the difference to the observed one is what a sandwich covariance repairs (`inference/likelihood.py`).

theta is the vector of all numbers of `trainable(params)`, in the order of `jax.flatten_util.ravel_pytree`; what stands in a
`Fixed` is known. Of any model with an EXACT log_prob that is twice differentiable in its parameters.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from genmod.core.checks import check_context
from genmod.core.distribution import Distribution
from genmod.core.params import trainable, with_trainable
from genmod.core.types import Array, Context, Key, Params
from genmod.inference.nodes import ExpectationMethod, Law, checked_law, checked_method

_NUMBERS_AT_ONCE = 2**22


class FisherInformation(NamedTuple):
    """A Fisher information of D parameters.

    Attributes:
      matrix: (D, D). sem: standard errors of its entries; 0 of what is not random.
    """

    matrix: Array
    sem: Array


def fisher_information(law: Law, method: ExpectationMethod, *, key: Key | None = None) -> FisherInformation:
    """E[s s^T] under the law itself, for one datum. Compiled.

    Args:
      law: the model and its parameters. method: `MonteCarlo(num_draws)`, `Quadrature(low, high)` or `Enumerated()`.
      key: of the draws; methods that are not random do without.

    Raises TypeError or ValueError for laws or methods of another kind, and for a model without trainable parameters.
    """
    return _expected(law, method, key, _outer)


def fisher_by_curvature(law: Law, method: ExpectationMethod, *, key: Key | None = None) -> FisherInformation:
    """-E[d^2 log p] under the law itself, for one datum: `fisher_information` in its other form. Compiled.

    Of an exponential family in its natural parameters it does not depend on the datum, so that one draw would do.
    """
    return _expected(law, method, key, _curvature)


def empirical_fisher(model: Distribution, params: Params, x: ArrayLike, context: ArrayLike | None = None) -> Array:
    """1/n sum_i s_i s_i^T of data, (D, D). Compiled. Arguments as those of `observed_information`."""
    x, context = checked_data(model, params, x, context)
    return _weighted(model, _outer, params, x, context, jnp.full(x.shape[0], 1 / x.shape[0]))[0]


def observed_information(model: Distribution, params: Params, x: ArrayLike, context: ArrayLike | None = None) -> Array:
    """The Hessian of the negative log-likelihood of all data, (D, D): at its minimum a precision of the parameters. Compiled.

    Args:
      model, params: with an EXACT log_prob. x: (n,) + event_shape. context: (n,) + context_shape.

    Raises TypeError or ValueError for data that do not fit, and for a model without trainable parameters.
    """
    x, context = checked_data(model, params, x, context)
    return _weighted(model, _curvature, params, x, context, jnp.ones(x.shape[0]))[0]


def log_prob_of_vector(model: Distribution, params: Params) -> tuple[Array, Callable[[Array, Array, Context], Array]]:
    """(theta, (theta, x, context) -> log p of ONE event); raises ValueError where there is nothing to train."""
    theta, unravel = ravel_pytree(trainable(params))
    if not theta.size:
        raise ValueError(f"params of {type(model).__name__} must hold something to train, got {jax.tree.structure(params)}")

    def log_prob(theta, x, context):
        return model.log_prob_one(with_trainable(params, unravel(theta)), x, context)

    return theta, log_prob


def checked_data(model: Any, params: Params, x: Any, context: Any) -> tuple[Array, Any]:
    """x and context as arrays, of an EXACT model; raises TypeError or ValueError for others."""
    if not isinstance(model, Distribution):
        raise TypeError(f"model must be a Distribution, got {model!r}")
    checked_law("model", Law(model, params, None if model.context_shape is None else jnp.zeros(model.context_shape)))
    x = jnp.asarray(model.event.check("x", x, batched=True))
    context = check_context(type(model).__name__, context, model.context_shape, batch=x.shape[:1])
    return x, None if context is None else jnp.asarray(context)


def _expected(law: Law, method: ExpectationMethod, key: Key | None, form: Callable) -> FisherInformation:
    law = checked_law("law", law)
    nodes = checked_method(method, key).nodes(law, key)
    context = None if law.context is None else jnp.broadcast_to(law.context, (len(nodes.weight), *law.context.shape))
    mean, squares = _weighted(
        law.distribution, form, law.params, nodes.x, context, jnp.asarray(nodes.weight, jnp.result_type(float))
    )
    if not method.random:
        return FisherInformation(mean, jnp.zeros_like(mean))
    return FisherInformation(mean, jnp.sqrt(jnp.maximum(squares - mean**2, 0.0) / max(len(nodes.weight) - 1, 1)))


def _outer(log_prob: Callable, theta: Array, x: Array, context: Context) -> Array:
    score = jax.grad(log_prob)(theta, x, context)
    return score[:, None] * score[None, :]


def _curvature(log_prob: Callable, theta: Array, x: Array, context: Context) -> Array:
    return -jax.hessian(log_prob)(theta, x, context)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _weighted(model, form, params, x, context, weight):
    """sum_i w_i M_i and sum_i w_i M_i^2 (entry by entry) of a matrix M for each row, in blocks that fit into memory."""
    theta, log_prob = log_prob_of_vector(model, params)
    num = x.shape[0]
    size = min(num, max(1, _NUMBERS_AT_ONCE // theta.size**2))
    padding = -num % size  # rows of weight zero

    def cut(a):
        return jnp.concatenate([a, jnp.repeat(a[:1], padding, 0)]).reshape(-1, size, *a.shape[1:])

    blocks = cut(x), None if context is None else cut(context), jnp.pad(weight, (0, padding)).reshape(-1, size)

    def add(sums, block):
        x, context, weight = block
        axes = (0, None if context is None else 0)
        matrices = jax.vmap(functools.partial(form, log_prob, theta), axes)(x, context)
        moments = matrices, matrices**2
        return tuple(
            s + jnp.einsum("n,nij->ij", weight, m, precision="highest") for s, m in zip(sums, moments, strict=True)
        ), None

    zeros = jnp.zeros((theta.size, theta.size), theta.dtype)
    return jax.lax.scan(add, (zeros, zeros), blocks)[0]


def is_known(*arrays: Any) -> bool:
    """Whether arrays have values, and are not being traced."""
    return not any(isinstance(a, Tracer) for a in arrays)


def positive_definite(matrix: Any) -> bool:
    """Whether a matrix is finite and all of its eigenvalues are above rounding."""
    known = np.asarray(matrix)
    if not np.isfinite(known).all():
        return False
    values = np.linalg.eigvalsh(known)
    return bool(values[0] > len(values) * np.finfo(known.dtype).eps * max(values[-1], 0.0))
