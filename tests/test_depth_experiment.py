"""The experiment on coupling flows: its data, its flows and its sizes are what it says, and it runs, small."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from experiments import couplings, depth

SMALL = couplings.Config(num_train=2_000, num_test=500, num_steps=60, batch_size=64, width=8, data="eight_gaussians")


def test_turned_toys_have_the_density_and_the_entropy_that_they_say(key):
    law = couplings.RotatedToys(gm.data.EightGaussians(), 2, seed=3)
    np.testing.assert_allclose(law.rotation @ law.rotation.T, np.eye(4), atol=1e-12)
    y = jax.random.normal(key, (50, 4))
    turned = jnp.asarray(y @ jnp.asarray(law.rotation.T, y.dtype))
    parts = gm.data.EightGaussians().log_prob({}, y.reshape(50, 2, 2))
    # Turning there and back rounds y at 1e-7 of its size; log p has slopes of |y - centre| / 0.125, 40 at most.
    np.testing.assert_allclose(law.log_prob({}, turned), parts.sum(1), atol=1e-3)
    x = law.sample({}, key, (20_000,))
    surprise = -np.asarray(law.log_prob({}, x), np.float64)
    assert abs(surprise.mean() - law.entropy()) < 4 * surprise.std() / math.sqrt(len(x))


@pytest.mark.parametrize("dim", [2, 8])
def test_with_half_kept_it_is_the_published_flow(dim):
    config = couplings.Config(dim=dim, num_couplings=3, width=16, seed=2)
    assert couplings.build(config) == gm.flows.neural_spline_flow((dim,), 3, hidden_sizes=(16, 16), seed=2)


def test_where_parts_exchange_each_is_moved_by_the_other(key):
    flow = couplings.build(couplings.Config(kind="affine", dim=6, split=2, between="exchange", num_couplings=2, width=8))
    rng = np.random.default_rng(0)
    params = flow.init(key, rng.normal(size=(20, 6)).astype(np.float32))
    noisy = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), params)
    slopes = np.asarray(jax.jacobian(lambda z: flow.decode(noisy, z))(jnp.arange(6) / 6 - 0.4))
    # The four are moved first, each by its own map, given the two; then the two, given the four as they are now.
    np.testing.assert_array_equal(slopes[2:, 2:], np.diag(np.diagonal(slopes[2:, 2:])))
    assert (np.abs(slopes[2:, :2]) > 1e-4).all() and (np.abs(slopes[:2]) > 1e-4).all()


@pytest.mark.parametrize("kind", ["affine", "spline"])
@pytest.mark.parametrize(("dim", "split", "between"), [(2, 1, "permute"), (8, 7, "permute"), (8, 3, "exchange")])
def test_parameters_are_counted(kind, dim, split, between, key):
    config = couplings.Config(kind=kind, dim=dim, split=split, between=between, num_couplings=4, width=10)
    params = jax.eval_shape(couplings.build(config).init, key, jax.ShapeDtypeStruct((20, dim), jnp.float32))
    assert couplings.num_params(config) == gm.num_params(params)
    # No width comes nearer to the size that is wanted than the one that is chosen.
    chosen = couplings.with_num_params(config, 5_000)
    others = (couplings.num_params(dataclasses.replace(config, width=width)) for width in range(1, 100))
    assert abs(couplings.num_params(chosen) - 5_000) == min(abs(num - 5_000) for num in others)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dim": 5}, "dim must be an even number, 2 or more"),
        ({"num_couplings": 3, "between": "exchange"}, "num-couplings must be even where the parts exchange their roles, got 3"),
        ({"dim": 4, "split": 4}, r"split must be in 1\.\.3, so that some coordinates are kept and some moved; got 4"),
    ],
)
def test_bad_settings_are_refused(settings, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        couplings.experiment(dataclasses.replace(SMALL, **settings), gm.lab.Run(tmp_path))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_couplings": (16,), "num_params": 700}, "16 couplings have 800 parameters at least; 700 are too few"),
        ({"num_couplings": (0,)}, "num_couplings must be an integer >= 1, got 0"),
        ({"split_couplings": 3}, "num-couplings must be even where the parts exchange their roles, got 3"),
        ({"dim": 7}, "dim must be an even number, 2 or more"),
        ({"splits": (2, 8)}, r"split must be in 1\.\.7, so that"),
    ],
)
def test_a_study_with_a_cell_that_cannot_run_is_refused_at_once(settings, match):
    with pytest.raises(ValueError, match=match):
        depth.plan(depth.Config(kinds=("spline",), **settings))


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, quick_compile):
    monkeypatch.chdir(tmp_path)
    sizes = {"num_couplings": (1, 3), "num_params": 700, "dim": 4, "splits": (1, 2), "split_couplings": 2, "split_params": 800}
    config = depth.Config(kinds=("affine",), **sizes, seeds=2, fit=SMALL)
    metrics = gm.lab.execute(depth.experiment, config)
    folder = gm.lab.locate(depth.experiment, config).folder
    assert {path.name for path in folder.iterdir()} >= {"table.md", "couplings.png", "split.png"}
    # Four sweeps of two cells, a run for each of two seeds; each has its own gap, above zero.
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("runs/couplings/*/metrics.json")]
    assert len(runs) == 16 and all(run["gap_nats"] > 3 * run["gap_nats_sem"] for run in runs)
    means = [value for name, value in metrics.items() if name.endswith("gap_nats")]
    assert len(means) == 8 and np.mean(means) == pytest.approx(np.mean([run["gap_nats"] for run in runs]))
    assert metrics["width_affine_3_num_params"] == 3 * metrics["width_affine_1_num_params"]
    for name in ("size_affine_1", "size_affine_3"):
        assert metrics[f"{name}_num_params"] == pytest.approx(700, rel=0.1)
    assert metrics["width_affine_3_gap_nats"] < metrics["width_affine_1_gap_nats"]  # one coupling leaves a coordinate normal
    table = (folder / "table.md").read_text()
    assert f"{metrics['exchange_affine_2_gap_nats']:.4f} +- {metrics['exchange_affine_2_gap_nats_sd']:.4f}" in table
    # Seeds are paired: the mean difference from one half is that of the means.
    difference = metrics["exchange_affine_1_gap_nats"] - metrics["exchange_affine_2_gap_nats"]
    assert f"| 1 | {metrics['permute_affine_1_gap_nats'] - metrics['permute_affine_2_gap_nats']:.4f} +- " in table
    assert f" | {difference:.4f} +- " in table
