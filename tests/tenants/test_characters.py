"""Bring your own family: a recurrent model of strings in 40 lines, over `Tokens`, exact and normalised by enumeration."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm

pytestmark = pytest.mark.slow  # the library has the family, and its tests


# --- the model ----------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class CharacterModel(gm.Model):
    """log p(x) = sum_t log p(x_t | x_<t), up to and with the first 0, which ends a string and starts the next."""

    event: gm.Tokens
    net: gm.nets.SequenceNet
    likelihood = gm.Likelihood.EXACT

    def _init(self, key, x, context):
        return self.net.init(key, x[0])

    def log_prob_one(self, params, x, context=None, key=None):
        before = jnp.concatenate([jnp.zeros(1, x.dtype), x[:-1]])
        log_p = jax.nn.log_softmax(self.net.apply(params, before))
        chosen = jnp.take_along_axis(log_p, x[:, None].astype(int), 1)[:, 0]
        return jnp.where(self.event.mask(x), chosen, 0.0).sum()

    def sample_one(self, params, key, context=None):
        def draw(state, key):
            carry, token, over = state
            carry, logits = self.net.step(params, carry, token)
            token = jnp.where(over, 0, jax.random.categorical(key, logits))
            return (carry, token, over | (token == 0)), token

        start = self.net.init_carry(params), jnp.array(0), jnp.array(False)
        return jax.lax.scan(draw, start, jax.random.split(key, self.event.max_length))[1]

    def loss(self, params, key, batch, *, step=None):
        x, _, _ = self.read(batch)
        nll = -jax.vmap(self.log_prob_one, (None, 0))(params, x)
        return nll.mean(), {"nats_per_token": nll.sum() / self.event.num_units(x).sum()}


# --- the tests ----------------------------------------------------------------------------------------------------------------

EVENT = gm.Tokens(max_length=4, vocabulary=3, end=0)
GRU = gm.nets.Stack((gm.nets.Pointwise(nn.Embed(3, 8)), gm.nets.Recurrent(nn.GRUCell(16)), gm.nets.Pointwise(nn.Dense(3))))
MODEL = CharacterModel(EVENT, GRU)
# Every string of at most four tokens; one that fills the array never ended.
STRINGS = np.array(
    [s for s in itertools.product(range(3), repeat=4) if not any(a == 0 and b != 0 for a, b in itertools.pairwise(s))], np.int32
)


def test_sums_to_one_and_samples_what_it_says(key):
    params = jax.tree.map(lambda p: 1.5 * p, MODEL.init(key, STRINGS))
    log_p = np.asarray(MODEL.log_prob(params, STRINGS), np.float64)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1.0, atol=1e-5)
    x = np.asarray(MODEL.sample(params, key, (20_000,)))
    EVENT.check("x", x)
    shares = (x[:, None] == STRINGS[None]).all(-1).mean(0)
    np.testing.assert_allclose(shares.sum(), 1.0)
    assert (np.abs(shares - np.exp(log_p)) < 4.5 * np.sqrt(np.exp(log_p) / 20_000)).all()


def test_learns_a_law_of_strings():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(len(STRINGS), 0.3))
    data = STRINGS[rng.choice(len(STRINGS), 5_000, p=truth)]
    fit = gm.fit(MODEL, data, key=jax.random.key(0), num_steps=800, batch_size=500, progress=False)
    shares = (data[:, None] == STRINGS[None]).all(-1).mean(0)
    nll = gm.evaluate(MODEL, fit.params, data)["nll_nats"]
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert entropy - 1e-4 < nll < entropy + 0.05
    assert fit.history["nats_per_token"][-1] < fit.history["nats_per_token"][0]


@pytest.mark.parametrize(
    ("x", "match"),
    [([0, 1, 0, 0], "nothing but the token 0 after its first 0"), ([1, 3, 0, 0], r"integers in 0\.\.2, got values from 0 to 3")],
)
def test_refuses_what_is_no_string(x, match, key):
    with pytest.raises(ValueError, match=match):
        MODEL.log_prob(MODEL.init(key, STRINGS), np.array(x))
