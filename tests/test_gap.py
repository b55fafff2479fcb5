"""The parts of log p - ELBO and the health of posteriors, of linear-Gaussian models in which every part is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import genmod as gm
from genmod.densities import Amortized, Factorized, FullNormal, NormalHead
from genmod.inference import (
    Enumeration,
    ImportanceSampling,
    MeanBound,
    Observed,
    PosteriorValidation,
    evidence,
    gap_report,
    posterior_health,
    refine,
    refine_one,
)
from genmod.losses import ELBO
from genmod.training import Whole

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5

# Probabilistic PCA as a VAE: x = W z + sigma eps, whose evidence and whose best mean-field bound are known.
W = np.array([[1, 0.5], [-0.3, 0.8], [0.6, -0.2], [0.1, 1.1]])
SIGMA, X = 0.5, np.array([1, -0.5, 0.25, 2])
LOG_P, BEST, AT_PRIOR = -7.474640, -7.482345, -18.728165
PRECISION = np.eye(2) + W.T @ W / SIGMA**2


def identity(x):
    return x


def linear_vae(distribution, num_features):
    posterior = Amortized(distribution, (num_features,))
    return gm.models.VAE((4,), gm.nets.MLP((num_features,), identity), posterior, gm.nets.MLP((4,), identity), NormalHead(SIGMA))


MEAN_FIELD, FULL = linear_vae(Factorized(NormalHead(), (2,)), 4), linear_vae(FullNormal((2,)), 8)


def set_params(model, mean_map):
    """Features that are z's mean, mean_map x, and nothing else; the decoder is W."""
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0), jnp.zeros((2, 4))))
    num = model.posterior.context_shape[0]
    encoder = np.zeros((4, num))
    encoder[:, :2] = mean_map.T
    # The trainable numbers of the posterior, in the order of `Amortized`: each mean is one feature.
    kernel = np.zeros(params["posterior"]["kernel"].shape)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params["posterior"]["distribution"])]
    if names == ["['raw']"]:  # mean and log-scale of each entry in turn
        kernel[[0, 2], [0, 1]] = 1.0
        kernel[[1, 3], [2, 3]] = 1.0
    else:
        assert names == ["['log_scale']", "['lower']", "['mean']"]
        kernel[[6, 7], [0, 1]] = 1.0
        kernel[np.arange(6), np.arange(2, 8)] = 1.0

    def dense(part, weight):
        return jax.tree.map(lambda leaf: jnp.asarray(weight, leaf.dtype) if leaf.ndim == 2 else leaf, part)

    posterior = params["posterior"] | {"kernel": jnp.asarray(kernel, jnp.float32)}
    return params | {
        "encoder": dense(params["encoder"], encoder),
        "decoder": dense(params["decoder"], W.T),
        "posterior": posterior,
    }


def square():
    nodes = np.linspace(-8.0, 8.0, 121, dtype=np.float32)
    grid = np.stack([a.ravel() for a in np.meshgrid(nodes, nodes)], -1)
    return grid, np.full(grid.shape[0], 2 * np.log(nodes[1] - nodes[0]), np.float32)


def test_the_parts_of_a_known_gap(key):
    """The encoder says N(0, I): what is lost by the family and what by the encoder is known, and they sum."""
    x = jnp.asarray(np.stack([X, 0.5 * X[::-1]]), jnp.float32)
    params = set_params(MEAN_FIELD, np.zeros((2, 4)))
    report = gap_report(
        MEAN_FIELD,
        params,
        x,
        key=key,
        estimate=ImportanceSampling(4_000),
        reference=Enumeration(square),
        num_steps=300,
    )
    np.testing.assert_allclose(report.evidence[0], LOG_P, atol=2e-5)
    parts = report.estimator + report.approximation + report.amortization
    np.testing.assert_allclose(parts, report.evidence - report.elbo, atol=NUM_SEM * float(report.elbo_sem.max()))
    assert abs(report.elbo[0] - AT_PRIOR) < NUM_SEM * report.elbo_sem[0]
    assert abs(report.amortization[0] - (BEST - AT_PRIOR)) < NUM_SEM * report.amortization_sem[0]
    # The family's own loss stands out against log p itself, and is that of the closed form for the other row too.
    covariance = np.linalg.inv(PRECISION)
    lost = 0.5 * (np.log(np.diag(PRECISION)).sum() + np.linalg.slogdet(covariance)[1])
    found = report.approximation + report.estimator
    assert abs(lost - (LOG_P - BEST)) < 1e-6
    assert (np.abs(found - lost) < NUM_SEM * np.hypot(report.approximation_sem, report.estimator_sem)).all()
    assert "amortization" in str(report) and "means over 2 data" in str(report)


@pytest.mark.slow
def test_a_family_that_holds_the_posterior_has_no_gap(key):
    """A full Gaussian at the right place: optimisation takes the whole gap, row by row."""
    params = set_params(FULL, 0.5 * np.linalg.solve(PRECISION, W.T / SIGMA**2))
    x = jnp.asarray(np.stack([X, -X, 0.3 * X]), jnp.float32)
    exact = ImportanceSampling(20_000), Enumeration(square)
    report = gap_report(FULL, params, x, key=key, estimate=exact[1], reference=exact[1], num_steps=400, num_draws=2_000)
    np.testing.assert_array_equal(report.estimator, 0.0)
    assert (np.abs(report.approximation) < NUM_SEM * report.approximation_sem + 0.005).all()
    truth = stats.multivariate_normal(np.zeros(4), W @ W.T + SIGMA**2 * np.eye(4)).logpdf(np.asarray(x))
    assert (np.abs(report.amortization - (truth - report.elbo)) < NUM_SEM * report.amortization_sem + 0.005).all()


@pytest.mark.slow
def test_twenty_steps_take_back_half_of_the_amortization_gap(key):
    params = set_params(MEAN_FIELD, np.zeros((2, 4)))
    x = jnp.asarray(np.stack([X, -0.5 * X, X[::-1]]), jnp.float32)
    features = refine(MEAN_FIELD, params, x, key=key)
    bounds = [
        evidence(Observed(MEAN_FIELD, params, x, features=f), MeanBound(ELBO(), 2_000), key=key).value for f in (None, features)
    ]
    best = gap_report(MEAN_FIELD, params, x, key=key, estimate=Enumeration(square), reference=Enumeration(square)).amortization
    assert (bounds[1] - bounds[0] > 0.5 * best).all(), (bounds[1] - bounds[0], best)
    # Other features are another proposal for the same evidence.
    exact = evidence(Observed(MEAN_FIELD, params, x), Enumeration(square)).value
    proposed = evidence(Observed(MEAN_FIELD, params, x, features=features), ImportanceSampling(2_000), key=key)
    assert (np.abs(proposed.value - exact) < NUM_SEM * proposed.sem + proposed.sem**2).all()
    # One row, traced: a gradient passes through the steps.
    one = refine_one(MEAN_FIELD, params, x[0], key, num_steps=2, optimizer=optax.sgd(0.01))
    slope = jax.jacobian(lambda x: refine_one(MEAN_FIELD, params, x, key, num_steps=2, optimizer=optax.sgd(0.01)))(x[0])
    assert one.shape == (4,) and slope.shape == (4, 4) and float(jnp.abs(slope).max()) > 1e-4


def test_the_health_of_a_posterior(key):
    """One latent follows x, the other stays at the prior: everything in closed form, or by quadrature."""
    gain = np.array([[0.8, 0, 0, 0], [0, 0, 0, 0]])
    params = set_params(MEAN_FIELD, gain)
    num = 500
    x = np.asarray(jax.random.normal(key, (num, 4)), np.float64)
    found = posterior_health(MEAN_FIELD, params, jnp.asarray(x, jnp.float32), key=key)
    means = 0.8 * x[:, 0]  # q(z_0 | x) = N(mean, 1)
    np.testing.assert_allclose(found.kl, [0.5 * (means**2).mean(), 0.0], atol=1e-5)
    assert abs(found.rate - 0.5 * (means**2).mean()) < 1e-5
    np.testing.assert_allclose(found.rate_sem, 0.5 * (means**2).std(ddof=1) / np.sqrt(num), rtol=1e-4)
    # The mean of 64 draws of variance one: each variance is off by about sqrt(2 / num) times what it is, and the noise's share.
    assert abs(found.mean_variance[0] - means.var(ddof=1)) < NUM_SEM * np.sqrt(2 / num) * 0.2
    assert abs(found.mean_variance[1]) < NUM_SEM * np.sqrt(2 / num) / 64
    assert found.active_units == 1
    # I(x; z) of a mixture of normals around the means: its entropy less that of a normal.
    grid = np.linspace(-8, 8, 2_001)
    density = stats.norm(means[:, None], 1.0).pdf(grid[None]).mean(0)
    entropy = -np.trapezoid(density * np.log(density), grid)
    wanted = entropy - 0.5 * np.log(2 * np.pi * np.e)
    assert abs(found.mutual_information - wanted) < NUM_SEM * found.mutual_information_sem
    assert abs(found.marginal_kl - (found.rate - wanted)) < NUM_SEM * found.mutual_information_sem
    assert "active units        1 of 2" in str(found) and "at most 6.21" in str(found)
    # A mutual information is at most the log of the number of data, however far apart these are.
    far = posterior_health(MEAN_FIELD, params, jnp.asarray(100 * x[:40], jnp.float32), key=key, num_data=32)
    np.testing.assert_allclose(far.mutual_information, np.log(32), rtol=0.05)


@pytest.mark.slow
def test_health_during_training(key):
    """`fit` measures it on the held-out rows, beside the loss."""
    x = jax.random.normal(key, (64, 4))
    params = set_params(MEAN_FIELD, np.zeros((2, 4)))
    fit = gm.fit(
        MEAN_FIELD,
        x,
        key=key,
        params=params,
        num_steps=4,
        batch_size=16,
        validation=x,
        validate=Whole(PosteriorValidation(MEAN_FIELD, num_samples=8)),
        validate_every=2,
        progress=False,
    )
    last = {name: values[-1] for name, values in fit.history.items()}
    names = ("loss", "rate_nats", "kl_nats_0", "kl_nats_1", "active_units", "mutual_information_nats", "marginal_kl_nats")
    assert all(np.isfinite(last[f"validation_{name}"]) for name in names)
    assert last["validation_kl_nats_0"] + last["validation_kl_nats_1"] == pytest.approx(last["validation_rate_nats"], rel=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda key: refine(MEAN_FIELD, {}, np.zeros((2, 4)), key=key, num_steps=0), ValueError, "num_steps must be an integer"),
        (lambda key: gap_report(MEAN_FIELD, {}, np.zeros((2, 3)), key=key), ValueError, "x must have shape"),
        (lambda key: PosteriorValidation(MEAN_FIELD, 1), ValueError, "num_samples must be >= 2"),
        (lambda key: PosteriorValidation(NormalHead()), TypeError, "model must be a LatentModel"),
        (
            lambda key: PosteriorValidation(MEAN_FIELD)({}, key, gm.Batch(np.zeros((2, 4)), weight=np.ones(2))),
            ValueError,
            "leave out the weights",
        ),
    ],
)
def test_bad_arguments(key, make, error, match):
    with pytest.raises(error, match=match):
        make(key)
