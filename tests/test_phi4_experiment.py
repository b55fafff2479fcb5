"""The experiment on phi^4 theory, small: it ends, its four ways agree, and its numbers are what they say."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genmod as gm
from experiments import phi4
from genmod.dynamics import FixedSteps

# A free field, whose exact observables are known.
FREE = {"length": 4, "mass-squared": 0.5, "coupling": 0.0}
TINY = {
    "num-steps": 300,
    "batch-size": 64,
    "num-frequencies": 2,
    "num-times": 2,
    "num-draws": 2_000,
    "num-chains": 20,
    "num-chain-steps": 200,
}
WAYS = ("flow", "weighted", "MH", "HMC", "latent_HMC")


def run(folder, *more, **options):
    given = [f"--{name}={value}" for name, value in (TINY | FREE | options).items()]
    gm.lab.main(phi4.experiment, phi4.Config, arguments=[*given, *more, "--out", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


def write_reference(folder, entries):
    path = folder / "phi4_reference" / "phi4_reference.json"
    path.parent.mkdir()
    path.write_text(json.dumps(entries))


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("GENMOD_DATA", raising=False)
    metrics = run(tmp_path / "one", "--latent-hmc")
    assert {path.stem for path in (tmp_path / "one").glob("*.png")} == {"ess", "correlator", "configurations"}
    assert all(isinstance(value, str) or math.isfinite(value) for value in metrics.values())
    law = gm.densities.FreeField((4, 4), 0.5)
    assert metrics["ess"] > 0.5 and -4 * metrics["kl_nats_sem"] < metrics["kl_nats"] < 0.5
    assert metrics["log_z"] == pytest.approx(law.log_normalizer, abs=4 * metrics["log_z_sem"])
    # Of a Gaussian: S is half a chi-square of 16 degrees of freedom, <phi^4> = 3 <phi^2>^2, and U4 = 0.
    phi2 = law.propagator[0, 0]
    neighbour = law.propagator[0, 1]
    exact = {"phi2": phi2, "phi4": 3 * phi2**2, "ising_energy": neighbour, "susceptibility": law.susceptibility, "action": 8.0}
    exact |= {
        "binder_cumulant": 0.0,
        "pole_mass": law.pole_mass,
        "abs_magnetization": math.sqrt(law.susceptibility / 8 / math.pi),
    }
    for way in WAYS[1:]:
        for name, value in exact.items():
            assert metrics[f"{name}_{way}"] == pytest.approx(value, abs=4.5 * metrics[f"{name}_{way}_sem"]), (name, way)
    # Resumed from the end of the training, it draws the same; a reference stands beside.
    (tmp_path / "one" / "metrics.json").unlink()
    entry = {"L": 4, "m2": 0.5, "lam": 0.0, "logZ": 1.0, "logZ_err": 0.1, "Gt": [1.0] * 4, "Gt_err": [0.1] * 4}
    entry |= {name + end: 0.5 for name in phi4.OBSERVABLES.values() for end in ("", "_err")}
    write_reference(tmp_path, [entry])
    monkeypatch.setenv("GENMOD_DATA", str(tmp_path))
    again = run(tmp_path / "one", "--latent-hmc")
    assert again.items() > metrics.items() and again.keys() - metrics.keys() == {"log_z_reference"} | {
        f"{name}_MH_z" for name in phi4.OBSERVABLES
    }
    assert again["phi2_MH_z"] == pytest.approx((metrics["phi2_MH"] - 0.5) / math.hypot(metrics["phi2_MH_sem"], 0.5))


@pytest.mark.slow
def test_couplings_without_blackjax(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    metrics = run(tmp_path, **{"flow": "coupling", "num-layers": 2, "num-steps": 100, "num-draws": 500})
    law = gm.densities.FreeField((4, 4), 0.5)
    assert metrics["phi2_HMC"] == pytest.approx(law.propagator[0, 0], abs=4.5 * metrics["phi2_HMC_sem"])


@pytest.mark.parametrize(("num_times", "num_steps"), [(2, 40), (4, 42), (6, 40), (8, 42)])
def test_the_measured_flow_has_a_step_at_every_knot(num_times, num_steps):
    """The field bends at the knots in time: between two of them there is a whole number of steps, 40 in all at least."""
    trained, measured = (flow.bijector for flow in phi4.flows(phi4.Config(num_times=num_times)))
    assert isinstance(trained, gm.bijectors.LatticeODE) and isinstance(measured, gm.bijectors.LatticeODE)
    assert isinstance(measured.integrator, FixedSteps)
    assert measured.field == trained.field and measured.integrator.num_steps == num_steps


@pytest.mark.parametrize("flow", ["coupling", "odd_coupling", "spline_coupling"])
def test_only_odd_couplings_commute_with_the_sign(flow, key):
    config = phi4.Config(length=4, flow=flow, num_layers=2, hidden_channels=(4,))
    bijector = phi4.flows(config)[0].bijector
    keys = jax.random.split(key, 3)
    z = jax.random.normal(keys[0], (4, 4))
    leaves, tree = jax.tree.flatten(bijector.init(keys[1], z[None]))  # at the start the maps may be the identity
    leaves = [leaf + 0.3 * jax.random.normal(jax.random.fold_in(keys[2], i), leaf.shape) for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, leaves)
    x, log_det = jax.vmap(lambda z: bijector.forward_and_log_det(params, z))(jnp.stack([z, -z]))
    # Sums of some hundred terms, in two layers.
    error = 500 * np.finfo(np.float32).eps * float(jnp.abs(x).max())
    difference = max(float(jnp.abs(x[0] + x[1]).max()), float(jnp.abs(log_det[0] - log_det[1])))
    assert difference < error if flow == "odd_coupling" else difference > 100 * error


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--length", {"length": 2}),
        ("--length", {"length": 5, "flow": "coupling"}),
        ("--num-draws", {"num_draws": 99}),
        ("--num-chain-steps", {"num_chain_steps": 7}),
        ("--num-times", {"num_times": 1}),
        ("--tolerance", {"tolerance": 0.0}),
    ],
)
def test_errors_name_the_option(option, given):
    with pytest.raises(ValueError, match=f"^{option} must be .* got"):
        phi4.check_config(phi4.Config(**given))


def test_the_reference_is_that_of_the_ensemble(tmp_path, monkeypatch):
    write_reference(tmp_path, [{"L": 8, "m2": -4.0, "lam": lam, "name": lam} for lam in (6.0, 8.0)])
    monkeypatch.setenv("GENMOD_DATA", str(tmp_path))
    found = phi4.reference_of(phi4.Config())
    assert found is not None and found["name"] == 8.0
    assert phi4.reference_of(phi4.Config(length=16)) is None
    monkeypatch.delenv("GENMOD_DATA")
    monkeypatch.chdir(tmp_path)
    assert phi4.reference_of(phi4.Config()) is None


def test_observables_meet_the_free_field(key):
    law = gm.densities.FreeField((3, 3), 0.5)
    fields = law.sample({}, key, 4_000)
    found = phi4.observables(gm.densities.PhiFour((3, 3), 0.5, 0.0), fields)
    assert found["action"].value == pytest.approx(4.5, abs=4 * found["action"].sem)
    # The same in the other law's weights: exp(-S) of m2 = 1 over that of m2 = 0.5.
    weighted = phi4.observables(law, fields, weight=np.exp(-0.5 * np.asarray(fields**2).sum((1, 2))))
    other = gm.densities.FreeField((3, 3), 1.0)
    assert weighted["phi2"].value == pytest.approx(other.propagator[0, 0], abs=4 * weighted["phi2"].sem)
