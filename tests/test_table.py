"""Discrete models as tables: every sum against another way to the same number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod.core.distribution import Likelihood
from genmod.inference.table import ExactTable, states

BITS = gm.Levels((3,), 2)


@dataclasses.dataclass(frozen=True)
class Ising(gm.Distribution):
    """exp(x' W x / 2 + b' x) of bits, up to a constant or not."""

    event: gm.Event = BITS
    likelihood = Likelihood.UNNORMALIZED

    def _init(self, key, x, context):
        return {"w": jnp.array([[0.0, 1.0, -0.5], [1.0, 0.0, 0.3], [-0.5, 0.3, 0.0]]), "b": jnp.array([0.2, -0.4, 0.1])}

    def log_prob_one(self, params, x, context=None, key=None):
        x = x.astype(jnp.float32)
        return 0.5 * x @ params["w"] @ x + params["b"] @ x

    def sample_one(self, params, key, context=None):
        raise NotImplementedError


@pytest.fixture(scope="module")
def table():
    model = Ising()
    return gm.exact(model, model._init(None, None, None), batch_size=3)


def test_sums_are_those_of_all_states(table):
    x = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    params = Ising()._init(None, None, None)
    w, b = np.asarray(params["w"], float), np.asarray(params["b"], float)
    energies = 0.5 * np.einsum("ni,ij,nj->n", x, w, x) + x @ b
    p = np.exp(energies) / np.exp(energies).sum()
    np.testing.assert_array_equal(table.states, x)
    assert table.log_normalizer == pytest.approx(np.log(np.exp(energies).sum()), abs=1e-6)
    np.testing.assert_allclose(table.prob, p, rtol=1e-6)
    np.testing.assert_allclose(table.mean, p @ x, rtol=1e-6)
    np.testing.assert_allclose(table.covariance, np.cov(x.T, aweights=p, ddof=0), atol=1e-6)
    assert table.entropy == pytest.approx(-np.sum(p * np.log(p)), abs=1e-6)
    uniform = table._replace(log_prob=np.full(8, -np.log(8)))
    assert table.kl(uniform) == pytest.approx(np.log(8) - table.entropy, abs=1e-6)
    assert table.kl(table) == 0


def test_draws_agree_and_others_do_not(table):
    draws = table.sample(jax.random.key(0), (20_000,))
    assert draws.dtype == table.event.dtype and abs(table.compare(draws).z) < 4
    uniform = table._replace(log_prob=np.full(8, -np.log(8)))
    assert uniform.compare(draws).z > 20
    np.testing.assert_array_equal(table.states[table.places(draws[:50])], draws[:50])
    without = table._replace(log_prob=np.where(np.arange(8) == 3, -np.inf, table.log_prob))
    assert without.compare(table.states[[3, 3] + 20 * [1, 2]]).num_impossible == 2


def test_chi_square_has_its_own_expectation_and_variance(table):
    """The mean of z over many samples is 0 and its variance 1, also where a cell expects few draws."""
    z = [table.compare(table.sample(jax.random.key(i), (200,))).z for i in range(400)]
    assert abs(np.mean(z)) < 4 / np.sqrt(400) and 0.6 < np.std(z) < 1.4


def test_states_of_few_draws_are_compared_too():
    uniform = ExactTable(gm.Levels((12,), 2), states(gm.Levels((12,), 2)), np.full(4096, -np.log(4096)), 0.0)
    found = uniform.compare(uniform.sample(jax.random.key(1), (10_000,)))
    assert found.cells > 1_000 and abs(found.z) < 4
    assert uniform.compare(np.zeros((10_000, 12), np.uint8)).z > 1_000
    with pytest.raises(ValueError, match="draws must be enough for two cells"):
        uniform.compare(np.zeros((6, 12), np.uint8))


def test_one_context_is_one(key):
    law = gm.densities.Amortized(gm.densities.Factorized(gm.densities.CategoricalHead(3), (1,)), (2,))
    params = jax.tree.map(lambda a: a + 1.0, law.init(key, jnp.zeros((4, 1), jnp.uint8), jnp.ones((4, 2))))
    assert abs(gm.exact(law, params, jnp.array([1.0, 0.0])).log_normalizer) < 1e-6
    with pytest.raises(ValueError, match="context must have shape"):
        gm.exact(law, params, jnp.ones((3, 2)))


@pytest.mark.parametrize("event", [gm.Tokens(3, 3, end=1), gm.Tokens(70, 2, end=0), gm.Levels((2, 2), 3)])
def test_every_state_is_found_in_its_place(event):
    found = states(event)
    np.testing.assert_array_equal(ExactTable(event, found, np.zeros(len(found)), 0.0).places(found), np.arange(len(found)))


def test_states_of_tokens_are_all_valid_ones_once():
    event = gm.Tokens(3, 3, end=1)
    found = states(event)
    assert len(found) == 1 + 2 + 4 + 8 == len(np.unique(found, axis=0))
    event.check("x", found)
    assert states(gm.Levels((2, 2), 3)).shape == (81, 2, 2)


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (gm.Real((2,)), TypeError, "discrete"),
        (gm.Counts((2,)), TypeError, "discrete"),
        (gm.Levels((40,), 2), ValueError, "2\\^40"),
    ],
)
def test_other_events_are_refused(event, error, message):
    with pytest.raises(error, match=message):
        gm.exact(Ising(event), {})


LOGITS = np.array([[0.2, -0.1, 0.0], [1.0, 0.5, -2.0]], np.float32)
CATEGORICAL = gm.densities.Factorized(gm.densities.CategoricalHead(3), (2,))


@pytest.mark.parametrize(
    ("model", "params", "context"),
    [
        (CATEGORICAL, {"raw": LOGITS}, None),
        (
            gm.densities.Amortized(CATEGORICAL, (6,)),
            {"distribution": {"raw": np.zeros((2, 3), np.float32)}, "kernel": np.eye(6, dtype=np.float32)},
            LOGITS.ravel(),
        ),
    ],
    ids=["factorized", "amortized"],
)
def test_laws_of_the_library(model, params, context):
    """Independent levels, whose table is an outer product, with parameters of their own or by a context."""
    table = gm.exact(model, params, context)
    rows = np.asarray(jax.nn.softmax(LOGITS), np.float64)
    np.testing.assert_allclose(table.prob, np.outer(*rows).ravel(), rtol=1e-6)
    assert table.entropy == pytest.approx(-np.sum(rows * np.log(rows)), rel=1e-6) and abs(table.log_normalizer) < 1e-6


def test_atoms_are_refused():
    """One-hot vectors are real numbers: the levels that they stand for have a table."""
    model = gm.densities.StraightThrough(gm.densities.RelaxedCategorical((2,), 3, 0.5))
    with pytest.raises(TypeError, match="discrete"):
        gm.exact(model, {"raw": LOGITS})


def test_bounds_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Bound(Ising):
        likelihood = Likelihood.LOWER_BOUND

    with pytest.raises(ValueError, match="LOWER_BOUND"):
        gm.exact(Bound(), {})
