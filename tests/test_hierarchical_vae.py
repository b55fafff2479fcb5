"""Hierarchical VAEs. Of two linear-Gaussian levels, z_2 -> z_1 -> x, all is known; of levels of bits, by enumeration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import genmod as gm
from genmod import flows
from genmod.core.params import trainable_mask
from genmod.densities import (
    Amortized,
    BernoulliHead,
    Factorized,
    FullNormal,
    GaussianMixture,
    Normal,
    NormalHead,
    RelaxedCategorical,
    StraightThrough,
    VampPrior,
)
from genmod.inference import ImportanceSampling, Observed, gap_report, posterior_health, refine, simulate
from genmod.losses import ELBO, IWAE, ScoreFunctionELBO, SemiAmortized
from genmod.models import VAE, Flow, HierarchicalVAE, LatentLevel

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5

# z_2 ~ N(0, I), z_1 = A z_2 + S eps, x = W z_1 + sigma eps.
A, S = np.array([[0.9, -0.4], [0.3, 0.7]]), np.array([0.6, 1.2])
W, SIGMA = np.array([[1.0, 0.5], [-0.3, 0.8], [0.6, -0.2]]), 0.5
PRIOR_1 = A @ A.T + np.diag(S**2)
COVARIANCE = np.block(  # of (z_1, z_2, x)
    [[PRIOR_1, A, PRIOR_1 @ W.T], [A.T, np.eye(2), A.T @ W.T], [W @ PRIOR_1, W @ A, W @ PRIOR_1 @ W.T + SIGMA**2 * np.eye(3)]]
)
X = np.array([[1.0, -0.5, 2.0], [-1.5, 0.25, 0.75]])
LOG_P = scipy.stats.multivariate_normal(np.zeros(3), COVARIANCE[4:, 4:]).logpdf(X)


def conditional(of, given):
    """(matrix, covariance) of the coordinates `of` given others."""
    matrix = np.linalg.solve(COVARIANCE[np.ix_(given, given)], COVARIANCE[np.ix_(given, of)]).T
    return matrix, COVARIANCE[np.ix_(of, of)] - matrix @ COVARIANCE[np.ix_(given, of)]


TOP_MAP, TOP_COVARIANCE = conditional([2, 3], [4, 5, 6])
LOW_MAP, LOW_COVARIANCE = conditional([0, 1], [4, 5, 6, 2, 3])  # given x, then z_2


def identity(x):
    return x


def linear(num, flat=False):
    net = gm.nets.MLP((num,), identity)
    return gm.nets.FlatNet(net) if flat else net


PRIOR = Amortized(Factorized(NormalHead(), (2,)), (2,))
LINEAR = HierarchicalVAE(
    (3,),
    (
        LatentLevel(linear(3), Amortized(FullNormal((2,)), (5,)), PRIOR, linear(3, flat=True)),
        LatentLevel(linear(3), Amortized(FullNormal((2,)), (3,)), Normal((2,)), linear(2)),
    ),
    NormalHead(SIGMA),
)


def linear_params(model=LINEAR, top_map=TOP_MAP, low_map=LOW_MAP):
    """The generative model above, with posteriors of these maps and the exact covariances."""

    def dense(weight):
        return {"Dense_0": {"kernel": jnp.asarray(weight, float), "bias": jnp.zeros(np.shape(weight)[1])}}

    def posterior(matrix, covariance):
        factor = np.linalg.cholesky(covariance)
        law = {"log_scale": np.log(np.diagonal(factor)), "lower": np.tril(factor, -1), "mean": np.zeros(2)}
        kernel = np.concatenate([np.zeros((6, matrix.shape[1])), matrix])  # after the 2 + 4 numbers of the factor
        law = {"distribution": law, "kernel": kernel}
        return {"law": jax.tree.map(lambda a: jnp.asarray(a, float), law), "merge": {}}

    raw = np.stack([np.zeros(2), 5 * np.arctanh(np.log(S) / 5)], -1)
    kernel = np.stack([A[0], np.zeros(2), A[1], np.zeros(2)])
    prior = {"distribution": {"raw": jnp.asarray(raw, float)}, "kernel": jnp.asarray(kernel, float)}
    return {
        "encoder": (dense(np.eye(3)),) * 2,
        "posterior": (posterior(low_map, LOW_COVARIANCE), posterior(top_map, TOP_COVARIANCE)),
        "decoder": ({"body": dense(np.concatenate([W.T, np.zeros((2, 3))]))}, dense(np.eye(2))),
        "prior": (prior, {}),
    }


def draws_of(fn, key, num):
    """fn(x, key) of both rows of X at `num` keys, (2, num, ...)."""
    keys = jax.random.split(key, num)
    return np.asarray(jax.jit(jax.vmap(lambda x: jax.vmap(lambda key: fn(x, key))(keys)))(jnp.asarray(X, float)))


WRONG = {"top_map": TOP_MAP + 0.3, "low_map": LOW_MAP - 0.2}  # posteriors that are not exact


def test_the_bound_at_the_exact_posterior_is_the_evidence(key, x64):
    """Draw by draw with sampled rates; in the mean with those in closed form. The same importance weight for every draw."""
    params = linear_params()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, LINEAR.init(key, X))
    for objective in (ELBO(analytic_kl=False), IWAE(5)):
        model = dataclasses.replace(LINEAR, objective=objective)
        found = model.log_prob(params, X[:, None].repeat(20, 1), key=key)
        np.testing.assert_allclose(found, LOG_P[:, None].repeat(20, 1), atol=1e-9)
    found = np.asarray(LINEAR.log_prob(params, X[:, None].repeat(20_000, 1), key=key))
    assert (np.abs(found.mean(1) - LOG_P) < NUM_SEM * found.std(1) / np.sqrt(20_000)).all() and (found.std(1) > 0.1).all()
    # Without its score term, or doubly reparameterised, a bound has a gradient of zero there, through the states of levels too.
    own = {name: params[name] for name in ("posterior", "encoder")}
    for objective in (ELBO(stick_the_landing=True), IWAE(3, doubly_reparameterized=True)):
        held = dataclasses.replace(LINEAR, objective=objective)
        gradient = jax.jit(jax.grad(lambda q, held=held: held.loss(params | q, key, X)[0]))(own)
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-9


def test_rates_by_level(key, x64):
    """Of posteriors that are not exact, against closed forms; and by draws, where a closed form is not known."""
    params = linear_params(**WRONG)
    top_mean, low = X @ WRONG["top_map"].T, WRONG["low_map"]

    def gaussian_kl(mean, covariance, prior_covariance, spread):
        """E KL(N(m, C) || N(0, P)), where E m m^T = mean mean^T + spread."""
        inverse = np.linalg.inv(prior_covariance)
        trace = np.trace(inverse @ (covariance + spread)) + mean @ inverse @ mean
        return 0.5 * (trace - len(mean) + np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1])

    offset = low[:, 3:] - A  # q's mean less that of the prior: low_x x + (low_z - A) z_2, with z_2 of q
    means, spread = X @ low[:, :3].T + top_mean @ offset.T, offset @ TOP_COVARIANCE @ offset.T
    exact = np.stack(
        [
            [gaussian_kl(m, LOW_COVARIANCE, np.diag(S**2), spread) for m in means],
            [gaussian_kl(m, TOP_COVARIANCE, np.eye(2), 0.0) for m in top_mean],
        ],
        -1,
    )
    num = 20_000
    found = np.asarray(LINEAR.kl(params, X[:, None].repeat(num, 1), key=key))
    assert (np.abs(found.mean(1) - exact)[:, 0] < NUM_SEM * found.std(1)[:, 0] / np.sqrt(num)).all()
    np.testing.assert_allclose(found[..., 1], exact[:, None, 1].repeat(num, 1), rtol=1e-9)  # nothing above: no draw
    # The same priors, of which no closed form is known.
    levels = tuple(dataclasses.replace(level, prior=Flow(gm.bijectors.Chain(()), level.prior)) for level in LINEAR.levels)
    by_draws = dataclasses.replace(LINEAR, levels=levels)
    own = params | {"prior": tuple({"bijector": (), "base": base} for base in params["prior"])}
    sampled = np.asarray(by_draws.kl(own, X[:, None].repeat(num, 1), key=key))
    assert (np.abs(sampled.mean(1) - exact) < NUM_SEM * sampled.std(1) / np.sqrt(num)).all()
    assert (sampled.std(1) > 0.1).all()


def test_metrics_by_level_sum_to_the_rate_and_free_bits_count_by_level(key):
    params = linear_params(**WRONG)
    x = jnp.asarray(X, jnp.float32)
    between = 2.0  # nats, above the rate of one level and below that of the other
    objectives = ELBO(), ELBO(free_bits=between), ELBO(analytic_kl=False)
    models = [dataclasses.replace(LINEAR, objective=objective) for objective in objectives]
    (loss, metrics), (free, own), (_, sampled) = jax.jit(lambda p: [model.loss(p, key, x) for model in models])(params)
    levels = np.array([metrics["rate_nats_level_1"], metrics["rate_nats_level_2"]])
    np.testing.assert_allclose(levels.sum(), metrics["rate_nats"], rtol=1e-5)
    np.testing.assert_allclose(metrics["rate_nats"] + metrics["distortion_nats"], loss, rtol=1e-5)
    assert levels.min() < between < levels.max()
    np.testing.assert_allclose(free, own["distortion_nats"] + between + levels.max(), rtol=1e-5)
    np.testing.assert_allclose(own["rate_nats"], metrics["rate_nats"], rtol=1e-6)
    # By draws the sum of the rate is another estimate; that of each level is reported all the same.
    assert abs(sampled["rate_nats_level_1"] - levels[0]) < 1e-4 < abs(sampled["rate_nats"] - levels.sum())


@pytest.mark.slow
def test_evidence_samples_and_latents(key):
    """Through the doors of all latent-variable models: importance sampling, draws of (z, x), one flat latent."""
    params, x = linear_params(**WRONG), X.astype(np.float32)
    found = gm.evidence(Observed(LINEAR, params, x), ImportanceSampling(20_000), key=key)
    assert (np.abs(found.value - LOG_P) < NUM_SEM * found.sem + 1e-4).all() and (found.sem > 1e-3).all()
    z, drawn = simulate(LINEAR, params, key, 50_000)
    both = np.concatenate([z, drawn], 1)
    assert both.shape == (50_000, 7)
    # The two parts of the bound, and the weights that it is the mean of.
    parts = LINEAR.rate_distortion(params, np.repeat(x[:, None], 20_000, 1), key=key)
    log_w = draws_of(lambda x, key: LINEAR.log_weights_one(params, x, None, key, 1)[0], key, 20_000)
    bounds = -np.asarray(parts.rate + parts.distortion)
    sem = np.hypot(bounds.std(1), log_w.std(1)) / np.sqrt(20_000)
    assert parts.rate.shape == parts.distortion.shape == (2, 20_000) and (sem > 1e-3).all()
    assert (np.abs(bounds.mean(1) - log_w.mean(1)) < NUM_SEM * sem).all()
    ratio = np.exp(log_w - LOG_P[:, None])
    assert (np.abs(ratio.mean(1) - 1) < NUM_SEM * ratio.std(1) / np.sqrt(20_000)).all()
    assert (np.abs(both.mean(0)) < NUM_SEM * both.std(0) / np.sqrt(50_000)).all()
    products = both[:, :, None] * both[:, None]
    assert (np.abs(products.mean(0) - COVARIANCE) < NUM_SEM * products.std(0) / np.sqrt(50_000)).all()
    sampled = np.asarray(LINEAR.sample(params, key, (2, 3)))
    assert sampled.shape == (2, 3, 3)
    exact = linear_params()
    codes = draws_of(lambda x, key: LINEAR.encode_one(exact, x, key), key, 20_000)
    wanted = X @ conditional([0, 1, 2, 3], [4, 5, 6])[0].T
    assert (np.abs(codes.mean(1) - wanted) < NUM_SEM * codes.std(1) / np.sqrt(20_000)).all()
    low, top = LINEAR.split(jnp.asarray(codes[0, 0]))
    np.testing.assert_allclose(jnp.concatenate([low, top]), codes[0, 0])
    of_list = LINEAR.split([[1, 2, 3, 4]])
    np.testing.assert_array_equal(jnp.concatenate(of_list, -1), [[1.0, 2.0, 3.0, 4.0]])
    assert all(part.dtype == jnp.float32 for part in of_list)
    np.testing.assert_allclose(LINEAR.decode_one(exact, jnp.asarray(codes[0, 0])), W @ codes[0, 0, :2], rtol=1e-5)


@pytest.mark.slow
def test_inference_of_latents_works_on_it(key):
    """The family of the linear model holds the exact posterior: its gap is one of amortisation, which refinement takes back."""
    params, x = linear_params(**WRONG), jnp.asarray(X, jnp.float32)
    report = gap_report(LINEAR, params, x, key=key, reference=ImportanceSampling(2_000), num_draws=5_000)
    assert (np.abs(report.evidence - LOG_P) < NUM_SEM * report.evidence_sem + 1e-4).all()
    np.testing.assert_allclose(
        report.elbo + report.amortization + report.approximation + report.estimator, report.evidence, atol=1e-3
    )
    assert (np.abs(report.approximation) < NUM_SEM * report.approximation_sem + 0.01).all() and (report.amortization > 0.2).all()
    health = posterior_health(LINEAR, linear_params(), jnp.tile(x, (50, 1)), key=key)
    means = jnp.tile(x, (50, 1)) @ conditional([0, 1, 2, 3], [4, 5, 6])[0].T
    np.testing.assert_allclose(health.mean_variance, means.var(0, ddof=1), rtol=0.1, atol=0.05)


@pytest.mark.slow
def test_refinement_raises_its_bound(key):
    params, x = linear_params(**WRONG), jnp.asarray(X, jnp.float32)
    features = refine(LINEAR, params, x, key=key, num_steps=100)
    assert jax.tree.map(jnp.shape, features) == ((2, 3), (2, 3))
    keys = jax.random.split(key, 500)
    bounds = jax.jit(
        lambda f: jax.vmap(lambda key: jax.vmap(lambda x, f: ELBO().bound_one(LINEAR.latent_one(params, x, None, f), key))(x, f))(
            keys
        )
    )
    gained = bounds(features) - bounds(jax.vmap(lambda x: LINEAR.features_one(params, x))(x))
    assert (gained.mean(0) > NUM_SEM * gained.std(0) / np.sqrt(500)).all()
    refined = dataclasses.replace(LINEAR, objective=SemiAmortized(ELBO(64)))
    found = jax.jit(
        lambda: (refined.loss(params, key, x)[0], dataclasses.replace(LINEAR, objective=ELBO(64)).loss(params, key, x)[0])
    )()
    assert found[0] < found[1] - 0.1


def test_one_level_is_a_vae(key):
    """The same parts make the same draws, rates and densities, and the same loss."""
    encoder, decoder = gm.nets.FlatNet(gm.nets.MLP((6,), jnp.tanh)), gm.nets.FlatNet(gm.nets.MLP((6,), jnp.tanh), 3)
    posterior = flows.amortized_posterior((2,), (6,))
    vae = VAE((3,), encoder, posterior, decoder, BernoulliHead())
    one = HierarchicalVAE((3,), (LatentLevel(encoder, posterior, Normal((2,)), decoder),), BernoulliHead())
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 3)), jnp.uint8)
    params = vae.init(key, x)
    kernel = 0.3 * jax.random.normal(key, params["posterior"]["kernel"].shape)
    params["posterior"] = params["posterior"] | {"kernel": kernel}
    same = {n: (p,) for n, p in params.items()} | {"posterior": ({"law": params["posterior"], "merge": {}},)}

    @jax.jit
    def densities(key):
        (ours, its), own = (one.latent_one(same, x[0]), vae.latent_one(params, x[0])), jax.random.split(key, 1)[0]
        z, log_q = its.draw(own)
        names = ("log_likelihood", "log_prior", "held_log_q", "log_q")
        values = [jnp.stack([log_q, *(getattr(latent, name)(z) for name in names)]) for latent in (ours, its)]
        return (*ours.draw(key), *values, z)

    drawn, log_q, ours, its, z = densities(key)
    np.testing.assert_array_equal(drawn, z)
    np.testing.assert_allclose(ours, its, rtol=1e-6)
    np.testing.assert_allclose(log_q, its[0], rtol=1e-6)
    np.testing.assert_allclose(one.kl(same, x, key=key)[:, 0], vae.kl(params, x).sum(1), rtol=1e-6)
    bounds = [np.asarray(m.log_prob(p, x.repeat(4_000, 0), key=key)).reshape(5, -1) for m, p in ((one, same), (vae, params))]
    sem = np.hypot(*(b.std(1) / np.sqrt(4_000) for b in bounds))
    assert (np.abs(bounds[0].mean(1) - bounds[1].mean(1)) < NUM_SEM * sem).all()


STATES = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint8)


def small(shape, num=None):
    return gm.nets.FlatNet(gm.nets.MLP(shape, jnp.tanh), num)


def moved(model, key, x, *context):
    """Parameters away from the start, where each posterior is its prior."""
    params, rng = model.init(key, x, *context), np.random.default_rng(1)
    noise = jax.tree.map(lambda p: np.asarray(0.4 * rng.standard_normal(p.shape), p.dtype), params)
    return jax.tree.map(lambda p, n, trained: p + n if trained else p, params, noise, trainable_mask(params))


@pytest.mark.slow
def test_levels_that_are_not_gaussian_with_a_context(key):
    """One-hot vectors below a scalar of a flow under a mixture that knows the context: weights by the sum and the integral."""
    law = StraightThrough(RelaxedCategorical((1,), 3))
    levels = (
        LatentLevel(small((6,)), Amortized(law, (6,)), Amortized(law, (4,)), small((6,), 3), small((6,))),
        LatentLevel(
            small((6,)),
            flows.amortized_posterior((1,), (8,), gm.bijectors.Planar(), 2),
            Flow(gm.bijectors.Conditioned(flows.coupling_layer((1,), (2,), (4,))), GaussianMixture((1,), 2)),
            small((4,)),
        ),
    )
    model = HierarchicalVAE((3,), levels, BernoulliHead(), context_shape=(2,))
    x, context = STATES[3:5], np.array([[0.5, -1.0], [-0.3, 0.8]], np.float32)
    params = moved(model, key, x, context)
    nodes, step = np.linspace(-14, 14, 701, dtype=np.float32, retstep=True)
    latents = np.concatenate([np.repeat(np.eye(3, dtype=np.float32), 701, 0), np.tile(nodes, 3)[:, None]], 1)

    @jax.jit
    @jax.vmap
    def log_evidence(x, c):
        latent = model.latent_one(params, x, c)
        log_joint = jax.vmap(lambda z: jnp.stack([latent.log_prior(z), latent.log_likelihood(z)]))(latents)
        return jax.nn.logsumexp(log_joint[:, 0]) + np.log(step), jax.nn.logsumexp(log_joint.sum(1)) + np.log(step)

    mass, exact = log_evidence(x, context)
    np.testing.assert_allclose(mass, 0.0, atol=1e-3)
    found = gm.evidence(Observed(model, params, x, context), ImportanceSampling(20_000), key=key)
    assert (np.abs(found.value - exact) < NUM_SEM * found.sem + 1e-3).all() and (found.sem > 1e-4).all()
    assert model.sample(params, key, (4,), context).shape == (4, 2, 3)
    assert abs(float(np.ptp(np.asarray(log_evidence(np.stack([x[0]] * 2), context)[1])))) > 0.01


@pytest.mark.slow
def test_levels_of_bits_by_the_score_function(key):
    """Integers as latents: the bound and its gradient, against the sum over all of them."""
    bits = [Factorized(BernoulliHead(), (n,)) for n in (2, 1)]
    levels = (
        LatentLevel(small((4,)), Amortized(bits[0], (8,)), Amortized(bits[0], (4,)), small((4,), 3)),
        LatentLevel(small((4,)), Amortized(bits[1], (4,)), bits[1], small((4,))),
    )
    model = HierarchicalVAE((3,), levels, BernoulliHead(), ScoreFunctionELBO(4))
    params, x = moved(model, key, STATES), jnp.asarray(STATES[5])

    def exact(params):
        latent = model.latent_one(params, x)
        log_q = jax.vmap(latent.log_q)(jnp.asarray(STATES, jnp.float32))
        log_p = jax.vmap(lambda z: latent.log_prior(z) + latent.log_likelihood(z))(jnp.asarray(STATES, jnp.float32))
        return -jnp.sum(jnp.exp(log_q) * (log_p - log_q)), jnp.exp(log_q).sum()

    (wanted, mass), gradient = jax.jit(jax.value_and_grad(exact, has_aux=True))(params)
    np.testing.assert_allclose(mass, 1.0, rtol=1e-5)
    keys = jax.random.split(key, 8_000)
    losses, found = jax.jit(jax.vmap(jax.value_and_grad(lambda p, key: model.loss(p, key, x[None])[0]), (None, 0)))(params, keys)
    assert abs(losses.mean() - wanted) < NUM_SEM * losses.std() / np.sqrt(8_000)
    for mean, each in zip(jax.tree.leaves(gradient), jax.tree.leaves(found), strict=True):
        each = np.asarray(each, np.float64)
        assert (np.abs(each.mean(0) - mean) < (NUM_SEM + 0.5) * each.std(0) / np.sqrt(8_000) + 1e-5).all()
    assert model.split(jnp.asarray([1.0, 0.0, 1.0]))[0].dtype == jnp.uint8


@pytest.mark.slow
def test_training_reaches_the_entropy():
    """Three levels of the builder, through `fit`: the bound rises from that of uniform bits to near the entropy."""
    probabilities = np.array([0.3, 0.02, 0.05, 0.18, 0.02, 0.03, 0.1, 0.3])
    data = STATES[np.random.default_rng(0).choice(8, 4_000, p=probabilities)]
    model = flows.hierarchical_autoencoder((3,), (2, 2, 1), head=BernoulliHead(), hidden_sizes=(8,), activation=jnp.tanh)
    fit = gm.fit(model, data, key=jax.random.key(0), optimizer=optax.adam(5e-3), num_steps=600, progress=False)
    found = gm.evaluate(model, fit.params, data, key=jax.random.key(2))
    entropy = -(probabilities * np.log(probabilities)).sum()
    assert -NUM_SEM * found["nll_upper_bound_nats_sem"] - 0.03 < found["nll_upper_bound_nats"] - entropy < 0.2
    assert entropy + 0.3 < 3 * np.log(2) and {f"rate_nats_level_{i}" for i in (1, 2, 3)} <= fit.history.keys()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: dataclasses.replace(LINEAR, levels=()), ValueError, "levels must hold at least one"),
        (lambda: dataclasses.replace(LINEAR, levels=(Normal((2,)),)), TypeError, r"levels\[0\] must be a LatentLevel"),
        (lambda: level(posterior=Normal((2,))), ValueError, "posterior must be conditional"),
        (lambda: level(prior=Normal((3,))), ValueError, "must have the same events"),
        (lambda: level(prior=VampPrior(LINEAR.levels[0].posterior, 2)), ValueError, "must not be a VampPrior"),
        (
            lambda: level(prior=flows.ffjord((2,), divergence=gm.dynamics.Hutchinson(1))),
            ValueError,
            "prior must have an EXACT log_prob, that of Flow is ESTIMATE",
        ),
        (
            lambda: HierarchicalVAE((3,), (bits_level(),), BernoulliHead()),
            ValueError,
            r"ELBO wants reparameterised posteriors, levels\[0\] has .*ScoreFunctionELBO",
        ),
        (
            lambda: begin(level(posterior=Amortized(FullNormal((2,)), (4,)))),
            ValueError,
            r"levels\[0\] wants .* \(4,\), .* make \(5,\)",
        ),
        (
            lambda: begin(level(prior=Amortized(FullNormal((2,)), (3,)))),
            ValueError,
            r"the prior of levels\[0\] wants .*\(3,\).*\(2,\)",
        ),
        (lambda: begin(LINEAR.levels[1], PRIOR), ValueError, r"the prior of levels\[1\] wants .*\(2,\), the state there is None"),
        (
            lambda: begin(level(decoder=linear(4, flat=True))),
            ValueError,
            r"lowest decoder must give 3 raw numbers, .* got \(4,\)",
        ),
        (lambda: LINEAR.split(jnp.zeros(3)), ValueError, "z must have 4 latents in its last axis"),
        (lambda: LINEAR.split([0.0, 1.0]), ValueError, r"z must have 4 latents in its last axis, .* got shape \(2,\)"),
        (lambda: LINEAR.rate_distortion(linear_params(), X), ValueError, "HierarchicalVAE is a random draw: pass key="),
        (lambda: dataclasses.replace(LINEAR, objective=Normal((2,))), TypeError, "objective of HierarchicalVAE must be .*ELBO"),
        (lambda: LINEAR.log_prob(linear_params(), np.zeros((2, 3), np.float32)), ValueError, "random draw: pass key="),
        (lambda: flows.hierarchical_autoencoder((3,), (2, 0)), ValueError, "latent_dims must hold integers >= 1"),
        (lambda: flows.hierarchical_autoencoder((3,), ()), ValueError, "latent_dims must hold at least one"),
    ],
)
def test_bad_parts(make, error, match):
    with pytest.raises(error, match=match):
        make()


def level(**parts):
    return dataclasses.replace(LINEAR.levels[0], **parts)


def bits_level():
    bits = Factorized(BernoulliHead(), (2,))
    return LatentLevel(small((4,)), Amortized(bits, (4,)), bits, small((4,), 3))


def begin(low, top_prior=None):
    top = LINEAR.levels[1] if top_prior is None else dataclasses.replace(LINEAR.levels[1], prior=top_prior)
    low = LINEAR.levels[0] if top_prior is not None else low
    return HierarchicalVAE((3,), (low, top), NormalHead(SIGMA)).init(jax.random.key(0), jnp.zeros((2, 3)))


@pytest.mark.slow
def test_builder_with_contexts_and_convolutions(key):
    x = (jax.random.uniform(key, (4, 7, 6, 2)) > 0.5).astype(jnp.uint8)
    conditional = flows.hierarchical_autoencoder((7, 6, 2), (3, 2), head=BernoulliHead(), hidden_sizes=(8, 4), context_shape=(5,))
    params = conditional.init(key, x, np.arange(4))
    assert conditional.kl(params, x, np.arange(4), key=key).shape == (4, 2)
    images = flows.hierarchical_autoencoder(
        (7, 6, 2), (3, 2), head=BernoulliHead(), hidden_sizes=(4,), encoder=gm.nets.ConvEncoder((3, 5), 4)
    )
    loss, metrics = jax.eval_shape(lambda: images.loss(images.init(key, x), key, x))
    assert loss.shape == () and metrics["rate_nats_level_2"].shape == ()
