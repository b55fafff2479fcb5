"""Closed-form denoisers against Tweedie's formula by autodiff, and what is made of denoisers against exact posteriors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod import denoising
from genmod.denoising import denoisers

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")
SCHEDULE, T = denoising.VariancePreserving(), jnp.asarray(0.3)
MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[0.58, 0.8], [0.8, 1.78]])
WEIGHTS, MEANS, VARIANCES = np.array([0.2, 0.8]), np.array([[-1.0, 0.5], [2.0, 1.0]]), np.array([0.1, 0.5])


def tweedie(log_prob, x, schedule=SCHEDULE, t=T):
    return (x + schedule.sigma(t) ** 2 * jax.grad(log_prob)(x)) / schedule.alpha(t)


def normal_log_prob(x, mean, covariance):
    return jax.scipy.stats.multivariate_normal.logpdf(x, jnp.asarray(mean), jnp.asarray(covariance))


@pytest.mark.parametrize("schedule", [SCHEDULE, denoising.EDM(), denoising.Straight()], ids=lambda s: type(s).__name__)
def test_gaussian_is_tweedies(schedule):
    alpha, sigma = float(schedule.alpha(T)), float(schedule.sigma(T))
    denoiser = denoisers.gaussian(schedule, MEAN, COVARIANCE)
    x = jnp.array([0.4, 3.0])
    wanted = tweedie(lambda x: normal_log_prob(x, alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(2)), x, schedule)
    np.testing.assert_allclose(denoiser(x, T), wanted, rtol=1e-9)
    np.testing.assert_allclose(denoisers.score_fn(denoiser, schedule)(x, T), (alpha * wanted - x) / sigma**2, rtol=1e-9)
    diagonal = denoisers.gaussian(schedule, MEAN, np.array([0.3, 2.0]))
    np.testing.assert_allclose(diagonal(x, T), denoisers.gaussian(schedule, MEAN, np.diag([0.3, 2.0]))(x, T), rtol=1e-12)
    image = denoisers.gaussian(schedule, np.zeros((2, 3, 1)), 0.5)
    assert image(jnp.ones((2, 3, 1)), T).shape == (2, 3, 1)


def test_mixture_is_tweedies():
    alpha, sigma = float(SCHEDULE.alpha(T)), float(SCHEDULE.sigma(T))

    def log_prob(x):
        parts = [
            np.log(w) + normal_log_prob(x, alpha * m, (alpha**2 * v + sigma**2) * np.eye(2))
            for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True)
        ]
        return jax.nn.logsumexp(jnp.stack(parts))

    denoiser = denoisers.gaussian_mixture(SCHEDULE, WEIGHTS, MEANS, VARIANCES)
    for x in ([0.0, 0.0], [2.0, -3.0], [40.0, 1.0]):
        np.testing.assert_allclose(denoiser(jnp.array(x), T), tweedie(log_prob, jnp.array(x)), rtol=1e-9)
    one = denoisers.gaussian_mixture(SCHEDULE, [1.0], [MEAN], [[0.3, 2.0]])
    x = jnp.array([0.1, -0.2])
    np.testing.assert_allclose(one(x, T), denoisers.gaussian(SCHEDULE, MEAN, [0.3, 2.0])(x, T), rtol=1e-12)


def test_empirical_returns_the_points():
    points = np.random.default_rng(0).standard_normal((20, 3))
    denoiser = denoisers.empirical(denoising.EDM(), points)
    for t in (0.0, 0.1):
        np.testing.assert_allclose(denoiser(jnp.asarray(points[7]), jnp.asarray(t)), points[7], atol=1e-6)
    np.testing.assert_allclose(denoiser(jnp.zeros(3), jnp.asarray(1.0)), points.mean(0), atol=1e-3)


def test_change_of_schedule_leaves_the_denoised_mean():
    """x / alpha and sigma / alpha are all that matters: VP at x is VE at x / alpha."""
    ve = denoising.VarianceExploding(0.01, 50.0)
    t = ve.time(SCHEDULE.log_snr(T))
    for make in (
        lambda schedule: denoisers.gaussian(schedule, MEAN, COVARIANCE),
        lambda schedule: denoisers.gaussian_mixture(schedule, WEIGHTS, MEANS, VARIANCES),
    ):
        x = jnp.array([0.4, 1.0])
        np.testing.assert_allclose(make(SCHEDULE)(x, T), make(ve)(x / SCHEDULE.alpha(T), t), rtol=1e-9)


def test_predictions_of_other_kinds():
    denoiser = denoisers.gaussian(SCHEDULE, MEAN, COVARIANCE)
    x = jnp.array([0.4, 1.0])
    for kind in ("eps", "score", "v", "velocity"):
        fn = denoisers.from_prediction(
            lambda x, t, kind=kind: denoising.convert(SCHEDULE, t, x, denoiser(x, t), "x0", kind), SCHEDULE, kind
        )
        np.testing.assert_allclose(fn(x, T), denoiser(x, T), rtol=1e-9)


def test_guidance_sharpens():
    """N(m, s^2) against N(0, s^2) at weight w: guided scores are those of p_c^w p_u^(1 - w), here N(w m, s^2) at every t."""
    conditional, plain, sharp = (denoisers.gaussian(SCHEDULE, np.full(2, m), 0.5) for m in (1.0, 0.0, 3.0))
    x = jnp.array([0.3, -1.0])
    np.testing.assert_allclose(denoisers.guided(conditional, plain, 3.0)(x, T), sharp(x, T), rtol=1e-12)
    np.testing.assert_allclose(denoisers.guided(conditional, plain, 1.0)(x, T), conditional(x, T), rtol=1e-12)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_posterior_of_a_gaussian_is_exact(t):
    """y = A x_0 + noise, x_t = alpha x_0 + sigma eps: E[x_0 | x_t, y] by the joint Gaussian."""
    t, matrix, noise = jnp.asarray(t), np.array([[1.0, 2.0]]), 0.3
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    x, y = np.array([0.4, 1.0]), np.array([0.7])
    both = np.vstack([alpha * np.eye(2), matrix])
    spread = both @ COVARIANCE @ both.T + np.diag([sigma**2, sigma**2, noise**2])
    wanted = MEAN + COVARIANCE @ both.T @ np.linalg.solve(spread, np.concatenate([x, y]) - both @ MEAN)
    denoiser = denoisers.gaussian(SCHEDULE, MEAN, COVARIANCE)
    given = denoisers.posterior(denoiser, SCHEDULE, lambda x: jnp.asarray(matrix) @ x, jnp.asarray(y), noise)
    np.testing.assert_allclose(given(jnp.asarray(x), t), wanted, rtol=1e-6)
    shifted = denoisers.posterior(denoiser, SCHEDULE, lambda x: jnp.asarray(matrix) @ x + 5.0, jnp.asarray(y) + 5.0, noise)
    np.testing.assert_allclose(shifted(jnp.asarray(x), t), wanted, rtol=1e-6)
    mask = jnp.array([1.0, 0.0])  # inpainting: the second coordinate is not seen
    seen = denoisers.posterior(denoiser, SCHEDULE, lambda x: mask * x, mask * 2.0, 1e-3)
    assert abs(float(seen(jnp.asarray(x), t)[0]) - 2.0) < 1e-3


def test_posterior_wants_an_iteration_for_each_observation():
    """Sixteen observations of 32 numbers, little noise: exact with 16 iterations of GMRES, some per cent off with five."""
    rng = np.random.default_rng(0)
    factor, matrix, noise = rng.standard_normal((32, 32)) / 5.0, rng.standard_normal((16, 32)), 0.05
    covariance, x, y, t = factor @ factor.T, rng.standard_normal(32), rng.standard_normal(16), jnp.asarray(0.5)
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    both = np.vstack([alpha * np.eye(32), matrix])
    spread = both @ covariance @ both.T + np.diag(np.concatenate([np.full(32, sigma**2), np.full(16, noise**2)]))
    wanted = covariance @ both.T @ np.linalg.solve(spread, np.concatenate([x, y]))
    denoiser = denoisers.gaussian(SCHEDULE, np.zeros(32), covariance)

    def error(num):
        given = denoisers.posterior(denoiser, SCHEDULE, lambda x: jnp.asarray(matrix) @ x, y, noise, num_iterations=num)
        return np.linalg.norm(given(jnp.asarray(x), t) - wanted) / np.linalg.norm(wanted - denoiser(jnp.asarray(x), t))

    assert error(16) < 1e-4 < error(5) < 0.5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_posterior_keeps_the_dtype_of_the_event(dtype):
    """Observations in NumPy's float64, or a list; half precision, for which there is no linear algebra."""
    denoiser = denoisers.gaussian(SCHEDULE, MEAN, COVARIANCE)
    assert denoisers.posterior(denoiser, SCHEDULE, lambda x: x[:1], [0.7], 0.3)(jnp.zeros(2, dtype), 0.3).dtype == dtype
    for y in (np.array([0.7]), [0.7]):
        found = denoisers.posterior(denoiser, SCHEDULE, lambda x: x[:1], y, 0.3)(jnp.zeros(2, dtype), jnp.asarray(0.3, dtype))
        exact = denoisers.posterior(denoiser, SCHEDULE, lambda x: x[:1], y, 0.3)(jnp.zeros(2), jnp.asarray(0.3))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.astype(float), exact, rtol=0.1 if dtype == jnp.bfloat16 else 1e-4, atol=0.02)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: denoisers.gaussian(SCHEDULE, MEAN, np.eye(3)), r"covariance must be a scalar, .* \(2, 2\), got \(3, 3\)"),
        (lambda: denoisers.gaussian(SCHEDULE, MEAN, -1.0), "covariance must be positive semidefinite"),
        (lambda: denoisers.gaussian_mixture(SCHEDULE, [0.5], MEANS, VARIANCES), r"want weights \(K,\) and variances \(K,\)"),
        (lambda: denoisers.gaussian_mixture(SCHEDULE, [0.5, 0.6], MEANS, VARIANCES), "weights must be >= 0 and sum to 1"),
        (lambda: denoisers.gaussian_mixture(SCHEDULE, [1.0], [[0.0]], [-1.0]), "variances must be >= 0"),
        (lambda: denoisers.empirical(SCHEDULE, []), r"points must be \(n,\) \+ event shape, n >= 1, got shape \(0,\)"),
        (
            lambda: denoisers.posterior(denoisers.gaussian(SCHEDULE, MEAN, 1.0), SCHEDULE, lambda x: x, jnp.zeros(2), 0.0),
            "noise_std must be > 0",
        ),
        (
            lambda: denoisers.posterior(denoisers.gaussian(SCHEDULE, MEAN, 1.0), SCHEDULE, lambda x: x[:1], jnp.zeros(2), 1.0)(
                jnp.zeros(2), T
            ),
            r"y must have the shape that observe returns, \(1,\), got \(2,\)",
        ),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_clipped_denoisers():
    def far(x, t):
        return 10.0 * x

    x, t = jnp.array([-3.0, 0.05, 0.2]), jnp.asarray(0.5)
    np.testing.assert_allclose(denoisers.clipped(far, -1.0, 1.0)(x, t), [-1.0, 0.5, 1.0])
    np.testing.assert_allclose(denoisers.dynamically_clipped(far, quantile=1.0)(x, t), [-1.0, 0.5 / 30, 2.0 / 30], rtol=1e-6)
    within = denoisers.dynamically_clipped(far)(0.01 * x, t)
    np.testing.assert_allclose(within, 0.1 * x, rtol=1e-6)  # at least the limit: nothing changes
    for call, match in (
        (lambda: denoisers.clipped(far, 1.0, 1.0), "low < high"),
        (lambda: denoisers.dynamically_clipped(far, quantile=0.0), "quantile must be in"),
        (lambda: denoisers.dynamically_clipped(far, limit=0.0), "limit must be > 0"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.slow
def test_a_clipped_model_survives_the_end_without_signal(key):
    """eps off by a little, where alpha is 5e-5: alone it throws the draws out of all bounds."""
    model = gm.flows.diffusion(
        (2,),
        schedule=denoising.Cosine(),
        kind="eps",
        hidden_sizes=(8,),
        scaling=None,
        sampler=denoising.Steps(denoising.DDIM(), denoising.UniformGrid(50)),
    )
    params = model.init(key, jnp.zeros((1, 2)))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(key, p.shape), params)
    clips = (-jnp.inf, jnp.inf), (-1.0, 1.0)
    plain, kept = (dataclasses.replace(model, clip=clip).sample(params, key, (200,)) for clip in clips)
    assert jnp.abs(plain).max() > 10 and jnp.abs(kept).max() <= 1
    # By itself a model cuts where there is no signal, to three times the range of the data that it was initialised with.
    params["range"] = model.init(key, jnp.array([[-1.0, 0.0], [0.5, 2.0]]))["range"]
    assert [float(end) for end in params["range"].tree] == [-4.0, 5.0]
    assert jnp.abs(model.sample(params, key, (200,))).max() < 0.2 * jnp.abs(plain).max()
    # One row has no range: nothing is cut, and the parameters are numbers that can be trained on.
    alone = model.init(key, jnp.zeros((1, 2)))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(alone))
    params["range"] = alone["range"]
    np.testing.assert_array_equal(model.sample(params, key, (200,)), plain)


def test_kept_in_range():
    """Where sigma > alpha (high - low) alone; a mode that the range has missed is left alone wherever there is signal."""
    schedule = denoising.Cosine()
    kept = denoisers.kept_in_range(lambda x, t: 100.0 * x, schedule, -1.0, 2.0)
    times = schedule.time(2 * jnp.log(1 / jnp.array([2.9, 3.1])))  # sigma / alpha
    np.testing.assert_allclose([kept(jnp.ones(()), t) for t in times], [100.0, 2.0])
