"""The experiment on a Boltzmann machine, small: it ends, and its numbers are what they say."""

import json

import pytest

import genmod as gm
from experiments import rbm

TINY = {
    "num-hidden": 4,
    "num-steps": 40,
    "num-stages": 2,
    "num-chains": 10,
    "num-tempered-levels": 3,
    "num-annealed": 30,
    "num-annealed-levels": 20,
    "num-sweeps": 120,
    "num-rows": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("chains", ["persistent", "tempered"])
def test_it_runs(chains, tmp_path):
    arguments = [f"--{name}={value}" for name, value in TINY.items()]
    gm.lab.main(rbm.experiment, rbm.Config, arguments=[*arguments, f"--chains={chains}", "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {path.stem for path in tmp_path.glob("*.png")} == {"filters", "chains", "imputed", "bracket"}
    assert metrics["step"] == 40 and metrics["num_params"] == 64 * 4 + 64 + 4
    width = metrics["nll_upper_bound_nats"] - metrics["nll_lower_bound_nats"]
    assert metrics["log_normalizer_width_nats"] == pytest.approx(width, abs=1e-3) and abs(width) < 0.5
    assert 10 < metrics["nll_lower_bound_nats"] < 64 * 0.6932  # fair coins
