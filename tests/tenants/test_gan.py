"""Bring your own family: a generative adversarial network in 50 lines, with two optimizers and an averaged generator.

It has no log_prob and says so; a game is one step of two players.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm

pytestmark = pytest.mark.slow  # what these use of the library has default tests of its own


# --- the model ----------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class GAN(gm.Model):
    """x = G(z), z ~ N(0, I), judged by a critic D(x), the logit of "real" (Goodfellow et al. 2014, arXiv:1406.2661)."""

    shape: tuple[int, ...]
    generator: Any
    critic: Any
    latent: gm.Distribution
    likelihood = gm.Likelihood.NONE

    @property
    def event(self):
        return gm.Real(self.shape)

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        z = jnp.zeros(self.latent.event_shape)
        return {"generator": gm.nets.init(self.generator, keys[0], z), "critic": gm.nets.init(self.critic, keys[1], x[0])}

    def sample_one(self, params, key, context=None):
        return gm.nets.apply(self.generator, params["generator"], self.latent.sample_one({}, key))

    def loss(self, params, key, batch, *, step=None):
        """Non-saturating: softplus(-D(x)) + softplus(D(G(z))) of the critic, softplus(-D(G(z))) of the generator."""
        real = self.read(batch).x
        fake = jax.vmap(self.sample_one, (None, 0))(params, jax.random.split(key, len(real)))
        on_real, on_fake = (jax.vmap(lambda x: gm.nets.apply(self.critic, params["critic"], x))(x) for x in (real, fake))
        critic = (jax.nn.softplus(-on_real) + jax.nn.softplus(on_fake)).mean()
        return jax.nn.softplus(-on_fake).mean(), {"critic_loss": critic}


@dataclasses.dataclass(frozen=True)
class Game(gm.Step):
    """The critic, then the generator, each by an optimizer of its own; samples are those of an averaged generator."""

    model: GAN
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation]
    decay: float = 0.99

    def init(self, params, key, batch):
        opts = {name: opt.init(params[name]) for name, opt in zip(("generator", "critic"), self.optimizers, strict=True)}
        return {"params": params, "opts": opts, "ema": params["generator"], "count": jnp.zeros((), int)}

    def __call__(self, state, key, batch):
        params, opts, metrics = dict(state["params"]), dict(state["opts"]), {}
        for name, opt in zip(("critic", "generator"), self.optimizers[::-1], strict=True):

            def objective(own, name=name):
                loss, extra = self.model.loss(params | {name: own}, jax.random.fold_in(key, len(name)), batch)
                return loss if name == "generator" else extra["critic_loss"]

            metrics[f"{name}_loss"], grads = jax.value_and_grad(objective)(params[name])
            params[name], opts[name] = gm.training.apply_gradients(opt, grads, opts[name], params[name])
        average = gm.training.ema(state["ema"], params["generator"], self.decay, state["count"])
        return {"params": params, "opts": opts, "ema": average, "count": state["count"] + 1}, metrics

    def evaluation_params(self, state):
        return state["params"] | {"generator": state["ema"]}


# --- the tests ----------------------------------------------------------------------------------------------------------------


def network(num_outputs):
    last = nn.Dense(num_outputs) if num_outputs > 1 else nn.Sequential((nn.Dense(1), lambda x: x[0]))
    return nn.Sequential((gm.nets.MLP((32, 32), nn.leaky_relu), last))


MODEL = GAN((2,), network(2), network(1), gm.densities.Normal((2,)))
ADAM = optax.adam(1e-3, b1=0.5)
GAME = Game(MODEL, (ADAM, ADAM))


def test_a_gan_moves_its_samples_to_the_data():
    data = (np.array([2.0, -1.0]) + np.random.default_rng(0).normal(size=(4_000, 2)) * [0.5, 1.0]).astype(np.float32)
    fit = gm.fit(MODEL, data, key=jax.random.key(0), step=GAME, num_steps=2_000, batch_size=128, progress=False)
    x = np.asarray(MODEL.sample(fit.params, jax.random.key(1), (2_000,)))
    floor, start = gm.metrics.wasserstein(data[:500], data[500:1_000]), gm.metrics.wasserstein(x[:500] * 0, data[:500])
    assert gm.metrics.wasserstein(x[:500], data[1_000:1_500]) < floor + 0.2 * (start - floor)
    report = gm.evaluate(MODEL, fit.params, data[:500], key=jax.random.key(2), metrics=(gm.metrics.wasserstein,))
    assert set(report) >= {"wasserstein", "num_params"} and not any("nll" in name for name in report)


def test_the_average_is_what_is_evaluated():
    data = np.zeros((64, 2), np.float32)
    fit = gm.fit(MODEL, data, key=jax.random.key(0), step=GAME, num_steps=10, batch_size=64, progress=False)
    jax.tree.map(np.testing.assert_array_equal, fit.params["generator"], fit.state["ema"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), fit.params["generator"], fit.state["params"]["generator"])
    assert max(jax.tree.leaves(moved)) > 0
    assert set(fit.history) >= {"critic_loss", "generator_loss"}
