"""The von Mises law against SciPy and quadrature: density, divergence, draws and their gradients; a latent on a circle."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from scipy import integrate, optimize, special

import genmod as gm
from genmod.densities import Amortized, Factorized, Uniform, VonMises, VonMisesHead, circular, kl_one

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
MU = 0.7


def natural(kappa, mu=MU, dtype=float):
    return jnp.asarray(np.stack([kappa * np.cos(mu), kappa * np.sin(mu)], -1), dtype)


def ratio(kappa):
    return special.i1e(kappa) / special.i0e(kappa)


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.3, 0.999, 1.0, 5.0, 40.0, 1e4, 1e6])
def test_density_is_that_of_scipy(kappa, x64):
    """Within 2.4 standard deviations and, where these are narrow, at the other end of the circle."""
    offset = np.array([-1.5, 0.3, 2.4]) / max(1.0, math.sqrt(kappa))
    x = np.concatenate([MU + offset, [-2.4, math.pi, -math.pi]])
    wanted = kappa * -2 * np.sin((x - MU) / 2) ** 2 - np.log(special.i0e(kappa)) - math.log(2 * math.pi)
    if kappa < 1e4:  # there SciPy has lost its digits
        np.testing.assert_allclose(wanted, scipy.stats.vonmises.logpdf(x, max(kappa, 1e-12), MU), rtol=1e-9, atol=1e-9)
    law = VonMises(())
    found = jax.vmap(lambda x: law.log_prob({"natural": natural(kappa)}, x))(jnp.asarray(x))
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12 * max(1.0, kappa))
    single = jnp.asarray(x, jnp.float32)
    found = law.log_prob({"natural": natural(kappa, dtype=jnp.float32)}, single)
    # Of an angle, and of eta, only 24 bits are known: that moves log p by its slope.
    slope = kappa * np.abs(np.sin(x - MU)) * 2 * math.pi + 1 + kappa * 2 * np.sin((x - MU) / 2) ** 2
    assert (np.abs(found - wanted) < 4 * np.finfo(np.float32).eps * slope).all()
    assert law.log_prob({"natural": natural(kappa)}, jnp.asarray(3.3)) == -jnp.inf


@pytest.mark.parametrize("kappa", [0.0, 0.02, 0.9, 3.0, 12.0, 50.0])
def test_slope_and_curvature_of_the_normaliser(kappa, x64):
    """E (cos x, sin x) = A eta / kappa and the covariance of these, also where kappa is 0."""

    def log_normalizer(eta):
        return eta[0] * jnp.cos(0.4) + eta[1] * jnp.sin(0.4) - circular.log_density(eta, jnp.asarray(0.4))

    eta = natural(kappa)
    x = np.pi * (2 * (np.arange(4_000) + 0.5) / 4_000 - 1)
    p = np.exp(kappa * (np.cos(x - MU) - 1))
    p /= p.sum()
    points = np.stack([np.cos(x), np.sin(x)])
    mean = points @ p
    np.testing.assert_allclose(jax.grad(log_normalizer)(eta), mean, rtol=1e-10, atol=1e-13)
    covariance = (points * p) @ points.T - np.outer(mean, mean)
    np.testing.assert_allclose(jax.hessian(log_normalizer)(eta), covariance, rtol=1e-8, atol=1e-11)


PAIRS = [(0.0, 0.3), (0.5, 0.0), (0.3, 0.8), (0.7, 20.0), (20.0, 0.7), (20.0, 25.0), (400.0, 300.0)]


@pytest.mark.parametrize(("kappa", "other"), PAIRS)
def test_divergence_by_quadrature(kappa, other, x64):
    x = np.pi * (2 * (np.arange(20_000) + 0.5) / 20_000 - 1)
    log_q, log_p = (np.asarray(circular.log_density(jnp.tile(e, (len(x), 1)), x)) for e in (natural(kappa), natural(other, 0.4)))
    wanted = np.sum(np.exp(log_q) * (log_q - log_p)) * 2 * np.pi / len(x)
    both = jnp.stack([natural(kappa), natural(other, 0.4)])
    np.testing.assert_allclose(circular.divergence(*both), wanted, rtol=1e-9, atol=1e-12)
    single = circular.divergence(*both.astype(jnp.float32))
    # Directions have 24 bits, and the rate weighs the square of their difference with `other`.
    assert abs(single - wanted) < 10 * np.finfo(np.float32).eps * (1 + wanted + other)
    jax.test_util.check_grads(circular.divergence, tuple(both), 1, rtol=1e-6, atol=1e-6)


def test_kl_one_knows_the_circle(x64):
    """Of the law, of the head, and of the uniform law, which is a von Mises law of no concentration."""
    eta, head = jnp.stack([natural(2.0), natural(0.4)]), VonMisesHead(1e9)
    q, params = VonMises((2,)), {"natural": eta}
    wanted = [k * ratio(k) - math.log(special.i0(k)) for k in (2.0, 0.4)]
    circle = Uniform((2,), -math.pi, math.pi)
    np.testing.assert_allclose(kl_one(q, params, None, circle, {}), wanted, rtol=1e-12)
    assert kl_one(q, params, None, Uniform((2,), -3.0, 3.0), {}) is None
    raw = jnp.stack([natural(1.0), natural(0.5)])  # kappa = r + r^3
    np.testing.assert_allclose(head.natural(raw), jnp.stack([natural(2.0), natural(0.625)]), rtol=1e-12)
    factorized = Factorized(head, (2,))
    mixed = kl_one(factorized, {"raw": raw}, None, q, params)
    np.testing.assert_allclose(mixed, circular.divergence(head.natural(raw), eta), rtol=1e-12)
    np.testing.assert_allclose(head.kl(raw, head, raw[::-1]), circular.divergence(*map(head.natural, (raw, raw[::-1]))))


@pytest.mark.parametrize("kappa", [0.0, 0.05, 1.0, 8.0, 300.0, 1e5])
def test_draws_follow_the_law(kappa):
    """Kolmogorov and Smirnov, at one in ten thousand; and the mean of the cosine."""
    num = 20_000
    z = np.asarray(VonMises(()).sample({"natural": natural(kappa)}, jax.random.key(1), num), np.float64)
    assert (np.abs(z) < math.pi).all()
    offset = (z - MU + math.pi) % (2 * math.pi) - math.pi
    grid = np.linspace(-1, 1, 20_001) * min(math.pi, 12 / math.sqrt(max(kappa, 1e-9)))
    cdf = integrate.cumulative_simpson(np.exp(-2 * kappa * np.sin(grid / 2) ** 2), x=grid, initial=0)
    found = scipy.stats.ks_1samp(offset, lambda x: np.interp(x, grid, cdf / cdf[-1])).statistic
    assert found < math.sqrt(math.log(2 / 1e-4) / (2 * num))
    cosine = -2 * np.sin(offset / 2) ** 2
    assert abs(cosine.mean() - (ratio(kappa) - 1)) < NUM_SEM * cosine.std() / math.sqrt(num)


def quantile(kappa, share):
    """z with int_0^z p = share, |share| < 1 / 2, by quadrature and bisection."""
    total = 2 * math.pi * special.i0e(kappa)

    def excess(z):
        density = lambda t: math.exp(-2 * kappa * math.sin(t / 2) ** 2) / total  # noqa: E731
        return integrate.quad(density, 0, z, epsabs=1e-14, epsrel=1e-13)[0] - share

    return optimize.brentq(excess, -math.pi, math.pi, xtol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("kappa", [0.01, 0.6, 2.0, 15.0, 200.0])
def test_draws_move_with_the_concentration_as_quantiles_do(kappa, x64):
    step = 1e-4 * kappa
    for share in (-0.49, -0.2, 0.03, 0.35, 0.4999):
        wanted = (quantile(kappa + step, share) - quantile(kappa - step, share)) / (2 * step)
        eta = natural(kappa, 0.0)
        found = circular.velocity(eta, jnp.asarray(quantile(kappa, share)))[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-10)
        single = circular.velocity(eta.astype(jnp.float32), jnp.float32(quantile(kappa, share)))[0]
        np.testing.assert_allclose(single, wanted, rtol=1e-5, atol=1e-5 / max(1, kappa))


@pytest.mark.parametrize("kappa", [0.0, 1e-3, 0.8, 4.0, 60.0, 1e5])
def test_draws_carry_probability(kappa, x64):
    """d(p v)/dz = -dp/deta at every angle, and the velocity is the gradient of a function of the circle: its mean is zero."""
    eta, width = natural(kappa), min(math.pi, 9 / math.sqrt(max(kappa, 1e-9)))
    num = 2_000
    z = jnp.asarray(MU + width * (2 * (np.arange(num) + 0.5) / num - 1))
    each = jnp.tile(eta, (num, 1))

    def flux(z):
        wrapped = (z + math.pi) % (2 * math.pi) - math.pi
        return jnp.exp(circular.log_density(each, wrapped))[:, None] * circular.velocity(each, wrapped)

    step = 1e-5 * width
    found = (flux(z + step) - flux(z - step)) / (2 * step)
    points = np.stack([np.cos(z), np.sin(z)], -1) - ratio(kappa) * np.array([math.cos(MU), math.sin(MU)])
    wanted = -np.exp(circular.log_density(each, (z + math.pi) % (2 * math.pi) - math.pi))[:, None] * points
    np.testing.assert_allclose(found, wanted, atol=1e-7 * np.abs(wanted).max())
    if width == math.pi:
        mean = circular.velocity(each, (z + math.pi) % (2 * math.pi) - math.pi).mean(0)
        np.testing.assert_allclose(mean, 0.0, atol=1e-4 / max(kappa, 1))  # midpoints; it jumps at no place


@pytest.mark.parametrize("kappa", [0.0, 0.5, 3.0, 100.0])
def test_gradients_of_expectations(kappa):
    """E cos z = A(kappa) cos mu, by the draws of a whole batch, with respect to both natural parameters."""
    num = 20_000

    @jax.jit
    def slopes(eta, key):
        def cosine(eta, key):
            return jnp.cos(VonMises(()).sample_one({"natural": eta}, key))

        return jax.vmap(jax.grad(cosine), (None, 0))(eta, jax.random.split(key, num))

    found = np.asarray(slopes(natural(kappa, dtype=jnp.float32), jax.random.key(0)), np.float64)
    along, across = 1 - (ratio(kappa) / kappa if kappa else 0.5) - ratio(kappa) ** 2, ratio(kappa) / kappa if kappa else 0.5
    c, s = math.cos(MU), math.sin(MU)
    wanted = np.array([along * c * c + across * s * s, (along - across) * c * s])
    assert (np.abs(found.mean(0) - wanted) < NUM_SEM * found.std(0) / math.sqrt(num)).all()


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-6, 1e8, 1e15])
def test_everything_is_finite_far_out(size):
    eta = natural(size, dtype=jnp.float32)

    def everything(eta):
        z = circular.draw_angles(eta, jax.random.key(0))
        return jnp.sin(z) + circular.log_density(eta, z) + circular.divergence(eta, 0.5 * eta) / (1.0 + size)

    assert jnp.isfinite(everything(eta)) and jnp.isfinite(jax.grad(everything)(eta)).all()


def test_the_head_starts_uniform_and_is_bounded(key):
    head = VonMisesHead(100.0)
    raw = jnp.array([[0.0, 0.0], [300.0, -400.0]])
    np.testing.assert_allclose(head.log_prob(raw, jnp.array([3.0, 0.5]))[0], -math.log(2 * math.pi), rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(head.natural(raw), axis=-1), [0.0, 100.0], rtol=1e-5)
    np.testing.assert_allclose(head.mean(raw), [0.0, math.atan2(-4, 3)], rtol=1e-6)
    slope = jax.grad(lambda raw: jnp.cos(head.sample(raw, key)).sum())(raw)
    assert jnp.abs(slope[0]).max() > 0.1 and jnp.isfinite(slope).all()
    with pytest.raises(ValueError, match=r"max_concentration must be > 0 and finite, got 0.0"):
        VonMisesHead(0.0)


@pytest.mark.parametrize("limit", [1e-25, 0.3, 1e4, 1e12])
def test_the_head_is_bounded_at_any_size(limit):
    """kappa and its slopes by exact arithmetic of float64 and by the limit, far beyond the squares that float32 holds."""
    head = VonMisesHead(limit)
    sizes = 10.0 ** np.arange(-30, 38)
    direction = np.array([0.6, -0.8])
    raw = jnp.asarray(sizes[:, None] * direction, jnp.float32)
    g = sizes * (1 + sizes**2)
    kappa = 1 / np.hypot(1 / g, 1 / limit)
    np.testing.assert_allclose(head.natural(raw) / limit, kappa[:, None] / limit * direction, rtol=1e-5, atol=1e-37)
    slopes = np.asarray(jax.jit(jax.vmap(jax.jacobian(head.natural)))(raw), np.float64)
    assert np.isfinite(slopes).all()
    across = np.array([0.8, 0.6])  # the slope across is kappa / |r|, and vanishes far out, but is not 0
    large = kappa / sizes > 1e-35
    np.testing.assert_allclose(
        (slopes @ across)[large] / (kappa / sizes)[large, None], across * np.ones((large.sum(), 1)), rtol=1e-3
    )


def test_a_network_sees_points_of_the_circle(key):
    z, context = jnp.array([0.3, -2.0]), jnp.array([1.5])
    net = gm.nets.OnCircle(gm.nets.FlatNet(gm.nets.MLP((4,)), 3))
    params = gm.nets.init(net, key, z, context)
    wanted = gm.nets.apply(net.body, params["body"], jnp.concatenate([jnp.cos(z), jnp.sin(z)]), context)
    np.testing.assert_allclose(gm.nets.apply(net, params, z + 2 * math.pi, context), wanted, rtol=1e-4, atol=1e-5)
    scalar = gm.nets.OnCircle(gm.nets.MLP((4,)))
    assert gm.nets.init(scalar, key, z[0])["body"]["Dense_0"]["kernel"].shape == (2, 4)


def circular_vae():
    law = Factorized(VonMisesHead(), (1,))
    decoder = gm.nets.OnCircle(gm.nets.FlatNet(gm.nets.MLP((16,), jnp.tanh), 2))
    return gm.models.VAE(
        (2,),
        gm.nets.MLP((16,), jnp.tanh),
        Amortized(law, (16,)),
        decoder,
        gm.densities.NormalHead(0.15),
        Uniform((1,), -math.pi, math.pi),
    )


@pytest.mark.slow
def test_a_latent_on_a_circle(key):
    """Data on an ellipse. The evidence by quadrature over the angle is the mean importance weight, and the bound comes near."""
    angle = jax.random.uniform(key, (512,), maxval=2 * math.pi)
    x = jnp.stack([1.2 * jnp.cos(angle) + 0.4, 0.8 * jnp.sin(angle + 0.5)], -1) + 0.1 * jax.random.normal(key, (512, 2))
    model = circular_vae()
    fit = gm.fit(model, x, key=key, num_steps=600, optimizer=gm.call(optax.adam, 1e-2), validate_every=600, progress=False)
    params, rows = fit.params, x[:6]
    grid = jnp.asarray(np.pi * (2 * (np.arange(2_000) + 0.5) / 2_000 - 1), jnp.float32)[:, None]

    @jax.jit
    def both(x, key):
        latent = model.latent_one(params, x)
        joint = jax.vmap(lambda z: latent.log_likelihood(z) + latent.log_prior(z))(grid)
        exact = jax.nn.logsumexp(joint) + math.log(2 * math.pi / len(grid))
        return exact, model.log_weights_one(params, x, None, key, 20_000), latent.kl

    exact, log_w, kl = jax.vmap(both)(rows, jax.random.split(key, 6))
    weight = np.exp(np.asarray(log_w, np.float64) - np.asarray(exact)[:, None])
    assert (np.abs(weight.mean(1) - 1) < NUM_SEM * weight.std(1) / math.sqrt(20_000)).all()
    gap = -np.asarray(log_w, np.float64).mean(1) + np.asarray(exact)
    assert (gap > 0).all() and gap.mean() < 0.2  # nats: the true posterior is nearly von Mises
    assert kl.shape == (6, 1) and (kl > 1).all()
    parts = functools.partial(model.rate_distortion, params, rows)(key=key)
    np.testing.assert_allclose(parts.rate, kl[:, 0], rtol=1e-5)
