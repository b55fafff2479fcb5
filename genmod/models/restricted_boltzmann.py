"""Restricted Boltzmann machines: two layers of units, x and h, which know of each other and not of themselves (Smolensky 1986).

    log f(x, h) = log_base(x) + log_base(h) + features(x)^T W features(h)

The layers are those of `densities.unit_layers`, so that bits, levels and real numbers mix: with Gaussian x and bits h
-log f = |x - b|^2 / 2s^2 - c.h - x^T W h / s^2. Each layer given the other is independent, and sums out in closed form:

    log f(x) = log_base(x) + log_partition_h(W^T features(x))          minus the free energy

A label is one softmax unit beside x, the context of the model; then log f(x, label) of all labels is a classifier
(Larochelle & Bengio 2008, 10.1145/1390156.1390224). The chain draws h, then x and the label: a step is reversible.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.batching import broadcast_rows, unflatten, vmap_events
from genmod.core.checks import check, check_count, check_parts
from genmod.core.distribution import call_program, over_events
from genmod.core.enumeration import check_num_states, nth_state, num_states
from genmod.core.event import Levels
from genmod.core.types import Array, Context, Key, Params
from genmod.densities import GaussianUnits, SoftmaxUnits, UnitLayer
from genmod.models.unnormalized import Configuration, States, UnnormalizedModel
from genmod.samplers import Kernel, gibbs, mala, moved

_REMEDY = "estimate log Z by gm.inference.normalizer_bracket"


@dataclasses.dataclass(frozen=True)
class RestrictedBoltzmannMachine(UnnormalizedModel):
    """Two layers of units, one of them discrete, and a label if there is one.

    Attributes:
      visible: the layer of x, such as `BernoulliUnits((28, 28))`. hidden: that of h, such as `BernoulliUnits((500,))`.
      num_labels: how many values the label has, which is then the context; 0: there is none.
      num_sweeps: of the chain whose end is a draw. start_scale: of the normal weights that `init` draws, of Gaussian x times s.

    Parameters: {"visible": of its layer, "hidden": of its layer, "weights": W (features of x and labels, features of h)}, and
    "label": of its softmax unit. `init` gives x and label the marginals of the data. `training.ContrastiveStep` trains Gaussian x
    in any unit and about any origin; for the default step of `fit` let each column have mean 0 and variance 1.
    """

    visible: UnitLayer
    hidden: UnitLayer
    num_labels: int = 0
    num_sweeps: int = 1_000
    start_scale: float = 0.01

    def __post_init__(self):
        check_parts(self, visible=UnitLayer, hidden=UnitLayer)
        check_count(num_sweeps=self.num_sweeps)
        real = isinstance(self.visible, GaussianUnits) and isinstance(self.hidden, GaussianUnits)
        check(not real, "visible or hidden must be discrete: two Gaussian layers have no finite Z for all weights")
        known = isinstance(self.num_labels, int | jnp.integer) and (self.num_labels == 0 or self.num_labels >= 2)
        check(known, f"num_labels must be 0 or an integer >= 2, got {self.num_labels!r}")
        check(0 <= self.start_scale < math.inf, f"start_scale must be finite and >= 0, got {self.start_scale}")
        super().__post_init__()

    @property
    def event(self):
        return self.visible.event

    @property
    def context_shape(self):
        return (self.num_labels,) if self.num_labels else None

    @property
    def _label(self) -> SoftmaxUnits:
        return SoftmaxUnits((), self.num_labels)

    # --- one layer given the other ------------------------------------------------------------------------------------------

    @over_events
    def hidden_mean(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """E[h | x] (and the label), any axes + the shape of h; of levels the probability of each. Compiled."""
        return self.hidden.mean(params["hidden"], self._to_hidden(params, x, context))  # type: ignore[arg-type]

    def visible_mean(self, params: Params, h: ArrayLike) -> Array:
        """E[x | h] of hidden units h, any axes + event_shape; of levels the probability of each. Compiled."""
        return call_program(_means_of_visible, self, params, self, jnp.asarray(self.hidden.event.check("h", h)))

    def label_log_prob(self, params: Params, x: ArrayLike) -> Array:
        """log p(label | x) of all labels, any axes + (num_labels,): exact, since Z cancels. Compiled."""
        check(self.num_labels, "this machine has no label; build it with num_labels=...")
        return call_program(_log_probs_of_labels, self, params, self, jnp.asarray(self.event.check("x", x)))

    def _features(self, params: Params, x: Array, context: Context) -> Array:
        features = self.visible.features(params["visible"], x)
        return features if context is None else jnp.concatenate([features, context.astype(features.dtype)])

    def _to_hidden(self, params: Params, x: Array, context: Context) -> Array:
        return jnp.matmul(self._features(params, x, context), params["weights"], precision="highest")

    def _to_visible(self, params: Params, h: Array) -> tuple[Array, Array]:
        inputs = jnp.matmul(params["weights"], self.hidden.features(params["hidden"], h), precision="highest")
        return inputs[: self.visible.num_features], inputs[self.visible.num_features :]

    # --- the model ------------------------------------------------------------------------------------------------------------

    def _init(self, key, x, context):
        params, _ = self.reference({}, x, context)
        weights = self.start_scale * jax.random.normal(key, params["weights"].shape, params["weights"].dtype)
        if not isinstance(self.visible, GaussianUnits):
            return params | {"weights": weights}
        # About the means, in units of s: else h sees means that are large beside s, and nothing of what varies.
        of_label = [] if context is None else [jax.nn.softmax(params["label"]["bias"])]
        of_hidden = self.hidden.mean(params["hidden"], jnp.zeros_like(params["hidden"]["bias"])).reshape(-1)
        offsets = jnp.concatenate([params["visible"]["bias"], *of_label]), of_hidden
        return self.uncentred(self.centred(params, offsets) | {"weights": weights}, offsets)

    def reference(self, params, x, context=None):  # independent units, whatever the parameters
        layers = {"visible": self.visible.fitted(x), "hidden": self.hidden.neutral()}
        if context is not None:
            layers["label"] = self._label.fitted(jnp.argmax(context, -1))
        dtype = layers["visible"]["bias"].dtype
        layers = jax.tree.map(lambda a: a.astype(dtype), layers)
        weights = jnp.zeros((self.visible.num_features + self.num_labels, self.hidden.num_features), dtype)
        parts = [self.visible.log_partition(layers["visible"], jnp.zeros(self.visible.num_features, dtype))]
        parts.append(self.hidden.log_partition(layers["hidden"], jnp.zeros(self.hidden.num_features, dtype)))
        if context is not None:
            parts.append(self._label.log_partition(layers["label"], jnp.zeros(self.num_labels, dtype)))
        return layers | {"weights": weights}, jnp.stack(parts).sum()

    def log_prob_one(self, params, x, context=None, key=None):
        base = self.visible.log_base(params["visible"], x)
        if context is not None:
            base = base + jnp.sum(context.astype(base.dtype) * params["label"]["bias"])
        return base + self.hidden.log_partition(params["hidden"], self._to_hidden(params, x, context))

    def log_density_one(self, params, configuration):
        return self.log_prob_one(params, configuration.x, configuration.context)

    def start_one(self, params, key, x=None, context=None):
        keys, dtype = jax.random.split(key), params["weights"].dtype
        if x is None:
            x = self.visible.sample(params["visible"], keys[0], jnp.zeros(self.visible.num_features, dtype))
        if context is None and self.num_labels:
            context = self._draw_label(params, keys[1], jnp.zeros(self.num_labels, dtype))
        real = isinstance(self.visible, GaussianUnits)
        return Configuration(x.astype(dtype if real else self.event.dtype), None if context is None else context.astype(dtype))

    def kernel(self, params, held=None):
        def draw(key, inputs, x):
            return self.visible.sample(params["visible"], key, inputs)

        return self._alternating(params, held, draw)

    def _draw_label(self, params: Params, key: Key, inputs: Array) -> Array:
        label = self._label.sample(params["label"], key, inputs)
        return jax.nn.one_hot(label, self.num_labels, dtype=inputs.dtype)

    def _alternating(self, params: Params, held: Configuration | None, move_visible: Callable[..., Array]) -> Kernel:
        """The kernel that draws h given x, then moves x given h by `move_visible(key, inputs, x)`, and draws the label."""

        def sweep(key, at):
            keys = jax.random.split(key, 3)
            h = self.hidden.sample(params["hidden"], keys[0], self._to_hidden(params, at.x, at.context))
            to_visible, to_label = self._to_visible(params, h)
            x = move_visible(keys[1], to_visible, at.x)
            new = Configuration(x, None if at.context is None else self._draw_label(params, keys[2], to_label))
            return new if held is None else jax.tree.map(jnp.where, held, at, new)

        return gibbs(sweep)

    # --- sums over one layer --------------------------------------------------------------------------------------------------

    def states(self, params, context=None):
        nums = [num_states(layer.event) if isinstance(layer.event, Levels) else math.inf for layer in (self.hidden, self.visible)]
        num = check_num_states(f"the smaller side of a {type(self).__name__}", int(min(nums)), _REMEDY)
        return self._states_of_hidden(params, context, num) if num == nums[0] else self._states_of_visible(params, context, num)

    def _states_of_hidden(self, params: Params, context: Context, num: int) -> States:
        def log_mass(i):
            h = nth_state(self.hidden.event, i)
            to_visible, to_label = self._to_visible(params, h)
            layers = self.hidden.log_base(params["hidden"], h) + self.visible.log_partition(params["visible"], to_visible)
            return layers + self._label_mass(params, to_label, context)

        def draw(key, i):
            to_visible, _ = self._to_visible(params, nth_state(self.hidden.event, i))
            return self.visible.sample(params["visible"], key, to_visible)

        return States(num, log_mass, draw)

    def _states_of_visible(self, params: Params, context: Context, num: int) -> States:
        def log_mass(i):
            x = nth_state(self.visible.event, i)
            if context is not None or not self.num_labels:
                return self.log_prob_one(params, x, context)
            return jax.nn.logsumexp(self._of_labels(params, x))

        return States(num, log_mass, lambda key, i: nth_state(self.visible.event, i))

    def _label_mass(self, params: Params, inputs: Array, context: Context) -> Array:
        """log of the sum over labels, or of the term of the one in the context; 0 without labels."""
        if context is not None:
            return jnp.sum(context.astype(inputs.dtype) * (params["label"]["bias"] + inputs))
        return self._label.log_partition(params["label"], inputs) if self.num_labels else jnp.zeros((), inputs.dtype)

    def _of_labels(self, params: Params, x: Array) -> Array:
        """log f(x, label) of all labels."""
        labels = jnp.eye(self.num_labels, dtype=params["weights"].dtype)
        return jax.vmap(lambda label: self.log_prob_one(params, x, label))(labels)

    # --- centring (Melchior, Fischer & Wiskott 2016, arXiv:1311.1354) -----------------------------------------------------------

    def offsets_one(self, params, configuration):
        """(x and the label, E[h | x]), flat; of levels one-hot rows and probabilities."""
        features = self._features(params, configuration.x, configuration.context)

        def log_partition(inputs):
            return self.hidden.log_partition(params["hidden"], inputs)

        means = jax.grad(log_partition)(jnp.matmul(features, params["weights"], precision="highest"))
        of_visible, of_hidden = self._log_scales(params)
        return features * jnp.exp(2 * of_visible), means * jnp.exp(2 * of_hidden)

    def centred(self, params, offsets):
        """The biases take in what the other layer adds on average; Gaussian units and their weights are in units of their s."""
        params = self._moved(params, offsets, 1.0)
        return self._in_units(params, offsets, -1.0, self.visible.standard, self.hidden.standard)

    def uncentred(self, params, offsets):
        params = self._in_units(params, offsets, 1.0, self.visible.unstandard, self.hidden.unstandard)
        return self._moved(params, offsets, -1.0)

    def _in_units(self, params: Params, offsets: Any, sign: float, visible: Callable, hidden: Callable) -> Params:
        """The layers by these functions of theirs, and the weights times the units of both to the power of `sign`."""
        of_visible = visible(params["visible"], offsets[0][: self.visible.num_features])
        params = params | {"visible": of_visible, "hidden": hidden(params["hidden"], offsets[1])}
        to_visible, to_hidden = self._log_scales(params)
        return params | {"weights": params["weights"] * jnp.exp(sign * (to_visible[:, None] + to_hidden[None]))}

    def _log_scales(self, params: Params) -> tuple[Array, Array]:
        """log of the units of x and label, and of h."""
        of_label = jnp.zeros(self.num_labels, params["weights"].dtype)
        return jnp.concatenate([self.visible.log_scale(params["visible"]), of_label]), self.hidden.log_scale(params["hidden"])

    def _moved(self, params: Params, offsets: Any, sign: float) -> Params:
        """Biases with `sign` times what the other layer adds at its offsets."""
        visible, hidden = (offset * jnp.exp(-2 * s) for offset, s in zip(offsets, self._log_scales(params), strict=True))
        to_hidden = jnp.matmul(visible, params["weights"], precision="highest")
        to_visible = jnp.matmul(params["weights"], hidden, precision="highest")
        num = self.visible.num_features
        moves = {"visible": to_visible[:num], "hidden": to_hidden} | ({"label": to_visible[num:]} if self.num_labels else {})
        return params | {name: params[name] | {"bias": params[name]["bias"] + sign * move} for name, move in moves.items()}


@functools.partial(jax.jit, static_argnums=0)
def _means_of_visible(model, params, h):
    batch, (rows,) = broadcast_rows((), (h, len(model.hidden.shape)))
    return unflatten(batch, vmap_events(lambda h: model.visible.mean(params["visible"], model._to_visible(params, h)[0]))(rows))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs_of_labels(model, params, x):
    batch, (rows,) = broadcast_rows((), (x, len(model.event_shape)))
    return unflatten(batch, vmap_events(lambda x: jax.nn.log_softmax(model._of_labels(params, x)))(rows))


def gibbs_langevin(
    model: RestrictedBoltzmannMachine,
    params: Params,
    *,
    step_size: float = 0.1,
    num_steps: int = 10,
    kernel_fn: Callable[..., Kernel] = mala,
) -> Kernel:
    """The kernel that draws h given x, and moves x given h by Langevin steps (Liao et al. 2022, arXiv:2210.10284, algorithm 1).

    x keeps something of where it was, in the place of a fresh draw of N(b + W h, s^2): chains in training move less far.

    Args:
      model: one of Gaussian x. params: of it.
      step_size: in units of the variances s^2 of x. num_steps: before h is drawn anew.
      kernel_fn: (log_prob_fn, step_size) -> the kernel of ONE unit: `samplers.mala` leaves p invariant; `samplers.langevin`, the
        paper's, raises the variance of x given h to s^2 / (1 - step_size / 2).

    Raises TypeError for x that are not Gaussian, ValueError for a step_size or num_steps that is not positive.
    """
    check_count(num_steps=num_steps)
    if not isinstance(model.visible, GaussianUnits):
        raise TypeError(f"model must have GaussianUnits as its visible layer for Langevin steps, got {model.visible}")
    kernel = kernel_fn(lambda u: -0.5 * u**2, step_size)  # of a unit in its own standard deviations about its mean
    scale = jnp.exp(params["visible"]["log_scale"]).reshape(model.visible.shape)

    def move(key, inputs, x):
        mean = model.visible.mean(params["visible"], inputs)
        ends, _ = moved(key, kernel, ((x - mean) / scale).reshape(-1), num_steps=num_steps)
        return mean + scale * ends.reshape(mean.shape)

    return model._alternating(params, None, move)
