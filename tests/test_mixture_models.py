"""Mixtures and EM: against scikit-learn sweep by sweep, against quadratures and enumerations, and where data degenerate."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree
from scipy import stats
from sklearn.mixture import GaussianMixture as PeerMixture

import genmod as gm
from genmod.core.event import Real
from genmod.core.spread import spread_rows, uniform_rows
from genmod.densities import (
    CategoricalComponents,
    DiagonalCovariance,
    FullCovariance,
    GaussianComponents,
    SphericalCovariance,
    TiedCovariance,
)
from genmod.densities.covariances import factor_of, floored_factor
from genmod.models import Mixture, mixture_of_gaussians, mixture_of_levels
from genmod.models.base import EMModel
from genmod.training import fit_em

pytestmark = pytest.mark.usefixtures("quick_compile")
KINDS = {"full": FullCovariance(), "tied": TiedCovariance(), "diag": DiagonalCovariance(), "spherical": SphericalCovariance()}
by_kind = pytest.mark.parametrize("kind", KINDS)


def clusters(num, seed=0):
    """Three groups of unequal shapes in the plane."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [3.0, 1.0], [-1.0, 4.0]])
    scales = np.array([[1.0, 0.4], [0.5, 1.2], [0.8, 0.8]])
    which = rng.integers(0, 3, num)
    return centres[which] + rng.standard_normal((num, 2)) * scales[which]


def covariances(params):
    """Of the components, in the form that scikit-learn gives them."""
    held = params["components"]["covariance"]
    if "lower" not in held:
        return np.exp(2 * np.asarray(held["log_scale"]))
    factors = factor_of(held) if held["lower"].ndim == 2 else jax.vmap(factor_of)(held)
    return np.asarray(factors @ np.swapaxes(factors, -1, -2))


# --- against scikit-learn ------------------------------------------------------------------------------------------------------


@by_kind
def test_every_sweep_is_that_of_scikit_learn(kind, key, x64):
    x, model = clusters(201), mixture_of_gaussians((2,), 3, KINDS[kind])
    start = model.init(key, x)
    fit = fit_em(model, x, params=start, num_sweeps=25, tolerance=1e-30, block_rows=64)
    inverse = np.linalg.inv if kind in ("full", "tied") else np.reciprocal
    peer = PeerMixture(
        3,
        covariance_type=kind,
        weights_init=np.exp(start["logits"]),
        means_init=start["components"]["mean"],
        precisions_init=inverse(covariances(start)),
        reg_covar=0.0,
        max_iter=25,
        tol=0.0,
    )
    with pytest.warns(Warning, match="did not converge"):
        peer.fit(x)
    np.testing.assert_allclose(fit.history[0, :25], peer.lower_bounds_, rtol=1e-9)
    np.testing.assert_allclose(fit.objective, peer.score(x), rtol=1e-9)
    np.testing.assert_allclose(fit.params["components"]["mean"], peer.means_, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(covariances(fit.params), peer.covariances_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.responsibilities(fit.params, x), peer.predict_proba(x), atol=1e-8)
    np.testing.assert_allclose(model.log_prob(fit.params, x), peer.score_samples(x), rtol=1e-9, atol=1e-9)
    assert (np.diff(fit.history[0]) > 0).all()
    assert gm.metrics.bic(len(x) * fit.objective, model.num_free, len(x)) == pytest.approx(peer.bic(x), rel=1e-9)
    assert gm.metrics.aic(len(x) * fit.objective, model.num_free) == pytest.approx(peer.aic(x), rel=1e-9)


# --- against exact laws --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_infinitely_many_data(key, x64):
    """.4 N(-2, 1) + .6 N(3, .7^2) as weighted nodes of a quadrature: its entropy, and its best single Gaussian."""
    nodes = np.linspace(-12.0, 12.0, 4_001)
    density = 0.4 * stats.norm.pdf(nodes, -2, 1) + 0.6 * stats.norm.pdf(nodes, 3, 0.7)
    weight = density * (nodes[1] - nodes[0])
    two = fit_em(mixture_of_gaussians((1,), 2), nodes[:, None], key=key, weight=weight, num_restarts=2, tolerance=1e-13)
    assert two.converged
    np.testing.assert_allclose(-two.objective, 1.873470, atol=5e-7)
    order = np.argsort(two.params["components"]["mean"][:, 0])
    np.testing.assert_allclose(np.exp(two.params["logits"])[order], [0.4, 0.6], atol=1e-5)
    np.testing.assert_allclose(covariances(two.params)[order, 0, 0], [1.0, 0.49], atol=1e-5)
    one = fit_em(mixture_of_gaussians((1,), 1), nodes[:, None], key=key, weight=weight, num_restarts=1)
    np.testing.assert_allclose(-one.objective, 2.369544, atol=5e-7)


def test_one_component_is_the_closed_form(key, x64):
    x = clusters(50)
    fit = fit_em(mixture_of_gaussians((2,), 1), x, key=key, num_restarts=1)
    np.testing.assert_allclose(fit.params["components"]["mean"][0], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariances(fit.params)[0], np.cov(x.T, bias=True), rtol=1e-11)
    wanted = -0.5 * (np.linalg.slogdet(np.cov(x.T, bias=True))[1] + 2 * (1 + math.log(2 * math.pi)))
    np.testing.assert_allclose(fit.objective, wanted, rtol=1e-12)


@pytest.mark.slow
def test_where_em_ends_the_gradient_vanishes(key, x64):
    """Also a weight of two is a row that stands there twice."""
    x, model = clusters(60), mixture_of_gaussians((2,), 2)
    weight = np.random.default_rng(1).integers(1, 3, 60).astype(float)
    start = model.init(key, x)
    fit = fit_em(model, x, params=start, weight=weight, num_sweeps=3_000, tolerance=1e-15)
    assert fit.converged
    loss = lambda params: model.loss(params, key, gm.Batch(x, weight=weight))[0]  # noqa: E731
    np.testing.assert_allclose(loss(fit.params), -fit.objective, rtol=1e-12)
    # J rises by less than 1e-15 near its maximum, where it is quadratic: the gradient is of the order of the root.
    assert max(np.abs(g).max() for g in jax.tree.leaves(jax.grad(loss)(fit.params))) < 1e-6
    assert max(np.abs(g).max() for g in jax.tree.leaves(jax.grad(loss)(start))) > 1e-2
    twice = fit_em(model, np.repeat(x, weight.astype(int), 0), params=start, num_sweeps=3_000, tolerance=1e-15, block_rows=7)
    np.testing.assert_allclose(twice.objective, fit.objective, rtol=1e-12)


@by_kind
def test_density_and_draws(kind, key):
    """The mass by midpoints, and E[log p] and the means by draws."""
    model = mixture_of_gaussians((2,), 3, KINDS[kind])
    params = model.init(key, clusters(100).astype(np.float32))
    line = np.linspace(-9.0, 11.0, 301, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    log_p = np.asarray(model.log_prob(params, grid), np.float64)
    mass = np.exp(log_p) * float(line[1] - line[0]) ** 2
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-4)
    x = model.sample(params, key, 10_000)
    seen = np.concatenate([x, model.log_prob(params, x)[:, None], np.asarray(x) ** 2], 1)
    wanted = mass @ np.concatenate([grid, log_p[:, None], grid**2], 1)
    assert (np.abs(seen.mean(0) - wanted) < 4.5 * seen.std(0) / 100 + 1e-3).all()


def test_float32_far_from_the_origin(key):
    """Sums are about the old means: 1e3 standard deviations away, squares of the data would have lost every digit."""
    x, model = clusters(400) + 1_000.0, mixture_of_gaussians((2,), 3)
    fit = fit_em(model, x.astype(np.float32), key=key, num_restarts=1, num_sweeps=60, tolerance=1e-12)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), fit.params)
        objective, held = model.log_prob(params, x).mean(), np.asarray(model.responsibilities(params, x))
    # A coordinate of 1e3 is rounded by 6e-5, log p of a deviation of 3 by as much times 3 / 0.4; averages are better.
    np.testing.assert_allclose(fit.objective, objective, atol=5e-4)
    mean = held.T @ x / held.sum(0)[:, None]
    np.testing.assert_allclose(fit.params["components"]["mean"], mean, atol=1e-2)
    scatter = [np.cov(x.T, aweights=held[:, k], bias=True) for k in range(3)]
    np.testing.assert_allclose(covariances(fit.params), scatter, atol=1e-2)


# --- the end of a run ----------------------------------------------------------------------------------------------------------


def test_rounding_is_no_end():
    """Data times 2^45 take 90 log 2 off J, whose eps is then above the tolerance: float32 ends as high as float64."""
    x, model, scale = np.random.default_rng(0).standard_normal((400, 2)), mixture_of_gaussians((2,), 2), 2.0**45
    x[:100] += 2.0
    with jax.enable_x64(True):
        start = model.init(jax.random.key(0), x)  # one from which the way is long
        wanted = float(fit_em(model, x, params=start, num_sweeps=600).objective) - 2 * math.log(scale)
    start = jax.tree.map(lambda a: np.asarray(a, np.float32), start)
    covariance = start["components"]["covariance"]
    start["components"] = {
        "mean": start["components"]["mean"] * np.float32(scale),
        "covariance": {
            "log_scale": covariance["log_scale"] + np.float32(math.log(scale)),
            "lower": covariance["lower"] * np.float32(scale),
        },
    }
    fit = fit_em(model, (x * scale).astype(np.float32), params=start, num_sweeps=600)
    assert fit.converged
    np.testing.assert_allclose(fit.objective, wanted, atol=1e-4)  # the first sweep that rounds to nothing is 1e-2 below
    assert fit.objective == np.nanmax(fit.history) == fit.objectives[0]


@dataclasses.dataclass(frozen=True)
class Overshooting(EMModel):
    """N(mean, 1), whose M-step goes `reach` times as far as it should."""

    reach: float

    @property
    def num_free(self):
        return 1

    @property
    def event(self):
        return Real((1,))

    def _init(self, key, x, context):
        return x.mean(0) + 1.0

    def log_prob_one(self, params, x, context=None, key=None):
        return jax.scipy.stats.norm.logpdf(x - params).sum()

    def sample_one(self, params, key, context=None):
        return params + jax.random.normal(key, (1,), params.dtype)

    def loss(self, params, key, batch, *, step=None):
        raise NotImplementedError

    def e_step(self, params, x, weight):
        log_prob = jax.scipy.stats.norm.logpdf(x[:, 0] - params)
        return log_prob, (weight.sum(), jnp.sum(weight[:, None] * (x - params[None]), 0))

    def m_step(self, params, statistics):
        return params + self.reach * statistics[1] / statistics[0]


@pytest.mark.parametrize(("reach", "converged", "num_sweeps"), [(1.0, True, 2), (2.5, False, 1)])
def test_a_fall_is_no_convergence(reach, converged, num_sweeps, x64):
    """Of J = c - d^2 / 2, d = 1, 0, 0 or 1, -1.5: the best of them is what is found."""
    x = np.array([[1.0], [2.0], [4.5]])
    fit = fit_em(Overshooting(reach), x, params=np.array([3.5]))
    ends = np.array([1.0, 0.0, 0.0] if converged else [1.0, 1.5])
    history = stats.norm.logpdf(x[:, 0] - 2.5).mean() - ends**2 / 2
    np.testing.assert_allclose(fit.history[0, : num_sweeps + 1], history, rtol=1e-12)
    assert np.isnan(fit.history[0, num_sweeps + 1 :]).all() and bool(fit.converged) == converged
    np.testing.assert_allclose(fit.objective, history.max(), rtol=1e-12)
    np.testing.assert_allclose(fit.params, 2.5 if converged else 3.5, rtol=1e-12)


# --- starts --------------------------------------------------------------------------------------------------------------------


def test_starts_are_rows_and_the_nearest_of_them(key):
    x = jnp.asarray(clusters(40), jnp.float32)
    for choose in (spread_rows, uniform_rows):
        rows, nearest = choose(key, x, 5)
        assert len(set(np.asarray(rows).tolist())) == 5
        distances = ((np.asarray(x)[:, None] - np.asarray(x)[None, np.asarray(rows)]) ** 2).sum(-1)
        np.testing.assert_array_equal(nearest, distances.argmin(1))
    # Of two far groups k-means++ takes both; by chance alone one of them is left out half of the time.
    far = jnp.concatenate([x, x + 1e3])
    pairs = jax.vmap(lambda key: spread_rows(key, far, 2).rows // 40)(jax.random.split(key, 50))
    assert (np.asarray(pairs).sum(1) == 1).all()
    pairs = np.asarray(jax.vmap(lambda key: uniform_rows(key, far, 2).rows // 40)(jax.random.split(key, 50)))
    assert 10 < (pairs.sum(1) == 1).sum() < 42


def test_the_best_of_several_starts(key):
    x = clusters(90).astype(np.float32)
    fit = fit_em(mixture_of_gaussians((2,), 4), x, key=key, num_restarts=4, num_sweeps=40)
    assert fit.history.shape == (4, 41) and fit.objective == fit.objectives.max()
    ends = np.array([row[~np.isnan(row)][-1] for row in np.asarray(fit.history)])
    np.testing.assert_array_equal(ends, fit.objectives)
    rises = np.diff(fit.history, axis=1)
    assert (rises[np.isfinite(rises)] > -1e-5).all()  # the rounding of a sum of 90 terms of size 4


# --- where data degenerate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "diag", *(pytest.param(k, marks=pytest.mark.slow) for k in ("tied", "spherical"))])
def test_covariances_have_a_floor(kind, key, x64):
    """Rows on a line, and a row that stands far away twice."""
    t = np.linspace(0, 1, 20)
    x = np.concatenate([np.stack([t, 2 * t], 1), [[9.0, 9.0]] * 2])
    kinds = {"full": FullCovariance(1e-4), "tied": TiedCovariance(1e-4), "diag": DiagonalCovariance(1e-4)}
    model = mixture_of_gaussians((2,), 3, kinds.get(kind, SphericalCovariance(1e-4)))
    fit = fit_em(model, x, key=key, num_restarts=3)
    held = covariances(fit.params)
    least = np.linalg.eigvalsh(held).min() if kind in ("full", "tied") else held.min()
    assert least == pytest.approx(1e-4, rel=1e-6)
    rises = np.diff(fit.history, axis=1)
    assert (rises[np.isfinite(rises)] >= -1e-12).all() and np.isfinite(fit.objective)


def test_the_floored_factor_is_the_best(x64):
    """Of all covariances >= floor: eigenvalues are raised, and no covariance nearby has a greater likelihood."""
    scatter, floor = np.array([[2.0, 1.9], [1.9, 1.9]]), 0.3
    values, vectors = np.linalg.eigh(scatter)
    found = floored_factor(jnp.asarray(scatter), floor)
    np.testing.assert_allclose(found @ found.T, vectors * np.maximum(values, floor) @ vectors.T, rtol=1e-12)
    assert values[0] < floor and (np.diagonal(found) > 0).all() and found[0, 1] == 0

    def likelihood(covariance):
        return -0.5 * (np.linalg.slogdet(covariance)[1] + np.trace(np.linalg.solve(covariance, scatter)))

    rng, best = np.random.default_rng(0), np.asarray(found @ found.T)
    for _ in range(200):
        other = best + 0.02 * (lambda a: a + a.T)(rng.standard_normal((2, 2)))
        lowest, axes = np.linalg.eigh(other)
        assert likelihood(axes * np.maximum(lowest, floor) @ axes.T) <= likelihood(best)
    # A matrix in float32 that no Cholesky factor has.
    singular = jnp.asarray([[1.0, 1.0], [1.0, 1.0]], jnp.float32)
    np.testing.assert_allclose((lambda f: f @ f.T)(floored_factor(singular, 1e-6)), singular, atol=2e-6)


def test_fewer_different_rows_than_components(key):
    x = np.repeat(np.array([[0.0, 1.0], [4.0, -1.0]], np.float32), 5, 0)
    model = mixture_of_gaussians((2,), 4, DiagonalCovariance(1e-2))
    fit = fit_em(model, x, key=key, num_restarts=2)
    # Two points of equal weight, each under a Gaussian of the least variance.
    np.testing.assert_allclose(fit.objective, math.log(0.5) - math.log(2 * math.pi * 1e-2), rtol=1e-5)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(fit.params))


def test_a_component_without_data_begins_again(key, x64):
    x = np.concatenate([clusters(80), clusters(20, 1) + 12.0])
    three = fit_em(mixture_of_gaussians((2,), 3), x, key=key, num_restarts=1)
    # The fourth component lies where no data are.
    params = {
        "logits": jnp.append(three.params["logits"], -3.0),
        "components": jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), three.params["components"]),
    }
    params["components"]["mean"] = params["components"]["mean"].at[3].set(-1e4)
    fit = fit_em(mixture_of_gaussians((2,), 4), x, params=params)
    rises = np.diff(fit.history[0])
    assert (rises[np.isfinite(rises)] >= -1e-12).all()
    assert fit.params["components"]["mean"][3].min() > -10 and 100 * np.exp(fit.params["logits"]).min() > 2
    assert fit.objective > three.objective + 0.02


# --- levels --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "num_levels"), [((4,), 2), ((2, 1, 2), 3)])
def test_all_events_add_up_to_one(shape, num_levels, key):
    model = mixture_of_levels(shape, 3, num_levels)
    size = math.prod(shape)
    events = np.array(list(itertools.product(range(num_levels), repeat=size)), np.uint8).reshape(-1, *shape)
    params = model.init(key, events[::3])
    mass = np.exp(model.log_prob(params, events))
    np.testing.assert_allclose(mass.sum(), 1.0, rtol=1e-5)
    draws = np.asarray(model.sample(params, key, 20_000)).reshape(20_000, -1)
    assert draws.dtype == np.uint8
    counts = np.bincount(draws @ num_levels ** np.arange(size)[::-1], minlength=len(events))
    chi_square = ((counts - 20_000 * mass) ** 2 / (20_000 * mass)).sum()
    assert abs(chi_square - len(events)) < 5 * math.sqrt(2 * len(events))


def test_a_bernoulli_mixture_is_the_best_that_gradients_find(key, x64):
    rng = np.random.default_rng(0)
    chance = np.array([[0.9, 0.8, 0.2, 0.1], [0.2, 0.3, 0.9, 0.6]])
    x = rng.random((300, 4)) < chance[rng.integers(0, 2, 300)]
    model = mixture_of_levels((4,), 2, pseudo_counts=0.5)
    start = model.init(key, x)
    fit = fit_em(model, x, params=start, num_sweeps=3_000, tolerance=1e-14)
    assert fit.converged and (np.diff(fit.history[0])[: int(np.isfinite(fit.history).sum()) - 1] >= -1e-14).all()

    def price(params):
        return model.loss(params, key, x)[0] - model.log_prior(params) / len(x)

    np.testing.assert_allclose(price(fit.params), -fit.objective, rtol=1e-12)
    flat, unravel = ravel_pytree(start)
    value_and_grad = jax.jit(jax.value_and_grad(lambda flat: price(unravel(flat))))
    found = scipy.optimize.minimize(value_and_grad, flat, jac=True, method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found.fun, -fit.objective, rtol=1e-10)
    np.testing.assert_allclose(unravel(found.x)["components"]["logits"], fit.params["components"]["logits"], atol=1e-4)


def test_one_bernoulli_component_counts(key):
    x = np.random.default_rng(0).integers(0, 3, (50, 2, 3))
    fit = fit_em(mixture_of_levels((2, 3), 1, 3, pseudo_counts=2.0), x, key=key, num_restarts=1)
    counts = np.stack([(x == level).sum(0) for level in range(3)], -1) + 2.0
    np.testing.assert_allclose(fit.params["components"]["logits"][0], np.log(counts[..., 1:] / counts[..., :1]), rtol=1e-5)


# --- messages ------------------------------------------------------------------------------------------------------------------

MODEL, X = mixture_of_gaussians((2,), 3), clusters(10).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda key: fit_em(gm.flows.affine((2,)), X, key=key), TypeError, "model must be an EMModel, got a Flow; gm.fit trains"),
        (lambda key: fit_em(MODEL, X[:2], key=key), ValueError, "x must hold at least 3 rows .*, got 2"),
        (lambda key: fit_em(MODEL, X, key=key, weight=np.eye(10)[0]), ValueError, "at least 3 rows .*, got 1"),
        (lambda key: fit_em(MODEL, X, key=key, weight=-np.ones(10)), ValueError, "weight must be .* finite numbers >= 0"),
        (
            lambda key: fit_em(MODEL, X, key=key, weight=np.ones(3)),
            ValueError,
            r"weight must be 10 finite numbers .*got shape \(3,\)",
        ),
        (lambda key: fit_em(MODEL, X * np.nan, key=key), ValueError, "x must be finite"),
        (lambda key: fit_em(MODEL, X[:, :1], key=key), ValueError, r"x must have shape \(n,\) \+ \(2,\), got \(10, 1\)"),
        (lambda key: fit_em(MODEL, X), ValueError, "wants key=.*, or params="),
        (lambda key: fit_em(MODEL, X, params={"logits": np.zeros(3)}), ValueError, "params must be those of this Mixture"),
        (lambda key: fit_em(MODEL, X, key=key, num_restarts=0), ValueError, "num_restarts"),
        (lambda key: jax.jit(lambda x: fit_em(MODEL, x, key=key))(X), TypeError, "x must be known data"),
        (lambda key: Mixture(FullCovariance(), 3), TypeError, "components must be a Components"),
        (lambda key: Mixture(GaussianComponents((2,)), 0), ValueError, "num_components"),
        (lambda key: GaussianComponents((2,), 1.0), TypeError, "covariance must be a Covariance"),
        (lambda key: FullCovariance(0.0), ValueError, "floor must be > 0"),
        (lambda key: CategoricalComponents((2,), 1), ValueError, "num_levels must be at least 2"),
        (lambda key: CategoricalComponents((2,), 2, 0.0), ValueError, "pseudo_counts must be > 0"),
    ],
)
def test_messages(make, error, match, key):
    with pytest.raises(error, match=match):
        make(key)
