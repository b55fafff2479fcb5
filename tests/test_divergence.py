"""Divergences against the trace of the Jacobian, and the estimators' means and variances against theory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod.bijectors import CNF
from genmod.dynamics import FixedSteps
from genmod.dynamics.divergence import Exact, Hutchinson, HutchPlusPlus
from genmod.nets import VelocityMLP

pytestmark = pytest.mark.usefixtures("quick_compile")
RNG = np.random.default_rng(0)
# Neither symmetric nor antisymmetric, with a trace.
MATRIX = RNG.standard_normal((6, 6)) + np.diag(np.arange(6.0))
SYMMETRIC = (MATRIX + MATRIX.T) / 2
# Singular values that fall fast, behind two rotations.
LEFT, RIGHT = (np.linalg.qr(RNG.standard_normal((12, 12)))[0] for _ in "ab")
DECAYING = LEFT @ np.diag(2.0 ** -np.arange(12.0)) @ RIGHT.T
VARIANCE = {  # of one probe
    "rademacher": 2 * (np.sum(SYMMETRIC**2) - np.sum(np.diag(SYMMETRIC) ** 2)),
    "normal": 2 * np.sum(SYMMETRIC**2),
}
NUM = 4_000


def wavy(x):
    """A field with a full Jacobian, for events of any shape."""
    flat = x.reshape(-1)
    mixed = jnp.sin(jnp.arange(1.0, flat.size + 1) * flat) + 0.3 * jnp.cumsum(flat**2)
    return (mixed * jnp.roll(flat, 1) if flat.size > 1 else mixed).reshape(x.shape)


def linear(matrix):
    return lambda x: jnp.asarray(matrix, x.dtype) @ x


def draws(estimator, field, x, key, num=NUM):
    """A `Divergence` of `num` independent sets of probes."""

    def one(key):
        return estimator(field, x, estimator.probes(key, field, x))

    return jax.jit(jax.vmap(one))(jax.random.split(key, num))


def z_score(values, wanted):
    values = np.asarray(values, np.float64)
    return (values.mean(0) - wanted) / (values.std(0, ddof=1) / np.sqrt(len(values)))


def assert_variance(values, wanted):
    """A sample variance has standard error sqrt((m4 - m2^2) / n), for any law."""
    centred = np.asarray(values, np.float64)
    centred = centred - centred.mean()
    error = np.sqrt((np.mean(centred**4) - np.mean(centred**2) ** 2) / len(centred))
    assert abs(centred.var(ddof=1) - wanted) < 4 * error, (centred.var(ddof=1), wanted, error)


@pytest.mark.parametrize("shape", [(), (2,), (5,), (12,), (2, 3, 1), (2, 3, 2)], ids=str)
def test_exact_is_the_trace_of_the_jacobian(shape, x64):
    """On both sides of the dimension from which the products are mapped instead of unrolled."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape))
    found, jacobian = jax.jit(lambda x: (Exact()(wavy, x, None), jax.jacfwd(wavy)(x)))(x)
    jacobian = np.asarray(jacobian).reshape(x.size, x.size)
    np.testing.assert_allclose(found.value, wavy(x), rtol=1e-14)
    assert found.estimates.shape == (1,) and Exact().probes(jax.random.key(0), wavy, x) is None
    np.testing.assert_allclose(found.estimates[0], np.trace(jacobian), rtol=1e-12)
    np.testing.assert_allclose(found.squared_norm, np.sum(jacobian**2), rtol=1e-12)


@pytest.mark.parametrize("num_probes", [1, 10])
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_hutchinson_has_the_mean_and_variance_of_theory(distribution, num_probes, key, x64):
    x = jnp.arange(6.0)
    found = draws(Hutchinson(num_probes, distribution), linear(MATRIX), x, key)
    assert found.estimates.shape == (NUM, num_probes)
    estimates = found.estimates.mean(1)
    assert abs(z_score(estimates, np.trace(MATRIX))) < 4
    assert_variance(estimates, VARIANCE[distribution] / num_probes)
    assert abs(z_score(found.squared_norm, np.sum(MATRIX**2))) < 4
    np.testing.assert_allclose(found.value[0], MATRIX @ np.arange(6.0), rtol=1e-12)


def test_hutchinson_of_an_image(key, x64):
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, 1)))
    estimates = draws(Hutchinson(2), wavy, x, key).estimates
    assert abs(z_score(estimates.mean(1), np.trace(jax.jacfwd(wavy)(x).reshape(6, 6)))) < 4


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_hutch_plus_plus_is_unbiased(distribution, key, x64):
    x = jnp.asarray(np.random.default_rng(3).standard_normal(12))
    found = draws(HutchPlusPlus(3, 2, distribution), linear(DECAYING), x, key)
    assert found.estimates.shape == (NUM, 2)
    assert abs(z_score(found.estimates.mean(1), np.trace(DECAYING))) < 4
    assert abs(z_score(found.squared_norm, np.sum(DECAYING**2))) < 4
    np.testing.assert_allclose(found.value[0], DECAYING @ x, rtol=1e-12)


def test_hutch_plus_plus_has_the_smaller_variance_for_equal_work(key, x64):
    """Eight products each, 3 for the basis, 3 + 2 with it, against 8 probes, on singular values that halve."""
    x = jnp.ones(12)
    plain, better = (draws(e, linear(DECAYING), x, key).estimates.mean(1) for e in (Hutchinson(8), HutchPlusPlus(3, 2)))
    assert better.var() < 0.3 * plain.var()


@pytest.mark.parametrize("rank", [2, 5])
def test_hutch_plus_plus_is_exact_where_the_rank_suffices(rank, key, x64):
    matrix = np.outer(RIGHT[:5, 0], LEFT[:5, 1]) + 2 * np.outer(RIGHT[:5, 2], LEFT[:5, 3])
    found = draws(HutchPlusPlus(rank, distribution="normal"), linear(matrix), jnp.ones(5), key, 20)
    np.testing.assert_allclose(found.estimates, np.trace(matrix), atol=1e-12)
    if rank == 5:  # nothing is left of the space
        np.testing.assert_allclose(found.squared_norm, np.sum(matrix**2), rtol=1e-12)


@pytest.mark.parametrize("estimator", [Exact(), Hutchinson(2), HutchPlusPlus(2)], ids=lambda e: type(e).__name__)
def test_a_jacobian_of_zero(estimator, key):
    """At the start of training the field is 0 everywhere: no NaN, neither in values nor in gradients."""
    x = jnp.array([1.0, -2.0, 0.5])
    probes = estimator.probes(key, jnp.zeros_like, x)

    def value(scale, x):
        found = estimator(lambda x: scale * jnp.sin(x), x, probes)
        return found.estimates.mean() + found.squared_norm, found

    (_, found), (by_scale, by_x) = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(0.0, x)
    np.testing.assert_array_equal(found.estimates, 0.0)
    np.testing.assert_array_equal(found.squared_norm, 0.0)
    np.testing.assert_array_equal(by_x, 0.0)
    if not isinstance(estimator, HutchPlusPlus):  # diagonal: one Rademacher probe sees it all
        np.testing.assert_allclose(by_scale, jnp.cos(x).sum(), rtol=1e-5)
    assert jnp.isfinite(by_scale)


@pytest.mark.parametrize("estimator", [Hutchinson(2, "normal"), HutchPlusPlus(2)], ids=["hutchinson", "hutch_plus_plus"])
def test_gradients_of_the_estimate_are_unbiased(estimator, key, x64):
    """In the parameters and in x, of a nonlinear field."""
    x, matrix = jnp.asarray(np.random.default_rng(4).standard_normal(4)), jnp.asarray(MATRIX[:4, :4])

    def field(matrix):
        return lambda x: jnp.tanh(matrix @ x) * x

    def of(divergence, probes):
        return jax.grad(lambda matrix, x: divergence(field(matrix), x, probes).estimates.mean(), (0, 1))(matrix, x)

    wanted = of(Exact(), None)
    found = jax.jit(jax.vmap(lambda key: of(estimator, estimator.probes(key, field(matrix), x))))(jax.random.split(key, NUM))
    for values, truth in zip(found, wanted, strict=True):
        assert np.abs(z_score(values, truth)).max() < 4.5  # the largest of 20
        assert np.abs(np.asarray(truth)).max() > 0.1


@pytest.mark.parametrize("estimator", [Hutchinson(1), HutchPlusPlus(1, 1)], ids=lambda e: type(e).__name__)
def test_probes_are_reproducible_and_of_the_dtype(estimator, key):
    x = jnp.ones((3, 2), jnp.float32)
    one, other, third = (estimator.probes(k, wavy, x) for k in (key, key, jax.random.fold_in(key, 1)))
    assert one.dtype == jnp.float32 and one.shape[1:] == (3, 2)
    np.testing.assert_array_equal(one, other)
    assert not jnp.array_equal(one, third)


# --- the estimate of a density ---------------------------------------------------------------------------------------------


@functools.cache
def estimated_flow(divergence):
    flow = gm.models.Flow(CNF(VelocityMLP((8,), jnp.tanh), FixedSteps(4), divergence), gm.densities.Normal((3,)))
    x = np.random.default_rng(5).standard_normal((2, 3)).astype(np.float32)
    params = flow.init(jax.random.key(0), x)
    rng = np.random.default_rng(6)
    return flow, jax.tree.map(lambda p: p + np.float32(0.5) * rng.standard_normal(p.shape).astype(np.float32), params), x


@pytest.mark.parametrize(
    "divergence", [Hutchinson(8), pytest.param(HutchPlusPlus(1, 8), marks=pytest.mark.slow)], ids=lambda d: type(d).__name__
)
def test_log_prob_reports_its_own_standard_error(divergence, key):
    """The spread of the estimates over keys is the standard error that each of them reports, about the exact value."""
    flow, params, x = estimated_flow(divergence)
    exact, params_exact, _ = estimated_flow(Exact())
    assert jax.tree.structure(params) == jax.tree.structure(params_exact)
    truth = np.asarray(exact.log_prob(params, x), np.float64)
    num = 2_000
    rows = np.broadcast_to(x[:, None], (2, num, 3)).reshape(-1, 3)
    log_prob, info = flow.log_prob_with_info(params, rows, key=key)
    log_prob, sem = (np.asarray(a, np.float64).reshape(2, num) for a in (log_prob, info["log_prob_sem"]))
    for values, errors, wanted in zip(log_prob, sem, truth, strict=True):
        assert abs(z_score(values, wanted)) < 4
        if isinstance(divergence, Hutchinson):  # of Hutch++ the sketch varies too, which its probes cannot see
            assert_variance(values, np.mean(errors**2))
        assert errors.min() >= 0 and np.sqrt(np.mean(errors**2)) > 1e-3
    assert flow.likelihood is gm.Likelihood.ESTIMATE and exact.likelihood is gm.Likelihood.EXACT
    np.testing.assert_allclose(flow.log_prob(params, x, key=key).shape, (2,))


def test_one_probe_has_no_standard_error(key):
    flow, params, x = estimated_flow(Hutchinson())
    assert np.isnan(flow.log_prob_with_info(params, x, key=key)[1]["log_prob_sem"]).all()
    with pytest.raises(ValueError, match="Hutchinson estimates the log-determinant: pass key="):
        flow.log_prob(params, x)


def test_the_map_does_not_depend_on_the_probes(key):
    flow, params, x = estimated_flow(Hutchinson(1, "normal"))
    pair = jax.jit(lambda key: flow.bijector.inverse_and_log_det(params["bijector"], x[0], key=key))
    (one, first), (other, second) = (pair(jax.random.fold_in(key, i)) for i in (0, 1))
    np.testing.assert_array_equal(one, other)
    assert first != second


# --- arguments -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Hutchinson(0), "num_probes must be an integer >= 1, got 0"),
        (lambda: Hutchinson(1, "gaussian"), "distribution must be 'rademacher' or 'normal', got 'gaussian'"),
        (lambda: HutchPlusPlus(0), "rank must be an integer >= 1"),
        (lambda: HutchPlusPlus(1, 0), "num_probes must be an integer >= 1"),
        (lambda: HutchPlusPlus(1, 1, "uniform"), "distribution must be"),
        (
            lambda: draws(HutchPlusPlus(4), linear(np.eye(3)), jnp.ones(3), jax.random.key(0), 2),
            "rank must be at most the 3 dimensions",
        ),
    ],
)
def test_refuses_unfit_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
