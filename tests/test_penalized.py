"""A price on parameters: the mode of a posterior in closed form, and a wrapper that changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import genmod as gm
from genmod.densities import Amortized, Factorized, NormalHead
from genmod.models import Flow, Penalized

pytestmark = pytest.mark.usefixtures("quick_compile")
SIGMA, PRIOR_SCALE, NUM = 0.5, 0.7, 40
# y | c ~ N(w . c + b, SIGMA^2), a flow without layers whose base reads the context.
REGRESSION = Flow(gm.bijectors.Chain(()), Amortized(Factorized(NormalHead(SIGMA), (1,)), (3,)))


def weights(params):
    """(w, b) in one vector."""
    return jnp.concatenate([params["base"]["kernel"][0], params["base"]["distribution"]["raw"].reshape(-1)])


def normal_prior(scale, params):
    """-log of N(0, scale^2) of every weight, up to a constant."""
    return 0.5 * jnp.sum(weights(params) ** 2) / scale**2


def test_the_mode_of_a_linear_regression(key, x64):
    rng = np.random.default_rng(0)
    context = rng.standard_normal((NUM, 3))
    y = (context @ np.array([1.0, -2.0, 0.5]) + 0.3 + SIGMA * rng.standard_normal(NUM))[:, None]
    model = Penalized(REGRESSION, gm.call(normal_prior, PRIOR_SCALE), NUM)
    # The loss is quadratic: one step of Newton's method from anywhere ends at its minimum.
    params = jax.tree.map(lambda p: p + 1.0, model.init(key, y, context))
    flat, unravel = ravel_pytree(params)

    def loss(flat):
        return model.loss(unravel(flat), key, (y, context))[0]

    gradient, hessian = jax.grad(loss)(flat), jax.hessian(loss)(flat)
    design = np.concatenate([context, np.ones((NUM, 1))], 1)
    precision = design.T @ design / SIGMA**2 + np.eye(4) / PRIOR_SCALE**2
    wanted = np.linalg.solve(precision, design.T @ y[:, 0] / SIGMA**2)
    np.testing.assert_allclose(weights(unravel(flat - jnp.linalg.solve(hessian, gradient))), wanted, rtol=1e-9)
    # num_data times the loss is the negative log-joint, so its curvature is the precision of the posterior.
    order = np.asarray(weights(unravel(jnp.arange(4.0)))).astype(int)
    np.testing.assert_allclose(NUM * hessian[np.ix_(order, order)], precision, rtol=1e-9)


def test_all_else_is_the_models_own(key):
    model = Penalized(REGRESSION, gm.call(normal_prior, PRIOR_SCALE), NUM)
    context = np.random.default_rng(1).standard_normal((NUM, 3)).astype("f4")
    y = context.sum(1, keepdims=True)
    params = jax.tree.map(lambda p: p + 0.5, model.init(key, y, context))
    loss, metrics = model.loss(params, key, (y, context))
    plain, wanted = REGRESSION.loss(params, key, (y, context))
    np.testing.assert_allclose(metrics["penalty_nats"], normal_prior(PRIOR_SCALE, params) / NUM, rtol=1e-6)
    np.testing.assert_allclose(loss, plain + metrics["penalty_nats"], rtol=1e-6)
    assert set(metrics) == {*wanted, "penalty_nats"}
    twice = Penalized(model, gm.call(normal_prior, 2 * PRIOR_SCALE), NUM)
    np.testing.assert_allclose(
        twice.loss(params, key, (y, context))[1]["penalty_nats"], 1.25 * metrics["penalty_nats"], rtol=1e-6
    )
    for one, other in (
        (model.log_prob(params, y, context), REGRESSION.log_prob(params, y, context)),
        (model.sample(params, key, (), context), REGRESSION.sample(params, key, (), context)),
        (model.sample_and_log_prob(params, key, (), context)[1], REGRESSION.sample_and_log_prob(params, key, (), context)[1]),
        (model.log_prob_with_info(params, y, context)[0], REGRESSION.log_prob(params, y, context)),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert model == Penalized(REGRESSION, gm.call(normal_prior, PRIOR_SCALE), NUM)
    assert gm.describe(model) != gm.describe(twice)
    fit = gm.fit(model, (y, context), key=key, num_steps=3, batch_size=10, progress=False)
    assert fit.history["penalty_nats"][-1] > 0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Penalized(NormalHead(), weights, 4), TypeError, "model must be a Model"),
        (lambda: Penalized(REGRESSION, 0.1, 4), TypeError, "penalty must be a function"),
        (lambda: Penalized(REGRESSION, weights, 0), ValueError, "num_data must be an integer >= 1"),
        (
            lambda: Penalized(REGRESSION, weights, 4).loss(
                REGRESSION.init(jax.random.key(0), np.zeros((2, 1), "f4"), np.zeros((2, 3), "f4")),
                None,
                (np.zeros((2, 1), "f4"), np.zeros((2, 3), "f4")),
            ),
            ValueError,
            r"penalty must be a scalar, got shape \(4,\)",
        ),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
