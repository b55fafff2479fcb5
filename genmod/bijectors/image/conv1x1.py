"""The invertible 1x1 convolution: one learned matrix in every pixel. Images are (H, W, C)."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.bijectors.base import Bijector
from genmod.bijectors.image.squeeze import image_shape
from genmod.bijectors.permutation import dot
from genmod.core.params import Fixed
from genmod.core.types import Array


@dataclasses.dataclass(frozen=True)
class Conv1x1(Bijector):
    """x = W z in every pixel, W a learned (C, C) matrix started at a random rotation; log_det = H W log |det W|.

    method: "plu", W = P L (U + diag(s)) with P and the signs of s fixed (Kingma & Dhariwal 2018, arXiv:1807.03039, eq. 10),
    log |det W| = sum log |s|; or "free", any W, through slogdet.
    """

    onto_reals = True
    method: Literal["plu", "free"] = "plu"
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        if self.method not in ("plu", "free"):
            raise ValueError(f"method must be 'plu' or 'free', got {self.method!r}")

    def _init(self, key, x, context):
        channels = image_shape(self, x.shape[1:])[-1]
        rotation = jnp.linalg.qr(jax.random.normal(key, (channels, channels), x.dtype))[0]
        return self.from_matrix(rotation)

    def from_matrix(self, matrix: Array) -> dict[str, Any]:
        """The parameters for which W is `matrix`, (C, C). Raises ValueError where it is known to be singular."""
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, (C, C), got shape {matrix.shape}")
        if not isinstance(matrix, Tracer) and np.linalg.matrix_rank(np.asarray(matrix)) < matrix.shape[0]:
            raise ValueError("matrix must be invertible, got a singular one")
        if self.method == "free":
            return {"matrix": matrix}
        permutation, lower, upper = jax.scipy.linalg.lu(matrix)
        diagonal = jnp.diagonal(upper)
        return {
            "pivots": Fixed({"permutation": permutation, "sign": jnp.sign(diagonal)}),
            "lower": jnp.tril(lower, -1),
            "upper": jnp.triu(upper, 1),
            "log_diagonal": jnp.log(jnp.abs(diagonal)),
        }

    def matrix(self, params: Any) -> Array:
        """W, (C, C)."""
        if self.method == "free":
            return params["matrix"]
        lower, upper = self._factors(params)
        return dot(params["pivots"].constant["permutation"], dot(lower, upper))

    def _forward(self, params, z, context):
        return self._apply(params, self.matrix(params), z), self._log_det(params, z)

    def _inverse(self, params, x, context):
        return self._apply(params, self._inverse_matrix(params), x), -self._log_det(params, x)

    def _apply(self, params, matrix, event):
        if image_shape(self, event.shape)[-1] != matrix.shape[0]:
            raise ValueError(f"this Conv1x1 is of {matrix.shape[0]} channels, the event has shape {event.shape}")
        return dot(event.reshape(-1, matrix.shape[0]), matrix.T).reshape(event.shape)

    def _inverse_matrix(self, params):
        if self.method == "free":
            return jnp.linalg.inv(params["matrix"])
        lower, upper = self._factors(params)
        # The inverse of the small matrix, then one product over all pixels.
        order = params["pivots"].constant["permutation"].T
        y = jax.scipy.linalg.solve_triangular(lower, order, lower=True, unit_diagonal=True)
        return jax.scipy.linalg.solve_triangular(upper, y, lower=False)

    def _factors(self, params):
        lower = jnp.tril(params["lower"], -1) + jnp.eye(params["lower"].shape[0], dtype=params["lower"].dtype)
        diagonal = params["pivots"].constant["sign"] * jnp.exp(params["log_diagonal"])
        return lower, jnp.triu(params["upper"], 1) + jnp.diag(diagonal)

    def _log_det(self, params, event):
        pixels = math.prod(event.shape[:-1])
        if self.method == "free":
            return pixels * jnp.linalg.slogdet(params["matrix"])[1]
        return pixels * params["log_diagonal"].sum()
