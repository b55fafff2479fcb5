"""Variational autoencoders of every posterior and prior, held against their evidence by quadrature over two latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod import flows
from genmod.bijectors import Planar, Radial, RationalQuadraticSpline, Sylvester
from genmod.core.params import trainable_mask
from genmod.densities import (
    Amortized,
    BernoulliHead,
    CategoricalHead,
    DiscretizedLogisticHead,
    Factorized,
    GaussianMixture,
    Normal,
    NormalHead,
    PoissonHead,
    VampPrior,
)
from genmod.models import VAE

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
LATENT, FEATURES = (2,), (6,)
LAYERS = {
    "planar": Planar(),
    "radial": Radial(),
    "sylvester_orthogonal": Sylvester(2),
    "sylvester_householder": Sylvester(2, "householder"),
    "sylvester_triangular": Sylvester(basis="triangular"),
    "iaf": flows.iaf_layer(LATENT, FEATURES, (8,)),
    "real_nvp": flows.coupling_layer(LATENT, FEATURES, (8,)),
    "spline": flows.coupling_layer(LATENT, FEATURES, (8,), transformer=RationalQuadraticSpline(4, 3.0)),
}
POSTERIORS = {
    "gaussian": flows.amortized_posterior(LATENT, FEATURES),
    "full_gaussian": flows.full_gaussian_posterior(LATENT, FEATURES),
} | {name: flows.amortized_posterior(LATENT, FEATURES, layer, 2) for name, layer in LAYERS.items()}
SLOW = {
    "planar",
    "iaf",
    "sylvester_orthogonal",
    "radial",
    "full_gaussian",
    "spline",
    "sylvester_householder",
    "sylvester_triangular",
    "real_nvp",
    "fixed_scale",
    "poisson",
}  # close kin of others
PRIORS = {
    "normal": Normal(LATENT),
    "factorized": Factorized(NormalHead(), LATENT),
    "mixture": GaussianMixture(LATENT, 3),
    "flow": flows.planar_flow(LATENT, 2, standardize=False),
    "vamp": VampPrior(POSTERIORS["gaussian"], 4),
}
HEADS = {
    "bernoulli": BernoulliHead(),
    "categorical": CategoricalHead(3),
    "poisson": PoissonHead(),
    "normal": NormalHead(),
    "fixed_scale": NormalHead(0.5),
    "discretized_logistic": DiscretizedLogisticHead(8),
}


def vae(posterior="gaussian", prior="normal", head="bernoulli", **options):
    """Three numbers by a small network."""
    head = HEADS[head]
    encoder, decoder = (
        gm.nets.FlatNet(gm.nets.MLP((8, 6), jnp.tanh)),
        gm.nets.FlatNet(gm.nets.MLP((8,), jnp.tanh), 3 * head.num_params),
    )
    return VAE((3,), encoder, POSTERIORS[posterior], decoder, head, PRIORS[prior], **options)


def some_data(model, num=8):
    levels = np.random.default_rng(0).integers(0, 2, (num, 3))
    return levels.astype(model.event.dtype) if not isinstance(model.event, gm.Real) else levels + 0.5 * np.float32(levels)


def moved(model, scale=0.15):
    """Parameters away from the start, where a posterior is the prior."""
    params = model.init(jax.random.key(0), some_data(model), *_contexts(model))
    rng = np.random.default_rng(1)
    noise = jax.tree.map(lambda p: np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)
    return jax.tree.map(lambda p, n, trained: p + n if trained else p, params, noise, trainable_mask(params))


def _contexts(model, num=8):
    return (
        ()
        if model.context_shape is None
        else (np.random.default_rng(2).standard_normal((num, *model.context_shape)).astype("f4"),)
    )


def log_evidence(model, params, x, context=None):
    """log p(x) of each row, by the midpoint rule over z, of whatever prior and likelihood."""
    step = 0.1
    axis = np.arange(-12, 12, step, dtype=np.float32) + step / 2
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)

    @jax.jit
    def one(x, context):
        latent = model.latent_one(params, x, context)
        log_joint = jax.vmap(lambda z: latent.log_likelihood(z) + latent.log_prior(z))(z)
        return jax.nn.logsumexp(log_joint) + 2 * jnp.log(step)

    return np.array([one(row, None if context is None else context[i]) for i, row in enumerate(x)])


def check_weights(model, params, x, context=None, num=20_000):
    """The mean of p(x, z) / q(z | x) is p(x); that of its logarithm, the ELBO, lies below."""
    exact = log_evidence(model, params, x, context)
    axes = (0, None if context is None else 0, 0)
    keys = jax.random.split(jax.random.key(1), len(x))
    log_w = jax.jit(jax.vmap(lambda x, c, key: model.log_weights_one(params, x, c, key, num), axes))(x, context, keys)
    ratio = np.exp(np.asarray(log_w, np.float64) - exact[:, None])
    assert (np.abs(ratio.mean(1) - 1) < NUM_SEM * ratio.std(1) / np.sqrt(num) + 2e-3).all(), (ratio.mean(1), ratio.std(1))
    sem = log_w.std(1) / np.sqrt(num)
    assert (log_w.mean(1) < exact + NUM_SEM * sem).all()
    return exact, np.asarray(log_w.mean(1)), np.asarray(sem)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in POSTERIORS])
def test_importance_weights_of_every_posterior(name):
    model = vae(name)
    params, x = moved(model), some_data(model, 3)
    _, elbo, sem = check_weights(model, params, x)
    # The same bound through the door, with the rate in closed form where there is one.
    bounds = model.log_prob(params, np.repeat(x[:, None], 2_000, 1), key=jax.random.key(2))
    error = np.hypot(sem, bounds.std(1) / np.sqrt(2_000))
    assert (np.abs(bounds.mean(1) - elbo) < NUM_SEM * error).all()
    parts = model.rate_distortion(params, np.repeat(x[:, None], 2_000, 1), key=jax.random.key(2))
    np.testing.assert_allclose(parts.rate + parts.distortion, -bounds, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "prior", [pytest.param(n, marks=[pytest.mark.slow] * (n == "factorized")) for n in PRIORS if n != "normal"]
)
@pytest.mark.slow
def test_importance_weights_of_every_prior(prior):
    model = vae(prior=prior)
    params = moved(model)
    check_weights(model, params, some_data(model, 3))
    gradient = jax.jit(jax.grad(lambda p: model.loss(p, jax.random.key(0), some_data(model))[0]))(params)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert any((g != 0).any() for g in jax.tree.leaves(gradient["prior"]))


@pytest.mark.parametrize("head", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in HEADS if n != "bernoulli"])
def test_importance_weights_of_every_head(head):
    model = vae(head=head)
    params, x = moved(model), some_data(model, 3)
    check_weights(model, params, x)
    drawn = model.sample(params, jax.random.key(0), (5,))
    assert drawn.shape == (5, 3) and drawn.dtype == model.event.dtype
    assert jnp.isfinite(model.log_prob(params, drawn, key=jax.random.key(0))).all()


def test_samples_are_those_of_the_evidence():
    model = vae()
    params = moved(model, 0.5)
    states = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint8)
    exact = np.exp(log_evidence(model, params, states))
    np.testing.assert_allclose(exact.sum(), 1.0, atol=1e-3)
    shares = np.bincount(model.sample(params, jax.random.key(3), (20_000,)) @ np.array([4, 2, 1]), minlength=8) / 20_000
    assert (np.abs(shares - exact) < NUM_SEM * np.sqrt(exact / 20_000)).all()


@pytest.mark.parametrize("decode_context", [True, False])
@pytest.mark.slow
def test_conditional_and_identifiable(decode_context):
    """p(x | c), and with a conditional prior and a blind decoder the identifiable VAE: the same weights, context by context."""
    prior = Amortized(Factorized(NormalHead(), LATENT), (2,))
    model = dataclasses.replace(vae(), prior=prior, context_shape=(2,), decode_context=decode_context)
    params, x = moved(model), some_data(model, 3)
    (context,) = _contexts(model, 3)
    check_weights(model, params, x, context)
    assert model.sample(params, jax.random.key(0), (4,), context).shape == (4, 3, 3)
    loss, _ = model.loss(params, jax.random.key(0), (x, context))
    assert jnp.isfinite(loss)
    with pytest.raises(ValueError, match="conditional: pass context"):
        model.sample(params, jax.random.key(0))


@pytest.mark.slow
def test_training_reaches_the_entropy():
    """Through `fit`, with an annealed rate and free bits; the bound stays above the entropy of the data, and comes near it."""
    probabilities = np.array([0.3, 0.02, 0.05, 0.18, 0.02, 0.03, 0.1, 0.3])
    states = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint8)
    data = states[np.random.default_rng(0).choice(8, 4_000, p=probabilities)]
    model = vae("planar")
    fit = gm.fit(model, data, key=jax.random.key(0), num_steps=1_500, validation=data[:1_000], progress=False)
    found = gm.evaluate(model, fit.params, data, key=jax.random.key(2))
    entropy = -(probabilities * np.log(probabilities)).sum()
    # The empirical entropy of 4,000 rows is 7 / 8,000 nats below that of the law.
    assert -NUM_SEM * found["nll_upper_bound_nats_sem"] - 0.03 < found["nll_upper_bound_nats"] - entropy < 0.12


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: dataclasses.replace(vae(), posterior=Normal(LATENT)), ValueError, "posterior must be conditional"),
        (lambda: dataclasses.replace(vae(), prior=Normal((3,))), ValueError, "must have the same events"),
        (
            lambda: dataclasses.replace(vae(), prior=Amortized(Factorized(NormalHead(), LATENT), (2,))),
            ValueError,
            "prior wants a context",
        ),
        (
            lambda: dataclasses.replace(vae(), prior=flows.ffjord(LATENT, divergence=gm.dynamics.Hutchinson(1))),
            ValueError,
            "prior must have an EXACT log_prob, that of Flow is ESTIMATE",
        ),
        (lambda: dataclasses.replace(vae(), head="bernoulli"), TypeError, "head must be a Head"),
        (lambda: flows.amortized_posterior((0,), (3,)), ValueError, "latent_shape must hold integers >= 1"),
        (lambda: flows.variational_autoencoder((3,), 0), ValueError, "latent_dim must be an integer >= 1"),
        (
            lambda: dataclasses.replace(vae(), posterior=flows.amortized_posterior(LATENT, (5,))).init(
                jax.random.key(0), np.zeros((4, 3), "u1")
            ),
            ValueError,
            r"encoder must give features of the posterior's context_shape, \(5,\), got \(6,\)",
        ),
        (
            lambda: dataclasses.replace(vae(), decoder=gm.nets.FlatNet(gm.nets.MLP((4,)), 5)).init(
                jax.random.key(0), np.zeros((4, 3), "u1")
            ),
            ValueError,
            r"decoder must give 3 raw numbers",
        ),
        (
            lambda: vae(prior="vamp").init(jax.random.key(0), np.zeros((3, 3), np.uint8)),
            ValueError,
            "num_inputs=4 pseudo-inputs want as many data to start at, got 3",
        ),
        (lambda: vae().init(jax.random.key(0), np.full((4, 3), 2, np.uint8)), ValueError, r"integers in 0\.\.1"),
        (lambda: vae(head="poisson").init(jax.random.key(0), np.full((4, 3), -1)), ValueError, "integers from 0"),
        (
            lambda: vae().log_prob(moved(vae()), np.zeros((4, 3), np.uint8)),
            ValueError,
            "random draw: pass key=",
        ),
    ],
)
def test_bad_parts(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.slow
def test_builders_and_convolutions(key):
    x = (jax.random.uniform(key, (4, 7, 6, 2)) > 0.5).astype(jnp.uint8)
    plain = flows.variational_autoencoder((7, 6, 2), 3, head=BernoulliHead(), hidden_sizes=(8, 4), context_shape=(5,))
    params = plain.init(key, x, np.arange(4))
    assert plain.log_prob(params, x, np.arange(4), key=key).shape == (4,)
    images = flows.variational_autoencoder(
        (7, 6, 2),
        3,
        head=CategoricalHead(2),
        hidden_sizes=(4,),
        encoder=gm.nets.ConvEncoder((3, 5), 4, layer_norm=True),
        decoder=gm.nets.ConvDecoder((7, 6, 2), 2, (5, 3)),
    )
    params = images.init(key, x)
    assert jnp.isfinite(images.loss(params, key, x)[0]) and images.sample(params, key, (3,)).shape == (3, 7, 6, 2)
    with pytest.raises(ValueError, match=r"shape must be \(H, W, C\)"):
        gm.nets.ConvDecoder((7, 6))
    with pytest.raises(ValueError, match=r"wants an image \(H, W, C\), got shape \(4,\)"):
        gm.nets.init(gm.nets.ConvEncoder(), key, jnp.zeros(4))
