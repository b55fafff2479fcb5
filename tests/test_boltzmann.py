"""Boltzmann machines against enumeration: energies, sums, chains, labels, imputation, exact training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.densities import BernoulliUnits, GaussianUnits, SoftmaxUnits
from genmod.models import BoltzmannMachine, Configuration, Normalized, RestrictedBoltzmannMachine, gibbs_langevin
from genmod.samplers import langevin, moved

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_DRAWS = 4_000


def sines(visible, hidden):
    """W_ij = sin(i + 2j + 1), b_i = (i - 1) / 10, c_j = -.2 + j / 10; of Gaussian x the variances are 1/2."""
    i, j = np.arange(visible.num_features), np.arange(hidden.num_features)
    params = {
        "visible": {"bias": jnp.asarray(0.1 * (i - 1))},
        "hidden": {"bias": jnp.asarray(-0.2 + 0.1 * j)},
        "weights": jnp.asarray(np.sin(i[:, None] + 2 * j + 1)),
    }
    if isinstance(visible, GaussianUnits):
        params["visible"]["log_scale"] = jnp.full(i.shape, 0.5 * np.log(0.5), params["weights"].dtype)
    return params


def random_params(model, x, seed=0, context=None):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, context)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), shapes)


SMALL = RestrictedBoltzmannMachine(BernoulliUnits((4,)), BernoulliUnits((3,)), num_sweeps=50)
LARGER = RestrictedBoltzmannMachine(BernoulliUnits((10,)), BernoulliUnits((6,)), num_sweeps=50)
GAUSSIAN = RestrictedBoltzmannMachine(GaussianUnits((4,)), BernoulliUnits((3,)), num_sweeps=50)
SOFTMAX = RestrictedBoltzmannMachine(SoftmaxUnits((3,), 3), SoftmaxUnits((2,), 4), num_sweeps=50)
LABELLED = RestrictedBoltzmannMachine(BernoulliUnits((2, 2)), BernoulliUnits((3,)), num_labels=3, num_sweeps=50)
GENERAL = BoltzmannMachine((5,), 3, num_sweeps=50)
VISIBLE = BoltzmannMachine((5,), num_sweeps=50)
STATES = np.array(list(itertools.product([0, 1], repeat=4)), np.uint8)


def bits(num):
    return np.array(list(itertools.product([0, 1], repeat=num)), float)


# --- energies and sums -------------------------------------------------------------------------------------------------------


def test_known_values(x64):
    table = gm.exact(SMALL, sines(SMALL.visible, SMALL.hidden))
    np.testing.assert_allclose(table.log_normalizer, 5.073521673, atol=5e-10)
    np.testing.assert_allclose(table.mean, [0.471152, 0.539875, 0.573249, 0.558380], atol=5e-7)
    np.testing.assert_allclose(table.entropy, 2.741069, atol=5e-7)
    for model, log_z in ((SMALL, 5.073521673), (LARGER, 14.622865), (GAUSSIAN, 6.286364)):
        np.testing.assert_allclose(model.log_normalizer(sines(model.visible, model.hidden)), log_z, atol=5e-7)


@pytest.mark.parametrize("model", [SOFTMAX, GAUSSIAN], ids=["softmax", "gaussian"])
def test_either_side_sums_to_the_same(model, x64):
    """The machine with its layers swapped is the same machine."""
    swapped = RestrictedBoltzmannMachine(model.hidden, model.visible)
    params = random_params(model, np.zeros((2, *model.event_shape), model.event.dtype))
    turned = {"visible": params["hidden"], "hidden": params["visible"], "weights": params["weights"].T}
    sums = [model.log_normalizer(params), swapped.log_normalizer(turned), gm.exact(swapped, turned).log_normalizer]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-12)


@pytest.mark.parametrize("model", [GENERAL, VISIBLE], ids=["hidden", "visible"])
def test_a_general_machine_is_its_energy(model, x64):
    params, num = random_params(model, np.zeros((2, 5), np.uint8)), model.num_units
    matrix = np.zeros((num, num))
    matrix[np.triu_indices(num, 1)] = params["couplings"]
    np.testing.assert_array_equal(model.coupling_matrix(params), matrix + matrix.T)
    s = bits(num)
    log_f = (s @ np.asarray(params["bias"]) + np.einsum("ni,ij,nj->n", s, matrix, s)).reshape(32, -1)
    np.testing.assert_allclose(
        model.log_prob(params, s[:: 2**model.num_hidden, :5].astype(np.uint8)), np.logaddexp.reduce(log_f, 1)
    )
    np.testing.assert_allclose(model.log_normalizer(params), np.logaddexp.reduce(log_f, None), rtol=1e-12)


# --- chains ------------------------------------------------------------------------------------------------------------------

DISCRETE = {"bernoulli": SMALL, "softmax": SOFTMAX, "general": GENERAL}


@pytest.mark.parametrize("name", [pytest.param("bernoulli", marks=pytest.mark.slow), "softmax", "general"])
def test_draws_follow_the_masses(name, key):
    model = DISCRETE[name]
    params = random_params(model, np.zeros((2, *model.event_shape), np.uint8), seed=1)
    table = gm.exact(model, params)
    for law in (model, Normalized(model)):
        assert abs(table.compare(law.sample(params, key, (NUM_DRAWS,))).z) < 4.5
    np.testing.assert_allclose(Normalized(model).log_prob(params, table.states), table.log_prob, atol=1e-5)


def of_gaussian(params):
    """Of the Gaussian machine: p(h), the means of x given h, and the variances."""
    h, scale2 = bits(3), np.exp(2 * np.asarray(params["visible"]["log_scale"], float))
    mean = np.asarray(params["visible"]["bias"], float) + h @ np.asarray(params["weights"], float).T
    log_mass = h @ np.asarray(params["hidden"]["bias"], float) + 0.5 * (mean**2 / scale2).sum(1)
    return np.exp(log_mass - np.logaddexp.reduce(log_mass)), mean, scale2


def check_gaussian(x, params):
    """The moments of draws of the Gaussian machine, a mixture of eight Gaussians."""
    mass, mean, scale2 = of_gaussian(params)
    wanted = mass @ mean
    second = np.einsum("k,ki,kj->ij", mass, mean, mean) + np.diag(scale2)
    sem = np.sqrt((np.diag(second) - wanted**2) / len(x))
    assert (np.abs(x.mean(0) - wanted) < 4.5 * sem).all()
    products = np.einsum("ni,nj->nij", x, x)
    assert (np.abs(products.mean(0) - second) < 4.5 * products.std(0) / np.sqrt(len(x))).all()


def test_the_gaussian_machine_is_a_mixture(key):
    params = jax.tree.map(lambda a: a.astype(jnp.float32), sines(GAUSSIAN.visible, GAUSSIAN.hidden))
    exact = np.asarray(Normalized(GAUSSIAN).sample(params, key, (NUM_DRAWS,)))
    mass, mean, scale2 = of_gaussian(params)
    parts = -0.5 * ((exact[:, None] - mean) ** 2 / scale2 + np.log(2 * np.pi * scale2)).sum(-1)
    wanted = np.logaddexp.reduce(np.log(mass) + parts, 1)
    np.testing.assert_allclose(Normalized(GAUSSIAN).log_prob(params, exact), wanted, atol=2e-5)
    kernels = GAUSSIAN.kernel(params), gibbs_langevin(GAUSSIAN, params, step_size=0.5, num_steps=2)
    check_gaussian(exact, params)
    for kernel in kernels:
        ends, _ = jax.jit(lambda key, x, kernel=kernel: moved(key, kernel, Configuration(x), num_steps=10))(key, exact)
        check_gaussian(np.asarray(ends.x), params)


def test_unadjusted_langevin_steps_raise_the_variance(key):
    params = sines(GAUSSIAN.visible, GAUSSIAN.hidden) | {"weights": jnp.zeros((4, 3))}
    kernel = gibbs_langevin(GAUSSIAN, params, step_size=0.4, kernel_fn=langevin)
    begin = GAUSSIAN.random_configurations(params, key, NUM_DRAWS)
    x = np.asarray(jax.jit(lambda key: moved(key, kernel, begin, num_steps=3))(key)[0].x)
    np.testing.assert_allclose(x.var(0), 0.5 / (1 - 0.2), rtol=4.5 * np.sqrt(2 / NUM_DRAWS))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gaussian_machine_starts_at_the_marginals_in_any_unit(dtype, x64, key):
    """Means and scales of a start, of h at the means, and of labels, by the mixture that it is."""
    rng = np.random.default_rng(0)
    x = (np.array([1e3, 10.0, 1e4, 0.0]) + np.array([1e-2, 1e-3, 1e3, 1.0]) * rng.standard_normal((500, 4))).astype(dtype)
    params = GAUSSIAN.init(key, x)
    wanted, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    mass, mean, scale2 = of_gaussian(params)
    variance = mass @ (mean - mass @ mean) ** 2 + scale2
    # b + W E[h] = m, but for what h moves about E[h] at m, 3 weights of .01 s, and for the rounding of 1e5 s.
    np.testing.assert_allclose((mass @ mean - wanted) / spread, 0.0, atol=0.05)
    np.testing.assert_allclose(variance / spread**2, 1.0, rtol=0.02)
    hidden = GAUSSIAN.hidden_mean(params, params["visible"]["bias"] + params["weights"] @ jnp.full(3, 0.5, dtype))
    np.testing.assert_allclose(hidden, 0.5, atol=1e-3)
    labelled = RestrictedBoltzmannMachine(GaussianUnits((4,)), BernoulliUnits((3,)), num_labels=2)
    label = (rng.random(500) < 0.2).astype(int)
    log_z = [labelled.log_normalizer(labelled.init(key, x, label), one) for one in np.eye(2, dtype=dtype)]
    np.testing.assert_allclose(np.exp(log_z[1] - np.logaddexp(*log_z)), label.mean(), atol=0.02)


# --- what a joint model can do -----------------------------------------------------------------------------------------------


def test_labels_are_classified_exactly(key):
    x = STATES.reshape(16, 2, 2)
    params = random_params(LABELLED, x, 2, np.arange(16) % 3)
    w, h = np.asarray(params["weights"], float), bits(3)
    units = np.concatenate([np.repeat(STATES, 3, 0), np.tile(np.eye(3), (16, 1))], 1)
    bias = np.concatenate([params["visible"]["bias"], params["label"]["bias"]])
    inputs = units @ w + np.asarray(params["hidden"]["bias"])
    joint = (units @ bias + np.logaddexp.reduce(inputs @ h.T, 1)).reshape(16, 3)
    np.testing.assert_allclose(LABELLED.log_prob(params, x[:, None], np.eye(3, dtype=np.float32)[None]), joint, rtol=1e-5)
    posterior = joint - np.logaddexp.reduce(joint, 1, keepdims=True)
    np.testing.assert_allclose(LABELLED.label_log_prob(params, x), posterior, atol=1e-5)
    np.testing.assert_allclose(LABELLED.log_normalizer(params), np.logaddexp.reduce(joint, None), rtol=1e-5)
    one = np.eye(3, dtype=np.float32)[1]
    np.testing.assert_allclose(LABELLED.log_normalizer(params, one), np.logaddexp.reduce(joint[:, 1]), rtol=1e-5)
    table = gm.exact(LABELLED, params, one)
    for law in (LABELLED, Normalized(LABELLED)):
        assert abs(table.compare(law.sample(params, key, (NUM_DRAWS,), one)).z) < 4.5


@pytest.mark.parametrize(
    "model",
    [SMALL, pytest.param(BoltzmannMachine((4,), 2, num_sweeps=50), marks=pytest.mark.slow)],
    ids=["restricted", "general"],
)
def test_what_is_missing_is_drawn_from_its_conditional_law(model, key):
    params = random_params(model, STATES, 3)
    prob = gm.exact(model, params).prob.reshape(2, 2, 2, 2)
    x = np.tile(np.array([1, 0, 0, 1], np.uint8), (NUM_DRAWS, 1))
    filled = np.asarray(model.impute(params, key, x, np.tile([False, True, True, False], (NUM_DRAWS, 1))))
    np.testing.assert_array_equal(filled[:, [0, 3]], x[:, [0, 3]])
    wanted = prob[1, :, :, 1] / prob[1, :, :, 1].sum()
    shares = np.bincount(filled[:, 1] * 2 + filled[:, 2], minlength=4).reshape(2, 2) / NUM_DRAWS
    assert (np.abs(shares - wanted) < 4.5 * np.sqrt(wanted * (1 - wanted) / NUM_DRAWS)).all()


def test_a_number_of_labels_may_be_one_of_numpy():
    assert RestrictedBoltzmannMachine(BernoulliUnits((2, 2)), BernoulliUnits((3,)), num_labels=np.int64(3)).context_shape == (3,)


def test_means_of_one_layer_given_the_other():
    params = sines(SMALL.visible, SMALL.hidden)
    w, h = np.asarray(params["weights"]), np.array([[1, 0, 1], [0, 0, 0]], np.uint8)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    wanted = sigmoid(STATES @ w + np.asarray(params["hidden"]["bias"]))
    np.testing.assert_allclose(SMALL.hidden_mean(params, STATES), wanted, rtol=1e-5)
    np.testing.assert_allclose(SMALL.visible_mean(params, h), sigmoid(h @ w.T + np.asarray(params["visible"]["bias"])), rtol=1e-5)


# --- exact training ----------------------------------------------------------------------------------------------------------


def test_the_exact_gradient_is_that_of_the_enumerated_likelihood(x64, key):
    params, rng = sines(SMALL.visible, SMALL.hidden), np.random.default_rng(0)
    weight = rng.dirichlet(np.ones(16))
    h = bits(3)

    def by_hand(params):
        log_f = (STATES @ params["visible"]["bias"])[:, None] + (h @ params["hidden"]["bias"])[None]
        log_f = log_f + STATES @ params["weights"] @ h.T
        return jax.nn.logsumexp(log_f) - weight @ jax.nn.logsumexp(log_f, 1)

    wanted = jax.grad(by_hand)(params)
    found = jax.grad(lambda p: Normalized(SMALL).loss(p, key, gm.Batch(STATES, None, weight))[0])(params)
    prob = gm.exact(SMALL, params).prob
    rows = Configuration(jnp.asarray(STATES))
    contrast = jax.grad(
        lambda p: gm.losses.contrast(lambda c: SMALL.log_density_one(p, c), rows, rows, weight=weight, sample_weight=prob)[0]
    )(params)
    for grads in (found, contrast):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), grads, wanted)
    # The sign: <x h> of the data less that of the model, downhill.
    hidden = np.asarray(SMALL.hidden_mean(params, STATES))
    np.testing.assert_allclose(found["weights"], STATES.T @ ((prob - weight)[:, None] * hidden), atol=1e-10)


def test_a_student_of_a_teacher_has_its_moments(x64, key):
    teacher = gm.exact(VISIBLE, random_params(VISIBLE, np.zeros((2, 5), np.uint8), 4))
    data = gm.Batch(teacher.states, None, teacher.prob)
    model = Normalized(VISIBLE)
    fit = gm.fit(model, data, key=key, optimizer=gm.call(optax.lbfgs), num_steps=100, batch_size=32, progress=False)
    student = gm.exact(VISIBLE, fit.params)
    np.testing.assert_allclose(student.mean, teacher.mean, atol=1e-6)
    np.testing.assert_allclose(student.covariance, teacher.covariance, atol=1e-6)
    assert abs(teacher.kl(student)) < 1e-9


# --- refusals ----------------------------------------------------------------------------------------------------------------


def test_refused(key):
    with pytest.raises(ValueError, match=r"^x must be integers in 0\.\.1, got values from 0 to 3"):
        SMALL.log_prob(sines(SMALL.visible, SMALL.hidden), np.array([0, 1, 3, 0]))
    with pytest.raises(TypeError, match=r"^data must be integers in 0\.\.1, got float32"):
        gm.fit(SMALL, np.zeros((8, 4), np.float32), key=key)
    wide = RestrictedBoltzmannMachine(BernoulliUnits((40,)), BernoulliUnits((50,)))
    params = wide.init(key, np.zeros((4, 40), np.uint8))
    with pytest.raises(ValueError, match=r"smaller side of a Restricted\w+ has about 2\^40 states, at most 1048576 .*bracket"):
        wide.log_normalizer(params)
    with pytest.raises(ValueError, match=r"has about 2\^40 states, at most 1048576 can be gone through"):
        gm.exact(wide, params)
    general = BoltzmannMachine((10,), 30)
    params = general.init(key, np.zeros((4, 10), np.uint8))
    with pytest.raises(ValueError, match=r"the hidden side of a BoltzmannMachine has about 2\^30 states"):
        general.log_prob(params, np.zeros(10, np.uint8))
    with pytest.raises(ValueError, match="two Gaussian layers have no finite Z"):
        RestrictedBoltzmannMachine(GaussianUnits((3,)), GaussianUnits((2,)))
    with pytest.raises(TypeError, match="^model must have GaussianUnits as its visible layer"):
        gibbs_langevin(SMALL, sines(SMALL.visible, SMALL.hidden))
    with pytest.raises(ValueError, match="^num_steps must be an integer >= 1, got 0"):
        gibbs_langevin(GAUSSIAN, sines(GAUSSIAN.visible, GAUSSIAN.hidden), num_steps=0)
    with pytest.raises(ValueError, match=r"^missing must be bools of shape \(16, 4\), that of x, got float32"):
        SMALL.impute(sines(SMALL.visible, SMALL.hidden), key, STATES, np.zeros((16, 4)))
    for call in (
        lambda: SMALL.log_normalizer({}),
        lambda: SMALL.impute({}, key, STATES, STATES == 1),
        lambda: SMALL.visible_mean({}, np.zeros(3, np.uint8)),
        lambda: LABELLED.label_log_prob({}, STATES.reshape(16, 2, 2)),
    ):
        with pytest.raises(
            ValueError, match="^params must be those of this RestrictedBoltzmannMachine, made by its init: .*missing"
        ):
            call()
    with pytest.raises(ValueError, match="this machine has no label"):
        SMALL.label_log_prob(sines(SMALL.visible, SMALL.hidden), STATES)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: BoltzmannMachine((4,), num_hidden=-1), "^num_hidden must be an integer >= 0, got -1"),
        (lambda: BoltzmannMachine((4,), num_hidden=1.5), "^num_hidden must be an integer >= 0, got 1.5"),
        (lambda: BoltzmannMachine((4,), start_scale=float("nan")), "^start_scale must be finite and >= 0, got nan"),
        (
            lambda: RestrictedBoltzmannMachine(BernoulliUnits((2,)), BernoulliUnits((2,)), num_labels=2.5),
            "^num_labels must be 0 or an integer >= 2, got 2.5",
        ),
    ],
)
def test_bad_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()
