"""BlackJAX's adapted chains and tempering against laws that are known; all but the first test want BlackJAX."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from genmod.samplers import adapted_chains, adaptive_tempered_smc, chain_report, hmc, random_walk, run, window_adapted

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEY = jax.random.key(0)
MISSING = importlib.util.find_spec("blackjax") is None
wants_blackjax = pytest.mark.skipif(MISSING, reason="BlackJAX is optional: pip install blackjax")


def log_prob(x):
    """a ~ N(1, 9), exp(b) / 2 ~ Gamma(3, 1): b is skew, and the scales differ."""
    return norm.logpdf(x["a"], 1.0, 3.0) + 3 * x["b"] - 0.5 * jnp.exp(x["b"])


STARTS = {"a": jnp.array([-3.0, 0.0, 2.0, 5.0]), "b": jnp.array([0.0, 1.0, 2.0, 3.0])}


@pytest.mark.skipif(not MISSING, reason="BlackJAX is there")
def test_without_blackjax_it_is_named():
    with pytest.raises(ImportError, match="wants BlackJAX, which is not installed: pip install blackjax"):
        adapted_chains(KEY, log_prob, STARTS, num_steps=10)


@wants_blackjax
@pytest.mark.parametrize("name", ["nuts", "hmc"])
def test_adapted_chains(name):
    import blackjax

    algorithm, options = {"nuts": (None, {}), "hmc": (blackjax.hmc, {"num_integration_steps": 3})}[name]
    trace = adapted_chains(KEY, log_prob, STARTS, algorithm, num_steps=1_000, num_adaptation_steps=400, **options)
    assert jax.tree.map(jnp.shape, trace.positions) == {"a": (4, 1_000), "b": (4, 1_000)}
    x = np.exp(np.asarray(trace.positions["b"], np.float64)) / 2
    a = np.asarray(trace.positions["a"], np.float64)
    report = chain_report({"a": a, "square": (a - 1) ** 2, "x": x, "cube": (x - 3) ** 3})
    for name, wanted in {"a": 1.0, "square": 9.0, "x": 3.0, "cube": 6.0}.items():
        assert abs(report.mean[name] - wanted) < NUM_SEM * report.mcse[name], report
    assert report.r_hat["a"] < 1.02 and report.r_hat["x"] < 1.02
    assert 0.6 < trace.infos.acceptance_rate.mean() < 0.95


@wants_blackjax
def test_one_adapted_chain_goes_on():
    kernel, state = window_adapted(KEY, log_prob, {"a": 0.0, "b": 1.0}, num_steps=100, target_acceptance_rate=0.9)
    trace = run(KEY, kernel, state, num_steps=20)
    assert trace.positions["a"].shape == (20,) and jnp.isfinite(trace.positions["b"]).all()


@wants_blackjax
@pytest.mark.parametrize("kernel_fn", [lambda f: hmc(f, 0.2, 3), lambda f: random_walk(f, 0.4)], ids=["hmc", "random_walk"])
def test_tempering(kernel_fn):
    """z ~ N(0, 4), data 3 given z ~ N(z, 0.25): evidence N(3; 0, 4.25), and the posterior is normal."""
    num, repeats = 200, 40

    def once(key):
        keys = jax.random.split(key)
        start = 2.0 * jax.random.normal(keys[0], (num,))
        return adaptive_tempered_smc(
            keys[1], lambda z: norm.logpdf(z, 0.0, 2.0), lambda z: norm.logpdf(3.0, z, 0.5), start, kernel_fn, num_steps=5
        )

    found = jax.jit(jax.vmap(once))(jax.random.split(KEY, repeats))
    assert (found.level == 1).all() and (found.num_levels >= 2).all()
    ratio = np.exp(np.asarray(found.log_ratio, np.float64) - norm.logpdf(3.0, 0.0, np.sqrt(4.25)))
    assert abs(ratio.mean() - 1) < NUM_SEM * ratio.std() / np.sqrt(repeats)
    means = np.asarray((jnp.exp(found.log_weights) * found.positions).sum(1), np.float64)
    assert abs(means.mean() - 3 * 4 / 4.25) < NUM_SEM * means.std() / np.sqrt(repeats)


@wants_blackjax
def test_tempering_refuses_bad_input():
    with pytest.raises(ValueError, match=r"target_size must be a share of the particles in \(0, 1\), got 1"):
        adaptive_tempered_smc(KEY, log_prob, log_prob, STARTS, lambda f: hmc(f, 0.1, 2), target_size=1)
