"""Runs that go wrong, are stopped, or go on from others: nothing is lost, and the message says what to do."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod import bijectors as bj
from genmod.training.checkpoint import Checkpoints

DATA = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
MODEL = gm.models.Flow(bj.DiagonalAffine(), gm.densities.Normal((2,)))


def run(key, **options):
    settings = {"num_steps": 20, "batch_size": 32, "validate_every": 5, "progress": False}
    return gm.fit(options.pop("model", MODEL), options.pop("data", DATA), key=key, **(settings | options))


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def bad_at(*steps):
    """The loss of MODEL, NaN at these steps (and its gradient too)."""

    def loss(params, key, batch, *, step=None):
        value, metrics = MODEL.loss(params, key, batch)
        wrong = jnp.isin(step, jnp.array(steps)) if step is not None else False
        return jnp.where(wrong, jnp.nan, 1.0) * value, metrics

    return loss


def once_bad(params, key, batch, *, step=None):
    """NaN wherever the batch holds the one marked row."""
    value, metrics = MODEL.loss(params, key, batch)
    return jnp.where((batch == 100.0).any(), jnp.nan, 1.0) * value, metrics


def test_steps_that_are_not_finite_may_be_skipped(key):
    marked = DATA.copy()
    marked[7] = 100.0
    start = MODEL.init(key, DATA)
    with pytest.raises(FloatingPointError, match=r"max_skips"):
        run(key, data=marked, loss_fn=once_bad, params=start)
    fit = run(key, data=marked, loss_fn=once_bad, params=start, max_skips=1)
    assert fit.step == 20 and all(np.isfinite(values).all() for values in fit.history.values())
    batches, skipped = 20 * 32 / 200, fit.history["skipped"].sum() * 5
    assert 3 <= skipped <= 4 and batches == pytest.approx(3.2)  # once an epoch
    assert fit.state.count == 20 - skipped and fit.state.skips.in_a_row in (0, 1)
    assert jnp.abs(fit.params["bijector"]["shift"]).max() < 1  # the marked row has taught nothing


def test_too_many_skips_in_a_row_stop_the_run(key):
    start = MODEL.init(key, DATA)
    with pytest.raises(FloatingPointError, match="training stopped at step 8: loss = nan"):
        run(key, loss_fn=bad_at(6), params=start, max_skips=2)  # the count stays at 6, so that it never ends
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="max_skips must be an integer >= 0"):
            run(key, max_skips=wrong)


def test_goes_on_from_a_fit_or_a_folder_with_another_learning_rate(key, tmp_path):
    first = run(key, optimizer=optax.adam(1e-2), checkpoint=tmp_path / "a", ema_decay=0.9)
    by_fit = run(key, optimizer=optax.adam(1e-3), state=first, ema_decay=0.9)
    by_folder = run(key, optimizer=optax.adam(1e-3), state=tmp_path / "a", ema_decay=0.9)
    same(by_fit.state, by_folder.state)
    assert by_fit.state.count == 40 and by_fit.step == 20
    assert jax.tree.leaves(by_fit.state.opt_state)[0] == 40  # Adam's averages went on
    with pytest.warns(UserWarning, match="the optimizer is another one"):
        other = run(key, optimizer=optax.sgd(0.0), state=first)
    same(other.last_params, first.state.params)
    with pytest.raises(ValueError, match=r"state must be of the same kind: state.params\['bijector'\]"):
        run(key, model=gm.models.Flow(bj.ScalarAffine(), gm.densities.Normal((2,))), state=first)
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from"):
        run(key, state=tmp_path / "nothing")


def test_what_of_a_state_fits_is_kept(key, tmp_path):
    first = run(key, optimizer=optax.adam(0.3), checkpoint=tmp_path / "a", ema_decay=0.9, validation=DATA, num_steps=40)
    assert jnp.abs(first.params["bijector"]["shift"] - first.state.params["bijector"]["shift"]).max() > 1e-3  # best is not last
    for origin in (first, tmp_path / "a"):
        more = run(key, optimizer=optax.adam(0.0), state=origin, ema_decay=0.9, max_skips=2, num_steps=1)
        assert more.state.count == 41 and jax.tree.leaves(more.state.opt_state)[0] == 41  # only the skips are new
        same(more.state.params, first.state.params)
        averaged = run(key, optimizer=optax.adam(0.0), state=origin, num_steps=1)
        assert averaged.state.ema is None and averaged.state.count == 41
        with pytest.warns(UserWarning, match="the optimizer is another one"):
            other = run(key, optimizer=optax.sgd(0.0), state=origin, num_steps=1)
        same(other.state.params, first.state.params)  # the newest, not the best
    with pytest.raises(ValueError, match="params=... and state=... both say"):
        run(key, state=first, params=first.params)


def test_after_a_divergence_the_last_good_state_is_there(key, tmp_path):
    start = MODEL.init(key, DATA)
    with pytest.raises(FloatingPointError, match=rf"at step 12: .* saved: state='{tmp_path / 'a'}' and another checkpoint go on"):
        run(key, loss_fn=bad_at(12), params=start, checkpoint=tmp_path / "a")
    fit = run(key, loss_fn=bad_at(), params=start, state=tmp_path / "a", num_steps=5, checkpoint=tmp_path / "b")
    assert fit.state.count == 17


def test_a_start_that_was_given_may_be_the_best(key):
    good = run(key, optimizer=optax.adam(1e-2), num_steps=300, validation=DATA)
    worse = run(key, params=good.params, optimizer=optax.sgd(1.0), num_steps=5, validation=DATA)
    assert worse.history["validation_loss"][-1] > float(MODEL.loss(good.params, key, DATA)[0]) + 0.01
    same(worse.params, good.params)


def test_an_initial_loss_that_is_not_finite_names_rows_and_columns(key):
    model = gm.models.Flow(bj.Chain((bj.DiagonalAffine(), bj.Sigmoid())), gm.densities.Normal((2,)))
    inside = np.random.default_rng(0).uniform(0.1, 0.9, (200, 2)).astype(np.float32)
    inside[[3, 9], 1] = 1.5
    with pytest.raises(FloatingPointError) as error:
        run(key, model=model, data=inside, batch_size=200)
    assert "at step 0: loss = inf" in str(error.value) and "learning rate" not in str(error.value).split("not at")[0]
    assert (
        "not finite at 2 of the first 200 rows, first at row 3 (column 1 = 1.5, outside of the model's support (0.0, 1.0))"
        in str(error.value)
    )


def test_an_iterator_that_ends_returns_what_was_reached(key):
    batches = [DATA[i : i + 32] for i in range(0, 160, 32)] * 2
    start = MODEL.init(key, DATA)
    with pytest.warns(UserWarning, match="the data iterator ended: training stops after 10 steps"):
        fit = run(key, data=iter(batches), params=start, num_steps=50, validate_every=4)
    assert fit.step == 10 and fit.history["step"].tolist() == [4, 8, 10]
    whole = run(key, data=iter(batches), params=start, num_steps=10, validate_every=4)
    same(fit.params, whole.params)
    with pytest.raises(ValueError, match="the data iterator ended before num_steps"):
        run(key, data=iter([DATA[:32]]), params=start, step=Two(), validate=None)


@dataclasses.dataclass(frozen=True)
class Two(gm.Step):
    num_batches = 2

    def init(self, params, key, batch):
        return params

    def __call__(self, state, key, batch):
        return state, {"loss": jnp.zeros(())}

    def evaluation_params(self, state):
        return state


def test_a_run_whose_iterator_ended_may_be_called_again(key, tmp_path):
    start = MODEL.init(key, DATA)
    results = []
    for says in ("training stops after 5 steps", "nothing to do after 5 steps"):
        with pytest.warns(UserWarning, match=says):
            results.append(run(key, data=iter([DATA[:32]] * 5), params=start, checkpoint=tmp_path / "a"))
    assert [each.step for each in results] == [5, 5]
    same(*(each.params for each in results))


def test_the_log_of_an_earlier_run_is_kept(key, tmp_path):
    log = tmp_path / "log.jsonl"
    run(key, log=log)
    before = log.read_text()
    run(key, log=log, num_steps=5)
    run(key, log=log, num_steps=5)
    assert (tmp_path / "log.1.jsonl").read_text() == before
    assert [json.loads(line)["step"] for line in (tmp_path / "log.2.jsonl").read_text().splitlines()] == [5]
    assert len(log.read_text().splitlines()) == 1


def test_a_folder_serves_one_run_at_a_time(key, tmp_path):
    with (
        Checkpoints(tmp_path / "a", exclusive=True),
        pytest.raises(BlockingIOError, match=f"in use by another run .*{os.getpid()}"),
    ):
        run(key, checkpoint=tmp_path / "a")
    run(key, checkpoint=tmp_path / "a")
    assert gm.load(tmp_path / "a", MODEL) is not None


INTERRUPTED = """
import os, signal, sys, jax, numpy as np, genmod as gm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without it
def stop(step, metrics, params):
    os.kill(os.getpid(), signal.SIGINT)
model = gm.models.Flow(gm.bijectors.DiagonalAffine(), gm.densities.Normal((2,)))
data = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
where = {"checkpoint": sys.argv[1]} if len(sys.argv) > 1 else {}
gm.fit(model, data, key=jax.random.key(0), num_steps=1_000, validate_every=5, progress=False, callback=stop, **where)
"""


@pytest.mark.parametrize("saved", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_interrupted_run_says_where_it_is(saved, tmp_path):
    where = [str(tmp_path / "a")] if saved else []
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *where], capture_output=True, text=True, check=False)
    assert done.returncode in (1, -signal.SIGINT, 130)
    last = done.stderr.strip().splitlines()[-1]
    wanted = f"saved in {tmp_path / 'a'}; the same call goes on from there" if saved else "nothing is saved without checkpoint"
    assert last.startswith("KeyboardInterrupt: training was interrupted at step 5") and wanted in last


def test_a_mesh_of_explicit_axes_is_taken(key):
    mesh = jax.make_mesh((1,), ("data",))
    same(run(key, mesh=mesh).params, run(key).params)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (np.arange(200.0), "column 0 of data counts the rows: it is an index"),
        (np.random.default_rng(1).integers(0, 2, 200).astype(float), "column 0 of data holds whole numbers alone"),
        (np.random.default_rng(1).normal(size=200).round(1), None),
        (np.random.default_rng(1).integers(0, 10**6, 200).astype(float), None),
    ],
)
def test_whole_numbers_are_noticed(column, says, key):
    table = np.stack([column, DATA[:, 0]], 1).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(key, data=table, num_steps=1)
    assert [str(w.message).startswith(says) for w in caught] == ([] if says is None else [True])


# --- ensembles, frozen parts --------------------------------------------------------------------------------------------------


def test_an_ensemble_is_its_members(key, tmp_path):
    model = gm.flows.real_nvp((2,), 2, hidden_sizes=(8,))
    options = {"num_steps": 20, "validation": DATA, "validate_every": 5, "progress": False}
    together = gm.fit_ensemble(
        model, DATA, key=key, num_members=3, checkpoint=tmp_path / "a", log=tmp_path / "l.jsonl", **options
    )
    assert together.history["loss"].shape == (3, 4) and together.step == 20
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["member_0", "member_1", "member_2"]
    for i, own in enumerate(jax.random.split(key, 3)):
        alone = gm.fit(model, DATA, key=own, **options)
        same(jax.tree.map(lambda leaf, i=i: leaf[i], together.params), alone.params)
    scored = jax.vmap(model.log_prob, (0, None))(together.params, DATA[:5])
    assert scored.shape == (3, 5) and jnp.abs(scored[0] - scored[1]).max() > 1e-3
    with pytest.raises(ValueError, match="params=... would make all members start alike"):
        gm.fit_ensemble(model, DATA, key=key, num_members=2, params=alone.params)


def test_parts_are_frozen_by_optax(key):
    """What a mask names stays; the mask is a function of the parameters that are trained."""
    model = gm.models.Flow(bj.Chain((bj.DiagonalAffine(), bj.DiagonalAffine())), gm.densities.Normal((2,)))

    def first(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[1].idx == 0, params)

    frozen = optax.chain(optax.adam(1e-2), optax.masked(optax.set_to_zero(), first))
    start = model.init(key, DATA)
    fit = run(key, model=model, params=start, optimizer=frozen)
    same(fit.params["bijector"][0], start["bijector"][0])
    assert jnp.abs(fit.params["bijector"][1]["shift"] - start["bijector"][1]["shift"]).max() > 1e-3
