"""Games: several players, each of which moves its own part of the parameters to lower a loss of its own.

    def bilinear(player, params, key, batch):           # min over x, max over y of x y
        value = params["x"] * params["y"]
        return (value if player == "x" else -value), {}

    sgd = gm.call(optax.sgd, 0.1)
    step = GameStep(bilinear, (Player("x", sgd), Player("y", sgd)), order=alternating)
    gm.train(step, {"x": jnp.ones(()), "y": jnp.ones(())}, None, key=key, num_steps=1_000)

The order of the moves decides where this game goes, at a rate h (Gidel et al. 2019, arXiv:1802.10551, sec. 3; Zhang & Yu 2020,
arXiv:1908.05699); its equilibrium is (0, 0):

    simultaneous    both at the same point     |(x, y)|^2 grows by 1 + h^2 at each step, and rotates
    alternating     one after the other        stays on an ellipse, x^2 + y^2 - h x y, for ever
    extragradient   both, with the gradients of the point where these would lead: shrinks by 1 - h^2 + h^4
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_count, check_function
from genmod.core.description import Description
from genmod.core.params import trainable, with_trainable
from genmod.core.types import Array, Key, Params
from genmod.models.base import GameModel
from genmod.training.reports import check_names
from genmod.training.step import GradientStep, Step, apply_gradients, check_trainable, checked_loss, clip, ema, takes_step

PlayerLoss = Callable[..., tuple[Array, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Player(Description):
    """How one player moves.

    Attributes:
      name: its parameters are params[name].
      optimizer: any of Optax, or `gm.call(optax.adam, 1e-3)`. Different rates of the players make two time scales (Heusel et al.
        2017, arXiv:1706.08500). Those that search along a line (L-BFGS) do so from the point of the gradient, which in the
        `extragradient` order is not where the player stands.
      num_updates: in its turn, each on a minibatch of its own; above 1 in the `alternating` order alone.
      clip_norm, ema_decay: of its gradient and its parameters, as in `GradientStep`; the average takes one value at each step.
    """

    name: str
    optimizer: Any
    num_updates: int = 1
    clip_norm: float | None = None
    ema_decay: float | None = None

    def __post_init__(self):
        plain = GradientStep(_nothing, self.optimizer, self.clip_norm, self.ema_decay)  # which checks them
        object.__setattr__(self, "optimizer", plain.optimizer)
        check_count(num_updates=self.num_updates)
        super().__post_init__()


class GameState(NamedTuple):
    """Where a game stands: all parameters, the optimizers' states and the averages by player, the number of steps."""

    params: dict[str, Params]
    opt_states: dict[str, Any]
    averages: dict[str, Params]
    count: Array  # type: ignore[assignment]


class _Found(NamedTuple):
    """Of a player's loss: its gradient, clipped, its value, and the loss as a function of its `trainable` parameters."""

    grads: Params
    value: Array
    value_fn: Callable[[Params], Array]


Moved = tuple[GameState, dict[str, Array]]


def alternating(step: "GameStep", state: GameState, key: Key, batch: Any) -> Moved:
    """One player after the other, each `num_updates` times, sees where those before it went."""
    metrics = {}
    for i, player in enumerate(step.players):
        state, more = _turn(step, player, state, jax.random.fold_in(key, i), batch)
        metrics |= more
    return state, metrics


def simultaneous(step: "GameStep", state: GameState, key: Key, batch: Any) -> Moved:
    """All players at once, from the same point."""
    return _together(step, state, state.params, key, batch)


def extragradient(step: "GameStep", state: GameState, key: Key, batch: Any) -> Moved:
    """All at once, by the gradients at the point to which `simultaneous` would lead, on the same minibatch (Korpelevich 1976).

    Optimizers with moments take in these gradients alone.
    """
    ahead, _ = _together(step, state, state.params, key, batch)
    return _together(step, state, ahead.params, key, batch)


@dataclasses.dataclass(frozen=True)
class GameStep(Step):
    """One step of a game: each player moves once, or `num_updates` times.

    Attributes:
      game: a `GameModel` such as a `gm.models.GAN`, or a function (player, params, key, batch, *, step=None) -> (loss, metrics).
      players: in the order of their turns. One that is left out stays where it is: so a critic learns all it can of a generator
        that is trained.
      order: `alternating`, `simultaneous` or `extragradient`.

    Parameters are a dict with an entry for each player; what belongs to nobody stays. Those to evaluate are the averages of the
    players that have one, and the last of the others. Metrics are means over a player's updates: its "NAME_loss" and
    "NAME_grad_norm", and what its loss reports. Of a name that several report the last in their order stands.

    Raises ValueError for players who are not those of the game, or two of one name, and for several updates in an order that has
    no turns; TypeError for another kind of game, player or order.
    """

    game: GameModel | PlayerLoss
    players: tuple[Player, ...]
    order: Callable[["GameStep", GameState, Key, Any], Moved] = alternating

    def __post_init__(self):
        object.__setattr__(self, "players", tuple(self.players))
        check_function(game=self.player_loss, order=self.order)
        for player in self.players:
            if not isinstance(player, Player):
                raise TypeError(f"players must be Players, such as gm.training.Player('critic', optimizer), got {player!r}")
        names = [player.name for player in self.players]
        check(len(set(names)) == len(names) > 0, f"players must have different names, and there must be one, got {names}")
        if isinstance(self.game, GameModel) and not set(names) <= set(self.game.players):
            raise ValueError(f"players must be among those of the {type(self.game).__name__}, {self.game.players}, got {names}")
        if self.order is not alternating and self.num_batches > 1:
            raise ValueError("num_updates above 1 wants order=gm.training.alternating: where all move at once there are no turns")
        super().__post_init__()
        _ = self._takes_step

    @property
    def player_loss(self) -> PlayerLoss:
        """(player, params, key, batch) -> (loss, metrics) of the game."""
        return self.game.player_loss if isinstance(self.game, GameModel) else self.game

    @property
    def reads_events(self) -> bool:
        return isinstance(self.game, GameModel)

    @property
    def num_batches(self) -> int:
        """As many as the player with the most updates wants; the others take the first of them."""
        return max(player.num_updates for player in self.players)

    @functools.cached_property
    def _takes_step(self) -> bool:
        try:
            return takes_step(functools.partial(self.player_loss, self.players[0].name))
        except TypeError as error:
            raise TypeError(f"game must take the name of a player, and then what a loss takes: {error}") from None

    def init(self, params, key, batch):
        for player in self.players:
            if not isinstance(params, dict) or player.name not in params:
                raise ValueError(f"params must be a dict with an entry {player.name!r}, that of the player")
            check_trainable(params[player.name])
        opt_states = {player.name: player.optimizer.init(trainable(params[player.name])) for player in self.players}
        averaged = {player.name: params[player.name] for player in self.players if player.ema_decay is not None}
        averages = jax.tree.map(jnp.copy, averaged)  # no array twice: a state may be donated
        return GameState(params, opt_states, averages, jnp.zeros((), jnp.int32))

    def __call__(self, state, key, batch):
        after, metrics = self.order(self, state, key, batch)
        averages = {}
        for player in self.players:
            if player.ema_decay is not None:
                before = state.averages[player.name]
                averages[player.name] = ema(before, after.params[player.name], player.ema_decay, state.count)
        return after._replace(averages=averages, count=state.count + 1), metrics

    def evaluation_params(self, state):
        return state.params | state.averages


def _together(step: GameStep, state: GameState, at: dict[str, Params], key: Key, batch: Any) -> Moved:
    """All players move from where they are by their gradients at other parameters, `at`."""
    after, metrics = state, {}
    for i, player in enumerate(step.players):
        found, more = _gradient(step, player, at, jax.random.fold_in(key, i), batch, state.count)
        after, metrics = _moved(step, player, after, found), metrics | more
    return after, metrics


def _turn(step: GameStep, player: Player, state: GameState, key: Key, batches: Any) -> Moved:
    """The updates of one player."""

    def update(state, drawn):
        found, metrics = _gradient(step, player, state.params, drawn[0], drawn[1], state.count)
        return _moved(step, player, state, found), metrics

    if step.num_batches == 1:
        return update(state, (key, batches))
    num = player.num_updates
    own = jax.tree.map(lambda a: a[:num], batches)
    state, metrics = jax.lax.scan(update, state, (jax.random.split(key, num), own))
    return state, {name: metric.mean() for name, metric in metrics.items()}


def _gradient(
    step: GameStep, player: Player, params: dict[str, Params], key: Key, batch: Any, count: Array
) -> tuple[_Found, dict[str, Array]]:
    """(what an optimizer is told of a player's loss in its own parameters, metrics)."""
    own = params[player.name]
    options = {"step": count} if step._takes_step else {}

    def objective(trained):
        seen = params | {player.name: with_trainable(own, trained)}
        return checked_loss(step.player_loss(player.name, seen, key, batch, **options))

    (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(trainable(own))
    grads, norm = clip(grads, player.clip_norm)
    reserved = [(f"{other.name}_loss", f"{other.name}_grad_norm") for other in step.players]
    check_names(f"the loss of {player.name!r}", metrics, sum(reserved, ()))
    given = {f"{player.name}_loss": loss, f"{player.name}_grad_norm": norm}
    return _Found(grads, loss, lambda trained: objective(trained)[0]), metrics | given


def _moved(step: GameStep, player: Player, state: GameState, found: _Found) -> GameState:
    name, (grads, value, value_fn) = player.name, found
    own, opt_state = apply_gradients(
        player.optimizer, grads, state.opt_states[name], state.params[name], value=value, value_fn=value_fn
    )
    if isinstance(step.game, GameModel):
        own = step.game.after_update(name, own)
    return state._replace(params=state.params | {name: own}, opt_states=state.opt_states | {name: opt_state})


def _nothing(params: Params, key: Key, batch: Any) -> tuple[Array, dict[str, Array]]:
    return jnp.zeros(()), {}
