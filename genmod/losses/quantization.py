"""Vector quantisation: features become the nearest codes of a codebook (van den Oord et al. 2017, arXiv:1711.00937).

    k(h) = argmin_k |h - e_k|^2,   values e_k(h)
    codebook   |sg(h) - e_k(h)|^2        moves codes, to the mean of the features that they stand for
    commitment |h - sg(e_k(h))|^2        moves features                                                     (eq. 3)

sg stops the gradient. What reads the values sends its gradient to the features unchanged, as if they had not been quantised.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.relaxation import straight_through
from genmod.core.types import Array


class Quantized(NamedTuple):
    """Features by their codes.

    Attributes:
      codes: integers, of the leading axes of the features. values: the codes' vectors, with the gradient of the features.
      codebook: the squared distance, summed, with the gradient of the codebook. commitment: the same number, with that of the
        features. Both in squared units of the features.
    """

    codes: Array
    values: Array
    codebook: Array
    commitment: Array


def nearest_codes(features: Array, codebook: Array) -> Array:
    """The number of the nearest code, in the Euclidean distance, of every feature: (..., D) and (K, D) give integers (...,)."""
    # |h|^2 is the same for all codes. Without the codes' mean the products are small, and keep their digits.
    mean = codebook.mean(0)
    rows, centred = features.reshape(-1, codebook.shape[1]) - mean[None], codebook - mean[None]
    products = jnp.matmul(rows, centred.T, precision="highest")
    return jnp.argmin(jnp.sum(centred**2, 1)[None] - 2.0 * products, 1).reshape(features.shape[:-1])


def vector_quantization(features: Array, codebook: Array) -> Quantized:
    """Features (..., D) by the nearest codes of a codebook (K, D).

    Raises ValueError for another last axis of the features.
    """
    if codebook.ndim != 2 or features.shape[-1:] != codebook.shape[1:]:
        raise ValueError(f"features must end in the axis of the codebook (K, D), got {features.shape} and {codebook.shape}")
    codes = nearest_codes(*jax.lax.stop_gradient((features, codebook)))
    values = codebook[codes]
    return Quantized(
        codes,
        straight_through(values, features),
        jnp.sum((jax.lax.stop_gradient(features) - values) ** 2),
        jnp.sum((features - jax.lax.stop_gradient(values)) ** 2),
    )


def code_usage(codes: Array, num_codes: int, weight: Array | None = None) -> tuple[Array, Array]:
    """(perplexity, share of codes used) of integers codes (n, ...): exp of the entropy of their frequencies, num_codes where all
    are equally frequent.

    Args:
      codes: below num_codes. weight: of the rows, (n,), any real numbers, integers or booleans; None: all equal.
    """
    weight = jnp.ones(codes.shape[0]) if weight is None else jnp.asarray(weight)
    weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))  # of integers or booleans there is no share
    each = jnp.broadcast_to(weight.reshape(-1, *(1,) * (codes.ndim - 1)), codes.shape)
    counts = jnp.zeros(num_codes, each.dtype).at[codes.reshape(-1)].add(each.reshape(-1))
    share = counts / jnp.maximum(counts.sum(), jnp.finfo(counts.dtype).tiny)
    return jnp.exp(jax.scipy.special.entr(share).sum()), (share > 0).mean()
