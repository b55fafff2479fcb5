"""The recipe of a feature network: what the metrics say of equal and of changed halves."""

import pytest

import genmod as gm
from experiments import features


@pytest.mark.slow
def test_the_metrics_see_what_was_changed(tmp_path):
    found = gm.lab.main(features.experiment, features.Config, arguments=["--num-steps", "500", "--out", str(tmp_path / "run")])
    assert found["accuracy"] > 0.9
    # Half B is a draw of the law of A.
    for entry in ("extrapolated", "KID"):
        assert abs(found[f"{entry}_b"]) < 4 * found[f"{entry}_b_sem"]
        assert found[f"{entry}_three_of_b"] > found[f"{entry}_b_without_8_and_9"] > found[f"{entry}_b"]
    assert found["frechet_b"] > found["extrapolated_b"]
    assert abs(found["density_b"] - 1.0) < 0.15 and abs(found["coverage_b"] - found["expected_coverage"]) < 0.05
    assert found["density_b_noisy"] < 0.9 and found["coverage_three_of_b"] < 0.1 and found["recall_three_of_b"] < 0.1
    assert found["recall_b_without_8_and_9"] < found["recall_b"] - 0.1
    # At most the number of classes, and images.
    assert found["IS_three_of_b"] < 3.0 + 1e-3 < found["IS_b_without_8_and_9"] < min(8.0, found["IS_b"]) < 10.0


def test_other_sets_are_loaded_alike(monkeypatch):
    """MNIST's files are not at hand: a set of its form stands in for them."""
    digits = gm.data.images.digits(0)
    monkeypatch.setattr(gm.data.images, "mnist", lambda: digits)
    images, labels, num_levels = features.load(features.Config("mnist", num_images=700, num_train=400))
    assert images.shape == (700, 8, 8, 1) and labels.shape == (700,) and num_levels == 17
    with pytest.raises(ValueError, match="--num-train must leave at least 200 of 700 images, got 600"):
        features.load(features.Config("mnist", num_images=700, num_train=600))
