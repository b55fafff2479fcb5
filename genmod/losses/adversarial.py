"""Adversarial losses: what the outputs D of a critic cost it, and the generator whose samples it sees.

    critic      E_data[data_fn(D(x))] + E_model[samples_fn(D(x))] + penalties
    generator   E_model[generator_fn(D(x))]

                      data_fn         samples_fn     generator_fn    best D         paper
    MINIMAX           softplus(-D)    softplus(D)    -softplus(D)    log p/q        Goodfellow et al. 2014, arXiv:1406.2661, eq. 1
    NON_SATURATING    softplus(-D)    softplus(D)    softplus(-D)    log p/q        the same, sec. 3
    LEAST_SQUARES     (D - 1)^2 / 2   D^2 / 2        (D - 1)^2 / 2   p / (p + q)    Mao et al. 2017, arXiv:1611.04076, eq. 9
    HINGE             (1 - D)_+       (1 + D)_+      -D              sign(p - q)    Miyato et al. 2018, arXiv:1802.05957, eq. 16
    WASSERSTEIN       -D              D              -D              a potential    Arjovsky et al. 2017, arXiv:1701.07875, eq. 3

p is the law of the data and q that of the samples. D is a logit: the critic's probability of "data" is sigmoid(D). At its best
the critic of the first two has the loss -V = 2 log 2 - JS nats, with JS = KL(p || m) + KL(q || m), m = (p + q) / 2, without
halves. The hinge is also that of Lim & Ye 2017, arXiv:1705.02894. Wasserstein wants a critic of bounded slope, by a penalty.

A **penalty** is what one pair of a datum and a sample costs the critic besides: `gradient_penalty`, `r1_penalty`, or any function
(critic_fn, key, x, sample) -> a scalar, with other settings by `gm.call(gradient_penalty, coefficient=1.0)`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from genmod.core.batching import row_keys, vmap_events
from genmod.core.checks import check, check_function
from genmod.core.description import Description
from genmod.core.keys import check_key
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Context, Key

Scalar = Callable[[Array], Array]
Critic = Callable[[Array, Context], Array]
Penalty = Callable[[Scalar, Key, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class AdversarialLoss(Description):
    """Three functions of an output D of the critic: its cost on data and on samples, and that of the generator."""

    data_fn: Scalar
    samples_fn: Scalar
    generator_fn: Scalar

    def __post_init__(self):
        check_function(data_fn=self.data_fn, samples_fn=self.samples_fn, generator_fn=self.generator_fn)
        super().__post_init__()


def critic_loss(
    loss: AdversarialLoss,
    critic_fn: Critic,
    x: Array,
    samples: Array,
    context: Context = None,
    *,
    key: Key | None = None,
    penalties: Sequence[Penalty] = (),
    weight: Array | None = None,
    sample_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """(the critic's loss, the means of D on data and on samples, and that of the penalties); means over rows.

    Args:
      loss: one of this module. critic_fn: (x, context) of ONE event -> D, a scalar.
      x, samples: data and samples, (n,) + event shape each; with penalties as many of both.
      context: of the rows of both, (n,) + its shape; None: critic_fn gets None.
      key: of penalties that draw. penalties: functions of ONE pair of a datum and a sample.
      weight, sample_weight: of the rows of x and of samples, (n,); None: the same for all.

    Raises ValueError for a critic or a penalty whose output is no scalar, and for pairs that do not match; TypeError where a
    penalty draws and there is no key.
    """
    on_data, on_samples = (_outputs(critic_fn, rows, context) for rows in (x, samples))
    total = mean_and_sem(loss.data_fn(on_data), weight)[0] + mean_and_sem(loss.samples_fn(on_samples), sample_weight)[0]
    metrics = {"on_data": mean_and_sem(on_data, weight)[0], "on_samples": mean_and_sem(on_samples, sample_weight)[0]}
    if not penalties:
        return total, metrics
    check(x.shape == samples.shape, f"penalties want as many samples as data, got shapes {samples.shape} and {x.shape}")

    def price(x, sample, context, key):
        keys = [None] * len(penalties) if key is None else jax.random.split(key, len(penalties))
        pairs = zip(penalties, keys, strict=True)
        prices = [penalty(lambda x: critic_fn(x, context), own, x, sample) for penalty, own in pairs]  # type: ignore[arg-type]
        for i, own in enumerate(prices):
            check(jnp.shape(own) == (), f"penalties[{i}] must return one number for ONE pair, got shape {jnp.shape(own)}")
        return sum(prices)

    axes = (0, 0, None if context is None else 0, None if key is None else 0)
    penalty, _ = mean_and_sem(vmap_events(price, axes)(x, samples, context, row_keys(key, x.shape[0])), weight)
    return total + penalty, metrics | {"penalty": penalty}


def generator_loss(
    loss: AdversarialLoss,
    critic_fn: Critic,
    samples: Array,
    context: Context = None,
    *,
    sample_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """(the generator's loss, no metrics), a mean over the samples.

    Args:
      loss: one of this module. critic_fn: (x, context) of ONE event -> D, a scalar.
      samples: of the generator, through which the gradient goes, (n,) + event shape. context, sample_weight: of the rows.
    """
    return mean_and_sem(loss.generator_fn(_outputs(critic_fn, samples, context)), sample_weight)[0], {}


def gradient_penalty(
    critic_fn: Scalar, key: Key, x: Array, sample: Array, *, coefficient: float = 10.0, target: float = 1.0
) -> Array:
    """coefficient (|grad D(y)| - target)^2 at ONE y, uniform between a datum and a sample (Gulrajani et al. 2017,
    arXiv:1704.00028, eq. 3). Of a linear critic w.x it is coefficient (|w| - target)^2."""
    share = jax.random.uniform(check_key(key), dtype=x.dtype)
    square = _slope_square(critic_fn, x + share * (sample - x))
    # The norm has no derivative at 0, where a critic whose last layer is zero begins.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return coefficient * (norm - target) ** 2


def r1_penalty(critic_fn: Scalar, key: Key | None, x: Array, sample: Array, *, coefficient: float = 10.0) -> Array:
    """coefficient / 2 |grad D(x)|^2 at ONE datum (Mescheder et al. 2018, arXiv:1801.04406, eq. 9)."""
    return coefficient / 2 * _slope_square(critic_fn, x)


def _slope_square(critic_fn: Scalar, x: Array) -> Array:
    return jnp.sum(jax.grad(critic_fn)(x) ** 2)


def _outputs(critic_fn: Critic, rows: Array, context: Context) -> Array:
    outputs = vmap_events(critic_fn, (0, None if context is None else 0))(rows, context)
    check(outputs.ndim == 1, f"critic_fn must return one number for ONE event, got shape {outputs.shape[1:]}")
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _softplus_of_negative(d: Array) -> Array:
    return jax.nn.softplus(-d)


def _negative_softplus(d: Array) -> Array:
    return -jax.nn.softplus(d)


def _square_from_one(d: Array) -> Array:
    return 0.5 * (d - 1) ** 2


def _square(d: Array) -> Array:
    return 0.5 * d**2


def _below_one(d: Array) -> Array:
    return jax.nn.relu(1 - d)


def _above_minus_one(d: Array) -> Array:
    return jax.nn.relu(1 + d)


def _negative(d: Array) -> Array:
    return -d


def _itself(d: Array) -> Array:
    return d


MINIMAX = AdversarialLoss(_softplus_of_negative, jax.nn.softplus, _negative_softplus)
NON_SATURATING = AdversarialLoss(_softplus_of_negative, jax.nn.softplus, _softplus_of_negative)
LEAST_SQUARES = AdversarialLoss(_square_from_one, _square, _square_from_one)
HINGE = AdversarialLoss(_below_one, _above_minus_one, _negative)
WASSERSTEIN = AdversarialLoss(_negative, _itself, _negative)
