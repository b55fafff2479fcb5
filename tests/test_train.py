"""`fit` against trajectories worked by hand, and its promises: resumable bit for bit, compiled once, loud when it fails."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod import train
from genmod.batches import Source
from genmod.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
MODEL = gm.flows.affine((1,))
SGD = optax.sgd(0.01)
START = {"w": jnp.zeros(())}
TEN, TWO = np.full((8, 1), 10.0, np.float32), np.full((4, 1), 2.0, np.float32)


def fit(data=TEN, model=MODEL, key=0, **options):
    return gm.fit(model, data, key=jax.random.key(key), progress=False, **options)


def pull(params, key, x, context):
    """Gradient descent on this draws w towards the mean of the batch, in steps that are known."""
    return (params["w"] - x.mean()) ** 2, {"seen": x.mean()}


def pulled(k):
    """w after k steps of SGD from 0 towards 10."""
    return 10 * (1 - 0.98**k)


def assert_equal(one, other):
    """Bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what it computes ------------------------------------------------------------------------------------------------------


def test_learns_a_gaussian_to_its_closed_form():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 2)) @ np.array([[2.0, 1.0], [0.0, 0.5]]) + [3.0, -1.0]).astype(np.float32)
    model = gm.models.Flow(gm.bijectors.TriangularAffine(), gm.densities.Normal((2,)))  # starts at the identity
    optimizer = optax.adam(optax.exponential_decay(0.1, 200, 0.4))
    result = fit(x, model, optimizer=optimizer, num_steps=1600, batch_size=500)
    covariance = np.cov(x.T, bias=True)
    best = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    nll = -model.log_prob(result.params, x).mean()
    np.testing.assert_allclose(nll, best, atol=1e-4)
    np.testing.assert_allclose(model.loss(result.params, None, x)[1]["nll_nats"], best, atol=1e-4)
    sample = np.asarray(model.sample(result.params, jax.random.key(1), (20_000,)))
    np.testing.assert_allclose(np.cov(sample.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / 20_000))


def test_history_best_and_patience():
    result = fit(loss_fn=pull, params=START, optimizer=SGD, num_steps=100, validation=TWO, validate_every=2, patience=3)
    # w passes 2 between steps 10 and 12 (nearer at 12); three validations later it stops.
    np.testing.assert_array_equal(result.history["step"], np.arange(2, 20, 2))
    w = pulled(np.arange(2, 20, 2))
    np.testing.assert_allclose(result.history["validation_loss"], (w - 2) ** 2, rtol=1e-4, atol=1e-5)
    means = [((pulled(k - 2) - 10) ** 2 + (pulled(k - 1) - 10) ** 2) / 2 for k in range(2, 20, 2)]
    np.testing.assert_allclose(result.history["loss"], means, rtol=1e-5)
    np.testing.assert_allclose(result.history["seen"], 10.0)
    np.testing.assert_allclose(result.params["w"], pulled(12), rtol=1e-5)
    np.testing.assert_allclose(result.last_params["w"], pulled(18), rtol=1e-5)
    assert int(result.state.step) == 18 and result.state.params is not None


def test_without_validation_the_last_is_returned():
    result = fit(loss_fn=pull, params=START, optimizer=SGD, num_steps=5, validate_every=2)
    np.testing.assert_array_equal(result.history["step"], [2, 4, 5])
    assert "validation_loss" not in result.history
    assert_equal(result.params, result.last_params)
    np.testing.assert_allclose(result.params["w"], pulled(5), rtol=1e-5)


def test_best_parameters_are_those_of_the_lowest_validation_loss():
    data = gm.data.two_moons(jax.random.key(0), 600)
    model = gm.flows.real_nvp((2,), 2, hidden_sizes=(8,))
    result = fit(
        data.train, model, optimizer=optax.adam(0.1), num_steps=60, batch_size=64, validation=data.validation, validate_every=5
    )
    losses = result.history["validation_loss"]
    assert losses[-1] > losses.min()  # so rough a rate that the last is not the best
    np.testing.assert_allclose(model.loss(result.params, None, data.validation)[0], losses.min(), rtol=1e-5)
    np.testing.assert_allclose(model.loss(result.last_params, None, data.validation)[0], losses[-1], rtol=1e-5)


def linear(params, key, x, context):
    return -5.0 * params["w"] + 3.0 * params["v"], {}


def test_clipping_and_averaging_by_hand():
    params = {"w": jnp.zeros(()), "v": jnp.zeros(())}
    options = {"loss_fn": linear, "params": params, "optimizer": optax.sgd(0.1), "num_steps": 30, "validate_every": 10}
    result = fit(clip_norm=1.0, ema_decay=0.9, **options)
    np.testing.assert_allclose(result.history["grad_norm"], np.sqrt(34), rtol=1e-5)  # before clipping
    path = 0.1 * np.arange(1, 31) * 5 / np.sqrt(34)
    np.testing.assert_allclose(result.state.params["w"], path[-1], rtol=1e-5)
    np.testing.assert_allclose(result.state.params["v"], -0.6 * path[-1], rtol=1e-5)
    average = 0.0
    for k, w in enumerate(path):
        average += max(0.1, 1 / (k + 1)) * (w - average)
    np.testing.assert_allclose(result.params["w"], average, rtol=1e-5)
    np.testing.assert_allclose(result.state.ema["v"], -0.6 * average, rtol=1e-5)
    unclipped = fit(clip_norm=100.0, **options)
    np.testing.assert_allclose(unclipped.params["w"], 15.0, rtol=1e-5)


def test_fixed_arrays_stay_even_under_weight_decay():
    x = 5.0 + 2.0 * np.asarray(jax.random.normal(jax.random.key(0), (64, 2)))
    model = gm.flows.affine((2,))
    start = model.init(jax.random.key(0), x)
    result = fit(x, model, params=start, optimizer=optax.adamw(0.1, weight_decay=0.5), num_steps=20, ema_decay=0.9, batch_size=32)

    def split(params):
        layers, standardize = params["bijector"]
        return layers, standardize[gm.base.FIXED]

    for params in (result.params, result.state.params):
        assert_equal(split(params)[1], split(start)[1])
        assert all(
            jnp.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (split(params)[0], split(start)[0])), strict=True)
        )


def test_minibatches_are_drawn_without_replacement():
    x = 2.0 ** np.arange(12, dtype=np.float32)[:, None]  # a sum of these says which were in it

    def watch(params, key, x, context):
        return params["w"] ** 2, {"sum": x.sum()}

    sums = fit(x, loss_fn=watch, params=START, optimizer=SGD, num_steps=12, batch_size=4, validate_every=1).history["sum"]
    epochs = sums.reshape(4, 3)
    np.testing.assert_array_equal(epochs.sum(1), 2.0**12 - 1)
    assert all(bin(int(s)).count("1") == 4 for s in sums)
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1  # another order in every epoch
    again = fit(x, loss_fn=watch, params=START, optimizer=SGD, num_steps=12, batch_size=4, validate_every=1)
    other = fit(x, loss_fn=watch, params=START, optimizer=SGD, num_steps=12, batch_size=4, validate_every=1, key=1)
    np.testing.assert_array_equal(again.history["sum"], sums)
    assert (other.history["sum"] != sums).any()


CONDITIONAL = gm.flows.planar_flow((1,), 1, context_shape=(2,))


def test_context_stays_with_its_row():
    context = np.arange(24, dtype=np.float32).reshape(12, 2)
    x = context.sum(1, keepdims=True)

    def mismatch(params, key, x, context):
        return params["w"] ** 2, {"mismatch": jnp.abs(x[:, 0] - context.sum(1)).max(), "spread": x.std()}

    result = fit((x, context), CONDITIONAL, loss_fn=mismatch, params=START, num_steps=9, batch_size=4, validation=(x, context))
    np.testing.assert_array_equal(result.history["mismatch"], 0.0)
    assert (result.history["spread"] > 0).all()


def batches(start=0):
    return (np.full((2, 1), float(i), np.float32) for i in range(start, 40))


def test_iterator_gives_its_batches_in_order():
    result = fit(batches(), loss_fn=pull, params=START, optimizer=SGD, num_steps=6, validate_every=2)
    np.testing.assert_allclose(result.history["seen"], [0.5, 2.5, 4.5])
    w = 0.0
    for i in range(6):
        w -= 0.02 * (w - i)
    np.testing.assert_allclose(result.params["w"], w, rtol=1e-5)


def test_iterator_that_ends_too_early():
    with pytest.raises(ValueError, match="ended before num_steps"):
        fit(batches(35), loss_fn=pull, params=START, optimizer=SGD, num_steps=10)


def test_no_data():
    def bowl(params, key, x, context):
        assert x is None and context is None
        return (params["w"] - 10.0) ** 2 + 0.0 * jax.random.normal(key), {}

    result = fit(None, loss_fn=bowl, params=START, optimizer=SGD, num_steps=7)
    np.testing.assert_allclose(result.params["w"], pulled(7), rtol=1e-5)
    with pytest.raises(ValueError, match=r"data=None wants params"):
        fit(None, loss_fn=bowl)


def test_every_step_has_a_key_of_its_own():
    def noise(params, key, x, context):
        return params["w"] ** 2, {"draw": jax.random.normal(key)}

    draws = fit(loss_fn=noise, params=START, optimizer=SGD, num_steps=50, validate_every=1).history["draw"]
    assert len(set(draws.tolist())) == 50
    assert abs(draws.mean()) < 4.5 / np.sqrt(50)


def test_own_step_keeps_its_state_in_extra():
    @dataclasses.dataclass(frozen=True)
    class Chain:
        def init(self, params):
            return gm.TrainState(jnp.zeros((), jnp.int32), params, (), None, jnp.zeros(()))

        def __call__(self, state, key, batch):
            chain = 0.5 * state.extra + batch[0].mean()
            return state._replace(step=state.step + 1, extra=chain), {"loss": chain}

    result = fit(step=Chain(), params=START, num_steps=3)
    np.testing.assert_allclose(result.state.extra, 17.5)


# --- interrupted and resumed -------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)  # three batches and a remainder each epoch
PLANE = gm.flows.real_nvp((2,), 1, hidden_sizes=(4,))
ADAM = optax.adam(1e-2)


def noisy(params, key, x, context):
    return PLANE.loss(params, key, x + 0.1 * jax.random.normal(key, x.shape))


RUN = {
    "model": PLANE,
    "loss_fn": noisy,
    "optimizer": ADAM,
    "batch_size": 32,
    "validation": X[:30],
    "validate_every": 5,
    "ema_decay": 0.9,
}


def assert_same_fit(one, other):
    assert_equal(one._replace(history={}), other._replace(history={}))
    assert one.history.keys() == other.history.keys()
    for name in one.history:
        np.testing.assert_array_equal(one.history[name], other.history[name])


@pytest.fixture(scope="module")
def uninterrupted():
    return fit(X, num_steps=40, **RUN)


def test_resumed_by_more_steps_equals_uninterrupted(uninterrupted, tmp_path):
    log = tmp_path / "log.jsonl"
    for num_steps in (15, 25, 40):
        result = fit(X, num_steps=num_steps, checkpoint=tmp_path / "run", log=log, **RUN)
        assert int(result.state.step) == num_steps
    assert_same_fit(result, uninterrupted)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 45, 5))
    np.testing.assert_array_equal([row["loss"] for row in rows], uninterrupted.history["loss"])


def test_interrupted_by_an_exception_equals_uninterrupted(uninterrupted, tmp_path, monkeypatch):
    report = train.Recorder.report

    def interrupt(self, state, best, rows, last):
        report(self, state, best, rows, last)
        if rows[-1]["step"] == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Recorder, "report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(X, num_steps=40, checkpoint=tmp_path, checkpoint_every=10, **RUN)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 30
    assert_same_fit(fit(X, num_steps=40, checkpoint=tmp_path, checkpoint_every=10, **RUN), uninterrupted)
    again = fit(X, num_steps=40, checkpoint=tmp_path, **RUN)  # done: nothing is left to do, and nothing changes
    assert_same_fit(again, uninterrupted)


def test_resumed_iterator_goes_on_where_it_was(tmp_path):
    options = {"loss_fn": pull, "params": START, "optimizer": SGD, "validate_every": 2}
    fit(batches(), num_steps=4, checkpoint=tmp_path, **options)
    resumed = fit(batches(), num_steps=8, checkpoint=tmp_path, **options)
    assert_same_fit(resumed, fit(batches(), num_steps=8, **options))


KILLED = """
    import sys; sys.path.insert(0, "tests")
    from test_train import RUN, X, fit
    fit(X, num_steps=10**9, checkpoint=sys.argv[1], checkpoint_every=5, **RUN)
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(p.name.isdigit() and int(p.name) >= 15 for p in tmp_path.iterdir()):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with Checkpoints(tmp_path) as checkpoints:
        num_steps = checkpoints.latest_step() + 10
    resumed = fit(X, num_steps=num_steps, checkpoint=tmp_path, **RUN)
    assert_same_fit(resumed, fit(X, num_steps=num_steps, **RUN))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"key": 1}, "key"),
        ({"batch_size": 16}, "batch_size is 32 there and 16 here"),
        ({"data": X + 1}, r"data\[0\].crc32"),
        ({"model": gm.flows.real_nvp((2,), 1, hidden_sizes=(5,))}, r"hidden_sizes\[0\] is 4 there and 5 here"),
    ],
    ids=["key", "batch_size", "data", "model"],
)
def test_a_checkpoint_of_another_run_is_refused(change, match, tmp_path, uninterrupted):
    options = {"data": X, "num_steps": 5, "checkpoint": tmp_path, **RUN}
    fit(**options)
    with pytest.raises(ValueError, match=f"of another run: .*{match}"):
        fit(**options | change)


# --- compiled once -----------------------------------------------------------------------------------------------------------


def test_second_call_does_not_compile_again():
    traces = []

    def update(grads, state, params=None):
        traces.append(None)
        return SGD.update(grads, state, params)

    counting = optax.GradientTransformation(SGD.init, update)

    def run(num_steps, optimizer=counting):
        model = gm.flows.affine((1,))  # a fresh, equal description
        spread = TEN + np.arange(8, dtype=np.float32)[:, None]
        return fit(spread, model, optimizer=optimizer, num_steps=num_steps, validate_every=3, validation=spread)

    run(3)
    first = len(traces)
    run(3)
    run(20)
    assert len(traces) == first > 0
    run(3, optax.GradientTransformation(SGD.init, lambda *args: update(*args)))
    assert len(traces) > first  # a new optimizer object has no equal


# --- failures ------------------------------------------------------------------------------------------------------------------


def blows_up(params, key, x, context):
    loss, metrics = pull(params, key, x, context)
    return jnp.where(params["w"] > 3.0, jnp.nan, loss), metrics


@pytest.mark.parametrize("validate_every", [1, 7, 100])
def test_stops_when_the_loss_is_not_finite(validate_every, tmp_path):
    # w > 3 first after 18 steps: the step that sees it is number 18.
    with pytest.raises(FloatingPointError, match="stopped at step 18: loss = nan"):
        fit(loss_fn=blows_up, params=START, optimizer=SGD, num_steps=100, checkpoint=tmp_path, validate_every=validate_every)
    step = train.GradientStep(blows_up, SGD)
    state = step.init(START)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 18
        saved, _ = checkpoints.load(18, (state, train.Best(START, jnp.zeros(()), jnp.zeros((), jnp.int32))))
    np.testing.assert_allclose(saved.params["w"], pulled(18), rtol=1e-5)


def test_stops_when_the_gradient_is_not_finite():
    def root(params, key, x, context):
        return jnp.sqrt(params["w"]), {}

    with pytest.raises(FloatingPointError, match=r"step 0: loss = 0, grad_norm = inf"):
        fit(loss_fn=root, params=START, optimizer=SGD, num_steps=5)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"data": np.array([[1.0], [np.nan], [2.0], [np.inf]])},
            ValueError,
            "data has 2 rows with NaN or infinite values, the first is row 1",
        ),
        ({"validation": np.array([[np.inf]])}, ValueError, "validation has 1 rows"),
        ({"data": np.arange(4)[:, None]}, TypeError, "data must be floating point, got int"),
        ({"data": np.zeros((4, 2))}, ValueError, r"data must have shape \(n,\) \+ \(1,\) with n >= 1, got \(4, 2\)"),
        ({"data": np.zeros(4)}, ValueError, r"got \(4,\)"),
        ({"data": np.zeros((0, 1))}, ValueError, r"got \(0, 1\)"),
        ({"data": iter(())}, ValueError, "data is empty"),
        ({"data": (TEN, TEN)}, ValueError, "x alone"),
        ({"data": TEN, "model": CONDITIONAL}, ValueError, r"pair \(x, context\), context of shape \(n,\) \+ \(2,\)"),
        ({"data": (TEN, TEN), "model": CONDITIONAL}, ValueError, r"context of data must have shape \(8, 2\), got \(8, 1\)"),
        ({"num_steps": 0}, ValueError, "num_steps must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be an integer"),
        ({"validate_every": 0}, ValueError, "validate_every"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every"),
    ],
)
def test_refuses(change, error, match):
    with pytest.raises(error, match=match):
        fit(**{"num_steps": 1} | change)


@pytest.mark.parametrize("key", [0, np.array([0, 1], np.uint32)], ids=["int", "raw"])
def test_refuses_a_key_that_is_not_typed(key):
    with pytest.raises(TypeError, match=r"typed key, jax.random.key\(seed\)"):
        gm.fit(MODEL, TEN, key=key)


# --- several devices ---------------------------------------------------------------------------------------------------

MESHED = """
    import sys; sys.path.insert(0, "tests")
    import jax, numpy as np
    from jax.sharding import Mesh
    from test_train import RUN, X, fit
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()), ("data",))
    one = fit(X, num_steps=20, **RUN)
    many = fit(X, num_steps=20, mesh=mesh, **RUN)
    assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == 8
    for name in ("loss", "validation_loss", "grad_norm"):
        np.testing.assert_allclose(many.history[name], one.history[name], rtol=2e-4)  # sums in another order
    halves = [fit(X, num_steps=n, mesh=mesh, checkpoint=sys.argv[1], **RUN) for n in (10, 20)]
    jax.tree.map(np.testing.assert_array_equal, halves[1].params, many.params)
    try:
        fit(X, num_steps=1, mesh=mesh, **(RUN | {"batch_size": 12}))
    except ValueError as error:
        assert "multiple of the 8 devices" in str(error)
    else:
        raise AssertionError("12 rows went to 8 devices")
    print("equal")
"""


def test_a_mesh_of_eight_devices_gives_the_same_run(tmp_path):
    flags = {"PYTHONPATH": ".", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", textwrap.dedent(MESHED), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0 and "equal" in result.stdout, result.stderr[-3000:]


def test_no_key_is_used_twice(key_reuse):
    """The script of the README: one key for data, training and samples."""
    key = jax.random.key(0)
    data = gm.data.two_moons(key, 200)
    result = gm.fit(PLANE, data.train, key=key, loss_fn=noisy, num_steps=3, validation=data.validation, progress=False)
    PLANE.sample(result.params, key, (3,))


def test_a_validation_loss_that_is_not_finite_stops_the_run():
    model = gm.models.Flow(gm.bijectors.Chain((gm.bijectors.DiagonalAffine(), gm.bijectors.Sigmoid())), gm.densities.Normal((1,)))
    x = np.random.default_rng(0).uniform(0.01, 0.99, (64, 1)).astype(np.float32)
    outside = np.concatenate([x[:7], np.full((1, 1), 1.5, np.float32)])
    with pytest.raises(FloatingPointError, match="the validation loss is nan at step 5: .*outside the support"):
        gm.fit(model, x, key=jax.random.key(0), validation=outside, num_steps=5, batch_size=8, progress=False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clip_norm": -1.0}, "clip_norm must be > 0"),
        ({"ema_decay": 1.5}, r"ema_decay must be in \[0, 1\)"),
        ({"patience": 0, "validation": np.zeros((4, 1), np.float32)}, "patience must be >= 1"),
        ({"patience": 3}, "wants validation"),
        ({"num_steps": 0}, "num_steps must be an integer >= 1"),
    ],
)
def test_unfit_options_are_refused(options, match):
    model = gm.flows.affine((1,))
    with pytest.raises(ValueError, match=match):
        gm.fit(model, np.zeros((8, 1), np.float32), key=jax.random.key(0), progress=False, **options)


def test_images_are_initialised_from_random_rows_and_vectors_from_all():
    """A million numbers are enough for the activations of a deep net; which rows must not follow a period of the data."""
    alternating = np.zeros((2**13, 16, 16, 1), np.float32)
    alternating[::2] = 1.0
    model = gm.flows.glow((16, 16, 1), 1)
    (x,) = Source.of(model, alternating, 64).example()
    num = 2**20 // 256
    assert x.shape == (num, 16, 16, 1)
    # Without replacement from two equal halves.
    assert abs(float(x.mean()) - 0.5) < 4.5 * 0.5 / np.sqrt(num)
    vectors = np.zeros((2**19, 3), np.float32)
    assert Source.of(gm.flows.affine((3,)), vectors, 64).example()[0].shape == vectors.shape
