"""genmod itself: the public builders, `log_prob`, `sample` and `fit`."""

from typing import Any

import jax
import optax

import genmod as gm
from experiments.benchmarks.flows.problems import EPOCHS, FIT_BATCH_SIZE, Cell, fit_data
from experiments.benchmarks.jax_peer import JaxPeer, adam
from experiments.benchmarks.peer import LEARNING_RATE, Arrays


def _model(cell: Cell) -> Any:
    """The flow at the builders' defaults but for size, depth and bins."""
    if cell.flow == "glow":
        return gm.flows.glow(cell.event_shape, cell.num_layers, num_scales=2, hidden_channels=cell.hidden_size)
    sizes = {"event_shape": cell.event_shape, "num_layers": cell.num_layers, "hidden_sizes": (cell.hidden_size,) * 2}
    if cell.flow == "nsf":
        return gm.flows.neural_spline_flow(**sizes, num_bins=cell.num_bins)
    return (gm.flows.real_nvp if cell.flow == "realnvp" else gm.flows.masked_autoregressive_flow)(**sizes)


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The flow; `log_prob` and `sample` are jitted by the library."""
    model, optimizer = _model(cell), optax.adam(LEARNING_RATE)
    params = model.init(jax.random.key(0), arrays["batches"][0])

    def round_trip(params: dict, key: jax.Array, x: jax.Array) -> jax.Array:
        z, _ = model.bijector.inverse_and_log_det(params["bijector"], x)
        return model.bijector.forward_and_log_det(params["bijector"], z)[0]

    def fit(num_epochs: int) -> Any:
        """`fit` with the optimizer object reused and a validation per epoch, as the peer has it."""
        train, validation, steps = fit_data(arrays)
        data = {"validation": validation, "validate_every": steps, "batch_size": FIT_BATCH_SIZE, "num_steps": num_epochs * steps}
        return gm.fit(model, train, key=jax.random.key(1), optimizer=optimizer, progress=False, **data).params

    functions = {
        "log_prob": lambda params, key, x: model.log_prob(params, x),
        "sample": lambda params, key: model.sample(params, key, (cell.num_samples,)),
        "round_trip": jax.jit(jax.vmap(round_trip, in_axes=(None, None, 0))),
        **{op: lambda params, key, num=num: fit(num) for op, num in EPOCHS.items()},
    }
    training = {"train": adam(lambda params, key, batch: model.loss(params, key, batch)[0])}
    return JaxPeer(params, arrays["batches"], training, functions, num_params=gm.num_params(params))
