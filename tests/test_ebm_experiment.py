"""The experiment on energy models: its quadrature against closed forms; a small run ends, and its numbers are what they say."""

import json
import math

import numpy as np
import pytest

import genmod as gm
from experiments import ebm
from experiments.ebm import PARTS, log_normalizer, nested_grid, shares

# A small toy of each kind, and corners of a box whose grid has the symmetry of its parts; edges of squares lie between cells.
TOYS = {
    "two_moons": (gm.data.TwoMoons(0.2), (-2.0, -2.0), (3.0, 2.5)),
    "eight_gaussians": (gm.data.EightGaussians(), (-4.0, -4.0), (4.0, 4.0)),
    "checkerboard": (gm.data.CheckerboardDensity(), (-80 / 11, -80 / 11), (80 / 11, 80 / 11)),
}


def gaussian(x, mean, sd):
    return -0.5 * (((x - mean) / sd) ** 2).sum(-1) - np.log(2 * math.pi * np.prod(sd))


def test_the_quadrature_finds_mass_in_the_box_and_far_from_it():
    """Two Gaussians of masses 3 and 2: one in the inner box, one in the third, where cells are four times as wide."""
    grid = nested_grid(np.array([-3.0, -2.0]), np.array([3.0, 2.0]), 80)
    # No more than 1e-7 of them lies across a border, where cells of another size begin.
    log_f = np.logaddexp(
        math.log(3) + gaussian(grid.points, np.array([0.5, -0.2]), np.array([0.3, 0.4])),
        math.log(2) + gaussian(grid.points, np.array([-9.9, 1.0]), np.array([0.6, 0.5])),
    )
    assert log_normalizer(log_f + 800, grid) == pytest.approx(800 + math.log(5), abs=1e-6)
    near = np.exp(log_f[: grid.num**2]) @ grid.areas[: grid.num**2]
    assert near == pytest.approx(3, abs=1e-5) and np.exp(log_f[-grid.num_outer :]) @ grid.areas[-grid.num_outer :] < 1e-6
    np.testing.assert_allclose(grid.areas.sum(), 8**2 * np.prod(grid.high - grid.low), rtol=1e-12)
    assert np.unique(grid.points, axis=0).shape == grid.points.shape


@pytest.mark.parametrize("name", TOYS)
def test_the_parts_have_equal_shares_of_the_truth(name):
    toy, low, high = TOYS[name]
    grid = nested_grid(np.array(low), np.array(high), 128, num_boxes=1)
    log_prob = np.asarray(toy.log_prob({}, grid.points), np.float64)
    found = shares(log_prob, grid, PARTS[name])
    share = 1 / (2 if name == "two_moons" else 8)
    assert found["least_share"] == pytest.approx(share, abs=1e-3) and found["greatest_share"] == pytest.approx(share, abs=1e-3)


def test_the_kl_of_shares_is_the_gap_of_a_model_that_errs_in_nothing_else():
    """Eight Gaussians of the right forms and the wrong weights, far enough from each other."""
    toy = gm.data.EightGaussians(sd=0.2)
    weights = np.arange(1, 9) / 36
    grid = nested_grid(np.full(2, -4.0), np.full(2, 4.0), 160, num_boxes=1)
    log_p = np.asarray(toy.log_prob({}, grid.points), np.float64)
    log_q = np.logaddexp.reduce(
        [np.log(w) + gaussian(grid.points, m, [0.2] * 2) for w, m in zip(weights, toy.centers(), strict=True)]
    )
    gap = float((np.exp(log_p) * (log_p - log_q)) @ grid.areas)
    found = shares(log_q, grid, PARTS["eight_gaussians"])
    assert found["shares_kl_nats"] == pytest.approx(-np.log(8 * weights).mean(), abs=1e-5)
    assert found["shares_kl_nats"] == pytest.approx(gap, abs=1e-4)


TINY = {
    "num-train": 2_000,
    "num-steps": 60,
    "num-flow-steps": 200,
    "num-chains": 500,
    "chain-steps": 2,
    "batch-size": 64,
    "num-cells": 400,
    "num-draws": 100,
    "num-sweeps": 20,
}


@pytest.mark.slow
def test_it_runs(tmp_path):
    arguments = ["--data", "eight_gaussians", "--hidden-sizes", "16", "16", "--out", str(tmp_path)]
    arguments += [f"--{name}={value}" for name, value in TINY.items()]
    gm.lab.main(ebm.experiment, ebm.Config, arguments=arguments)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (tmp_path / "densities.png").exists()
    assert not any("seconds" in name for name in metrics)
    # The flow is normalised, and nothing of any model lies beyond the boxes.
    assert abs(metrics["flow_log_normalizer_nats"]) < 1e-3
    for name in (*ebm.Config().methods, "flow"):
        assert metrics[f"{name}_quadrature_error_nats"] < 1e-3 and metrics[f"{name}_outer_mass"] < 1e-3
        # What noise is in the estimate of a gap leaves it above the part of it that is known exactly.
        assert metrics[f"{name}_gap_nats"] + 4 * metrics[f"{name}_gap_nats_sem"] > metrics[f"{name}_shares_kl_nats"] >= 0
        assert ("nce" in name) == (f"{name}_learned_log_normalizer_nats" in metrics)
    # Training begins at the Gaussian of scale 1.5: 1.43 nats, the gap of the Gaussian of the data, and 2 log 1.5 + 1 / 1.5^2 - 1.
    start = 1.43 + 2 * math.log(1.5) + 1.5**-2 - 1
    assert metrics["nce_gaussian_gap_nats"] + 3 * metrics["nce_gaussian_gap_nats_sem"] < start
