"""The mode of the posterior of a linear regression, y = X theta + N(0, s^2) with the prior N(0, 1 / lambda), in closed form.

    theta = (X^T X + lambda s^2 I)^-1 X^T y

It tends to the maximum-likelihood estimate, lambda = 0, as the data grow.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_positive
from genmod.core.types import Array


def regression_map(x: ArrayLike, y: ArrayLike, *, precision: float, scale: float = 1.0) -> Array:
    """The mode, and mean, of the posterior of the weights of a linear regression, (D,): ridge regression.

    Args:
      x: the design, (n, D), or (n,) for one weight: then sum xy / (sum x^2 + precision scale^2). y: (n,).
      precision: lambda of the prior N(0, 1 / lambda), of each weight. scale: the standard deviation of the noise.

    Raises TypeError or ValueError for arrays that do not fit, and for a precision or scale that is not positive.
    """
    x, y = check_array("x", x, batched=True), check_array("y", y)
    if x.ndim > 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x must be (n, D) or (n,) and y (n,), got shapes {x.shape} and {y.shape}")
    check_positive(precision=precision, scale=scale)
    design = x.reshape(x.shape[0], -1)
    gram = jnp.matmul(design.T, design, precision="highest") + precision * scale**2 * jnp.eye(design.shape[1], dtype=x.dtype)
    return jax.scipy.linalg.solve(gram, jnp.matmul(design.T, y, precision="highest"), assume_a="pos")
