"""Training of models known up to a constant, by samples of their own chains:

    grad E_data[-log p] = E_p[grad log f] - E_data[grad log f]                (`losses.contrast`)

Where the chains begin is what tells the algorithms apart:

    DataChains        at the data of the batch: contrastive divergence (Hinton 2002, 10.1162/089976602760128018)
    FreshChains       at random, at every step (Liao et al. 2022, arXiv:2210.10284)
    PersistentChains  where they were (Tieleman 2008, 10.1145/1390156.1390290)
    TemperedChains    where they were, with replicas at higher temperatures (Desjardins et al. 2010)
    ReplayChains      where some of many were, others at random (Du & Mordatch 2019, arXiv:1903.08689; `training.replay`)

The parameters are trained about the means of the units (Melchior, Fischer & Wiskott 2016, arXiv:1311.1354): the gradient is then
the same for a bit and its complement. Those of Gaussian units are trained in units of their scales, too: then a step is the same
for data in any unit and about any origin. They are stored as the model has them.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod import losses
from genmod.core.checks import check, check_count, check_parts
from genmod.core.description import Description
from genmod.core.params import interpolated, trainable, with_trainable
from genmod.core.types import Array, Key, Params
from genmod.models.unnormalized import Configuration, UnnormalizedModel
from genmod.samplers import moved, parallel_tempering
from genmod.training.step import GradientStep, Step, apply_gradients, check_trainable, clip, ema

KernelOf = Callable[[Any, Params], Any]


class Chains(Description, abc.ABC):
    """Where the samples of a step come from. States and configurations have a leading axis of chains."""

    def __post_init__(self):
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        check_count(**{name: getattr(self, name) for name in names if name.startswith("num_")})
        super().__post_init__()

    @abc.abstractmethod
    def init(self, model: UnnormalizedModel, params: Params, key: Key, data: Configuration, weight: Array | None = None) -> Any:
        """The state before the first step, a pytree; `data`: the configurations of a batch, `weight`: of its rows."""

    @abc.abstractmethod
    def draw(
        self, model: UnnormalizedModel, params: Params, key: Key, state: Any, data: Configuration, weight: Array | None = None
    ) -> tuple[Any, Configuration, dict[str, Array]]:
        """(the next state, samples, metrics); `weight`: of the rows of data, None where all count alike."""

    def sample_weight(self, weight: Array | None) -> Array | None:
        """The weights of the samples, where the rows of the batch have these; an optional hook. None: all count alike."""
        return None


@dataclasses.dataclass(frozen=True)
class DataChains(Chains):
    """Chains that begin at the data of the batch: contrastive divergence, whose bias falls as the steps grow.

    Attributes:
      num_steps: kernel steps. kernel_fn: (model, params) -> a kernel of configurations, such as
        `gm.call(gm.models.gibbs_langevin, step_size=0.2)`; None: that of the model.
    """

    num_steps: int = 1
    kernel_fn: KernelOf | None = None

    def init(self, model, params, key, data, weight=None):
        return ()

    def draw(self, model, params, key, state, data, weight=None):
        return (), chain_ends(self, model, params, key, data), {}

    def sample_weight(self, weight):
        return weight  # a chain counts as the row where it began


@dataclasses.dataclass(frozen=True)
class FreshChains(Chains):
    """Chains that begin at random at every step: what the model learns is to make data from noise in `num_steps`.

    Attributes:
      num_chains: how many. num_steps, kernel_fn: as in `DataChains`.
    """

    num_chains: int
    num_steps: int = 100
    kernel_fn: KernelOf | None = None

    def init(self, model, params, key, data, weight=None):
        return ()

    def draw(self, model, params, key, state, data, weight=None):
        keys = jax.random.split(key)
        return (), chain_ends(self, model, params, keys[1], model.random_configurations(params, keys[0], self.num_chains)), {}


@dataclasses.dataclass(frozen=True)
class PersistentChains(Chains):
    """Chains that go on from step to step while the parameters change slowly beneath them.

    Attributes:
      num_chains: how many. num_steps, kernel_fn: as in `DataChains`.
    """

    num_chains: int
    num_steps: int = 1
    kernel_fn: KernelOf | None = None

    def init(self, model, params, key, data, weight=None):
        return model.random_configurations(params, key, self.num_chains)

    def draw(self, model, params, key, state, data, weight=None):
        state = chain_ends(self, model, params, key, state)
        return state, state, {}


class TemperedState(NamedTuple):
    """The replicas, (num_chains, num_levels, ...), and the parameters of the law at the first level."""

    replicas: Configuration
    base: Params


@dataclasses.dataclass(frozen=True)
class TemperedChains(Chains):
    """Persistent chains by parallel tempering, on the straight line of parameters from the model's `reference` to the model.

    Of machines these are independent units with the marginals of the first batch, of an `EnergyModel` its base. The metric
    "swap_rate" is the least of the mean rates at which neighbours swap: near zero the levels are too few.

    Attributes:
      num_chains: how many sets of replicas. num_levels: replicas of each. num_steps: kernel steps between swaps.
    """

    num_chains: int
    num_levels: int = 10
    num_steps: int = 1

    def __post_init__(self):
        super().__post_init__()
        check(self.num_levels > 1, f"num_levels must be at least 2, got {self.num_levels}")

    def init(self, model, params, key, data, weight=None):
        base, _ = model.reference(params, data.x, data.context)
        flat = model.random_configurations(base, key, self.num_chains * self.num_levels)
        shape = (self.num_chains, self.num_levels)
        return TemperedState(jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), flat), base)

    def draw(self, model, params, key, state, data, weight=None):
        def at(level):
            return interpolated(state.base, params, level)

        kernel = parallel_tempering(
            lambda position, level: model.log_density_one(at(level), position),
            lambda _, level: model.kernel(at(level)),
            jnp.linspace(0.0, 1.0, self.num_levels),
            num_steps=self.num_steps,
        )
        replicas, info = moved(key, kernel, state.replicas)
        samples = jax.tree.map(lambda a: a[:, -1], replicas)
        return state._replace(replicas=replicas), samples, {"swap_rate": info.acceptance_rate.mean(0).min()}


class ContrastiveState(NamedTuple):
    """The state of a `ContrastiveStep`: parameters, optimizer, chains, the mean units (None without centring), the average of
    the parameters (None without `ema_decay`), and the number of updates."""

    params: Params
    opt_state: Any
    chains: Any
    offsets: Any
    ema: Params | None
    count: Array  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class ContrastiveStep(Step):
    """One gradient of the contrast of data with samples of the model's chains, through any Optax optimizer.

        step = gm.training.ContrastiveStep(machine, gm.call(optax.sgd, 0.05), gm.training.PersistentChains(100))
        fit = gm.fit(machine, x, key=key, step=step, num_steps=20_000, batch_size=100)

    Attributes:
      model: an `UnnormalizedModel`. optimizer: any of Optax; it sees centred parameters.
      chains: where samples come from.
      centring: decay of the moving average of the units about whose means parameters are centred; None: trained as stored.
      ema_decay: as in `GradientStep`.

    The "loss" is the contrast, which is no measure of the fit; "energy_nats" is the mean energy of the data.
    """

    model: UnnormalizedModel
    optimizer: Any
    chains: Chains = DataChains()
    centring: float | None = 0.99
    ema_decay: float | None = None
    reads_events = True

    def __post_init__(self):
        check_parts(self, model=UnnormalizedModel, chains=Chains)
        plain = GradientStep(self.model, self.optimizer, ema_decay=self.ema_decay)  # which checks them
        object.__setattr__(self, "optimizer", plain.optimizer)
        check(self.centring is None or 0 <= self.centring < 1, f"centring must be None or in [0, 1), got {self.centring}")
        super().__post_init__()

    def init(self, params, key, batch):
        check_trainable(params)
        x, context, weight = self.model.read(batch)
        keys = jax.random.split(key)
        data = self.model.configurations(params, keys[0], x, context)
        chains = self.chains.init(self.model, params, keys[1], data, weight)
        offsets = None if self.centring is None else self._units(params, data, None)
        average = None if self.ema_decay is None else jax.tree.map(jnp.copy, params)
        opt_state = self.optimizer.init(trainable(params))
        return ContrastiveState(params, opt_state, chains, offsets, average, jnp.zeros((), jnp.int32))

    def __call__(self, state, key, batch):
        model = self.model
        x, context, weight = model.read(batch)
        keys = jax.random.split(key)
        data = model.configurations(state.params, keys[0], x, context)
        chains, samples, metrics = self.chains.draw(model, state.params, keys[1], state.chains, data, weight)
        offsets = None
        if self.centring is not None:
            offsets = ema(state.offsets, self._units(state.params, data, weight), self.centring, state.count)

        weights = {"weight": weight, "sample_weight": self.chains.sample_weight(weight)}

        def objective(centred):
            params = self._uncentred(with_trainable(state.params, centred), offsets)
            return losses.contrast(lambda row: model.log_density_one(params, row), data, samples, **weights)

        centred = state.params if offsets is None else model.centred(state.params, offsets)
        (loss, more), grads = jax.value_and_grad(objective, has_aux=True)(trainable(centred))
        grads, norm = clip(grads)
        centred, opt_state = apply_gradients(self.optimizer, grads, state.opt_state, centred)
        params = self._uncentred(centred, offsets)
        average = None if self.ema_decay is None else ema(state.ema, params, self.ema_decay, state.count)
        after = ContrastiveState(params, opt_state, chains, offsets, average, state.count + 1)
        return after, {"loss": loss, **more, **metrics, "grad_norm": norm}

    def evaluation_params(self, state):
        return state.params if state.ema is None else state.ema

    def _units(self, params: Params, data: Configuration, weight: Array | None) -> Any:
        """The means over rows of the units about which parameters are centred."""
        units = jax.vmap(self.model.offsets_one, (None, 0))(params, data)
        share = None if weight is None else weight / weight.sum()
        return jax.tree.map(lambda a: a.mean(0) if share is None else jnp.tensordot(share.astype(a.dtype), a, 1), units)

    def _uncentred(self, params: Params, offsets: Any) -> Params:
        return params if offsets is None else self.model.uncentred(params, offsets)


def chain_ends(chains: Any, model: UnnormalizedModel, params: Params, key: Key, at: Configuration) -> Configuration:
    """The configurations after the steps of `chains`, by its `num_steps` and `kernel_fn`, from those `at`."""
    kernel = model.kernel(params) if chains.kernel_fn is None else chains.kernel_fn(model, params)
    return moved(key, kernel, at, num_steps=chains.num_steps)[0]
