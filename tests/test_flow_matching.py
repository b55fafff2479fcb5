"""Flow matching and continuous flows against Gaussian data, for which every field, loss and density is known."""

import dataclasses
import functools

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import genmod as gm
from genmod.bijectors import CNF, Affine, Chain, Elementwise, Standardize
from genmod.core.params import trainable_mask
from genmod.denoising.schedules import VarianceExploding, VariancePreserving
from genmod.densities import GaussianMixture, Laplace, Normal
from genmod.dynamics import RK4, Adaptive, FixedSteps
from genmod.dynamics.divergence import Hutchinson
from genmod.models import Flow, FlowMatching, Reflow
from genmod.nets import Guided, VelocityMLP
from genmod.transport.paths import BrownianBridge, Linear, OptimalTransport, Scheduled, Trigonometric

pytestmark = pytest.mark.usefixtures("quick_compile")
# Gaussian data N(MEAN, SCALE^2), independent coordinates.
MEAN, SCALE = (1.0, -0.5), (0.4, 1.5)
SMALL = {"hidden_sizes": (8,), "activation": jnp.tanh, "integrator": FixedSteps(8)}


def coefficients(path, t):
    """(a, b, c) and their rates in x_t = a x1 + b z + c noise with z, noise ~ N(0, 1); every path here is linear."""
    zero, one = jnp.zeros_like(t), jnp.ones_like(t)
    source = (path.source_scale or 1.0) * one
    inputs = ((zero, one, zero), (source, zero, zero), (zero, zero, one))
    found = [path.point_and_velocity(t, *x0_x1_noise) for x0_x1_noise in inputs]
    return tuple(p for p, _ in found), tuple(v for _, v in found)


class Marginal(nn.Module):
    """E[dx_t / dt | x_t = x] for Gaussian data: a' m + (v' / 2 v) (x - a m), v = a^2 s^2 + b^2 + c^2 the variance of x_t."""

    along: gm.transport.Path
    mean: tuple[float, ...] = MEAN
    scale: tuple[float, ...] = SCALE
    factor: float = 1.0
    shift: float = 0.0

    def __call__(self, x, t):
        (a, b, c), (da, db, dc) = coefficients(self.along, t)
        mean, variance = jnp.asarray(self.mean, x.dtype), jnp.asarray(self.scale, x.dtype) ** 2
        half_rate = a * da * variance + b * db + c * dc
        velocity = da * mean + half_rate / (a**2 * variance + b**2 + c**2) * (x - a * mean)
        return self.factor * velocity + self.shift


class Straight(nn.Module):
    """The field of x(t) = (1 - t) z + t (m + s z), straight lines from N(0, 1) to N(m, s^2)."""

    def __call__(self, x, t):
        mean, scale = jnp.asarray(MEAN, x.dtype), jnp.asarray(SCALE, x.dtype)
        return mean + (scale - 1) * (x - t * mean) / (1 - t + t * scale)


def gaussian_data(num, seed=0, dtype=np.float32):
    z = np.random.default_rng(seed).standard_normal((num, len(MEAN)))
    return (np.asarray(MEAN) + np.asarray(SCALE) * z).astype(dtype)


def exact_model(path, **changes):
    integrator = changes.pop("integrator", FixedSteps(40))
    return FlowMatching(CNF(Marginal(path, **changes), integrator), Normal((2,), path.source_scale or 1.0), path)


NO_PARAMS = {"bijector": ({},)}


def moved(params, scale=0.4, seed=0):
    """The trainable parameters plus noise: at the start a field is zero."""
    rng = np.random.default_rng(seed)
    noise = jax.tree.map(lambda p: np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)
    return jax.tree.map(lambda p, n, trained: p + n if trained else p, params, noise, trainable_mask(params))


# --- the regression --------------------------------------------------------------------------------------------------------

PATHS = {
    "linear": Linear(),
    "linear_noisy": Linear(0.3),
    "optimal_transport": OptimalTransport(0.1),
    "trigonometric": Trigonometric(),
    "variance_preserving": Scheduled(VariancePreserving(), times=(0.0, 0.99)),
    "variance_exploding": Scheduled(VarianceExploding(0.1, 5.0)),
    "brownian_bridge": BrownianBridge(0.5),
}


def conditional_variance(path):
    """E |dx_t / dt - E[. | x_t]|^2 / size^2 over t ~ U(times), by quadrature, and the mean and the largest of 1 / size^2."""

    low, high = path.times
    nodes, weights = np.polynomial.legendre.leggauss(400)
    times = jnp.asarray((low + high) / 2 + (high - low) / 2 * nodes)
    (a, b, c), (da, db, dc) = (
        [np.asarray(v)[:, None] for v in vs] for vs in jax.jit(jax.vmap(functools.partial(coefficients, path)))(times)
    )
    variance = np.square([SCALE])
    half_rate = a * da * variance + b * db + c * dc
    remaining = da**2 * variance + db**2 + dc**2 - half_rate**2 / (a**2 * variance + b**2 + c**2)
    per_size = 1 / np.asarray(path.sizes(times)[1]) ** 2
    return weights / 2 @ (per_size * remaining.sum(1)), weights / 2 @ per_size, per_size.max()


@pytest.mark.parametrize("name", PATHS)
def test_the_exact_field_has_the_smallest_loss(name, key):
    """Its loss is the variance of the conditional velocities; a field that is off by d has E |d|^2 more."""
    path, x, num = PATHS[name], gaussian_data(20_000), 20_000
    with jax.enable_x64(True):
        wanted, scale, largest = conditional_variance(path)
    if name == "linear":  # int s^2 / ((1 - t)^2 + t^2 s^2) dt = s pi / 2
        np.testing.assert_allclose(wanted, sum(SCALE) * np.pi / 2, rtol=1e-6)

    @jax.jit
    def losses(x):
        fields = ({}, {"shift": 0.3}, {"factor": 1.2})
        return [exact_model(path, **changes).loss(NO_PARAMS, key, x) for changes in fields]

    (loss, metrics), (shifted, _), (faster, _) = losses(x)
    assert metrics["velocity_error"] == loss
    assert abs(loss - wanted) < 4 * metrics["velocity_error_sem"], (loss, wanted)
    # The cross term 2 d . (error) has mean 0 and variance 4 d^2 times the mean squared error, over num rows.
    excess = 2 * 0.3**2 * scale
    assert abs(shifted - loss - excess) < 4 * 2 * 0.3 * float(largest * loss / num) ** 0.5
    assert faster > loss


@pytest.mark.parametrize("schedule", [VarianceExploding(0.01, 50.0), VariancePreserving()])
def test_a_scaled_field_is_of_unit_size_on_the_path(schedule, key):
    """What it reads and regresses on has root mean square 1 for data of unit variance, at every time; the ends are finite."""
    path, x = Scheduled(schedule), jax.random.normal(key, (20_000, 2, 2))
    t = jnp.linspace(*path.times, 9)
    sizes = jax.vmap(path.sizes)(t)
    point, velocity = jax.vmap(lambda t: path.point_and_velocity(t, path.source_scale * x[:, 0], x[:, 1], x[:, 0]))(t)
    if path.source_scale == 1.0:
        assert (sizes[0] == 1).all() and (sizes[1] == 1).all()
    else:
        np.testing.assert_allclose(jnp.sqrt((point**2).mean((1, 2))), sizes[0], rtol=0.03)
        np.testing.assert_allclose(jnp.sqrt((velocity**2).mean((1, 2))), sizes[1], rtol=0.03)
    field = gm.nets.Scaled(VelocityMLP((4,)), path.sizes)
    params = gm.nets.init(field, key, x[0, 0], t[0])
    assert all(jnp.isfinite(gm.nets.apply(field, params, x[0, 0], jnp.asarray(end))).all() for end in (0.0, 1.0))


@pytest.mark.slow
def test_a_variance_exploding_path_learns_as_others_do(key):
    """Unscaled its losses were in the hundreds, and the gap one nat."""
    data = gm.data.two_moons(key, 20_000)
    model = gm.flows.flow_matching((2,), path=Scheduled(VarianceExploding()), hidden_sizes=(128, 128, 128))
    fit = gm.fit(model, data.train, key=key, num_steps=3_000, optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, 3_000)))
    assert fit.history["loss"].max() < 3
    assert gm.evaluate(model, fit.params, data.test[:2_000], true_log_prob=data.log_prob)["gap_nats"] < 0.35


def test_times_cover_the_range_of_the_path(key):
    """One shifted grid: in every one of ten equal parts of the range lies a tenth of the times."""
    seen = []

    class Spy(nn.Module):
        def __call__(self, x, t):
            jax.debug.callback(lambda t: seen.append(np.ravel(t)), t)
            return jnp.zeros_like(x)

    path = BrownianBridge()
    model = FlowMatching(CNF(Spy(), FixedSteps(1)), Normal((2,)), path)
    jax.jit(model.loss)(NO_PARAMS, key, gaussian_data(40))
    jax.effects_barrier()
    times = (np.concatenate(seen) - path.times[0]) / (path.times[1] - path.times[0])
    np.testing.assert_array_equal(np.histogram(times, 10, (0.0, 1.0))[0], 4)
    assert len(np.unique(times)) == 40


def test_any_source_of_a_two_sided_path(key):
    """At the start the field is zero and the loss is E|x1 - x0|^2, here the variances of both ends and the mean."""
    model = gm.flows.flow_matching((2,), path=Linear(), base=Laplace((2,)), standardize=False, **SMALL)
    x = gaussian_data(20_000)
    loss, metrics = jax.jit(lambda p, x: model.loss(p, key, x))(model.init(key, x), x)
    wanted = np.sum(np.square(MEAN) + np.square(SCALE)) + 2 * 2.0
    assert abs(loss - wanted) < 4 * metrics["velocity_error_sem"]


@pytest.mark.slow
def test_training_reaches_the_closed_form(key):
    """Mean squared error of the learned field against the exact one, over t ~ U(0, 1) and x ~ p_t."""
    model = gm.flows.flow_matching((2,), path=Linear(), hidden_sizes=(32, 32), integrator=FixedSteps(20), standardize=False)
    x = gaussian_data(20_000)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))
    fit = gm.fit(model, x, key=key, num_steps=400, batch_size=256, optimizer=optimizer, progress=False)
    rng = np.random.default_rng(1)
    t = rng.uniform(size=(4_000, 1)).astype(np.float32)
    points = (1 - t) * rng.standard_normal((4_000, 2)).astype(np.float32) + t * gaussian_data(4_000, 2)
    exact = exact_model(Linear()).velocity(NO_PARAMS, points, t[:, 0])
    error = np.sum((model.velocity(fit.params, points, t[:, 0]) - exact) ** 2, 1).mean()
    assert error < 0.02 * np.sum(np.asarray(exact) ** 2, 1).mean(), error
    truth = scipy.stats.norm(MEAN, SCALE).logpdf(gaussian_data(4_000, 3)).sum(1)
    assert np.mean(truth - model.log_prob(fit.params, gaussian_data(4_000, 3))) < 0.02


# --- the flow --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["linear", "variance_exploding", *(pytest.param(n, marks=pytest.mark.slow) for n in ("optimal_transport", "trigonometric"))],
)
def test_the_exact_field_transports_the_source_to_the_data(name, key, x64):
    """The flow map of Gaussian marginals N(mu_t, v_t) is x = mu_1 + sqrt(v_1 / v_0) (z - mu_0), which gives the density."""
    path = PATHS[name]
    model = exact_model(path, integrator=FixedSteps(400, RK4()))
    (a0, b0, _), (a1, b1, _) = (coefficients(path, jnp.asarray(t))[0] for t in (0.0, 1.0))
    variance = np.square(SCALE)
    slope = np.sqrt((a1**2 * variance + b1**2) / (a0**2 * variance + b0**2))
    mean, scale = a1 * np.asarray(MEAN) - slope * a0 * np.asarray(MEAN), slope * b0
    x = gaussian_data(50, dtype=float)
    found = model.log_prob(NO_PARAMS, x)
    np.testing.assert_allclose(found, scipy.stats.norm(mean, scale).logpdf(x).sum(1), atol=1e-7)
    if a0 == 0 and b1 == 0:
        np.testing.assert_allclose(mean, MEAN, rtol=1e-12)
        np.testing.assert_allclose(scale, SCALE, rtol=1e-12)
    num = 4_000
    sample = np.asarray(model.sample(NO_PARAMS, key, (num,)))
    assert (np.abs(sample.mean(0) - mean) < 4 * scale / np.sqrt(num)).all()
    assert (np.abs(sample.var(0) / scale**2 - 1) < 4 * np.sqrt(2 / num)).all()
    assert abs(np.corrcoef(sample.T)[0, 1]) < 4 / np.sqrt(num)


def test_default_accuracy_in_float32():
    model, x = exact_model(Linear(), integrator=Adaptive()), gaussian_data(200)
    log_prob, info = model.log_prob_with_info(NO_PARAMS, x)
    np.testing.assert_allclose(log_prob, scipy.stats.norm(MEAN, SCALE).logpdf(x).sum(1), atol=1e-3)
    assert info["failed_solves"].sum() == 0 and (info["nfe"] == info["nfe"][0]).all()


@functools.cache
def untrained(kind):
    base, path = (GaussianMixture((2,), 3), Trigonometric()) if kind == "mixture" else (None, OptimalTransport())
    if kind == "ffjord":
        model = gm.flows.ffjord((2,), 2, conditioning="concat_squash", **SMALL)
    else:
        model = gm.flows.flow_matching((2,), base=base, path=path, **SMALL)
    x = gaussian_data(500)
    return model, moved(model.init(jax.random.key(0), x)), x


@pytest.mark.parametrize("kind", [pytest.param("normal", marks=pytest.mark.slow), "mixture", "ffjord"])
def test_integrates_to_one_in_units_of_the_data(kind, key):
    """An untrained, perturbed field behind a fixed standardisation, by the midpoint rule."""
    model, params, x = untrained(kind)
    assert isinstance(model.bijector.bijectors[1], Standardize)
    sample = np.asarray(model.sample(params, key, (2_000,)))
    low, high = sample.min(0), sample.max(0)
    low, high = low - 0.6 * (high - low), high + 0.6 * (high - low)
    lines = [a + (np.arange(200) + 0.5) * (b - a) / 200 for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    mass = np.exp(np.asarray(model.log_prob(params, points), np.float64)).sum() * np.prod((high - low) / 200)
    np.testing.assert_allclose(mass, 1.0, atol=1e-3)


def test_one_field_serves_both_losses(key):
    """Equal arguments give equal parts: what regression has trained, maximum likelihood may go on with."""
    options = SMALL | {"conditioning": "concat_squash"}
    matching, flow = gm.flows.flow_matching((2,), **options), gm.flows.ffjord((2,), **options)
    assert Flow(matching.bijector, matching.base) == flow
    x = gaussian_data(300)
    params = moved(matching.init(key, x))
    assert jax.tree.structure(params) == jax.tree.structure(flow.init(key, x))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, flow.init(key, x))
    np.testing.assert_array_equal(matching.log_prob(params, x), flow.log_prob(params, x))


def test_the_regression_is_done_behind_the_fixed_layers(key):
    """Standardised data are N(0, 1) whatever their units: the loss does not see a change of units, the density does."""
    model, x = gm.flows.flow_matching((2,), **SMALL), gaussian_data(400)
    wide = x * np.float32([100.0, 0.1]) + np.float32([5.0, -3.0])
    params, other = (moved(model.init(key, data)) for data in (x, wide))
    z = model.latent(params, x)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1.0, atol=1e-5)
    loss = jax.jit(jax.value_and_grad(lambda p, x: model.loss(p, key, x)[0]))
    (value, gradient), (same, _) = loss(params, x), loss(other, wide)
    np.testing.assert_allclose(value, same, rtol=1e-3)
    shift = model.log_prob(params, x) - model.log_prob(other, wide)
    np.testing.assert_allclose(shift, np.log(100.0 * 0.1), atol=1e-3)
    assert all((g == 0).all() for g in jax.tree.leaves(gradient["bijector"][1]))


# --- contexts and guidance -------------------------------------------------------------------------------------------------


def guided_model(weight):
    return gm.flows.flow_matching((2,), guidance=weight, context_dropout=0.2, context_shape=(1,), standardize=False, **SMALL)


def test_guidance_is_linear_between_no_context_and_context(key):
    """v = v(none) + w (v(context) - v(none)), with the same parameters for every w."""
    models = {weight: guided_model(weight) for weight in (0.0, 0.5, 1.0, 3.0)}
    x, context, t = gaussian_data(6), np.linspace(-1, 1, 6, dtype=np.float32)[:, None], np.linspace(0, 1, 6, dtype=np.float32)
    params = moved(models[1.0].init(key, x, context))
    for model in models.values():
        assert jax.tree.map(jnp.shape, model.init(key, x, context)) == jax.tree.map(jnp.shape, params)
    without, half, plain, strong = (model.velocity(params, x, t, context) for model in models.values())
    np.testing.assert_array_equal(without, models[0.0].velocity(params, x, t, context + 1.0))
    assert jnp.abs(plain - models[1.0].velocity(params, x, t, context + 1.0)).min() > 1e-4
    np.testing.assert_allclose(half, 0.5 * (without + plain), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(strong, without + 3.0 * (plain - without), rtol=1e-5, atol=1e-6)
    # A context of 0 is a context, not the lack of one.
    zero = models[1.0].velocity(params, x, t, 0.0 * context)
    assert jnp.abs(zero - without).max() > 1e-3
    # The weight of a model that is already built can be changed.
    field = dataclasses.replace(models[1.0].cnf, field=models[1.0].cnf.field.clone(weight=3.0))
    np.testing.assert_array_equal(
        jax.vmap(field.velocity, (None, 0, 0, 0))(
            models[1.0].field_params(params), x, t, models[1.0].field_context(params, context)
        ),
        strong,
    )


class Reports(nn.Module):
    """Shows in the loss which rows were given a context."""

    weight: float = 1.0

    def __call__(self, x, t, context, present=1.0):
        return jnp.zeros_like(x) + 1_000.0 * present


def test_context_dropout_drops_its_share(key):
    cnf = CNF(Reports(), FixedSteps(1), context_shape=(1,))
    x, context = gaussian_data(4_000), np.ones((4_000, 1), np.float32)

    def share(dropout):
        model = FlowMatching(cnf, Normal((2,)), context_dropout=dropout)
        return 1 - float(model.loss(model.init(key, x, context), key, (x, context))[0]) / 2e6

    assert abs(share(0.3) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4_000) + 0.01  # 0.01: what is not 1,000 in the loss
    assert abs(share(0.0)) < 0.01


def test_conditional_densities_integrate_to_one(key):
    model = gm.flows.flow_matching((1,), context_shape=(2,), **SMALL)
    x, context = gaussian_data(64)[:, :1], np.linspace(-1, 1, 128, dtype=np.float32).reshape(64, 2)
    params = moved(model.init(key, x, context))
    points = np.linspace(-12, 14, 4_001, dtype=np.float32)[:, None]
    one, other = (model.log_prob(params, points, c) for c in (context[0], context[-1]))
    for log_prob in (one, other):
        np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum() * 26 / 4_000, 1.0, atol=1e-3)
    assert jnp.abs(one - other).max() > 0.1


# --- reflow ----------------------------------------------------------------------------------------------------------------


def test_pairs_of_reflow_are_joined_by_the_flow(key):
    """The exact field takes z to m + s z."""
    reflow = Reflow(exact_model(Linear()))
    assert reflow.event_shape == (2, 2) and reflow.likelihood is gm.Likelihood.NONE
    pairs = reflow.sample(NO_PARAMS, key, (50,))
    assert pairs.shape == (50, 2, 2)
    np.testing.assert_allclose(pairs[:, 1], jnp.asarray([MEAN]) + jnp.asarray([SCALE]) * pairs[:, 0], rtol=1e-4, atol=1e-4)
    assert len(np.unique(np.asarray(pairs[:, 0]))) == 100


def test_pairs_of_reflow_in_units_of_the_data(key):
    model, params, _ = untrained("normal")
    pairs = Reflow(model).sample(params, key, 20)
    forward = jax.jit(jax.vmap(model.bijector.forward, (None, 0)))(params["bijector"], pairs[:, 0])
    np.testing.assert_allclose(pairs[:, 1], forward, rtol=1e-5, atol=1e-5)


def straight_pairs(num=4_000):
    z = np.random.default_rng(4).standard_normal((num, 2)).astype(np.float32)
    return np.stack([z, np.float32(MEAN) + np.float32(SCALE) * z], 1)


def test_reflow_of_a_straight_flow_has_nothing_to_learn(key):
    pairs = straight_pairs()
    for one_step in (False, True):
        loss, _ = Reflow(FlowMatching(CNF(Straight(), FixedSteps(1)), Normal((2,))), one_step).loss(NO_PARAMS, key, pairs)
        np.testing.assert_allclose(loss, 0.0, atol=1e-9)


def test_one_step_trains_the_velocity_at_the_start(key):
    """The curved field of independent pairs is m - x at t = 0; the step to m + s z is m + (s - 1) z, so the error is |s z|^2."""
    pairs = straight_pairs()
    model = exact_model(Linear())
    loss, _ = Reflow(model, one_step=True).loss(NO_PARAMS, key, pairs)
    np.testing.assert_allclose(loss, np.mean(np.sum((np.float32(SCALE) * pairs[:, 0]) ** 2, 1)), rtol=1e-4)
    other, _ = Reflow(model).loss(NO_PARAMS, key, pairs)
    assert jnp.abs(other - loss) > 0.1


def test_reflow_trains_the_parameters_of_the_flow(key):
    """Curved pairs of another flow, then two rounds: parameters have one structure, and the paths get straighter."""
    flow = gm.flows.flow_matching((2,), path=Linear(), standardize=False, **SMALL)
    reflow, pairs = Reflow(flow), straight_pairs(1_024)
    assert jax.tree.structure(reflow.init(key, pairs)) == jax.tree.structure(flow.init(key, pairs[:, 1]))
    params = flow.init(key, pairs[:, 1])
    loss = jax.jit(lambda p: reflow.loss(p, key, pairs)[0])
    before = loss(params)
    fit = gm.fit(reflow, pairs, key=key, params=params, num_steps=150, batch_size=256, optimizer=optax.adam(1e-2), progress=False)
    assert loss(fit.params) < 0.2 * before


def test_a_pair_has_no_density(key):
    reflow = Reflow(exact_model(Linear()))
    with pytest.raises(NotImplementedError, match="it lies on a graph. Take log_prob of the flow"):
        reflow.log_prob(NO_PARAMS, straight_pairs(3))
    with pytest.raises(ValueError, match="Reflow has no log_prob to report"):
        gm.evaluate(reflow, NO_PARAMS, straight_pairs(3))


# --- what a solve reports ---------------------------------------------------------------------------------------------------


def test_energy_of_every_sample(key):
    """Along straight lines int |v|^2 dt = |x - z|^2, with x = m + s z."""
    cnf = CNF(Straight(), FixedSteps(8), track=("kinetic_energy",))
    x, info = FlowMatching(cnf, Normal((2,))).sample_with_info(NO_PARAMS, key, 100)
    z = (x - jnp.asarray([MEAN])) / jnp.asarray([SCALE])
    np.testing.assert_allclose(info["kinetic_energy"], jnp.sum((x - z) ** 2, 1), rtol=1e-3, atol=1e-4)
    assert info["nfe"].shape == (100,) and (info["nfe"] == 48).all() and (info["failed_solves"] == 0).all()
    assert gm.flows.flow_matching((2,), track_energy=True).cnf.track == ("kinetic_energy",)


def test_penalties_are_in_the_loss_and_reported(key):
    x = gaussian_data(64)
    flow = gm.flows.ffjord((2,), kinetic_energy=0.5, jacobian_norm=0.0, **SMALL)
    params = moved(flow.init(key, x))
    loss, metrics = jax.jit(flow.loss)(params, key, x)
    np.testing.assert_allclose(loss, metrics["nll_nats"] + 0.5 * metrics["kinetic_energy"], rtol=1e-5)
    log_prob, info = flow.log_prob_with_info(params, x)
    np.testing.assert_allclose(metrics["nll_nats"], -log_prob.mean(), rtol=1e-5)
    for name in ("kinetic_energy", "jacobian_norm", "nfe", "failed_solves"):
        np.testing.assert_allclose(metrics[name], info[name].mean(), rtol=1e-4)
    assert metrics["kinetic_energy"] > 0.1 and metrics["jacobian_norm"] > 0.1
    unknown = Flow(flow.bijector, flow.base, (("energy", 1.0),))
    with pytest.raises(ValueError, match="penalties name 'energy', which the bijector does not report"):
        jax.jit(unknown.loss)(params, key, x)


def test_an_estimated_likelihood_has_its_own_name(key):
    flow = gm.flows.ffjord((2,), divergence=Hutchinson(), **SMALL)
    x = gaussian_data(64)
    params = moved(flow.init(key, x))
    loss = jax.jit(flow.loss)
    found, other = (loss(params, k, x) for k in jax.random.split(key))
    assert flow.likelihood is gm.Likelihood.ESTIMATE and "nll_estimate_nats" in found[1] and "nll_nats" not in found[1]
    assert found[0] != other[0]


class Explodes(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return self.param("rate", nn.initializers.constant(1e6), (), x.dtype) * x**2


def test_solves_that_fail_stop_the_training_and_say_why(key):
    flow = gm.flows.ffjord((2,), field=Explodes(), integrator=FixedSteps(8))
    with pytest.raises(FloatingPointError, match=r"stopped at step .*failed_solves = 1"):
        gm.fit(flow, gaussian_data(64), key=key, num_steps=3, batch_size=32, progress=False)


# --- arguments -------------------------------------------------------------------------------------------------------------

PLAIN = CNF(VelocityMLP((4,)), FixedSteps(2))
GUIDED = CNF(Guided(VelocityMLP((4,))), FixedSteps(2), context_shape=(1,))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: FlowMatching(PLAIN, Laplace((2,)), OptimalTransport()),
            ValueError,
            r"goes from N\(0, 1\^2\).*or a path from any source",
        ),
        (
            lambda: FlowMatching(PLAIN, Normal((2,)), Scheduled(VarianceExploding())),
            ValueError,
            r"use gm.densities.Normal\(\(2,\), 50\)",
        ),
        (lambda: FlowMatching(PLAIN, Normal((2,), 2.0), Scheduled(VariancePreserving())), ValueError, r"goes from N\(0, 1\^2\)"),
        (lambda: FlowMatching(Elementwise(Affine()), Normal((2,))), TypeError, "cnf must be a CNF, got Elementwise"),
        (lambda: FlowMatching(Chain((PLAIN, Standardize())), Normal((2,))), TypeError, "cnf must be a CNF, got Chain"),
        (
            lambda: FlowMatching(PLAIN, Normal((2,)), data_side="standardize"),
            TypeError,
            "data_side must be a Bijector, got 'standardize'",
        ),
        (lambda: FlowMatching(PLAIN, Normal((2,)), "linear"), TypeError, "path must be a Path, got 'linear'"),
        (lambda: FlowMatching(PLAIN, Normal((2,)), Linear(), "exact"), TypeError, "coupling must be a Pairing, got 'exact'"),
        (lambda: FlowMatching(PLAIN, "normal"), TypeError, "base must be a Distribution such as .*, got 'normal'"),
        (
            lambda: FlowMatching(GUIDED, Normal((2,)), context_dropout=1.0),
            ValueError,
            r"context_dropout must be in \[0, 1\), got 1.0",
        ),
        (lambda: FlowMatching(PLAIN, Normal((2,)), context_dropout=0.1), ValueError, r"nets.Guided\(body\)"),
        (
            lambda: FlowMatching(CNF(VelocityMLP((4,)), context_shape=(1,)), Normal((2,)), context_dropout=0.1),
            ValueError,
            r"nets.Guided\(body\)",
        ),
        (lambda: gm.flows.ffjord((2,), 0), ValueError, "num_layers must be an integer >= 1, got 0"),
        (lambda: Normal((2,), 0.0), ValueError, "scale must be > 0 and finite, got 0.0"),
    ],
)
def test_refuses_unfit_fields(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_the_builder_takes_the_source_that_the_path_wants():
    assert gm.flows.flow_matching((2,), path=Scheduled(VarianceExploding(0.1, 5.0))).base == Normal((2,), 5.0)
    assert gm.flows.flow_matching((2,), path=Linear()).base == gm.flows.flow_matching((2,)).base == Normal((2,))


def test_refuses_unfit_pairs():
    x = jnp.zeros((4, 2))
    path_fn = Linear().point_and_velocity
    with pytest.raises(ValueError, match=r"one shape \(n,\) \+ event shape and t shape \(n,\)"):
        gm.losses.flow_matching(lambda x, t: x, path_fn, x, x[:3], jnp.zeros(4), x)
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(4, 2\), got \(4,\)"):
        gm.losses.flow_matching(lambda x, t: t, path_fn, x, x, jnp.zeros(4), x)


# --- what a user does with the compiled functions ------------------------------------------------------------------------------


@functools.cache
def small_flow(**options):
    flow = gm.flows.ffjord((2,), hidden_sizes=(8,), standardize=False, **options)
    x = np.random.default_rng(11).standard_normal((6, 2)).astype(np.float32)
    params = flow.init(jax.random.key(0), x)
    rng = np.random.default_rng(12)
    return flow, jax.tree.map(lambda p: p + np.float32(0.4) * rng.standard_normal(p.shape).astype(np.float32), params), x


@pytest.mark.slow
@pytest.mark.parametrize("num", [6, 2_500])
def test_the_public_functions_have_gradients(num, key):
    """Outside of any jit of the user's: the gradient of the compiled log_prob and sample, and the score."""
    flow, params, x = small_flow()
    checkpointed, *_ = small_flow(integrator=Adaptive(adjoint=diffrax.RecursiveCheckpointAdjoint()))
    x = np.resize(x, (num, 2))
    for of in (lambda m, p, x: m.log_prob(p, x).sum(), lambda m, p, x: (m.sample(p, key, (6,)) ** 2).sum() + x.sum()):
        found = jax.grad(functools.partial(of, flow), (0, 1))(params, x)
        wanted = jax.grad(functools.partial(of, checkpointed), (0, 1))(params, x)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * num)


def test_a_flow_regularised_by_estimates_can_be_sampled(key):
    flow, params, x = small_flow(divergence=gm.dynamics.Hutchinson(), jacobian_norm=0.01, integrator=FixedSteps(4))
    assert "jacobian_norm" in flow.loss(params, key, x)[1]
    samples, info = flow.sample_with_info(params, key, 3)
    assert samples.shape == (3, 2) and "jacobian_norm" not in info
    np.testing.assert_allclose(samples, flow.sample(params, key, 3), rtol=1e-5)


def draw_one(key):
    return jax.random.normal(key, (2,))


def log_prob_of_one(x):
    return -0.5 * jnp.sum(x**2) - jnp.log(2.0 * jnp.pi)


def test_equal_laws_are_equal():
    one, other = (gm.data.EightGaussians(2.0, 0.1) for _ in "ab")
    assert one == other and gm.flows.flow_matching((2,), base=one, path=Linear()) == gm.flows.flow_matching(
        (2,), base=other, path=Linear()
    )
    laws = [gm.densities.FromFunctions((2,), draw_one, log_prob_of_one) for _ in "ab"]
    assert laws[0] == laws[1] and hash(laws[0]) == hash(laws[1])


def test_times_outside_are_refused():
    model = gm.flows.flow_matching((2,), hidden_sizes=(4,))
    x = jnp.ones((3, 2))
    params = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\]"):
        model.cnf.velocity(model.field_params(params), x[0], 1.5)


def test_guidance_wants_a_context():
    with pytest.raises(ValueError, match="guidance and context_dropout want context_shape"):
        gm.flows.flow_matching((2,), context_dropout=0.1)
    with pytest.raises(ValueError, match="guidance=2.0 wants an unconditional branch: train it with context_dropout > 0"):
        gm.flows.flow_matching((2,), guidance=2.0, context_shape=(1,))
