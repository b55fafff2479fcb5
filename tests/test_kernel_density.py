"""Kernel density estimates: against SciPy and scikit-learn, a quadrature, and the leave-one-out sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KernelDensity as PeerDensity

import genmod as gm
from genmod.densities import DiagonalCovariance, Epanechnikov, FullCovariance, GaussianDensity, SphericalCovariance
from genmod.models import FixedBandwidth, KernelDensity, KFold, LeaveOneOut, Scott, Silverman
from genmod.models.kernel import left_out_log_probs

pytestmark = pytest.mark.usefixtures("quick_compile")
KERNELS = {"gaussian": GaussianDensity(), "epanechnikov": Epanechnikov()}


def cloud(num, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.eye(dim) + 0.6 * np.tril(np.ones((dim, dim)), -1)
    return rng.standard_normal((num, dim)) @ mix.T * np.arange(1.0, dim + 1) + 2.0


X, NEW = cloud(80), cloud(9, seed=1)


@pytest.mark.parametrize(("rule", "name"), [(Scott(), "scott"), (Silverman(), "silverman"), (FixedBandwidth(0.7), 0.7)])
def test_scipy(rule, name, x64):
    model, weight = KernelDensity((2,), rule), np.random.default_rng(3).random(80)
    for w in (None, weight):
        peer = stats.gaussian_kde(X.T, bw_method=name, weights=w)
        np.testing.assert_allclose(model.log_prob(model.of_data(X, w), NEW), peer.logpdf(NEW.T), rtol=1e-10)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dim", [1, 3])
def test_scikit_learn(name, dim, x64):
    """More points than one block holds, and kernels of a bounded support far from all data."""
    x, new = cloud(1_100, dim), np.concatenate([cloud(9, dim, 1), np.full((1, dim), 50.0)])
    model = KernelDensity((dim,), FixedBandwidth(0.8), covariance=None, kernel=KERNELS[name])
    peer = PeerDensity(bandwidth=0.8, kernel=name).fit(x)
    found = np.asarray(model.log_prob(model.of_data(x), new))
    near = np.arange(10) < (9 if name == "epanechnikov" else 10)
    np.testing.assert_allclose(found[near], peer.score_samples(new)[near], rtol=1e-8)
    assert name == "gaussian" or found[9] == -np.inf


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_float32_far_from_the_origin(offset):
    """Of a correlation of .99: whitened about the origin, log p was wrong by .01 and by 1 nat."""
    z = np.random.default_rng(0).standard_normal((500, 2))
    x = (z @ np.array([[1.0, 0.99], [0.0, np.sqrt(1 - 0.99**2)]]) + offset).astype(np.float32)
    model, weight = KernelDensity((2,)), np.random.default_rng(1).random(500)
    for w in (None, weight):
        peer = stats.gaussian_kde(x.T.astype(np.float64), weights=w)
        np.testing.assert_allclose(model.log_prob(model.of_data(x, w), x[:50]), peer.logpdf(x[:50].T), atol=1e-4)


def test_infinitely_many_data(x64):
    """.4 N(-2, 1) + .6 N(3, .7^2) as weighted nodes: its estimate with h = .3 is the density smoothed."""
    nodes = np.linspace(-12.0, 12.0, 1_601)
    density = 0.4 * stats.norm.pdf(nodes, -2, 1) + 0.6 * stats.norm.pdf(nodes, 3, 0.7)
    model = KernelDensity((1,), FixedBandwidth(0.3), covariance=None)
    log_prob = np.asarray(model.log_prob(model.of_data(nodes[:, None], density), nodes[:, None]))
    np.testing.assert_allclose(-(density * log_prob).sum() / density.sum(), 1.878099, atol=5e-7)


@pytest.mark.parametrize("name", KERNELS)
def test_leave_one_out(name, x64):
    """The sum over all others, and the best of the candidates."""
    share = np.random.default_rng(2).random(80)
    share /= share.sum()
    alone = jnp.arange(80)
    found = left_out_log_probs(KERNELS[name], jnp.asarray(X / 0.9), jnp.asarray(share), alone) - 2 * np.log(0.9)
    for i in (0, 41, 79):
        others = np.arange(80) != i
        peer = PeerDensity(bandwidth=0.9, kernel=name).fit(X[others], sample_weight=share[others])
        np.testing.assert_allclose(found[i], peer.score_samples(X[i : i + 1])[0], rtol=1e-8)
    rule = LeaveOneOut(8, 0.5, 8.0)
    scales = np.geomspace(0.5, 8.0, 8) * 80 ** (-1 / 6)
    scores = [
        np.mean(left_out_log_probs(KERNELS[name], jnp.asarray(X / h), jnp.full(80, 1 / 80), alone)) - 2 * np.log(h)
        for h in scales
    ]
    params = KernelDensity((2,), rule, covariance=None, kernel=KERNELS[name]).of_data(X)
    best = int(np.argmax(scores))
    np.testing.assert_allclose(np.exp(params.tree["log_scale"]), scales[best], rtol=1e-12)
    assert 0 < best < 7


def test_k_folds(x64):
    """The scores and the choice of scikit-learn's grid search over the same folds; weights by its own estimates."""
    rule, x = KFold(5, 8, 0.5, 8.0), X[:78]
    share = jnp.full(78, 1 / 78)
    folds = np.asarray(jax.jit(rule.groups)(share))
    assert sorted(np.bincount(folds)) == [15, 15, 16, 16, 16] and (folds != np.arange(78) % 5).any()
    scales = np.geomspace(0.5, 8.0, 8) * 78 ** (-1 / 6)
    search = GridSearchCV(PeerDensity(), {"bandwidth": scales}, cv=PredefinedSplit(folds)).fit(x)
    scores = [left_out_log_probs(KERNELS["gaussian"], jnp.asarray(x / h), share, folds).sum() - 156 * np.log(h) for h in scales]
    np.testing.assert_allclose(np.divide(scores, 5), search.cv_results_["mean_test_score"], rtol=1e-10)
    model = KernelDensity((2,), rule, covariance=None)
    params = model.of_data(x)
    assert 0 < search.best_index_ < 7
    np.testing.assert_allclose(np.exp(params.tree["log_scale"]), search.best_params_["bandwidth"], rtol=1e-12)

    # Unequal weights, in the estimates and in the score.
    weight = np.random.default_rng(2).random(78) ** 3
    share = weight / weight.sum()
    scales = np.geomspace(0.5, 8.0, 8) * (share**2).sum() ** (1 / 6)
    scores = np.zeros(8)
    for i, h in enumerate(scales):
        for fold in range(5):
            own = folds == fold
            peer = PeerDensity(bandwidth=h).fit(x[~own], sample_weight=share[~own])
            scores[i] += share[own] @ peer.score_samples(x[own])
    chosen = np.exp(model.of_data(x, weight).tree["log_scale"])
    np.testing.assert_allclose(chosen, scales[np.argmax(scores)], rtol=1e-12)
    assert 0 < np.argmax(scores) < 7


@pytest.mark.parametrize("rule", [LeaveOneOut(8, 0.5, 8.0), KFold(4, 8, 0.5, 8.0)])
def test_rows_without_weight_are_no_rows(rule, x64):
    """Wherever they stand, what is left out together stays together."""
    there = np.ones(80, bool)
    there[[0, 3, 40, 41, 42, 79]] = False
    weight = np.where(there, np.random.default_rng(4).random(80), 0.0)
    share = jnp.asarray(weight / weight.sum())
    few, all_rows = (np.asarray(jax.jit(rule.groups)(s)) for s in (share[there], share))
    same = few[:, None] == few
    np.testing.assert_array_equal(all_rows[there][:, None] == all_rows[there], same)
    model = KernelDensity((2,), rule, covariance=None)
    few, all_rows = (np.exp(model.of_data(x, w).tree["log_scale"]) for x, w in ((X[there], weight[there]), (X, weight)))
    np.testing.assert_allclose(all_rows, few, rtol=1e-12)


@pytest.mark.parametrize("covariance", [None, FullCovariance(), DiagonalCovariance(), SphericalCovariance()])
def test_bandwidths_are_in_units_of_the_covariance(covariance, x64):
    params = KernelDensity((2,), FixedBandwidth(0.5), covariance).of_data(X).tree
    factor = np.tril(params["lower"], -1) + np.diag(np.exp(params["log_scale"]))
    full = np.cov(X.T)
    wanted = {
        type(None): np.eye(2),
        FullCovariance: full,
        DiagonalCovariance: np.diag(np.diag(full)),
        SphericalCovariance: np.eye(2) * np.trace(full) / 2,
    }
    np.testing.assert_allclose(factor @ factor.T, 0.25 * wanted[type(covariance)], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", KERNELS)
def test_density_and_draws(name, key):
    """The mass by midpoints, and E[log p] and second moments by draws, with unequal weights."""
    model = KernelDensity((2,), FixedBandwidth(0.8 if name == "gaussian" else 2.0), kernel=KERNELS[name])
    params = model.of_data(X[:12].astype(np.float32), np.arange(1.0, 13.0))
    line = np.linspace(-14.0, 18.0, 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    log_p = np.asarray(model.log_prob(params, grid), np.float64)
    mass = np.exp(log_p) * float(line[1] - line[0]) ** 2
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-3)  # a parabola has kinks
    x = model.sample(params, key, 10_000)
    seen = np.concatenate([x, model.log_prob(params, x)[:, None], np.asarray(x) ** 2], 1)
    wanted = mass @ np.concatenate([grid, np.where(mass > 0, log_p, 0.0)[:, None], grid**2], 1)
    assert (np.abs(seen.mean(0) - wanted) < 4.5 * seen.std(0) / 100 + 1e-3 * np.abs(wanted) + 2e-3).all()
    assert np.isfinite(seen).all()


def test_it_is_a_model_without_anything_to_train(key):
    model = KernelDensity((2,))
    params = model.init(key, X.astype(np.float32))
    assert gm.num_params(params) == 0
    loss, metrics = model.loss(params, key, NEW.astype(np.float32))
    np.testing.assert_allclose(loss, -model.log_prob(params, NEW.astype(np.float32)).mean(), rtol=1e-6)
    grads = jax.grad(lambda x: model.log_prob(params, x))(jnp.asarray(NEW[0], jnp.float32))
    step = 1e-2
    sides = [np.asarray(NEW[:1] + s * np.eye(2), np.float32) for s in (step, -step)]
    moved = [model.log_prob(params, side) for side in sides]
    np.testing.assert_allclose(grads, (moved[0] - moved[1]) / (2 * step), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: KernelDensity((2,), 0.3), TypeError, "bandwidth must be a Bandwidth, got 0.3"),
        (lambda: KernelDensity((2,), covariance=0.3), TypeError, "covariance must be a Covariance"),
        (lambda: KernelDensity((2,), kernel=jnp.exp), TypeError, "kernel must be a RadialDensity"),
        (lambda: FixedBandwidth(0.0), ValueError, "value must be > 0"),
        (lambda: LeaveOneOut(low=2.0, high=1.0), ValueError, "LeaveOneOut wants low < high"),
        (lambda: KFold(1), ValueError, "num_folds must be at least 2, got 1"),
        (lambda: KFold(num_candidates=0), ValueError, "num_candidates must be an integer >= 1"),
        (
            lambda: KernelDensity((2,)).of_data(X, np.ones(3)),
            ValueError,
            r"weight must be 80 finite numbers >= 0, .*got shape \(3,\)",
        ),
        (lambda: KernelDensity((2,)).of_data(X * np.inf), ValueError, "x must be finite"),
        (
            lambda: KernelDensity((2,)).of_data(X, np.zeros(80)),
            ValueError,
            "weight must be 80 finite numbers .* not all 0, got zeros",
        ),
        (
            lambda: KernelDensity((2,)).of_data(X, X[:, 0] - 9.0),
            ValueError,
            "weight must be .* finite numbers >= 0, one for each row",
        ),
        (lambda: KernelDensity((3,)).of_data(X), ValueError, r"x must have shape \(n,\) \+ \(3,\)"),
    ],
)
def test_messages(make, error, match):
    with pytest.raises(error, match=match):
        make()
