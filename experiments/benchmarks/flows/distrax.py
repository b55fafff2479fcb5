"""Distrax: a chain of `SplitCoupling` bijectors with Flax MLP conditioners.

Distrax's flow example uses `MaskedCoupling`, which transforms all coordinates and masks half away; `SplitCoupling` computes only
the half that is needed (1.1 to 1.8 times faster here), and its users may choose it as freely, so that one is measured.
"""

from collections.abc import Callable

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.flows.problems import Cell
from experiments.benchmarks.jax_peer import JaxPeer, adam
from experiments.benchmarks.peer import Arrays, Unsupported


class _Conditioner(nn.Module):
    """ReLU MLP with a zero last layer, as in the library's example: (..., d) -> (..., D - d, k)."""

    hidden_sizes: tuple[int, ...]
    num_transformed: int
    num_raw: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for size in self.hidden_sizes:
            x = nn.relu(nn.Dense(size)(x))
        raw = nn.Dense(self.num_transformed * self.num_raw, kernel_init=nn.initializers.zeros)(x)
        return raw.reshape(*raw.shape[:-1], self.num_transformed, self.num_raw)


def _transformer(cell: Cell) -> tuple[int, Callable]:
    """Number of raw parameters per coordinate, and raw -> scalar bijector."""
    if cell.flow == "realnvp":
        return 2, lambda raw: distrax.ScalarAffine(shift=raw[..., 0], log_scale=3.0 * jnp.tanh(raw[..., 1] / 3.0))
    if cell.flow == "nsf":
        return 3 * cell.num_bins + 1, lambda raw: distrax.RationalQuadraticSpline(
            raw, range_min=-cell.bound, range_max=cell.bound, boundary_slopes="identity"
        )
    raise Unsupported(f"distrax has no {cell.flow}")


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The flow; the two halves take turns, layer by layer."""
    num_raw, bijector = _transformer(cell)
    half = cell.dim // 2
    net = _Conditioner((cell.hidden_size,) * 2, half, num_raw)
    keys = jax.random.split(jax.random.key(0), cell.num_layers)
    params = [net.init(key, jnp.zeros((1, half))) for key in keys]

    def dist(params: list) -> distrax.Transformed:
        layers = [
            distrax.SplitCoupling(half, 1, lambda x, p=layer: net.apply(p, x), bijector, swap=bool(i % 2))
            for i, layer in enumerate(params)
        ]
        prior = distrax.MultivariateNormalDiag(jnp.zeros(cell.dim), jnp.ones(cell.dim))
        return distrax.Transformed(prior, distrax.Inverse(distrax.Chain(layers)))

    def round_trip(params: list, key: jax.Array, x: jax.Array) -> jax.Array:
        flow = dist(params).bijector
        return jnp.asarray(flow.forward(flow.inverse(x)))

    functions = {
        "log_prob": jax.jit(lambda params, key, x: dist(params).log_prob(x)),
        "sample": jax.jit(lambda params, key: dist(params).sample(seed=key, sample_shape=(cell.num_samples,))),
        "round_trip": jax.jit(round_trip),
    }
    training = {"train": adam(lambda params, key, batch: -dist(params).log_prob(batch).mean())}
    return JaxPeer(params, arrays["batches"], training, functions)
