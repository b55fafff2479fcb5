"""Boltzmann machines: bits s = (x, h) in which every pair may be coupled (Ackley, Hinton & Sejnowski 1985).

    log f(s) = b.s + sum over i < j of W_ij s_i s_j

h, of which there may be none, is hidden. Each bit given all others is a Bernoulli of sigmoid(b_i + sum_j W_ij s_j). A step of the
chain draws all of them in a random order, so that it is reversible. Training takes h given x from chains, too.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check, check_count, check_shape, check_whole
from genmod.core.enumeration import check_num_states, log_sum, nth_state
from genmod.core.event import Levels
from genmod.core.types import Array, Params, Shape
from genmod.densities import BernoulliUnits
from genmod.models.unnormalized import Configuration, States, UnnormalizedModel
from genmod.samplers import Kernel, gibbs
from genmod.samplers.base import walk


@dataclasses.dataclass(frozen=True)
class BoltzmannMachine(UnnormalizedModel):
    """Bits with a coupling for every pair. `log_prob` sums over all states of the hidden bits, at most 20.

    Attributes:
      shape: of x. num_hidden: the number of hidden bits.
      num_sweeps: of the chain whose end is a draw. num_hidden_sweeps: of that whose end is a draw of the hidden bits given x.
      start_scale: of the normal couplings that `init` draws.

    Parameters: {"bias": b (D,), x before h; "couplings": W_ij of the pairs i < j, (D (D - 1) / 2,), as `numpy.triu_indices(D, 1)`
    has them}. `init` gives x the marginals of the data.
    """

    shape: Shape
    num_hidden: int = 0
    num_sweeps: int = 1_000
    num_hidden_sweeps: int = 10
    start_scale: float = 0.01

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        check_count(num_sweeps=self.num_sweeps, num_hidden_sweeps=self.num_hidden_sweeps)
        check_whole(num_hidden=self.num_hidden)
        check(0 <= self.start_scale < math.inf, f"start_scale must be finite and >= 0, got {self.start_scale}")
        super().__post_init__()

    @property
    def event(self):
        return Levels(self.shape, 2)

    @property
    def num_visible(self) -> int:
        """The number of bits of x."""
        return math.prod(self.shape)

    @property
    def num_units(self) -> int:
        """D, the number of all bits."""
        return self.num_visible + self.num_hidden

    def coupling_matrix(self, params: Params) -> Array:
        """W as a symmetric matrix (D, D) with zeros on its diagonal."""
        upper = jnp.zeros((self.num_units, self.num_units), params["couplings"].dtype)
        upper = upper.at[np.triu_indices(self.num_units, 1)].set(params["couplings"])
        return upper + upper.T

    def _init(self, key, x, context):
        params, _ = self.reference({}, x)
        couplings = params["couplings"]
        return params | {"couplings": self.start_scale * jax.random.normal(key, couplings.shape, couplings.dtype)}

    def reference(self, params, x, context=None):  # independent units, whatever the parameters
        bias = jnp.pad(BernoulliUnits(self.shape).fitted(x)["bias"], (0, self.num_hidden))
        num = self.num_units * (self.num_units - 1) // 2
        return {"bias": bias, "couplings": jnp.zeros(num, bias.dtype)}, jax.nn.softplus(bias).sum()

    def log_prob_one(self, params, x, context=None, key=None):
        matrix, bits, num = self.coupling_matrix(params), self._bits(params, x), self.num_visible
        log_f = _log_f(params["bias"][:num], matrix[:num, :num], bits)
        if not self.num_hidden:
            return log_f
        check_num_states(f"the hidden side of a {type(self).__name__}", 2**self.num_hidden, "train and sample it by chains")
        bias = params["bias"][num:] + jnp.matmul(matrix[num:, :num], bits, precision="highest")
        own = matrix[num:, num:]
        return log_f + log_sum(lambda i: _log_f(bias, own, _digits(i, bias)), 2**self.num_hidden)

    def log_density_one(self, params, configuration):
        return _log_f(params["bias"], self.coupling_matrix(params), self._units(params, configuration))

    def start_one(self, params, key, x=None, context=None):
        keys = jax.random.split(key)
        bits = jax.random.uniform(keys[0], (self.num_units,), params["bias"].dtype) < jax.nn.sigmoid(params["bias"])
        begin = self._configuration(bits)
        if x is None:
            return begin
        begin = begin._replace(x=x.astype(begin.x.dtype))
        if not self.num_hidden:
            return begin
        kernel = self._kernel(params, np.arange(self.num_visible, self.num_units), None)
        return walk(kernel.step, kernel.init(begin), jax.random.split(keys[1], self.num_hidden_sweeps))[0].position

    def kernel(self, params, held=None):
        if held is None:
            return self._kernel(params, np.arange(self.num_units), None)
        parts = [jnp.broadcast_to(held.x, self.shape).reshape(-1)]
        if self.num_hidden:
            parts.append(jnp.broadcast_to(False if held.hidden is None else held.hidden, (self.num_hidden,)))
        return self._kernel(params, np.arange(self.num_units), jnp.concatenate(parts))

    def _kernel(self, params: Params, which: np.ndarray, held: Array | None) -> Kernel:
        """The kernel that draws the bits `which` once each, in random order, but for those that are held."""
        matrix = self.coupling_matrix(params)

        def sweep(key, at):
            keys = jax.random.split(key)
            noise = jax.random.uniform(keys[1], which.shape, matrix.dtype)

            def visit(units, each):
                i, u = each
                drawn = u < jax.nn.sigmoid(params["bias"][i] + jnp.matmul(matrix[i], units, precision="highest"))
                stays = jnp.array(False) if held is None else held[i]
                return units.at[i].set(jnp.where(stays, units[i], drawn.astype(units.dtype))), None

            units, _ = jax.lax.scan(visit, self._units(params, at), (jax.random.permutation(keys[0], which), noise))
            return self._configuration(units)

        return gibbs(sweep)

    def states(self, params, context=None):
        num = check_num_states(f"a {type(self).__name__}", 2**self.num_units, "estimate log Z by gm.inference.normalizer_bracket")
        matrix, bias = self.coupling_matrix(params), params["bias"]
        return States(
            num, lambda i: _log_f(bias, matrix, _digits(i, bias)), lambda key, i: self._configuration(_digits(i, bias)).x
        )

    # --- centring (Melchior, Fischer & Wiskott 2016, arXiv:1311.1354) ---------------------------------------------------------

    def offsets_one(self, params, configuration):
        return self._units(params, configuration)

    def centred(self, params, offsets):
        """The bias of a bit takes in what the others add on average."""
        return params | {"bias": params["bias"] + jnp.matmul(self.coupling_matrix(params), offsets, precision="highest")}

    def _bits(self, params: Params, x: Array) -> Array:
        return x.reshape(-1).astype(params["bias"].dtype)

    def _units(self, params: Params, at: Configuration) -> Array:
        bits = self._bits(params, at.x)
        return bits if at.hidden is None else jnp.concatenate([bits, self._bits(params, at.hidden)])

    def _configuration(self, units: Array) -> Configuration:
        units = units.astype(self.event.dtype)
        hidden = units[self.num_visible :] if self.num_hidden else None
        return Configuration(units[: self.num_visible].reshape(self.shape), None, hidden)


def _log_f(bias: Array, matrix: Array, bits: Array) -> Array:
    return jnp.dot(bits, bias + 0.5 * jnp.matmul(matrix, bits, precision="highest"), precision="highest")


def _digits(i: Array, bias: Array) -> Array:
    """The bits of the number i, one for each bias."""
    return nth_state(Levels(bias.shape, 2), i).astype(bias.dtype)
