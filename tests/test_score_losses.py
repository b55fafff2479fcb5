"""Score matching: one minimiser in closed form for all, estimators without bias, values in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod import losses, samplers
from genmod.dynamics.divergence import Exact, Hutchinson

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")
MEAN, SCALE = np.array([1.0, -0.5]), np.array([0.5, 2.0])
NUM_SEM = 4.5


def data(num, seed=0):
    return jnp.asarray(MEAN + SCALE * np.random.default_rng(seed).standard_normal((num, 2)))


def linear(params):
    """s(x) = b - A x: the score of a Gaussian."""
    return lambda x: params["b"] - jnp.asarray(params["A"]) @ x


def minimiser(loss_fn, num=4):
    """The minimum over (A, b) of a loss that is quadratic in them, by Newton's step."""
    flat, unravel = jax.flatten_util.ravel_pytree({"A": jnp.zeros((2, 2)), "b": jnp.zeros(2)})

    def value(flat):
        return loss_fn(linear(unravel(flat)))[0]

    gradient, hessian = jax.grad(value)(flat), jax.hessian(value)(flat)
    return unravel(-jnp.linalg.solve(hessian, gradient))


@pytest.mark.parametrize("name", ["explicit", "sliced", "denoising"])
def test_minimiser_is_the_score_of_the_data(name):
    """-(x - m) / s^2, of data blurred by sigma for denoising: the sample's own moments for the first, exactly."""
    num, sigma = 20_000, 0.3
    x = data(num)
    loss_fn = {
        "explicit": lambda score: losses.explicit_score_matching(score, x),
        "sliced": lambda score: losses.sliced_score_matching(score, x, jax.random.key(0), num_probes=2),
        "denoising": lambda score: losses.denoising_score_matching(score, x, jax.random.key(0), sigma=sigma),
    }[name]
    found = minimiser(loss_fn)
    if name == "explicit":
        inverse = np.linalg.inv(np.cov(x.T, ddof=0))
        np.testing.assert_allclose(found["A"], inverse, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found["b"], inverse @ np.asarray(x.mean(0)), rtol=1e-9)
    variance = SCALE**2 + (sigma**2 if name == "denoising" else 0.0)
    # About 1 / sqrt(n) relative for moments, times what the random targets add.
    np.testing.assert_allclose(found["A"], np.diag(1 / variance), atol=0.15, rtol=0)
    np.testing.assert_allclose(found["b"], MEAN / variance, atol=0.3)
    np.testing.assert_allclose(jnp.diag(found["A"]), 1 / variance, rtol=0.08)


def test_value_at_the_score_is_known():
    """E|s|^2 / 2 + div s = -E|s|^2 / 2 = -sum 1 / (2 s^2) at the score of the data."""
    x = data(50_000)
    loss, metrics = losses.explicit_score_matching(linear({"A": np.diag(1 / SCALE**2), "b": MEAN / SCALE**2}), x)
    assert abs(float(loss) + 0.5 * (1 / SCALE**2).sum()) < NUM_SEM * float(metrics["score_matching_sem"])
    assert metrics["score_matching"] == loss


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_sliced_is_unbiased(distribution):
    def score(x):
        return jnp.sin(jnp.stack([x[0] * x[1], x[0] + 2 * x[1]]))

    x = data(8)
    exact = losses.explicit_score_matching(score, x)[0]
    draw = jax.jit(jax.vmap(lambda key: losses.sliced_score_matching(score, x, key, distribution=distribution)[0]))
    values = np.asarray(draw(jax.random.split(jax.random.key(0), 4_000)))
    assert abs(values.mean() - exact) < NUM_SEM * values.std() / np.sqrt(4_000) and values.std() > 1e-3
    same = losses.explicit_score_matching(score, x, jax.random.key(3), divergence=Hutchinson(2, distribution))[0]
    assert same == losses.sliced_score_matching(score, x, jax.random.key(3), num_probes=2, distribution=distribution)[0]


def test_denoising_target_has_its_sign():
    """-(x~ - x) / sigma^2 = -eps / sigma: the loss of that very score of one point is zero."""
    x = jnp.array([[0.7, -0.2]])
    sigma = 0.3
    loss, _ = losses.denoising_score_matching(lambda y: -(y - x[0]) / sigma**2, x, jax.random.key(0), sigma=sigma)
    assert loss < 1e-20
    opposite, _ = losses.denoising_score_matching(lambda y: (y - x[0]) / sigma**2, x, jax.random.key(0), sigma=sigma)
    assert opposite > 1


def test_events_of_any_shape_and_gradients():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 3)))

    def loss(scale, name):
        score = functools.partial(jnp.multiply, -scale)
        if name == "explicit":
            return losses.explicit_score_matching(score, x, divergence=Exact())[0]
        return losses.denoising_score_matching(score, x, jax.random.key(0), sigma=0.1)[0]

    np.testing.assert_allclose(loss(2.0, "explicit"), 2 * (x**2).sum((1, 2)).mean() - 12.0, rtol=1e-9)
    for name in ("explicit", "denoising"):
        step = 1e-6
        numeric = (loss(2.0 + step, name) - loss(2.0 - step, name)) / (2 * step)
        np.testing.assert_allclose(jax.grad(loss)(2.0, name), numeric, rtol=1e-6)


def test_bad_arguments():
    x = jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="Hutchinson is random: pass key="):
        losses.explicit_score_matching(jnp.sin, x, divergence=Hutchinson())
    with pytest.raises(ValueError, match="sigma must be > 0 and finite, got 0.0"):
        losses.denoising_score_matching(jnp.sin, x, jax.random.key(0), sigma=0.0)


@pytest.mark.parametrize("method", ["explicit", "denoising"])
def test_a_score_model_learns_and_samples(method):
    """A linear network on Gaussian data: the score of the data (blurred by sigma), and Langevin's draws of it."""
    x = data(4_000)
    model = gm.models.ScoreModel(gm.nets.ZeroHead(gm.nets.MLP(()), 2), (2,), method, sigma=0.5, step_size=0.02, num_steps=300)
    assert model.likelihood is gm.Likelihood.NONE
    options = {"optimizer": optax.adam(optax.cosine_decay_schedule(0.1, 600)), "num_steps": 600, "batch_size": 500}
    fit = gm.fit(model, x, key=jax.random.key(0), progress=False, **options)
    variance = SCALE**2 + (0.25 if method == "denoising" else 0.0)
    points = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, -3.0]])
    wanted = -(points - MEAN[None]) / variance[None]
    np.testing.assert_allclose(jax.vmap(lambda x: model.score(fit.params, x))(points), wanted, atol=0.35)
    drawn = np.asarray(model.sample(fit.params, jax.random.key(1), 2_000))
    np.testing.assert_allclose(drawn.mean(0), MEAN, atol=0.25)
    np.testing.assert_allclose(drawn.std(0), np.sqrt(variance), rtol=0.12)
    with pytest.raises(NotImplementedError, match="a score model has no log_prob; a Diffusion has one"):
        model.log_prob(fit.params, x[:2])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "sliced"}, "method must be 'explicit' or 'denoising', got 'sliced'"),
        ({"sigma": 0.0}, "sigma must be > 0"),
        ({"step_size": -1.0}, "step_size must be > 0"),
        ({"num_steps": 0}, "num_steps must be an integer >= 1"),
    ],
)
def test_bad_score_models(options, match):
    with pytest.raises(ValueError, match=match):
        gm.models.ScoreModel(gm.nets.MLP((4,)), (2,), **options)
    with pytest.raises(ValueError, match=r"the network must return the shape of its input, \(2,\)"):
        gm.models.ScoreModel(gm.nets.MLP((4,)), (2,)).init(jax.random.key(0), jnp.zeros((3, 2)))


def test_numbers_of_any_kind_are_positive():
    """Arrays closed over inside `jit`, zero-dimensional NumPy, one sigma for each coordinate (but one step size for a chain)."""
    x, key = jnp.zeros((4, 2)), jax.random.key(0)

    def draw(x, size):
        return samplers.langevin_chain(key, lambda x: -x, x, step_size=size, num_steps=2)

    for sigma in (jnp.asarray(0.1), np.asarray(0.1), np.float32(0.1), jnp.full((2,), 0.1)):
        loss = jax.jit(lambda x, s=sigma: losses.denoising_score_matching(lambda x: -x, x, key, sigma=jnp.atleast_2d(s))[0])(x)
        assert jnp.isfinite(loss)
        if np.ndim(sigma) == 0:
            assert jnp.isfinite(jax.jit(lambda x, s=sigma: draw(x, s))(x[0])).all()
    with pytest.raises(ValueError, match=r"step_size must be one number, got shape \(2,\)"):
        draw(x[0], jnp.full((2,), 0.1))
