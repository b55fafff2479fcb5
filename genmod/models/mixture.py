"""Mixtures: p(x) = sum_k w_k p(x | k), with exact log_prob and draws (McLachlan & Peel 2000).

Trained by gradients as any model, from parameters that are free real numbers, or by expectation and maximisation
(Dempster, Laird & Rubin 1977; Bishop 2006, sec. 9.2 and 9.3):

    r_nk = w_k p(x_n | k) / p(x_n),    w_k = mean_n r_nk,    theta_k = argmax sum_n r_nk log p(x_n | theta_k)

    model = gm.models.mixture_of_gaussians((2,), 5)
    fit = gm.training.fit_em(model, x, key=key)
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_function, check_parts
from genmod.core.distribution import over_events
from genmod.core.spread import Chosen, spread_rows
from genmod.core.types import Array, Key, Params, Shape
from genmod.densities.components import VACANT, CategoricalComponents, Components, GaussianComponents
from genmod.densities.covariances import Covariance, FullCovariance
from genmod.models.base import EMModel, likelihood_loss


@dataclasses.dataclass(frozen=True)
class Mixture(EMModel):
    """A mixture of `num_components` laws of one kind.

    Attributes:
      components: the kind, `GaussianComponents(shape, covariance)` or `CategoricalComponents(shape, num_levels)`.
      choose: (key, rows (n, D), num) -> `Chosen`: the data about which `init` places the components; `spread_rows`, as
        k-means++, or `uniform_rows`.

    Parameters: {"logits": (K,), the weights before their softmax; "components": of the kind}.
    """

    components: Components
    num_components: int
    choose: Callable[[Key, Array, int], Chosen] = spread_rows
    reparameterized = False

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, components=Components)
        check_count(num_components=self.num_components)
        check_function(choose=self.choose)

    @property
    def event(self):
        return self.components.event

    @over_events
    def responsibilities(self, params: Params, x: ArrayLike, context: None = None, *, key: Key | None = None) -> Array:
        """p(k | x), any axes + (K,), of events x, any axes + event_shape. Compiled."""
        return jax.nn.softmax(self._log_joint(params, x[None])[:, 0])  # type: ignore[index]

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        chosen = self.choose(keys[0], self.components.flat(x), self.num_components)
        components = self.components.start(keys[1], x, chosen)
        dtype = jnp.result_type(*jax.tree.leaves(components))
        # One more each: a component without rows is not without a chance.
        count = jnp.ones(self.num_components, dtype).at[chosen.nearest].add(1.0)
        return {"logits": jnp.log(count / count.sum()), "components": components}

    def loss(self, params, key, batch, *, step=None):
        return likelihood_loss(self, params, key, self.read(batch))

    def log_prob_one(self, params, x, context=None, key=None):
        return jax.nn.logsumexp(self._log_joint(params, x[None])[:, 0])

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        which = jax.random.categorical(keys[0], params["logits"])
        return self.components.sample_one(params["components"], which, keys[1])

    def _log_joint(self, params: Params, x: Array) -> Array:
        """log w_k + log p(x | k) of rows, (K, n)."""
        return jax.nn.log_softmax(params["logits"])[:, None] + self.components.log_probs(params["components"], x)

    # --- expectation and maximisation -------------------------------------------------------------------------------------------

    @property
    def num_free(self):
        return self.num_components - 1 + self.components.num_free(self.num_components)

    @property
    def least_rows(self):
        return self.num_components

    def log_prior(self, params):
        return self.components.log_prior(params["components"])

    def e_step(self, params, x, weight):
        log_joint = self._log_joint(params, x)
        # A softmax and its normaliser by one exponential.
        largest = jnp.max(log_joint, 0, keepdims=True)
        parts = jnp.exp(log_joint - largest)
        total = parts.sum(0, keepdims=True)
        held = parts * (weight[None] / total)
        statistics = {"total": held.sum(1), "components": self.components.statistics(params["components"], x, held)}
        return (largest + jnp.log(total))[0], statistics

    def m_step(self, params, statistics):
        total = statistics["total"]
        share = jnp.maximum(total / total.sum(), jnp.finfo(total.dtype).tiny)  # logits stay finite
        components = self.components.update(params["components"], total, statistics["components"])
        return {"logits": jnp.log(share), "components": components}

    def vacant(self, statistics):
        return jnp.min(statistics["total"]) < VACANT * statistics["total"].sum()

    def refilled(self, params, statistics, x, weight):
        """The least component, with the share of one datum and the shape of the greatest component."""
        total = statistics["total"]
        which = jnp.argmin(total)
        components = self.components.placed(params["components"], which, jnp.argmax(total), x)
        return {"logits": params["logits"].at[which].set(jnp.log(weight / total.sum())), "components": components}


def mixture_of_gaussians(event_shape: Shape, num_components: int = 8, covariance: Covariance = FullCovariance()) -> Mixture:
    """A mixture of Gaussians, with one of the covariances of `genmod.densities`: full, tied, diagonal or spherical.

    A prior that is learned along with a model of latents is `densities.GaussianMixture`, diagonal and trained by gradients.
    """
    return Mixture(GaussianComponents(event_shape, covariance), num_components)


def mixture_of_levels(event_shape: Shape, num_components: int = 8, num_levels: int = 2, *, pseudo_counts: float = 1.0) -> Mixture:
    """A mixture of independent levels; of two levels, as in binary images, one of Bernoulli laws (Bishop 2006, sec. 9.3.3).

    Args:
      event_shape: of an event. num_components: of the mixture. num_levels: of every entry.
      pseudo_counts: data of each level that are added to every entry of every component.
    """
    return Mixture(CategoricalComponents(event_shape, num_levels, pseudo_counts), num_components)
