"""Diffusion models of laws in closed form: likelihood, bound, samples; the network's invariances; guidance; what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from registry import SCHEDULES, VELOCITY8

import genmod as gm
from genmod import denoising, losses
from genmod.bijectors import CNF, ProbabilityFlow, Rescale, Standardize
from genmod.core.distribution import Likelihood
from genmod.denoising import denoisers
from genmod.densities import Normal
from genmod.dynamics import Adaptive
from genmod.dynamics.divergence import Hutchinson
from genmod.models import Bound, Diffusion
from genmod.testing import COVARIANCE, MEAN, MEANS, VARIANCES, WEIGHTS

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
NOTHING = {"bijector": ({},), "range": gm.Fixed((-1e9, 1e9))}  # the parameters of a law in closed form
CONTINUOUS = ("variance_preserving", "sub_variance_preserving", "cosine", "variance_exploding", "edm", "straight")
TIGHT = Adaptive(rtol=1e-9, atol=1e-9)


def gaussian(schedule):
    return denoisers.gaussian(schedule, MEAN, COVARIANCE)


def mixture(schedule):
    return denoisers.gaussian_mixture(schedule, WEIGHTS, MEANS, VARIANCES)


def exact(denoiser_of, schedule, **options):
    """The diffusion of a law in closed form, without parameters."""
    flow = ProbabilityFlow(denoising.Known(denoiser_of, schedule), options.pop("integrator", Adaptive()))
    return Diffusion(flow, (2,), **({"clip": (-jnp.inf, jnp.inf)} | options))


def log_prob_by_flow(integrator, divergence, denoiser, schedule, base_log_prob, x, key):
    """What `check_likelihood` asks for, by the parts of a model."""
    flow = ProbabilityFlow(denoising.Known(lambda _: denoiser, schedule), integrator, divergence)
    z, log_det = flow.inverse_and_log_det({}, x, key=key)
    return base_log_prob(z) + log_det


@pytest.mark.parametrize(
    "name", ["edm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("variance_preserving", *CONTINUOUS))]
)
def test_likelihood_of_the_probability_flow(name, x64):
    """To 1e-5 nats, also where the noise is 80 times the data."""
    log_prob_fn = functools.partial(log_prob_by_flow, TIGHT, gm.dynamics.Exact())
    report = gm.check_likelihood(log_prob_fn, SCHEDULES[name], num_points=32, num_keys=2)
    assert report.largest < 1e-5 and report.probe_std == 0, report


@pytest.mark.parametrize("name", ["variance_preserving", "edm"])
def test_log_prob_of_the_model_is_that_of_its_prior_pushed_through_the_flow(name, x64):
    """What `Diffusion.log_prob` scores: the flow starts from N(0, prior_scale^2), not from the data's own law at the high end."""
    schedule = SCHEDULES[name]
    model = exact(gaussian, schedule, integrator=TIGHT)
    variances, basis = np.linalg.eigh(COVARIANCE)

    def law(t):
        alpha, sigma = (float(fn(jnp.asarray(t))) for fn in (schedule.alpha, schedule.sigma))
        return alpha * MEAN, np.sqrt(alpha**2 * variances + sigma**2)

    (low, low_std), (high, high_std) = (law(t) for t in schedule.times)
    gain = basis @ np.diag(low_std / high_std) @ basis.T
    mean, covariance = low - gain @ high, schedule.prior_scale**2 * gain @ gain.T
    x = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 16)
    wanted = scipy.stats.multivariate_normal(mean, covariance).logpdf(x)
    np.testing.assert_allclose(model.log_prob(NOTHING, x), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: gm.check_sampler(lambda n: lambda k, d, s, x: x[:1], VP),
            r"sampler must return shape \(2,\) for one event, got",
        ),
        (lambda: gm.check_sampler(lambda n: denoising.Steps(), VP, num_steps=(8, 8)), "at least two different numbers"),
        (lambda: gm.check_likelihood(lambda d, s, b, x, k: x[:1], VP), r"log_prob_fn must return shape \(\) for one event"),
        (lambda: gm.check_likelihood(lambda d, s, b, x, k: x[0], VP, num_keys=1), "num_points and num_keys must be at least 2"),
        (lambda: gm.check_score(lambda x, t: x[0], VP), r"score_fn must return shape \(2,\) for one event, got \(\)"),
        (lambda: gm.check_score(lambda x, t: x, VP, num_times=1), "wants num_times >= 2"),
        (
            lambda: gm.check_score(lambda x, t: x, denoising.CustomSchedule(lambda t: 1.0 - t, lambda t: t + 0.0)),
            "a log-SNR that is finite at both ends",
        ),
    ],
)
def test_the_kit_refuses_misshapen_answers(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.slow
def test_a_wrong_likelihood_is_found():
    """The divergence at the start of the path in the place of that along it: right for every Gaussian, wrong for the mixture."""

    def divergence_at_rest(denoiser, schedule, base_log_prob, x, key):
        flow = ProbabilityFlow(denoising.Known(lambda _: denoiser, schedule))
        frozen = ProbabilityFlow(denoising.Known(lambda _: lambda y, t: denoiser(jnp.zeros_like(y), t), schedule))
        z, log_det = flow.inverse_and_log_det({}, x)
        return base_log_prob(z) + 0.0 * log_det + frozen.inverse_and_log_det({}, x)[1]

    assert gm.check_likelihood(divergence_at_rest, SCHEDULES["variance_preserving"], num_points=32, num_keys=2).largest > 1


def test_score_errors_are_those_that_were_put_in(x64):
    """A score (1 + c) times the true one, of N(0, I) under VP: c^2 sigma^2 at every level."""
    schedule = SCHEDULES["variance_preserving"]
    report = gm.check_score(lambda x, t: -1.1 * x, schedule, [1.0], [[0.0, 0.0]], [1.0], num_points=4_000)
    wanted = 0.01 * np.asarray(schedule.sigma(jnp.asarray(report.times))) ** 2
    np.testing.assert_allclose(report.errors, wanted, rtol=NUM_SEM * np.sqrt(2 / 8_000))


@pytest.mark.slow
def test_hutchinson_is_unbiased_and_says_its_spread():
    schedule = SCHEDULES["variance_preserving"]
    log_prob_fn = functools.partial(log_prob_by_flow, Adaptive(), Hutchinson(1))
    report = gm.check_likelihood(log_prob_fn, schedule, num_points=512, num_keys=8)
    # The mean over points of the mean over keys; points have a spread of their own, by their directions.
    assert abs(report.bias) < NUM_SEM * report.bias_sem + 1e-3 and report.probe_std > 0.05
    wrong = gm.check_likelihood(lambda *args: log_prob_fn(*args) - 0.5, schedule, num_points=64, num_keys=2)
    assert wrong.bias < -0.3


def test_samples_start_from_the_prior_of_the_schedule(key):
    """VE from N(0, sigma_max^2): the law of the data comes out, and the flow's encodings have that scale."""
    schedule = denoising.VarianceExploding(0.05, 20.0)
    model = exact(gaussian, schedule, sampler=denoising.Steps(denoising.Heun(), denoising.LogSNRGrid(32)))
    num = 4_000
    x = np.asarray(model.sample(NOTHING, key, num), np.float64)
    sem = np.sqrt((COVARIANCE**2 + np.outer(np.diag(COVARIANCE), np.diag(COVARIANCE))) / num)
    # The start is N(0, 20^2) in the place of the exact N(m, 20^2 + S).
    assert (np.abs(np.cov(x.T) - COVARIANCE) < NUM_SEM * sem + 0.01 * np.abs(COVARIANCE)).all()
    z = np.asarray(model.flow.encode(NOTHING, x[:500]))
    assert abs(z.std() / 20.0 - 1) < NUM_SEM / np.sqrt(2 * 1000)
    assert model.flow.base == Normal((2,), 20.0)


@pytest.mark.slow
def test_bound_of_a_gaussian_is_below_its_log_likelihood_by_what_is_known(x64):
    """A chain of T steps is linear and Gaussian: its log p is in closed form, above the bound, and the bound rises with T."""
    schedule = denoising.VariancePreserving(times=(1e-3, 1.0))
    mean, variance = np.array([0.3, -0.5]), 0.4
    denoiser = denoisers.gaussian(schedule, mean, variance)
    x = jnp.asarray(mean + np.sqrt(variance) * np.random.default_rng(0).standard_normal((400, 2)))
    data_log_prob = -0.5 * (np.asarray(x - mean[None]) ** 2).sum(1) / variance - np.log(2 * np.pi * variance)
    means = []
    for num in (4, 16, 64):
        times = denoising.LogSNRGrid(num).times(schedule)
        keys = jax.random.split(jax.random.key(num), 400)
        draw = jax.jit(jax.vmap(lambda x, key: losses.variational_bound(denoiser, schedule, x, key, times=times)))  # noqa: B023
        parts = draw(x, keys)
        total = np.asarray(parts.total)
        np.testing.assert_allclose(total, sum(np.asarray(part) for part in parts))
        chain = np.asarray(jax.vmap(functools.partial(chain_log_prob, schedule, mean, variance, times))(x))
        gap = chain + total  # log p of the chain less its bound
        assert gap.mean() > -NUM_SEM * gap.std() / 20
        means.append(total.mean() + data_log_prob.mean())
        # The excess over the entropy, in closed form: sum of the chain's KLs at the exact denoiser.
        wanted = expected_bound(schedule, variance, times) - (1 + np.log(2 * np.pi * variance))
        assert abs(total.mean() - (1 + np.log(2 * np.pi * variance)) - wanted) < NUM_SEM * total.std() / 20
    assert means[0] > means[1] > means[2] > -0.1


def chain_log_prob(schedule, mean, variance, times, x):
    """log p(x) of the model that `variational_bound` describes: x_high ~ N(0, prior^2), then every step, then the decoder."""
    mu, spread = jnp.zeros_like(x), jnp.asarray(schedule.prior_scale**2)

    def affine_denoiser(t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return gain, jnp.asarray(mean) * (1 - gain * alpha)

    for t, s in zip(jnp.asarray(times[:-1]), jnp.asarray(times[1:]), strict=True):
        gain, shift = affine_denoiser(t)
        scale, std = schedule.transition(s, t)
        back = scale * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2  # of x_t in the mean of q(x_s | x_t, x_0)
        forth = schedule.alpha(s) * std**2 / schedule.sigma(t) ** 2  # of x_0
        slope = back + forth * gain
        mu, spread = slope * mu + forth * shift, slope**2 * spread + (schedule.sigma(s) * std / schedule.sigma(t)) ** 2
    low = jnp.asarray(times[-1])
    gain, shift = affine_denoiser(low)
    mu, spread = gain * mu + shift, gain**2 * spread + (schedule.sigma(low) / schedule.alpha(low)) ** 2
    return -0.5 * jnp.sum((x - mu) ** 2) / spread - jnp.log(2 * jnp.pi * spread)


def expected_bound(schedule, variance, times):
    """E_x of the bound for 2-D data N(m, variance), by E|x0 - D(x_t)|^2 = 2 variance sigma^2 / (alpha^2 variance + sigma^2)."""
    t = jnp.asarray(times)
    alpha, sigma = (np.asarray(v, np.float64) for v in (schedule.alpha(t), schedule.sigma(t)))
    snr, left = (alpha / sigma) ** 2, 2 * variance * sigma**2 / (alpha**2 * variance + sigma**2)
    diffusion = 0.5 * ((snr[1:] - snr[:-1]) * left[:-1]).sum()
    ratio2 = 1 / snr[-1]
    reconstruction = 0.5 * left[-1] / ratio2 + np.log(2 * np.pi * ratio2)
    square = 2 * variance + 0.34  # E|x0|^2
    prior = 0.5 * alpha[0] ** 2 * square + (sigma[0] ** 2 - 1 - np.log(sigma[0] ** 2))
    return prior + diffusion + reconstruction


@pytest.mark.slow
def test_the_limit_of_many_steps(x64):
    schedule = denoising.VariancePreserving(times=(1e-3, 1.0))
    denoiser = denoisers.gaussian(schedule, np.array([0.3, -0.5]), 0.4)
    x = jnp.asarray([0.3, -0.5] + np.sqrt(0.4) * np.random.default_rng(0).standard_normal((2_000, 2)))
    bound = jax.jit(jax.vmap(lambda x, key: losses.variational_bound(denoiser, schedule, x, key, num_times=16)))
    total = np.asarray(bound(x, jax.random.split(jax.random.key(0), 2_000)).total)
    wanted = expected_bound(schedule, 0.4, denoising.LogSNRGrid(4_000).times(schedule))
    assert abs(total.mean() - wanted) < NUM_SEM * total.std() / np.sqrt(2_000)
    assert abs(wanted - (1 + np.log(2 * np.pi * 0.4))) < 0.02  # tight: the exact denoiser, a narrow decoder


def test_ddpm_weight_is_that_of_the_bound(x64):
    """beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha-bar_t)) at the posterior variance, with the alpha_t that is often dropped."""
    schedule = denoising.LinearBetas()
    t = jnp.arange(2, 1_001) / 1_000
    s = t - 1e-3
    beta, bar = jnp.asarray(schedule.betas())[1:], schedule.alpha(t) ** 2
    posterior = beta * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
    paper = beta**2 / (2 * posterior * (1 - beta) * (1 - bar))
    ours = 0.5 * (jnp.exp(schedule.log_snr(s) - schedule.log_snr(t)) - 1)
    np.testing.assert_allclose(ours, paper, rtol=1e-6)


@pytest.mark.slow
def test_both_likelihoods_of_one_model(key):
    """log p by the flow, EXACT, and the bound, below it on average; the same parameters."""
    model = exact(mixture, denoising.VariancePreserving(times=(1e-3, 1.0)))
    bound = dataclasses.replace(model, bound=Bound(num_times=32))
    assert model.likelihood is Likelihood.EXACT and bound.likelihood is Likelihood.LOWER_BOUND
    x = model.sample(NOTHING, key, 400)
    flow, below = np.asarray(model.log_prob(NOTHING, x)), np.asarray(bound.log_prob(NOTHING, x, key=key))
    gap = flow - below
    assert gap.mean() > -NUM_SEM * gap.std() / 20 and abs(gap.mean()) < 0.2
    parts = model.bound_parts(NOTHING, x, key=key)
    assert parts.prior.shape == (400,) and parts.total.shape == (400,)
    with pytest.raises(ValueError, match="the variational bound is a random draw: pass key="):
        bound.log_prob(NOTHING, x)


@pytest.mark.parametrize(
    "sampler", [denoising.ReverseODE(), denoising.Steps(denoising.DPMSolverPlusPlus())], ids=["flow", "steps"]
)
def test_samples_of_a_model_by_any_sampler(sampler, key):
    model = exact(mixture, SCHEDULES["cosine"], sampler=sampler)
    x = np.asarray(model.sample(NOTHING, key, 4_000))
    nearest = np.argmin(((x[:, None] - MEANS[None]) ** 2).sum(-1), 1)
    shares = np.bincount(nearest, minlength=3) / 4_000
    assert (np.abs(shares - WEIGHTS) < NUM_SEM * np.sqrt(WEIGHTS * (1 - WEIGHTS) / 4_000)).all()


# --- networks ---


def learned(kind="eps", schedule=SCHEDULES["variance_preserving"], **options):
    predictor = denoising.Learned(VELOCITY8, schedule, kind, **options)
    params = predictor.init(jax.random.key(0), jnp.zeros(2))
    return predictor, jax.tree.map(lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)


def test_network_sees_the_signal_to_noise_ratio_and_not_the_time(x64):
    """Under another schedule the same parameters give the same denoised mean at the same x / alpha and SNR."""
    vp, ve = SCHEDULES["variance_preserving"], SCHEDULES["edm"]
    for kind in ("eps", "x0", "edm"):
        one, params = learned(kind)
        t, x = jnp.asarray(0.4), jnp.array([0.5, -1.0])
        other = dataclasses.replace(one, schedule=ve)
        there = ve.time(vp.log_snr(t))
        np.testing.assert_allclose(one.denoise(params, x, t), other.denoise(params, x / vp.alpha(t), there), rtol=1e-9)


@pytest.mark.parametrize("kind", denoising.KINDS)
def test_loss_is_the_same_error_of_the_noise_for_every_kind(kind, x64):
    """Predictions that agree have equal losses, whatever they are of."""
    schedule = SCHEDULES["cosine"]
    rng = np.random.default_rng(0)
    x0, eps, t = jnp.asarray(rng.standard_normal((6, 2))), jnp.asarray(rng.standard_normal((6, 2))), jnp.linspace(0.1, 0.9, 6)

    def predict(x, t):
        noise = jnp.tanh(x)
        return jax.vmap(lambda t, x, e: denoising.convert(schedule, t, x, e, "eps", kind, data_scale=0.5))(t, x, noise)

    x = jax.vmap(schedule.perturb)(t, x0, eps)
    for weighting in (
        denoising.SimpleWeighting(),
        denoising.LikelihoodWeighting(),
        denoising.DataWeighting(),
        denoising.MinSNR(),
        denoising.VWeighting(),
    ):
        loss, metrics = losses.denoising(predict, schedule, x0, t, eps, kind=kind, weighting=weighting, data_scale=0.5)
        wanted = (weighting(schedule, t) * ((jnp.tanh(x) - eps) ** 2).sum(1)).mean()
        np.testing.assert_allclose([loss, metrics["denoising_error"]], wanted, rtol=1e-8)


def test_weightings_are_those_of_the_papers(x64):
    schedule, t = SCHEDULES["variance_preserving"], jnp.linspace(0.05, 0.95, 7)
    snr = jnp.exp(schedule.log_snr(t))
    np.testing.assert_allclose(denoising.MinSNR(5.0)(schedule, t), jnp.minimum(snr, 5.0) / snr, rtol=1e-9)
    np.testing.assert_allclose(denoising.DataWeighting()(schedule, t), 1 / snr, rtol=1e-9)
    np.testing.assert_allclose(denoising.VWeighting()(schedule, t), 1 / schedule.alpha(t) ** 2, rtol=1e-9)
    g = schedule.diffusion(t)
    np.testing.assert_allclose(denoising.LikelihoodWeighting()(schedule, t), g**2 / (2 * schedule.sigma(t) ** 2), rtol=1e-9)
    edm, d = SCHEDULES["edm"], 0.5  # lambda |D - x0|^2, lambda = (s^2 + d^2) / (s d)^2
    s = edm.sigma(t)
    np.testing.assert_allclose(denoising.EDMWeighting(d)(edm, t), (s**2 + d**2) / (s * d) ** 2 * s**2, rtol=1e-9)


@pytest.mark.parametrize(
    "times", [denoising.UniformTimes(), denoising.UniformTimes(independent=True), denoising.UniformLogSNRTimes()]
)
def test_times_leave_the_mean_over_uniform_times(times, x64):
    schedule = SCHEDULES["variance_preserving"]
    t, weight = times(jax.random.key(0), 20_000, schedule)
    low, high = schedule.times
    assert t.shape == weight.shape == (20_000,) and (t >= low).all() and (t <= high).all()
    values = np.asarray(weight * jnp.cos(3 * t))
    wanted = (np.sin(3 * high) - np.sin(3 * low)) / (3 * (high - low))
    assert abs(values.mean() - wanted) < NUM_SEM * values.std() / np.sqrt(20_000)
    if isinstance(times, denoising.UniformLogSNRTimes):  # equal weights of the likelihood's loss
        together = np.asarray(weight * denoising.LikelihoodWeighting()(schedule, t))
        np.testing.assert_allclose(together, together[0], rtol=1e-9)


def test_edm_times_are_log_normal(x64):
    t, weight = denoising.LogNormalTimes()(jax.random.key(0), 20_000, SCHEDULES["edm"])
    logs = np.log(SCHEDULES["edm"].sigma(t))
    assert abs(logs.mean() + 1.2) < NUM_SEM * 1.2 / np.sqrt(20_000) and (weight == 1).all()


@pytest.mark.slow
def test_fit_learns_the_score_of_a_mixture(key):
    """The KL that the errors of the score allow (`check_score`) falls far below that of the start; samples and density agree."""
    schedule = SCHEDULES["variance_preserving"]
    which = jax.random.choice(key, 3, (4_000,), p=jnp.asarray(WEIGHTS))
    spread = jnp.sqrt(jnp.asarray(VARIANCES, jnp.float32))[which][:, None]
    x = jnp.asarray(MEANS, jnp.float32)[which] + spread * jax.random.normal(jax.random.key(1), (4_000, 2))
    model = gm.flows.diffusion((2,), schedule=schedule, hidden_sizes=(64, 64), scaling=None, data_scale=2.5)
    fit = gm.fit(model, x, key=key, num_steps=600, batch_size=256, optimizer=optax.adam(3e-3), progress=False)

    def nats(params):
        score = functools.partial(model.predictor.score, params["bijector"][0])
        return gm.check_score(score, schedule, num_points=256).nats

    start = nats(model.init(key, x))
    assert nats(fit.params) < 0.25 * start  # which is the score of a Gaussian, 2.4 nats away
    drawn = model.sample(fit.params, key, (3, 2))
    assert drawn.shape == (3, 2, 2) and jnp.isfinite(drawn).all()


@pytest.mark.slow
def test_standardized_data_and_bound(key):
    """A fixed layer towards the data: densities are those of the data, and the parts of the bound count its log-determinant."""
    schedule = denoising.VariancePreserving(times=(1e-3, 1.0))
    flow = ProbabilityFlow(denoising.Known(lambda s: denoisers.gaussian(s, np.zeros(2), 1.0), schedule))
    model = Diffusion(flow, (2,), data_side=Standardize())
    x = 5.0 + 100.0 * jax.random.normal(key, (2_000, 2))
    params = model.init(key, x)
    wanted = float(jax.scipy.stats.norm.logpdf(x, x.mean(0)[None], x.std(0)[None]).sum(1).mean())
    assert abs(float(model.log_prob(params, x).mean()) - wanted) < 0.05
    total = np.asarray(model.bound_parts(params, x, key=key).total)
    assert abs(total.mean() + wanted) < NUM_SEM * total.std() / np.sqrt(2_000) + 0.05
    drawn = model.sample(params, key, 2_000)
    assert abs(float(drawn.std()) / 100 - 1) < 0.1


@pytest.mark.slow
def test_guidance(key):
    model = gm.flows.diffusion((2,), hidden_sizes=(8,), context_shape=(3,), context_dropout=0.3, guidance=2.0, scaling=None)
    x, context = jax.random.normal(key, (8, 2)), jax.random.normal(jax.random.key(1), (8, 3))
    params = model.init(key, x, context)
    loss, _ = model.loss(params, key, (x, context))
    assert jnp.isfinite(loss) and model.sample(params, key, 2, context).shape == (2, 8, 2)
    network = model.predictor.network
    moved = jax.tree.map(lambda p: p + 0.1, model.network_params(params))
    t, point = jnp.asarray(0.5), x[0]

    def denoised(weight):
        predictor = dataclasses.replace(model.predictor, network=dataclasses.replace(network, weight=weight))
        return predictor.denoise(moved, point, t, context[0])

    np.testing.assert_allclose(denoised(2.0), denoised(0.0) + 2.0 * (denoised(1.0) - denoised(0.0)), rtol=1e-4, atol=1e-5)


VP = SCHEDULES["variance_preserving"]


def learned_schedule(a):
    """lambda = 5 - 9 t - a t^2 of a parameter, which may be traced."""
    return denoising.CustomSchedule(
        lambda t: jnp.sqrt(jax.nn.sigmoid(5.0 - 9.0 * t - a * t**2)),
        lambda t: jnp.sqrt(jax.nn.sigmoid(-5.0 + 9.0 * t + a * t**2)),
    )


@pytest.mark.parametrize("times", [None, np.linspace(1.0, 0.0, 6)], ids=["limit", "chain"])
def test_the_bound_of_a_learned_schedule_has_a_gradient(times, key, x64):
    """A schedule of traced parameters (Kingma et al. 2021): that of the chain by a finite difference, the limit's finite."""

    def bound(a):
        schedule = learned_schedule(a)
        denoiser = denoisers.gaussian(schedule, np.zeros(2), 1.0)
        return losses.variational_bound(denoiser, schedule, jnp.array([0.3, -1.0]), key, times=times, num_times=4).total

    slope = jax.jit(jax.grad(bound))(0.5)
    assert jnp.isfinite(slope)
    if times is not None:
        np.testing.assert_allclose(slope, (bound(0.5 + 1e-5) - bound(0.5 - 1e-5)) / 2e-5, rtol=1e-5)


def test_posterior_sampling_of_a_gaussian():
    """y = A x + noise on the side of the data, the diffusion behind a fixed layer: draws of x given y are exact."""
    schedule, shift, scale, noise, num = denoising.Cosine(8.0, -8.0), 1.0, 2.0, 0.5, 4_000
    flow = ProbabilityFlow(denoising.Known(gaussian, schedule))
    sampler = denoising.Steps(denoising.Heun(), denoising.LogSNRGrid(50))
    model = Diffusion(flow, (2,), Rescale(scale, shift), sampler=sampler)
    params = model.init(jax.random.key(0), jnp.zeros((2, 2)))
    y = jnp.full((num, 1), 3.0)
    x = np.asarray(model.sample_posterior(params, jax.random.key(1), y, first_plus_second, noise), np.float64)
    mean, covariance = shift + scale * MEAN, scale**2 * COVARIANCE
    a = np.array([[1.0, 1.0]])
    gain = covariance @ a.T / (a @ covariance @ a.T + noise**2)
    wanted, spread = mean + gain[:, 0] * (3.0 - (a @ mean)[0]), covariance - gain @ a @ covariance
    assert (np.abs(x.mean(0) - wanted) < NUM_SEM * np.sqrt(np.diag(spread) / num) + 0.02).all()  # 0.02: of the steps
    np.testing.assert_allclose(np.cov(x.T), spread, atol=0.06 * np.diag(spread).max())
    with pytest.raises(ValueError, match=r"y must have the shape that observe returns, \(1,\), got \(2,\)"):
        model.sample_posterior(params, jax.random.key(1), jnp.zeros((3, 2)), first_plus_second, noise)


@pytest.mark.slow
def test_posterior_sampling_with_a_context_and_a_curved_observation(key):
    """One context for all or one for each; |x| seen almost without noise is the |x| of the draws."""
    model = gm.flows.diffusion(
        (2,),
        hidden_sizes=(8,),
        context_shape=(1,),
        context_dropout=0.1,
        guidance=2.0,
        sampler=denoising.Steps(denoising.DDIM(), denoising.LogSNRGrid(40)),
    )
    params = model.init(key, jax.random.normal(key, (64, 2)), jnp.ones((64, 1)))
    y = jnp.array([[1.0], [2.0], [3.0]])
    draw = functools.partial(model.sample_posterior, params, key, y, length, 0.02)
    np.testing.assert_allclose(draw(jnp.ones(1)), draw(jnp.ones((3, 1))), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(length)(draw(jnp.ones(1))), y, rtol=0.1)
    with pytest.raises(ValueError, match="is conditional: pass context"):
        draw()


def length(x):
    return jnp.sqrt(jnp.sum(x**2, keepdims=True))


def first_plus_second(x):
    return x[:1] + x[1:]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Diffusion(CNF(VELOCITY8), (2,)), TypeError, "process must be a ProbabilityFlow, got CNF"),
        (lambda: Diffusion(exact(gaussian, VP).process, 2), TypeError, r"shape must be a tuple of integers, got 2; write \(2,\)"),
        (lambda: dataclasses.replace(exact(gaussian, VP), data_side="scale"), TypeError, "data_side must be a Bijector, got"),
        (lambda: dataclasses.replace(exact(gaussian, VP), sampler="ddim"), TypeError, "sampler must be a Sampler, got 'ddim'"),
        (
            lambda: dataclasses.replace(exact(gaussian, VP), context_dropout=1.0),
            ValueError,
            r"context_dropout must be in \[0, 1\)",
        ),
        (lambda: dataclasses.replace(exact(gaussian, VP), context_dropout=0.1), ValueError, "takes `present`: nets.Guided"),
        (lambda: gm.flows.diffusion((2,), guidance=2.0), ValueError, "guidance=2.0 wants an unconditional branch"),
        (lambda: gm.flows.diffusion((2,), context_dropout=0.1), ValueError, "want context_shape=... and a network that takes"),
        (lambda: denoising.Learned(VELOCITY8, VP, "noise"), ValueError, "kind must be one of 'x0', 'eps'"),
        (lambda: denoising.Learned(VELOCITY8, "vp"), TypeError, "schedule must be a Schedule, got 'vp'"),
        (lambda: denoising.Learned(VELOCITY8, VP, data_scale=0.0), ValueError, "data_scale must be > 0"),
        (lambda: denoising.Learned(VELOCITY8, denoising.Straight(times=(0.0, 1.0))), ValueError, "must be finite at both ends"),
        (
            lambda: losses.denoising(
                lambda x, t: x, VP, jnp.zeros((3, 2)), jnp.full(3, 0.5), jnp.zeros((3, 2)), weights=jnp.ones((3, 1))
            ),
            ValueError,
            r"weights must have the shape of t, \(3,\), got \(3, 1\)",
        ),
        (
            lambda: exact(lambda s: lambda x, t: x[:1], VP).log_prob(NOTHING, jnp.zeros((3, 2))),
            ValueError,
            r"a prediction must have the shape of x, \(2,\), got \(1,\)",
        ),
        (lambda: Bound(num_times=0), ValueError, "num_times must be an integer >= 1"),
        (
            lambda: losses.variational_bound(lambda x, t: x[0], VP, jnp.zeros(2), jax.random.key(0)),
            ValueError,
            r"the denoiser must return the shape of its input, \(2,\), got \(\)",
        ),
        (
            lambda: losses.variational_bound(lambda x, t: x, VP, jnp.zeros(2), jax.random.key(0), times=np.array([0.9, 0.0])),
            ValueError,
            "the bound wants noise and data at both of its ends",
        ),
        (
            lambda: exact(gaussian, VP).bound_parts(NOTHING, jnp.zeros((4, 3)), key=jax.random.key(0)),
            ValueError,
            r"x must have shape \(\.\.\.,\) \+ \(2,\), got \(4, 3\)",
        ),
        (
            lambda: exact(gaussian, VP).bound_parts(NOTHING, jnp.zeros((4, 2)), jnp.zeros((4, 1)), key=jax.random.key(0)),
            ValueError,
            "Diffusion takes no context",
        ),
        (lambda: exact(gaussian, VP, bound=5), TypeError, "bound must be a Bound, got 5"),
        (lambda: ProbabilityFlow(5), TypeError, "predictor must be a Predictor, got 5"),
        (
            lambda: exact(gaussian, VP).sample_posterior(NOTHING, jax.random.key(0), jnp.zeros((1, 1)), None, 0.1),
            TypeError,
            "observe must be a function, got None",
        ),
        (
            lambda: exact(gaussian, VP).sample_posterior(NOTHING, jax.random.key(0), jnp.zeros((1, 1)), first_plus_second, "a"),
            TypeError,
            "noise_std must be a number, got 'a'",
        ),
        (lambda: denoisers.guided(gaussian(VP), None, 2.0), TypeError, "unconditional must be a function, got None"),
        (lambda: denoising.LogNormalTimes(0.0, -1.0), ValueError, "std must be > 0"),
        (lambda: denoising.EDMWeighting(0.0), ValueError, "data_scale must be > 0"),
        (lambda: denoising.Known(gaussian, "vp"), TypeError, "schedule must be a Schedule, got 'vp'"),
        (lambda: denoising.Known(0.5), TypeError, "denoiser_of must be a function, got 0.5"),
        (
            lambda: losses.variational_bound(lambda x, t: x, VP, jnp.zeros(2), jax.random.key(0), num_times=0),
            ValueError,
            "num_times must be an integer >= 1, got 0",
        ),
        (
            lambda: losses.variational_bound(lambda x, t: x, VP, jnp.zeros(2), jax.random.key(0), times=np.array([0.1, 0.9])),
            ValueError,
            r"times must fall from noise to data, within \[0, 1\], got \[0.1 0.9\]",
        ),
        (
            lambda: losses.denoising(
                lambda x, t: x, VP, jnp.zeros((3, 2)), jnp.full(3, 0.5), jnp.zeros((3, 2)), weighting="simple"
            ),
            TypeError,
            "weighting must be a Weighting such as denoising.SimpleWeighting.., got 'simple'",
        ),
        (lambda: denoising.MinSNR(0.0), ValueError, "gamma must be > 0"),
        (
            lambda: losses.denoising(lambda x, t: x, VP, jnp.zeros((3, 2)), jnp.zeros(2), jnp.zeros((3, 2))),
            ValueError,
            r"x0 and eps must have one shape .* got \(3, 2\), \(3, 2\), \(2,\)",
        ),
        (
            lambda: losses.denoising(lambda x, t: x[:, :1], VP, jnp.zeros((3, 2)), jnp.full(3, 0.5), jnp.zeros((3, 2))),
            ValueError,
            r"predict_fn must return shape \(3, 2\), got \(3, 1\)",
        ),
    ],
)
def test_bad_settings(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("kind", "weighting", "schedule", "warns"),
    [
        ("edm", denoising.SimpleWeighting(), denoising.EDM(), False),
        ("v", denoising.VWeighting(), VP, False),
        ("eps", denoising.SimpleWeighting(), denoising.Cosine(), False),
        ("x0", denoising.MinSNR(), denoising.Straight(), False),
        ("x0", denoising.SimpleWeighting(), VP, True),
        ("eps", denoising.VWeighting(), denoising.Cosine(), True),
        ("edm", denoising.VWeighting(), denoising.EDM(), True),
    ],
)
def test_losses_that_few_noise_levels_carry_are_warned_of(kind, weighting, schedule, warns):
    options: dict = {"schedule": schedule, "kind": kind, "weighting": weighting}
    if not warns:
        gm.flows.diffusion((2,), **options)  # a warning is an error here
        return
    with pytest.warns(UserWarning, match=rf"of the noise levels carry the loss of kind='{kind}'"):
        gm.flows.diffusion((2,), **options)
    gm.flows.diffusion((2,), **options, times=denoising.UniformLogSNRTimes())
