"""Filters and autoencoders over sequences, held against the Kalman filter of a linear-Gaussian state-space model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import genmod as gm
from genmod.densities import Amortized, CategoricalHead, Factorized, FromFunctions, Normal, NormalHead, Stepwise, kl_one
from genmod.inference import ImportanceSampling, MeanBound, Observed, evidence
from genmod.losses import ELBO
from genmod.models import VAE, Filtering, Padded
from genmod.nets import CausalConv, CausalTransformer, Pointwise, Recurrent, SequenceModule, Stack
from genmod.training.validation import Measure

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
# z_1 ~ N(0, 1), z_t = RHO z_t-1 + N(0, 1 - RHO^2): of variance one at every step. x_t = GAIN z_t + N(0, NOISE^2).
RHO, GAIN, NOISE, LENGTH = 0.7, np.array([1.0, -0.5]), np.array([0.5, 0.8]), 6
GAUSSIAN = Amortized(Factorized(NormalHead(), (1,)), (12,))
MODEL = Filtering(Stack((Recurrent(nn.GRUCell(16)), Pointwise(nn.Dense(12)))), GAUSSIAN, LENGTH, 2)


def simulated(num, seed, length=LENGTH):
    rng = np.random.default_rng(seed)
    z = [rng.standard_normal(num)]
    for _ in range(length - 1):
        z.append(RHO * z[-1] + np.sqrt(1 - RHO**2) * rng.standard_normal(num))
    z = np.stack(z, 1)[..., None]
    return z.astype("f4"), (z * GAIN + NOISE * rng.standard_normal((num, length, 2))).astype("f4")


def kalman(x):
    """The filter's means (n, T) and variances (T,), and log p(x), (n,)."""
    x, means, variances, log_p = np.asarray(x, np.float64), [], [], np.zeros(len(x))
    mean, variance = np.zeros(len(x)), 1.0
    for t in range(x.shape[1]):
        law = stats.multivariate_normal(np.zeros(2), variance * np.outer(GAIN, GAIN) + np.diag(NOISE**2))
        offset = x[:, t] - mean[:, None] * GAIN
        log_p += law.logpdf(offset)
        gain = variance * GAIN @ np.linalg.inv(law.cov)
        mean, variance = mean + offset @ gain, variance * (1 - gain @ GAIN)
        means.append(mean)
        variances.append(variance)
        mean, variance = RHO * mean, RHO**2 * variance + 1 - RHO**2
    return np.stack(means, 1), np.array(variances), log_p


def moved(model, z, x, scale=0.3):
    """Parameters away from the start, where the law does not look at its context."""
    params, rng = model.init(jax.random.key(0), z, x), np.random.default_rng(0)
    return jax.tree.map(lambda p: p + np.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)


def test_the_oracle():
    """The Kalman filter's evidence is that of the joint Gaussian of all observations."""
    steps = np.arange(LENGTH)
    joint = np.kron(RHO ** np.abs(steps[:, None] - steps), np.outer(GAIN, GAIN)) + np.kron(np.eye(LENGTH), np.diag(NOISE**2))
    x = simulated(3, 1)[1]
    wanted = stats.multivariate_normal(np.zeros(2 * LENGTH), joint).logpdf(x.reshape(3, -1))
    np.testing.assert_allclose(kalman(x)[2], wanted, rtol=1e-6)


@pytest.mark.slow
def test_it_learns_the_kalman_filter(key):
    (z, x), (test_z, test_x) = simulated(20_000, 2), simulated(4_000, 3)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1_500))
    fit = gm.fit(MODEL, (z, x), key=key, num_steps=1_500, batch_size=200, optimizer=optimizer, progress=False)
    means, variances, _ = kalman(test_x)
    exact = stats.norm(means, np.sqrt(variances)).logpdf(test_z[..., 0])
    entropy = 0.5 * np.log(2 * np.pi * np.e * variances).sum()
    paired = exact.sum(1) - np.asarray(MODEL.log_prob(fit.params, test_z, test_x))
    sem = paired.std() / np.sqrt(len(paired))
    found = gm.evaluate(MODEL, fit.params, test_z, test_x)
    # The gap is a mean of KL divergences: not below zero, and at most 1 % of what observations tell, log |prior| - log |filter|.
    told = -0.5 * np.log(variances).sum()
    assert -NUM_SEM * sem < paired.mean() < 0.01 * told, (paired.mean(), sem, told)
    assert abs(found["nll_nats"] - entropy - paired.mean()) < NUM_SEM * found["nll_nats_sem"]
    # Each step by itself.
    steps = np.asarray(MODEL.log_prob_steps(fit.params, test_z, test_x))
    np.testing.assert_allclose(steps.sum(1), MODEL.log_prob(fit.params, test_z, test_x), rtol=1e-4, atol=1e-4)
    gaps = (exact - steps).mean(0)
    assert (gaps < 0.02).all(), gaps


NETS = {
    "gru": MODEL.net,
    "conv": Stack((CausalConv(8, 2, (1, 2)), Pointwise(nn.Dense(12)))),
    "transformer": CausalTransformer(LENGTH, 12, 1, 2),
}
LAWS = {
    "gaussian": GAUSSIAN,
    "flow": gm.flows.neural_spline_flow((1,), 1, hidden_sizes=(8,), num_bins=4, context_shape=(12,), standardize=False),
    "levels": Amortized(Factorized(CategoricalHead(3), (1,)), (12,)),
}


@pytest.mark.parametrize(
    ("net", "law"),
    [
        ("conv", "gaussian"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("gru", "flow"), ("transformer", "levels"))),
    ],
)
def test_no_step_sees_the_future_and_steps_are_the_whole(net, law, key):
    model = Filtering(NETS[net], LAWS[law], LENGTH, 2)
    z, x = simulated(8, 4)
    z = np.clip(np.round(z + 1), 0, 2).astype(np.uint8) if law == "levels" else z
    params = moved(model, z, x)
    steps = np.asarray(model.log_prob_steps(params, z, x))
    assert steps.shape == (8, LENGTH)
    for t in range(1, LENGTH):
        other = x.copy()
        other[:, t] += 1.0
        changed = np.abs(np.asarray(model.log_prob_steps(params, z, other)) - steps).max(0)
        assert (changed[:t] < 1e-5).all() and changed[t] > 1e-3, (t, changed)

    def online(carry, x_t):
        return model.step(params, carry, x_t)

    h = jax.jit(lambda x: jax.lax.scan(online, model.init_carry(params, LENGTH), x)[1])(x[0])
    np.testing.assert_allclose(h, jax.jit(model.contexts_one)(params, x[0]), atol=2e-5)
    np.testing.assert_allclose(model.law.log_prob(params["law"], z[0], h), steps[0], rtol=1e-4, atol=1e-4)
    # Draws have their own log-density, and follow the law of their step.
    drawn = model.sample(params, key, (), x)
    assert drawn.shape == z.shape and drawn.dtype == z.dtype
    if model.reparameterized:
        drawn, log_q = model.sample_and_log_prob(params, key, (), x)
        np.testing.assert_allclose(log_q, model.log_prob(params, drawn, x), rtol=1e-3, atol=1e-3)
    else:
        many = np.asarray(model.sample(params, key, (4_000,), x[0]))[:, -1, 0]
        wanted = np.exp(model.law.log_prob(params["law"], np.arange(3, dtype=np.uint8)[:, None], h[-1]))
        shares = np.bincount(many, minlength=3) / 4_000
        assert (np.abs(shares - wanted) < NUM_SEM * np.sqrt(wanted / 4_000)).all()


@pytest.mark.slow
def test_sequences_of_several_lengths(key):
    """What stands beyond a sequence's end is not looked at, and the loss is that of the short sequences by themselves."""
    z, x = simulated(6, 5)
    params, num_steps = moved(MODEL, z, x), np.array([6, 1, 3, 6, 2, 4])
    loss = jax.jit(jax.value_and_grad(lambda p, z, x: MODEL.padded_loss(p, key, Padded(z, x, num_steps))[0]))
    by_row = [dataclasses.replace(MODEL, length=int(n)).log_prob(params, z[i, :n], x[i, :n]) for i, n in enumerate(num_steps)]
    value, slope = loss(params, z, x)
    np.testing.assert_allclose(value, -np.mean(by_row), rtol=1e-5)
    beyond = np.arange(LENGTH)[None] >= num_steps[:, None]
    garbage = [np.where(beyond[..., None], np.float32(1e30), a) for a in (z, x)]
    again, same = loss(params, *garbage)
    assert again == value
    jax.tree.map(np.testing.assert_array_equal, slope, same)
    whole = MODEL.padded_loss(params, key, Padded(z, x, np.full(6, LENGTH)))[0]
    np.testing.assert_allclose(whole, MODEL.loss(params, key, (z, x))[0], rtol=1e-5)
    # Rows count by their weights, and numbers of steps that are not known before run time are moved into 1..T.
    weight = np.array([1, 0, 2, 0, 0, 3])
    weighed = jax.jit(lambda n, w: MODEL.padded_loss(params, key, Padded(z, x, n, w), step=jnp.zeros((), int))[0])
    np.testing.assert_allclose(weighed(num_steps, weight), -np.average(by_row, weights=weight), rtol=1e-5)
    outside = np.where(num_steps == 1, -3, np.where(num_steps == LENGTH, 300, num_steps))
    assert weighed(outside, weight) == weighed(num_steps, weight)
    with pytest.raises(TypeError, match="num_steps must be integers, got float32"):
        weighed(num_steps.astype("f4"), weight)
    fit = gm.fit(MODEL, Padded(z, x, num_steps), loss_fn=MODEL.padded_loss, key=key, num_steps=3, batch_size=3, progress=False)
    assert np.isfinite(fit.history["nll_nats"]).all()


def test_weights_of_padded_rows_in_validation(key):
    """Blocks of held-out rows count by their weights."""
    values, weight = np.arange(10_000, dtype="f4"), np.arange(10_000, dtype="f4") % 7 + (np.arange(10_000) > 6_000)
    rows = Padded(values[:, None], values[:, None], np.ones(10_000, int), weight)
    measure = Measure(lambda params, key, rows: {"loss": jnp.average(rows.x[:, 0], weights=rows.weight)}, "loss")
    np.testing.assert_allclose(measure({}, key, rows)["loss"], np.average(values, weights=weight), rtol=1e-5)


# --- autoencoders over sequences -----------------------------------------------------------------------------------------------


class Emission(nn.Module):
    """A decoder with nothing to learn: the means of the observations."""

    def __call__(self, z):
        return z * jnp.asarray(GAIN / NOISE, z.dtype)[None]  # observations in units of their noise


def _draw_path(key):
    noise = jax.random.normal(key, (LENGTH,))

    def move(z, e):
        z = RHO * z + np.sqrt(1 - RHO**2) * e
        return z, z

    return jnp.concatenate([noise[:1], jax.lax.scan(move, noise[0], noise[1:])[1]])[:, None]


def _log_path(z):
    normal = jax.scipy.stats.norm
    return normal.logpdf(z[0, 0]) + normal.logpdf(z[1:, 0], RHO * z[:-1, 0], np.sqrt(1 - RHO**2)).sum()


PATHS = FromFunctions((LENGTH, 1), _draw_path, _log_path)


def sequence_vae(encoder, posterior, prior=PATHS):
    return VAE((LENGTH, 2), encoder, posterior, Emission(), NormalHead(1.0), prior)


RECURRENT = sequence_vae(SequenceModule(MODEL.net), Stepwise(GAUSSIAN, LENGTH))


def losses_of_the_best_filter(x):
    """log p(x) - ELBO of each row, of the best q(z) = prod_t N(m_t, 1 / P_tt) whose m_t are linear in x_<=t.

    P is the posterior's precision and S x its mean. The loss is (log det diag P - log det P + |m - S x|^2_P) / 2. With m = A x
    its mean over x ~ N(0, C) is least where the entries of P (A - S) C that A has are zero.
    """
    steps, at_steps = np.arange(LENGTH), np.kron(np.eye(LENGTH), GAIN)  # (T, 2 T)
    covariance = RHO ** np.abs(steps[:, None] - steps)
    noise = np.tile(NOISE**2, LENGTH)
    p = np.linalg.inv(covariance) + (at_steps / noise) @ at_steps.T
    s, c = np.linalg.solve(p, at_steps / noise), at_steps.T @ covariance @ at_steps + np.diag(noise)
    seen = (np.arange(2 * LENGTH)[None] // 2 <= steps[:, None]).ravel()
    a = np.zeros(seen.size)
    a[seen] = np.linalg.solve(np.kron(p, c)[np.ix_(seen, seen)], (p @ s @ c).ravel()[seen])
    offset = x.reshape(len(x), -1) @ (a.reshape(s.shape) - s).T
    least = np.log(np.diag(p)).sum() - np.linalg.slogdet(p)[1]
    return 0.5 * (least + np.einsum("ns,st,nt->n", offset, p, offset))


@pytest.mark.slow
def test_the_bound_of_a_vae_over_sequences(key):
    """A recurrent encoder: importance weights give the Kalman filter's evidence, and the bound is that of the best filter."""
    x = simulated(4_000, 6)[1]
    scaled = x / NOISE.astype("f4")
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 1_000))
    fit = gm.fit(RECURRENT, scaled[:-200], key=key, num_steps=1_000, batch_size=100, optimizer=optimizer, progress=False)
    rows = scaled[-200:]
    exact = kalman(x[-200:])[2] + LENGTH * np.log(NOISE).sum()
    found = evidence(Observed(RECURRENT, fit.params, rows[:20]), ImportanceSampling(20_000), key=key)
    assert (np.abs(found.value - exact[:20]) < NUM_SEM * found.sem + found.sem**2).all(), (found.value - exact[:20], found.sem)
    bound = evidence(Observed(RECURRENT, fit.params, rows), MeanBound(ELBO(), 500), key=key)
    assert (exact - bound.value > -NUM_SEM * bound.sem).all()
    best = losses_of_the_best_filter(x[-200:])
    more = exact - np.asarray(bound.value) - best
    sem = more.std() / np.sqrt(len(more))
    assert -NUM_SEM * sem < more.mean() < 0.05, (more.mean(), sem, best.mean())


def test_a_filter_is_a_posterior(key):
    """`Filtering` given observations, behind an encoder that passes them on, is the same posterior as a recurrent encoder."""
    _, x = simulated(4, 7)
    by_filter = sequence_vae(SequenceModule(Pointwise(Same())), MODEL)
    params, other = by_filter.init(key, x), RECURRENT.init(key, x)
    rng = np.random.default_rng(0)
    other = jax.tree.map(lambda p: p + np.asarray(0.2 * rng.standard_normal(p.shape), p.dtype), other)
    params = params | {"posterior": {"net": other["encoder"]["net"], "law": other["posterior"]}}
    bounds = [model.log_prob(p, x, key=key) for model, p in ((by_filter, params), (RECURRENT, other))]
    np.testing.assert_allclose(*bounds, rtol=1e-5)


class Same(nn.Module):
    def __call__(self, x):
        return x


def test_divergences_of_steps(key):
    """Of independent Gaussians step by step: the closed form, entry by entry."""
    law, rng = Stepwise(Amortized(Factorized(NormalHead(), (2,)), (3,)), 4), np.random.default_rng(0)
    params = {
        "distribution": {"raw": jnp.asarray(rng.standard_normal((2, 2)), jnp.float32)},
        "kernel": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32),
    }
    context = jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
    found = kl_one(law, params, context, Normal((4, 2)), {})
    wanted = jnp.stack([kl_one(law.law, params, c, Normal((2,)), {}) for c in context])
    assert found.shape == (4, 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.slow
def test_the_module_of_a_net_is_the_net(key):
    x = np.random.default_rng(0).standard_normal((LENGTH, 2)).astype("f4")
    for net in NETS.values():
        module = SequenceModule(net)
        params = gm.nets.init(module, key, x)
        np.testing.assert_allclose(gm.nets.apply(module, params, x), net.apply(params["net"], x), rtol=1e-6)
        assert set(params) == {"net"}
    assert SequenceModule(MODEL.net) == SequenceModule(MODEL.net) and gm.describe(SequenceModule(MODEL.net))


PADDED = Padded(*simulated(3, 0), np.array([6, 2, 4]))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Filtering(nn.GRUCell(4), GAUSSIAN, 6, 2), TypeError, "net must be a SequenceNet"),
        (lambda: Filtering(MODEL.net, Normal((1,)), 6, 2), ValueError, "law must be conditional on the context of its step"),
        (lambda: Filtering(MODEL.net, GAUSSIAN, 0, 2), ValueError, "length must be an integer >= 1"),
        (
            lambda: Filtering(Recurrent(nn.GRUCell(4)), GAUSSIAN, 6, 2).init(jax.random.key(0), *simulated(3, 0)),
            ValueError,
            r"net must give the law's contexts, \(6, 12\) for a sequence, got \(6, 4\)",
        ),
        (
            lambda: MODEL.padded_loss({}, None, Padded(*simulated(3, 0), np.ones(2, int))),
            ValueError,
            "num_steps must have one entry for each of 3 rows",
        ),
        (
            lambda: MODEL.padded_loss({}, None, Padded(*simulated(3, 0), np.array([1, 7, 2]))),
            ValueError,
            r"num_steps must be in 1\.\.6, got values in 1\.\.7",
        ),
        (lambda: MODEL.padded_loss({}, None, Padded(*simulated(3, 0), [0, 1, 2])), ValueError, r"num_steps must be in 1\.\.6"),
        (lambda: MODEL.padded_loss({}, None, Padded(*simulated(3, 0), np.ones(3))), TypeError, "num_steps must be integers"),
        (lambda: MODEL.log_prob({}, *simulated(3, 0, 5)), ValueError, "must have shape"),
        (lambda: MODEL.loss({}, None, PADDED), TypeError, "batch must be x, .* got Padded, .*loss_fn=model.padded_loss"),
        (lambda: gm.fit(MODEL, PADDED, key=jax.random.key(0), num_steps=1), TypeError, "got Padded, .*loss_fn=model.padded_loss"),
        (lambda: MODEL.loss({}, None, (*simulated(3, 0), None, None)), ValueError, "got a tuple of 4"),
    ],
)
def test_bad_parts(make, error, match):
    with pytest.raises(error, match=match):
        make()
