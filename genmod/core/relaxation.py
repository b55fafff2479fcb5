"""Relaxed draws: smooth functions of logits and noise that tend to draws of a discrete law as the temperature falls to zero.

    gumbel_softmax    softmax((logits + g) / temperature),  g ~ Gumbel(0, 1)
                      (Jang et al. 2016, arXiv:1611.01144, eq. 2; Maddison et al. 2016, arXiv:1611.00712, definition 1)
    binary_concrete   sigmoid((logits + l) / temperature),  l ~ Logistic(0, 1)
                      (Maddison et al. 2016, appendix B)
    straight_through  a hard value with the gradient of a soft one (Bengio et al. 2013, arXiv:1308.3432)

At every temperature the largest entry of a relaxed draw is a draw of the categorical law, and a relaxed bit is above 1/2 with
the probability of the bit. The gradient of a relaxed draw is exact for the relaxed expectation, which is not that of the discrete
law. That of a straight-through draw is exact for neither.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.types import Array, Key


def gumbel_softmax(logits: Array, key: Key, temperature: ArrayLike) -> Array:
    """Relaxed one-hot vectors of the shape of `logits`, (..., K): points of the simplex in the last axis."""
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    return jax.nn.softmax((logits + noise) / temperature)


def binary_concrete(logits: Array, key: Key, temperature: ArrayLike) -> Array:
    """Relaxed bits in (0, 1), of the shape of `logits`, whose entries are those of the bits being one."""
    noise = jax.random.logistic(key, logits.shape, logits.dtype)
    return jax.nn.sigmoid((logits + noise) / temperature)


def straight_through(hard: Array, soft: Array) -> Array:
    """`hard`, exactly, with the gradient of `soft`, in the dtype of `soft`.

    The gradient has a bias that no number of draws removes. Of a bit b ~ Bernoulli(s) with soft = s the derivative in s is
    E[f'(b)] in the place of f(1) - f(0): the same for linear f, of another sign for some that are not.
    """
    return jax.lax.stop_gradient(hard.astype(soft.dtype)) + (soft - jax.lax.stop_gradient(soft))


def one_hot_of_largest(soft: Array) -> Array:
    """The one-hot vectors, (..., K), of the largest entries in the last axis."""
    return jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1], dtype=soft.dtype)
