"""Bring your own family: a variational autoencoder in 45 lines of public names, held against its evidence by quadrature.

Its prior and its posterior are any Distribution, here flows; its KL is annealed by the number of the step, without a step of its
own; `fit`, `evaluate`, `save` and `load` take it as they take ours.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm

pytestmark = pytest.mark.slow  # the library has the family, and its tests


# --- the model ----------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class VAE(gm.Model):
    """log p(x) >= E_q[log p(x | z) + log p(z) - log q(z | x)] (Kingma & Welling 2013, arXiv:1312.6114, eq. 3)."""

    shape: tuple[int, ...]
    prior: gm.Distribution
    posterior: gm.Distribution  # of z, given what the encoder makes of x
    encoder: Any
    decoder: Any
    head: gm.densities.Head
    anneal_steps: int = 0
    likelihood = gm.Likelihood.LOWER_BOUND

    @property
    def event(self):
        return self.head.event(self.shape)

    def _init(self, key, x, context):
        keys = jax.random.split(key, 4)
        encoder = gm.nets.init(self.encoder, keys[0], x[0].astype(float))
        features = jax.vmap(lambda x: gm.nets.apply(self.encoder, encoder, x.astype(float)))(x)
        z = jax.random.normal(keys[1], (len(x), *self.prior.event_shape))
        laws = {"prior": self.prior.init(keys[2], z), "posterior": self.posterior.init(keys[2], z, features)}
        return laws | {"encoder": encoder, "decoder": gm.nets.init(self.decoder, keys[3], z[0])}

    def parts_one(self, params, x, key):
        """(log p(x | z), log q(z | x) - log p(z)) at one draw of z."""
        features = gm.nets.apply(self.encoder, params["encoder"], x.astype(float))
        z, log_q = self.posterior.sample_and_log_prob_one(params["posterior"], key, features)
        raw = gm.nets.apply(self.decoder, params["decoder"], z).reshape(*self.shape, self.head.num_params)
        return self.head.log_prob(raw, x).sum(), log_q - self.prior.log_prob_one(params["prior"], z)

    def loss(self, params, key, batch, *, step=None):
        x, _, _ = self.read(batch)
        log_lik, kl = jax.vmap(self.parts_one, (None, 0, 0))(params, x, jax.random.split(key, len(x)))
        beta = 1.0 if step is None or not self.anneal_steps else jnp.minimum(1.0, step / self.anneal_steps)
        return (beta * kl - log_lik).mean(), {"rate_nats": kl.mean(), "distortion_nats": -log_lik.mean(), "beta": beta}

    def log_prob_one(self, params, x, context=None, key=None):
        log_lik, kl = self.parts_one(params, x, key)
        return log_lik - kl

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        raw = gm.nets.apply(self.decoder, params["decoder"], self.prior.sample_one(params["prior"], keys[0]))
        return self.head.sample(raw.reshape(*self.shape, self.head.num_params), keys[1])


# --- the tests ----------------------------------------------------------------------------------------------------------------


def vae(anneal_steps=0):
    posterior = gm.flows.real_nvp((1,), 2, hidden_sizes=(16,), context_shape=(8,), standardize=False)
    prior = gm.flows.planar_flow((1,), 2, standardize=False)
    encoder, decoder = gm.nets.MLP((16, 8), nn.tanh), nn.Sequential((gm.nets.MLP((16,), nn.tanh), nn.Dense(3)))
    return VAE((3,), prior, posterior, encoder, decoder, gm.densities.BernoulliHead(), anneal_steps)


STATES = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint8)
TRUTH = np.array([0.3, 0.02, 0.05, 0.18, 0.02, 0.03, 0.1, 0.3])
DATA = STATES[np.random.default_rng(0).choice(8, 4_000, p=TRUTH)]


def evidence(model, params):
    """log p(x) of the eight states, by quadrature over z."""
    z = np.linspace(-12, 12, 4_001)[:, None].astype(np.float32)
    log_prior = model.prior.log_prob(params["prior"], z)
    raw = jax.vmap(lambda z: gm.nets.apply(model.decoder, params["decoder"], z))(z)[..., None]
    log_lik = jax.vmap(lambda x: jax.vmap(lambda raw: model.head.log_prob(raw, x).sum())(raw))(jnp.asarray(STATES))
    return jax.nn.logsumexp(log_lik + log_prior[None] + np.log(z[1, 0] - z[0, 0]), axis=1)


def test_a_vae_is_trained_and_bounded_by_its_evidence(tmp_path):
    model = vae(anneal_steps=100)
    fit = gm.fit(model, DATA, key=jax.random.key(0), num_steps=1_500, batch_size=256, validation=DATA[:1_000], progress=False)
    exact = evidence(model, fit.params)
    np.testing.assert_allclose(jnp.exp(exact).sum(), 1.0, atol=1e-3)
    bounds = model.log_prob(fit.params, np.repeat(STATES[:, None], 4_000, 1), key=jax.random.key(1))
    mean, sem = bounds.mean(1), bounds.std(1) / np.sqrt(4_000)
    assert (mean <= exact + 4.5 * sem).all()
    nll = gm.evaluate(model, fit.params, DATA, key=jax.random.key(2))
    entropy = -(TRUTH * np.log(TRUTH)).sum()
    # What is left is the gap of the posterior and of 4,000 rows: far below the nats that independent pixels would cost.
    assert abs(nll["nll_upper_bound_nats"] - entropy) < 0.1
    assert nll["nll_upper_bound_nats"] > -(TRUTH * np.asarray(exact)).sum() - 4.5 * nll["nll_upper_bound_nats_sem"]
    shares = np.bincount(model.sample(fit.params, jax.random.key(3), (20_000,)) @ np.array([4, 2, 1]), minlength=8) / 20_000
    assert (np.abs(shares - np.exp(exact)) < 4.5 * np.sqrt(np.exp(exact) / 20_000)).all()
    gm.save(tmp_path, model, fit.params)
    again = gm.load(tmp_path, vae(anneal_steps=100))
    jax.tree.map(np.testing.assert_array_equal, again, fit.params)


def test_the_kl_is_annealed_by_the_step():
    model = vae(anneal_steps=10)
    params = model.init(jax.random.key(0), DATA[:64])
    final = jax.jit(model.loss)(params, jax.random.key(1), DATA[:64])
    annealed = jax.jit(lambda step: model.loss(params, jax.random.key(1), DATA[:64], step=step))
    losses = {None: final} | {step: annealed(step) for step in (0, 5, 50)}
    rate, distortion = (losses[None][1][name] for name in ("rate_nats", "distortion_nats"))
    wanted = {None: rate + distortion, 0: distortion, 5: 0.5 * rate + distortion, 50: rate + distortion}
    for step, (loss, _) in losses.items():
        np.testing.assert_allclose(loss, wanted[step], rtol=1e-5)
    history = gm.fit(model, DATA, key=jax.random.key(0), num_steps=20, validate_every=1, progress=False).history
    np.testing.assert_allclose(history["beta"], np.minimum(1, np.arange(20) / 10), rtol=1e-6)
