"""The experiment on generators of one evaluation, small: it ends, and its numbers are what they say."""

import json

import pytest

import genmod as gm
from experiments import one_step

TINY = ["--num-steps=60", "--batch-size=32", "--num-eval=300", "--num-levels=2", "--hidden-sizes", "16", "16"]
EVALUATIONS = {
    "flow": (1, 2, 50),
    "diffusion_DDIM": (1, 2, 50),
    "diffusion_Heun": (2, 50),
    "mean_flow": (1, 2, 50),
    "consistency_training": (1, 2, 50),
    "consistency_distillation": (1, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(("data", "measure"), [("moons", "w2"), ("digits", "sliced_w2")])
def test_it_runs(data, measure, tmp_path):
    gm.lab.main(one_step.experiment, one_step.Config, arguments=[*TINY, "--data", data, "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (tmp_path / "samples.png").exists() and (tmp_path / "samples_against_evaluations.png").exists()
    for name, numbers in EVALUATIONS.items():
        found = {n: metrics[f"{name}_{n}_{measure}"] for n in numbers}
        assert all(value > metrics[f"floor_{measure}"] for value in found.values())
        if "DDIM" in name:  # the mean of the data, whose distance more steps must lower
            assert found[1] > found[50]
    if data == "digits":
        shares = [value for name, value in metrics.items() if name.endswith(("precision", "recall"))]
        assert len(shares) == 2 * (sum(map(len, EVALUATIONS.values())) + 1) and all(0 <= share <= 1 for share in shares)
