"""Distributions: p(x | context), the one notion that bases, toys, priors, posteriors, proposals, flows and all models share.

A distribution implements hooks on ONE event,

    log_prob_one(params, x, context, key) -> scalar          sample_one(params, key, context) -> event

which other parts compose; the methods without `_one` are those over batches. They take any leading axes, broadcast them, and
are compiled. What a distribution does not have raises NotImplementedError.
"""

import abc
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from genmod.core.batching import broadcast_rows, row_keys, unflatten, vmap_blocks
from genmod.core.checks import check, check_context, check_context_shape, check_sizes
from genmod.core.description import Description
from genmod.core.event import Event, Real
from genmod.core.info import FAILED
from genmod.core.keys import check_key
from genmod.core.likelihood import Likelihood as Likelihood
from genmod.core.numerics import same_precision
from genmod.core.types import Array, Context, Info, Interval, Key, Params, Shape


def over_events(body: Callable | None = None, *, event: Callable[[Any], Event] = lambda self: self.event) -> Callable:
    """Turns a method of ONE event, `(self, params, x, context, *, key)`, into one of any leading axes, checked and compiled.

    The axes of x and of the context are broadcast against each other; a context without axes is shared. Every row has a key
    of its own, which does not depend on the size of the batch. `event(self)` is what x is.
    """
    if body is None:
        return functools.partial(over_events, event=event)
    name = list(inspect.signature(body).parameters)[2]

    @functools.wraps(body)
    def method(self, params, x, context=None, *, key=None):
        x, rank = event(self).check(name, x), len(event(self).shape)
        axes = x.shape[: x.ndim - rank]
        context = check_context(type(self).__name__, context, self.context_shape, batch=axes, any_batch=True)
        key = None if key is None else check_key(key)
        return call_program(_on_events, self, params, (body, self, rank, _one_device(x)), x, context, key)

    return method


def over_draws(body: Callable) -> Callable:
    """Turns a method that draws ONE event, `(self, params, key, shape, context)`, into one that draws shape + the context's
    axes of them, checked and compiled."""

    @functools.wraps(body)
    def method(self, params, key, shape=(), context=None):
        key, shape = check_key(key), check_sizes("shape", shape)
        context = check_context(type(self).__name__, context, self.context_shape, batch=None, any_batch=True)
        return call_program(_on_draws, self, params, (body, self, shape), key, context)

    return method


def call_program(program: Callable, self: "Distribution", params: Params, static: Any, *arguments: Any) -> Any:
    """program(static, params, *arguments); where it fails, ValueError that says how `params` differ from those of `init`."""
    check_params(self, params)
    try:
        return program(static, params, *arguments)
    except Exception as error:  # any part may fail in its own words on parameters that are not its own
        if (difference := self.misfit(params)) is None:
            raise
        raise ValueError(f"params must be those of this {type(self).__name__}, made by its init: {difference}") from error


def check_params(owner: Any, params: Params) -> None:
    """Raises TypeError for a whole `Fit` in the place of its parameters."""
    if hasattr(params, "last_params"):
        raise TypeError(f"params must be the parameters of {type(owner).__name__}, got a whole Fit; pass its .params")


@functools.partial(jax.jit, static_argnums=0)
def _on_events(static, params, x, context, key):
    body, self, rank, one_device = static
    context = context if self.own_precision else same_precision(context, x)
    inner = len(self.context_shape or ())
    shared = context is None or context.ndim == inner
    batch, (rows, contexts) = broadcast_rows((), (x, rank), (None if shared else context, inner))
    assert rows is not None

    def one(x, own, key):
        return body(self, params, x, context if shared else own, key=key)

    return unflatten(batch, vmap_blocks(one, rows, contexts, row_keys(key, rows.shape[0]), blocks=one_device))


@functools.partial(jax.jit, static_argnums=0)
def _on_draws(static, params, key, context):
    body, self, shape = static
    context = context if self.own_precision else same_precision(context, *jax.tree.leaves(params))
    inner = len(self.context_shape or ())
    shared = context is None or context.ndim == inner
    axes = () if context is None else context.shape[: context.ndim - inner]
    batch, (contexts,) = broadcast_rows((*shape, *axes), (None if shared else context, inner))

    def one(key, own):
        return body(self, params, key, (), context if shared else own)

    return unflatten(batch, vmap_blocks(one, row_keys(key, math.prod(batch)), contexts))


def _one_device(x: Any) -> bool:
    """Whether x lies on one device, where blocks pay; spread over several, each works on its own rows."""
    return not isinstance(x, jax.Array) or isinstance(x, Tracer) or len(x.sharding.device_set) == 1


class Distribution(Description, abc.ABC):
    """p(x | context) of one event.

    Attributes:
      event: what x is. context_shape: shape of the context, None without one.
      likelihood: what `log_prob` is. reparameterized: whether draws carry the gradient of every parameter.
      support: the interval in which every coordinate lies; None where that is not known.
      own_precision: whether hooks get a context as it was given; else it comes in the precision of x.
    """

    event: Event  # a field or a property: a subclass says it
    context_shape: Shape | None = None
    likelihood: Likelihood = Likelihood.EXACT
    reparameterized: bool = True
    support: Interval | None = None
    own_precision: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not hasattr(type(self), "event") and "event" not in vars(self):
            wanted = "must say what one datum is: a field or property `event`, such as gm.Real((2,))"
            raise TypeError(f"{type(self).__name__} {wanted}")
        check_context_shape(self)

    @property
    def event_shape(self) -> Shape:
        """The shape of one event."""
        return self.event.shape

    def init(self, key: Key, x: ArrayLike, context: ArrayLike | None = None) -> Params:
        """Parameters, from an example batch x, (n,) + event_shape, and its context, (n,) + context_shape. Compiled.

        Some layers read statistics of the data from it. Raises TypeError or ValueError for arrays that do not fit.
        """
        x = jnp.asarray(self.event.check("x", x, batched=True))
        context = check_context(type(self).__name__, context, self.context_shape, batch=x.shape[:1])
        return _init(self, check_key(key), x, context)

    # --- one event: what families implement, and what other parts compose ---------------------------------------------------

    @abc.abstractmethod
    def _init(self, key: Key, x: Array, context: Context) -> Params:
        """What `init` says; the arguments have been checked."""

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        """log p(x) of ONE event, in nats, of the kind that `likelihood` says; `key` where it is random."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        """ONE draw, of shape event_shape."""
        raise NotImplementedError(f"{type(self).__name__} cannot be sampled")

    def sample_and_log_prob_one(self, params: Params, key: Key, context: Context = None) -> tuple[Array, Array]:
        """ONE draw and its log-density."""
        keys = jax.random.split(key)
        x = self.sample_one(params, keys[0], context)
        return x, self.log_prob_one(params, x, context, keys[1])

    def log_prob_info_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> tuple[Array, Info]:
        """log p(x) of ONE event, and how it was computed, a dict of scalars ({} where there is nothing to tell)."""
        return self.log_prob_one(params, x, context, key), {}

    def sample_info_one(self, params: Params, key: Key, context: Context = None) -> tuple[Array, Info]:
        """ONE draw, and how it was made."""
        return self.sample_one(params, key, context), {}

    # --- batches ------------------------------------------------------------------------------------------------------------

    @over_events
    def log_prob(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """log p(x) in nats, of the kind that `likelihood` says. Compiled.

        Args:
          x: any axes + event_shape. context: any axes + context_shape; the axes of both are broadcast against each other.
          key: wanted by distributions whose log_prob is random.

        Returns an array of the common axes. Raises ValueError or TypeError for arrays or parameters that do not fit.
        """
        return self.checked_scalar(self.log_prob_one(params, x, context, key))  # type: ignore[arg-type]

    def sample(self, params: Params, key: Key, shape: int | Shape = (), context: ArrayLike | None = None) -> Array:
        """Independent draws, shape + the axes of the context + event_shape. Compiled.

        Real draws that failed are NaN; of integers there is FloatingPointError, or, while traced, what `sample_with_info` counts.
        """
        if isinstance(self.event, Real):
            return self._sample(params, key, shape, context)
        x, info = self.sample_with_info(params, key, shape, context)
        if FAILED in info and not isinstance(x, Tracer) and (failed := int((info[FAILED] > 0).sum())):
            raise FloatingPointError(
                f"{failed} of {info[FAILED].size} draws of {type(self).__name__} are no numbers, and have no levels: the model "
                "has diverged, or a solve has failed; sample_with_info counts them"
            )
        return x

    @over_draws
    def _sample(self, params, key, shape=(), context=None):
        return self._checked_event(self.sample_one(params, key, context))

    def sample_and_log_prob(
        self, params: Params, key: Key, shape: int | Shape = (), context: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Draws as `sample`, differentiable in params (reparameterised), and their log-densities, in one pass. Compiled.

        Raises ValueError where draws do not carry the gradient of all parameters: it would be wrong without a word.
        """
        if not self.reparameterized:
            raise ValueError(
                f"draws of {type(self).__name__} do not carry the gradient of all its parameters; take another distribution "
                "for reverse KL, or sample and log_prob (samplers.proposal_of) where no gradient is wanted"
            )
        return self._sample_and_log_prob(params, key, shape, context)

    @over_draws
    def _sample_and_log_prob(self, params, key, shape=(), context=None):
        x, log_prob = self.sample_and_log_prob_one(params, key, context)
        return self._checked_event(x), self.checked_scalar(log_prob)

    @over_events
    def log_prob_with_info(
        self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None
    ) -> tuple[Array, Info]:
        """`log_prob`, and a dict of arrays of the same axes: `nfe`, `failed_solves`, ...

        Where the log-density is the mean of several probes, the dict holds its standard error, `log_prob_sem`.
        """
        log_prob, info = self.log_prob_info_one(params, x, context, key)  # type: ignore[arg-type]
        return self.checked_scalar(log_prob), info | (
            {"log_prob_sem": jnp.sqrt(info["log_det_variance"])} if "log_det_variance" in info else {}
        )

    @over_draws
    def sample_with_info(
        self, params: Params, key: Key, shape: int | Shape = (), context: ArrayLike | None = None
    ) -> tuple[Array, Info]:
        """`sample`, and a dict of arrays of the same axes: how each draw was made, `nfe`, `failed_solves`, ...

        Where a solve fails the draw is its last state.
        """
        x, info = self.sample_info_one(params, key, context)  # type: ignore[arg-type]
        return self._checked_event(x), info

    def checked_scalar(self, log_prob: Array) -> Array:
        """`log_prob`, if it is that of a whole event, a scalar; raises ValueError for one that was not summed."""
        wanted = f"the log-density of {type(self).__name__} must be a scalar for ONE event"
        check(not jnp.shape(log_prob), f"{wanted}, got shape {jnp.shape(log_prob)}; sum over the event")
        return log_prob

    def _checked_event(self, x: Array) -> Array:
        wanted = f"{type(self).__name__} must draw ONE event of shape {self.event_shape}"
        check(jnp.shape(x) == self.event_shape, f"{wanted}, got {jnp.shape(x)}")
        return x

    def layout(self, key: Key, x: Array, context: Context = None) -> Params:
        """Parameters of the right structure and shapes, from rows x, whatever their values: those of `init`, if it is a start."""
        return self._init(key, x, context)

    def misfit(self, params: Params) -> str | None:
        """What tells `params` from those of this distribution: the first difference in structure or shape; None if nothing."""
        context = None if self.context_shape is None else jax.ShapeDtypeStruct((1, *self.context_shape), jnp.result_type(float))
        try:
            wanted = jax.eval_shape(self.layout, *jax.eval_shape(lambda: (jax.random.key(0), self.event.example())), context)
        except Exception:  # what fails on an example is not the fault of the parameters
            return None
        return _difference(params, wanted)


@functools.partial(jax.jit, static_argnums=0)
def _init(self, key, x, context):
    return self._init(key, x, context if self.own_precision else same_precision(context, x))


def _difference(params: Params, wanted: Params) -> str | None:
    found = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    expected = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(wanted)}
    for path in [*expected, *found]:
        if found.get(path) != expected.get(path):
            given = f"of shape {found[path]}" if path in found else "missing"
            return f"params{path} is {given}, wanted {f'shape {expected[path]}' if path in expected else 'nothing there'}"
    return None
