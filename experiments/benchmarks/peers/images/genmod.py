"""genmod itself: the public builder, `log_prob` and `sample`."""

import jax
import numpy as np

import genmod as gm
from experiments.benchmarks.peers.images import base
from experiments.benchmarks.peers.jax_flow import JaxFlow


def build(cell: base.Cell, x: np.ndarray) -> JaxFlow:
    """The flow at the builder's defaults but for size and depth; `log_prob` and `sample` are jitted by the library."""
    model = gm.flows.glow(base.IMAGE, cell.num_layers, num_scales=cell.num_scales, hidden_channels=cell.hidden_channels)
    params = jax.block_until_ready(model.init(jax.random.key(0), x))

    def round_trip(params: dict, x: jax.Array) -> jax.Array:
        return model.decode(params, model.encode(params, x))

    flow = JaxFlow(
        params,
        loss=lambda params, key, batch: model.loss(params, key, batch)[0],
        log_prob=model.log_prob,
        sample=lambda params, key, num: model.sample(params, key, (num,)),
        round_trip=round_trip,
    )
    flow.num_params = gm.base.num_params(params)
    return flow
