"""Training steps: the default one against updates worked by hand, a user's own, and what both are refused for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.training import apply_gradients, clip, ema

X = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
START = {"w": jnp.zeros(())}


def train(step, params=None, data=X, num_steps=10, **options):
    params = START if params is None else params
    return gm.train(step, params, data, key=jax.random.key(0), num_steps=num_steps, progress=False, **options)


def bowl(params, key, batch, *, step=None):
    return (params["w"] - 10.0) ** 2, {}


# --- clip, ema, apply_gradients ----------------------------------------------------------------------------------------------


def test_clip_scales_to_the_norm():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    clipped, norm = clip(grads, 1.0)
    assert norm == 5.0
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], 0.8, rtol=1e-6)
    for bound in (None, 7.0):
        same, norm = clip(grads, bound)
        assert norm == 5.0 and all(jax.tree.leaves(jax.tree.map(jnp.array_equal, same, grads)))


@pytest.mark.parametrize("size", [2e29, 2e36, 1e-25, 1e-36, 1.0])
def test_the_norm_is_right_where_squares_overflow_or_vanish(size):
    grads = {"a": size * jnp.array([3.0, 0.0]), "b": -size * jnp.array(4.0)}
    clipped, norm = jax.jit(lambda g: clip(g, 1.0))(grads)
    np.testing.assert_allclose(norm, 5 * size, rtol=1e-6)
    if size > 1:
        np.testing.assert_allclose(clipped["b"], -0.8, rtol=1e-5)


@pytest.mark.parametrize(("bad", "shown"), [(jnp.inf, jnp.inf), (jnp.nan, jnp.nan), (0.0, 0.0)])
def test_the_norm_of_what_is_not_finite_is_not_finite(bad, shown):
    np.testing.assert_array_equal(clip({"a": jnp.array([bad, 0.0])})[1], shown)
    assert clip({})[1] == 0.0


def test_the_norm_of_half_precision_is_taken_in_float32():
    clipped, norm = clip({"a": jnp.full(10_000, 100.0, jnp.bfloat16)}, 1.0)
    np.testing.assert_allclose(norm, 10_000.0, rtol=1e-6)
    assert clipped["a"].dtype == jnp.bfloat16


def test_ema_is_the_mean_at_first_and_keeps_what_is_fixed():
    path = np.array([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0], np.float32)
    average = {"w": jnp.array(7.0), "fixed": gm.Fixed(jnp.arange(3))}  # where it starts does not matter
    for k, w in enumerate(path):
        params = {"w": jnp.array(w), "fixed": gm.Fixed(jnp.arange(3) + k)}
        average = ema(average, params, 0.75, jnp.int32(k))
        if k < 4:
            np.testing.assert_allclose(average["w"], path[: k + 1].mean(), rtol=1e-6)
    expected = path[:4].mean()
    for w in path[4:]:
        expected = 0.75 * expected + 0.25 * w
    np.testing.assert_allclose(average["w"], expected, rtol=1e-6)
    np.testing.assert_array_equal(average["fixed"].tree, np.arange(3) + 6)  # of the newest, and still integers
    assert average["fixed"].tree.dtype == jnp.int32


def test_apply_gradients_leaves_what_is_fixed():
    params = {"w": jnp.array(2.0), "f": gm.Fixed({"mean": jnp.array(3.0), "order": jnp.arange(2)})}
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state = optimizer.init({"w": params["w"], "f": gm.Fixed(None)})
    for grads in ({"w": jnp.array(1.0), "f": gm.Fixed(None)}, {"w": jnp.array(1.0), "f": params["f"]}):
        new, _ = apply_gradients(optimizer, grads, state, params)
        np.testing.assert_allclose(new["w"], 2.0 - 0.1 * (1.0 + 0.5 * 2.0), rtol=1e-5)
        assert new["f"] is params["f"]


# --- the default step ---------------------------------------------------------------------------------------------------------


def linear(params, key, batch):
    return -5.0 * params["w"] + 3.0 * params["v"], {}


def test_clipping_and_averaging_by_hand():
    params = {"w": jnp.zeros(()), "v": jnp.zeros(())}
    result = train(gm.GradientStep(linear, optax.sgd(0.1), 1.0, 0.9), params, num_steps=30, validate_every=10)
    np.testing.assert_allclose(result.history["grad_norm"], np.sqrt(34), rtol=1e-5)  # before clipping
    path = 0.1 * np.arange(1, 31) * 5 / np.sqrt(34)
    np.testing.assert_allclose(result.state.params["w"], path[-1], rtol=1e-5)
    np.testing.assert_allclose(result.state.params["v"], -0.6 * path[-1], rtol=1e-5)
    average = 0.0
    for k, w in enumerate(path):
        average += max(0.1, 1 / (k + 1)) * (w - average)
    np.testing.assert_allclose(result.params["w"], average, rtol=1e-5)
    np.testing.assert_allclose(result.state.ema["v"], -0.6 * average, rtol=1e-5)
    unclipped = train(gm.GradientStep(linear, optax.sgd(0.1), clip_norm=100.0), params, num_steps=30)
    np.testing.assert_allclose(unclipped.params["w"], 15.0, rtol=1e-5)


def test_fixed_arrays_stay_even_under_weight_decay_and_averaging():
    x = 5.0 + 2.0 * X
    model = gm.flows.affine((2,))
    start = model.init(jax.random.key(0), x)
    result = gm.fit(
        model, x, key=jax.random.key(0), params=start, optimizer=optax.adamw(0.1, weight_decay=0.5), num_steps=20,
        ema_decay=0.9, batch_size=32, progress=False,
    )  # fmt: skip

    def split(params):
        nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, gm.Fixed))
        fixed = [leaf for node in nodes if isinstance(node, gm.Fixed) for leaf in jax.tree.leaves(node)]
        return jax.tree.leaves(gm.core.params.trainable(params)), fixed

    for params in (result.params, result.state.params):
        assert len(split(params)[1]) == 2  # mean and scale of the data
        for a, b in zip(split(params)[1], split(start)[1], strict=True):
            np.testing.assert_array_equal(a, b)
        assert all(jnp.abs(a - b).max() > 1e-3 for a, b in zip(split(params)[0], split(start)[0], strict=True))


def test_a_layer_of_the_name_fixed_is_trained():
    def loss(params, key, batch):
        return (params["fixed"]["kernel"] - 10.0) ** 2, {}

    result = train(gm.GradientStep(loss, optax.sgd(0.01)), {"fixed": {"kernel": jnp.zeros(())}}, num_steps=7)
    np.testing.assert_allclose(result.params["fixed"]["kernel"], 10 * (1 - 0.98**7), rtol=1e-5)


def test_integers_among_the_parameters_want_to_be_fixed():
    def loss(params, key, batch):
        order = params["order"].tree if isinstance(params["order"], gm.Fixed) else params["order"]
        return jnp.sum((params["w"] - jnp.arange(3.0)[order]) ** 2), {}

    params = {"w": jnp.zeros(3), "order": jnp.array([2, 0, 1])}
    with pytest.raises(TypeError, match=r"params\['order'\] is int32, which has no gradient; put .* in a Fixed"):
        train(gm.GradientStep(loss, optax.sgd(0.1)), params)
    result = train(gm.GradientStep(loss, optax.sgd(0.5)), params | {"order": gm.Fixed(params["order"])}, num_steps=1)
    np.testing.assert_allclose(result.params["w"], [2.0, 0.0, 1.0])
    assert result.params["order"].tree.dtype == jnp.int32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_parameters_keep_their_dtypes(dtype):
    params = {"half": jnp.zeros(2, dtype), "single": jnp.zeros(2)}

    def loss(params, key, batch):
        return sum(jnp.sum((p.astype(jnp.float32) - 1.0) ** 2) for p in params.values()), {}

    counts = np.arange(12).reshape(6, 2)
    result = train(gm.GradientStep(loss, optax.adam(0.1), 1.0, 0.9), params, counts)
    for tree in (result.params, result.state.params):
        assert tree["half"].dtype == dtype and tree["single"].dtype == jnp.float32


def test_a_python_number_is_a_parameter():
    result = train(gm.GradientStep(bowl, optax.sgd(0.01)), {"w": 0.0}, num_steps=7)
    np.testing.assert_allclose(result.params["w"], 10 * (1 - 0.98**7), rtol=1e-5)


def test_a_state_can_be_donated():
    """No array stands in it twice."""
    step = gm.GradientStep(bowl, optax.sgd(0.25), ema_decay=0.5)
    state, _ = jax.jit(step.__call__, donate_argnums=0)(step.init({"w": jnp.array(8.0)}, None, None), None, None)
    assert state.params["w"] == state.ema["w"] == 9.0


def test_lbfgs_solves_a_quadratic():
    def rosenbrock(params, key, batch):
        x, y = params["xy"]
        return (1.0 - x) ** 2 + 100.0 * (y - x**2) ** 2, {}

    for optimizer in (optax.lbfgs(), gm.call(optax.lbfgs)):
        result = train(gm.GradientStep(rosenbrock, optimizer), {"xy": jnp.array([-1.2, 1.0])}, num_steps=60)
        np.testing.assert_allclose(result.params["xy"], 1.0, atol=1e-3)


def test_reduce_on_plateau_sees_the_value():
    def flat(params, key, batch):
        return 1.0 + 0.0 * params["w"], {}

    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2, cooldown=0))
    result = train(gm.GradientStep(flat, optimizer), num_steps=12)
    scale = optax.tree_utils.tree_get(result.state.opt_state, "scale")
    assert scale < 0.2  # halved again and again: the value does not fall


def test_an_optimizer_may_be_a_call():
    direct = train(gm.GradientStep(bowl, optax.adam(0.1)))
    called = train(gm.GradientStep(bowl, gm.call(optax.adam, 0.1)))
    assert direct.params["w"] == called.params["w"]
    assert gm.GradientStep(bowl, optax.adam(0.1)) == gm.GradientStep(bowl, gm.call(optax.adam, 0.1))
    assert gm.GradientStep(bowl, optax.adam(0.1)) != gm.GradientStep(bowl, optax.adam(0.2))
    several = [optax.MultiSteps(optax.adam(0.1), n).gradient_transformation() for n in (2, 4)]
    assert gm.GradientStep(bowl, several[0]) != gm.GradientStep(bowl, several[1])


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"optimizer": optax.adam}, TypeError, r"optimizer must be one of Optax, such as optax\.adam\(1e-3\)"),
        ({"optimizer": 1e-3}, TypeError, "optimizer must be one of Optax"),
        ({"objective": 3}, TypeError, "a loss must be a Model or a function"),
        (
            {"objective": lambda params, key, x, context: 0.0},
            TypeError,
            r"a loss must take \(params, key, batch, \*, step=None\)",
        ),
        ({"objective": lambda params: 0.0}, TypeError, "a loss must take"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be > 0, got 0"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay must be in \[0, 1\), got 1"),
    ],
)
def test_a_gradient_step_is_refused_at_construction(fields, error, match):
    with pytest.raises(error, match=match):
        gm.GradientStep(**{"objective": bowl, "optimizer": optax.sgd(0.1)} | fields)


@pytest.mark.parametrize(
    ("metrics", "match"),
    [
        ({"loss": 1.0}, "a model's loss must not name a metric 'loss': 'loss', 'grad_norm', 'step' and names that begin with"),
        ({"grad_norm": 1.0}, "must not name a metric 'grad_norm'"),
        ({"step": 1.0}, "must not name a metric 'step'"),
        ({"validation_nll": 1.0}, "must not name a metric 'validation_nll'"),
        ({"per_row": np.ones(3)}, r"must give scalars as metrics, got 'per_row' of shape \(3,\); take its mean"),
    ],
)
def test_metrics_of_a_loss_are_refused(metrics, match):
    with pytest.raises(ValueError, match=match):
        train(gm.GradientStep(lambda params, key, batch: (params["w"] ** 2, metrics), optax.sgd(0.1)))


@pytest.mark.parametrize(
    ("result", "error", "match"),
    [
        (lambda w: w**2, TypeError, r"a loss must return \(loss, metrics\)"),
        (lambda w: (w * jnp.ones(3), {}), ValueError, r"a loss must be a scalar, got shape \(3,\); take the mean"),
        (lambda w: (w, {}, {}), TypeError, r"a loss must return \(loss, metrics\)"),
    ],
)
def test_a_loss_that_returns_something_else_is_refused(result, error, match):
    with pytest.raises(error, match=match):
        train(gm.GradientStep(lambda params, key, batch: result(params["w"]), optax.sgd(0.1)))


def test_metrics_of_every_kind_of_number_are_averaged():
    def loss(params, key, batch):
        return params["w"] ** 2, {"flag": params["w"] > 2.5, "count": 3, "half": jnp.bfloat16(1.5)}

    result = train(gm.GradientStep(loss, optax.sgd(-0.5)), {"w": jnp.ones(())}, num_steps=4)  # w doubles: 1, 2, 4, 8
    assert result.history["flag"] == [0.5] and result.history["count"] == [3.0] and result.history["half"] == [1.5]


# --- a step of one's own ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chain(gm.Step):
    """Keeps a running state beside the parameters; forgets to count, which is not its business."""

    def init(self, params, key, batch):
        return params, jnp.zeros(()) + 0 * batch.mean()

    def __call__(self, state, key, batch):
        params, chain = state
        chain = 0.5 * chain + batch.mean()
        return (params, chain), {"loss": chain}

    def evaluation_params(self, state):
        return state[0]


TEN = np.full((8, 1), 10.0, np.float32)


def test_own_step_keeps_its_state():
    result = train(Chain(), data=TEN, num_steps=3)
    np.testing.assert_allclose(result.state[1], 17.5)
    assert result.step == 3 and result.params is not None
    model = gm.flows.affine((1,))
    fitted = gm.fit(model, TEN, key=jax.random.key(0), step=Chain(), params=START, num_steps=3, progress=False)
    np.testing.assert_allclose(fitted.state[1], 17.5)


def test_own_step_is_resumed_bit_for_bit(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Walk(gm.Step):
        """A chain with a key of its own in the state."""

        def init(self, params, key, batch):
            return {"params": params, "chain": batch, "key": key}

        def __call__(self, state, key, batch):
            own, use = jax.random.split(state["key"])
            chain = state["chain"] + 0.1 * jax.random.normal(use, batch.shape) + 0.01 * batch
            params = {"w": state["params"]["w"] + chain.mean()}
            return {"params": params, "chain": chain, "key": own}, {"chain_loss": chain.mean()}

        def evaluation_params(self, state):
            return state["params"]

    options = {"data": X, "batch_size": 16, "validate_every": 5}
    whole = train(Walk(), num_steps=20, **options)
    for num_steps in (5, 15, 20):
        resumed = train(Walk(), num_steps=num_steps, checkpoint=tmp_path, **options)
    for name in ("params", "chain"):
        for a, b in zip(*map(jax.tree.leaves, (whole.state[name], resumed.state[name])), strict=True):
            np.testing.assert_array_equal(a, b)
    assert jnp.array_equal(jax.random.key_data(whole.state["key"]), jax.random.key_data(resumed.state["key"]))
    np.testing.assert_array_equal(whole.history["chain_loss"], resumed.history["chain_loss"])


def test_own_step_needs_not_inherit():
    @dataclasses.dataclass(frozen=True)
    class Plain:
        rate: float

        def init(self, params, key, batch):
            return params

        def __call__(self, state, key, batch):
            return {"w": state["w"] + self.rate}, {"loss": state["w"]}

        def evaluation_params(self, state):
            return state

    np.testing.assert_allclose(train(Plain(0.5), num_steps=4).params["w"], 2.0)


def test_a_step_may_take_several_minibatches():
    @dataclasses.dataclass(frozen=True)
    class Critic(gm.Step):
        num_batches: int = 3

        def init(self, params, key, batch):
            assert batch.shape == (3, 4, 1)
            return params

        def __call__(self, state, key, batch):
            assert batch.shape == (3, 4, 1)
            sums = batch.sum((1, 2))
            return state, {"loss": jnp.zeros(()), "a": sums[0], "b": sums[1], "c": sums[2]}

        def evaluation_params(self, state):
            return state

    x = 2.0 ** np.arange(12, dtype=np.float32)[:, None]
    result = train(Critic(), data=x, batch_size=4, num_steps=5, validate_every=1)
    sums = np.stack([result.history[name] for name in "abc"], 1)
    np.testing.assert_array_equal(sums.sum(1), 2.0**12 - 1)  # three minibatches are an epoch of twelve rows
    assert len({tuple(row) for row in sums}) > 1
    streamed = train(Critic(), data=iter(np.arange(200, dtype=np.float32).reshape(50, 4, 1)), num_steps=5, validate_every=1)
    first = np.arange(200, dtype=np.float32).reshape(50, 4).sum(1)[:15].reshape(5, 3)
    np.testing.assert_array_equal(np.stack([streamed.history[name] for name in "abc"], 1), first)


def test_the_evaluation_parameters_are_validated_and_returned():
    @dataclasses.dataclass(frozen=True)
    class Players(gm.Step):
        def init(self, params, key, batch):
            return {"generator": params, "critic": params}

        def __call__(self, state, key, batch):
            moved = {"generator": {"w": state["generator"]["w"] + 1.0}, "critic": {"w": state["critic"]["w"] - 1.0}}
            return moved, {"generator_loss": jnp.zeros(()), "critic_loss": jnp.zeros(())}

        def evaluation_params(self, state):
            return state["generator"]

    def distance(params, key, batch):
        return {"distance": (params["w"] - 3.0) ** 2}

    options = {"validation": X, "validate": distance, "monitor": "distance", "validate_every": 1}
    result = train(Players(), num_steps=6, **options)
    assert result.params["w"] == 3.0 and result.last_params["w"] == 6.0
    with pytest.raises(ValueError, match=r"validation with a step of your own wants validate=fn"):
        train(Players(), validation=X)


def test_a_model_without_validate_is_validated_by_its_loss():
    model = gm.flows.affine((2,))
    params = model.init(jax.random.key(0), X)
    result = gm.fit(model, X, key=jax.random.key(0), step=Chain(), params=params, validation=X, num_steps=1, progress=False)
    np.testing.assert_allclose(result.history["validation_loss"], model.loss(params, None, X)[0], rtol=1e-5)


class Mutable:
    def __init__(self):
        self.rates = [0.1]

    __hash__ = None

    def init(self, params, key, batch):
        return params

    def __call__(self, state, key, batch):
        return state, {"loss": 0.0}

    def evaluation_params(self, state):
        return state


class NoEvaluation:
    def init(self, params, key, batch):
        return params

    def __call__(self, state, key, batch):
        return state, {"loss": 0.0}


@dataclasses.dataclass(frozen=True)
class Says(gm.Step):
    """Reports and returns what it is told to."""

    report: object
    change: object = None
    num_batches: object = 1

    def init(self, params, key, batch):
        return params

    def __call__(self, state, key, batch):
        return state if self.change is None else self.change(state), self.report()

    def evaluation_params(self, state):
        return state


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (Mutable(), TypeError, "step must be hashable, a frozen dataclass of plain values, got a Mutable"),
        (NoEvaluation(), TypeError, "step must be a gm.Step, or have its methods, got a NoEvaluation without evaluation_params"),
        (Chain, TypeError, r"step must be an object, got the class Chain; write Chain\(\.\.\.\)"),
        (bowl, TypeError, "got a function without init"),
        (Says(lambda: {"loss": 0.0}, num_batches=0), ValueError, "num_batches of Says must be an integer >= 1, got 0"),
        (
            Says(lambda: {"energy": 0.0}),
            ValueError,
            r'must report a metric "loss", or one that ends in "_loss", got \[\'energy\'\]',
        ),
        (Says(lambda: {"loss": 0.0, "step": 1}), ValueError, "the step Says must not name a metric 'step'"),
        (Says(lambda: {"loss": 0.0, "validation_x": 1}), ValueError, "must not name a metric 'validation_x'"),
        (Says(lambda: {"loss": jnp.zeros(3)}), ValueError, r"the step Says must give scalars .*'loss' of shape \(3,\)"),
        (Says(lambda: 0.0), TypeError, "the step Says must give its metrics as a dict of scalars, got float"),
        (
            Says(lambda: {"loss": 0.0}, lambda state: {"w": jnp.zeros(2)}),
            TypeError,
            r"state\['w'\] was float32\[\] and is float32\[2\]",
        ),
        (Says(lambda: {"loss": 0.0}, lambda state: state | {"v": jnp.zeros(2)}), TypeError, r"state\['v'\] was not there"),
    ],
)
def test_an_unfit_step_is_refused(step, error, match):
    with pytest.raises(error, match=match):
        train(step)


def test_a_step_that_is_no_frozen_dataclass_is_refused():
    class Loose(gm.Step):
        def init(self, params, key, batch): ...
        def __call__(self, state, key, batch): ...
        def evaluation_params(self, state): ...

    with pytest.raises(TypeError, match="Loose must be a frozen dataclass"):
        Loose()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss_fn": bowl}, r"loss_fn belongs to the default step.*validation with step=\.\.\. is validate=\.\.\."),
        ({"optimizer": optax.sgd(0.1)}, "optimizer, clip_norm, ema_decay, max_skips belong to the default step"),
        ({"clip_norm": 1.0}, "belong to the default step"),
        ({"ema_decay": 0.9}, "belong to the default step"),
    ],
)
def test_what_belongs_to_the_default_step_is_refused_beside_another(options, match):
    with pytest.raises(ValueError, match=match):
        gm.fit(gm.flows.affine((2,)), X, key=jax.random.key(0), step=Chain(), params=START, progress=False, **options)


def test_a_nan_in_a_named_loss_of_a_step_stops_the_run():
    with pytest.raises(FloatingPointError, match="stopped at step 0: critic_loss = nan"):
        train(Says(lambda: {"generator_loss": 0.0, "critic_loss": jnp.nan}))
