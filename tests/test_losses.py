"""Losses against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod import losses
from genmod.core.statistics import independence_acceptance, mean_and_sem

PARAMS = {"mean": jnp.array(0.7), "log_sd": jnp.array(0.4)}


def log_normal(x, mean=0.0, sd=1.0):
    return jax.scipy.stats.norm.logpdf(x, mean, sd)


def sample_and_log_prob(params, key, num):
    x = params["mean"] + jnp.exp(params["log_sd"]) * jax.random.normal(key, (num,))
    return x, log_prob(params, x)


def log_prob(params, x):
    return log_normal(x, params["mean"], jnp.exp(params["log_sd"]))


def kl_to_standard(mean, sd):
    return 0.5 * (mean**2 + sd**2 - 1 - np.log(sd**2))


def reverse_kl(params, key, num, target=log_normal, **options):
    return losses.reverse_kl(sample_and_log_prob, target, params, key, num, **options)


pytestmark = pytest.mark.usefixtures("quick_compile")
STL = {"stick_the_landing": True, "log_prob_fn": log_prob}


def test_affine_flow_of_one_variable():
    """x = 2 + 3 z: log p(5)."""
    loss, _ = losses.negative_log_likelihood(lambda x: log_normal(x, 2.0, 3.0), jnp.array([5.0]))
    np.testing.assert_allclose(-loss, -2.517551, atol=1e-6)


def test_nll_is_the_mean_with_its_standard_error():
    x = jnp.array([0.0, 1.0, 3.0])
    loss, metrics = losses.negative_log_likelihood(lambda x: -x, x, name="nll_estimate_nats")
    assert set(metrics) == {"nll_estimate_nats", "nll_estimate_nats_sem"} and metrics["nll_estimate_nats"] == loss
    np.testing.assert_allclose(loss, 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["nll_estimate_nats_sem"], np.std([0, 1, 3], ddof=1) / np.sqrt(3), rtol=1e-6)


def test_one_value_has_no_standard_error():
    mean, sem = mean_and_sem(jnp.array([2.0]))
    assert mean == 2.0 and jnp.isnan(sem)
    mean, sem = mean_and_sem(np.array([1, 2]), np.array([1.0, 1.0]))  # integers are real numbers
    assert mean == 1.5 and sem == 0.5


def test_standard_error_covers(key):
    """In 400 means of 50 draws, the true mean lies within 2 standard errors in about 95 %."""
    means, sems = jax.vmap(mean_and_sem)(jax.random.normal(key, (400, 50)))
    share = float((jnp.abs(means) < 2 * sems).mean())
    assert abs(share - 0.949) < 4 * np.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_means_of_many_rows_and_with_weights(xp):
    """n^2 does not fit into 32 bits; equal weights change nothing; whole weights are repetitions, but for the standard error."""
    values = xp.asarray(np.random.default_rng(0).standard_normal(60_000), np.float32)
    mean, sem = mean_and_sem(values)
    np.testing.assert_allclose(sem, np.std(np.asarray(values), ddof=1) / np.sqrt(60_000), rtol=1e-4)
    equal = mean_and_sem(values, xp.full(60_000, 3.0, np.float32))
    np.testing.assert_allclose(equal, (mean, sem), rtol=1e-4, atol=1e-6)
    weight = xp.asarray([0, 2, 1, 1], np.float32)
    np.testing.assert_allclose(
        mean_and_sem(values[:4], weight)[0], np.repeat(np.asarray(values[:4]), [0, 2, 1, 1]).mean(), rtol=1e-5
    )


def test_weighted_standard_error_covers(key):
    """In 400 weighted means of 50 draws, the true mean lies within 2 standard errors in about 95 %."""
    x, weight = jax.random.normal(key, (400, 50)), jax.random.uniform(jax.random.fold_in(key, 1), (400, 50))
    means, sems = jax.vmap(mean_and_sem)(x, weight)
    share = float((jnp.abs(means) < 2 * sems).mean())
    assert abs(share - 0.949) < 4 * np.sqrt(0.95 * 0.05 / 400)


X, EPS = (np.random.default_rng(i).standard_normal((5, 2)).astype(np.float32) for i in (1, 2))
T = np.arange(1, 6, dtype=np.float32) / 6
SMALL = {"hidden_sizes": (4,)}
MODELS = {
    "Flow": lambda: gm.flows.real_nvp((2,), 1, **SMALL),
    "FlowMatching": lambda: gm.flows.flow_matching((2,), **SMALL),
    "Diffusion": lambda: gm.flows.diffusion((2,), **SMALL),
    "Consistency": lambda: gm.flows.consistency((2,), **SMALL),
    "MeanFlow": lambda: gm.flows.mean_flow((2,), power=0.5, **SMALL),
    "ScoreModel": lambda: gm.models.ScoreModel(gm.nets.MLP((2,)), (2,)),
    "explicit ScoreModel": lambda: gm.models.ScoreModel(gm.nets.MLP((2,), jnp.tanh), (2,), "explicit"),
}
FUNCTIONS = {
    "likelihood": lambda x, key, w: losses.negative_log_likelihood(lambda x: x[:, 0], x, weight=w),
    "flow_matching": lambda x, key, w: losses.flow_matching(
        lambda x, t: x, gm.transport.Linear().point_and_velocity, x, jnp.asarray(EPS), jnp.asarray(T), x, weight=w
    ),
    "denoising": lambda x, key, w: losses.denoising(
        lambda x, t: x, gm.denoising.Cosine(), x, jnp.asarray(T), jnp.asarray(EPS), row_weight=w
    ),
    "explicit": lambda x, key, w: losses.explicit_score_matching(jnp.sin, x, weight=w),
    "sliced": lambda x, key, w: losses.sliced_score_matching(jnp.sin, x, key, weight=w),
    "denoising_score_matching": lambda x, key, w: losses.denoising_score_matching(jnp.sin, x, key, sigma=0.3, weight=w),
}


@pytest.mark.parametrize("name", [*MODELS, *FUNCTIONS])
def test_losses_are_weighted_means_of_their_rows(name, key):
    """sum w l / sum w, with l_i what the loss is where row i alone has weight."""
    x = jnp.asarray(X)
    if name in MODELS:
        model = MODELS[name]()
        params = model.init(key, x)
        loss = jax.jit(lambda weight: model.loss(params, key, (x, None, weight))[0])
    else:
        loss = jax.jit(lambda weight: FUNCTIONS[name](x, key, weight)[0])
    rows = np.asarray([loss(row) for row in jnp.eye(5)])
    assert rows.std() > 1e-3
    weight = jnp.array([0.5, 2.0, 0.0, 1.0, 4.0])
    np.testing.assert_allclose(loss(weight), np.average(rows, weights=weight), rtol=1e-4)
    np.testing.assert_allclose(loss(None), rows.mean(), rtol=1e-4)


@pytest.mark.parametrize("options", [{}, STL], ids=["plain", "stick_the_landing"])
def test_reverse_kl_of_two_gaussians(options, key):
    mean, sd = 0.7, np.exp(0.4)
    loss, metrics = reverse_kl(PARAMS, key, 20_000, **options)
    assert abs(float(loss) - kl_to_standard(mean, sd)) < 4.5 * float(metrics["reverse_kl_nats_sem"])
    assert metrics["reverse_kl_nats"] == loss

    def gradients(key):
        return jax.grad(lambda p: reverse_kl(p, key, 50, **options)[0])(PARAMS)

    # dKL/dmean = mean, dKL/dlog sd = sd^2 - 1: the estimator has no bias, so 400 independent ones must agree.
    estimates = jax.jit(jax.vmap(gradients))(jax.random.split(key, 400))
    for name, wanted in {"mean": mean, "log_sd": sd**2 - 1}.items():
        error = abs(float(estimates[name].mean()) - wanted)
        assert 0 < error < 4.5 * float(estimates[name].std()) / np.sqrt(400)


def test_landing_gradient_is_exactly_zero_at_the_target(key):
    def gradient(**options):
        return jax.grad(lambda p: reverse_kl(p, key, 50, functools.partial(log_prob, PARAMS), **options)[0])(PARAMS)

    assert all(abs(float(g)) > 1e-3 for g in jax.tree.leaves(gradient()))  # the plain one still has noise
    for g in jax.tree.leaves(gradient(**STL)):
        np.testing.assert_allclose(g, 0.0, atol=1e-5)  # 50 terms of size 1, each cancelling to float32


def test_landing_has_the_smaller_variance_near_the_target(key):
    near = {"mean": jnp.array(0.05), "log_sd": jnp.array(0.0)}

    def spread(**options):
        one = jax.grad(lambda p, k: reverse_kl(p, k, 20, **options)[0])
        return float(jax.jit(jax.vmap(one, (None, 0)))(near, jax.random.split(key, 200))["log_sd"].std())

    assert spread(**STL) < 0.2 * spread()


def test_log_normaliser_shifts_the_value_only(key):
    def value_and_grad(offset):
        return jax.value_and_grad(lambda p: reverse_kl(p, key, 100, lambda x: log_normal(x) + offset)[0])(PARAMS)

    (value, grad), (shifted, shifted_grad) = value_and_grad(0.0), value_and_grad(3.0)
    np.testing.assert_allclose(shifted, value - 3.0, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), shifted_grad, grad)


def test_effective_sample_fraction(key):
    """1 / E_q[w^2] for q = N(0, s), target N(0, 1), s = 2: E_q[w^2] = s^2 / sqrt(2 s^2 - 1)."""
    params = {"mean": jnp.array(0.0), "log_sd": jnp.log(2.0)}
    _, metrics = reverse_kl(params, key, 50_000)
    # w is bounded by s, so its share of sums of 50,000 fluctuates by below 1 %.
    np.testing.assert_allclose(metrics["ess_fraction"], np.sqrt(7) / 4, rtol=0.02)
    same = reverse_kl({"mean": jnp.array(0.0), "log_sd": jnp.array(0.0)}, key, 50)[1]["ess_fraction"]
    np.testing.assert_allclose(same, 1.0, rtol=1e-5)


def naive_acceptance(log_weights):
    """Pair by pair, as it is defined."""
    w = np.exp(np.asarray(log_weights, np.float64))
    n = len(w)
    return sum(min(w[i], w[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)) / w.mean()


def test_acceptance_by_a_double_loop(key):
    log_weights = 1.5 * jax.random.normal(key, (40,)) - 0.3
    assert 0.2 < naive_acceptance(log_weights) < 0.8
    for offset in (0.0, 3e3, -3e3):  # exp overflows, and underflows
        given = log_weights + offset
        wanted = naive_acceptance(np.asarray(given, np.float64) - offset)
        np.testing.assert_allclose(independence_acceptance(given), wanted, rtol=1e-5)
    np.testing.assert_allclose(independence_acceptance(jnp.full(7, 5e4)), 1.0, rtol=1e-6)
    for few in (jnp.array([0.0, -1.0]), jnp.array([2.0, -jnp.inf, 1.0])):
        np.testing.assert_allclose(independence_acceptance(few), naive_acceptance(few), rtol=1e-6)
    assert independence_acceptance(jnp.array([0.0, -1e5])) == 0.0
    assert jnp.isnan(independence_acceptance(jnp.zeros(1))) and jnp.isnan(independence_acceptance(jnp.full(3, -jnp.inf)))


def test_acceptance_rate_is_that_of_a_long_chain(key):
    """And of quadrature: E min(w, w') = int int q q' min(w, w') for q = N(0.7, e^0.4), p = N(0, 1), Z = 3."""
    line = np.linspace(-8.0, 10.0, 1_501)
    log_q = np.asarray(log_prob(PARAMS, jnp.asarray(line, jnp.float32)), np.float64)
    q, w = np.exp(log_q), 3.0 * np.exp(-0.5 * line**2 - log_q) / np.sqrt(2 * np.pi)
    step = line[1] - line[0]
    wanted = q @ np.minimum(w[:, None], w) @ q * step**2 / (q @ w * step)

    def target(x):
        return log_normal(x) + jnp.log(3.0)

    _, metrics = reverse_kl(PARAMS, key, 20_000, target)
    # Its error, of a ratio of a U-statistic and a mean: from 50 batches of 400.
    several = jax.vmap(lambda k: reverse_kl(PARAMS, k, 400, target)[1]["acceptance_rate"])(jax.random.split(key, 50))
    assert abs(metrics["acceptance_rate"] - wanted) < 4.5 * several.std() / np.sqrt(50) < 0.02

    def proposal(key):
        x, log_q = sample_and_log_prob(PARAMS, key, 1)
        return x[0], log_q[0]

    kernel = gm.samplers.independence(target, proposal, functools.partial(log_prob, PARAMS))
    walk = jax.vmap(lambda k: gm.samplers.run(k, kernel, kernel.init(jnp.zeros(())), num_steps=1_000, burn_in=50))
    rates = walk(jax.random.split(key, 40)).infos.acceptance_rate.mean(1)
    assert abs(rates.mean() - wanted) < 4.5 * rates.std() / np.sqrt(40) < 0.02


def test_one_draw_has_no_acceptance_rate(key):
    assert jnp.isnan(reverse_kl(PARAMS, key, 1)[1]["acceptance_rate"])


def test_stick_the_landing_wants_a_log_prob(key):
    with pytest.raises(ValueError, match="wants log_prob_fn"):
        reverse_kl(PARAMS, key, 5, stick_the_landing=True)


# --- reverse and forward KL of one Gaussian to two bumps, by quadrature ------------------------------------------------------


def bumps(x):
    return jnp.logaddexp(log_normal(x, -3.0), log_normal(x, 3.0)) - jnp.log(2.0)


def quadrature(mean, sd):
    """The same loss with the draws of q replaced by 400,000 equally likely quantile midpoints."""
    z = jax.scipy.special.ndtri((jnp.arange(400_000) + 0.5) / 400_000)

    def sample(params, key, num):
        x = params["mean"] + jnp.exp(params["log_sd"]) * z
        return x, log_prob(params, x)

    params = {"mean": jnp.asarray(mean), "log_sd": jnp.log(jnp.asarray(sd))}
    return jax.value_and_grad(lambda p: losses.reverse_kl(sample, bumps, p, None, 400_000)[0])(params)


def test_reverse_kl_to_two_bumps_settles_in_one(x64):
    value, grad = quadrature(2.984306, 1.023369)
    np.testing.assert_allclose(value, 0.688769, atol=1e-4)  # quantile midpoints miss 1/400,000 of each tail
    for g in grad.values():
        np.testing.assert_allclose(g, 0.0, atol=1e-3)


def test_the_symmetric_solution_is_stationary_but_not_the_answer(x64):
    value, grad = quadrature(0.0, 2.743769)
    np.testing.assert_allclose(value, 0.840621, atol=1e-4)
    for g in grad.values():
        np.testing.assert_allclose(g, 0.0, atol=1e-3)


def test_forward_kl_to_two_bumps_covers_both(x64):
    """Mean 0 and standard deviation sqrt(10) minimise the expected NLL."""
    x = jnp.linspace(-14, 14, 4_001)
    weight = jax.nn.softmax(bumps(x))

    def nll(params):
        return losses.negative_log_likelihood(lambda x: x.size * weight * log_prob(params, x), x)[0]

    grad = jax.grad(nll)({"mean": jnp.array(0.0), "log_sd": jnp.log(3.162278)})
    for g in grad.values():
        np.testing.assert_allclose(g, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "weight", [np.full(2_000, 100, np.float16), np.full(2_000, 2**31 - 1, np.int32)], ids=["float16", "int32"]
)
def test_a_sum_of_weights_does_not_overflow(weight):
    values = jnp.arange(1.0, 2_001.0)
    found = mean_and_sem(values, jnp.asarray(weight))
    np.testing.assert_allclose(found, mean_and_sem(values), rtol=1e-4)
