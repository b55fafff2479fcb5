"""The kernel Stein discrepancy: against closed forms of Gaussians and against autodiff."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genmod import metrics
from genmod.metrics import GaussianKernel, MultiquadricKernel, squared_stein_discrepancy


@pytest.mark.parametrize(("n", "d"), [(900, 1), (600, 3)])
def test_a_shifted_gaussian(n, d):
    """KSD^2 = E d(x).d(x') k(x, x'), d the difference of the scores: of N(a, I) from N(0, I) it is |a|^2 E k."""
    h, shift = 1.3, np.array([1.0, -0.5, 0.4])[:d]
    x = np.random.default_rng(d).normal(size=(n, d)) + shift
    found = squared_stein_discrepancy(x, -x, kernel=GaussianKernel(h))
    truth = shift @ shift * (h**2 / (h**2 + 2)) ** (d / 2)
    assert abs(found.value - truth) < 4 * found.sem < truth
    nothing = squared_stein_discrepancy(x, -(x - shift), kernel=GaussianKernel(h))
    assert abs(nothing.value) < 4 * nothing.sem


@pytest.mark.parametrize("kernel", [GaussianKernel(0.9), MultiquadricKernel(1.7, power=-0.3)])
def test_autodiff(kernel, x64):
    x = np.random.default_rng(3).normal(size=(6, 3))

    def log_prob(x):
        return -0.25 * jnp.sum(x**4) + x[0] * x[1]

    def k(x, y):
        r = jnp.sum((x - y) ** 2) / kernel.bandwidth**2
        return jnp.exp(-r / 2) if isinstance(kernel, GaussianKernel) else (1 + r) ** kernel.power

    score = jax.grad(log_prob)

    def u(x, y):
        along_x, along_y = jax.grad(k), jax.grad(k, 1)
        trace = jnp.trace(jax.jacfwd(along_x, 1)(x, y))
        return score(x) @ score(y) * k(x, y) + score(x) @ along_y(x, y) + score(y) @ along_x(x, y) + trace

    table, scores = map(np.asarray, jax.jit(lambda x: (jax.vmap(jax.vmap(u, (None, 0)), (0, None))(x, x), jax.vmap(score)(x)))(x))
    biased = squared_stein_discrepancy(x, scores, kernel=kernel, statistic="biased")
    assert biased.value == pytest.approx(table.mean(), rel=1e-10)
    unbiased = squared_stein_discrepancy(x, scores, kernel=kernel)
    assert unbiased.value == pytest.approx((table.sum() - np.trace(table)) / 30, rel=1e-10)
    order = [3, 0, 5, 1, 4, 2]
    assert squared_stein_discrepancy(x[order], scores[order], kernel=kernel) == pytest.approx(unbiased, rel=1e-10)


def test_the_error_is_the_spread_over_repetitions():
    rng, kernel = np.random.default_rng(4), GaussianKernel(1.0)
    samples = [rng.normal(0.8, 1.0, (40, 1)) for _ in range(400)]
    found = np.array([squared_stein_discrepancy(x, -x, kernel=kernel) for x in samples])
    values, spread = found[:, 0] - found[:, 0].mean(), found[:, 0].var()
    relative = math.sqrt(((values**4).mean() / spread**2 - 1) / 400) + (found[:, 1] ** 2).std() / spread / 20
    assert abs((found[:, 1] ** 2).mean() / spread - 1) < 4 * relative < 1
    assert abs(found[:, 0].mean() - 0.64 / math.sqrt(3)) < 4 * math.sqrt(spread / 400)


def test_errors():
    x = np.ones((5, 2))
    with pytest.raises(TypeError, match="kernel must be a SmoothPairKernel such as MultiquadricKernel"):
        squared_stein_discrepancy(x, x, kernel=metrics.LaplacianKernel())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"scores must have the shape of x, \(5, 2\), got \(4, 2\)"):
        squared_stein_discrepancy(x, x[:4])
    with pytest.raises(ValueError, match="statistic must be 'unbiased' or 'biased'"):
        squared_stein_discrepancy(x, x, statistic="V")  # pyright: ignore[reportArgumentType]
