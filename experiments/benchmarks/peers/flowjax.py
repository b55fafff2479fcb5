"""FlowJAX: `coupling_flow` and `masked_autoregressive_flow`, layers scanned, `fit_to_data`."""

from collections.abc import Callable

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

from experiments.benchmarks.peers import base
from experiments.benchmarks.peers.jax_flow import JaxFlow


def _distribution(cell: base.Cell) -> Transformed:
    """The library's premade flow. A spline of k knots has k + 1 bins."""
    make = masked_autoregressive_flow if cell.flow == "maf" else coupling_flow
    spline = RationalQuadraticSpline(knots=cell.num_bins - 1, interval=cell.bound)
    return make(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(cell.dim)),
        transformer=spline if cell.flow == "nsf" else None,
        flow_layers=cell.num_layers,
        nn_width=cell.hidden_size,
        nn_depth=cell.num_hidden,
    )


def build(cell: base.Cell) -> JaxFlow:
    """The flow, split into params and the rest as the library's own loops do."""
    params, static = eqx.partition(
        _distribution(cell), eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )

    def dist(params: Transformed) -> Transformed:
        return paramax.unwrap(eqx.combine(params, static))

    def round_trip(params: Transformed, x: jax.Array) -> jax.Array:
        bijection = dist(params).bijection
        return jax.vmap(lambda event: bijection.transform(bijection.inverse(event)))(x)

    return JaxFlow(
        params,
        loss=lambda params, key, batch: -dist(params).log_prob(batch).mean(),
        log_prob=jax.jit(lambda params, x: dist(params).log_prob(x)),
        sample=jax.jit(lambda params, key, num: dist(params).sample(key, (num,)), static_argnums=2),
        round_trip=jax.jit(round_trip),
    )


def fitter(cell: base.Cell, x: np.ndarray) -> Callable[[int], None]:
    """`fit_to_data` with the optimizer and loss objects reused, and no early stop."""
    dist, data = _distribution(cell), jnp.asarray(x)
    optimizer, loss_fn = optax.adam(base.LEARNING_RATE), MaximumLikelihoodLoss()

    def fit(num_epochs: int) -> None:
        fitted, _ = fit_to_data(
            jax.random.key(1),
            dist,
            data,
            loss_fn=loss_fn,
            optimizer=optimizer,
            max_epochs=num_epochs,
            max_patience=num_epochs,
            batch_size=base.FIT_BATCH_SIZE,
            val_prop=base.FIT_VALIDATION / len(x),
            show_progress=False,
        )
        jax.block_until_ready(eqx.filter(fitted, eqx.is_array))

    return fit
