"""The experiment on classical densities, small: it ends, and its numbers are what they say."""

import json

import pytest

import genmod as gm
from experiments import mixtures

SETTINGS = {"num_train": 400, "num_test": 2_000, "num_restarts": 2, "num_starts": 4, "num_steps": 30, "hidden_sizes": 8}


@pytest.mark.slow
def test_it_runs(tmp_path):
    arguments = ["--data", "two_bumps", "eight_gaussians", "--out", str(tmp_path)]
    arguments += [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    gm.lab.main(mixtures.experiment, mixtures.Config, arguments=arguments)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"two_bumps.png", "eight_gaussians_mixture_em.png", "starts.png"} <= {path.name for path in tmp_path.glob("*.png")}
    assert metrics["two_bumps_limit_nats"] == pytest.approx(1.873470, abs=1e-5)
    # One Gaussian is 0.496 nats away, at the least; two are the family of the truth.
    assert metrics["two_bumps_mixture_em_gap_nats"] < 0.1 < 0.4 < metrics["two_bumps_affine_flow_gap_nats"]
    assert 0 < metrics["k-means++_share_of_best"] <= 1 or metrics["uniform_share_of_best"] > 0
