"""Games whose way is known in closed form: the order of the moves decides, and every player moves as told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import genmod as gm
from genmod.training import GameStep, Player, alternating, extragradient, simultaneous

KEY = jax.random.key(0)
RATE = 0.1
SGD = gm.call(optax.sgd, RATE)
START = {"x": jnp.array(1.0), "y": jnp.array(0.5)}


def bilinear(player, params, key, batch):
    """min over x, max over y of x y."""
    value = params["x"] * params["y"]
    return (value if player == "x" else -value), {}


def play(order, num_steps):
    """(x, y) after each step."""
    step = GameStep(bilinear, (Player("x", SGD), Player("y", SGD)), order)

    def move(state, key):
        state, _ = step(state, key, None)
        return state, (state.params["x"], state.params["y"])

    _, path = jax.jit(lambda: jax.lax.scan(move, step.init(START, KEY, None), jax.random.split(KEY, num_steps)))()
    return np.stack([np.asarray(a, np.float64) for a in path], 1)


def test_simultaneous_updates_rotate_away():
    path = play(simultaneous, 400)
    np.testing.assert_allclose((path**2).sum(1), 1.25 * (1 + RATE**2) ** np.arange(1, 401), rtol=1e-4)
    turned = np.unwrap(np.arctan2(path[:, 1], path[:, 0]))
    np.testing.assert_allclose(np.diff(turned), np.arctan(RATE), rtol=1e-3)


def test_alternating_updates_stay_on_an_ellipse():
    x, y = play(alternating, 400).T
    np.testing.assert_allclose(x**2 + y**2 - RATE * x * y, 1.25 - RATE * 0.5, rtol=1e-4)
    assert np.ptp(x) > 2  # and go round


def test_extragradient_converges():
    path = play(extragradient, 400)
    np.testing.assert_allclose((path**2).sum(1), 1.25 * (1 - RATE**2 + RATE**4) ** np.arange(1, 401), rtol=1e-4)


def test_a_game_by_train_without_data():
    step = GameStep(bilinear, (Player("x", SGD, ema_decay=0.9999), Player("y", SGD)))
    fit = gm.train(step, START, None, key=KEY, num_steps=20, progress=False)
    x, y = play(alternating, 20).T
    np.testing.assert_allclose([fit.params["x"], fit.params["y"]], [x.mean(), y[-1]], rtol=1e-4)
    np.testing.assert_allclose(fit.state.params["x"], x[-1], rtol=1e-4)
    assert set(fit.history) == {"x_loss", "y_loss", "x_grad_norm", "y_grad_norm", "step"}


def mean_seeking(player, params, key, batch, *, step=None):
    """a seeks the mean of the data, b seeks a; c belongs to nobody."""
    gap = params["a"] - batch.mean() if player == "a" else params["b"] - params["a"]
    return 0.5 * gap**2, {f"{player}_step": step}


def test_turns_updates_and_minibatches_by_hand():
    players = Player("a", gm.call(optax.sgd, 0.5), num_updates=3), Player("b", gm.call(optax.sgd, 1.0), clip_norm=0.25)
    step = GameStep(mean_seeking, players)
    assert step.num_batches == 3
    batches = jnp.array([[1.0, 3.0], [4.0, 4.0], [6.0, 8.0]])
    params = {"a": jnp.array(0.0), "b": jnp.array(0.0), "c": jnp.array(9.0)}
    state, metrics = step(step.init(params, KEY, batches), KEY, batches)
    np.testing.assert_allclose(state.params["a"], 4.75)  # 0 -> 1 -> 2.5 -> 4.75
    np.testing.assert_allclose([state.params["b"], state.params["c"]], [0.25, 9.0])
    np.testing.assert_allclose(metrics["a_loss"], np.mean([2.0, 4.5, 10.125]))
    np.testing.assert_allclose([metrics["b_grad_norm"], metrics["b_step"], state.count], [4.75, 0, 1])
    _, metrics = step(state, KEY, batches)
    assert metrics["a_step"] == metrics["b_step"] == 1


def _told(updates, state, params, *, value, grad, value_fn, **_):
    ahead = value_fn(jax.tree.map(lambda p: p + 1.0, params))
    return jax.tree.map(lambda g: value + 10.0 * ahead + 100.0 * g, grad), state


def test_an_optimizer_is_told_the_loss():
    """Those that search along a line want it. Of x y at (1, 1/2): 1/2, at x + 1 it is 1, the slope 1/2; then y in its turn."""
    told = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), _told)
    step = GameStep(bilinear, (Player("x", told), Player("y", told)))
    state, _ = step(step.init(START, KEY, None), KEY, None)
    x = 1 + 0.5 + 10 * 1.0 + 100 * 0.5
    np.testing.assert_allclose([state.params["x"], state.params["y"]], [x, 0.5 - 0.5 * x - 10 * 1.5 * x - 100 * x], rtol=1e-6)


def test_a_state_can_be_donated():
    """No array stands in it twice."""
    step = GameStep(bilinear, (Player("x", SGD, ema_decay=0.5), Player("y", SGD)))
    state = step.init(jax.tree.map(jnp.copy, START), KEY, None)
    move = jax.jit(step.__call__, donate_argnums=0)
    for _ in range(2):
        state, _ = move(state, KEY, None)
    assert state.count == 2


def test_a_game_refuses():
    x, y = Player("x", SGD), Player("y", SGD)
    with pytest.raises(ValueError, match="^players must have different names, and there must be one, got \\['x', 'x'\\]"):
        GameStep(bilinear, (x, x))
    with pytest.raises(TypeError, match="^players must be Players, such as"):
        GameStep(bilinear, ("x", "y"))
    with pytest.raises(ValueError, match="^num_updates above 1 wants order=gm.training.alternating"):
        GameStep(bilinear, (x, Player("y", SGD, num_updates=2)), simultaneous)
    with pytest.raises(TypeError, match="^order must be a function, got 'alternating'"):
        GameStep(bilinear, (x, y), "alternating")
    with pytest.raises(TypeError, match="^optimizer must be one of Optax"):
        Player("x", "adam")
    with pytest.raises(ValueError, match="^ema_decay must be in"):
        Player("x", SGD, ema_decay=1.0)
    with pytest.raises(ValueError, match="^params must be a dict with an entry 'y', that of the player"):
        GameStep(bilinear, (x, y)).init({"x": jnp.zeros(())}, KEY, None)
    gan = gm.models.GAN((2,), gm.densities.Normal((2,)), gm.nets.FlatNet(gm.nets.MLP(()), 2), gm.nets.FlatNet(gm.nets.MLP(()), 1))
    with pytest.raises(ValueError, match=r"^players must be among those of the GAN, \('critic', 'generator'\), got \['x'\]$"):
        GameStep(gan, (x,))
    with pytest.raises(TypeError, match="^game must take the name of a player, and then what a loss takes"):
        GameStep(lambda params, key, batch: (params["x"], {}), (x,))
    for players in ((x,), (y, x)):  # nor that of another player
        with pytest.raises(ValueError, match=f"^the loss of '{players[0].name}' must not name a metric 'x_loss'"):
            step = GameStep(lambda player, params, key, batch: (params["x"], {"x_loss": params["x"]}), players)
            step(step.init(START, KEY, None), KEY, None)
