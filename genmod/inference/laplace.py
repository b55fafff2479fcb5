"""The mode of a log-density, and the Laplace approximation there (Laplace 1774; Bishop 2006, sec. 4.4).

    p(x) = exp(log_prob_fn(x)),  H = -d^2 log p / dx^2 at the mode m:
    q(x) = N(m, H^-1)                                        (Bishop 2006, eq. 4.134)
    log Z = log p(m) + D / 2 log 2 pi - 1 / 2 log det H      (eq. 4.135), exact where p is Gaussian

With log p(x) = log p(data | x) + log p(x), the joint, log Z is the log-evidence of the data.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_count, check_function, check_positive
from genmod.core.description import canonical
from genmod.core.programs import program_of
from genmod.core.types import Array, Params
from genmod.densities import FullNormal

LogProb = Callable[[Array], Array]
_NEWTON_STEPS = 30


class Mode(NamedTuple):
    """Where a search for a maximum ended.

    Attributes:
      position: (D,). log_prob: there, in nats. gradient: there, (D,).
      num_steps: that were taken. converged: whether the gradient is zero as far as rounding lets it.
    """

    position: Array
    log_prob: Array
    gradient: Array
    num_steps: Array
    converged: Array


class LaplaceApproximation(NamedTuple):
    """A Gaussian at the mode of a log-density.

    Attributes:
      mean: the mode, (D,). factor: the Cholesky factor L of the covariance L L^T = H^-1, (D, D).
      log_evidence: of the approximation, in nats.
      converged: whether `mean` is a maximum as far as rounding lets it; where it is not, the rest means little.
    """

    mean: Array
    factor: Array
    log_evidence: Array
    converged: Array

    @property
    def distribution(self) -> FullNormal:
        """N(mean, factor factor^T), whose parameters are `params`."""
        return FullNormal(self.mean.shape)

    @property
    def params(self) -> Params:
        """Of `distribution`: it draws by `approximation.distribution.sample(approximation.params, key, 100)`."""
        return {
            "mean": self.mean,
            "lower": jnp.tril(self.factor, -1),
            "log_scale": jnp.log(jnp.diagonal(self.factor)),
        }


def find_mode(
    log_prob_fn: LogProb,
    start: ArrayLike,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1_000,
    tolerance: float | None = None,
) -> Mode:
    """A local maximum of a log-density: with log p(x) = log p(data | x) + log p(x) the maximum a posteriori. Compiled.

    Args:
      log_prob_fn: log p of one position, up to a constant. The same function does not compile again.
      start: (D,), where the search begins.
      optimizer: any of Optax, which minimises -log p; None: L-BFGS.
      num_steps: at most so many.
      tolerance: the search ends where max_i |gradient_i| max(|x_i|, 1) <= tolerance max(|log p|, 1), the relative gradient of
        Dennis & Schnabel (1996, eq. 7.2.5); None: the square root of the rounding error.

    Returns a `Mode`. Raises TypeError or ValueError for arguments of another kind, and for a log_prob_fn that does not return
    one number.
    """
    start = _checked_start(log_prob_fn, start)
    check_count(num_steps=num_steps)
    if tolerance is not None:
        check_positive(tolerance=tolerance)
    return program_of(log_prob_fn, _find_mode, _optimizer(optimizer), num_steps, tolerance)(start)


def laplace_approximation(
    log_prob_fn: LogProb,
    start: ArrayLike,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1_000,
) -> LaplaceApproximation:
    """The Laplace approximation of a log-density, and its evidence. Compiled.

    The mode is found by `find_mode`, then made exact by Newton's method, each step halved until log p rises.

    Args:
      log_prob_fn: log p of one position, up to the constant that the evidence is about; twice differentiable.
      start: (D,), where the search begins: of several modes it finds that near by.
      optimizer: of the search, any of Optax; None: L-BFGS. num_steps: at most so many before Newton's method.

    Returns a `LaplaceApproximation`. Raises ValueError where the Hessian of -log p at the end of the search is not positive
    definite, so that there is no maximum; while it is being traced, `factor` and `log_evidence` are NaN instead.
    """
    start = _checked_start(log_prob_fn, start)
    check_count(num_steps=num_steps)
    found, hessian = program_of(log_prob_fn, _laplace, _optimizer(optimizer), num_steps)(start)
    if not isinstance(found.factor, Tracer) and not np.isfinite(np.asarray(found.factor)).all():
        known = np.asarray(hessian)
        least = np.linalg.eigvalsh(known)[0] if np.isfinite(known).all() else math.nan
        raise ValueError(
            f"log_prob_fn must have a strict maximum near start: where the search ended the Hessian of -log p is not positive "
            f"definite, its smallest eigenvalue is {least + 0.0:.3g}; begin elsewhere, or remove directions in which log p is "
            "flat (a proper prior does)"
        )
    return found


def _find_mode(log_prob_fn: LogProb, optimizer: Any, num_steps: int, tolerance: float | None, start: Array) -> Mode:
    optimizer = optax.with_extra_args_support(optimizer)
    limit = math.sqrt(jnp.finfo(start.dtype).eps) if tolerance is None else tolerance

    def negative(x):
        return -log_prob_fn(x)

    value_and_grad = jax.value_and_grad(negative)

    def is_flat(x, value, gradient):
        return jnp.max(jnp.abs(gradient) * jnp.maximum(jnp.abs(x), 1.0)) <= limit * jnp.maximum(jnp.abs(value), 1.0)

    def unfinished(loop):
        x, value, gradient, _, step, moved = loop
        return (step < num_steps) & moved & jnp.isfinite(value) & ~is_flat(x, value, gradient)

    def search(loop):
        x, value, gradient, state, step, _ = loop
        updates, state = optimizer.update(gradient, state, x, value=value, grad=gradient, value_fn=negative)
        after: Any = optax.apply_updates(x, updates)
        return after, *value_and_grad(after), state, step + 1, (after != x).any()

    begin = (start, *value_and_grad(start), optimizer.init(start), jnp.int32(0), jnp.bool_(True))
    x, value, gradient, _, step, _ = jax.lax.while_loop(unfinished, search, begin)
    return Mode(x, -value, gradient, step, is_flat(x, value, gradient))


def _laplace(log_prob_fn: LogProb, optimizer: Any, num_steps: int, start: Array) -> tuple[LaplaceApproximation, Array]:
    mode = _find_mode(log_prob_fn, optimizer, num_steps, None, start)
    position, decrement = _newton(log_prob_fn, mode.position)
    hessian = -jax.hessian(log_prob_fn)(position)
    factor = _inverse_factor(hessian)
    log_prob = log_prob_fn(position)
    log_evidence = log_prob + 0.5 * start.size * math.log(2 * math.pi) + jnp.log(jnp.diagonal(factor)).sum()
    # The decrement is what a quadratic says that log p still lies below its maximum, in nats.
    converged = decrement <= 10 * jnp.finfo(start.dtype).eps * jnp.maximum(jnp.abs(log_prob), start.size)
    return LaplaceApproximation(position, factor, log_evidence, converged), hessian


def _newton(log_prob_fn: LogProb, start: Array) -> tuple[Array, Array]:
    """(position, Newton decrement g^T H^-1 g / 2) after steps that are halved until log p does not fall.

    Near the mode log p tells positions apart to the root of its rounding only; there the decrement, which goes on falling, does.
    """

    def direction(x):
        gradient = jax.grad(log_prob_fn)(x)
        factor = jnp.linalg.cholesky(-jax.hessian(log_prob_fn)(x))
        step = jax.scipy.linalg.cho_solve((factor, True), gradient)
        return step, 0.5 * jnp.vdot(gradient, step)

    def unfinished(loop):
        _, _, _, decrement, num, improved = loop
        return (num < _NEWTON_STEPS) & improved & (decrement > 0)  # NaN where H is not positive definite

    def move(loop):
        x, value, step, decrement, num, _ = loop
        candidates = jax.vmap(lambda scale: x + scale * step)(0.5 ** jnp.arange(12, dtype=x.dtype))
        values = jax.vmap(log_prob_fn)(candidates)
        rounding = 4 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(value), 1.0)
        first = jnp.argmax(values >= value - rounding)
        after = candidates[first], values[first], *direction(candidates[first])
        improved = (after[1] > value + rounding) | ((after[1] >= value - rounding) & (after[3] < decrement))
        kept = jax.tree.map(lambda new, old: jnp.where(improved, new, old), after, (x, value, step, decrement))
        return *kept, num + 1, improved

    begin = (start, log_prob_fn(start), *direction(start), jnp.int32(0), jnp.bool_(True))
    x, _, _, decrement, _, _ = jax.lax.while_loop(unfinished, move, begin)
    return x, decrement


def _inverse_factor(precision: Array) -> Array:
    """The Cholesky factor of the inverse of a matrix, NaN where it is not positive definite.

    With the order of the coordinates reversed the factor of the precision is upper triangular, U U^T, and U^-T is the one.
    """
    upper = jnp.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(upper, jnp.eye(upper.shape[0], dtype=upper.dtype), trans=1, lower=False)


def _optimizer(optimizer: optax.GradientTransformation | None) -> Any:
    return canonical(optax.lbfgs() if optimizer is None else optimizer)  # equal optimizers share a compilation


def _checked_start(log_prob_fn: LogProb, start: ArrayLike) -> Array:
    check_function(log_prob_fn=log_prob_fn)
    start = check_array("start", start)
    if start.ndim != 1 or not start.size:
        raise ValueError(
            f"start must be a vector, (D,), got shape {start.shape}; jax.flatten_util.ravel_pytree makes one of other positions"
        )
    start = start.astype(jnp.promote_types(start.dtype, jnp.float32))
    shape = jax.eval_shape(log_prob_fn, start)
    if jnp.shape(shape):
        raise ValueError(f"log_prob_fn must return one number for one position, got shape {jnp.shape(shape)}")
    return start
