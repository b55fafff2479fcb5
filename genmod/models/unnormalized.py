"""Models known up to a constant, p(x) = f(x) / Z, with a Markov chain that leaves p invariant: what Boltzmann machines are.

    machine = gm.models.RestrictedBoltzmannMachine(BernoulliUnits((28, 28)), BernoulliUnits((500,)))
    step = gm.training.ContrastiveStep(machine, optax.sgd(0.05), gm.training.PersistentChains(100))
    fit = gm.fit(machine, x, key=key, step=step)
    machine.sample(fit.params, key, (64,))                          # the ends of chains
    gm.inference.normalizer_bracket(machine, fit.params, x, key=key)  # log Z from both sides

`Normalized(machine)` is the same law with its Z, where the states of one side are few.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod import losses
from genmod.core.batching import row_keys, vmap_events
from genmod.core.checks import check_context, check_parts
from genmod.core.distribution import Likelihood, call_program
from genmod.core.enumeration import draw_index, log_sum
from genmod.core.keys import check_key
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.models.base import Model
from genmod.samplers import Kernel, moved
from genmod.samplers.base import walk


class Configuration(NamedTuple):
    """Where a chain is.

    Attributes:
      x: the event. context: what belongs to it, of a model of pairs; None of others.
      hidden: units that the chain carries along; None where they are summed out, or drawn anew at every step.
    """

    x: Any
    context: Any = None
    hidden: Any = None


class States(NamedTuple):
    """All states of one side of a model, by which its Z is summed.

    Attributes:
      num: how many. log_mass_fn: i -> log of the mass of the i-th, all else summed out.
      draw_fn: (key, i) -> a draw of x given the i-th.
    """

    num: int
    log_mass_fn: Callable[[Array], Array]
    draw_fn: Callable[[Key, Array], Array]


class UnnormalizedModel(Model, abc.ABC):
    """p(x) = f(x) / Z of unknown Z, with a Markov chain that leaves it invariant. `log_prob` is log f.

    With a context f is that of the PAIR (x, context), and the chain moves both: `log_prob` of one x says which context is likely.
    `sample` holds the context that it is given.

    Attributes:
      num_sweeps: steps of the chain whose end is a draw.
    """

    num_sweeps: int  # a field: a subclass says it

    likelihood = Likelihood.UNNORMALIZED
    reparameterized = False
    loss_measures_fit = False

    @abc.abstractmethod
    def start_one(self, params: Params, key: Key, x: Array | None = None, context: Context = None) -> Configuration:
        """Where ONE chain begins: at x and context, each at random where it is None; hidden units are drawn given x."""

    @abc.abstractmethod
    def kernel(self, params: Params, held: Configuration | None = None) -> Kernel:
        """The kernel of ONE chain, which leaves p invariant; `held`: masks of the entries that stay where they are."""

    @abc.abstractmethod
    def log_density_one(self, params: Params, configuration: Configuration) -> Array:
        """log f of ONE configuration, in nats: that of its event, where the chain carries no hidden units."""

    # --- optional hooks: what a model has not says so ---------------------------------------------------------------------------

    def states(self, params: Params, context: Context = None) -> States:
        """The states by which Z is summed, of pairs or of x with this ONE context. Raises ValueError for too many."""
        raise NotImplementedError(f"{type(self).__name__} cannot be summed over its states")

    def reference(self, params: Params, x: Array, context: Context = None) -> tuple[Params, Array]:
        """(Parameters, shaped like these, of a law near that of rows x, its log Z), where annealing to `params` begins.

        Chains that begin at random are exact draws of that law, and on the straight line between are parameters, too.
        """
        raise NotImplementedError(f"{type(self).__name__} has no law of known Z from which annealing could begin")

    def offsets_one(self, params: Params, configuration: Configuration) -> Any:
        """The units of ONE configuration, about whose means parameters may be `centred`; None: there is nothing to centre."""
        return None

    def centred(self, params: Params, offsets: Any) -> Params:
        """The same law in parameters about these offsets."""
        return params

    def uncentred(self, params: Params, offsets: Any) -> Params:
        """The inverse of `centred`; by default that at the negative offsets."""
        return self.centred(params, jax.tree.map(jnp.negative, offsets))

    # --- what all have ----------------------------------------------------------------------------------------------------------

    def log_normalizer(self, params: Params, context: ArrayLike | None = None) -> Array:
        """log Z in nats, by `states`: of all pairs, or of all x with this ONE context. Compiled, and differentiable."""
        return call_program(_log_normalizer, self, params, self, self._given(context, ()))

    def impute(self, params: Params, key: Key, x: ArrayLike, missing: ArrayLike, context: ArrayLike | None = None) -> Array:
        """x with draws of what is missing given all else: the ends of chains of `num_sweeps` steps. Compiled.

        Args:
          x: (n,) + event_shape, with any valid values where they are missing. missing: bools of the same shape.
          context: (n,) + context_shape; None: not known, and drawn along.

        Raises ValueError or TypeError for arrays that do not fit.
        """
        x, missing = jnp.asarray(self.event.check("x", x, batched=True)), jnp.asarray(missing)
        if missing.dtype != bool or missing.shape != x.shape:
            raise ValueError(f"missing must be bools of shape {x.shape}, that of x, got {missing.dtype} of {missing.shape}")
        return call_program(_impute, self, params, self, check_key(key), x, missing, self._given(context, x.shape[:1]))

    def configurations(self, params: Params, key: Key, x: Array, context: Context = None) -> Configuration:
        """Where chains begin at rows x, with a leading axis of rows."""
        axes = (None, 0, 0, None if context is None else 0)
        return vmap_events(self.start_one, axes)(params, row_keys(key, x.shape[0]), x, context)

    def random_configurations(self, params: Params, key: Key, num: int, context: Context = None) -> Configuration:
        """Where `num` chains begin at random, with a leading axis of chains; context: that of each, (num,) + context_shape."""
        start = jax.vmap(lambda key, context: self.start_one(params, key, None, context), (0, None if context is None else 0))
        return start(jax.random.split(key, num), context)

    def loss(self, params, key, batch, *, step=None):
        """Contrastive divergence of one step; `training.ContrastiveStep` has more steps, and chains that persist."""
        x, context, weight = self.read(batch)
        keys = jax.random.split(key)
        held = jax.lax.stop_gradient(params)
        data = self.configurations(held, keys[0], x, context)
        samples, _ = moved(keys[1], self.kernel(held), data)
        weights = {"weight": weight, "sample_weight": weight}  # a chain counts as the row where it began
        return losses.contrast(lambda row: self.log_density_one(params, row), data, samples, **weights)

    def sample_one(self, params, key, context=None):
        begin, end = jax.random.split(key)
        held = None if context is None else Configuration(jnp.array(False), jnp.array(True))
        return self._end(params, end, self.start_one(params, begin, None, context), held).x

    def _end(self, params: Params, key: Key, begin: Configuration, held: Configuration | None) -> Configuration:
        kernel = self.kernel(params, held)
        return walk(kernel.step, kernel.init(begin), jax.random.split(key, self.num_sweeps))[0].position

    def _given(self, context: Any, batch: Shape) -> Context:
        return None if context is None else check_context(type(self).__name__, context, self.context_shape, batch=batch)


@dataclasses.dataclass(frozen=True)
class Normalized(Model):
    """An `UnnormalizedModel` with its Z, by the sum over the states of one side: EXACT, with exact draws.

    Its parameters are those of the model. The loss is -log p of the data, of pairs (x, context) where there are contexts; a
    training step costs the whole sum, and so does a context. With contexts `log_prob` is that of x given the context: a mean of
    it is not the training loss.

    Attributes:
      model: a machine of at most 2^20 states on one side; of a `BoltzmannMachine`, of all its bits together.
    """

    model: UnnormalizedModel
    reparameterized = False

    def __post_init__(self):
        check_parts(self, model=UnnormalizedModel)
        super().__post_init__()

    @property
    def event(self):
        return self.model.event

    @property
    def context_shape(self):
        return self.model.context_shape

    def _init(self, key, x, context):
        return self.model._init(key, x, context)

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.model.read(batch)
        axes = (None, 0, None if context is None else 0)
        log_f = vmap_events(self.model.log_prob_one, axes)(params, x, context)
        return losses.negative_log_likelihood(lambda _: log_f - self.model.log_normalizer(params), x, weight=weight)

    def log_prob_one(self, params, x, context=None, key=None):
        return self.model.log_prob_one(params, x, context) - self.model.log_normalizer(params, context)

    def sample_one(self, params, key, context=None):
        keys, states = jax.random.split(key), self.model.states(params, context)
        return states.draw_fn(keys[1], draw_index(keys[0], states.log_mass_fn, states.num))


@functools.partial(jax.jit, static_argnums=0)
def _log_normalizer(model, params, context):
    states = model.states(params, context)
    return log_sum(states.log_mass_fn, states.num)


@functools.partial(jax.jit, static_argnums=0)
def _impute(model, params, key, x, missing, context):
    def one(key, x, missing, context):
        begin, fill, end = jax.random.split(key, 3)
        guess = model.start_one(params, begin, None, context)
        start = model.start_one(params, fill, jnp.where(missing, guess.x, x.astype(guess.x.dtype)), guess.context)
        held = Configuration(~missing, None if guess.context is None else jnp.array(context is not None))
        return model._end(params, end, start, held).x

    axes = (0, 0, 0, None if context is None else 0)
    return vmap_events(one, axes)(row_keys(key, x.shape[0]), x, missing, context)
