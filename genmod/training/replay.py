"""Chains from a replay buffer: the samples of a step go on from the ends of chains of former steps (Du & Mordatch 2019)."""

import dataclasses

import jax
import jax.numpy as jnp

from genmod.core.checks import check
from genmod.core.types import Array, Key, Params
from genmod.models.unnormalized import Configuration, UnnormalizedModel
from genmod.training.contrastive import Chains, KernelOf, chain_ends


@dataclasses.dataclass(frozen=True)
class ReplayChains(Chains):
    """A buffer of chains, some of which move in each step; a few of these begin anew (Du & Mordatch 2019, arXiv:1903.08689).

    A chain lives for about num_steps / restart_rate kernel steps. Where in so many it seldom crosses between modes, their
    weights come out wrong: the model makes up for those of the starts. A lower restart_rate or more steps help.

    With a context a new chain has that of a random row of the batch, in proportion to its weight.

    Attributes:
      num_chains: the size of the buffer. num_draws: how many of it move in one step, and are its samples.
      restart_rate: the probability that one of these begins at random.
      num_steps: kernel steps. kernel_fn: as in `DataChains`.

    Raises ValueError for a buffer of fewer chains than a step draws.
    """

    num_chains: int
    num_draws: int
    restart_rate: float = 0.05
    num_steps: int = 20
    kernel_fn: KernelOf | None = None

    def __post_init__(self):
        super().__post_init__()
        large = self.num_chains >= self.num_draws
        check(large, f"num_chains, the size of the buffer, must be at least num_draws={self.num_draws}, got {self.num_chains}")
        check(0 <= self.restart_rate <= 1, f"restart_rate must be in [0, 1], got {self.restart_rate}")

    def init(self, model, params, key, data, weight=None):
        return _starts(self.num_chains, model, params, key, data, weight)

    def draw(self, model, params, key, state, data, weight=None):
        keys = jax.random.split(key, 4)
        rows = jax.random.choice(keys[0], self.num_chains, (self.num_draws,), replace=False)
        anew = jax.random.bernoulli(keys[1], self.restart_rate, (self.num_draws,))
        new = _starts(self.num_draws, model, params, keys[2], data, weight)

        def begin(old, new):
            return jnp.where(anew.reshape(-1, *[1] * (new.ndim - 1)), new, old[rows])

        samples = chain_ends(self, model, params, keys[3], jax.tree.map(begin, state, new))
        return jax.tree.map(lambda old, end: old.at[rows].set(end), state, samples), samples, {}


def _starts(
    num: int, model: UnnormalizedModel, params: Params, key: Key, data: Configuration, weight: Array | None
) -> Configuration:
    keys, context = jax.random.split(key), data.context
    if context is not None:
        share = None if weight is None else weight / weight.sum()
        context = context[jax.random.choice(keys[0], context.shape[0], (num,), p=share)]
    return model.random_configurations(params, keys[1], num, context)
