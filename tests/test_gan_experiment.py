"""The experiment on adversarial networks, small: it ends, and its numbers are what they say."""

import json

import pytest

import genmod as gm
from experiments import gan

TINY = {
    "num-train": 2_000,
    "num-steps": 40,
    "num-ratio-steps": 20,
    "batch-size": 64,
    "num-samples": 300,
    "num-chain-steps": 20,
    "num-proposals": 1_000,
    "critic-updates": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize(("data", "num_modes"), [("eight_gaussians", 8), ("digits", 10)])
def test_it_runs(data, num_modes, tmp_path):
    arguments = [f"--{name}={value}" for name, value in TINY.items()]
    options = ["--data", data, "--hidden-sizes", "16", "16", "--loss", "hinge", "--spectral-bound", "1.0", "--out", str(tmp_path)]
    gm.lab.main(gan.experiment, gan.Config, arguments=[*arguments, *options])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (tmp_path / "samples.png").exists()
    assert metrics["num_modes_data"] == num_modes and metrics["good_share_data"] > 0.8
    for name in ("raw", "MH", "DRS", "SIR"):
        assert 0 <= metrics[f"num_modes_{name}"] <= num_modes and 0 <= metrics[f"good_share_{name}"] <= 1
    assert 0 < metrics["mh_accepted"] <= 1 and 0 < metrics["drs_accepted"] <= 1 and 0 < metrics["sir_effective_share"] <= 1
