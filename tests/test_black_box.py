"""Black-box variational inference on targets whose evidence, posterior and best factorised approximation are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from experiments import flow_posterior
from genmod.bijectors import LOFT, SoftClippedAffine
from genmod.densities import ConjugateRegression, Factorized, FullNormal, GaussianMixture, NormalHead, ThreeGaussians
from genmod.inference import ReverseKL, fit_posterior, posterior_report

TARGET = ConjugateRegression(3, noise=3.0, num_rows=4)
MEAN_FIELD, FULL = Factorized(NormalHead(), (3,)), FullNormal((3,))
OPTIONS = {"num_steps": 1_500, "num_samples": 32, "progress": False, "optimizer": gm.call(optax.adam, 1e-2), "ema_decay": 0.99}


def exact():
    """The posterior of TARGET."""
    factor = np.linalg.cholesky(np.linalg.inv(TARGET.precision))
    params = {"mean": TARGET.mean, "lower": np.tril(factor, -1), "log_scale": np.log(np.diagonal(factor))}
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.slow
def test_it_reaches_the_best_of_the_family(key):
    """Mean field: log Z less a gap in closed form, and the effective sample size 1 / E_q[w^2] of two Gaussians; a full Gaussian:
    log Z, and all weights equal."""
    precision, diagonal = TARGET.precision, np.diag(np.diagonal(TARGET.precision))
    share = np.sqrt(np.linalg.det(diagonal) * np.linalg.det(2 * precision - diagonal)) / np.linalg.det(precision)
    assert TARGET.mean_field_gap > 0.08
    for law, gap, ess_fraction in ((MEAN_FIELD, TARGET.mean_field_gap, share), (FULL, 0.0, 1.0)):
        fit, report = fit_posterior(TARGET, law, key=key, **OPTIONS)
        excess = TARGET.log_normalizer - gap - float(report.elbo)
        assert -4 * report.elbo_sem - 1e-4 < excess < 4 * report.elbo_sem + 3e-3
        assert abs(report.log_evidence - TARGET.log_normalizer) < 4 * report.log_evidence_sem + 1e-3
        np.testing.assert_allclose(report.ess_fraction, ess_fraction, atol=0.02)
        assert report.k_hat < 0.7
        np.testing.assert_allclose(law.mean_one(fit.params) if gap else fit.params["mean"], TARGET.mean, atol=0.02)


@pytest.mark.slow
def test_report_and_gradient_of_the_exact_posterior(key, x64):
    """Every weight is Z; what sticks to the landing has no gradient there, what does not has one with mean zero."""
    params = exact()
    report = posterior_report(TARGET, FULL, params, key, 500)
    np.testing.assert_allclose([report.elbo, report.log_evidence], TARGET.log_normalizer, rtol=1e-12)
    np.testing.assert_allclose([report.elbo_sem, report.ess_fraction - 1, report.acceptance_rate - 1], 0, atol=1e-12)
    loss = ReverseKL(TARGET, FULL, 500)
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, key, None)
    np.testing.assert_allclose(value, -TARGET.log_normalizer, rtol=1e-12)
    assert metrics["reverse_kl_nats"] == value
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-11), gradient)
    plain = jax.grad(ReverseKL(TARGET, FULL, 500, stick_the_landing=False), has_aux=True)(params, key, None)[0]
    assert 1e-3 < np.abs(plain["mean"]).max() < 4.5 * np.sqrt(np.diagonal(TARGET.precision).max() / 500)


def test_report_and_loss_measure_the_same_weights(key, x64):
    """The acceptance rate is that of its definition, pair by pair, at the draws of the report; the loss has the same."""
    params = FULL.init(key, np.ones((1, 3)))
    report = posterior_report(TARGET, FULL, params, key, 60)
    x, log_q = FULL.sample_and_log_prob(params, key, 60)
    log_weights = np.asarray(TARGET.log_prob({}, x)) - log_q
    w = np.exp(log_weights - log_weights.max())
    pairs = np.minimum(w[:, None], w)
    wanted = (pairs.sum() - np.trace(pairs)) / (60 * 59) / w.mean()
    assert 0.0 < wanted < 0.9
    np.testing.assert_allclose(report.acceptance_rate, wanted, rtol=1e-8)
    metrics = ReverseKL(TARGET, FULL, 60)(params, key, None)[1]
    np.testing.assert_allclose([metrics["acceptance_rate"], metrics["ess_fraction"]], [wanted, report.ess_fraction], rtol=1e-8)


def test_tempered_loss(key, x64):
    """E log q - b E log f: of the step where there is one, the final one where there is none."""
    params = FULL.init(key, np.ones((1, 3)))
    x, log_q = FULL.sample_and_log_prob(params, key, 64)
    log_f = TARGET.log_prob({}, x)
    loss = ReverseKL(TARGET, FULL, stick_the_landing=False, temper=gm.call(optax.linear_schedule, 0.1, 1.0, 90))
    for step, temper in ((0, 0.1), (50, 0.6), (1_000, 1.0), (None, 1.0)):
        found, metrics = loss(params, key, None, step=step)
        np.testing.assert_allclose(found, (log_q - temper * log_f).mean(), rtol=1e-10)
        assert ("temper" in metrics) == (step is not None)


def test_stabilisers(x64):
    """Values by hand: LOFT beyond its threshold, the limits of the log-scale on either side."""
    x, log_det = LOFT(2.0).forward_and_log_det({}, jnp.array([1.5, -2.0, 2.0 + np.e - 1, -1.0 - np.e**3]))
    np.testing.assert_allclose(x, [1.5, -2.0, 3.0, -5.0], rtol=1e-12)
    np.testing.assert_allclose(log_det, -4.0, rtol=1e-12)
    raw = jnp.stack([jnp.zeros(4), jnp.array([1e9, -1e9, 0.1, -2.0])], -1)
    x, log_slope = SoftClippedAffine(0.1, 2.0).forward(raw, jnp.full(4, 3.0))
    np.testing.assert_allclose(log_slope, [0.1, -2.0, 0.05, -1.0], rtol=1e-8)
    np.testing.assert_allclose(x, 3.0 * np.exp(log_slope), rtol=1e-12)


@pytest.mark.slow
def test_a_flow_beats_the_mean_field_and_finds_three_modes(key):
    target = ThreeGaussians(2, separation=3.0)
    flow = gm.flows.stable_real_nvp((2,), 8, upper=1.0, hidden_sizes=(32,))
    temper = gm.call(optax.linear_schedule, 0.1, 1.0, 1_000)
    options = OPTIONS | {"num_steps": 2_000, "num_samples": 128}
    start = 4.0 * np.asarray(jax.random.normal(key, (50, 2)))
    fit, report = fit_posterior(target, flow, key=key, start=start, temper=temper, **options)
    _, of_mean_field = fit_posterior(target, Factorized(NormalHead(), (2,)), key=key, **options)
    assert of_mean_field.elbo < -0.6 and of_mean_field.elbo + 0.4 < report.elbo < 4 * report.elbo_sem
    assert abs(report.log_evidence) < 0.05
    draws = np.asarray(flow.sample(fit.params, key, 4_000))
    angle = np.arctan2(draws[:, 1], draws[:, 0])
    shares = [np.mean(np.abs((angle - mode + np.pi) % (2 * np.pi) - np.pi) < np.pi / 3) for mode in 2 * np.pi * np.arange(3) / 3]
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.08)


@pytest.mark.slow
def test_the_flow_lies_below_the_mean_field_on_every_target(tmp_path):
    """The experiment, quick, on all targets in ten dimensions."""
    config = flow_posterior.Config(dims=(10,), num_steps=800, num_layers=6, hidden_size=32, num_report=5_000)
    found = flow_posterior.experiment(config, gm.lab.Run(tmp_path))
    for name in flow_posterior.targets(10):
        gap, sem = (found[f"{name}_10_flow_gap_nats{end}"] for end in ("", "_sem"))
        of_mean_field, its_sem = (found[f"{name}_10_mean_field_gap_nats{end}"] for end in ("", "_sem"))
        assert -4 * sem < gap < of_mean_field - 4 * (sem + its_sem), name
        if name == "regression":
            assert abs(of_mean_field - ConjugateRegression(10).mean_field_gap) < 4 * its_sem + 0.05


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ReverseKL(TARGET, GaussianMixture((3,))), ValueError, "those of GaussianMixture do not"),
        (lambda: ReverseKL(TARGET, gm.flows.real_nvp((3,), context_shape=(2,))), ValueError, "no context, got Flow"),
        (lambda: ReverseKL(3.0, FULL), TypeError, "log_prob_fn must be a function, got 3.0"),
        (
            lambda: fit_posterior(jnp.cos, FULL, key=jax.random.key(0)),
            ValueError,
            r"one number for one position, got shape \(3,\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
