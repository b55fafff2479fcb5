"""Adversarial losses and networks, against closed forms and quadrature."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod import losses
from genmod.models import GAN
from genmod.nets import MLP, ConvDecoder, ConvEncoder, FlatNet
from genmod.training import GameStep, Player

X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)

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


IMAGE = GAN(
    (4, 4, 1),
    gm.densities.Normal((2,)),
    nn.Sequential((ConvDecoder((4, 4, 1), channels=(2,)), lambda x: x.astype(jnp.bfloat16))),
    nn.Sequential((ConvEncoder((2,), 3, dtype=jnp.bfloat16), nn.Dense(1, dtype=jnp.bfloat16))),
    spectral_bound=1.0,
)


def test_networks_of_images_in_half_precision(key):
    """What they give is in float32, or samples and data were chains of two kinds."""
    x = jnp.zeros((3, 4, 4, 1))
    params = jax.eval_shape(IMAGE.init, key, x)
    assert len(params["critic"]["vectors"].tree) == 3
    sample, judged = jax.eval_shape(lambda params: (IMAGE.sample_one(params, key), IMAGE.judge_one(params, x[0])), params)
    assert sample.dtype == judged.dtype == jnp.float32 and sample.shape == (4, 4, 1)
    with pytest.raises(ValueError, match=r"got \(3,\); gm.nets.FlatNet\(body, 1\) does, behind convolutions nn.Sequential"):
        dataclasses.replace(IMAGE, critic=ConvEncoder((2,), 3)).init(key, x)


def test_spectral_bound_by_the_singular_values(key):
    """After training the kernels that the critic uses have a largest singular value of the bound; NumPy finds it."""
    gan = GAN((2,), gm.densities.Normal((2,)), FlatNet(MLP((8,)), 2), FlatNet(MLP((8,)), 1), losses.HINGE, spectral_bound=2.0)
    x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    fit = gm.fit(gan, x, key=key, num_steps=60, batch_size=32, optimizer=gm.call(optax.adam, 1e-2), progress=False)
    used = gan._critic_network(fit.params)
    largest = [np.linalg.svd(a, compute_uv=False)[0] for a in jax.tree.leaves(used) if a.ndim == 2]
    np.testing.assert_allclose(largest, 2.0, rtol=0.02)
    assert gan.sample(fit.params, key, (5,)).shape == (5, 2) and np.isfinite(fit.history["critic_loss"]).all()


# --- more of the losses -----------------------------------------------------------------------------------------------------


def test_the_best_critic_of_the_hinge_is_the_sign():
    for p, q in ((0.3, 0.1), (0.2, 0.9)):
        d = np.linspace(-3, 3, 601)
        cost = p * losses.HINGE.data_fn(jnp.asarray(d)) + q * losses.HINGE.samples_fn(jnp.asarray(d))
        np.testing.assert_allclose(d[np.argmin(cost)], np.sign(p - q), atol=1e-6)


def test_what_the_generator_pays():
    d = jnp.array([-30.0, -0.4, 1.7])
    for loss in (losses.MINIMAX, losses.WASSERSTEIN):  # the games of zero sum
        np.testing.assert_array_equal(loss.generator_fn(d), -loss.samples_fn(d))
    slopes = {loss: jax.vmap(jax.grad(loss.generator_fn))(d) for loss in (losses.MINIMAX, losses.NON_SATURATING)}
    np.testing.assert_allclose(slopes[losses.MINIMAX], -jax.nn.sigmoid(d), rtol=1e-6)  # none where the critic is sure
    np.testing.assert_allclose(slopes[losses.NON_SATURATING], jax.nn.sigmoid(d) - 1, rtol=1e-6)
    np.testing.assert_allclose(losses.LEAST_SQUARES.generator_fn(d), 0.5 * (d - 1) ** 2)
    weight = jnp.array([0.0, 1.0, 3.0])
    value, metrics = losses.generator_loss(losses.HINGE, lambda x, context: x + context, d, 2 * d, sample_weight=weight)
    np.testing.assert_allclose(value, -3 * (-0.4 + 3 * 1.7) / 4, rtol=1e-6)
    assert metrics == {}


def test_the_gradient_penalty_looks_between_the_pair(key):
    """D = |x|^2 / 2 has the slope |y|: the mean of (|y| - 1)^2 over the segment from 3 to -1, by quadrature."""

    def penalty(key):
        ends = jnp.array([3.0]), jnp.array([-1.0])
        return losses.gradient_penalty(lambda x: 0.5 * jnp.sum(x**2), key, *ends, coefficient=1.0)

    found = np.asarray(jax.vmap(penalty)(jax.random.split(key, 4_000)))
    exact = np.mean((np.abs(np.linspace(-1, 3, 100_001)) - 1) ** 2)
    assert abs(found.mean() - exact) < 4.5 * found.std() / np.sqrt(len(found))
    assert found.max() < 4.0 + 1e-5


def test_contexts_weights_and_penalties_of_a_batch():
    """A row of weight two is two rows; the critic sees the context of its row."""
    samples, context = X[::-1] + 1.0, X[:, 0] > 0
    twice = np.concatenate([np.arange(64), np.arange(0, 64, 2)])
    weight = 1.0 + (np.arange(64) % 2 == 0)

    def critic(x, context):
        return jnp.where(context, 1.0, -2.0) * jnp.sum(x**2)

    def found(rows, weight=None):
        weights = {} if weight is None else {"weight": jnp.asarray(weight), "sample_weight": jnp.asarray(weight)}
        options = {"penalties": (losses.r1_penalty,)} | weights
        return losses.critic_loss(losses.HINGE, critic, X[rows], samples[rows], context[rows], **options)

    once, again = found(np.arange(64), weight), found(twice)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), once, again)
    slopes = np.where(context, 2.0, -4.0)[:, None] * X
    np.testing.assert_allclose(once[1]["penalty"], np.average(5 * (slopes**2).sum(1), weights=weight), rtol=1e-5)


def test_losses_refuse():
    with pytest.raises(ValueError, match=r"^critic_fn must return one number for ONE event, got shape \(2,\)$"):
        losses.critic_loss(losses.HINGE, lambda x, context: x, X, X)
    with pytest.raises(ValueError, match=r"^penalties want as many samples as data, got shapes \(3, 2\) and \(64, 2\)$"):
        losses.critic_loss(losses.HINGE, lambda x, context: x.sum(), X, X[:3], penalties=(losses.r1_penalty,))
    with pytest.raises(TypeError, match="^generator_fn must be a function, got None$"):
        losses.AdversarialLoss(jnp.negative, jnp.negative, None)
    with pytest.raises(ValueError, match=r"^penalties\[0\] must return one number for ONE pair, got shape \(2,\)"):
        losses.critic_loss(losses.HINGE, lambda x, context: x.sum(), X, X, penalties=(lambda critic_fn, key, x, sample: x**2,))
    with pytest.raises(TypeError, match="^key must be a typed key"):
        losses.critic_loss(losses.HINGE, lambda x, context: x.sum(), X, X, penalties=(losses.gradient_penalty,))


# --- the model as a game ----------------------------------------------------------------------------------------------------


def network(num_outputs):
    return FlatNet(MLP((16,)), num_outputs)


SMALL = GAN((2,), gm.densities.Normal((3,)), network(2), network(1))


@pytest.mark.slow
def test_the_gradient_of_the_loss_is_that_of_both_players(key):
    gan = dataclasses.replace(SMALL, objective=losses.WASSERSTEIN, penalties=(losses.gradient_penalty,))
    params = gan.init(key, X)
    whole, metrics = jax.grad(gan.loss, has_aux=True)(params, key, X)
    for player in gan.players:
        own, _ = jax.grad(lambda own, p=player: gan.player_loss(p, params | {p: own}, key, X), has_aux=True)(params[player])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole[player], own)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(own)) > 1e-3
    assert set(metrics) == {"critic_loss", "generator_loss", "on_data", "on_samples", "penalty"}


def test_a_fit_is_a_game(key):
    adam = optax.adam(1e-3)
    step = GameStep(SMALL, (Player("critic", adam, num_updates=2), Player("generator", adam, ema_decay=0.9)))
    fit = gm.fit(SMALL, X, key=key, step=step, num_steps=12, batch_size=32, progress=False)
    jax.tree.map(np.testing.assert_array_equal, fit.params["generator"], fit.state.averages["generator"])
    jax.tree.map(np.testing.assert_array_equal, fit.params["critic"], fit.state.params["critic"])
    names = {f"{player}_{what}" for player in SMALL.players for what in ("loss", "grad_norm")}
    assert set(fit.history) == names | {"on_data", "on_samples", "step"}
    assert [int(fit.state.opt_states[player][0].count) for player in SMALL.players] == [24, 12]
    z = SMALL.latent.sample({}, key, 5)
    np.testing.assert_allclose(SMALL.decode(fit.params, z)[2], SMALL.decode_one(fit.params, z[2]), rtol=1e-5)
    assert SMALL.judge(fit.params, X).shape == (64,) and SMALL.sample(fit.params, key, (2, 3)).shape == (2, 3, 2)
    gm.describe(step)


def test_labels_reach_both_players(key):
    gan = dataclasses.replace(SMALL, context_shape=(3,))
    labels = np.arange(64) % 3
    fit = gm.fit(gan, (X, labels), key=key, num_steps=2, batch_size=32, ema_decay=0.9, progress=False)
    assert set(fit.state.averages) == set(gan.players)  # the default step is a game
    draws = np.stack([gan.sample(fit.params, jax.random.key(1), 4, jax.nn.one_hot(k, 3)) for k in range(3)])
    assert np.ptp(draws, axis=0).min() > 0
    assert np.ptp(gan.judge(fit.params, X[0], np.eye(3, dtype=np.float32))) > 0
    with pytest.raises(ValueError, match="GAN is conditional"):
        gan.sample(fit.params, key, 4)


@pytest.mark.slow
def test_a_latent_of_any_kind(key):
    gan = dataclasses.replace(SMALL, latent=gm.flows.affine((3,)))
    step = GameStep(gan, (Player("generator", gm.call(optax.sgd, 0.1)),))
    start = gan.init(key, X)
    state, _ = step(step.init(start, key, X), key, X)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start["generator"], state.params["generator"])
    assert max(jax.tree.leaves(moved["latent"])) > 0
    jax.tree.map(np.testing.assert_array_equal, start["critic"], state.params["critic"])  # who does not play stays
    with pytest.raises(ValueError, match="^latent must be reparameterised where it has parameters to train, got GaussianMixture"):
        dataclasses.replace(SMALL, latent=gm.densities.GaussianMixture((3,), 2)).init(key, X)


def test_what_does_not_fit_is_refused(key):
    with pytest.raises(ValueError, match=r"^the generator must give 2 numbers, those of an event \(2,\), got \(5,\)"):
        dataclasses.replace(SMALL, generator=network(5)).init(key, X)
    with pytest.raises(ValueError, match="^latent wants a context"):
        dataclasses.replace(SMALL, latent=gm.flows.real_nvp((3,), 1, context_shape=(2,)))
    with pytest.raises(TypeError, match="^objective must be a AdversarialLoss, got 'hinge'$"):
        dataclasses.replace(SMALL, objective="hinge")
    with pytest.raises(TypeError, match=r"^penalties\[0\] must be a function, got 10.0$"):
        dataclasses.replace(SMALL, penalties=(10.0,))
    with pytest.raises(ValueError, match="^spectral_bound must be > 0"):
        dataclasses.replace(SMALL, spectral_bound=0.0)
    with pytest.raises(NotImplementedError, match="GAN has no log_prob"):
        SMALL.log_prob(SMALL.init(key, X), X)
    with pytest.raises(ValueError, match=r"^validation of a GAN wants validate=\.\.\.: its loss is no measure of the fit"):
        gm.fit(SMALL, X, key=key, validation=X, progress=False)
    with pytest.raises(ValueError, match="^max_skips belongs to steps of one loss; a GAN is a game$"):
        gm.fit(SMALL, X, key=key, max_skips=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": losses.LEAST_SQUARES},
        {"objective": losses.HINGE, "spectral_bound": 1.0},
        {"objective": losses.WASSERSTEIN, "penalties": (gm.call(losses.gradient_penalty, coefficient=1.0),)},
        {"penalties": (losses.r1_penalty,)},
    ],
    ids=["non_saturating", "least_squares", "hinge_spectral", "wasserstein", "r1"],
)
def test_every_loss_moves_the_samples_to_the_data(options, key):
    x = (X[:, :1] @ np.array([[1.0, 0.6]]) + [2.0, -1.0] + 0.3 * X[::-1]).astype(np.float32)
    gan = dataclasses.replace(SMALL, **options)
    adam = gm.call(optax.adam, 1e-3, b1=0.5)
    step = GameStep(gan, (Player("critic", adam, num_updates=3), Player("generator", adam, ema_decay=0.99)))
    fit = gm.fit(gan, x, key=key, step=step, num_steps=2_000, batch_size=64, progress=False)
    samples = np.asarray(gan.sample(fit.params, jax.random.key(1), 64))
    assert gm.metrics.wasserstein(samples, x) < 0.25 * gm.metrics.wasserstein(0 * x, x)
