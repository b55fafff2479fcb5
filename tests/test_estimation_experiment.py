"""The experiment on estimation, small: it ends, and its numbers are what they say."""

import json

import pytest

import genmod as gm
from experiments import estimation

SMALL = {"sizes": ["10", "40"], "num-repeats": ["2000"], "num-accepted": ["5000"], "scales": ["1", "6"], "num-studies": ["10"]}


@pytest.mark.slow
def test_it_runs(tmp_path):
    arguments = [part for name, values in SMALL.items() for part in (f"--{name}", *values)]
    gm.lab.main(estimation.experiment, estimation.Config, arguments=[*arguments, "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    names = {"location.png", "rate.png", "map_to_mle.png", "rejection.png", "importance.png", "k_hat.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    # Standard errors are sqrt(2 / 2,000) of the ratio for normal estimates, and sqrt(p (1 - p) / 12,000) of the share.
    assert metrics["efficiency_normal_mean_40"] == pytest.approx(1, abs=0.13)
    assert metrics["efficiency_laplace_mean_40"] == pytest.approx(2, abs=0.3)
    assert metrics["rejection_acceptance"] == pytest.approx(0.406901, abs=0.018)
    assert metrics["ess_limit_s6"] == pytest.approx(0.164591, rel=1e-4) and metrics["ess_limit_s1"] < 1.5e-11
    assert metrics["ess_observed_s1"] > 1e6 * metrics["ess_limit_s1"] and metrics["k_hat_s1"] > 0.7 > metrics["k_hat_s6"]
    assert metrics["map_error"] < metrics["mle_error"] and -1.3 < metrics["map_minus_mle_slope"] < -0.7
