"""`check_bijection`: does a bijector keep its promises? Run it on every layer of your own.

Where it looks is said in `points`, what rounding is allowed in `exactness`, what a kink is in `smoothness`. A row of the report
is about the point where an error exceeds by most what is allowed there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.bijectors.base import Bijector
from genmod.bijectors.distrax import as_bijector
from genmod.core.checks import check
from genmod.core.distribution import Likelihood
from genmod.core.params import trainable_mask
from genmod.core.types import REALS, Interval, Key, Params
from genmod.testing.exactness import Truth, equal, independent, one_way, there_and_back
from genmod.testing.points import (
    NOWHERE,
    Points,
    Territory,
    far_points,
    hull,
    joined,
    knots_of,
    pick,
    points_of,
    rounded,
    special_points,
    territory,
)
from genmod.testing.probe import Probe
from genmod.testing.reports import Row, rows_text, worst_of_each
from genmod.testing.smoothness import jumps, kinks


class BijectionReport(NamedTuple):
    """What `check_bijection` found; print it."""

    bijector: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        return rows_text(self.bijector, self.rows)


def check_bijection(
    bijector: Any,
    x: ArrayLike,
    context: ArrayLike | None = None,
    *,
    params: Params | None = None,
    key: Key | None = None,
    far: float | None = 10.0,
    large: float = 5.0,
    num_points: int = 8,
    smooth: bool = True,
    special: tuple[float, ...] = (),
    singular: tuple[float, ...] = (),
    latents: Interval = REALS,
) -> BijectionReport:
    """Holds a bijector to the protocol and returns a readable report (`print(report)`, `report.passed`).

    Checked: log-determinants against the slogdet of the autodiff Jacobian in both directions, and in float32 against float64;
    round trips in both precisions; that the map has no kinks and the density no jumps; gradients of the inverse against finite
    differences and finite at parameters of size `large`; that a row is the same in every batch; jit = eager = vmap; dtypes kept.

    Looked at are all rows of x; points `far` times as far from the mean of x and of its latents, on both sides; and latents and
    data with coordinates at 0, +-1 and the knots of splines. What `bijector.image` excludes is left out.

    Args:
      bijector: of ours, of your own, or of Distrax.
      x: a batch of data, (n,) + event shape, inside the bijector's range, rounded to float32. context: (n,) + context_shape.
      params: parameters to check at; None is `init` plus N(0, 0.3^2) noise, since at the identity little can be wrong.
      key: of that noise; None: always the same.
      far: None where the range is bounded, so that no far data are valid.
      large: standard deviation of the noise on the parameters at which gradients must be finite.
      num_points: at how many rows gradients are looked at, and Jacobians where those of all are too costly (n D^3 > 2^28).
      smooth: whether the map promises to be continuously differentiable; False for a leaky ReLU and the like.
      special: more values of coordinates at which something changes.
      singular: those at which the map is known to have no slope or an infinite one: there nothing is checked.
      latents: where coordinates of latents may lie, for a bijector whose `image` does not tell (one of Distrax).

    Raises what the bijector raises for a single event, and TypeError for what is none; errors of value, and those of a batch
    alone, are rows of the report.
    """
    bijector = as_bijector(bijector)
    exact = bijector.likelihood is Likelihood.EXACT
    check(exact, "check_bijection is for exact log-determinants; this bijector's is an estimate")
    key = jax.random.key(0) if key is None else key
    start = bijector.init(jax.random.fold_in(key, 0), jnp.asarray(x), context) if params is None else params
    options = _Options(key, far, large, num_points, smooth, special, singular, latents, fresh=params is None)
    with np.errstate(all="ignore"):
        rows = _rows(bijector, points_of(x, context, "x"), start, options)
    return BijectionReport(repr(bijector), worst_of_each(rows))


class _Options(NamedTuple):
    """The arguments of `check_bijection`; `fresh`: the parameters are those of `init`."""

    key: Key
    far: float | None
    large: float
    num_points: int
    smooth: bool
    special: tuple[float, ...]
    singular: tuple[float, ...]
    latents: Interval
    fresh: bool


def _rows(bijector: Bijector, given: Points, start: Params, options: _Options) -> list[Row]:
    """All checks, first in float64."""
    size, num, few = given.events[0].size, len(given.events), pick(given, slice(options.num_points))
    noise, noise_of_slopes, large_noise = (jax.random.fold_in(options.key, i) for i in (1, 2, 3))
    used = _jitter(start, noise, 0.3) if options.fresh else start
    with jax.enable_x64(True):
        probe = Probe(bijector, np.float64, size, num)
        params = probe.cast(used)
        fault = _fault_of_batches(probe, params, few)
        if fault is not None:
            return [fault]
        look = _look(probe, params, given, options)
        rows, truths = _values(probe, params, look)
        if options.fresh and look.knots:  # where they are before anything is learned
            rows += there_and_back(probe, probe.cast(start), look.special[False], False, probe.wide)[0]
        if options.smooth:
            rows.append(kinks(probe, params, look.special, look.values))
            rows.append(jumps(probe, params, look.latents, look.domain, options.singular))
        rows.append(independent(probe, params, pick(joined(look.rows, look.far_data), slice(probe.block))))
        rows += _finite_differences(probe, params, few, noise_of_slopes)
    with jax.enable_x64(False):
        probe = Probe(bijector, np.float32, size, num)
        rows += _values(probe, probe.cast(used), look, truths)[0]
        rows.append(_jit_eager_vmap(probe, probe.cast(used), few))
        large = probe.cast(_jitter(start, large_noise, options.large))
        rows.append(_finite_gradients(f"parameters of size {options.large:g}", probe, large, few))
    return rows


class _Look(NamedTuple):
    """Where to look.

    Attributes:
      rows: of data, as given. more_rows: those whose Jacobians are too many.
      far_data, far_latents: far from them. latents: of some of them, which lie in the `domain`.
      special: latents (False) and data (True) with coordinates at one of the `values`, in float64. knots: those of splines.
    """

    rows: Points
    more_rows: Points
    far_data: Points
    latents: Points
    far_latents: Points
    special: dict[bool, Points]
    values: np.ndarray
    knots: set[float]
    domain: Territory


def _look(probe: Probe, params: Params, given: Points, options: _Options) -> _Look:
    few, some, nothing = (pick(given, slice(num)) for num in (options.num_points, 64, 0))
    far = options.far
    far_data = nothing if far is None else far_points(few, far, Territory(probe.bijector, True))
    spanned = NOWHERE if far is None else hull(joined(given, far_data))
    image = territory(probe.bijector, True, REALS, spanned, spanned)
    z = probe.move(params, some, True, probe.wide).value
    of_rows = points_of(z, some.contexts, "z of x")
    domain = territory(probe.bijector, False, options.latents, REALS, hull(of_rows))
    of_rows = domain.within(of_rows)
    knots = knots_of(probe.bijector)
    values = np.array(sorted({-1.0, 0.0, 1.0, *options.special, *knots} - {*options.singular}))
    most = max(options.num_points, probe.most_jacobians)
    return _Look(
        rows=pick(given, slice(most)),
        more_rows=pick(given, slice(most, None)),
        far_data=far_data,
        latents=of_rows,
        far_latents=far_points(pick(of_rows, slice(options.num_points)), 10.0 if far is None else far, domain),
        special={
            False: special_points(values, z.shape[1:], of_rows, domain),
            True: special_points(values, given.events.shape[1:], few, image),
        },
        values=values,
        knots=knots,
        domain=domain,
    )


def _values(probe: Probe, params: Params, look: _Look, truths: list[Truth] | None = None) -> tuple[list[Row], list[Truth]]:
    """Errors of values everywhere; `truths` are those of float64, None: these are they."""
    special = {side: points._replace(events=rounded(points.events)) for side, points in look.special.items()}
    sets = [
        (look.rows, True, False),
        (joined(look.far_data, special[True]), True, probe.wide),
        (look.more_rows, True, True),
        (joined(look.latents, special[False]), False, probe.wide),
    ]
    known = iter(truths or [None] * (len(sets) + 1))
    results = [there_and_back(probe, params, *which, truth=next(known)) for which in sets if len(which[0].events)]
    if len(look.far_latents.events):
        results.append(one_way(probe, params, look.far_latents, next(known)))
    return [row for rows, _ in results for row in rows], [truth for _, truth in results]


def _fault_of_batches(probe: Probe, params: Params, points: Points) -> Row | None:
    """A row for a bijector that maps an event and no batch of events; raises what it raises for an event."""
    try:
        z = probe.move(params, points, True, probe.wide)
        probe.move(params, points._replace(events=z.value), False, probe.wide)
    except Exception as error:
        if not _unbound(error):
            x, context = _first(probe, points)
            try:
                z, _ = probe.bijector.inverse_and_log_det(params, x, context)
                probe.bijector.forward_and_log_det(params, z, context)
            except Exception:
                raise error from None
        return Row("a batch under jit and vmap", np.inf, 0.0, f"raises {type(error).__name__}: {str(error).splitlines()[0]}")
    return None


def _unbound(error: Exception) -> bool:
    return isinstance(error, NameError) and "unbound axis name" in str(error)


def _first(probe, points):
    context = None if points.contexts is None else jnp.asarray(points.contexts[0])
    return jnp.asarray(points.events[0], probe.dtype), context


def _jitter(params: Params, key: Key, scale: float) -> Params:
    """`params` with noise of size `scale` on what is trained."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # NumPy: no compilation for every new shape
    noise = jax.tree.map(lambda p: np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)
    return jax.tree.map(lambda p, n, trained: p + n if trained else p, params, noise, trainable_mask(params))


def _finite_differences(probe: Probe, params: Params, points: Points, key: Key) -> list[Row]:
    """Directional derivatives of both directions and their log_dets, in trainable parameters, events and contexts together."""
    latents = points._replace(events=probe.move(params, points, inverse=True).value)
    return [_slope_row(probe, params, each, key, inverse) for inverse, each in ((True, points), (False, latents))]


def _slope_row(probe: Probe, params: Params, points: Points, key: Key, inverse: bool) -> Row:
    events = jnp.asarray(points.events, probe.dtype)
    real = points.contexts is not None and np.issubdtype(points.contexts.dtype, np.floating)
    contexts = None if points.contexts is None else jnp.asarray(points.contexts, probe.dtype if real else None)
    start = params, events, contexts if real else None
    direction = _jitter(jax.tree.map(jnp.zeros_like, start), key, 1.0)
    moved = jax.tree.map(lambda d, trained: d if trained else jnp.zeros_like(d), direction[0], trainable_mask(params))
    # Events in their own units: a step of fixed size would leave the straight part of a map of small numbers.
    units = np.std(points.events, axis=0, keepdims=True)
    direction = moved, direction[1] * jnp.asarray(np.where(units > 0, units, 1.0), probe.dtype), direction[2]

    def along(h):
        params, events, own = jax.tree.map(lambda a, d: a + h * d, start, direction)
        return probe.scalar(params, events, own if real else contexts, inverse)

    value_and_slope = jax.jit(lambda h: jax.jvp(along, (h,), (1.0,)))
    exact = value_and_slope(0.0)[1]
    estimates = [(value_and_slope(h)[0] - value_and_slope(-h)[0]) / (2 * h) for h in (1e-6, 3e-6)]
    error = min(float(jnp.abs(exact - estimate)) for estimate in estimates)
    name = "inverse" if inverse else "forward"
    return Row(f"gradient of {name} = finite difference", error, 1e-4 * (1 + float(jnp.abs(exact))))


def _finite_gradients(name: str, probe: Probe, params: Params, points: Points) -> Row:
    gradient = jax.jit(jax.value_and_grad(probe.scalar, argnums=(0, 1)))
    values = gradient(params, jnp.asarray(points.events, probe.dtype), points.contexts)
    bad = sum(int((~np.isfinite(np.asarray(v))).sum()) for v in jax.tree.leaves(values))
    return Row(f"non-finite gradients, {name}", float(bad), 0.0)


def _jit_eager_vmap(probe: Probe, params: Params, points: Points) -> Row:
    name, (x, context) = "jit = eager = vmap", _first(probe, points)
    batched = probe.move(params, points, True, probe.wide)
    try:
        z, log_det = (np.asarray(a)[None] for a in probe.bijector.inverse_and_log_det(params, x, context))
    except NameError as error:
        if not _unbound(error):
            raise
        return Row(name, np.inf, 0.0, f"a single event raises NameError: {error}")
    return equal(name, probe, pick(points, slice(1)), batched, batched._replace(value=z, log_det=log_det))
