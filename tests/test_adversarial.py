"""Adversarial losses and networks, against closed forms and quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod import losses
from genmod.models import GAN
from genmod.nets import MLP, FlatNet

# p = N(0, 1) and q = N(1, 1) by quadrature; log p/q = 1/2 - x.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def expected_critic_loss(loss, critic_fn):
    return losses.critic_loss(
        loss, lambda x, _: critic_fn(x), jnp.asarray(NODES), jnp.asarray(NODES + 1), weight=WEIGHTS, sample_weight=WEIGHTS
    )[0]


# --- losses -----------------------------------------------------------------------------------------------------------------


def test_the_value_of_the_game_at_the_best_critic(x64):
    """V = -1.163451 and JS = 2 log 2 + V, in the form without halves."""
    value = -expected_critic_loss(losses.MINIMAX, lambda x: 0.5 - x)
    np.testing.assert_allclose(value, -1.163451, atol=1e-6)
    log_p, log_q = (lambda x, m=m: -0.5 * (x - m) ** 2 for m in (0.0, 1.0))
    js = sum(
        np.sum(WEIGHTS * (own(x) - np.logaddexp(log_p(x), log_q(x)) + np.log(2)))
        for own, x in ((log_p, NODES), (log_q, NODES + 1))
    )
    np.testing.assert_allclose(2 * np.log(2) + value, js, atol=1e-8)


@pytest.mark.parametrize(
    ("loss", "best"),
    [
        (losses.MINIMAX, lambda x: 0.5 - x),
        (losses.NON_SATURATING, lambda x: 0.5 - x),
        (losses.LEAST_SQUARES, lambda x: jax.nn.sigmoid(0.5 - x)),
    ],
    ids=["minimax", "non_saturating", "least_squares"],
)
def test_the_best_critic_has_no_slope_in_any_direction(loss, best, x64):
    """exp(D) = p/q, or D = p / (p + q)."""
    for direction in (jnp.ones_like, jnp.sin, lambda x: x**2):

        def cost(eps, direction=direction):
            return expected_critic_loss(loss, lambda x: best(x) + eps * direction(x))

        assert abs(jax.grad(cost)(0.0)) < 1e-7
        assert cost(0.1) > cost(0.0) < cost(-0.1)


def test_the_penalty_of_a_linear_critic(key):
    """coefficient (|w| - 1)^2 for each pair, wherever the point between them lies; of r1 coefficient / 2 |w|^2."""
    w, rows = jnp.array([1.0, -2.0, 2.0]), jax.random.normal(key, (2, 5, 3))
    critic_fn = functools.partial(jnp.dot, w)
    penalties = jax.vmap(functools.partial(losses.gradient_penalty, critic_fn, key))(*rows)
    np.testing.assert_allclose(penalties, 10.0 * (3.0 - 1.0) ** 2, rtol=1e-5)
    np.testing.assert_allclose(losses.r1_penalty(critic_fn, None, rows[0, 0], rows[1, 0], coefficient=2.0), 9.0, rtol=1e-5)
    critic = {"key": key, "penalties": (losses.gradient_penalty,)}
    _, metrics = losses.critic_loss(losses.WASSERSTEIN, lambda x, _: w @ x, *rows, **critic)
    np.testing.assert_allclose(metrics["penalty"], 40.0, rtol=1e-5)


def test_a_flat_critic_has_a_penalty_with_a_gradient(key):
    slope = jax.grad(lambda w: losses.gradient_penalty(lambda x: w @ x, key, jnp.ones(2), jnp.zeros(2)))(jnp.zeros(2))
    assert jnp.isfinite(slope).all()


# --- networks ---------------------------------------------------------------------------------------------------------------


def test_a_critic_of_the_wrong_shape_is_refused(key):
    wrong = GAN((2,), gm.densities.Normal((2,)), FlatNet(MLP((8,)), 2), FlatNet(MLP((8,)), 3))
    with pytest.raises(ValueError, match=r"the critic must give one number for ONE event, got \(3,\)"):
        wrong.init(key, jnp.zeros((4, 2)))


def test_spectral_bound_by_the_singular_values(key):
    """After training the kernels that the critic uses have a largest singular value of the bound; NumPy finds it."""
    gan = GAN((2,), gm.densities.Normal((2,)), FlatNet(MLP((8,)), 2), FlatNet(MLP((8,)), 1), losses.HINGE, spectral_bound=2.0)
    x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    fit = gm.fit(gan, x, key=key, num_steps=60, batch_size=32, optimizer=gm.call(optax.adam, 1e-2), progress=False)
    used = gan._critic_network(fit.params)
    largest = [np.linalg.svd(a, compute_uv=False)[0] for a in jax.tree.leaves(used) if a.ndim == 2]
    np.testing.assert_allclose(largest, 2.0, rtol=0.02)
    assert gan.sample(fit.params, key, (5,)).shape == (5, 2) and np.isfinite(fit.history["critic_loss"]).all()
