"""The experiment on posteriors of simulators, small: it ends, and its numbers are what they say."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from experiments import simulation_inference
from genmod.core.keys import stream

TINY = {
    "num-simulations": 1_000,
    "num-steps": 100,
    "batch-size": 128,
    "num-layers": 2,
    "num-observations": 2,
    "num-draws": 100,
    "num-ranked": 20,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("simulator", "methods", "beside"),
    [("linear_gaussian", ["npe"], ["npe"]), ("queue", ["nle", "nre"], ["nre"]), ("two_moons", ["npe", "nle", "nre"], ["nle"])],
)
def test_it_runs(simulator, methods, beside, tmp_path):
    def run(folder, methods):
        options = ["--simulator", simulator, "--hidden-sizes", "16", "16", "--ratio-hidden-sizes", "16", "16"]
        arguments = [f"--{name}={value}" for name, value in TINY.items()]
        arguments = [*arguments, *options, "--methods", *methods, "--out", str(folder)]
        gm.lab.main(simulation_inference.experiment, simulation_inference.Config, arguments=arguments)
        return json.loads((folder / "metrics.json").read_text())

    metrics = run(tmp_path / "one", methods)
    assert {path.stem for path in (tmp_path / "one").glob("*.png")} == {"posterior", "ranks"}
    assert all(isinstance(value, str) or math.isfinite(value) for value in metrics.values())
    for method in methods:
        assert 0.4 < metrics[f"c2st_{method}"] <= metrics[f"c2st_worst_{method}"] <= 1
        assert 0 <= metrics[f"rank_p_value_{method}"] <= 1 and 0 <= metrics[f"density_p_value_{method}"] <= 1
        assert 0 <= metrics[f"coverage_50_{method}"] <= metrics[f"coverage_90_{method}"] <= 1
        assert metrics[f"coverage_90_sem_{method}"] == pytest.approx(math.sqrt(0.09 / 20))
    # The same numbers again, and whatever the other methods are.
    again = run(tmp_path / "two", beside)
    assert again == {name: metrics[name] for name in again}


def test_a_true_posterior_passes():
    """The exact posterior in the place of a learned one: C2ST is 1/2, ranks are uniform, coverage is the level."""
    simulator = simulation_inference.LinearGaussianSimulator(2)
    posterior = simulator.posterior
    key = jax.random.key(0)

    def draw(key, x, num):
        return jnp.moveaxis(posterior.sample({}, key, num, x), 1, 0)

    def log_q(theta, x):
        return posterior.log_prob({}, theta, x[:, None])

    learned = simulation_inference.Learned(None, 0, draw, log_q)  # type: ignore[arg-type]
    config = simulation_inference.Config(num_observations=2, num_draws=400, num_ranked=400)
    ranked = simulation_inference.simulations(simulator, stream(key, "ranked"), 400)
    x = simulation_inference.simulations(simulator, stream(key, "observations"), 2)[1]
    draws, truth = (np.asarray(draw(stream(key, name), x, 400)) for name in ("draws", "truth"))
    metrics, ranks = simulation_inference.measured(config, "exact", learned, draws, truth, ranked, key)
    assert ranks.shape == (400, 2)
    # The accuracy is of 2 x 800 rows, each judged right with chance 1/2.
    assert metrics["c2st"] == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(1_600))
    assert metrics["rank_p_value"] > 1e-3 and metrics["density_p_value"] > 1e-3
    for level in (50, 90):
        assert metrics[f"coverage_{level}"] == pytest.approx(level / 100, abs=3.5 * metrics[f"coverage_{level}_sem"])

    # One that is too narrow by half is found out: its region of half the mass is that of chance 1 - 2^(-1/4) in two dimensions.
    def narrow(key, x, num):
        middle = 0.5 * x[:, None]
        return middle + 0.5 * (draw(key, x, num) - middle)

    narrowed = simulation_inference.Learned(None, 0, narrow, log_q)  # type: ignore[arg-type]
    metrics, _ = simulation_inference.measured(config, "narrow", narrowed, draws, truth, ranked, key)
    chance = 1 - 0.5**0.25
    assert metrics["coverage_50"] == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 400))
    assert metrics["rank_p_value"] < 1e-6 and metrics["density_p_value"] < 1e-6


def test_rank_excess():
    assert simulation_inference.rank_excess(np.arange(100), 99) == pytest.approx(np.zeros(100))
    assert simulation_inference.rank_excess(np.array([0, 0, 3]), 3) == pytest.approx(
        [2 / 3 - 1 / 4, 2 / 3 - 1 / 2, 2 / 3 - 3 / 4, 0]
    )


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--methods", {"methods": ()}),
        ("--methods", {"methods": ("npe", "npe")}),
        ("--num-simulations", {"num_simulations": 9}),
        ("--num-observations", {"num_observations": 1}),
        ("--num-ranked", {"num_ranked": 9}),
        ("--learning-rate", {"learning_rate": -1.0}),
    ],
)
def test_errors_name_the_option(option, given):
    with pytest.raises(ValueError, match=f"^{option} must .* got"):
        simulation_inference.check_config(simulation_inference.Config(**given))
