"""Saved is what is loaded, bit for bit; what cannot be trusted is refused; nothing on disk is code."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.training.checkpoint import Checkpoints

MODEL = gm.flows.neural_spline_flow((3,), 2, hidden_sizes=(4,), num_bins=3)


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def params():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    return jax.tree.map(lambda p: p + 1 if p.dtype == jnp.float32 else p, MODEL.init(jax.random.key(1), x))


# --- save and load ----------------------------------------------------------------------------------------------------------


def test_loaded_is_saved(params, tmp_path):
    gm.save(tmp_path / "flow", MODEL, params)
    equal = gm.flows.neural_spline_flow((3,), 2, hidden_sizes=[4], num_bins=3)
    assert_equal(gm.load(tmp_path / "flow", equal), params)
    assert_equal(gm.load(tmp_path / "flow", equal, jax.tree.map(jnp.zeros_like, params)), params)


@pytest.mark.slow
def test_a_conditional_model_of_images_needs_no_example_to_load(tmp_path):
    for model, x, context in (
        (gm.flows.planar_flow((2,), 2, context_shape=(3,)), np.ones((4, 2), np.float32), np.ones((4, 3), np.float32)),
        (gm.models.Dequantized(gm.flows.glow((4, 4, 1), 1), 17), np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1) % 17, None),
    ):
        params = model.init(jax.random.key(0), x, context)
        gm.save(tmp_path, model, params)
        assert_equal(gm.load(tmp_path, model), params)


def test_shapes_suffice_to_load(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    like = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 3))))
    assert_equal(gm.load(tmp_path, MODEL, like=like), params)


class Pair(NamedTuple):
    left: Any
    right: Any


def test_every_dtype_and_node_survives(tmp_path, x64):
    tree = {
        "double": jnp.array([1 / 3, jnp.inf]),
        "single": jnp.array(jnp.nan, jnp.float32),
        "half": jnp.array([1.5], jnp.bfloat16),
        "count": jnp.arange(3),
        "flag": jnp.array(True),
        "fixed": gm.Fixed({"mean": jnp.ones(2), "order": (jnp.arange(4), None)}),
        "empty": gm.Fixed(None),
        "pair": Pair((jnp.ones(()),), [Pair(jnp.zeros((0, 3)), {})]),
        "a/b.c 'd'": jnp.ones(1),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3),
        7: jnp.ones(1),
    }
    tree = {str(name): value for name, value in tree.items()}
    gm.save(tmp_path, MODEL, tree)
    assert_equal(gm.load(tmp_path, MODEL, tree), tree)


def test_saving_again_replaces(params, tmp_path):
    gm.save(tmp_path, MODEL, jax.tree.map(jnp.zeros_like, params))
    gm.save(tmp_path, MODEL, params)
    assert_equal(gm.load(tmp_path, MODEL), params)
    assert sum(p.name.isdigit() for p in tmp_path.iterdir()) == 1


# --- of a training run ------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)


@pytest.mark.parametrize("validation", [None, X[:20]], ids=["last", "best"])
def test_a_training_checkpoint_gives_its_parameters_without_the_data(tmp_path, validation):
    options = {"optimizer": optax.adam(0.5), "num_steps": 30, "batch_size": 20, "validate_every": 3}
    fit = gm.fit(MODEL, X, key=jax.random.key(0), validation=validation, checkpoint=tmp_path, progress=False, **options)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file())
    assert_equal(gm.load(tmp_path, MODEL), fit.params)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.is_file()) == before  # untouched
    if validation is not None:
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(fit.params), jax.tree.leaves(fit.last_params), strict=True))
    with pytest.raises(ValueError, match=r"the parameters in .* are of another model: model\..*num_bins is 3 there and 4 here"):
        gm.load(tmp_path, gm.flows.neural_spline_flow((3,), 2, hidden_sizes=(4,), num_bins=4))


def test_a_checkpoint_of_train_says_that_it_holds_no_model(tmp_path):
    step = gm.GradientStep(lambda params, key, batch: (params["w"] ** 2, {}), optax.sgd(0.1))
    gm.train(step, {"w": 1.0}, None, key=jax.random.key(0), num_steps=1, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds a training state without a model"):
        gm.load(tmp_path, MODEL)


# --- refused ----------------------------------------------------------------------------------------------------------------


def test_another_model_is_refused(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    other = gm.flows.neural_spline_flow((3,), 2, hidden_sizes=(4,), num_bins=4)
    with pytest.raises(ValueError, match=r"num_bins is 3 there and 4 here") as caught:
        gm.load(tmp_path, other)
    assert "delete" not in str(caught.value) and "damaged" not in str(caught.value)


class Hidden:
    """What it does depends on an attribute."""

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, x):
        return self.slope * x


def test_a_model_of_another_hidden_attribute_is_refused(tmp_path):
    def model(slope):
        return gm.flows.real_nvp((2,), 1, hidden_sizes=(4,), activation=Hidden(slope))

    params = model(1.0).init(jax.random.key(0), X[:, :2])
    gm.save(tmp_path, model(1.0), params)
    assert_equal(gm.load(tmp_path, model(1.0)), params)
    with pytest.raises(ValueError, match="slope is 1.0 there and 2.0 here"):
        gm.load(tmp_path, model(2.0))


def test_a_model_that_cannot_be_described_is_refused(tmp_path):
    hidden = iter([1.0])
    model = gm.flows.real_nvp((2,), 1, hidden_sizes=(4,), activation=lambda x: (hidden, jnp.tanh(x))[1])
    params = model.init(jax.random.key(0), X[:, :2])
    with pytest.raises(TypeError, match=r"^model\..*closure 'hidden' is a .*list_iterator, which cannot be described"):
        gm.save(tmp_path / "model", model, params)
    assert not (tmp_path / "model").exists()


def test_other_shapes_are_refused(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    wrong = jax.tree.map(lambda p: jnp.zeros((*p.shape, 2), p.dtype), params)
    with pytest.raises(ValueError, match=r"is of another kind: params\[.* is \w+\[.*\] there and \w+\[.*, 2\] here") as caught:
        gm.load(tmp_path, MODEL, wrong)
    assert "damaged" not in str(caught.value)
    with pytest.raises(ValueError, match=r"there and not there here"):
        gm.load(tmp_path, MODEL, {})


def test_nothing_there(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="no saved model at"):
            gm.load(path, MODEL)
    assert not (tmp_path / "none").exists()


def test_a_damaged_file_is_refused(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    largest = max((p for p in (tmp_path / "0" / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle - 20 : middle + 20] = bytes(40)
    largest.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"is damaged \("):
        gm.load(tmp_path, MODEL)


@pytest.mark.parametrize("part", ["params", "note"])
def test_a_cut_file_is_refused(params, tmp_path, part):
    gm.save(tmp_path, MODEL, params)
    for file in [p for p in (tmp_path / "0" / part).rglob("*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"is damaged \("):
        gm.load(tmp_path, MODEL)


def test_nothing_is_pickled(params, tmp_path):
    gm.save(tmp_path, MODEL, params)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        # A pickle of protocol 2 or later begins with PROTO and its number and ends with STOP.
        assert not (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content[-1:] == b".")
        assert b"cpickle" not in content.lower() and b"__reduce__" not in content


def test_a_half_written_checkpoint_does_not_exist(params, tmp_path):
    """A write that fails leaves the one before."""
    gm.save(tmp_path, MODEL, params)
    with pytest.raises(TypeError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, {"note": object()}, params=params)  # not JSON
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 0
    assert_equal(gm.load(tmp_path, MODEL), params)


def test_only_the_last_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 5, 9):
            checkpoints.save(step, {"step": step}, a={"a": jnp.array(step)}, b=jnp.array(-step))
        assert checkpoints.latest_step() == 9 and checkpoints.note(5)["step"] == 5
        assert checkpoints.load(5, "a", {"a": jnp.array(0)})["a"] == 5
        assert checkpoints.load(9, "b", jnp.array(0)) == -9
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["5", "9"]


def test_a_description_of_ones_own_is_known_by_its_fields(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Point(gm.Model):
        name: str

        @property
        def event(self):
            return gm.Real((1,))

        def _init(self, key, x, context):
            return {"at": jnp.zeros(1)}

        def loss(self, params, key, batch, *, step=None):
            return jnp.mean((params["at"] - batch.x) ** 2), {}

    gm.save(tmp_path, Point("a"), {"at": jnp.ones(1)})
    with pytest.raises(ValueError, match="model.name is 'a' there and 'b' here"):
        gm.load(tmp_path, Point("b"))
