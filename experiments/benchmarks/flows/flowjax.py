"""FlowJAX: `coupling_flow` and `masked_autoregressive_flow`, layers scanned, `fit_to_data`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal, Transformed
from flowjax.flows import coupling_flow, masked_autoregressive_flow
from flowjax.train import fit_to_data
from flowjax.train.losses import MaximumLikelihoodLoss

from experiments.benchmarks.flows.problems import EPOCHS, FIT_BATCH_SIZE, Cell, fit_data
from experiments.benchmarks.jax_peer import JaxPeer, adam
from experiments.benchmarks.peer import LEARNING_RATE, Arrays, Unsupported


def _distribution(cell: Cell) -> Transformed:
    """The library's premade flow. A spline of k knots has k + 1 bins."""
    if cell.flow == "glow":
        raise Unsupported("flowjax has no glow")
    make = masked_autoregressive_flow if cell.flow == "maf" else coupling_flow
    spline = RationalQuadraticSpline(knots=cell.num_bins - 1, interval=cell.bound) if cell.flow == "nsf" else None
    sizes = {"flow_layers": cell.num_layers, "nn_width": cell.hidden_size, "nn_depth": 2}
    return make(jax.random.key(0), base_dist=Normal(jnp.zeros(cell.dim)), transformer=spline, **sizes)


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The flow, split into params and the rest as the library's own loops do."""
    whole = _distribution(cell)
    params, static = eqx.partition(whole, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))
    reused = {"optimizer": optax.adam(LEARNING_RATE), "loss_fn": MaximumLikelihoodLoss()}

    def dist(params: Transformed) -> Transformed:
        return paramax.unwrap(eqx.combine(params, static))

    def round_trip(params: Transformed, key: jax.Array, x: jax.Array) -> jax.Array:
        bijection = dist(params).bijection
        return jax.vmap(lambda event: bijection.transform(bijection.inverse(event)))(x)

    def fit(num_epochs: int) -> Any:
        """`fit_to_data` with the optimizer and loss objects reused, and no early stop."""
        train, validation, _ = fit_data(arrays)
        x = jnp.asarray(np.concatenate([train, validation]))
        length = {"max_epochs": num_epochs, "max_patience": num_epochs, "val_prop": len(validation) / len(x)}
        fitted, _ = fit_to_data(jax.random.key(1), whole, x, **reused, **length, batch_size=FIT_BATCH_SIZE, show_progress=False)
        return eqx.filter(fitted, eqx.is_array)

    functions = {
        "log_prob": jax.jit(lambda params, key, x: dist(params).log_prob(x)),
        "sample": jax.jit(lambda params, key: dist(params).sample(key, (cell.num_samples,))),
        "round_trip": jax.jit(round_trip),
        **{op: lambda params, key, num=num: fit(num) for op, num in EPOCHS.items()},
    }
    training = {"train": adam(lambda params, key, batch: -dist(params).log_prob(batch).mean())}
    return JaxPeer(params, arrays["batches"], training, functions)
