"""Experiments on variational autoencoders, small: they end, and their numbers are what they say."""

import json

import pytest

import genmod as gm
from experiments import latent_flow, latent_structures, prediction_table, vae, vae_posteriors

TINY = {"num_steps": 40, "latent_dim": 3, "hidden_sizes": [8, 8]}
RUNS = {
    "vae": (vae, TINY | {"num_draws": 20, "num_test": 20, "posterior": "planar", "num_layers": 2, "warm_up": 10}),
    "convolutional": (vae, TINY | {"num_draws": 20, "num_test": 20, "channels": [4, 8]}),
    "vae_posteriors": (vae_posteriors, TINY | {"num_draws": 20, "num_test": 20, "posteriors": ["gaussian", "iaf"]}),
    "latent_flow": (latent_flow, TINY | {"num_prior_steps": 40, "num_test": 20, "prior_hidden_sizes": [8]}),
    "latent_structures": (
        latent_structures,
        TINY | {"latent_dim": 6, "num_codes": 4, "num_positions": 2, "code_dim": 2, "num_rounds": 2},
    ),
    "prediction_table": (
        prediction_table,
        {"num_steps": 20, "num_train": 500, "num_test": 50, "hidden_sizes": [8], "schedules": ["VE"], "kinds": ["x0", "edm"]},
    ),
}


def arguments(settings):
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            yield flag
        else:
            yield from (flag, *(map(str, value) if isinstance(value, list) else [str(value)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name, tmp_path):
    module, settings = RUNS[name]
    gm.lab.main(module.experiment, module.Config, arguments=[*arguments(settings), "--out", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    if name in ("vae", "convolutional"):
        assert {path.name for path in tmp_path.glob("*.png")} == {"samples.png", "latents.png", "traversals.png"}
        assert metrics["bound_excess_nats"] > -1 and 0 <= metrics["active_units"] <= 3
    if name == "vae_posteriors":
        assert {"gaussian_nll_upper_bound_nats", "iaf_nll_estimate_nats"} <= metrics.keys()
    if name == "latent_flow":
        before, after = (metrics[f"{prior}_nll_upper_bound_nats"] for prior in ("standard_normal", "flow_matching"))
        assert metrics["gain_nats"] == pytest.approx(before - after, abs=1e-3)
    if name == "latent_structures":
        assert {path.name for path in tmp_path.glob("*.png")} == {"samples.png", "reconstructions.png"}
        levels = [metrics[f"three_level_rate_nats_level_{i}"] for i in (1, 2, 3)]
        assert sum(levels) == pytest.approx(metrics["three_level_rate_nats"], rel=1e-4)
        assert metrics["vq_rate_nats"] + metrics["vq_distortion_nats"] == pytest.approx(metrics["vq_test_nll_upper_bound_nats"])
        assert 1 <= metrics["vq_train_code_perplexity"] <= 4 - metrics["vq_num_dead_codes"]
    if name == "prediction_table":
        assert {f"VE_{kind}_{w}_gap_nats" for kind in ("x0", "edm") for w in ("simple", "v", "min-SNR")} <= metrics.keys()
