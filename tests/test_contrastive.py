"""Contrastive training of Boltzmann machines: biases without sampling noise, centred gradients, chains in the state of a step."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import genmod as gm
from genmod.densities import BernoulliUnits, GaussianUnits
from genmod.models import BoltzmannMachine, Configuration, EnergyModel, Normalized, RestrictedBoltzmannMachine, gibbs_langevin
from genmod.training import ContrastiveStep, DataChains, FreshChains, PersistentChains, TemperedChains

pytestmark = pytest.mark.usefixtures("quick_compile")
MODEL = RestrictedBoltzmannMachine(BernoulliUnits((4,)), BernoulliUnits((3,)))
STATES = np.array(list(itertools.product([0, 1], repeat=4)), np.uint8)
HIDDEN = np.array(list(itertools.product([0, 1], repeat=3)), np.uint8)
SGD = gm.call(optax.sgd, 0.05)


def sines(scale=1.0):
    i, j = np.arange(4), np.arange(3)
    return {
        "visible": {"bias": jnp.asarray(0.1 * (i - 1))},
        "hidden": {"bias": jnp.asarray(-0.2 + 0.1 * j)},
        "weights": jnp.asarray(scale * np.sin(i[:, None] + 2 * j + 1)),
    }


@functools.cache
def teacher():
    return gm.exact(MODEL, jax.tree.map(lambda a: a.astype(jnp.float32), sines(2.0)))


def transition(params):
    """The probabilities of one step of the chain, x to x', by sums over h."""
    mean_h, mean_x = np.asarray(MODEL.hidden_mean(params, STATES)), np.asarray(MODEL.visible_mean(params, HIDDEN))
    h_given_x = np.prod(np.where(HIDDEN[None] == 1, mean_h[:, None], 1 - mean_h[:, None]), -1)
    x_given_h = np.prod(np.where(STATES[None] == 1, mean_x[:, None], 1 - mean_x[:, None]), -1)
    return h_given_x @ x_given_h


def gradient(params, weight, sample_weight):
    """The gradient of the contrast of all states, each with its weight: no sampling."""
    rows = Configuration(jnp.asarray(STATES))

    def loss(params):
        log_f = functools.partial(MODEL.log_density_one, params)
        return gm.losses.contrast(log_f, rows, rows, weight=weight, sample_weight=sample_weight)[0]

    return jax.flatten_util.ravel_pytree(jax.grad(loss)(params))[0]


def test_the_bias_of_contrastive_divergence_falls_with_its_steps(x64):
    params, data = sines(2.0), np.random.default_rng(0).dirichlet(np.ones(16))
    matrix, prob = transition(params), gm.exact(MODEL, params).prob
    np.testing.assert_allclose(prob @ matrix, prob, atol=1e-12)  # the chain leaves the model invariant
    np.testing.assert_allclose(prob[:, None] * matrix, (prob[:, None] * matrix).T, atol=1e-12)  # and is reversible
    exact = gradient(params, data, prob)
    biases = [
        np.linalg.norm(gradient(params, data, data @ np.linalg.matrix_power(matrix, k)) - exact) for k in (1, 2, 4, 8, 16, 20)
    ]
    assert (np.diff(biases) < 0).all() and biases[0] > 0.05
    # At last by the second eigenvalue a step.
    second = np.sort(np.abs(np.linalg.eigvals(matrix)))[-2]
    np.testing.assert_allclose(biases[-1] / biases[-2], second**4, rtol=0.02)


def test_the_kernel_moves_by_these_probabilities(key):
    params = jax.tree.map(lambda a: a.astype(jnp.float32), sines())
    begin = Configuration(jnp.tile(jnp.array([1, 0, 1, 1], jnp.uint8), (8_000, 1)))
    ends = jax.jit(lambda key: gm.samplers.moved(key, MODEL.kernel(params), begin)[0])(key)
    law = teacher()._replace(log_prob=np.log(transition(params)[11]))
    assert abs(law.compare(ends.x).z) < 4.5


# --- centring ------------------------------------------------------------------------------------------------------------------

GENERAL = BoltzmannMachine((4,), 2)


@pytest.mark.parametrize("model", [MODEL, GENERAL, RestrictedBoltzmannMachine(GaussianUnits((4,)), BernoulliUnits((3,)))])
def test_centred_parameters_are_those_of_the_same_law(model, x64, key):
    x = np.random.default_rng(0).integers(0, 2, (50, 4)).astype(model.event.dtype)
    params = jax.tree.map(lambda a: a + 0.5, model.init(key, x))
    data = model.configurations(params, key, jnp.asarray(x))
    offsets = jax.tree.map(lambda a: a.mean(0), jax.vmap(model.offsets_one, (None, 0))(params, data))
    centred = model.centred(params, offsets)
    back = model.uncentred(centred, offsets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), back, params)
    assert any((np.abs(a - b) > 0.1).any() for a, b in zip(*map(jax.tree.leaves, (centred, params)), strict=True))


@dataclasses.dataclass(frozen=True)
class AllStates(gm.training.Chains):
    """Every state once, in the place of samples."""

    def init(self, model, params, key, data, weight=None):
        return ()

    def draw(self, model, params, key, state, data, weight=None):
        return (), Configuration(jnp.asarray(STATES)), {}


def test_a_step_follows_the_centred_gradient(x64, key):
    """W: <(x - m) (h - l)^T> of data less that of samples; b: <x> likewise, less that of W times l (Melchior et al. 2016)."""
    params, x = sines(), STATES[[1, 2, 7, 7, 9, 15]]
    step = ContrastiveStep(MODEL, gm.call(optax.sgd, 0.1), AllStates(), centring=0.9)
    after, metrics = step(step.init(params, key, x), key, x)
    h, all_h = (np.asarray(MODEL.hidden_mean(params, rows)) for rows in (x, STATES))
    mean_x, mean_h = x.mean(0), h.mean(0)
    w = (x - mean_x).T @ (h - mean_h) / 6 - (STATES - mean_x).T @ (all_h - mean_h) / 16
    b = mean_x - STATES.mean(0) - w @ mean_h
    c = mean_h - all_h.mean(0) - mean_x @ w
    moves = {"visible": {"bias": b}, "hidden": {"bias": c}, "weights": w}
    jax.tree.map(lambda a, old, d: np.testing.assert_allclose(a, old + 0.1 * d, atol=1e-12), after.params, params, moves)
    energies = -np.asarray(MODEL.log_prob(params, STATES)).mean(), -np.asarray(MODEL.log_prob(params, x)).mean()
    np.testing.assert_allclose([metrics["energy_nats"], metrics["loss"]], [energies[1], energies[1] - energies[0]], rtol=1e-12)


def test_a_bit_and_its_complement_are_trained_alike(x64, key):
    """The centred gradient at a machine of flipped bits is the flipped gradient; the plain one is not."""
    x, flip = STATES[[1, 2, 7, 9]], np.array([1, 0, 0, 1])
    sign = jnp.asarray(1 - 2 * flip)

    def flipped(p):
        """The law of |x - flip|."""
        hidden = p["hidden"]["bias"] + flip @ p["weights"]
        return {
            "visible": {"bias": sign * p["visible"]["bias"]},
            "hidden": {"bias": hidden},
            "weights": sign[:, None] * p["weights"],
        }

    apart = {}
    for centring in (0.9, None):
        step = ContrastiveStep(MODEL, SGD, AllStates(), centring=centring)
        after = step(step.init(sines(), key, x), key, x)[0].params
        other = step(step.init(flipped(sines()), key, x ^ flip), key, (x ^ flip).astype(np.uint8))[0].params
        apart[centring] = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), flipped(after), other)))
    assert apart[0.9] < 1e-12 and apart[None] > 1e-3


@pytest.mark.parametrize("chains", [DataChains(), PersistentChains(20)], ids=["data", "persistent"])
def test_a_step_is_the_same_in_any_unit_and_about_any_origin(chains, x64, key):
    """Of columns u and of m + s u: the bias follows as x does, weights by s, log s by log s; h sees what it saw."""
    rng = np.random.default_rng(0)
    label, u = rng.integers(0, 2, 200), rng.standard_normal((200, 3))
    u[:, 1] += 2.0 * label
    m, s = np.array([1e4, 10.0, -3.0]), np.array([1e-3, 1e3, 1.0])
    model = RestrictedBoltzmannMachine(GaussianUnits((3,)), BernoulliUnits((2,)), num_labels=2, start_scale=0.5)
    step = ContrastiveStep(model, gm.call(optax.sgd, 0.05), chains)
    one, other = (
        gm.fit(model, (x, label), key=key, step=step, num_steps=40, batch_size=50, progress=False).params for x in (u, m + s * u)
    )
    assert (np.abs(one["weights"]).max(1) > 0.05).all()
    wanted = {
        "visible": {"bias": m + s * one["visible"]["bias"], "log_scale": np.log(s) + one["visible"]["log_scale"]},
        "hidden": {"bias": one["hidden"]["bias"] - (m / s * np.exp(-2 * one["visible"]["log_scale"])) @ one["weights"][:3]},
        "label": one["label"],
        "weights": np.concatenate([s, [1.0, 1.0]])[:, None] * one["weights"],
    }
    # m + s u has lost the digits of m / s eps, 2e-9; the bias of h is of the order of 1e6.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), other, wanted)


# --- training ------------------------------------------------------------------------------------------------------------------

CHAINS = {
    "data": DataChains(2),
    "fresh": FreshChains(100, 20),
    "persistent": PersistentChains(100),
    "tempered": TemperedChains(50, 4),
}


@pytest.mark.parametrize(
    "name", ["persistent", *(pytest.param(n, marks=pytest.mark.slow) for n in ("data", "fresh", "tempered"))]
)
def test_learns_the_law_of_a_teacher(name, key):
    table = teacher()
    x = np.asarray(table.sample(key, (10_000,)))
    step = ContrastiveStep(MODEL, gm.call(optax.sgd, 0.1), CHAINS[name], ema_decay=0.99)
    fit = gm.fit(MODEL, x, key=key, step=step, num_steps=3_000, batch_size=200, progress=False)
    begin = gm.exact(MODEL, MODEL.init(key, x))
    assert table.kl(gm.exact(MODEL, fit.params)) < 0.1 * table.kl(begin)
    assert set(fit.history) >= {"loss", "energy_nats", "grad_norm"}
    if name == "tempered":
        assert (np.asarray(fit.history["swap_rate"]) > 0.1).all()


@pytest.mark.slow
def test_the_default_step_and_a_general_machine_learn(key):
    table = teacher()
    x = np.asarray(table.sample(key, (10_000,)))
    persistent = ContrastiveStep(GENERAL, gm.call(optax.sgd, 0.1), PersistentChains(100))
    for model, how in ((MODEL, {"optimizer": gm.call(optax.adam, 0.01)}), (GENERAL, {"step": persistent})):
        fit = gm.fit(model, x, key=key, num_steps=3_000, batch_size=200, progress=False, **how)
        assert table.kl(gm.exact(model, fit.params)) < 0.2 * table.kl(gm.exact(model, model.init(key, x)))


@pytest.mark.slow
def test_a_gaussian_machine_learns_by_langevin_steps(key):
    rng = np.random.default_rng(0)
    x = (np.array([[-2.0, 0.0], [2.0, 1.0]])[rng.integers(0, 2, 5_000)] + 0.5 * rng.standard_normal((5_000, 2))).astype(
        np.float32
    )
    model = RestrictedBoltzmannMachine(GaussianUnits((2,)), BernoulliUnits((2,)))
    chains = PersistentChains(100, 2, gm.call(gibbs_langevin, step_size=0.3, num_steps=3))
    step = ContrastiveStep(model, gm.call(optax.adam, 0.01), chains)
    fit = gm.fit(model, x, key=key, step=step, num_steps=3_000, batch_size=200, progress=False)
    nll = [gm.evaluate(Normalized(model), params, x)["nll_nats"] for params in (model.init(key, x), fit.params)]
    entropy = np.log(2) + np.log(2 * np.pi * np.e * 0.25)  # of two Gaussians that do not overlap
    assert nll[1] < entropy + 0.1 < nll[0] - 0.3


def test_narrow_and_constant_columns_are_learned(key):
    """In float32, where the weights and the scale of one column without units leave all others NaN."""
    rng = np.random.default_rng(0)
    u = np.where(rng.random(500) < 0.5, 1.0, -1.0)[:, None] + 0.6 * rng.standard_normal((500, 2))
    x = np.concatenate([np.array([1e3, 0.0]) + np.array([1e-2, 1e2]) * u, np.full((500, 1), 1e3), np.zeros((500, 1))], 1)
    model = RestrictedBoltzmannMachine(GaussianUnits((4,)), BernoulliUnits((2,)))
    step = ContrastiveStep(model, gm.call(optax.sgd, 0.1), PersistentChains(100))
    params = gm.fit(model, x.astype(np.float32), key=key, step=step, num_steps=600, batch_size=100, progress=False).params
    draws = np.asarray(Normalized(model).sample(params, key, (4_000,)), np.float64)
    np.testing.assert_allclose((draws.mean(0) - x.mean(0))[:2] / x.std(0)[:2], 0.0, atol=0.2)
    np.testing.assert_allclose(draws.std(0)[:2] / x.std(0)[:2], 1.0, atol=0.2)
    assert np.corrcoef(draws[:, :2].T)[0, 1] > 0.6  # of x 0.74, of the start 0
    np.testing.assert_allclose(draws[:, 2], 1e3, atol=0.1)
    np.testing.assert_allclose(draws[:, 3], 0.0, atol=1e-6)


@pytest.mark.slow
def test_stopped_and_resumed_with_its_chains(tmp_path):
    data = np.random.default_rng(1).integers(0, 2, (300, 4), np.uint8)
    step = ContrastiveStep(MODEL, SGD, TemperedChains(5, 3))
    options = {"key": jax.random.key(0), "step": step, "batch_size": 50, "validate_every": 10, "progress": False}
    whole = gm.fit(MODEL, data, num_steps=60, **options)
    for num_steps in (20, 60):
        halves = gm.fit(MODEL, data, num_steps=num_steps, checkpoint=tmp_path, **options)
    jax.tree.map(np.testing.assert_array_equal, halves.state, whole.state)
    assert whole.state.chains.replicas.x.shape == (5, 3, 4) and whole.state.chains.replicas.x.dtype == np.uint8


def test_rows_of_weight_two_are_two_rows(x64, key):
    x = STATES[[1, 2, 7, 9]]
    step = ContrastiveStep(MODEL, SGD, AllStates())
    once, twice = gm.Batch(x, None, np.array([1.0, 2.0, 1.0, 0.0])), x[[0, 1, 1, 2]]
    after = [step(step.init(sines(), key, batch), key, batch)[0].params for batch in (once, twice)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *after)


@pytest.mark.parametrize("by", ["loss", "step"])
def test_chains_that_begin_at_rows_of_weight_zero_count_for_nothing(by, key):
    """Whatever stands in such a row, the gradient is the same, to the last digit."""
    params, weight = jax.tree.map(lambda a: a.astype(jnp.float32), sines()), np.array([1.0, 2.0, 1.0, 0.0], np.float32)
    step = ContrastiveStep(MODEL, SGD)

    def gradient(batch):
        if by == "loss":
            return jax.grad(lambda p: MODEL.loss(p, key, batch)[0])(params)
        return step(step.init(params, key, gm.Batch(STATES[:4])), key, batch)[0].params

    one, other = (gradient(gm.Batch(STATES[rows], None, weight)) for rows in ([1, 2, 7, 9], [1, 2, 7, 14]))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_data_are_checked_at_the_door(key):
    step, options = ContrastiveStep(MODEL, SGD), {"key": key, "num_steps": 1, "progress": False}
    with pytest.raises(ValueError, match=r"^data must be integers in 0\.\.1, got values from 0 to 3$"):
        gm.fit(MODEL, np.arange(16).reshape(4, 4) % 4, step=step, **options)
    with pytest.raises(ValueError, match="^validation of a RestrictedBoltzmannMachine wants validate=...: its loss is no"):
        gm.fit(MODEL, STATES, step=step, validation=STATES, **options)


class Quadratic(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sum((x - self.param("mean", nn.initializers.zeros, x.shape)) ** 2)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (MODEL, r"where the states of one side are few, gm\.training\.FinalLoss"),
        (EnergyModel((4,), Quadratic()), r"; gm\.training\.Whole"),
    ],
    ids=["states", "energy"],
)
def test_the_hint_of_validation_is_one_that_the_model_can_follow(model, match, key):
    rows = STATES.astype(model.event.dtype)
    with pytest.raises(ValueError, match=match):
        gm.fit(model, rows, validation=rows, key=key, num_steps=1, progress=False)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ContrastiveStep(gm.flows.affine((2,)), SGD), TypeError, "^model must be a UnnormalizedModel, got"),
        (lambda: ContrastiveStep(MODEL, 0.1), TypeError, "^optimizer must be one of Optax"),
        (lambda: ContrastiveStep(MODEL, SGD, "pcd"), TypeError, "^chains must be a Chains, got 'pcd'"),
        (lambda: ContrastiveStep(MODEL, SGD, centring=1.0), ValueError, r"^centring must be None or in \[0, 1\), got 1.0"),
        (lambda: PersistentChains(0), ValueError, "^num_chains must be an integer >= 1, got 0"),
        (lambda: TemperedChains(10, 1), ValueError, "^num_levels must be at least 2, got 1"),
    ],
)
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
