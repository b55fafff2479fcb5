"""Bring your own family: a restricted Boltzmann machine trained by persistent contrastive divergence, in 50 lines.

Its log_prob is unnormalised and says so; its Markov chain lives in the state of its step, is checkpointed with it, and goes on
bit for bit.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm

pytestmark = pytest.mark.slow  # what these use of the library has default tests of its own


# --- the model ----------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class RBM(gm.Model):
    """log p(v) + log Z = b.v + sum_j softplus(c_j + (v W)_j), v in {0, 1}^V (Hinton 2002, 10.1162/089976602760128018)."""

    num_visible: int
    num_hidden: int
    likelihood = gm.Likelihood.UNNORMALIZED

    @property
    def event(self):
        return gm.Levels((self.num_visible,), 2)

    def _init(self, key, x, context):
        weights = 0.1 * jax.random.normal(key, (self.num_visible, self.num_hidden))
        return {"w": weights, "b": jnp.zeros(self.num_visible), "c": jnp.zeros(self.num_hidden)}

    def log_prob_one(self, params, x, context=None, key=None):
        v = x.astype(float)
        return v @ params["b"] + jax.nn.softplus(params["c"] + v @ params["w"]).sum()

    def gibbs(self, params, key, v):
        """One sweep of both layers, of one chain."""
        keys = jax.random.split(key)
        h = jax.random.bernoulli(keys[0], jax.nn.sigmoid(params["c"] + v @ params["w"])).astype(float)
        return jax.random.bernoulli(keys[1], jax.nn.sigmoid(params["b"] + params["w"] @ h)).astype(float)

    def loss(self, params, key, batch, *, step=None):
        return -jax.vmap(self.log_prob_one, (None, 0))(params, self.read(batch).x).mean(), {}


@dataclasses.dataclass(frozen=True)
class PersistentContrast(gm.Step):
    """-log p(data) + log p(chain), the chain moved one sweep a step (Tieleman 2008, 10.1145/1390156.1390290)."""

    model: RBM
    optimizer: optax.GradientTransformation

    def init(self, params, key, batch):
        chain = jax.random.bernoulli(key, 0.5, self.model.read(batch).x.shape).astype(float)
        return {"params": params, "opt": self.optimizer.init(params), "chain": chain}

    def __call__(self, state, key, batch):
        params, x = state["params"], self.model.read(batch).x
        chain = jax.vmap(self.model.gibbs, (None, 0, 0))(params, jax.random.split(key, len(x)), state["chain"])
        log_prob = jax.vmap(self.model.log_prob_one, (None, 0))
        loss, grads = jax.value_and_grad(lambda p: log_prob(p, chain).mean() - log_prob(p, x).mean())(params)
        params, opt = gm.training.apply_gradients(self.optimizer, grads, state["opt"], params)
        return {"params": params, "opt": opt, "chain": chain}, {"loss": loss, "chain_mean": chain.mean()}

    def evaluation_params(self, state):
        return state["params"]


# --- the tests ----------------------------------------------------------------------------------------------------------------

MODEL = RBM(4, 3)
STATES = np.array(list(itertools.product([0, 1], repeat=4)), np.uint8)
TEACHER = {
    "w": jnp.sin(jnp.arange(4.0)[:, None] + 2 * jnp.arange(3.0)[None] + 1),
    "b": 0.1 * (jnp.arange(4.0) - 1),
    "c": -0.2 + 0.1 * jnp.arange(3.0),
}
STEP = PersistentContrast(MODEL, gm.call(optax.sgd, 0.05)())


def log_probs(params):
    """Normalised, by enumeration."""
    unnormalised = np.asarray(MODEL.log_prob(params, STATES), np.float64)
    return unnormalised - np.logaddexp.reduce(unnormalised), np.logaddexp.reduce(unnormalised)


def test_the_free_energy_is_right():
    np.testing.assert_allclose(log_probs(TEACHER)[1], 5.073521673, rtol=1e-6)


def test_learns_the_moments_of_a_teacher():
    log_p, _ = log_probs(TEACHER)
    data = STATES[np.random.default_rng(0).choice(16, 20_000, p=np.exp(log_p))]
    fit = gm.fit(MODEL, data, key=jax.random.key(0), step=STEP, num_steps=4_000, batch_size=500, progress=False)
    shares = np.bincount(data @ (1 << np.arange(4)[::-1]), minlength=16) / len(data)
    learned, _ = log_probs(fit.params)
    assert (shares * (np.log(shares) - learned)).sum() < 0.01  # KL(data || model)
    report = gm.evaluate(MODEL, fit.params, data)
    assert "energy_nats" in report and not any(name.startswith("nll") for name in report)


def test_stopped_and_resumed_with_its_chain(tmp_path):
    data = np.random.default_rng(1).integers(0, 2, (300, 4), np.uint8)
    options = {"key": jax.random.key(0), "step": STEP, "batch_size": 50, "validate_every": 10, "progress": False}
    whole = gm.fit(MODEL, data, num_steps=60, **options)
    for num_steps in (20, 60):
        halves = gm.fit(MODEL, data, num_steps=num_steps, checkpoint=tmp_path, **options)
    jax.tree.map(np.testing.assert_array_equal, halves.state, whole.state)
    jax.tree.map(np.testing.assert_array_equal, gm.load(tmp_path, MODEL), whole.params)
