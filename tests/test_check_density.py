"""`gm.check_density` passes what is right and sees what is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from genmod import bijectors as bj
from genmod.densities import Laplace, Normal, Uniform


@dataclasses.dataclass(frozen=True)
class Broken(gm.Distribution):
    """A normal law of the plane with something wrong."""

    excess: float = 0.0  # of log p
    scale: float = 1.0  # of the draws

    event = gm.Real((2,))

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        return Normal((2,)).log_prob_one({}, x) + self.excess

    def sample_one(self, params, key, context=None):
        return self.scale * Normal((2,)).sample_one({}, key)


@pytest.mark.parametrize("law", [Laplace((1,)), Normal((2,)), Uniform((2,), -1.0, 2.0)], ids=str)
def test_right_densities_pass(law):
    report = gm.check_density(law, {})
    assert report.passed, f"\n{report}"
    assert "all checks passed" in str(report)


@pytest.mark.parametrize(("law", "failed"), [(Broken(0.01), "mass"), (Broken(scale=1.1), "draws against density")])
def test_wrong_densities_are_seen(law, failed):
    report = gm.check_density(law, {})
    assert [row.name for row in report.rows if not row.passed] == [
        name for name in (r.name for r in report.rows) if failed in name
    ]
    assert "FAIL" in str(report)


@pytest.mark.slow
def test_a_toy_and_a_conditional_flow_pass(key):
    report = gm.check_density(gm.data.two_moons(key, 10).density, {})
    assert report.passed, f"\n{report}"
    flow = gm.flows.real_nvp((2,), 2, hidden_sizes=(8,), activation=jnp.tanh, context_shape=(1,))
    x, contexts = jax.random.normal(key, (64, 2)), jax.random.normal(key, (64, 1))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), flow.init(key, x, contexts))
    report = gm.check_density(flow, params, jnp.array([0.5]))
    assert report.passed, f"\n{report}"


@pytest.mark.slow
def test_seams_are_looked_at(key):
    circle = gm.flows.Circle()
    flow = gm.flows.neural_spline_flow((2,), 2, num_bins=4, hidden_sizes=(8,), support=(circle, circle))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), flow.init(key, jnp.zeros((4, 2))))
    assert gm.check_density(flow, params, periodic=(True, True)).passed
    jumps = gm.models.Flow(bj.Chain((bj.Sigmoid(), bj.Rescale(2 * np.pi, -np.pi))), Normal((1,)))
    report = gm.check_density(jumps, jumps.init(key, jnp.zeros((1, 1))), box=((-np.pi, np.pi),), periodic=(True,))
    assert not report.passed


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ValueError, match=r"events must be \(1,\) or \(2,\)"):
        gm.check_density(Normal((3,)), {})
    estimate = gm.flows.ffjord((2,), divergence=gm.dynamics.Hutchinson(1))
    with pytest.raises(ValueError, match="log_prob must be EXACT to be checked, got ESTIMATE"):
        gm.check_density(estimate, {})
