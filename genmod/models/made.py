"""MADE: all conditionals by one pass of a masked network, exact (Germain et al. 2015, arXiv:1502.03509).

    log p(x | context) = log 1/M sum_o prod_i p(x_o(i) | x_o(1), ..., x_o(i-1), context),      o one of M orders of D entries

The M orders share their weights: an order permutes the rows and columns of the first and the last layer, which is to change the
masks. One order is the usual MADE. With several, training takes one for each minibatch, drawn at random (sec. 4.1): the loss is
then an upper bound on the NLL; `log_prob`, and the loss of validation (step=None), is that of the mixture, M passes.

Sampling computes each hidden unit once, right after the entry it waits for: D conditionals at about the cost of one pass.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from genmod import losses, nets
from genmod.core.batching import vmap_events
from genmod.core.checks import check_parts, check_shape
from genmod.core.distribution import Likelihood
from genmod.core.event import Event, Levels
from genmod.core.numerics import context_inputs, real
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import CategoricalHead, Head
from genmod.models.base import Model, likelihood_loss


@dataclasses.dataclass(frozen=True)
class MADEModel(Model):
    """p(x | context) of D entries by a `nets.MADE`, EXACT.

        model = gm.models.MADEModel((16,), gm.nets.MADE((128,)), gm.densities.BernoulliHead())

    Attributes:
      shape: of an event; D entries in raster order.
      net: the network; what it gives per entry is set by the head. It reads levels one-hot under a `CategoricalHead`, else scaled
        to -1 .. 1; other numbers as they are.
      head: the law of one entry.
      orders: permutations of 0 .. D - 1, each an order in which entries are produced; None: raster order. `random_orders` makes
        some.
      context_shape: shape of the context, None without one.

    Parameters: {"net"}. Raises TypeError or ValueError for parts that do not fit each other.
    """

    shape: Shape
    net: nets.MADE
    head: Head
    orders: tuple[tuple[int, ...], ...] | None = None
    context_shape: Shape | None = None

    likelihood = Likelihood.EXACT

    def __post_init__(self):
        check_parts(self, net=nets.MADE, head=Head)
        object.__setattr__(self, "shape", check_shape("shape", self.shape, least=1))
        super().__post_init__()
        if self.orders is None:
            return
        if not isinstance(self.orders, tuple) or not self.orders:
            raise TypeError(f"orders must be a tuple of at least one permutation, got {self.orders!r}; write (order,)")
        for order in self.orders:
            if sorted(check_shape("orders", order)) != list(range(self._dim)):
                raise ValueError(f"orders must hold permutations of 0..{self._dim - 1}, got {order}")

    @property
    def event(self) -> Event:
        return self.head.event(self.shape)

    @property
    def reparameterized(self):
        return self.head.reparameterized and self._num_orders == 1

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = batch = self.read(batch)
        if self._num_orders == 1 or step is None:
            return likelihood_loss(self, params, key, batch)
        axes = (None, 0, None if context is None else 0)
        order = self._orders[jax.random.randint(key, (), 0, self._num_orders)]
        log_prob = vmap_events(lambda p, x, c: self._log_prob_in_order(p, x, c, order), axes)(params, x, context)
        return losses.negative_log_likelihood(lambda _: log_prob, x, name="nll_upper_bound_nats", weight=weight)

    def _init(self, key, x, context):
        rest = () if context is None else context_inputs(context[0], real(context).dtype)
        return {"net": nets.init(self._network, key, self._seen(real(x[0]).reshape(-1)), *rest)}

    def log_prob_one(self, params, x, context=None, key=None):
        if self._num_orders == 1:
            return self._log_prob_in_order(params, x, context, self._orders[0])
        each = jax.vmap(self._log_prob_in_order, (None, None, None, 0))(params, x, context, self._orders)
        return jax.nn.logsumexp(each) - math.log(self._num_orders)

    def sample_one(self, params, key, context=None):
        if self._num_orders == 1:
            return self.sample_and_log_prob_one(params, key, context)[0]
        keys = jax.random.split(key)
        return self._draw(params, keys[0], context, self._orders[jax.random.randint(keys[1], (), 0, self._num_orders)])[0]

    def sample_and_log_prob_one(self, params, key, context=None):
        if self._num_orders > 1:
            return super().sample_and_log_prob_one(params, key, context)
        return self._draw(params, key, context, self._orders[0])

    def _log_prob_in_order(self, params: Params, x: Array, context: Context, order: Array) -> Array:
        x = x.reshape(-1)[order]
        seen = self._seen(real(x))
        raw = nets.apply(self._network, self._reordered(params, order), seen, *context_inputs(context, seen.dtype))
        return self.head.log_prob(raw, x).sum()

    def _draw(self, params: Params, key: Key, context: Context, order: Array) -> tuple[Array, Array]:
        """ONE draw, its entries produced in this order, and its log p in this order."""
        dtype = jnp.result_type(*jax.tree.leaves(params))

        def next_input(raw, i):
            x = self.head.sample(raw, jax.random.fold_in(key, i.astype(jnp.int32)))
            return x.astype(dtype), self.head.log_prob(raw, x)

        reordered, numbers = self._reordered(params, order), jnp.arange(self._dim, dtype=dtype)
        rest = context_inputs(context, dtype) or (None,)
        x, log_p = self._network.scan(reordered, next_input, numbers, *rest, features=self._seen)
        x = jnp.zeros_like(x).at[order].set(x).reshape(self.shape)
        return x if jnp.issubdtype(self.event.dtype, jnp.floating) else x.astype(self.event.dtype), log_p.sum()

    def _reordered(self, params: Params, order: Array) -> Params:
        """The network's parameters for entries that come in this order: those of each entry move with it."""
        if self.orders is None:
            return params["net"]
        net, sizes = params["net"], self.net.hidden_sizes

        def moved(kernel):
            """With the rows of the inputs, (D * features, ...), in this order."""
            return kernel.reshape(self._dim, -1, *kernel.shape[1:])[order].reshape(kernel.shape)

        net = net | {"kernel_0": moved(net["kernel_0"])} if sizes else net
        units, direct = jnp.split(net["kernel_out"], [sizes[-1] if sizes else 0])
        direct = moved(direct) if direct.shape[0] else direct
        return net | {"kernel_out": jnp.concatenate([units, direct])[:, order], "bias_out": net["bias_out"][order]}

    def _seen(self, x: Array) -> Array:
        """What the network reads of entries x, a vector of floats."""
        if not isinstance(self.event, Levels):
            return x
        if isinstance(self.head, CategoricalHead):
            return jax.nn.one_hot(x.astype(jnp.int32), self.event.num_levels, dtype=x.dtype)
        return x * (2.0 / max(1, self.event.num_levels - 1)) - 1.0

    @property
    def _network(self) -> nets.MADE:
        return self.net.clone(num_outputs=self.head.num_params)

    @property
    def _dim(self) -> int:
        return math.prod(self.shape)

    @property
    def _num_orders(self) -> int:
        return 1 if self.orders is None else len(self.orders)

    @property
    def _orders(self) -> Array:
        return jnp.arange(self._dim)[None] if self.orders is None else jnp.asarray(np.asarray(self.orders, np.int32))


def random_orders(num_entries: int, num_orders: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """`num_orders` random permutations of 0 .. num_entries - 1, for `MADEModel`."""
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.permutation(num_entries).tolist()) for _ in range(num_orders))
