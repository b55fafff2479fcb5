"""Vector-quantised autoencoders: the latents of x are the codes of its features (van den Oord et al. 2017, arXiv:1711.00937).

    c(x) = the nearest codes of encoder(x),     log p(x) = log sum_c p(c) p(x | c) >= log p(x | c(x)) + log p(c(x))

One term of the sum bounds it from below, so `log_prob` is a LOWER_BOUND that wants no key: the ELBO of a point posterior. The
loss is minus the bound, and what moves codes and features towards each other (eq. 3),

    -log p(x | c) - log p(c) + |sg(h) - e_c|^2 + beta |h - sg(e_c)|^2,      h = encoder(x)

where sg stops the gradient, and that of the decoder goes from e_c to h unchanged. The first two terms are in nats, the squares in
units of the features. The prior is trained with the rest; no gradient passes through codes.
"""

import dataclasses
import functools
import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod import nets
from genmod.core.batching import vmap_events
from genmod.core.checks import check, check_count, check_parts, check_shape
from genmod.core.distribution import Distribution, Likelihood, over_events
from genmod.core.event import Levels
from genmod.core.keys import check_key
from genmod.core.numerics import real
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Context, Key, Params, Shape
from genmod.densities import Head, UniformLevels
from genmod.losses.quantization import code_usage, nearest_codes, vector_quantization
from genmod.models.base import Model, as_raw, present


class CodebookReport(NamedTuple):
    """How a data set uses a codebook.

    Attributes:
      counts: how often each code is used, (num_codes,) integers. perplexity: exp of the entropy of the codes' frequencies.
      num_dead: codes that are never used.
    """

    counts: Any
    perplexity: float
    num_dead: int

    def __str__(self):
        num = len(self.counts)
        return f"{num - self.num_dead} of {num} codes used, perplexity {self.perplexity:.2f}"


@dataclasses.dataclass(frozen=True)
class VQVAE(Model):
    """A vector-quantised autoencoder (`gm.flows.vector_quantized_autoencoder` builds one).

    Attributes:
      shape: of a datum.
      encoder: a Linen module x -> features, positions + (code_dim,) or as many in one vector; with a context, (x, context) ->
        features. It sees x as real numbers.
      decoder: a Linen module from codes' vectors, positions + (code_dim,), to raw numbers, as many as shape + (head.num_params,)
        has, of any shape; with a context, (vectors, context) -> raw numbers.
      head: the law of x given the raw numbers.
      positions: the shape of the codes of one datum; () is one code.
      num_codes, code_dim: K and D of the codebook, (K, D).
      prior: of the codes, over `Levels(positions, num_codes)`; conditional on the context where it has a context_shape. None:
        uniform.
      commitment: beta >= 0, finite.
      context_shape: of p(x | context).

    Metrics of the loss: the bound and its parts in nats; "code_perplexity" and "codes_used", a share, of the batch; and
    "squared_distance" of features and codes. Parameters: {"encoder", "codebook", "decoder", "prior"}; the codebook starts at
    features of the data. Raises ValueError for parts that do not fit each other, at the latest by `init`.
    """

    shape: Shape
    encoder: Any
    decoder: Any
    head: Head
    positions: Shape
    num_codes: int
    code_dim: int
    prior: Distribution = None  # type: ignore[assignment]
    commitment: float = 0.25
    context_shape: Shape | None = None

    likelihood = Likelihood.LOWER_BOUND
    reparameterized = False

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        object.__setattr__(self, "positions", check_shape("positions", self.positions, least=1))
        check_count(num_codes=self.num_codes, code_dim=self.code_dim)
        if not isinstance(self.commitment, numbers.Real):
            raise TypeError(f"commitment must be a number, got {self.commitment!r}")
        check(0 <= self.commitment < math.inf, f"commitment must be >= 0 and finite, got {self.commitment}")
        prior = UniformLevels(self.positions, self.num_codes) if self.prior is None else self.prior
        object.__setattr__(self, "prior", prior)
        check_parts(self, head=Head, prior=Distribution)
        super().__post_init__()
        check(prior.event == self.code_event, f"prior must be over {self.code_event}, the codes, got one over {prior.event}")
        wanted = f"prior wants a context of shape {prior.context_shape}, the model has {self.context_shape}"
        check(prior.context_shape in (None, self.context_shape), wanted)
        kind = f"that of {type(prior).__name__} is {prior.likelihood.name}"
        check(prior.likelihood is Likelihood.EXACT, f"prior must have an EXACT log_prob, {kind}")

    @property
    def event(self):
        return self.head.event(self.shape)

    @property
    def code_event(self) -> Levels:
        """What the codes of one datum are."""
        return Levels(self.positions, self.num_codes)

    @over_events
    def encode(self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """The codes of events x, integers, any axes + positions. Compiled; nothing is random, so no key is wanted."""
        return self.encode_one(params, x, context)  # type: ignore[arg-type]

    @over_events(event=lambda self: self.code_event)
    def decode(self, params: Params, codes: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None) -> Array:
        """E[x | codes], floats, any axes + event_shape. Compiled; no key is wanted."""
        return self.decode_one(params, codes, context)  # type: ignore[arg-type]

    def encode_one(self, params: Params, x: Array, context: Context = None) -> Array:
        """The codes of ONE event."""
        codes = nearest_codes(self.features_one(params, x, context), params["codebook"])
        return codes.astype(self.code_event.dtype)

    def decode_one(self, params: Params, codes: Array, context: Context = None) -> Array:
        """E[x | codes] of ONE event, a float array of event_shape."""
        return self.head.mean(self._raw(params, params["codebook"][codes], context))

    def features_one(self, params: Params, x: Array, context: Context = None) -> Array:
        """What is quantised of ONE event, positions + (code_dim,)."""
        features = nets.apply(self.encoder, params["encoder"], *present(real(x), context))
        wanted = (*self.positions, self.code_dim)
        fits = features.shape in (wanted, (math.prod(wanted),))
        check(fits, f"the encoder must give features {wanted}, positions + (code_dim,), got shape {features.shape}")
        return features.reshape(wanted)

    def codebook_report(self, params: Params, x: Any, context: Any = None) -> CodebookReport:
        """How the codes are used over events x, (n,) + event_shape."""
        x, context, _ = self.read(x if context is None else (x, context))
        counts = np.bincount(np.ravel(self.encode(params, x, context)), minlength=self.num_codes)
        share = counts[counts > 0] / counts.sum()
        return CodebookReport(counts, float(np.exp(-np.sum(share * np.log(share)))), int((counts == 0).sum()))

    def restart_dead_codes(self, params: Params, key: Key, x: Any, context: Any = None, *, min_count: int = 1) -> Params:
        """The parameters with codes that are hardly used over events x moved to features of random ones of them.

        Args:
          params: of the model. key: of the choice.
          x, context: (n,) + event_shape, and their contexts.
          min_count: a code that is used less often is dead.

        A codebook collapses onto few codes where the others are far from all features: they get no gradient. Train on with
        `gm.fit(..., params=restarted)`.
        """
        check_count(min_count=min_count)
        x, context, _ = self.read(x if context is None else (x, context))
        dead = self.codebook_report(params, x, context).counts < min_count
        moved = _restarted(self, params, check_key(key), x, context)
        return params | {"codebook": jnp.where(jnp.asarray(dead)[:, None], moved, params["codebook"])}

    def _init(self, key, x, context):
        keys = jax.random.split(key, 4)
        given = () if context is None else (context[0],)
        params = {"encoder": nets.init(self.encoder, keys[0], real(x)[0], *given)}
        params["codebook"] = self._random_features(params, keys[1], x, context)
        vectors = jnp.zeros((*self.positions, self.code_dim), params["codebook"].dtype)
        params["decoder"] = nets.init(self.decoder, keys[2], vectors, *given)
        codes = self.code_event.example(x.shape[0])
        params["prior"] = self.prior._init(keys[3], codes, self._for_prior(context))
        jax.eval_shape(lambda: self._raw(params, vectors, *given))
        return params

    def loss(self, params, key, batch, *, step=None):
        x, context, weight = self.read(batch)
        axes = (0, None if context is None else 0)
        terms, codes = vmap_events(functools.partial(self._terms_one, params), axes)(x, context)
        terms["nll_upper_bound_nats"] = terms["distortion_nats"] + terms["rate_nats"]
        metrics = {}
        for name in ("nll_upper_bound_nats", "distortion_nats", "rate_nats"):
            metrics[name], metrics[f"{name}_sem"] = mean_and_sem(terms[name], weight)
        codebook, _ = mean_and_sem(terms["codebook"], weight)
        commitment, _ = mean_and_sem(terms["commitment"], weight)
        metrics["code_perplexity"], metrics["codes_used"] = code_usage(codes, self.num_codes, weight)
        loss = metrics["nll_upper_bound_nats"] + codebook + self.commitment * commitment
        return loss, metrics | {"squared_distance": commitment}

    def log_prob_one(self, params, x, context=None, key=None):
        terms, _ = self._terms_one(params, x, context)
        return -terms["distortion_nats"] - terms["rate_nats"]

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        codes = self.prior.sample_one(params["prior"], keys[0], self._for_prior(context))
        return self.head.sample(self._raw(params, params["codebook"][codes], context), keys[1])

    def _terms_one(self, params, x, context):
        """(the terms of the loss by name, codes) of ONE event."""
        codes, vectors, codebook, commitment = vector_quantization(self.features_one(params, x, context), params["codebook"])
        codes = codes.astype(self.code_event.dtype)
        distortion = -self.head.log_prob(self._raw(params, vectors, context), x).sum()
        rate = -self.prior.log_prob_one(params["prior"], codes, self._for_prior(context))
        return {"distortion_nats": distortion, "rate_nats": rate, "codebook": codebook, "commitment": commitment}, codes

    def _random_features(self, params, key, x, context):
        """A feature of random data for each code, with a hundredth of their spread as noise, so that no two are equal.

        Where features are all alike, their size, or 1, is taken for the spread.
        """
        keys = jax.random.split(key)
        num = x.shape[0] * math.prod(self.positions)
        chosen = jax.random.choice(keys[0], num, (self.num_codes,), replace=num < self.num_codes)
        rows, position = chosen // math.prod(self.positions), chosen % math.prod(self.positions)
        axes = (0, None if context is None else 0)
        features = vmap_events(functools.partial(self.features_one, params), axes)
        found = features(x[rows], None if context is None else context[rows]).reshape(self.num_codes, -1, self.code_dim)
        found = jnp.take_along_axis(found, position[:, None, None], 1)[:, 0]
        noise = jax.random.normal(keys[1], found.shape, found.dtype)
        size, spread = jnp.abs(found).max(0), found.std(0)
        alike = spread <= 8.0 * jnp.finfo(found.dtype).eps * size  # equal numbers may differ from their mean by rounding
        return found + 0.01 * jnp.where(alike, jnp.maximum(size, 1.0), spread)[None] * noise

    def _for_prior(self, context):
        return None if self.prior.context_shape is None else context

    def _raw(self, params, vectors, context=None):
        raw = nets.apply(self.decoder, params["decoder"], *present(vectors, context))
        return as_raw("the decoder", raw, self.shape, self.head)


@functools.partial(jax.jit, static_argnums=0)
def _restarted(model, params, key, x, context):
    return model._random_features(params, key, x, context)
