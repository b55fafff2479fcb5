"""A law that is given by functions."""

import dataclasses
import types
from collections.abc import Callable

from genmod.core.checks import check_function
from genmod.core.description import call
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Real
from genmod.core.types import Array, Key, Shape


@dataclasses.dataclass(frozen=True)
class FromFunctions(Distribution):
    """A fixed law: `sample_fn(key)` -> ONE event, and `log_prob_fn(x)`, nats of ONE event; without parameters.

    Without log_prob_fn the law can be drawn from only, as the source of flow matching; what stands on it has likelihood NONE.
    Without sample_fn it is a target; `likelihood` says UNNORMALIZED where its log_prob_fn is known up to a constant. Pass
    functions of a module: equal laws are then equal descriptions.
    """

    shape: Shape
    sample_fn: Callable[[Key], Array] | None = None
    log_prob_fn: Callable[[Array], Array] | None = None
    likelihood: Likelihood = Likelihood.EXACT

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        for name in ("sample_fn", "log_prob_fn"):
            function = getattr(self, name)
            if isinstance(function, types.MethodType):  # these compare by the identity of their owner
                object.__setattr__(self, name, call(function.__func__, function.__self__))
        if self.log_prob_fn is None:
            object.__setattr__(self, "likelihood", Likelihood.NONE)
        super().__post_init__()
        check_function(**{n: f for n in ("sample_fn", "log_prob_fn") if (f := getattr(self, n)) is not None})

    @property
    def event(self):
        return Real(self.shape)

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        if self.log_prob_fn is None:
            raise NotImplementedError("this law can be drawn from but has no log_prob; give it a log_prob_fn")
        return self.log_prob_fn(x)

    def sample_one(self, params, key, context=None):
        if self.sample_fn is None:
            raise NotImplementedError("this law has a log_prob but cannot be drawn from; give it a sample_fn")
        x = self.sample_fn(key)
        if x.shape != self.shape:
            raise ValueError(f"sample_fn must return one event of shape {self.shape}, got {x.shape}")
        return x
