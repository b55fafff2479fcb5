"""The experiments on evidence, small, and their parts where the answer is known."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import genmod as gm
from experiments import amortization_gap, iwae, model_selection
from genmod.inference import LaplaceEvidence, bayesian, fit_mixture, mixture_prior

# Two components whose laws differ.
LAW = mixture_prior(2, jnp.array([0.5]), jnp.array([[3.0]]), strength=0.4, concentration=2.0)._replace(
    concentration=jnp.array([2.0, 0.7]), dof=jnp.array([3.0, 6.0])
)


@pytest.mark.slow
def test_the_prior_of_a_mixture(key):
    """The density of z is that of gammas and normals with the Jacobian of the logs; draws have its moments."""
    z = np.array([0.3, -1.2, 0.1, 0.9, -0.4, 0.6])
    g, mean, precision = np.exp(z[:2]), z[2:4], np.exp(z[4:])
    a, rate = np.array(LAW.dof) / 2, 1.5
    wanted = (stats.gamma(np.array(LAW.concentration)).logpdf(g) + z[:2]).sum()
    wanted += (stats.gamma(a, scale=1 / rate).logpdf(precision) + z[4:]).sum()
    wanted += stats.norm(0.5, 1 / np.sqrt(0.4 * precision)).logpdf(mean).sum()
    np.testing.assert_allclose(model_selection.prior_log_prob(jnp.asarray(z, jnp.float32), LAW), wanted, rtol=1e-5)
    draws = jax.vmap(lambda key: model_selection.prior_sample(key, LAW))(jax.random.split(key, 10_000))
    g, mean, precision = np.exp(draws[:, :2]), draws[:, 2:4], np.exp(draws[:, 4:])
    for found, wanted in ((g, LAW.concentration), (precision, a / rate), ((mean - 0.5) ** 2 * 0.4 * precision, 1.0)):
        assert (np.abs(found.mean(0) - np.asarray(wanted)) < 4.5 * np.asarray(found.std(0)) / 100).all()


def test_the_likelihood_of_a_mixture():
    z, x = np.array([0.2, -0.5, 1.0, -1.0, 0.3, 0.8]), np.array([[0.1], [-2.0], [1.4]])
    weights = np.exp(z[:2]) / np.exp(z[:2]).sum()
    wanted = np.log((weights * stats.norm(z[2:4], np.exp(-0.5 * z[4:])).pdf(x)).sum(1)).sum()
    found = model_selection.log_likelihood(jnp.asarray(z, jnp.float32), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.slow
def test_one_component_is_conjugate(key):
    """With 150 data Laplace's approximation is within some hundredths of a nat of the exact evidence, the bound at K = 1."""
    x = model_selection.draw(key, 150)
    law = mixture_prior(1, jnp.zeros(1), jnp.ones((1, 1)), strength=0.05, concentration=10.0)
    exact = fit_mixture(x, law, key=key, num_restarts=1)
    prior = gm.densities.FromFunctions(
        (3,),
        functools.partial(model_selection.prior_sample, law=law),
        functools.partial(model_selection.prior_log_prob, law=law),
    )
    problem = bayesian(functools.partial(model_selection.log_likelihood, x=x), prior, {})
    found = gm.evidence(problem, LaplaceEvidence(), z=model_selection.posterior_centre(exact.posterior))
    assert abs(float(found.value) - float(exact.bound)) < 0.05


def test_the_fewest_components_near_the_best():
    assert model_selection.chosen({1: -20.0, 2: -11.0, 3: -10.0, 4: -9.9}) == 2
    assert model_selection.chosen({1: -20.0, 2: -12.0, 3: -10.0, 4: -9.9}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("module", [iwae, amortization_gap, model_selection])
def test_quick_runs(module, tmp_path):
    """What each leaves in its quick mode, in the order that the theory says."""
    out = tmp_path / "run"
    metrics = gm.lab.main(module.experiment, module.Config, quick=module.QUICK, arguments=["--quick", "--out", str(out)])
    assert json.loads((out / "metrics.json").read_text()) == metrics and (out / "table.txt").exists()
    if module is iwae:
        # The paired differences of the NLL stand out, and no bound lies below its NLL.
        for k in (5, 50):
            assert metrics[f"k{k}_nll_less_first_nats"] < -4 * metrics[f"k{k}_nll_less_first_nats_sem"]
        assert all(metrics[f"k{k}_bound_gap_nats"] > 0 for k in (1, 5, 50))
    elif module is amortization_gap:
        for name in ("train", "test"):
            parts = sum(metrics[f"{name}_{part}_nats"] for part in amortization_gap.PARTS)
            gap = metrics[f"{name}_evidence_nats"] - metrics[f"{name}_elbo_nats"]
            assert abs(parts - gap) < 0.05 and metrics[f"{name}_amortization_nats"] > 0
        between = metrics["simulated_annealed_nats"], metrics["simulated_annealed_back_nats"]
        assert between[0] - 0.2 < metrics["simulated_importance_nats"] < between[1] + 0.2
    else:
        assert abs(metrics["k1_smc_nats"] - metrics["k1_bound_nats"]) < 4.5 * metrics["k1_smc_nats_sem"] + 0.05
        assert metrics["chosen_by_smc"] == 3 and metrics["k1_harmonic_nats"] > metrics["k1_bound_nats"] + 1
