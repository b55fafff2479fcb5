"""Saved is what is loaded, bit for bit; what cannot be trusted is refused; nothing on disk is code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod.training.checkpoint import Checkpoints

MODEL = gm.flows.neural_spline_flow((3,), 2, hidden_sizes=(4,), num_bins=3)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def params():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    return jax.tree.map(lambda p: p + 0.1, MODEL.init(jax.random.key(1), x))


def test_loaded_is_saved(params, tmp_path):
    gm.save(tmp_path / "flow", MODEL, params)
    equal = gm.flows.neural_spline_flow((3,), 2, hidden_sizes=[4], num_bins=3)
    assert_equal(gm.load(tmp_path / "flow", equal, jax.tree.map(jnp.zeros_like, params)), params)


def test_shapes_suffice_to_load(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    like = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 3))))
    assert_equal(gm.load(tmp_path, MODEL, like), params)


def test_every_dtype_survives(tmp_path, x64):
    tree = {
        "double": jnp.array([1 / 3, jnp.inf]),
        "single": jnp.array(jnp.nan, jnp.float32),
        "half": jnp.array([1.5], jnp.bfloat16),
        "count": jnp.arange(3),
        "flag": jnp.array(True),
    }
    gm.save(tmp_path, MODEL, tree)
    assert_equal(gm.load(tmp_path, MODEL, tree), tree)


def test_saving_again_replaces(params, tmp_path):
    gm.save(tmp_path, MODEL, jax.tree.map(jnp.zeros_like, params))
    gm.save(tmp_path, MODEL, params)
    assert_equal(gm.load(tmp_path, MODEL, params), params)
    assert sum(p.name.isdigit() for p in tmp_path.iterdir()) == 1


def test_another_model_is_refused(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    other = gm.flows.neural_spline_flow((3,), 2, hidden_sizes=(4,), num_bins=4)
    with pytest.raises(ValueError, match=r"num_bins is 3 there and 4 here"):
        gm.load(tmp_path, other, params)


def test_other_shapes_are_refused(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    wrong = jax.tree.map(lambda p: jnp.zeros((*p.shape, 2)), params)
    with pytest.raises(
        ValueError, match=r"of another kind: params\['bijector'\].* is float32\[2, 16\] there and float32\[2, 16, 2\]"
    ):
        gm.load(tmp_path, MODEL, wrong)


def test_nothing_there(params, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="no saved model at"):
            gm.load(path, MODEL, params)
    assert not (tmp_path / "none").exists()


def test_a_damaged_file_is_refused(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    largest = max((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle - 20 : middle + 20] = bytes(40)
    largest.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        gm.load(tmp_path, MODEL, params)


def test_a_cut_file_is_refused(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    for file in [p for p in (tmp_path / "0" / "params").rglob("*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        gm.load(tmp_path, MODEL, params)


def test_nothing_is_pickled(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        # A pickle of protocol 2 or later begins with PROTO and its number and ends with STOP.
        assert not (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content[-1:] == b".")
        assert b"cpickle" not in content.lower() and b"__reduce__" not in content


def test_a_half_written_checkpoint_does_not_exist(params, tmp_path, monkeypatch):
    """A write that fails leaves the one before."""
    gm.save(tmp_path, MODEL, params)
    with pytest.raises(TypeError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, {"note": object()}, params=params)  # not JSON
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 0
    assert_equal(gm.load(tmp_path, MODEL, params), params)


def test_only_the_last_stay(params, tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 5, 9):
            checkpoints.save(step, {"step": step}, tree={"a": jnp.array(step)})
        assert checkpoints.latest_step() == 9 and checkpoints.note(5)["step"] == 5
        assert checkpoints.load(5, "tree", {"a": jnp.array(0)})["a"] == 5
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["5", "9"]


def test_no_example_is_needed_to_load(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    assert_equal(gm.load(tmp_path, MODEL), params)


def test_the_best_parameters_of_a_run_are_loaded_without_its_data(tmp_path):
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    options = {"key": jax.random.key(0), "num_steps": 20, "validate_every": 5, "validation": x[:16], "progress": False}
    fit = gm.fit(MODEL, x[16:], checkpoint=tmp_path, ema_decay=0.9, **options)
    assert_equal(gm.load(tmp_path, MODEL), fit.params)
    with pytest.raises(ValueError, match=r"of another model: .*num_bins is 3 there and 4 here; choose another folder"):
        gm.load(tmp_path, gm.flows.neural_spline_flow((3,), 2, hidden_sizes=(4,), num_bins=4))


def test_fixed_parts_survive(tmp_path):
    tree = {"a": gm.Fixed({"b": jnp.arange(3.0)}), "c": (jnp.zeros(2), gm.Batch(jnp.ones(1)))}
    gm.save(tmp_path, MODEL, tree)
    assert_equal(gm.load(tmp_path, MODEL, tree), tree)
