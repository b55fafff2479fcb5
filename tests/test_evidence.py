"""Every way to estimate an evidence, against evidences that are known: conjugate, by quadrature, by enumeration."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import genmod as gm
from genmod import inference
from genmod.densities import BernoulliHead, Factorized, FromFunctions, FullNormal, Normal, NormalHead
from genmod.inference import (
    AIS,
    BIC,
    SMC,
    Enumeration,
    Evidence,
    ExactEvidence,
    HarmonicMean,
    ImportanceSampling,
    LaplaceEvidence,
    MeanBound,
    Observed,
    ReverseAIS,
    bayes_factor,
    bayesian,
    bracket,
    evidence,
    simulate,
    target,
)
from genmod.losses import ELBO, IWAE, importance_bound
from genmod.samplers import mala, random_walk

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5

# Probabilistic PCA: x = W z + sigma eps, z ~ N(0, I).
W = np.array([[1, 0.5], [-0.3, 0.8], [0.6, -0.2], [0.1, 1.1]])
SIGMA, X = 0.5, np.array([1, -0.5, 0.25, 2])
LOG_P = -7.474640
COVARIANCE = np.linalg.inv(np.eye(2) + W.T @ W / SIGMA**2)
MEAN = COVARIANCE @ W.T @ X / SIGMA**2
FACTOR = np.linalg.cholesky(COVARIANCE)


def log_likelihood(z):
    return jax.scipy.stats.norm.logpdf(jnp.asarray(X, z.dtype), jnp.matmul(jnp.asarray(W, z.dtype), z), SIGMA).sum()


def wide():
    """The posterior, with standard deviations 1.3 times its own, a little off."""
    factor = 1.3 * FACTOR
    return {"mean": MEAN + 0.05, "lower": np.tril(factor, -1), "log_scale": np.log(np.diagonal(factor))}


def pca():
    wide_params = jax.tree.map(jnp.asarray, wide())
    return bayesian(log_likelihood, Normal((2,)), {}, FullNormal((2,)), wide_params)


def posterior_draws(key, num):
    return jnp.asarray(MEAN[None] + np.asarray(jax.random.normal(key, (num, 2))) @ FACTOR.T)


def square():
    """The trapezoidal rule, which for Gaussians of these widths is exact."""
    nodes = np.linspace(-8.0, 8.0, 161)
    grid = np.stack([a.ravel() for a in np.meshgrid(nodes, nodes)], -1)
    return grid, np.full(grid.shape[0], 2 * math.log(0.1))


KERNEL = gm.call(mala, step_size=0.15)
ANNEALED = AIS(256, 20, KERNEL, 2)
METHODS = {
    "importance": ImportanceSampling(4_000),
    "iwae": MeanBound(IWAE(500), 20),
    "ais": ANNEALED,
    "ais_random_walk": AIS(256, 20, gm.call(random_walk, scale=0.4), 2),
    "smc": SMC(128, 16, 10, KERNEL),
    "reverse_ais": ReverseAIS(ANNEALED),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_probabilistic_pca(name, key, x64):
    """Within its own error, which is small enough to mean something, and on its side of the truth."""
    method, keys = METHODS[name], jax.random.split(key)
    z = posterior_draws(keys[1], 256) if name == "reverse_ais" else None
    found = evidence(pca(), method, key=keys[0], z=z)
    assert 0 < found.sem < 0.1
    assert abs(found.value - LOG_P) < NUM_SEM * found.sem + found.sem**2  # half the relative variance is the bias of the log
    assert found.side == (1 if name == "reverse_ais" else -1)
    assert found.num_draws == {"importance": 4_000, "iwae": 10_000, "smc": 2_048}.get(name, 256)
    if name == "importance":
        assert found.extras["k_hat"] < 0.5 and 2_000 < found.extras["effective_size"] < 4_000
    elif name != "iwae":
        assert 0.4 < found.extras["acceptance_rate"] < 1


def test_probabilistic_pca_without_chance(x64):
    """Closed forms to rounding: quadrature, Laplace of a Gaussian, the marginal law; BIC from its definition."""
    marginal = stats.multivariate_normal(np.zeros(4), W @ W.T + SIGMA**2 * np.eye(4)).logpdf(X)
    assert abs(marginal - LOG_P) < 1e-6
    exact = evidence(pca(), ExactEvidence(lambda latent: jnp.asarray(marginal)))
    assert exact.value == marginal and exact.sem == 0 and exact.side == 0
    np.testing.assert_allclose(evidence(pca(), Enumeration(square)).value, marginal, rtol=1e-10)
    laplace = evidence(pca(), LaplaceEvidence(), z=jnp.zeros(2))
    np.testing.assert_allclose(laplace.value, marginal, rtol=1e-10)
    assert bool(laplace.extras["converged"])
    best = np.linalg.lstsq(W, X, rcond=None)[0]
    wanted = stats.norm(W @ best, SIGMA).logpdf(X).sum() - 0.5 * 2 * math.log(4)
    np.testing.assert_allclose(evidence(pca(), BIC(4), z=jnp.asarray(best)).value, wanted, rtol=1e-10)
    np.testing.assert_allclose(evidence(pca(), BIC(4, 3), z=jnp.asarray(best)).value, wanted - 0.5 * math.log(4), rtol=1e-10)


def test_bounds_rise_to_the_evidence(key, x64):
    """The IWAE bound rises in K; at the prior as posterior its first is the ELBO known in closed form."""
    problem = bayesian(log_likelihood, Normal((2,)), {})
    found = [evidence(problem, MeanBound(IWAE(k), 4_000), key=key) for k in (1, 10, 100)]
    elbo = evidence(problem, MeanBound(ELBO(), 4_000), key=key)
    for bound in (found[0], elbo):
        assert abs(bound.value - -18.728165) < NUM_SEM * bound.sem
    values = [bound.value for bound in found]
    assert values[0] < values[1] < values[2] < LOG_P + NUM_SEM * found[2].sem
    assert LOG_P - values[2] > NUM_SEM * found[2].sem  # a bound, which 100 draws of the prior have not closed


def test_both_sides(key, x64):
    """Few chains of few levels: the mean of many brackets encloses the truth, with room on either side."""
    rows = jax.random.split(key, 100)
    method = AIS(4, 4, KERNEL)
    draws = posterior_draws(key, 400).reshape(100, 4, 2)

    def one(key, z):
        from_below = method.estimate_one(inference.Problem(pca()), key)
        from_above = ReverseAIS(method).estimate_one(inference.Problem(pca(), z), key)
        return from_below.value, from_above.value

    below, above = jax.jit(jax.vmap(one))(rows, draws)
    assert below.mean() + NUM_SEM * below.std() / 10 < LOG_P < above.mean() - NUM_SEM * above.std() / 10
    whole = bracket(pca(), ANNEALED, key=key, z=draws.reshape(400, 2))
    assert whole.lower.value < whole.upper.value + NUM_SEM * np.hypot(whole.lower.sem, whole.upper.sem)
    assert str(whole).startswith("lower: log evidence -7.") and "an upper bound in expectation" in str(whole)


def test_the_harmonic_mean_warns(key, x64):
    """Its weights have no variance here, which k-hat sees, and it is off by nats in spite of exact draws."""
    with pytest.warns(UserWarning, match="infinite variance"):
        found = evidence(pca(), HarmonicMean(), z=posterior_draws(key, 10_000))
    assert found.side == 1 and found.num_draws == 10_000
    assert found.extras["k_hat"] > 0.5
    assert found.value - LOG_P > 0.2


# Normal-inverse-gamma: s2 ~ IG(1, 1), m | s2 ~ N(0, s2), and five data; z = (m, log s2).
DATA = np.array([-1.2, 0.3, 0.8, 2.1, 1.4])


def nig_sample(key, k=1.0, a=1.0, b=1.0, m=0.0):
    keys = jax.random.split(key)
    variance = b / jax.random.gamma(keys[0], a)
    return jnp.stack([m + jnp.sqrt(variance / k) * jax.random.normal(keys[1]), jnp.log(variance)])


def nig_log_prob(z):
    m, log_variance = z
    return (
        jax.scipy.stats.norm.logpdf(m, 0.0, jnp.exp(0.5 * log_variance)) - log_variance - jnp.exp(-log_variance)
    )  # log IG(s2; 1, 1) + log s2


def nig_log_likelihood(z):
    return jax.scipy.stats.norm.logpdf(jnp.asarray(DATA, z.dtype), z[0], jnp.exp(0.5 * z[1])).sum()


@pytest.mark.slow
def test_normal_inverse_gamma(key, x64):
    """A posterior that is no Gaussian, from both sides, with exact draws by conjugacy."""
    problem = bayesian(nig_log_likelihood, FromFunctions((2,), nig_sample, nig_log_prob), {})
    n, mean = DATA.size, DATA.mean()
    k, a = 1.0 + n, 1.0 + n / 2
    b = 1.0 + 0.5 * ((DATA - mean) ** 2).sum() + 0.5 * n * mean**2 / k
    wanted = math.lgamma(a) - math.lgamma(1.0) - a * math.log(b) - 0.5 * math.log(k) - 0.5 * n * math.log(2 * math.pi)
    assert abs(wanted - -9.400174) < 1e-6
    z = jax.vmap(functools.partial(nig_sample, k=k, a=a, b=b, m=n * mean / k))(jax.random.split(key, 256))
    ais = AIS(256, 20, gm.call(mala, step_size=0.3), 2)
    for method in (ImportanceSampling(4_000), ais, ReverseAIS(ais), SMC(64, 16, 10, ais.kernel)):
        found = evidence(problem, method, key=key, z=z if isinstance(method, ReverseAIS) else None)
        assert abs(found.value - wanted) < NUM_SEM * found.sem + found.sem**2 and found.sem < 0.15, method
    laplace = evidence(problem, LaplaceEvidence(), z=jnp.zeros(2))
    assert 0.001 < abs(laplace.value - wanted) < 0.3
    factor = bayes_factor(evidence(problem, ImportanceSampling(4_000), key=key), laplace)
    assert factor.side == 0 and abs(factor.value - (wanted - laplace.value)) < NUM_SEM * factor.sem


# --- a model with rows -------------------------------------------------------------------------------------------------------

VAE = gm.models.VAE(
    (6,),
    gm.nets.MLP((8,), jnp.tanh),
    gm.densities.Amortized(Factorized(NormalHead(), (1,)), (8,)),
    gm.nets.ZeroHead(gm.nets.MLP((8,), jnp.tanh), 6),
    BernoulliHead(),
)


def line():
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    return nodes[:, None].astype(np.float32), (np.log(weights) + nodes**2 / 2).astype(np.float32)


def vae_params(key):
    """Of a decoder that means something: each pixel a step of the latent; the posterior near the prior."""
    params = VAE.init(key, jnp.zeros((4, 6), jnp.uint8))
    return jax.tree.map(lambda p: p + 0.7 * jax.random.normal(jax.random.fold_in(key, p.size), p.shape), params) | {
        "posterior": params["posterior"]
    }


@pytest.mark.slow
def test_rows_of_a_model(key):
    """Each row by itself: against quadrature, from both sides of it, and whatever rows stand beside it."""
    keys, params = jax.random.split(key, 4), vae_params(key)
    z, x = simulate(VAE, params, keys[0], 40)
    assert z.shape == (40, 1) and x.shape == (40, 6)
    rows = Observed(VAE, params, x)
    exact = evidence(rows, Enumeration(line))
    assert exact.value.shape == (40,) and exact.num_draws == 100
    every = np.array(np.meshgrid(*[[0, 1]] * 6), np.uint8).reshape(6, -1).T
    assert abs(np.exp(evidence(Observed(VAE, params, every), Enumeration(line)).value).sum() - 1) < 1e-4
    sampled = evidence(rows, ImportanceSampling(2_000), key=keys[1])
    ais = AIS(64, 20, gm.call(mala, step_size=0.2))
    both = bracket(rows, ais, key=keys[2], z=z[:, None])
    for found in (sampled, both.lower):
        score = (found.value - exact.value) / found.sem
        assert np.abs(score).max() < NUM_SEM
        assert abs(score.mean()) < NUM_SEM / np.sqrt(40) + 0.3
    # The chains of a row share the one exact draw that there is: what is unbiased is the mean over rows.
    ratio = np.exp(exact.value - both.upper.value)
    assert abs(ratio.mean() - 1) < NUM_SEM * ratio.std() / np.sqrt(40) and ratio.std() < 0.5
    again = evidence(Observed(VAE, params, x[:3]), ImportanceSampling(2_000), key=keys[1])
    np.testing.assert_allclose(again.value, sampled.value[:3], rtol=1e-5)
    total = sampled.total()
    assert abs(total.value - exact.value.sum()) < NUM_SEM * total.sem
    log_w = VAE.log_weights_one(params, x[0], None, jax.random.fold_in(keys[1], 0), 2_000)
    np.testing.assert_allclose(sampled.value[0], importance_bound(log_w), rtol=1e-5)
    # A closed form gets what belongs to its row.
    closed = evidence(rows, ExactEvidence(lambda params, x, context: x.sum().astype(float)))
    np.testing.assert_array_equal(closed.value, np.asarray(x, float).sum(1))


def test_an_unnormalised_density(key):
    """The constant of an energy by a proposal: 2 pi sqrt(det) of a Gaussian, with annealing from the proposal."""
    precision = jnp.array([[2.0, 0.6], [0.6, 1.0]])
    problem = target(lambda z: -0.5 * jnp.dot(z, jnp.matmul(precision, z)), Normal((2,), 1.5), {})
    wanted = math.log(2 * math.pi) - 0.5 * math.log(2.0 - 0.36)
    for method in (ImportanceSampling(4_000), AIS(128, 20, gm.call(mala, step_size=0.2))):
        found = evidence(problem, method, key=key)
        assert abs(found.value - wanted) < NUM_SEM * found.sem and found.sem < 0.05


def test_results_are_printed():
    one = Evidence(np.float64(-7.47464), np.float64(0.0012), -1, 5_000, {"k_hat": np.float64(0.123)})
    assert str(one) == "log evidence -7.4746 +- 0.0012 nats, a lower bound in expectation, 5,000 latents, k_hat 0.123"
    rows = Evidence(np.array([-1.0, -3.0]), np.array([0.3, 0.4]), 0, 1, {})
    assert str(rows) == "log evidence -2.0000 +- 0.2500 nats in the mean of 2 rows, no bound, 1 latents"
    total = rows.total()
    np.testing.assert_allclose([total.value, total.sem], [-4.0, 0.5])
    upper = one._replace(side=1, value=-7.0, sem=0.0009)
    np.testing.assert_allclose(bayes_factor(one, upper), [-0.47464, 0.0015, -1], rtol=1e-6)
    assert bayes_factor(one, one).side == 0 and bayes_factor(upper, one).side == 1


PROBLEM = target(lambda z: -jnp.sum(z**2), Normal((2,)), {})


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda key: evidence(PROBLEM, AIS), TypeError, "method must be an EvidenceMethod"),
        (lambda key: evidence(PROBLEM, AIS()), ValueError, "AIS is random: pass key"),
        (
            lambda key: evidence(PROBLEM, ReverseAIS(), key=key),
            ValueError,
            "ReverseAIS wants z=...: exact draws of the posterior",
        ),
        (lambda key: evidence(PROBLEM, AIS(), key=key, z=jnp.zeros((3, 2))), ValueError, "AIS takes no z"),
        (lambda key: evidence(jnp.zeros(2), AIS(), key=key), TypeError, "problem must be Observed"),
        (lambda key: evidence(Observed(Normal((2,)), {}, X), AIS(), key=key), TypeError, "model must be a LatentModel"),
        (lambda key: evidence(Observed(VAE, {}, np.zeros((3, 5), np.uint8)), AIS(), key=key), ValueError, "x must have shape"),
        (
            lambda key: evidence(Observed(VAE, {}, np.zeros((3, 6), np.uint8)), ReverseAIS(), key=key, z=jnp.zeros((2, 4, 1))),
            ValueError,
            "z must have a leading axis of one entry for each of 3 rows",
        ),
        (lambda key: evidence(PROBLEM._replace(draw_prior=None), SMC(), key=key), ValueError, "give the Latent a draw_prior"),
        (lambda key: simulate(VAE, {}, key, 0), ValueError, "num must be an integer >= 1"),
        (lambda key: ImportanceSampling(0), ValueError, "num_samples must be an integer >= 1, got 0"),
        (lambda key: AIS(kernel=0.1), TypeError, "kernel must be a function"),
        (lambda key: SMC(resample_below=1.5), ValueError, "resample_below must be in"),
        (lambda key: MeanBound(AIS()), TypeError, "objective must be a Objective|objective must be an Objective"),
        (lambda key: BIC(0), ValueError, "num_data must be an integer >= 1"),
    ],
)
def test_bad_arguments(key, make, error, match):
    with pytest.raises(error, match=match):
        make(key)
