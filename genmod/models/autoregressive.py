"""Autoregressive models over a sequence network, exact:

    log p(x | context) = sum_t log p(x_t | x_<t, context),        p(x_t | x_<t, context) = head(net(start, x_0, ..., x_{t-1})_t)

The network sees the sequence moved by one step behind a start, which the model adds, so that output t knows x_<t alone. All steps
are trained at once (teacher forcing); sampling goes step by step with the network's carry, the cache of a Transformer.

What the network reads, for the T steps of an event, which are its entries in raster order:

    integers without a context      tokens, (T,) + step_shape; the start is `event.end` for `Tokens`, else the number num_levels
    integers with a context         the same tokens one-hot, then the flat context, at every step: (T, features)
    other numbers                   the entries of the last step, one number that is 1 at the start only, the flat context
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.batching import broadcast_rows, row_keys, unflatten, vmap_blocks
from genmod.core.checks import check_context, check_count, check_parts, check_positive, check_shape, check_sizes
from genmod.core.distribution import Likelihood, check_params, over_events
from genmod.core.event import Levels, Tokens
from genmod.core.keys import check_key
from genmod.core.numerics import flat_context, real, same_precision
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import CategoricalHead, Head
from genmod.densities.truncation import check_top_k, check_top_p, tempered
from genmod.models.base import Model, likelihood_loss
from genmod.nets import SequenceNet, token_net


@dataclasses.dataclass(frozen=True)
class AutoregressiveModel(Model):
    """p(x | context) = prod_t p(x_t | x_<t, context), EXACT.

        model = gm.models.language_model(gm.Tokens(16, 27), gm.nets.Recurrent(nn.GRUCell(128)))
        text = model.generate(params, key, (10,), prompt=[13, 1], temperature=0.8, top_k=5)

    Attributes:
      event: `Tokens`, whose log_prob counts the first `end` and nothing after it; `Levels`, `Real` or `Counts` of any shape.
      net: a causal network, (T, ...) -> (T, step size * head.num_params); the module docstring says what it reads.
      head: the law of one entry.
      step_shape: the last axes of the event that make one step; its entries are independent given the past. (): one entry.
      context_shape: shape of the context, None without one.

    Parameters: {"net"}; they do not depend on the number of steps. Raises TypeError or ValueError for parts that do not fit each
    other, at the latest by `init`.
    """

    event: Any
    net: SequenceNet
    head: Head
    step_shape: Shape = ()
    context_shape: Shape | None = None

    likelihood = Likelihood.EXACT

    def __post_init__(self):
        check_parts(self, net=SequenceNet, head=Head)
        object.__setattr__(self, "step_shape", check_shape("step_shape", self.step_shape, least=1))
        super().__post_init__()
        shape, rank = self.event.shape, len(self.step_shape)
        if shape[len(shape) - rank :] != self.step_shape or rank > len(shape) or not math.prod(shape):
            raise ValueError(f"the event must end in step_shape={self.step_shape} and have an entry, got shape {shape}")
        wanted = Levels(shape, self.event.vocabulary) if isinstance(self.event, Tokens) else self.event
        if self.head.event(shape) != wanted:
            raise ValueError(f"head must be a law of {wanted}, got {self.head}, a law of {self.head.event(shape)}")

    @property
    def reparameterized(self):
        return self.head.reparameterized

    @property
    def num_steps(self) -> int:
        """T, how many steps an event has."""
        return math.prod(self.event.shape) // math.prod(self.step_shape)

    # --- all steps at once ------------------------------------------------------------------------------------------------------

    @over_events
    def log_prob_steps(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """log p(x_t | x_<t) of every step, any axes + (T,), in nats; 0 after the end of `Tokens`. Compiled."""
        return self._log_prob_steps(params, x, context)  # type: ignore[arg-type]

    def raw_one(self, params: Params, x: Array, context: Context = None) -> Array:
        """The raw numbers of every step of ONE event, (T,) + step_shape + (head.num_params,), given the steps before it."""
        return self._split(self.net.apply(params["net"], self.inputs_one(self._steps(x)[:-1], context)))

    def loss(self, params, key, batch, *, step=None):
        batch = self.read(batch)
        loss, metrics = likelihood_loss(self, params, key, batch)
        if isinstance(self.event, Tokens):
            tokens, _ = mean_and_sem(self.event.num_units(batch.x), batch.weight)
            metrics["nats_per_token"] = loss / jnp.maximum(tokens, jnp.finfo(tokens.dtype).tiny)
        return loss, metrics

    def _init(self, key, x, context):
        inputs = self.inputs_one(self._steps(x[0])[:-1], None if context is None else context[0])
        params = {"net": self.net.init(key, inputs)}
        found = jax.eval_shape(self.net.apply, params["net"], inputs).shape
        wanted = (self.num_steps, math.prod(self.step_shape) * self.head.num_params)
        if found != wanted:
            raise ValueError(f"net must give {wanted[1]} numbers for each of {wanted[0]} steps, {wanted}, got {found}")
        return params

    def log_prob_one(self, params, x, context=None, key=None):
        return self._log_prob_steps(params, x, context).sum()

    def _log_prob_steps(self, params, x: Array, context: Context) -> Array:
        log_p = self.head.log_prob(self.raw_one(params, x, context), self._steps(x)).reshape(self.num_steps, -1).sum(1)
        return jnp.where(self.event.mask(x), log_p, 0.0) if isinstance(self.event, Tokens) else log_p

    def _steps(self, x: Array) -> Array:
        return x.reshape(self.num_steps, *self.step_shape)

    def _split(self, y: Array) -> Array:
        return y.reshape(*y.shape[:-1], *self.step_shape, self.head.num_params)

    # --- step by step -----------------------------------------------------------------------------------------------------------

    def inputs_one(self, steps: Array, context: Context = None) -> Array:
        """What the network reads of the first n steps of ONE event, (n,) + step_shape: the start, then these, (n + 1, ...)."""
        n = steps.shape[0]
        if not self._reads_tokens:
            numbers = real(steps)
            parts = [
                jnp.pad(numbers.reshape(n, math.prod(self.step_shape)), ((1, 0), (0, 0))),
                jnp.eye(n + 1, 1, dtype=numbers.dtype),
            ]
        else:
            start = self.event.end if isinstance(self.event, Tokens) else self.event.num_levels
            tokens = jnp.concatenate([jnp.full((1, *self.step_shape), start, jnp.int32), steps.astype(jnp.int32)])
            if context is None:
                return tokens
            num = self.event.vocabulary if isinstance(self.event, Tokens) else self.event.num_levels + 1
            parts = [jax.nn.one_hot(tokens, num, dtype=real(context).dtype).reshape(n + 1, -1)]
        if context is not None:
            parts.append(jnp.tile(flat_context(context, parts[0].dtype)[None], (n + 1, 1)))
        return jnp.concatenate(parts, 1)

    def step(self, params: Params, carry: Any, inputs: Array) -> tuple[Any, Array]:
        """The carry after one more row of `inputs_one`, and the raw numbers of the step that follows, as `raw_one` has them.

        Args:
          params: of the model. carry: at first model.net.init_carry(params["net"]). inputs: one row.
        """
        carry, y = self.net.step(params["net"], carry, inputs)
        return carry, self._split(y)

    def sample_one(self, params, key, context=None):
        return self.sample_and_log_prob_one(params, key, context)[0]

    def sample_and_log_prob_one(self, params, key, context=None):
        dtype = self.event.dtype if self._reads_tokens else jnp.result_type(*jax.tree.leaves(params))
        blank = jnp.zeros((self.num_steps, *self.step_shape), dtype)
        steps, log_prob = self._continued(params, key, context, blank, 0, 0, self.head.sample)
        return steps.reshape(self.event.shape), log_prob

    def generate(
        self,
        params: Params,
        key: Key,
        shape: int | Shape = (),
        context: ArrayLike | None = None,
        *,
        prompt: ArrayLike | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        max_length: int | None = None,
    ) -> Array:
        """Sequences that begin with a prompt, shape + the axes of prompt and context + (max_length,). Compiled.

        Args:
          params, key: as in `sample`. shape: how many for each prompt and context.
          context: any axes + context_shape, broadcast against those of the prompt.
          prompt: integers, any axes + (n,); after an `end` in it nothing but `end` follows. None: an empty one. Compiled
            once for all n from 2^k to 2^(k+1) - 1: the first 2^k are read in one piece, the rest one by one.
          temperature: divides the log-probabilities. top_k, top_p: as in `densities.tempered`, at every step; None: all levels.
          max_length: how many tokens at most, those of the prompt included; None: as many as the event has.

        Raises ValueError for events that are no sequences of integers, a prompt that does not fit or is longer than max_length,
        a temperature that is not above 0, top_k below 1, top_p outside of (0, 1].
        """
        length = self._length(max_length)
        prompt = self._read_prompt(prompt, length)
        num = prompt.shape[-1]
        prompt = jnp.pad(prompt, [(0, 0)] * (prompt.ndim - 1) + [(0, length - num)])
        check_positive(temperature=temperature)
        if top_k is not None:
            check_top_k(top_k)
        if top_p is not None:
            check_top_p(top_p)
        check_params(self, params)
        context = check_context(type(self).__name__, context, self.context_shape, batch=None, any_batch=True)
        shape = check_sizes("shape", shape)
        # At temperature 1 without truncation the draw is that of `sample`.
        how = None if temperature == 1 and top_k is None and top_p is None else (temperature, top_k, top_p)
        read = 2 ** num.bit_length() // 2
        return _generate((self, shape, read), params, check_key(key), prompt, num, context, how)

    def _length(self, max_length: int | None) -> int:
        if self.step_shape or len(self.event.shape) != 1 or not isinstance(self.event, Tokens | Levels):
            raise ValueError(f"generate wants sequences of integers, Tokens or Levels((T,), K), got {self.event}; use sample")
        if max_length is not None:
            check_count(max_length=max_length)
        return self.num_steps if max_length is None else max_length

    def _read_prompt(self, prompt: Any, length: int) -> Array:
        prompt = jnp.asarray([] if prompt is None else prompt)
        prompt = prompt.astype(self.event.dtype) if not prompt.size else prompt  # an empty list is of floats
        num = prompt.shape[-1] if prompt.ndim else 0
        if prompt.ndim < 1 or num > length:
            raise ValueError(f"prompt must have shape (..., n) with n <= max_length={length}, got {prompt.shape}")
        if not num:
            return prompt
        whole = self.event
        event = dataclasses.replace(whole, max_length=num) if isinstance(whole, Tokens) else Levels((num,), whole.num_levels)
        return event.check("prompt", prompt).astype(whole.dtype)

    def _continued(self, params, key, context, given, read, num, draw) -> tuple[Array, Array]:
        """(all steps, like `given`, the sum of log p of those drawn): the first `num` are given, `read` of these read at once."""
        length, tokens = given.shape[0], isinstance(self.event, Tokens)
        inputs = self.inputs_one(given[:read], context)
        carry = self.net.init_carry(params["net"], length)
        if read:
            carry, _ = self.net.extend(params["net"], carry, inputs[:-1])
        over = (given[:read] == self.event.end).any() if tokens else jnp.array(False)

        def move(state, step):
            (carry, last, over), (key, own, is_given) = state, step
            carry, raw = self.step(params, carry, last)
            x = draw(raw, key).astype(given.dtype)
            x = jnp.where(is_given, own, jnp.where(over, self.event.end, x) if tokens else x)
            log_p = jnp.where(over | is_given, 0.0, self.head.log_prob(raw, x).sum())
            over = over | (x == self.event.end) if tokens else over
            return (carry, self.inputs_one(x[None], context)[1].astype(last.dtype), over), (x, log_p)

        # The key of a step does not depend on how long the prompt or the sequence is.
        steps = row_keys(key, length)[read:], given[read:], jnp.arange(length)[read:] < num
        _, (steps, log_p) = jax.lax.scan(move, (carry, inputs[-1], over), steps)
        return jnp.concatenate([given[:read], steps]), log_p.sum()

    @property
    def _reads_tokens(self) -> bool:
        return isinstance(self.event, Tokens | Levels)


@functools.partial(jax.jit, static_argnums=0)
def _generate(static, params, key, prompt, num, context, how):
    model, shape, read = static
    inner = len(model.context_shape or ())
    context = same_precision(context, *jax.tree.leaves(params))
    axes = np.broadcast_shapes(prompt.shape[:-1], () if context is None else context.shape[: context.ndim - inner])
    batch, (prompts, contexts) = broadcast_rows((*shape, *axes), (prompt, 1), (context, inner))

    def draw(raw, key):
        if how is None:
            return model.head.sample(raw, key)
        return jax.random.categorical(key, tempered(_level_log_probs(model.head, raw, num_levels), *how))

    num_levels = model.event.vocabulary if isinstance(model.event, Tokens) else model.event.num_levels

    def one(key, prompt, context):
        return model._continued(params, key, context, prompt, read, num, draw)[0]

    return unflatten(batch, vmap_blocks(one, row_keys(key, math.prod(batch)), prompts, contexts))


def _level_log_probs(head: Head, raw: Array, num_levels: int) -> Array:
    """log p of every level 0 .. num_levels - 1 under raw, (num_params,): an array (num_levels,)."""
    return jax.vmap(lambda level: head.log_prob(raw, level))(jnp.arange(num_levels))


def language_model(
    event: Tokens | Levels, body: SequenceNet, *, num_features: int = 64, context_shape: Shape | None = None
) -> AutoregressiveModel:
    """A model of sequences of tokens: an embedding, any sequence network, and a linear layer to logits that starts at zero.

        model = gm.models.language_model(gm.Tokens(16, 27), gm.nets.CausalTransformer(16, 64))

    Args:
      event: `Tokens`, or `Levels((T,), num_levels)` for windows of a stream that has no end.
      body: the network between, (T, num_features) -> (T, outputs).
      num_features: of the embedding.
      context_shape: of p(x | context); (num_classes,) for class labels.
    """
    if not isinstance(event, Tokens | Levels):
        raise TypeError(f"event must be gm.Tokens or gm.Levels, got {event!r}")
    num = event.vocabulary if isinstance(event, Tokens) else event.num_levels
    inputs = num if isinstance(event, Tokens) else num + 1
    net = token_net(body, inputs, num, num_features=num_features, conditional=context_shape is not None)
    return AutoregressiveModel(event, net, CategoricalHead(num), context_shape=context_shape)
