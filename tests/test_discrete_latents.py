"""VAEs of discrete, relaxed and mixed latents. Of three pixels all is known by enumeration of the latents, or by quadrature."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.densities import (
    Amortized,
    BernoulliHead,
    CategoricalHead,
    Factorized,
    GaussianMixture,
    NormalHead,
    PoissonHead,
    RelaxedBernoulli,
    RelaxedCategorical,
    RelaxedPoisson,
    StraightThrough,
)
from genmod.losses import ELBO, IWAE, Renyi, ScoreFunctionELBO

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM, NUM = 4.5, 2_000
STATES = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint8)
TRUTH = np.array([0.3, 0.02, 0.05, 0.18, 0.02, 0.03, 0.1, 0.3])
ENTROPY = -(TRUTH * np.log(TRUTH)).sum()
DATA = STATES[np.random.default_rng(0).choice(8, 4_000, p=TRUTH)]

BITS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
ONE_HOT = np.eye(3, dtype=np.float32)[:, None]
GRID, STEP = np.linspace(-13, 13, 801, dtype=np.float32)[:, None], np.float32(26 / 800)
SIGMOID_GRID = 1 / (1 + np.exp(-GRID))


class Case(NamedTuple):
    """A law of latents that is posterior and prior, its objective, and all its values, (n,) + event shape."""

    law: Any
    objective: Any
    latents: np.ndarray
    prior: Any = None

    @property
    def model(self):
        encoder, decoder = gm.nets.MLP((6,), jnp.tanh), nn.Sequential((jnp.ravel, gm.nets.MLP((6,), jnp.tanh), nn.Dense(3)))
        posterior = Amortized(self.law, (6,))
        return gm.models.VAE((3,), encoder, posterior, decoder, BernoulliHead(), self.prior or self.law, self.objective)

    @property
    def log_weight(self):
        """Of each value in a sum over all of them, or in an integral."""
        y = self.latents.reshape(len(self.latents), -1)[:, 0]
        if self.latents is SIGMOID_GRID:
            return np.log(y * (1 - y) * STEP)
        return np.full(len(y), np.log(STEP) if self.latents is GRID else 0.0, np.float32)


STRAIGHT_THROUGH = StraightThrough(RelaxedCategorical((1,), 3, 0.5))
CASES = {
    "bits": Case(Factorized(BernoulliHead(), (2,)), ScoreFunctionELBO(4), BITS.astype(np.uint8)),
    "levels": Case(Factorized(CategoricalHead(3), (1,)), ScoreFunctionELBO(2, beta=0.7), np.arange(3, dtype=np.uint8)[:, None]),
    "counts": Case(
        Factorized(PoissonHead(), (1,)), ScoreFunctionELBO(4, analytic_kl=False), np.arange(50, dtype=np.int32)[:, None]
    ),
    # Draws of a mixture carry a part of the gradient: the score function takes none of it.
    "mixture": Case(GaussianMixture((1,), 2), ScoreFunctionELBO(4), GRID, Factorized(NormalHead(), (1,))),
    "relaxed_bits": Case(RelaxedBernoulli((1,), 1.0), ELBO(), SIGMOID_GRID),
    "one_hot_by_scores": Case(STRAIGHT_THROUGH, ScoreFunctionELBO(4), ONE_HOT),
    "straight_through_one_hot": Case(STRAIGHT_THROUGH, ELBO(), ONE_HOT),
    "straight_through_bits": Case(StraightThrough(RelaxedBernoulli((2,), 0.5)), ELBO(2), BITS.astype(np.float32)),
    "straight_through_counts": Case(
        StraightThrough(RelaxedPoisson((1,), 0.1, 6.0)), ELBO(analytic_kl=False), np.arange(30, dtype=np.float32)[:, None]
    ),
}
KIN = ("levels", "mixture", "relaxed_bits", "one_hot_by_scores")
by_name = pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in KIN)) for n in CASES])


@functools.cache
def prepared(name):
    """The model, and parameters away from their start, at which q depends on x."""
    model = CASES[name].model
    params = model.init(jax.random.key(0), DATA[:64])
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda p: p + np.asarray(0.4 * rng.standard_normal(p.shape), p.dtype), params)


def exact(name, params):
    """The loss, mean over the eight states, and (log p(x), ELBO) of them, by enumeration of the latents."""
    case, model = CASES[name], CASES[name].model
    z = jnp.asarray(case.latents)

    def log_joint(z, x):
        raw = gm.nets.apply(model.decoder, params["decoder"], z.astype(float))
        return model.head.log_prob(raw[:, None], x).sum(), model.prior.log_prob_one(params["prior"], z)

    def one(x):
        features = gm.nets.apply(model.encoder, params["encoder"], x.astype(float))
        log_q = jax.vmap(lambda z: model.posterior.log_prob_one(params["posterior"], z, features))(z)
        log_likelihood, log_prior = jax.vmap(log_joint, (0, None))(z, x)
        q = jnp.exp(log_q + case.log_weight)
        rate = jnp.sum(q * (log_q - log_prior))
        log_p = jax.nn.logsumexp(log_likelihood + log_prior + case.log_weight)
        return case.objective.beta * rate - q @ log_likelihood, log_p, q @ log_likelihood - rate

    loss, log_p, elbo = jax.vmap(one)(jnp.asarray(STATES))
    return loss.mean(), (log_p, elbo)


@by_name
def test_bound_and_gradient_are_those_by_enumeration(name, key):
    """In the mean over draws: the gradient of all parameters by scores, of decoder and prior where straight-through biases the
    rest."""
    model, params = prepared(name)
    (loss, (log_p, elbo)), wanted = jax.jit(jax.value_and_grad(lambda params: exact(name, params), has_aux=True))(params)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, atol=1e-4)
    assert (elbo < log_p).all()
    step = jax.value_and_grad(lambda params, key: model.loss(params, key, STATES), has_aux=True)
    (losses, metrics), gradients = jax.jit(jax.vmap(step, (None, 0)))(params, jax.random.split(key, NUM))
    parts = ("encoder", "posterior", "decoder", "prior") if "straight" not in name else ("decoder", "prior")
    pairs = [(losses, loss), (metrics["nll_upper_bound_nats"], -elbo.mean())]
    pairs += [pair for part in parts for pair in zip(*map(jax.tree.leaves, (gradients[part], wanted[part])), strict=True)]
    for rows, true in pairs:
        mean, sem = np.asarray(rows).mean(0), np.asarray(rows).std(0) / np.sqrt(NUM)
        assert (np.abs(mean - true) < NUM_SEM * sem + 1e-5).all()
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted["encoder"])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "distance"), [("bits", 0.01), ("straight_through_one_hot", 0.25)])
def test_training_ends_near_the_entropy(name, distance):
    """No -ELBO is below the entropy of the data; independent pixels cost 0.37 nats more. Scores end within 0.01 nats of it,
    straight-through, whose gradient has a bias, within 0.25."""
    model = CASES[name].model
    options = {"num_steps": 1_500, "batch_size": 256, "optimizer": optax.adam(1e-2), "progress": False}
    params = gm.fit(model, DATA, key=jax.random.key(0), **options).params
    _, (log_p, elbo) = exact(name, params)
    nll, bound = -(TRUTH * np.asarray(log_p)).sum(), -(TRUTH * np.asarray(elbo)).sum()
    assert ENTROPY < nll < bound < ENTROPY + distance
    drawn = np.asarray(model.log_prob(params, np.repeat(STATES[:, None], NUM, 1), key=jax.random.key(1)))
    assert (np.abs(drawn.mean(1) - elbo) < NUM_SEM * drawn.std(1) / np.sqrt(NUM) + 1e-5).all()
    assert model.sample(params, jax.random.key(2), (2,)).shape == (2, 3)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(5), Renyi(0.5, 5), ELBO(stick_the_landing=True)])
def test_what_is_not_reparameterised_is_refused(objective):
    model = CASES["bits"].model
    with pytest.raises(ValueError, match=f"{type(objective).__name__} wants a reparameterised posterior.*ScoreFunctionELBO"):
        dataclasses.replace(model, objective=objective)
    with pytest.raises(ValueError, match=r"same events, got Real\(shape=\(1, 3\)\) and Atoms\(shape=\(1, 3\)\)"):
        dataclasses.replace(CASES["straight_through_one_hot"].model, prior=None)
