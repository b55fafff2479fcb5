"""The rate-distortion curve of probabilistic PCA, where reverse water-filling is its closed form."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from experiments import rate_distortion_vae
from genmod.densities import Amortized, Factorized, NormalHead
from genmod.inference import rate_distortion_curve
from genmod.losses import ELBO
from genmod.training.program import advance

SIGMA, NUM, PIECE = 0.5, 256, 800
BETAS = (0.5, 1.0, 4.0)
NUM_SEM = 4.5
EIGHT_DRAWS = ELBO(8)


def pca(data_dim=3, latent_dim=2, objective=EIGHT_DRAWS):
    """x ~ N(W z + b, SIGMA^2), with an encoder whose means are linear in x."""
    law = Factorized(NormalHead(), (latent_dim,))
    return gm.models.VAE(
        (data_dim,), nn.Dense(4), Amortized(law, (4,)), nn.Dense(data_dim), NormalHead(SIGMA), objective=objective
    )


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM, 3)) * np.array([2.0, 1.0, 0.3]) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return jnp.asarray(x + np.array([1.0, -0.5, 0.2]), jnp.float32)


def water_filling(x, beta, latent_dim=2):
    """(rate, distortion, variance of the distortion of one draw) of the best decoder and posterior at beta.

    The loss over beta is, up to a constant, the -ELBO of probabilistic PCA with the noise s = beta sigma^2. Its best decoder has
    W^T W = l_i - s in the directions of the eigenvalues l_i > s of the covariance (Tipping & Bishop 1999). The posterior is then
    the exact one, its rate is 1/2 log(l_i / s), and E |x - W z|^2 is s in these directions, l_i in the others.
    """
    values = np.linalg.eigvalsh(np.cov(np.asarray(x, np.float64).T, bias=True))[::-1]
    s = beta * SIGMA**2
    used = (values > s) & (np.arange(len(values)) < latent_dim)
    distortion = np.where(used, s, values).sum() / (2 * SIGMA**2) + 0.5 * len(values) * np.log(2 * np.pi * SIGMA**2)
    moved, mean = s * (1 - s / values), s**2 / values  # variance, and mean square, of an entry of x - W z, a Gaussian
    variance = (2 * moved**2 + 4 * moved * mean)[used].sum() / (4 * SIGMA**4)
    return 0.5 * np.log(values / s)[used].sum(), distortion, variance


def test_the_closed_form_is_a_curve_of_slope_minus_beta():
    x, step = rows(), 1e-5
    for beta in BETAS:
        (low_rate, low, _), (high_rate, high, _) = (water_filling(x, beta * (1 + sign * step)) for sign in (-1, 1))
        np.testing.assert_allclose((high - low) / (high_rate - low_rate), -beta, rtol=1e-6)


def test_one_sweep_is_the_curve_of_probabilistic_pca(key):
    """All rows in each step, a learning rate that falls within each beta; one program for all betas."""
    x = rows()
    falls = [optax.cosine_decay_schedule(5e-2, PIECE, 0.01)] * len(BETAS)
    optimizer = optax.adam(optax.join_schedules(falls, [PIECE, 2 * PIECE]))
    before = advance._cache_size()
    options = {"optimizer": optimizer, "batch_size": NUM, "progress": False}
    curve = rate_distortion_curve(pca(), x, x, betas=BETAS, key=key, num_steps=PIECE, num_samples=256, **options)
    assert advance._cache_size() == before + 1
    assert curve.fit.step == PIECE * len(BETAS) and curve.rate.shape == curve.beta.shape == (len(BETAS),)
    assert curve.rate[-1] < 0.9 and curve.rate[0] > 2.5  # one latent is left of two
    for i, beta in enumerate(BETAS):
        rate, distortion, variance = water_filling(x, beta)
        draws = np.sqrt(variance / (NUM * 256))
        excess = curve.distortion[i] + beta * curve.rate[i] - (distortion + beta * rate)
        # A minimum: the excess is of second order in what is left to learn, and rate and distortion differ by its root.
        assert -NUM_SEM * draws < excess < NUM_SEM * draws + 5e-3
        assert abs(curve.rate[i] - rate) < 0.05 and abs(curve.distortion[i] - distortion) < 0.05 * beta + NUM_SEM * draws
        np.testing.assert_allclose(curve.bound[i], curve.rate[i] + curve.distortion[i], rtol=1e-6)
    assert curve.bound.argmin() == 1  # the bound is best at beta = 1
    assert str(curve).count("+-") == 3 * len(BETAS)


@pytest.mark.slow
def test_its_numbers_are_those_of_the_model(key):
    """Without steps of any size: means and errors of `VAE.rate_distortion` at the parameters given."""
    model, x = pca(), rows()
    params = model.init(key, x)
    curve = rate_distortion_curve(
        model, x, x, betas=[2.0], key=key, num_steps=1, params=params, optimizer=optax.sgd(0.0), num_samples=64, progress=False
    )
    parts = model.rate_distortion(params, jnp.tile(x, (64, 1, 1)), key=key)
    np.testing.assert_allclose(curve.rate, parts.rate[0].mean(), rtol=1e-5)
    np.testing.assert_allclose(curve.rate_sem, parts.rate[0].std(ddof=1) / np.sqrt(NUM), rtol=1e-5)
    noise = parts.distortion.std(0).mean() / np.sqrt(64 * NUM)
    assert abs(curve.distortion[0] - parts.distortion.mean()) < NUM_SEM * np.sqrt(2) * noise
    np.testing.assert_allclose(curve.distortion_sem, parts.distortion.mean(0).std(ddof=1) / np.sqrt(NUM), rtol=0.05)


def test_beta_tempers_the_likelihood(key, x64):
    """The gradient of distortion + beta rate vanishes at q ~ p(z) p(x | z)^(1 / beta), in the mean, and not at the posterior."""
    model, beta, weight, x = pca(2, 1), 3.0, np.array([0.9, -1.4]), jnp.array([[0.6, 1.1]])
    params = jax.tree.map(lambda p: p.astype(float), model.init(key, x.astype(float)))
    params["decoder"] = {"kernel": jnp.asarray(weight)[None], "bias": jnp.zeros(2)}

    def slopes(tempering):
        precision = 1 + weight @ weight / (tempering * SIGMA**2)
        mean, log_scale = weight @ np.asarray(x[0]) / (tempering * SIGMA**2) / precision, -0.5 * np.log(precision)
        raw = jnp.asarray([[mean, 5 * np.arctanh(log_scale / 5)]])
        held = params["posterior"] | {"kernel": jnp.zeros_like(params["posterior"]["kernel"])}

        def loss(raw, key, num):
            own = dataclasses.replace(model, objective=ELBO(num, beta=beta))
            return own.loss(params | {"posterior": held | {"distribution": {"raw": raw}}}, key, x)[0]

        one = jax.jit(jax.vmap(lambda key: jax.grad(loss)(raw, key, 1).reshape(-1)))
        found = np.asarray(one(jax.random.split(key, 20_000)))
        return found.mean(0) / (found.std(0) / np.sqrt(len(found)))

    assert (np.abs(slopes(beta)) < NUM_SEM).all()
    assert (np.abs(slopes(1.0)) > 2 * NUM_SEM).any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"betas": [1.0, 0.0]}, "betas must be one or more positive finite numbers, got"),
        ({"betas": []}, "betas must be one or more positive finite numbers, got"),
        ({"betas": [1.0], "num_steps": 0}, "num_steps must be an integer >= 1, got 0"),
        ({"betas": [1.0], "patience": 3, "step": None}, "patience, step of fit are set by the sweep itself"),
    ],
)
def test_mistakes(options, match, key):
    with pytest.raises(ValueError, match=match):
        rate_distortion_curve(pca(), rows(), rows(), key=key, **options)


def test_other_mistakes(key):
    with pytest.raises(TypeError, match=r"model must have an ELBO as its objective, whose beta is changed, got IWAE\("):
        rate_distortion_curve(pca(objective=gm.losses.IWAE(5)), rows(), rows(), betas=[1.0], key=key)
    penalized = gm.models.Penalized(pca(), gm.call(jnp.zeros, ()), 10)
    with pytest.raises(TypeError, match=r"model must be a LatentModel such as gm\.models\.VAE, got Penalized: "):
        rate_distortion_curve(penalized, rows(), rows(), betas=[1.0], key=key)
    with pytest.raises(ValueError, match="validation must be events to measure on, got None"):
        rate_distortion_curve(pca(), rows(), None, betas=[1.0], key=key)
    with pytest.raises(ValueError, match="without free_bits"):
        rate_distortion_curve(pca(objective=ELBO(free_bits=0.1)), rows(), rows(), betas=[1.0], key=key)


@pytest.mark.slow
def test_the_experiment_runs(tmp_path):
    settings = [
        "--num-steps",
        "60",
        "--betas",
        "0.5",
        "0.5",
        "2.0",
        "--alone",
        "2.0",
        "--latent-size",
        "3",
        "--hidden-sizes",
        "16",
    ]
    gm.lab.main(rate_distortion_vae.experiment, rate_distortion_vae.Config, arguments=[*settings, "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (tmp_path / "curve.png").exists() and (tmp_path / "table.txt").read_text().count("sweep") == 2
    assert metrics["beta_0.5_rate"] > metrics["beta_2.0_rate"] >= 0
    for name in ("beta_0.5", "beta_2.0", "alone_2.0"):
        assert metrics[f"{name}_bound"] == pytest.approx(metrics[f"{name}_rate"] + metrics[f"{name}_distortion"], rel=1e-5)
