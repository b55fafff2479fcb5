"""The anomaly experiment, small, and its parts on inputs whose answer is known."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from experiments import anomaly

SMALL = {"num_layers": 1, "num_scales": 1, "hidden_channels": 4, "num_steps": 3, "batch_size": 16, "num_draws": 1, "num_test": 40}
OUTLIERS = ["other_classes", *anomaly.PERTURBATIONS]


def check_aurocs(metrics, scores):
    for score in scores:
        values = np.array([[metrics[f"auroc_{score}_{name}{end}"] for end in ("", "_sem")] for name in OUTLIERS])
        assert ((values >= 0) & (values <= [[1, 0.5]])).all()


@pytest.mark.slow
def test_what_it_leaves(tmp_path, quick_compile):
    out = tmp_path / "run"
    metrics = gm.lab.execute(anomaly.experiment, anomaly.Config(background=False, **SMALL), out)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    check_aurocs(metrics, ("nll", "typicality", "complexity"))
    assert metrics["num_inliers"] == 40 and metrics["num_other_classes"] == 40
    # Permuted pixels cost a compressor more, and even three steps teach a flow that the margins are black.
    assert metrics["compressed_bits_per_dim_permuted"] > metrics["compressed_bits_per_dim_validation"]
    assert metrics["auroc_nll_inverted"] > 0.9
    assert {"roc.png", "roc_nll.png", "bits.png", "bits_all.png", "log.jsonl"} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_the_background_model(tmp_path):
    metrics = gm.lab.execute(anomaly.experiment, anomaly.Config(**SMALL | {"num_steps": 400}), tmp_path / "run")
    check_aurocs(metrics, ("nll", "typicality", "complexity", "ratio"))
    # Where there is ink is what the background model knows less well.
    assert metrics["auroc_ratio_rotated"] > 0.8
    assert (tmp_path / "run" / "log_background.jsonl").exists()


@pytest.mark.slow
def test_inliers_and_outliers():
    config = anomaly.Config(classes=(3, 5), num_test=2_000)
    data, outliers = anomaly.load(config, jax.random.key(0))
    every = gm.data.images.digits(0)
    labels = np.concatenate([np.asarray(part) for part in every.labels])
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == np.isin(labels, [3, 5]).sum()
    assert len(outliers["other_classes"]) == (~np.isin(labels, [3, 5])).sum()
    with pytest.raises(ValueError, match=r"--classes must be some of 0..9 and leave some out, got \(3, 11\)"):
        anomaly.load(anomaly.Config(classes=(3, 11)), jax.random.key(0))
    x, n = np.asarray(data.validation, int), data.num_levels
    np.testing.assert_array_equal(outliers["inverted"], n - 1 - x)
    np.testing.assert_array_equal(outliers["rolled"][:, :, 2:], x[:, :, :-2])
    np.testing.assert_array_equal(outliers["rotated"][:, 0], x[:, :, -1])
    np.testing.assert_array_equal(np.sort(outliers["permuted"].reshape(len(x), -1)), np.sort(x.reshape(len(x), -1)))
    # Inside of the range nothing is clipped: the noise is that of a tenth of it, and the rounding's.
    at = (x > 6) & (x < 10)
    noise = (np.asarray(outliers["noisy"], int) - x)[at]
    assert abs(noise.std() / math.sqrt((0.1 * n) ** 2 + 1 / 12) - 1) < 4 / math.sqrt(2 * noise.size)


def test_compressed_bits():
    rng = np.random.default_rng(0)
    column, row = np.arange(28)[None, :, None] * np.ones((28, 1, 1), int), np.arange(28)[:, None, None] * np.ones((1, 28, 1), int)
    # A constant; two gradients that differences flatten, the second modulo 256; noise, which no code shortens.
    x = np.stack([np.zeros((28, 28, 1), int), 9 * column % 256, (9 * column + 5 * row) % 256, rng.integers(0, 256, (28, 28, 1))])
    bits = anomaly.compressed_bits(x.astype(np.uint8), 256)
    assert bits.shape == (4,)
    assert (bits[:3] < 0.05 * 8 * 28 * 28).all() and bits[0] <= bits[1] <= bits[2]
    # An incompressible block costs its bytes and a few of framing; log2(15) names the code.
    assert 0 <= bits[3] - math.log2(15) - 8 * 28 * 28 <= 8 * 8


def test_scores():
    bits = {"inliers": np.array([2.0]), "validation": np.array([1.0, 3.0]), "other": np.array([0.5, 4.0])}
    compressed = {name: np.full(len(b), 1.5) for name, b in bits.items()}
    background = {name: b + 1.0 for name, b in bits.items()}
    found = anomaly.scores(bits, compressed, background)
    np.testing.assert_array_equal(found["nll"]["other"], [0.5, 4.0])
    np.testing.assert_array_equal(found["typicality"]["other"], [1.5, 2.0])
    np.testing.assert_array_equal(found["complexity"]["other"], [-1.0, 2.5])
    np.testing.assert_array_equal(found["ratio"]["other"], [-1.0, -1.0])
    assert "ratio" not in anomaly.scores(bits, compressed, None)


def test_the_background_model_sees_replaced_pixels(key):
    class Seen:
        num_levels = 17

        def loss(self, params, key, batch, *, step=None):
            return batch, {}

    x = jnp.full((500, 8, 8, 1), 3, jnp.uint8)
    seen, _ = anomaly.Replaced(Seen(), 0.25)(None, key, x)  # type: ignore[arg-type]
    assert seen.dtype == jnp.uint8 and int(seen.max()) == 16
    changed = float((seen != x).mean())  # a uniform level is another one 16 times of 17
    assert abs(changed - 0.25 * 16 / 17) < 4 * math.sqrt(0.25 / x.size)
