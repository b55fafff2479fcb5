"""What a critic knows of p/q corrects the samples of a generator q that can only be drawn from.

All samplers of this package take densities up to a constant; relative to q the density of q is 1, and that of p the ratio p/q:

    sample_fn = lambda key: gan.sample_one(params, key)
    calibration = platt_calibration(gan.judge(params, held_out), gan.judge(params, samples))
    log_ratio_fn = lambda x: calibration(gan.judge_one(params, x))          # log p/q, up to a constant
    proposal = relative_proposal(sample_fn)

    Metropolis-Hastings GAN (Turner et al. 2019, arXiv:1811.11357): chains that begin at data
        moved(key, independence(log_ratio_fn, *proposal), held_out, num_steps=640)
    discriminator rejection sampling (Azadi et al. 2019, arXiv:1810.06758)
        accept_fn = shifted_acceptance(log_ratio_fn, jax.vmap(log_ratio_fn)(samples))
        rejection_sample(key, accept_fn, proposal.sample_and_log_prob_fn, 0.0, num_draws=1_000)
    sampling-importance-resampling
        draws = importance_sample(key, log_ratio_fn, proposal.sample_and_log_prob_fn, 10_000)
        sampling_importance_resampling(key_2, draws, 1_000)

With the true ratio all draw from p, as far as q reaches it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from genmod.core.checks import check, check_array, check_function
from genmod.core.types import Array, Key
from genmod.samplers.adapters import Proposal
from genmod.samplers.base import Position, scalar_fn

_NEWTON_STEPS = 50
_HALVINGS = 12


def relative_proposal(sample_fn: Callable[[Key], Position]) -> Proposal:
    """The proposal that draws by `sample_fn`, key -> ONE position, with densities relative to its own law: its log q is 0.

    The log_prob_fn that goes with it is log p/q. Raises TypeError for what is no function.
    """
    check_function(sample_fn=sample_fn)
    return Proposal(lambda key: (sample_fn(key), jnp.zeros(())), lambda position: jnp.zeros(()))


def shifted_acceptance(
    log_ratio_fn: Callable[[Position], Array], log_ratios: Array, *, percentile: float | None = 95.0
) -> Callable[[Position], Array]:
    """position -> the log of the probability with which discriminator rejection sampling accepts it: log sigmoid(F).

        a = log p/q - log M,    F = a - log(1 - exp a) - gamma                  (Azadi et al. 2019, arXiv:1810.06758)

    A rejection sampler with log_bound = 0 accepts so. With gamma = 0 the probability is exp a, where the draws are those of p;
    gamma > 0 accepts less of all and keeps the order. A ratio above M counts as one of M.

    Args:
      log_ratio_fn: log p/q of one position, up to a constant. log_ratios: its values at draws of q, (n,), whose largest is log M.
      percentile: gamma is that of F at these draws, so that they are accepted with 1/2 there; None: gamma = 0.

    Raises ValueError for ratios of another shape, or not finite, and a percentile outside (0, 100); TypeError for what is no
    function.
    """
    log_ratio_fn, log_ratios = scalar_fn("log_ratio_fn", log_ratio_fn), _finite("log_ratios", log_ratios)
    log_bound = log_ratios.max()

    def odds(log_ratio):
        below = jnp.minimum(log_ratio - log_bound, -jnp.finfo(log_ratios.dtype).eps)
        return below - jnp.log(-jnp.expm1(below))

    if percentile is None:
        shift = jnp.zeros(())
    else:
        check(0 < percentile < 100, f"percentile must be in (0, 100) or None, got {percentile}")
        shift = jnp.percentile(odds(log_ratios), percentile)
    return lambda position: jax.nn.log_sigmoid(odds(log_ratio_fn(position)) - shift)


class Calibration(NamedTuple):
    """log p/q ~ scale D + offset, in nats. Call it with outputs D of the critic, of any shape."""

    scale: Array
    offset: Array

    def __call__(self, outputs: Array) -> Array:
        return self.scale.astype(outputs.dtype) * outputs + self.offset.astype(outputs.dtype)


def platt_calibration(on_data: Array, on_samples: Array) -> Calibration:
    """The logistic regression of "data" against "sample" on the outputs of any critic, that of a hinge or a Wasserstein loss too.

    By Newton's method, with the targets of Platt (1999), by which outputs that are separated have a finite scale; those that are
    all the same, which tell nothing, have the scale 0. The logit of the regression is log p/q plus log of the ratio of the
    numbers of rows, which is taken off.

    Args:
      on_data, on_samples: D at data and at samples that the critic was not trained on, (n,) and (m,).

    Raises ValueError for outputs of another shape or not finite.
    """
    on_data, on_samples = _finite("on_data", on_data), _finite("on_samples", on_samples)
    return _platt(on_data, on_samples)


@jax.jit
def _platt(on_data: Array, on_samples: Array) -> Calibration:
    n, m = on_data.shape[0], on_samples.shape[0]
    outputs = jnp.concatenate([on_data, on_samples])
    # By their range: the mean of equal numbers is rounded, and then they have a standard deviation.
    differ = outputs.max() - outputs.min() > 4 * jnp.finfo(outputs.dtype).eps * jnp.abs(outputs).max()
    mean, spread = outputs.mean(), jnp.where(differ, outputs.std(), 1.0)
    unit = jnp.where(differ, (outputs - mean) / spread, 0.0)
    targets = jnp.concatenate([jnp.full(n, (n + 1) / (n + 2)), jnp.full(m, 1 / (m + 2))]).astype(outputs.dtype)

    def loss(w):
        logits = w[0] * unit + w[1]
        return jnp.mean(jax.nn.softplus(logits) - targets * logits)

    def step(w, _):
        hessian = jax.hessian(loss)(w)
        move = jnp.linalg.solve(hessian + 1e-6 * jnp.trace(hessian) * jnp.eye(2), -jax.grad(loss)(w))
        lengths = jnp.concatenate([jnp.zeros(1), 0.5 ** jnp.arange(_HALVINGS)])
        tried = w[None] + lengths[:, None] * move[None]
        return tried[jnp.argmin(jax.vmap(loss)(tried))], None  # the loss is convex, and never rises

    (scale, offset), _ = jax.lax.scan(step, jnp.zeros(2, outputs.dtype), length=_NEWTON_STEPS)
    return Calibration(scale / spread, offset - scale * mean / spread - jnp.log(n / m))


def calibration_z(on_data: Array, on_samples: Array) -> Array:
    """Whether log-ratios are calibrated: then Z is about N(0, 1) (the test of Turner et al. 2019, arXiv:1811.11357).

    Z = (n - sum c) / sqrt(n var c(data) + m var c(samples)),    c = sigmoid(log p/q + log n/m)

    c is the probability of "data" among n + m rows, and sum c has the mean n. The variance is that for given n and m; the one in
    the paper, sum c (1 - c), is of numbers that are drawn too, and larger.

    Args:
      on_data, on_samples: log p/q at data and at samples of which neither critic nor calibration knows, (n,) and (m,), n, m > 1.

    Raises ValueError for values of another shape, not finite, or one alone.
    """
    on_data, on_samples = _finite("on_data", on_data), _finite("on_samples", on_samples)
    n, m = on_data.shape[0], on_samples.shape[0]
    check(min(n, m) > 1, f"on_data and on_samples must hold two values or more, got {n} and {m}: one has no variance")
    shares = [jax.nn.sigmoid(values + jnp.log(n / m)) for values in (on_data, on_samples)]
    variance = sum((share.shape[0] * share.var(ddof=1) for share in shares), jnp.zeros(()))
    return (n - shares[0].sum() - shares[1].sum()) / jnp.sqrt(jnp.maximum(variance, jnp.finfo(variance.dtype).tiny))


def _finite(name: str, values: Array) -> Array:
    values = check_array(name, values)
    check(values.ndim == 1 and values.shape[0] > 0, f"{name} must have shape (n,), n >= 1, got {values.shape}")
    if not isinstance(values, Tracer):
        check(bool(jnp.isfinite(values).all()), f"{name} must be finite, got NaN or inf")
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
