"""The experiment on a horseshoe prior: its density against SciPy, its split, and small runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

import genmod as gm
from experiments import horseshoe

TINY = ["--num-genes", "6", "--num-steps", "300", "--num-layers", "2", "--hidden-size", "8", "--num-report", "500"]
TINY += ["--num-warmup", "100", "--num-chain-draws", "100", "--num-chains", "2"]


def test_the_joint_density():
    """p(y, z, log l, log t, b): half-Cauchy laws of l and t with the Jacobian of the logs."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)).astype(np.float32), np.array([1, 0, 0, 1], np.uint8)
    position = np.array([0.3, -1.2, 0.7, 0.5, -2.0, 1.1, -0.4, 2.0])
    z, log_scales, intercept = position[:3], position[3:7], position[7]
    coefficients = z * np.exp(log_scales[:3] + log_scales[3])
    wanted = stats.bernoulli(expit(intercept + x @ coefficients)).logpmf(y).sum() + stats.norm.logpdf(z).sum()
    wanted += (stats.halfcauchy.logpdf(np.exp(log_scales)) + log_scales).sum() + stats.norm.logpdf(intercept, 0, 10)
    found = horseshoe.log_joint(jnp.asarray(position, jnp.float32), jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(horseshoe.coefficients(position[None])[0], coefficients)


def test_the_split_is_scaled_by_the_rows_to_fit():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)) * [1.0, 4.0, 2.0, 8.0, 3.0] + 5.0, (np.arange(60) < 20).astype(np.uint8)
    config = horseshoe.Config(num_genes=2, num_test=15)
    problem = horseshoe.scaled("mine", x, y, config, rng, truth=np.arange(5.0))
    assert problem.genes.tolist() == [1, 3] and problem.y_test.sum() == 5 and problem.y.sum() == 15 and len(problem.y) == 45
    np.testing.assert_allclose(np.quantile(problem.x, [0.25, 0.5, 0.75], axis=0)[1], 0.0, atol=1e-6)
    np.testing.assert_allclose(stats.iqr(problem.x, axis=0), 1.0, rtol=1e-5)
    assert problem.truth is not None  # in the new units: the same logits but for a constant
    logits = x[:, problem.genes] @ np.array([1.0, 3.0])
    rows = np.concatenate([problem.x, problem.x_test]) @ problem.truth
    np.testing.assert_allclose(np.sort(rows) - rows.min(), np.sort(logits) - logits.min(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="num_test must leave rows of both classes on either side, got 60 of 60"):
        horseshoe.scaled("mine", x, y, horseshoe.Config(num_test=60), rng)


def test_what_is_reported_of_draws(key):
    """Draws at one place: the log-likelihood is that of the coefficients, those away from zero are kept, and agree."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2)), np.array([1, 0, 1, 1, 0, 0, 1])
    problem = horseshoe.Problem("mine", x, y, x, y, np.arange(2), np.array([0.0, 2.0]))
    noise = 0.1 * np.asarray(jax.random.normal(key, (4_000, 2)), np.float64)
    draws = np.concatenate([np.array([0.0, 1.0]) + noise, np.zeros((4_000, 3)), np.full((4_000, 1), 0.5)], 1)
    found = horseshoe.predictive(problem, draws)
    logits = 0.5 + x @ np.array([0.0, 1.0])
    assert abs(found["test_log_prob_nats"] - stats.bernoulli(expit(logits)).logpmf(y).mean()) < 0.01
    assert found["accuracy"] == ((logits > 0) == y).mean()
    assert horseshoe.selection(problem, draws) == {"num_selected": 1, "num_rightly_selected": 1}
    reference = np.random.default_rng(1).normal(size=(4_000, 6))
    agreed = horseshoe.agreement(2.0 * reference + np.array([0.5, 0, 0, 0, 0, 0]), reference, same=False)
    means = reference.mean(0) + np.array([0.5, 0, 0, 0, 0, 0])
    assert agreed["rms_mean_error"] == pytest.approx(np.sqrt(np.mean((means / reference.std(0)) ** 2)), rel=1e-6)
    assert agreed["width_ratio"] == pytest.approx(2.0)
    assert horseshoe.agreement(reference, reference, same=True)["rms_mean_error"] < 4.5 * np.sqrt(2 / 2_000)


@pytest.mark.slow
def test_a_tiny_run_without_the_data(tmp_path, monkeypatch, capsys):
    """Runs on the synthetic problem and says so; NUTS where BlackJAX is there, else the reason."""
    monkeypatch.delenv("GENMOD_DATA", raising=False)
    gm.lab.main(horseshoe.experiment, horseshoe.Config, arguments=[*TINY, "--out", str(tmp_path)])
    metrics, printed = json.loads((tmp_path / "metrics.json").read_text()), capsys.readouterr().out
    assert "synthetic data instead of colon" in printed and metrics["data"] == "synthetic" and metrics["dim"] == 14
    assert ("no NUTS: BlackJAX is not installed" in printed) == ("nuts_accuracy" not in metrics)
    for flow in ("flow_normal_base", "flow_student_base"):
        assert metrics[f"{flow}_elbo_nats"] > metrics["mean_field_elbo_nats"] - 1.0
        assert metrics[f"{flow}_accuracy"] > 0.6 and metrics[f"{flow}_num_rightly_selected"] <= 5
    assert {"coefficients.png", "table.txt"} <= {path.name for path in tmp_path.iterdir()}
