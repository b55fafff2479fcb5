"""Distributions and maps as the functions of samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import FLOWS

from genmod.core.likelihood import Likelihood
from genmod.densities import FromFunctions, Normal
from genmod.samplers import hmc, importance_report, importance_sample, independence, log_prob_fn_of, proposal_of, pulled_back, run

pytestmark = pytest.mark.usefixtures("quick_compile")
NUM_SEM = 4.5
KEY = jax.random.key(0)
FLOW = FLOWS["affine"]((2,))
PARAMS = FLOW.init(KEY, np.array([[1.0, 2.0], [3.0, 8.0], [-1.0, 3.0], [2.0, 1.0]], np.float32))


def log_energy(x):
    return -0.5 * jnp.sum(x**2)


def test_a_flow_proposes():
    """Log-densities are those of the flow, and it is accepted always where it is the target."""
    proposal, log_prob = proposal_of(FLOW, PARAMS), log_prob_fn_of(FLOW, PARAMS)
    x, log_q = jax.jit(proposal.sample_and_log_prob_fn)(KEY)
    for value in (proposal.log_prob_fn(x), log_prob(x), FLOW.log_prob(PARAMS, x)):
        np.testing.assert_allclose(value, log_q, rtol=1e-5)
    draws = importance_sample(KEY, lambda x: log_prob(x) + 3.0, proposal.sample_and_log_prob_fn, 100)
    np.testing.assert_allclose(draws.log_weights, 3.0, atol=1e-4)
    assert abs(importance_report(draws.log_weights).effective_size - 100) < 1e-2
    kernel = independence(log_prob, *proposal)
    trace = run(KEY, kernel, kernel.init(x), num_steps=50)
    np.testing.assert_allclose(trace.infos.acceptance_rate, 1.0, atol=1e-4)


def test_a_flow_proposes_given_a_context():
    flow, context = FLOWS["real_nvp"]((2,), context_shape=(1,)), np.array([0.5])
    x, c = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
    params = jax.tree.map(lambda p: p + 0.1, flow.init(KEY, x, c))
    x, log_q = jax.jit(proposal_of(flow, params, context).sample_and_log_prob_fn)(KEY)
    np.testing.assert_allclose(log_q, flow.log_prob(params, x, context), rtol=1e-4)
    with pytest.raises(ValueError, match="is conditional: pass context of shape"):
        proposal_of(flow, params)


def test_a_law_in_the_base_space():
    """Gamma(3, 1) by HMC over z = log x, which knows no border: mean 3, variance 3, third central moment 6."""

    def log_gamma(x):
        return 2 * jnp.log(x) - x

    log_prob = pulled_back(log_gamma, lambda z: (jnp.exp(z), z))
    np.testing.assert_allclose(log_prob(0.7), log_gamma(jnp.exp(0.7)) + 0.7, rtol=1e-6)
    kernel, num = hmc(log_prob, 0.4, 3), 2_000
    trace = jax.jit(jax.vmap(lambda key: run(key, kernel, kernel.init(1.0), num_steps=20, burn_in=20, thin=5)))
    x = np.exp(np.asarray(trace(jax.random.split(KEY, num)).positions, np.float64))
    for value, wanted in ((x, 3), ((x - 3) ** 2, 3), ((x - 3) ** 3, 6)):
        means = value.mean(1)
        assert abs(means.mean() - wanted) < NUM_SEM * means.std() / np.sqrt(num)


def test_a_flow_s_law_in_its_own_base_space_is_the_base():
    log_prob = pulled_back(log_prob_fn_of(FLOW, PARAMS), lambda z: FLOW.bijector.forward_and_log_det(PARAMS["bijector"], z))
    z = jnp.array([0.3, -1.2])
    np.testing.assert_allclose(log_prob(z), Normal((2,)).log_prob({}, z), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: proposal_of(log_energy, {}), TypeError, "distribution must be a Distribution such as a gm.Flow"),
        (
            lambda: proposal_of(FromFunctions((2,), None, log_energy, Likelihood.UNNORMALIZED), {}),
            ValueError,
            "distribution must have a log_prob that is EXACT, got FromFunctions, whose is UNNORMALIZED",
        ),
        (
            lambda: log_prob_fn_of(FromFunctions((2,), None, log_energy, Likelihood.LOWER_BOUND), {}),
            ValueError,
            "a log_prob that is EXACT or UNNORMALIZED, got FromFunctions, whose is LOWER_BOUND",
        ),
        (lambda: log_prob_fn_of(FLOW, PARAMS, jnp.ones(2)), ValueError, "takes no context"),
        (lambda: pulled_back(log_energy, None), TypeError, "forward_and_log_det_fn must be a function, got None"),
    ],
)
def test_adapters_refuse_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_an_energy_is_a_target():
    energy = FromFunctions((2,), None, log_energy, Likelihood.UNNORMALIZED)
    np.testing.assert_allclose(log_prob_fn_of(energy, {})(jnp.ones(2)), -1.0)
