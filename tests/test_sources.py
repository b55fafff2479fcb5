"""What users call data: arrays and tables, pytrees, iterators and loaders, nothing; and one sentence for what does not fit."""

import collections
import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.training import batches
from genmod.training.checkpoint import Checkpoints
from genmod.training.reading import is_stream
from genmod.training.sources import STACK_BYTES, Stream, read_all

MODEL = gm.flows.affine((2,))
CONDITIONAL = gm.flows.planar_flow((1,), 1, context_shape=(2,))
SGD = optax.sgd(0.01)
START = {"w": jnp.zeros(())}
X = np.random.default_rng(0).standard_normal((24, 2)).astype(np.float32)


def fit(data, model=MODEL, **options):
    options = {"num_steps": 1, "progress": False, "key": jax.random.key(0)} | options
    return gm.fit(model, data, **options)


def losses(data, model=MODEL, **options):
    return fit(data, model, num_steps=3, batch_size=24, **options).history["loss"]


class Tensor:
    """What PyTorch's tensors are to us."""

    def __init__(self, array):
        self.array = np.asarray(array)

    ndim = property(lambda self: self.array.ndim)
    shape = property(lambda self: self.array.shape)

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array


class Loader:
    """What PyTorch's and Grain's loaders are to us: batches, again and again, the last one of a turn shorter."""

    def __init__(self, make, size=10, rows=24):
        self.make, self.size, self.rows = make, size, rows

    def __iter__(self):
        return (self.make(slice(i, i + self.size)) for i in range(0, self.rows, self.size))

    def __len__(self):
        return -(-self.rows // self.size)


# --- arrays ----------------------------------------------------------------------------------------------------------------


def test_arrays_of_every_library_are_the_same_data():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    expected = losses(X)
    for data in (
        jnp.asarray(X),
        X.astype(np.float64),
        X.tolist(),
        Tensor(X),
        pandas.DataFrame(X, columns=["a", "b"]),
        polars.DataFrame(X, schema=["a", "b"]),
        {"x": X},
        (X,),
        gm.Batch(X),
        gm.Batch(X, None, np.ones(24, int)),
    ):
        np.testing.assert_allclose(losses(data), expected, rtol=1e-6)


def test_a_context_may_be_a_table_of_any_numbers():
    pandas = pytest.importorskip("pandas")
    x, context = X[:, :1], np.arange(48).reshape(24, 2) % 5
    expected = losses((x, context.astype(np.float32)), CONDITIONAL)
    table = pandas.DataFrame({"a": context[:, 0], "b": context[:, 1].astype(float)})
    for data in ((x, context), (x, table), {"x": x, "context": table}, [x, Tensor(context)]):
        np.testing.assert_allclose(losses(data, CONDITIONAL), expected, rtol=1e-6)


def test_weights_are_those_of_the_rows():
    weight = np.arange(24)
    repeated = np.repeat(X, weight, axis=0)
    options = {"num_steps": 3, "optimizer": optax.sgd(0.1), "params": MODEL.init(jax.random.key(0), X)}
    weighted = fit((X, None, weight), batch_size=24, **options)
    np.testing.assert_allclose(
        weighted.history["loss"], fit(repeated, batch_size=len(repeated), **options).history["loss"], rtol=1e-5
    )


def test_any_pytree_goes_to_a_loss_of_ones_own():
    pair = collections.namedtuple("Pair", ["image", "label"])
    for data in ({"a": X, "b": [X[:, 0], X]}, (X, pair(X, X[:, 0])), [X, None, Tensor(X)], X, [[1.0, 2.0], [3.0, 4.0]]):
        seen = []

        def loss(params, key, batch, seen=seen):
            seen.append(batch)
            return params["w"] ** 2, {}

        fit(data, loss_fn=loss, params=START, batch_size=2)
        (batch,) = seen
        if not isinstance(data, list) or isinstance(data[0], np.ndarray):
            assert jax.tree.structure(batch) == jax.tree.structure(data)
        assert all(a.shape[0] == 2 for a in jax.tree.leaves(batch))


def test_integers_and_missing_values_may_go_to_a_loss_of_ones_own():
    data = {"counts": np.arange(24), "flags": np.arange(24) > 3, "gaps": np.where(X > 0, X, np.nan)}

    def loss(params, key, batch):
        assert batch["counts"].dtype == jnp.int32 and batch["flags"].dtype == bool
        return params["w"] ** 2, {"known": jnp.isfinite(batch["gaps"]).mean()}

    known = fit(data, loss_fn=loss, params=START, batch_size=24).history["known"]
    np.testing.assert_allclose(known, (X > 0).mean(), rtol=1e-6)


def test_bools_are_two_levels():
    gm.Levels((3,), 2).check("x", np.zeros((4, 3), bool), batched=True)
    with pytest.raises(TypeError, match="data must be floating point, got bool"):
        fit(np.zeros((4, 2), bool))


# --- streams ---------------------------------------------------------------------------------------------------------------


def pull(params, key, batch):
    return (params["w"] - batch.mean()) ** 2, {"seen": batch.mean()}


def counted(start=0, stop=40):
    return (np.full((2, 1), float(i), np.float32) for i in range(start, stop))


PULL = {"loss_fn": pull, "params": START, "optimizer": SGD}


def test_an_iterator_gives_its_batches_in_order():
    result = fit(counted(), num_steps=6, validate_every=2, **PULL)
    np.testing.assert_allclose(result.history["seen"], [0.5, 2.5, 4.5])
    w = 0.0
    for i in range(6):
        w -= 0.02 * (w - i)
    np.testing.assert_allclose(result.params["w"], w, rtol=1e-5)


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_iterator_that_ends_too_early_leaves_its_state(tmp_path, ahead):
    num = 4 + ahead
    with pytest.warns(UserWarning, match=f"the data iterator ended: training stops after {num} steps"):
        short = fit(counted(0, num), num_steps=10, validate_every=4, checkpoint=tmp_path, **PULL)
    result = fit(counted(), num_steps=num, validate_every=4, checkpoint=tmp_path, **PULL)  # it was reached
    assert short.step == result.step == num
    for one in (short, result):
        np.testing.assert_array_equal(one.params["w"], fit(counted(), num_steps=num, validate_every=4, **PULL).params["w"])


def test_a_resumed_iterator_goes_on_where_it_was(tmp_path):
    fit(counted(), num_steps=4, validate_every=2, checkpoint=tmp_path, **PULL)
    resumed = fit(counted(), num_steps=8, validate_every=2, checkpoint=tmp_path, **PULL)
    whole = fit(counted(), num_steps=8, validate_every=2, **PULL)
    assert resumed.params["w"] == whole.params["w"]
    np.testing.assert_array_equal(resumed.history["seen"], whole.history["seen"])


@pytest.mark.parametrize("steps_per_dispatch", [1, 2, 7])
def test_stacks_of_every_size_give_the_same_run(steps_per_dispatch):
    whole = fit(counted(), num_steps=9, validate_every=5, **PULL)
    cut = fit(counted(), num_steps=9, validate_every=5, steps_per_dispatch=steps_per_dispatch, **PULL)
    assert cut.params["w"] == whole.params["w"]
    np.testing.assert_allclose(cut.history["seen"], [2.0, 6.5])


def test_a_stack_is_bounded():
    large = Stream(iter([np.zeros((2**20, 3), np.float32)] * 2), lambda name, batch: batch)
    assert large.limit(1) == STACK_BYTES // (2**20 * 12) == 21
    assert large.limit(5) == 4
    assert Stream(iter([np.zeros(2**27, np.float32)]), lambda name, batch: batch).limit(1) == 1


def test_dispatches_of_a_stream_compile_once():
    traces = []

    def loss(params, key, batch):
        traces.append(None)
        return pull(params, key, batch)

    fit(counted(), num_steps=11, validate_every=4, loss_fn=loss, params=START, optimizer=SGD)
    assert len(traces) == 1


def test_a_loader_is_gone_through_again_and_again():
    seen = []
    rows = np.arange(24, dtype=np.float32)[:, None]
    result = fit(
        Loader(lambda part: rows[part]), num_steps=5, validate_every=1, callback=lambda s, m, p: seen.append(m["seen"]), **PULL
    )
    np.testing.assert_allclose(seen, [4.5, 14.5, 4.5, 14.5, 4.5])  # the rest of four rows is left out
    assert result.step == 5


def test_loaders_give_lists_tuples_and_dicts():
    x, context = X[:, :1], np.arange(48, dtype=np.float32).reshape(24, 2) / 48
    runs = [
        fit(Loader(make, 12), CONDITIONAL, num_steps=4).history["loss"]
        for make in (
            lambda part: (x[part], context[part]),
            lambda part: [Tensor(x[part]), Tensor(context[part])],
            lambda part: {"x": x[part], "context": context[part]},
            lambda part: gm.Batch(x[part], context[part]),
        )
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])
    alone = [fit(Loader(make, 12), num_steps=4).history["loss"] for make in (lambda part: [X[part]], lambda part: X[part])]
    np.testing.assert_array_equal(*alone)


def test_validation_may_be_a_loader():
    loader = Loader(lambda part: [X[part]])
    np.testing.assert_array_equal(read_all("validation", loader, lambda name, batch: batch)[0], X)  # the last rows too
    whole, streamed = (fit(X, validation=v, num_steps=2).history["validation_loss"] for v in (X, loader))
    np.testing.assert_array_equal(whole, streamed)
    with pytest.raises(ValueError, match="validation is empty"):
        fit(X, validation=iter(()))


def test_what_is_a_stream():
    for data in (iter([X]), counted(), Loader(None), map(np.asarray, [X])):
        assert is_stream(data)
    for data in (X, jnp.asarray(X), [X], (X, X), {"x": X}, Tensor(X), gm.Batch(X), None, 3.0):
        assert not is_stream(data)


# --- iterators that know where they are -----------------------------------------------------------------------------------


class Placed:
    """What an iterator of Grain is to us: batches 0, 1, ..., and its place as JSON or, in older ones, bytes."""

    def __init__(self, num=40, first=0, as_bytes=False):
        self.num, self.first, self.as_bytes = num, first, as_bytes
        self.state, self.num_read = {"next": 0}, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.state["next"] == self.num:
            raise StopIteration
        value = self.first + self.state["next"]
        self.state["next"] += 1
        self.num_read += 1
        return np.full((2, 1), float(value), np.float32)

    def get_state(self):
        return json.dumps(self.state).encode() if self.as_bytes else self.state

    def set_state(self, state):
        self.state = json.loads(state) if self.as_bytes else dict(state)


class PlacedLoader:
    """Each turn has three batches, and others than the turn before: as of a loader that shuffles anew."""

    def __init__(self):
        self.turn = 0

    def __iter__(self):
        self.turn += 1
        return Placed(3, 10 * self.turn)


class Stopped(Exception):
    pass


def stop_at(number):
    def callback(step, metrics, params):
        if step == number:
            raise Stopped

    return callback


def position_in(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.note(checkpoints.latest_step())["position"]


@pytest.mark.parametrize("as_bytes", [False, True], ids=["json", "bytes"])
def test_an_iterator_that_knows_its_place_goes_on_there(tmp_path, as_bytes):
    options = {"num_steps": 9, "validate_every": 2} | PULL
    whole = fit(counted(), **options)
    for kind in ("fresh", "advanced"):
        first = Placed(as_bytes=as_bytes)
        with pytest.raises(Stopped):
            fit(first, checkpoint=tmp_path / kind, callback=stop_at(4), **options)
        assert first.state == {"next": 6}  # two were read ahead
        (place,) = position_in(tmp_path / kind).keys() & {"state", "bytes"}
        assert place == ("bytes" if as_bytes else "state")
        again = Placed(as_bytes=as_bytes) if kind == "fresh" else first
        before = again.num_read
        resumed = fit(again, checkpoint=tmp_path / kind, **options)
        assert again.num_read - before == 1 + 5  # one tells the shapes
        assert resumed.params["w"] == whole.params["w"]
        np.testing.assert_array_equal(resumed.history["seen"], whole.history["seen"])
        assert again.state == {"next": 9}


def test_a_place_within_a_dispatch_is_kept(tmp_path):
    def bad_at_six(params, key, batch):
        loss, metrics = pull(params, key, batch)
        return jnp.where(batch.mean() == 6.0, jnp.nan, loss), metrics

    options = {"loss_fn": bad_at_six, "params": START, "num_steps": 12, "validate_every": 4, "checkpoint": tmp_path}
    # Resumed, it meets the same batch at once: one for the shapes, two from the place of the dispatch, two, and four ahead.
    for data, read in ((Placed(), 1 + 3 + 4 + 4), (Placed(), 1 + 2 + 2 + 4)):
        with pytest.raises(FloatingPointError, match="stopped at step 6"):
            fit(data, **options)
        assert data.num_read == read


@dataclasses.dataclass(frozen=True)
class PullTwice(gm.Step):
    num_batches = 2

    def init(self, params, key, batch):
        return params

    def __call__(self, state, key, batch):
        seen = batch.mean()
        return {"w": state["w"] + 0.1 * (seen - state["w"])}, {"loss": seen, "first": batch[0].mean()}

    def evaluation_params(self, state):
        return state


def test_the_iterators_of_a_loader_keep_their_turn(tmp_path):
    options = {"step": PullTwice(), "params": START, "num_steps": 11, "validate_every": 3}
    whole = fit(PlacedLoader(), **options)
    turns = np.array([10 * turn + i for turn in range(1, 9) for i in range(3)])
    np.testing.assert_allclose(whole.history["first"], [turns[a:b:2].mean() for a, b in ((0, 6), (6, 12), (12, 18), (18, 22))])
    with pytest.raises(Stopped):
        fit(PlacedLoader(), checkpoint=tmp_path, callback=stop_at(6), **options)
    assert position_in(tmp_path) == {"state": {"next": 3}, "turn": 4, "past": 0}
    resumed = fit(PlacedLoader(), checkpoint=tmp_path, **options)
    assert resumed.params["w"] == whole.params["w"]
    np.testing.assert_array_equal(resumed.history["first"], whole.history["first"])


def test_a_place_that_is_no_json_is_refused_where_a_checkpoint_wants_it(tmp_path):
    data = Placed()
    data.state["generator"] = np.random.default_rng(0)
    fit(data, **PULL)
    with pytest.raises(TypeError, match=r"get_state\(\) of the data iterator must give a dict of JSON values.*Generator"):
        fit(data, checkpoint=tmp_path, **PULL)


def test_an_iterator_that_cannot_tell_its_place_is_gone_through(tmp_path):
    class Lost(Placed):
        def get_state(self):
            raise NotImplementedError

    options = {"validate_every": 2, "checkpoint": tmp_path} | PULL
    fit(Lost(), num_steps=4, **options)
    assert position_in(tmp_path) is None
    data = Placed()  # which could tell, but nothing was told
    assert fit(data, num_steps=8, **options).params["w"] == fit(counted(), num_steps=8, validate_every=2, **PULL).params["w"]
    assert data.num_read == 8
    more = fit(counted(), num_steps=9, **options)  # and the other way round
    assert more.params["w"] == fit(counted(), num_steps=9, validate_every=2, **PULL).params["w"]


# --- no data ---------------------------------------------------------------------------------------------------------------


def test_no_data():
    def loss(params, key, batch):
        assert batch is None
        return (params["w"] - 10.0) ** 2 + 0.0 * jax.random.normal(key), {}

    result = fit(None, loss_fn=loss, params=START, optimizer=SGD, num_steps=7)
    np.testing.assert_allclose(result.params["w"], 10 * (1 - 0.98**7), rtol=1e-5)


def test_without_data_a_model_that_needs_none_makes_its_own_parameters():
    flow = gm.models.Flow(gm.bijectors.TriangularAffine(), gm.densities.Normal((2,)))

    def reverse_kl(params, key, batch):
        x, log_q = flow.sample_and_log_prob(params, key, (256,))
        return jnp.mean(log_q + 0.5 * jnp.sum((x - 3.0) ** 2, -1) + jnp.log(2 * jnp.pi)), {}

    result = fit(None, flow, loss_fn=reverse_kl, optimizer=optax.adam(0.05), num_steps=400)
    assert abs(result.history["loss"][-1]) < 0.05  # KL to its own family: 0 at the optimum
    standardized = gm.models.Flow(gm.bijectors.Chain((gm.bijectors.TriangularAffine(), gm.bijectors.Standardize())), flow.base)
    with pytest.raises(ValueError, match=r"data=None wants params=\.\.\.: Flow takes its first parameters from data"):
        fit(None, standardized, loss_fn=reverse_kl)


# --- first parameters --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mean(gm.Model):
    """Its parameters are what it was initialised from."""

    event_shape_: tuple[int, ...]

    @property
    def event(self):
        return gm.Real(self.event_shape_)

    def _init(self, key, x, context):
        return gm.Fixed({"mean": x.mean(), "rows": jnp.full((), x.shape[0])})

    def loss(self, params, key, batch, *, step=None):
        return jnp.mean(batch.x), {}


def test_first_parameters_come_from_all_rows_of_vectors_and_from_a_million_numbers_of_images():
    alternating = np.zeros((2**13, 16, 16, 1), np.float32)  # which rows must not follow a period of the data
    alternating[::2] = 1.0
    found = fit(alternating, Mean((16, 16, 1)), batch_size=8).params.tree
    assert found["rows"] == 2**20 / 256
    # Without replacement from two equal halves.
    assert 1e-6 < abs(float(found["mean"]) - 0.5) < 4.5 * 0.5 / np.sqrt(2**12)
    vectors = np.random.default_rng(0).standard_normal((2**19, 3)).astype(np.float32)
    assert fit(vectors, Mean((3,)), batch_size=8).params.tree["rows"] == 2**19


def test_params_of_another_model_are_refused():
    other = gm.flows.affine((3,)).init(jax.random.key(0), np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="params must be those of this Flow, made by its init"):
        fit(X, params=other)
    with pytest.raises(TypeError, match=r"got a whole Fit; pass its \.params"):
        fit(X, params=fit(X))
    with pytest.raises(ValueError, match=r"params=\.\.\. is wanted where data are no events of the model"):
        fit({"images": X}, loss_fn=pull)


# --- minibatches ---------------------------------------------------------------------------------------------------------------


def test_permutations_are_uniform_and_of_every_epoch_another():
    num, epochs = 6, 3_000
    seed = jnp.array([12345, 67890], jnp.uint32)
    drawn = np.asarray(jax.vmap(lambda e: batches.permutation(seed, e, num, num))(jnp.arange(epochs)))
    np.testing.assert_array_equal(np.sort(drawn, 1), np.tile(np.arange(num), (epochs, 1)))
    # Of the 720 permutations each is as likely: chi-square, 719 degrees of freedom.
    codes = drawn @ (num ** np.arange(num))
    _, counts = np.unique(codes, return_counts=True)
    expected = epochs / 720
    chi_square = ((counts - expected) ** 2).sum() / expected + (720 - len(counts)) * expected
    assert abs(chi_square - 719) < 4.5 * np.sqrt(2 * 719)
    # One epoch says nothing about the next: where a row goes is as likely for every place it had.
    pairs = np.zeros((num, num))
    np.add.at(pairs, (drawn[:-1].argsort(1).ravel(), drawn[1:].argsort(1).ravel()), 1)
    assert (abs(pairs - pairs.sum() / num**2) < 4.5 * np.sqrt(pairs.sum() / num**2)).all()


def test_neighbouring_keys_give_other_permutations():
    first = [np.asarray(batches.permutation(jnp.array(words, jnp.uint32), 0, 1_000, 1_000)) for words in ((0, 0), (0, 1), (1, 0))]
    for i, a in enumerate(first):
        for b in first[i + 1 :]:
            assert (a == b).sum() < 10  # of two random ones about 1 place agrees
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(1_000)


def mixed(x):
    """The hash of batches.py, in NumPy."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@pytest.mark.parametrize("largest", [False, True], ids=["any", "with the largest"])
def test_a_permutation_sorts_the_hashes_of_its_rows_however_long_the_arrays_are(largest):
    first, second, epoch = (np.array([word], np.uint32) for word in (123, 456, 3))
    a = mixed(epoch + first)
    if largest:  # the second word for which row 5 has the hash that rows beyond the last are given
        b = np.asarray(batches._unmix(jnp.uint32(2**32 - 1))) ^ mixed(np.uint32([5]) + a)
        second = np.asarray(batches._unmix(batches._unmix(jnp.asarray(b)) - first)) ^ epoch
    b = mixed(mixed(epoch ^ second) + first)
    hashes = mixed(mixed(np.arange(57, dtype=np.uint32) + a) ^ b)
    assert (hashes[5] == 2**32 - 1) == largest
    words = jnp.concatenate([jnp.asarray(first), jnp.asarray(second)])
    for length in (57, 60, 1_000):
        rows = batches.permutation(words, jnp.int32(3), jnp.int32(57), length)
        np.testing.assert_array_equal(rows[:57], hashes.argsort())


def test_lengths_of_arrays_are_few_and_not_much_longer():
    lengths = np.array([batches.bucket(num) for num in range(9, 20_000)])
    assert (lengths >= np.arange(9, 20_000)).all() and (lengths < 11 / 9 * np.arange(9, 20_000) + 1).all()
    assert len(set(lengths[lengths <= 9 * 2**10])) == 4 * 10 + 1
    assert all(batches.bucket(length) == length for length in set(lengths.tolist()))
    assert batches.bucket(1_000) == batches.bucket(1_100) == 1_152
    for rows in (X, jnp.asarray(X)):
        longer = batches.padded({"x": rows})["x"]
        np.testing.assert_array_equal(longer, np.pad(X, ((0, 2), (0, 0))))
    large = np.zeros((24, batches.PADDED_BYTES // 4 // 24 + 1), np.float32)
    for rows in (X[:22], jax.device_put(X, jax.devices()[0]), large, {"x": X, "key": jax.random.split(jax.random.key(0), 24)}):
        assert batches.padded(rows) is None


# --- precision -----------------------------------------------------------------------------------------------------------------


def test_a_scale_that_float32_does_not_resolve_is_said_once():
    pandas = pytest.importorskip("pandas")
    time = 1.7e9 + np.arange(24.0)
    table = pandas.DataFrame({"a": X[:, 0].astype(float), "when": time, "later": time + 1})
    model = gm.flows.affine((3,))
    for data, label in (
        (table, "column 'when' of data"),
        (table.to_numpy(), "column 1 of data"),
        ((table,), r"column 'when' of data\[0\]"),
    ):
        with pytest.warns(UserWarning, match=label + r" lies between 1\.7e\+09 and .*standardise it on the host") as caught:
            fit(data, model)
        assert len(caught) == 1
    with pytest.warns(UserWarning, match="column 0 of data"):
        fit((batch for batch in [time[:, None]] * 2), gm.flows.affine((1,)), loss_fn=pull, params=START)


def test_a_scale_that_float32_resolves_is_passed_over():
    quiet = [X.astype(float), 1e9 * X.astype(float), np.full((24, 2), 7e8) * [1.0, 0.0], 1.7e9 + X[:, :1].astype(np.float32)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in quiet:
            fit({"rows": data}, loss_fn=lambda p, k, b: (p["w"] ** 2, {}), params=START)


def test_float64_needs_no_warning_under_x64(x64):
    data = 1.7e9 + np.arange(24.0)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit(
            data, loss_fn=lambda p, k, b: (p["w"] ** 2 + 0 * b.sum(), {"spread": jnp.std(b)}), params={"w": jnp.zeros(())}
        )
    np.testing.assert_allclose(result.history["spread"], np.std(np.arange(24.0)), rtol=1e-6)


# --- one sentence for each that does not fit -----------------------------------------------------------------------------------


class TensorDataset:
    def __getitem__(self, index):
        return X[index]

    def __len__(self):
        return len(X)


DATA = gm.data.two_moons(jax.random.key(0), 50)
TEN = np.arange(8.0, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("data", "model", "error", "match"),
    [
        (MODEL, X, TypeError, r"fit takes the model first, then the data: write fit\(Flow, data, \.\.\.\)"),
        (X, X, TypeError, "model must be a gm.models.Model, got a ndarray"),
        (DATA, MODEL, TypeError, r"data must be arrays, got a Dataset; pass its \.train or \.validation"),
        (TensorDataset(), MODEL, TypeError, "got a TensorDataset; put it in a loader that makes batches"),
        (
            np.array([[1.0, 0], [np.nan, 0], [2.0, 0], [np.inf, 0]]),
            MODEL,
            ValueError,
            "data has 2 rows with NaN .*first is row 1",
        ),
        (np.arange(8).reshape(4, 2), MODEL, TypeError, "data must be floating point, got int"),
        (np.zeros((4, 3)), MODEL, ValueError, r"data must have shape \(n,\) \+ \(2,\), got \(4, 3\)"),
        (np.zeros(4), MODEL, ValueError, r"got \(4,\)"),
        (np.zeros((0, 2)), MODEL, ValueError, r"data must hold at least one event, got shape \(0, 2\)"),
        (iter(()), MODEL, ValueError, "data is empty, or an iterator at its end"),
        ([X, X, X], MODEL, ValueError, "data must be x alone"),
        ("train.csv", MODEL, TypeError, "data must be an array of numbers, got str"),
        ((X, X), MODEL, ValueError, "data must be x alone, or .*: Flow takes no context"),
        ((X, None, X), MODEL, ValueError, r"the weight of data must be 24 finite numbers .* got shape \(24, 2\)"),
        ((X, None, -np.ones(24)), MODEL, ValueError, "the weight of data must be .* got -1.0 among them"),
        ((X, None, 1j * np.ones(24)), MODEL, TypeError, "the weight of data must be real numbers, got complex128"),
        ((X, None, np.zeros(24)), MODEL, ValueError, "the weight of data must be .* not all 0, got zeros"),
        ((X, None, None, X), MODEL, ValueError, r"data must be x, \(x, context\) or \(x, context, weight\), got a tuple of 4"),
        ({"features": X}, MODEL, ValueError, r"data must be a dict of x and, .* got \['features'\]"),
        (np.stack([X[:, 0], np.ones(24)], 1), MODEL, ValueError, "data: column 1 is constant"),
        (TEN, CONDITIONAL, ValueError, r"data must be a pair \(x, context\), context of shape \(n,\) \+ \(2,\)"),
        ((TEN, TEN), CONDITIONAL, ValueError, r"the context of data must have shape \(8, 2\), got \(8, 1\)"),
        ((TEN, np.full((8, 2), np.nan)), CONDITIONAL, ValueError, "the context of data has 8 rows with NaN"),
        (iter([X, X[:5]]), MODEL, ValueError, "the batches of data must have one size, got 5 rows after 24"),
    ],
)
def test_refuses(data, model, error, match):
    with pytest.raises(error, match=match):
        fit(data, model, num_steps=3)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"x": X, "y": X[:5]}, r"the arrays of data must have as many rows each, got 24 in data\['x'\] and 5 in data\['y'\]"),
        ({"x": X, "rate": 0.1}, r"data\['rate'\] must have a leading axis, the rows, got a scalar"),
        ({}, "data is empty"),
        (np.zeros((0, 3)), "data must hold at least one row"),
    ],
)
def test_refuses_a_pytree_whose_rows_do_not_agree(data, match):
    with pytest.raises(ValueError, match=match):
        fit(data, loss_fn=pull, params=START)


def test_refuses_a_validation_by_its_own_name():
    with pytest.raises(ValueError, match="validation has 1 rows with NaN or infinite values"):
        fit(X, validation=np.array([[np.inf, 0.0]]))
    with pytest.raises(TypeError, match="validation must be arrays, got a Dataset"):
        fit(X, validation=DATA)


def test_a_table_is_refused_by_the_name_of_its_column():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": X[:, 0], "colour": ["red"] * 24})
    with pytest.raises(TypeError, match="data: column 'colour' holds text .*encode it as numbers"):
        fit(table)
    constant = pandas.DataFrame({"a": X[:, 0], "b": 1.0})
    with pytest.raises(ValueError, match="data: column 'b' is constant"):
        fit(constant)
