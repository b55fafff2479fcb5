"""genmod itself: the public builders, `log_prob`, `sample` and `fit`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import genmod as gm
from experiments.benchmarks.peers import base
from experiments.benchmarks.peers.jax_flow import JaxFlow


def _model(cell: base.Cell) -> Any:
    """The flow at the builders' defaults but for size, depth and bins."""
    sizes = {"event_shape": (cell.dim,), "num_layers": cell.num_layers, "hidden_sizes": cell.hidden_sizes}
    if cell.flow == "realnvp":
        return gm.flows.real_nvp(**sizes)
    if cell.flow == "nsf":
        return gm.flows.neural_spline_flow(**sizes, num_bins=cell.num_bins)
    return gm.flows.masked_autoregressive_flow(**sizes)


def build(cell: base.Cell) -> JaxFlow:
    """The flow; `log_prob` and `sample` are jitted by the library."""
    model = _model(cell)
    params = model.init(jax.random.key(0), base.moons(0, base.BATCH_SIZE, cell.dim))

    def round_trip(params: dict, x: jax.Array) -> jax.Array:
        z, _ = model.bijector.inverse_and_log_det(params["bijector"], x)
        return model.bijector.forward_and_log_det(params["bijector"], z)[0]

    return JaxFlow(
        params,
        loss=lambda params, key, batch: model.loss(params, key, batch)[0],
        log_prob=model.log_prob,
        sample=lambda params, key, num: model.sample(params, key, (num,)),
        round_trip=jax.jit(jax.vmap(round_trip, in_axes=(None, 0))),
    )


def fitter(cell: base.Cell, x: np.ndarray) -> Callable[[int], None]:
    """`fit` with the optimizer object reused and a validation per epoch, as the peer has it."""
    model, optimizer = _model(cell), optax.adam(base.LEARNING_RATE)
    train, validation = x[: -base.FIT_VALIDATION], x[-base.FIT_VALIDATION :]

    def fit(num_epochs: int) -> None:
        result = gm.fit(
            model,
            train,
            key=jax.random.key(1),
            optimizer=optimizer,
            num_steps=num_epochs * base.FIT_STEPS_PER_EPOCH,
            batch_size=base.FIT_BATCH_SIZE,
            validation=validation,
            validate_every=base.FIT_STEPS_PER_EPOCH,
            progress=False,
        )
        jax.block_until_ready(result.params)

    return fit
