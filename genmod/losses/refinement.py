"""Semi-amortised inference (Kim et al. 2018, arXiv:1802.02550): the encoder's features are moved up the bound of their own datum,
by a few gradient steps, before the bound is taken.

    h_0 = encoder(x),    h_i+1 = h_i + step(grad_h L(h_i)),    train by L(h_k)

A refinement knows a bound as a function, no model. Whether gradients of training pass through its steps is a choice between two
descriptions: `GradientSteps` lets them, `HeldMoves` takes the whole move as a constant.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from genmod.core.checks import check_count, check_parts
from genmod.core.description import Call, Description, call, canonical, made
from genmod.core.types import Array, Key
from genmod.losses.variational import ELBO, Latent, Objective

BoundFn = Callable[[Any, Key], Array]


class Refinement(Description, abc.ABC):
    """How the numbers of ONE datum's posterior are moved up its bound."""

    @abc.abstractmethod
    def refine(self, bound_fn: BoundFn, begin: Any, key: Key) -> Any:
        """A pytree of arrays like `begin`, of a higher bound; traced.

        Args:
          bound_fn: (pytree, key) -> a draw of the bound, a scalar, differentiable in the pytree.
          begin: where to start, such as the encoder's features. key: of the draws.
        """


@dataclasses.dataclass(frozen=True)
class GradientSteps(Refinement):
    """`num_steps` steps of gradient ascent; gradients of what comes after pass through all of them.

    Attributes:
      num_steps: of each datum.
      optimizer: any Optax optimizer, or a call that makes one; None: `adam_of_features`. One whose update has no derivative at a
        gradient of zero, such as `optax.adam(1e-3)` without `eps_root`, makes NaN of gradients that pass through it.
    """

    num_steps: int = 8
    optimizer: optax.GradientTransformation | Call | None = None

    def __post_init__(self):
        object.__setattr__(self, "optimizer", canonical(self.optimizer))
        super().__post_init__()
        check_count(num_steps=self.num_steps)
        if not isinstance(self.optimizer, optax.GradientTransformation | Call | None):
            raise TypeError(f"optimizer must be an Optax optimizer, gm.call(...) of one, or None, got {self.optimizer!r}")

    def refine(self, bound_fn, begin, key):
        size = sum(leaf.size for leaf in jax.tree.leaves(begin))
        optimizer = made(adam_of_features(size, self.num_steps) if self.optimizer is None else self.optimizer)
        descent = jax.grad(lambda moved, key: -bound_fn(moved, key))

        def step(carry, key):
            moved, state = carry
            updates, state = optimizer.update(descent(moved, key), state, moved)
            return (optax.apply_updates(moved, updates), state), None

        return jax.lax.scan(step, (begin, optimizer.init(begin)), jax.random.split(key, self.num_steps))[0][0]


@dataclasses.dataclass(frozen=True)
class HeldMoves(Refinement):
    """Another refinement, whose move is a constant to gradients: h_k = h_0 + stop_gradient(h_k - h_0).

    Training costs no second derivatives; the encoder gets the gradient at h_k as if it were that at h_0. What makes a few steps
    reach far, such as how the posterior depends on its features, is not learned then.
    """

    refinement: Refinement = GradientSteps()

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, refinement=Refinement)

    def refine(self, bound_fn, begin, key):
        moved = self.refinement.refine(bound_fn, begin, key)
        return jax.tree.map(lambda start, end: start + jax.lax.stop_gradient(end - start), begin, moved)


@dataclasses.dataclass(frozen=True)
class SemiAmortized(Objective):
    """Another objective, taken after the features of every datum were refined on its own bound.

        model = dataclasses.replace(vae, objective=gm.losses.SemiAmortized(gm.losses.ELBO(), gm.losses.GradientSteps(8)))

    The draws of the refinement are not those of the bound, which thus stays a lower one. Other uses of a trained model begin at
    the encoder's features: `gm.inference.refine` gives the refined ones, which `Observed` takes.

    Attributes:
      objective: what is maximised by the steps (its `bound_one`) and by training. refinement: the steps.

    Draws of the posterior must be reparameterised. Raises ValueError for a `Latent` without `with_features`.
    """

    objective: Objective = ELBO()
    refinement: Refinement = GradientSteps()

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, objective=Objective, refinement=Refinement)

    @property
    def num_samples(self):
        return self.objective.num_samples

    def refined(self, latent: Latent, key: Key) -> Latent:
        """The same datum's latent, with the posterior of the refined features."""
        with_features = latent.with_features
        if with_features is None:
            raise ValueError("SemiAmortized wants a Latent with `features` and `with_features`, which that of this model has not")

        def bound(features, key):
            return self.objective.bound_one(with_features(features), key)

        return with_features(self.refinement.refine(bound, latent.features, key))

    def terms_one(self, latent, key):
        keys = jax.random.split(key)
        return self.objective.terms_one(self.refined(latent, keys[0]), keys[1])

    def loss(self, terms, weight, step):
        return self.objective.loss(terms, weight, step)

    def bound_one(self, latent, key):
        keys = jax.random.split(key)
        return self.objective.bound_one(self.refined(latent, keys[0]), keys[1])


def adam_of_features(num_features: int, num_steps: int) -> Call:
    """Adam whose first step moves each of F features by 1 / F, so that what depends on all of them moves alike for any F, and
    which falls to zero along a cosine. Gradients may pass through it."""
    return call(_adam, num_features, num_steps)


def _adam(num_features, num_steps):
    # eps_root: without it the update has no derivative where a gradient is zero, as that of a dead unit is.
    return optax.adam(optax.cosine_decay_schedule(1.0 / num_features, num_steps), eps_root=1e-12)
