"""`fit` against trajectories worked by hand, and its promises: resumable bit for bit, compiled once, loud when it fails."""

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
from genmod.training import program
from genmod.training.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
MODEL = gm.flows.affine((1,))
SGD = optax.sgd(0.01)
START = {"w": jnp.zeros(())}
TEN, TWO = np.full((8, 1), 10.0, np.float32), np.full((4, 1), 2.0, np.float32)


def fit(data=TEN, model=MODEL, key=0, **options):
    return gm.fit(model, data, key=jax.random.key(key), progress=False, **options)


def pull(params, key, batch, *, step=None):
    """Gradient descent on this draws w towards the mean of the batch, in steps that are known."""
    return (params["w"] - batch.mean()) ** 2, {"seen": batch.mean()}


def pulled(k):
    """w after k steps of SGD from 0 towards 10."""
    return 10 * (1 - 0.98**k)


PULL = {"loss_fn": pull, "params": START, "optimizer": SGD}


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
    result = fit(num_steps=100, validation=TWO, validate_every=2, patience=3, **PULL)
    # w passes 2 between steps 10 and 12 (nearer at 12); three validations later it stops.
    np.testing.assert_array_equal(result.history["step"], np.arange(2, 20, 2))
    w = pulled(np.arange(2, 20, 2))
    np.testing.assert_allclose(result.history["validation_loss"], (w - 2) ** 2, rtol=1e-4, atol=1e-5)
    means = [((pulled(k - 2) - 10) ** 2 + (pulled(k - 1) - 10) ** 2) / 2 for k in range(2, 20, 2)]
    np.testing.assert_allclose(result.history["loss"], means, rtol=1e-5)
    np.testing.assert_allclose(result.history["seen"], 10.0)
    np.testing.assert_allclose(result.params["w"], pulled(12), rtol=1e-5)
    np.testing.assert_allclose(result.last_params["w"], pulled(18), rtol=1e-5)
    assert result.step == 18 and int(result.state.count) == 18


def test_without_validation_the_last_is_returned():
    result = fit(num_steps=5, validate_every=2, **PULL)
    np.testing.assert_array_equal(result.history["step"], [2, 4, 5])
    assert "validation_loss" not in result.history
    assert_equal(result.params, result.last_params)
    np.testing.assert_allclose(result.params["w"], pulled(5), rtol=1e-5)
    assert result.step == 5


def test_best_parameters_are_those_of_the_lowest_validation_loss():
    data = gm.data.two_moons(jax.random.key(0), 600)
    model = gm.flows.real_nvp((2,), 2, hidden_sizes=(8,))
    result = fit(
        data.train, model, optimizer=optax.adam(0.3), num_steps=30, batch_size=64, validation=data.validation, validate_every=5
    )
    losses = result.history["validation_loss"]
    assert losses[-1] > losses.min()  # so rough a rate that the last is not the best
    np.testing.assert_allclose(model.loss(result.params, None, data.validation)[0], losses.min(), rtol=1e-5)
    np.testing.assert_allclose(model.loss(result.last_params, None, data.validation)[0], losses[-1], rtol=1e-5)


@pytest.mark.parametrize("steps_per_dispatch", [1, 3, 100])
def test_dispatches_do_not_change_what_is_computed(steps_per_dispatch):
    options = {"num_steps": 25, "validate_every": 10, "validation": TWO} | PULL
    cut, whole = fit(steps_per_dispatch=steps_per_dispatch, **options), fit(**options)
    np.testing.assert_array_equal(cut.history["step"], [10, 20, 25])
    assert_equal((cut.params, cut.state), (whole.params, whole.state))
    for name in ("loss", "seen", "grad_norm"):
        np.testing.assert_allclose(cut.history[name], whole.history[name], rtol=1e-6)  # sums in other pieces
    np.testing.assert_array_equal(cut.history["validation_loss"], whole.history["validation_loss"])


def test_minibatches_are_drawn_without_replacement():
    x = 2.0 ** np.arange(12, dtype=np.float32)[:, None]  # a sum of these says which were in it

    def watch(params, key, batch):
        return params["w"] ** 2, {"sum": batch.sum()}

    options = {"loss_fn": watch, "params": START, "optimizer": SGD, "num_steps": 12, "batch_size": 4, "validate_every": 1}
    sums = fit(x, **options).history["sum"]
    epochs = sums.reshape(4, 3)
    np.testing.assert_array_equal(epochs.sum(1), 2.0**12 - 1)
    assert all(bin(int(s)).count("1") == 4 for s in sums)
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1  # another order in every epoch
    np.testing.assert_array_equal(fit(x, **options).history["sum"], sums)
    assert (fit(x, key=1, **options).history["sum"] != sums).any()


CONDITIONAL = gm.flows.planar_flow((1,), 1, context_shape=(2,))


def test_context_and_weight_stay_with_their_row():
    context = np.arange(24, dtype=np.float32).reshape(12, 2)
    rows = gm.Batch(context.sum(1, keepdims=True), context, context[:, 0] + 1)

    def mismatch(params, key, batch):
        off = jnp.abs(batch.x[:, 0] - batch.context.sum(1)).max() + jnp.abs(batch.weight - 1 - batch.context[:, 0]).max()
        return params["w"] ** 2, {"mismatch": off, "spread": batch.x.std()}

    result = fit(rows, CONDITIONAL, loss_fn=mismatch, params=START, num_steps=9, batch_size=4, validation=rows)
    np.testing.assert_array_equal(result.history["mismatch"], 0.0)
    assert (result.history["spread"] > 0).all()


def test_every_step_has_a_key_of_its_own():
    def noise(params, key, batch):
        return params["w"] ** 2, {"draw": jax.random.normal(key)}

    draws = fit(loss_fn=noise, params=START, optimizer=SGD, num_steps=50, validate_every=1).history["draw"]
    assert len(set(draws.tolist())) == 50
    assert abs(draws.mean()) < 4.5 / np.sqrt(50)


def test_the_step_reaches_the_loss_and_validation_takes_the_final_objective():
    def annealed(params, key, batch, *, step=None):
        share = 1.0 if step is None else step / 10
        return share * (params["w"] - batch.mean()) ** 2, {"share": jnp.asarray(share, jnp.float32)}

    result = fit(loss_fn=annealed, params=START, optimizer=optax.sgd(0.0), num_steps=4, validation=TWO, validate_every=1)
    np.testing.assert_allclose(result.history["share"], [0.0, 0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(result.history["loss"], [0.0, 10.0, 20.0, 30.0], rtol=1e-6)
    np.testing.assert_allclose(result.history["validation_loss"], 4.0, rtol=1e-6)


# --- validation --------------------------------------------------------------------------------------------------------------

ROWS = np.arange(4099, dtype=np.float32)[:, None]  # a prime: no number of blocks divides it


def distance(params, key, batch):
    return {"distance": jnp.mean(jnp.abs(params["w"] - batch)), "rows": jnp.float32(batch.shape[0])}


def test_blocks_of_rows_are_averaged_by_their_size():
    found = fit(validation=ROWS, validate=distance, monitor="distance", num_steps=1, **PULL).history
    np.testing.assert_allclose(found["validation_distance"], np.abs(pulled(1) - ROWS).mean(), rtol=1e-5)
    assert "validation_loss" not in found
    np.testing.assert_allclose(found["validation_rows"], (2 * 2049**2 + 1) / 4099, rtol=1e-6)  # 2049, 2049 and 1


def test_whole_gets_all_rows_at_once():
    found = fit(validation=ROWS, validate=gm.training.Whole(distance), monitor="distance", num_steps=1, **PULL)
    np.testing.assert_array_equal(found.history["validation_rows"], 4099)


def test_rows_that_weigh_nothing_do_not_count():
    model = gm.models.Flow(gm.bijectors.TriangularAffine(), gm.densities.Normal((1,)))
    x = np.random.default_rng(0).standard_normal((9_000, 1)).astype(np.float32)
    weight = (np.arange(9_000) < 3_000).astype(np.float32)  # the last blocks weigh nothing at all
    weight[::7] *= 2.5
    x[3_000:] += 50.0
    rows = (x[:5_000], None, weight[:5_000])
    found = fit(rows, model, num_steps=1, validation=rows, optimizer=optax.sgd(0.0), batch_size=5_000).history
    w = weight[:5_000].astype(np.float64)
    nll = 0.5 * np.log(2 * np.pi) + (w * 0.5 * x[:5_000, 0].astype(np.float64) ** 2).sum() / w.sum()
    np.testing.assert_allclose(found["validation_loss"], nll, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], nll, rtol=1e-5)


def test_the_monitored_entry_decides_what_is_best():
    def two(params, key, batch):
        return {"near_two": (params["w"] - 2) ** 2, "near_four": (params["w"] - 4) ** 2}

    for monitor, target in (("near_two", 2.0), ("near_four", 4.0)):
        result = fit(validation=TWO, validate=two, monitor=monitor, validate_every=1, num_steps=60, **PULL)
        path = pulled(np.arange(1, 61))
        np.testing.assert_allclose(result.params["w"], path[np.abs(path - target).argmin()], rtol=1e-5)
        assert result.last_params["w"] > 6.9


def test_validation_without_rows():
    result = fit(None, validate=lambda params, key, batch: {"loss": (params["w"] - 2) ** 2}, num_steps=40, validate_every=1,
                 loss_fn=lambda params, key, batch: ((params["w"] - 10.0) ** 2, {}), params=START, optimizer=SGD)  # fmt: skip
    np.testing.assert_allclose(result.params["w"], pulled(11), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"validate": distance}, ValueError, r"validate=\.\.\. wants validation"),
        ({"validate": distance, "validation": TWO}, ValueError, r"monitor must be one of .*\['distance', 'rows'\], got 'loss'"),
        ({"monitor": "mmd", "validation": TWO}, ValueError, "monitor='mmd' wants validate=fn"),
        ({"validate": 3, "validation": TWO}, TypeError, "validate must be a function"),
        ({"validate": lambda p, k, b: b.mean(), "validation": TWO}, TypeError, "validate must give its metrics as a dict"),
        ({"validate": lambda p, k, b: {"loss": b}, "validation": TWO}, ValueError, r"'loss' of shape \(4, 1\)"),
    ],
)
def test_refuses_a_validation_that_does_not_measure(options, error, match):
    with pytest.raises(error, match=match):
        fit(num_steps=1, **options, **PULL)


# --- callback ----------------------------------------------------------------------------------------------------------------


def test_callback_sees_every_row_and_the_evaluation_parameters():
    seen = []
    result = fit(num_steps=6, validate_every=2, validation=TWO, ema_decay=0.9, callback=lambda *args: seen.append(args), **PULL)
    assert [step for step, _, _ in seen] == [2, 4, 6]
    for i, (_, metrics, params) in enumerate(seen):
        assert set(metrics) == {"loss", "grad_norm", "seen", "validation_loss"}
        assert all(isinstance(value, float) and value == result.history[name][i] for name, value in metrics.items())
        np.testing.assert_allclose(params["w"], pulled(np.arange(1, 2 * i + 3)).mean(), rtol=1e-5)  # the plain mean at first


def test_an_exception_of_the_callback_comes_through_after_the_state_was_saved(tmp_path):
    def fail(step, metrics, params):
        if step == 4:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fit(num_steps=8, validate_every=2, checkpoint=tmp_path, callback=fail, **PULL)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 4
    assert_same_fit(fit(num_steps=8, validate_every=2, checkpoint=tmp_path, **PULL), fit(num_steps=8, validate_every=2, **PULL))


# --- interrupted and resumed -------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)  # three batches and a remainder each epoch
PLANE = gm.flows.real_nvp((2,), 1, hidden_sizes=(4,))
ADAM = optax.adam(1e-2)


def noisy(params, key, batch, *, step=None):
    return PLANE.loss(params, key, batch + 0.1 * jax.random.normal(key, batch.shape))


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
        assert result.step == num_steps
    assert_same_fit(result, uninterrupted)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 45, 5))
    np.testing.assert_array_equal([row["loss"] for row in rows], uninterrupted.history["loss"])


def test_interrupted_by_an_exception_equals_uninterrupted(uninterrupted, tmp_path):
    def interrupt(step, metrics, params):
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(X, num_steps=40, checkpoint=tmp_path, checkpoint_every=10, callback=interrupt, **RUN)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 30
    assert_same_fit(fit(X, num_steps=40, checkpoint=tmp_path, checkpoint_every=10, **RUN), uninterrupted)
    again = fit(X, num_steps=40, checkpoint=tmp_path, **RUN)  # done: nothing is left to do, and nothing changes
    assert_same_fit(again, uninterrupted)


def test_checkpoints_between_two_validations_keep_the_sums_of_the_metrics(tmp_path):
    options = RUN | {"validate_every": 20, "steps_per_dispatch": 3, "checkpoint_every": 6, "num_steps": 40}
    whole = fit(X, **options)

    class Killed(Exception):
        pass

    rows = iter(np.tile(X, (40, 1)).reshape(-1, 32, 2)[:13])  # it ends in the middle

    def endless():
        yield from rows
        raise Killed

    streamed = {**options, "model": PLANE, "checkpoint": tmp_path}
    with pytest.raises(Killed):
        fit(endless(), **streamed)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 12
    batches = np.tile(X, (40, 1))[: 40 * 32].reshape(-1, 32, 2)
    del streamed["checkpoint"]
    resumed = fit(iter(batches), checkpoint=tmp_path, **streamed)
    assert_same_fit(resumed, fit(iter(batches), **streamed))
    assert whole.history["step"].tolist() == resumed.history["step"].tolist() == [20, 40]


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


OTHER_START = jax.tree.map(lambda p: p + 1, PLANE.init(jax.random.key(0), X))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"key": 1}, "key"),
        ({"batch_size": 16}, "batch_size is 32 there and 16 here"),
        ({"data": X + 1}, r"data\[0\].sha256"),
        ({"model": gm.flows.real_nvp((2,), 1, hidden_sizes=(5,))}, r"hidden_sizes\[0\] is 4 there and 5 here"),
        ({"params": OTHER_START}, "params is 'made by init' there and"),
        ({"optimizer": optax.adam(2e-2)}, r"step\.optimizer.* is -0.01 there and -0.02 here"),
        ({"optimizer": optax.MultiSteps(ADAM, 2).gradient_transformation()}, r"step\.optimizer"),
        ({"clip_norm": 1.0}, "step.clip_norm is None there and 1.0 here"),
        ({"validation": X[:29]}, r"validation\[0\]"),
        ({"validate": gm.training.FinalLoss(PLANE)}, r"validate\.fn"),
        ({"validate_every": 10}, "validate_every is 5 there and 10 here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused(change, match, tmp_path):
    options = {"data": X, "num_steps": 5, "checkpoint": tmp_path, **RUN}
    fit(**options)
    with pytest.raises(ValueError, match=f"of another run: .*{match}") as caught:
        fit(**options | change)
    assert "delete" not in str(caught.value)


def test_other_start_parameters_are_another_run(tmp_path):
    options = {"data": X, "num_steps": 5, "checkpoint": tmp_path, **RUN}
    first = fit(params=OTHER_START, **options)
    assert_same_fit(fit(params=jax.tree.map(np.asarray, OTHER_START), **options), first)  # equal ones are not
    with pytest.raises(ValueError, match=r"of another run: params\[0\].sha256"):
        fit(params=jax.tree.map(lambda p: p + 1, OTHER_START), **options)


def test_fewer_steps_than_the_checkpoint_has_are_refused(tmp_path):
    first = fit(num_steps=20, checkpoint=tmp_path, **PULL)
    with pytest.raises(ValueError, match=r"num_steps must be at least 20, which the checkpoint in .* has reached, got 10"):
        fit(num_steps=10, checkpoint=tmp_path, **PULL)
    assert_same_fit(fit(num_steps=20, checkpoint=tmp_path, **PULL), first)


def test_what_cannot_be_described_is_refused_only_where_a_checkpoint_is_asked_for(tmp_path):
    hidden = iter([1.0])

    def secret(params, key, batch):
        return params["w"] ** 2, {"secret": jnp.float32(hash(hidden) % 2)}

    options = {"loss_fn": secret, "params": START, "num_steps": 1}
    fit(**options)
    with pytest.raises(TypeError, match=r"^step\.objective closure 'hidden' is a .*list_iterator, which cannot be described"):
        fit(checkpoint=tmp_path, **options)


# --- compiled once -----------------------------------------------------------------------------------------------------------


def test_second_call_does_not_compile_again():
    traces = []

    def update(grads, state, params=None):
        traces.append(None)
        return SGD.update(grads, state, params)

    counting = optax.GradientTransformation(SGD.init, update)

    def run(num_steps, optimizer=counting, validate_every=3):
        model = gm.flows.affine((1,))  # a fresh, equal description
        spread = TEN + np.arange(8, dtype=np.float32)[:, None]
        return fit(spread, model, optimizer=optimizer, num_steps=num_steps, validate_every=validate_every, validation=spread)

    run(3)
    assert len(traces) == 1  # its shapes and its loop share one trace
    run(3)
    run(20)
    run(20, validate_every=7)
    assert len(traces) == 1
    run(3, optax.GradientTransformation(SGD.init, lambda *args: update(*args)))
    assert len(traces) == 2  # another function is another optimizer


def test_a_new_number_of_rows_does_not_compile_again():
    traces = []

    def counted(params, key, batch):
        traces.append(None)
        return pull(params, key, batch)

    ones = np.ones((110, 1), np.float32)
    before = program.advance._cache_size()
    for num in (96, 100, 104):
        result = fit(ones[:num], loss_fn=counted, params=START, optimizer=SGD, num_steps=40, batch_size=32)
        np.testing.assert_array_equal(result.history["seen"], 1.0)  # no row beyond the last
    assert len(traces) == 1 and program.advance._cache_size() == before + 1
    fit(ones[:105], loss_fn=counted, params=START, optimizer=SGD, num_steps=1, batch_size=32)
    assert len(traces) == 2  # 104 rows fill their length


def test_an_equal_optimizer_that_is_newly_built_does_not_compile_again():
    traces = []

    def counted(params, key, batch, *, step=None):
        traces.append(None)
        return pull(params, key, batch)

    def run(optimizer):
        fit(loss_fn=counted, params=START, num_steps=2, optimizer=optimizer)

    for build in (
        lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 100)),
        lambda: optax.chain(optax.clip(1.0), optax.adam(1e-3)),
        lambda: gm.call(optax.sgd, 0.1, momentum=0.9),
    ):
        before = len(traces)
        run(build())
        assert len(traces) == before + 1
        run(build())
        assert len(traces) == before + 1
    before = len(traces)
    run(optax.sgd(0.1, momentum=0.9))  # what gm.call builds
    assert len(traces) == before


def test_the_model_is_near_the_top_of_the_stack():
    """Python's depth of calls is limited: from `fit` to a loss there are five functions of ours."""
    frames = []

    def deep(params, key, batch):
        frame = sys._getframe()
        names = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(str(ROOT / "genmod")):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        frames.append(names[::-1])
        return params["w"] ** 2, {}

    fit(loss_fn=deep, params=START, num_steps=1)
    assert frames[0] == ["fit", "train", "advance", "_one_step", "__call__", "objective"]


# --- failures ------------------------------------------------------------------------------------------------------------------


def blows_up(params, key, batch):
    loss, metrics = pull(params, key, batch)
    return jnp.where(params["w"] > 3.0, jnp.nan, loss), metrics


@pytest.mark.parametrize("validate_every", [1, 7, 100])
def test_stops_when_the_loss_is_not_finite(validate_every, tmp_path):
    # w > 3 first after 18 steps: the step that sees it is number 18.
    options = {"num_steps": 100, "checkpoint": tmp_path, "validate_every": validate_every, "validation": TWO}
    options |= {"validate": distance, "monitor": "distance"}
    with pytest.raises(FloatingPointError, match="stopped at step 18: loss = nan"):
        fit(loss_fn=blows_up, params=START, optimizer=SGD, **options)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 18
    best = gm.load(tmp_path, MODEL, like=START)
    # Validated at the ends of dispatches only, not in between where it stopped.
    validated = {1: pulled(11), 7: pulled(14), 100: 0.0}[validate_every]
    np.testing.assert_allclose(best["w"], validated, rtol=1e-5)
    with pytest.raises(FloatingPointError, match="stopped at step 18: loss = nan"):  # also from the state before it
        fit(loss_fn=blows_up, params=START, optimizer=SGD, **options)


def test_the_last_good_state_is_saved(tmp_path):
    with pytest.raises(FloatingPointError, match="stopped at step 18"):
        fit(loss_fn=blows_up, params=START, optimizer=SGD, num_steps=100, checkpoint=tmp_path)
    np.testing.assert_allclose(gm.load(tmp_path, MODEL, like=START)["w"], pulled(18), rtol=1e-5)


def test_stops_when_the_gradient_is_not_finite():
    def root(params, key, batch):
        return jnp.sqrt(params["w"]), {}

    with pytest.raises(FloatingPointError, match=r"step 0: loss = 0, grad_norm = inf"):
        fit(loss_fn=root, params=START, optimizer=SGD, num_steps=5)


def test_stops_when_a_named_loss_is_not_finite():
    def hidden(params, key, batch):
        bad = jnp.where(params["w"] > 3.0, jnp.nan, 1.0)
        loss, _ = pull(params, key, batch)
        return loss, {"prior_loss": bad, "other": bad}

    with pytest.raises(FloatingPointError, match=r"stopped at step 18: loss = .*, grad_norm = .*, prior_loss = nan\."):
        fit(loss_fn=hidden, params=START, optimizer=SGD, num_steps=100)


def test_stops_when_the_last_update_is_not_finite():
    def too_far(params, key, batch):
        return params["w"], {}

    with pytest.raises(FloatingPointError, match="stopped at step 1: loss = "):
        fit(loss_fn=too_far, params=START, optimizer=optax.sgd(3e38), num_steps=2)


def test_a_validation_loss_that_is_not_finite_stops_the_run():
    model = gm.models.Flow(gm.bijectors.Chain((gm.bijectors.DiagonalAffine(), gm.bijectors.Sigmoid())), gm.densities.Normal((1,)))
    x = np.random.default_rng(0).uniform(0.01, 0.99, (64, 1)).astype(np.float32)
    outside = np.concatenate([x[:7], np.full((1, 1), 1.5, np.float32)])
    with pytest.raises(FloatingPointError, match="the validation loss is inf at step 5: .*outside the support"):
        gm.fit(model, x, key=jax.random.key(0), validation=outside, num_steps=5, batch_size=8, progress=False)


def test_refuses_a_callback_that_is_none():
    with pytest.raises(TypeError, match="callback must be a function, got 'tensorboard'"):
        fit(num_steps=1, callback="tensorboard", **PULL)


@pytest.mark.parametrize("key", [0, np.array([0, 1], np.uint32)], ids=["int", "raw"])
def test_refuses_a_key_that_is_not_typed(key):
    with pytest.raises(TypeError, match=r"typed key, jax.random.key\(seed\)"):
        gm.fit(MODEL, np.arange(4.0)[:, None], key=key)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clip_norm": -1.0}, "clip_norm must be > 0"),
        ({"ema_decay": 1.5}, r"ema_decay must be in \[0, 1\)"),
        ({"patience": 0, "validation": TWO}, "patience must be an integer >= 1, got 0"),
        ({"patience": 3}, "wants validation"),
        ({"num_steps": 0}, "num_steps must be an integer >= 1, got 0"),
        ({"num_steps": True}, "num_steps must be an integer >= 1, got True"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"validate_every": 0}, "validate_every"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"steps_per_dispatch": 0}, "steps_per_dispatch must be an integer >= 1"),
    ],
)
def test_unfit_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        fit(np.arange(8.0, dtype=np.float32)[:, None], **options)


# --- several devices ---------------------------------------------------------------------------------------------------

MESHED = """
    import sys; sys.path.insert(0, "tests")
    import dataclasses
    import jax, numpy as np, optax
    from jax.sharding import Mesh, PartitionSpec
    import genmod as gm
    from test_train import ADAM, PLANE, RUN, X, fit, noisy
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()), ("data",))
    one = fit(X, num_steps=20, **RUN)
    many = fit(X, num_steps=20, mesh=mesh, **RUN)
    assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == 8
    for name in ("loss", "validation_loss", "grad_norm"):
        np.testing.assert_allclose(many.history[name], one.history[name], rtol=2e-4)  # sums in another order
    halves = [fit(X, num_steps=n, mesh=mesh, checkpoint=sys.argv[1], **RUN) for n in (10, 20)]
    jax.tree.map(np.testing.assert_array_equal, halves[1].params, many.params)

    x = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    traces = []

    def regression(params, key, batch):
        traces.append(None)
        return ((batch @ params["w"] - 1.0) ** 2).mean(), {}

    @dataclasses.dataclass(frozen=True)
    class Spread(gm.GradientStep):
        def sharding(self, state):
            return jax.tree.map(lambda a: PartitionSpec("data") if a.ndim else None, state)

    start = {"w": np.zeros((16,), np.float32)}
    options = {"key": jax.random.key(0), "num_steps": 30, "batch_size": 16, "validate_every": 10, "progress": False}
    options |= {"validation": x}
    alone = gm.train(Spread(regression, optax.adam(0.1)), start, x, **options)
    num = len(traces)
    spread = gm.train(Spread(regression, optax.adam(0.1)), start, x, mesh=mesh, **options)
    assert {s.data.shape for s in spread.params["w"].addressable_shards} == {(2,)}
    assert {s.data.shape for s in spread.state.opt_state[0].mu["w"].addressable_shards} == {(2,)}
    np.testing.assert_allclose(spread.params["w"], alone.params["w"], rtol=1e-4, atol=1e-6)
    assert len(traces) == 2 * num
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
