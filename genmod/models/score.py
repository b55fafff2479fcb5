"""Score models: grad log p(x) of data by a network, without a density (Hyvarinen 2005, JMLR 6:695-709).

Trained by explicit, sliced or denoising score matching (`losses.score`), sampled by Langevin dynamics. A network of many noise
levels is a `Diffusion`.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from genmod import losses, nets
from genmod.core.checks import check_count, check_parts, check_positive
from genmod.core.distribution import Likelihood
from genmod.core.event import Real
from genmod.core.types import Array, Params, Shape
from genmod.dynamics.divergence import DivergenceEstimator, Exact
from genmod.models.base import Model
from genmod.samplers.diffusions import langevin_chain


@dataclasses.dataclass(frozen=True)
class ScoreModel(Model):
    """s(x) ~ grad log p(x).

    Attributes:
      network: a Flax Linen module x -> array of the shape of x. shape: that of an event.
      method: "explicit", with `divergence` (`Exact()`, or `Hutchinson(k)`, which makes it sliced), or "denoising", at noise
        `sigma`: the score is then that of the data blurred by so much.
      step_size, num_steps: of the Langevin dynamics x + e s + sqrt(2 e) z that samples, from N(0, start_scale^2). Where modes
        lie far apart their weights stay those of the start: that is why there are noise levels.

    Has no log_prob: a network need not be the gradient of anything. Raises ValueError for an unknown method, for sizes that
    are not positive, and for a network whose output has another shape.
    """

    network: Any
    shape: Shape
    method: Literal["explicit", "denoising"] = "denoising"
    divergence: DivergenceEstimator = Exact()
    sigma: float = 0.1
    step_size: float = 1e-3
    num_steps: int = 1_000
    start_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.method not in ("explicit", "denoising"):
            raise ValueError(f"method must be 'explicit' or 'denoising', got {self.method!r}")
        check_parts(self, divergence=DivergenceEstimator)
        check_positive(sigma=self.sigma, step_size=self.step_size, start_scale=self.start_scale)
        check_count(num_steps=self.num_steps)

    likelihood = Likelihood.NONE

    @functools.cached_property
    def event(self):
        return Real(self.shape)

    def score(self, params: Params, x: Array) -> Array:
        """s(x) of ONE event, of its shape."""
        value = nets.apply(self.network, params, x)
        if value.shape != x.shape:
            raise ValueError(f"the network must return the shape of its input, {x.shape}; {self.network} gave {value.shape}")
        return value.astype(x.dtype)

    def _init(self, key, x, context):
        params = nets.init(self.network, key, x[0])
        jax.eval_shape(lambda: self.score(params, x[0]))
        return params

    def loss(self, params, key, batch, *, step=None):
        x, _, weight = self.read(batch)
        score_fn = functools.partial(self.score, params)
        if self.method == "denoising":
            return losses.denoising_score_matching(score_fn, x, key, sigma=self.sigma, weight=weight)
        return losses.explicit_score_matching(score_fn, x, key, divergence=self.divergence, weight=weight)

    def log_prob_one(self, params, x, context=None, key=None):
        raise NotImplementedError("a score model has no log_prob; a Diffusion has one, by its probability flow")

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        start = self.start_scale * jax.random.normal(keys[0], self.shape, dtype)
        score_fn = functools.partial(self.score, params)
        return langevin_chain(keys[1], score_fn, start, step_size=self.step_size, num_steps=self.num_steps)
