"""Base distributions, and the door to Distrax in both directions. Only this file imports Distrax.

A `Density` is a description that, given its parameters, returns a `distrax.Distribution` of one event; most have no
parameters. Any `distrax.Distribution` of batch shape () can stand in its place (`FromDistribution`), any
`distrax.Bijector` in the place of a bijector (`FromDistrax`), and `as_distrax` hands ours to Distrax.
"""

import abc
import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any, ClassVar

import distrax
import jax
import jax.numpy as jnp
import numpy as np

from genmod.base import Array, Bijector, Description, Key, Likelihood, Params, Shape
from genmod.checks import check_context, check_count


class Density(Description, abc.ABC):
    """A distribution of one event of shape `event_shape`. Log-densities are exact, in nats.

    `reparameterized` is False where draws do not carry the gradient of every parameter (the weights of a mixture).
    """

    event_shape: Shape
    reparameterized: ClassVar[bool] = True
    likelihood: Likelihood = Likelihood.EXACT

    @abc.abstractmethod
    def init(self, key: Key, dtype: Any = None) -> Params:
        """The parameters; {} where nothing is learned."""

    @abc.abstractmethod
    def distribution(self, params: Params, dtype: Any = None) -> distrax.Distribution:
        """The Distrax distribution of one event."""

    def log_prob(self, params: Params, z: Array) -> Array:
        """log p(z) of one event, a scalar."""
        if z.shape != self.event_shape:
            raise ValueError(f"z must have shape {self.event_shape}, got {z.shape}")
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):  # Distrax broadcasts
            return jnp.asarray(self.distribution(params, z.dtype).log_prob(z))

    def tempered(self, temperature: float) -> "Density":
        """The density narrowed to `temperature` times its standard deviation; ValueError where that is not defined."""
        raise ValueError(f"temperature={temperature} wants a Normal base, got {type(self).__name__}")

    def sample(self, params: Params, key: Key, shape: Shape = (), dtype: Any = None) -> Array:
        """Independent draws, shape + event_shape."""
        with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
            draws = self.distribution(params, dtype).sample(seed=key, sample_shape=shape)
        return draws if dtype is None else draws.astype(dtype)


class _Standard(Density, abc.ABC):
    """Independent coordinates of one fixed scalar law."""

    def init(self, key, dtype=None):
        return {}

    def distribution(self, params, dtype=None):
        return distrax.Independent(self._scalar(jnp.zeros(self.event_shape, dtype)), len(self.event_shape))

    @abc.abstractmethod
    def _scalar(self, zeros: Array) -> distrax.Distribution: ...


@dataclasses.dataclass(frozen=True)
class Normal(_Standard):
    """N(0, scale^2) in every coordinate."""

    event_shape: Shape
    scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale must be > 0, got {self.scale}")

    def tempered(self, temperature):
        temperature = float(temperature)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be > 0 and finite, got {temperature}")
        return Normal(self.event_shape, self.scale * temperature)

    def _scalar(self, zeros):
        return distrax.Normal(zeros, zeros + self.scale)


@dataclasses.dataclass(frozen=True)
class Laplace(_Standard):
    """Laplace(0, 1) in every coordinate."""

    event_shape: Shape

    def _scalar(self, zeros):
        return distrax.Laplace(zeros, jnp.ones_like(zeros))


@dataclasses.dataclass(frozen=True)
class Uniform(_Standard):
    """U(low, high) in every coordinate; log p is -inf outside, so the bijector must map the data into the box."""

    event_shape: Shape
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"Uniform wants low < high, got low={self.low}, high={self.high}")

    def _scalar(self, zeros):
        return distrax.Uniform(zeros + self.low, zeros + self.high)


@dataclasses.dataclass(frozen=True)
class StudentT(_Standard):
    """Student's t with `df` degrees of freedom in every coordinate: heavy tails, which an affine flow cannot make."""

    event_shape: Shape
    df: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        if not self.df > 0:
            raise ValueError(f"df must be > 0, got {self.df}")

    def _scalar(self, zeros):
        return _StudentT(zeros + self.df)


@dataclasses.dataclass(frozen=True)
class FullNormal(Density):
    """A Gaussian with learned mean and Cholesky factor; events are vectors."""

    event_shape: Shape

    def __post_init__(self):
        super().__post_init__()
        _check_vector(self)

    def init(self, key, dtype=None):
        (dim,) = self.event_shape
        return {"mean": jnp.zeros(dim, dtype), "lower": jnp.zeros((dim, dim), dtype), "log_scale": jnp.zeros(dim, dtype)}

    def distribution(self, params, dtype=None):
        factor = jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["log_scale"]))
        return distrax.MultivariateNormalTri(params["mean"], factor)


@dataclasses.dataclass(frozen=True)
class GaussianMixture(Density):
    """A learned mixture of diagonal Gaussians; events are vectors. Means start spread like N(0, 1)."""

    event_shape: Shape
    num_components: int = 8
    reparameterized: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        _check_vector(self)
        check_count(num_components=self.num_components)

    def init(self, key, dtype=None):
        shape = (self.num_components, *self.event_shape)
        mean = jax.random.normal(key, shape, dtype or float)
        return {"logits": jnp.zeros(self.num_components, dtype), "mean": mean, "log_scale": jnp.zeros(shape, dtype)}

    def distribution(self, params, dtype=None):
        components = distrax.MultivariateNormalDiag(params["mean"], jnp.exp(params["log_scale"]))
        return distrax.MixtureSameFamily(distrax.Categorical(params["logits"]), components)


@dataclasses.dataclass(frozen=True)
class Custom(Density):
    """A fixed law given by functions: `sample_fn(key, shape)` -> shape + event_shape, and `log_prob_fn(z)`, nats of one event.

    Without log_prob_fn the law can be drawn from only, as the source of flow matching; what stands on it has likelihood NONE.
    A toy set serves with `Custom((2,), toy.sample, toy.log_prob)`, toy = its Dataset's `.density`.
    """

    event_shape: Shape
    sample_fn: Callable[[Key, Shape], Array]
    log_prob_fn: Callable[[Array], Array] | None = None
    reparameterized: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("sample_fn", "log_prob_fn"):
            function = getattr(self, name)
            if isinstance(function, types.MethodType):  # these compare by the identity of their owner
                object.__setattr__(self, name, _Method(function.__self__, function.__func__))
        super().__post_init__()

    @property
    def likelihood(self):
        return Likelihood.EXACT if self.log_prob_fn else Likelihood.NONE

    def init(self, key, dtype=None):
        return {}

    def distribution(self, params, dtype=None):
        return _Custom(self)


@dataclasses.dataclass(frozen=True)
class FromDistribution(Density):
    """A `distrax.Distribution` of batch shape () as a fixed base; build it with `as_density`."""

    event_shape: Shape
    frozen: "_Frozen"

    def init(self, key, dtype=None):
        return {}

    def distribution(self, params, dtype=None):
        return self.frozen.thaw(dtype)


@dataclasses.dataclass(frozen=True)
class FromDistrax(Bijector):
    """A `distrax.Bijector` as one of ours, its arrays constant; build it with `from_distrax`."""

    frozen: "_Frozen"
    event_ndims: int

    def _init(self, key, x, context):
        self._thawed(x[0])
        return {}

    def _forward(self, params, z, context):
        x, log_det = self._thawed(z).forward_and_log_det(z)
        return x, log_det.sum()

    def _inverse(self, params, x, context):
        z, log_det = self._thawed(x).inverse_and_log_det(x)
        return z, log_det.sum()

    def _thawed(self, x):
        if x.ndim < self.event_ndims:
            raise ValueError(f"this distrax bijector takes events of at least {self.event_ndims} axes, got shape {x.shape}")
        return self.frozen.thaw(x.dtype)


def as_density(base: "Density | distrax.Distribution | None", event_shape: Shape) -> Density:
    """`base` as a Density of `event_shape`: None is the standard normal, a Distrax distribution is kept fixed.

    Raises TypeError for anything else, ValueError where the event shapes differ.
    """
    if base is None:
        return Normal(event_shape)
    if isinstance(base, distrax.Distribution):
        if base.batch_shape:
            raise ValueError(f"base must have batch shape (), got {base.batch_shape}; wrap it in distrax.Independent")
        base = FromDistribution(tuple(base.event_shape), _Frozen.of(base))
    if not isinstance(base, Density):
        raise TypeError(f"base must be a gm.densities.Density or a distrax.Distribution, got {type(base).__name__}")
    if base.event_shape != event_shape:
        raise ValueError(f"base has event shape {base.event_shape}, the flow {event_shape}")
    return base


def from_distrax(bijector: distrax.Bijector) -> Bijector:
    """A `distrax.Bijector` as one of ours. Its arrays are constants, in the precision in which they were made.

    Raises TypeError for another type, ValueError where input and output ranks differ.
    """
    if not isinstance(bijector, distrax.Bijector):
        raise TypeError(f"bijector must be a distrax.Bijector, got {type(bijector).__name__}")
    if bijector.event_ndims_in != bijector.event_ndims_out:
        raise ValueError("a distrax bijector that changes the rank of its event cannot be used")
    return FromDistrax(_Frozen.of(bijector), bijector.event_ndims_in)


def as_distrax(bijector: Bijector, params: Params, context: Array | None = None, *, event_ndims: int = 1) -> distrax.Bijector:
    """Our bijector with its parameters (and one context) as a `distrax.Bijector`, for `distrax.Transformed` and the like.

    `event_ndims` is the rank of a latent event; leading axes are batch, as Distrax has it. A bijector that changes the rank
    (`MultiScale`: a vector to an image) must know its `event_shape`.
    """
    context = check_context(type(bijector).__name__, context, bijector.context_shape)
    return _AsDistrax(bijector, params, context, event_ndims)


class _AsDistrax(distrax.Bijector):
    def __init__(self, bijector, params, context, event_ndims):
        shape = bijector.event_shape  # of x
        super().__init__(event_ndims_in=event_ndims, event_ndims_out=event_ndims if shape is None else len(shape))
        self._bijector, self._params, self._context = bijector, params, context

    def forward_and_log_det(self, x):
        return self._batched(self._bijector.forward_and_log_det, x, self.event_ndims_in)

    def inverse_and_log_det(self, y):
        return self._batched(self._bijector.inverse_and_log_det, y, self.event_ndims_out)

    def _batched(self, direction, x, event_ndims):
        def fn(event):
            return direction(self._params, event, self._context)

        for _ in range(x.ndim - event_ndims):
            fn = jax.vmap(fn)
        return fn(x)


@dataclasses.dataclass(frozen=True)
class _Method:
    """A bound method that equals another of an equal owner."""

    owner: Any
    function: Callable

    def __call__(self, *args):
        return self.function(self.owner, *args)


class _Custom(distrax.Distribution):
    def __init__(self, law: Custom):
        super().__init__()
        self._law = law

    @property
    def event_shape(self):
        return self._law.event_shape

    @property
    def batch_shape(self):
        return ()

    def _sample_n(self, key, n):
        z = self._law.sample_fn(key, (n,))
        if z.shape != (n, *self._law.event_shape):
            raise ValueError(f"sample_fn must return shape {(n, *self._law.event_shape)}, got {z.shape}")
        return z

    def log_prob(self, value):
        if self._law.log_prob_fn is None:
            raise NotImplementedError("this base can be drawn from but has no log_prob; give it a log_prob_fn")
        return self._law.log_prob_fn(value)


class _StudentT(distrax.Distribution):
    def __init__(self, df):
        super().__init__()
        self._df = df

    @property
    def event_shape(self):
        return ()

    @property
    def batch_shape(self):
        return self._df.shape

    def _sample_n(self, key, n):
        return jax.random.t(key, self._df, (n, *self._df.shape), self._df.dtype)

    def log_prob(self, value):
        return jax.scipy.stats.t.logpdf(value, self._df)


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """A pytree of arrays as a hashable value: structure and bytes."""

    structure: Any
    leaves: tuple[tuple[bytes, str, Shape], ...]

    @classmethod
    def of(cls, tree: Any) -> "_Frozen":
        leaves, structure = jax.tree.flatten(tree)
        arrays = [np.asarray(leaf) for leaf in leaves]
        return cls(structure, tuple((a.tobytes(), a.dtype.name, a.shape) for a in arrays))

    def thaw(self, dtype: Any = None) -> Any:
        arrays = [jnp.asarray(np.frombuffer(data, name).reshape(shape)) for data, name, shape in self.leaves]
        if dtype is not None:
            arrays = [a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arrays]
        return jax.tree.unflatten(self.structure, arrays)


def _check_vector(density: Density) -> None:
    if len(density.event_shape) != 1:
        raise ValueError(f"{type(density).__name__} is a law of vectors, got event_shape {density.event_shape}")
