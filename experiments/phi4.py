"""Scalar phi^4 theory on a periodic lattice: a flow trained on the action alone, made exact, beside hybrid Monte Carlo.

python -m experiments.phi4                             the best flow here: a continuous one, equal in all places
python -m experiments.phi4 --flow coupling --num-steps 10_000 --learning-rate 1e-3 --constant-rate --batch-size 64
                                                       the published one (arXiv:1904.12072, 2101.08176)

Observables by four ways, each with errors by the Gamma method: draws of the flow as they are; the same draws weighted by
exp(-S) / q; independence Metropolis-Hastings chains with the flow as the proposal; HMC chains (BlackJAX). And log Z by the
weights, the effective sample size (ESS), the acceptance rate, KL(q || p) = log Z + E_q[log q + S], integrated autocorrelation
times of chi2 and the cost of an independent sample. With $GENMOD_DATA the reference of the ensemble stands beside, where there is
one. Metrics that are not numbers are left out: the error of a chain that never moves, the mass of a correlator lost in noise.
"""

import dataclasses
import importlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from genmod import samplers
from genmod.core.checks import check
from genmod.core.keys import stream
from genmod.densities import LatticeField, PhiFour
from genmod.dynamics import RK4, Adaptive, FixedSteps
from genmod.lab.panels import Curve

OBSERVABLES = {  # ours: that of the reference file
    "susceptibility": "chi2",
    "ising_energy": "ising_energy",
    "phi2": "phi2",
    "phi4": "phi4",
    "abs_magnetization": "abs_m",
    "action": "action_mean",
    "binder_cumulant": "binder_U4",
    "pole_mass": "pole_mass",
}


@dataclasses.dataclass(frozen=True)
class Config:
    length: int = 8
    """Of a square lattice in two dimensions; at least 3, and even for couplings."""
    mass_squared: float = -4.0
    coupling: float = 8.0
    flow: Literal["ode", "coupling", "odd_coupling", "spline_coupling"] = "ode"
    num_layers: int = 16
    """Of the couplings."""
    hidden_channels: tuple[int, ...] = (8, 8)
    num_frequencies: int = 8
    """Of the ODE's field."""
    num_times: int = 6
    tolerance: float = 1e-4
    """Of the ODE in training; draws are measured with 40 equal steps. In training these would not do: it finds their error."""
    num_steps: int = 5_000
    batch_size: int = 128
    learning_rate: float = 5e-3
    constant_rate: bool = False
    """Whether the learning rate stays; else it falls to zero along a cosine."""
    path_gradient: bool = False
    """Whether the gradient goes without the score term, whose mean is zero."""
    num_draws: int = 20_000
    num_chains: int = 100
    """Of Metropolis-Hastings and of HMC."""
    num_chain_steps: int = 1_000
    num_integration_steps: int = 8
    latent_hmc: bool = False
    """Whether HMC runs in the latent space of the flow, too."""
    seed: int = 0


class Chain(NamedTuple):
    """Fields of many chains, one after the other, how often they accepted, and the seconds that they took."""

    fields: Any
    accepted: float
    seconds: float


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    check_config(config)
    key = jax.random.key(config.seed)
    law = PhiFour((config.length, config.length), config.mass_squared, config.coupling)
    trained, measured = flows(config)
    constant = config.constant_rate
    rate = config.learning_rate if constant else optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    fit, _ = gm.inference.fit_posterior(
        law,
        trained,
        key=stream(key, "train"),
        optimizer=optax.adam(rate),
        num_steps=config.num_steps,
        num_samples=config.batch_size,
        stick_the_landing=config.path_gradient,
        clip_norm=None if constant else 10.0,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    report = gm.inference.posterior_report(law, measured, fit.params, stream(key, "report"), config.num_draws)
    begin = time.perf_counter()
    x, log_q = jax.block_until_ready(measured.sample_and_log_prob(fit.params, stream(key, "draws"), config.num_draws))
    drawing = time.perf_counter() - begin
    log_weights = -np.asarray(law.action(x), np.float64) - np.asarray(log_q, np.float64)
    weight = np.exp(log_weights - log_weights.max())
    chains = {"MH": independence_chains(config, law, measured, fit.params, stream(key, "mh"))}
    chains["HMC"] = hmc_chains(config, law, x, stream(key, "hmc"))
    if config.latent_hmc:
        chains["latent HMC"] = latent_chains(config, law, measured, fit.params, stream(key, "latent"))
    found = {"flow": observables(law, x), "weighted": observables(law, x, weight=weight)}
    found |= {name: observables(law, chain.fields, num_chains=config.num_chains) for name, chain in chains.items()}
    reference = reference_of(config)
    print_tables(config, fit, report, found, chains, reference, drawing)
    figures(config, run, fit, x, chains)
    draw_correlator(run.figure("correlator"), config, found, reference)
    return metrics_of(fit, report, found, chains, reference)


def check_config(config: Config) -> None:
    """Raises ValueError, before anything is trained, for what would end the run only after that."""
    check(config.length >= 3, f"--length must be at least 3, so that there is a mass, got {config.length}")
    even = config.length % 2 == 0 or config.flow == "ode"
    check(even, f"--length must be even for --flow {config.flow}, got {config.length}; --flow ode takes any")
    least = {"num_times": 2, "num_steps": 1, "batch_size": 1, "num_chains": 1, "num_integration_steps": 1}
    # The Gamma method wants eight draws of a chain; the tail of the weights wants 25, and a draw is where an HMC chain begins.
    least |= {"num_chain_steps": 8, "num_draws": max(config.num_chains, 25)}
    for name, number in least.items():
        given = getattr(config, name)
        check(given >= number, f"--{name.replace('_', '-')} must be at least {number}, got {given}")
    for name in ("learning_rate", "tolerance"):
        given = getattr(config, name)
        check(given > 0, f"--{name.replace('_', '-')} must be > 0, got {given}")


def flows(config: Config) -> tuple[gm.models.Flow, gm.models.Flow]:
    """The flow that is trained, and the same as it is measured: with so many steps that their error is nothing."""
    shape = (config.length, config.length)
    if config.flow == "ode":
        options = {"num_frequencies": config.num_frequencies, "num_times": config.num_times}
        adaptive = Adaptive(rtol=config.tolerance, atol=config.tolerance)
        steps = -(-40 // (config.num_times - 1)) * (config.num_times - 1)
        return (
            gm.flows.lattice_ode(shape, integrator=adaptive, **options),
            gm.flows.lattice_ode(shape, integrator=FixedSteps(steps, RK4()), **options),
        )
    spline = config.flow == "spline_coupling"
    transformer = gm.bijectors.RationalQuadraticSpline(bound=3.0) if spline else gm.bijectors.Affine()
    network = gm.nets.PeriodicNet(transformer.num_params, config.hidden_channels)
    network = gm.nets.SignSymmetric(network) if config.flow == "odd_coupling" else network
    flow = gm.flows.lattice_coupling_flow(shape, config.num_layers, transformer=transformer, network=network)
    return flow, flow


def observables(law: LatticeField, fields: Any, **options: Any) -> dict[str, Any]:
    return gm.metrics.lattice_observables(fields, action=np.asarray(law.action(fields)), **options)


def independence_chains(config: Config, law: PhiFour, flow: gm.models.Flow, params: Any, key: jax.Array) -> Chain:
    proposal = samplers.proposal_of(flow, params)
    kernel = samplers.independence(law, *proposal)
    keys = jax.random.split(key)
    starts = flow.sample(params, keys[0], config.num_chains)
    return timed(lambda: many(keys[1], kernel, starts, config.num_chain_steps), law)


def hmc_chains(config: Config, law: PhiFour, starts: Any, key: jax.Array) -> Chain:
    """By BlackJAX, adapted; where it is not installed by `samplers.hmc`."""
    starts, num = jnp.asarray(starts)[: config.num_chains], config.num_chain_steps
    try:
        blackjax = importlib.import_module("blackjax")  # an optional extra
    except ImportError:
        kernel = samplers.hmc(law, 0.12, config.num_integration_steps)
        return timed(lambda: many(key, kernel, starts, num), law)
    options: dict[str, Any] = {"num_integration_steps": config.num_integration_steps, "target_acceptance_rate": 0.8}
    return timed(lambda: samplers.adapted_chains(key, law, starts, blackjax.hmc, num_steps=num, **options), law)


def latent_chains(config: Config, law: PhiFour, flow: gm.models.Flow, params: Any, key: jax.Array) -> Chain:
    def forward(z):
        return flow.bijector.forward_and_log_det(params["bijector"], z)

    kernel = samplers.hmc(samplers.pulled_back(law, forward), 0.3, 4)
    keys = jax.random.split(key)
    starts = flow.base.sample({}, keys[0], config.num_chains)
    return timed(lambda: many(keys[1], kernel, starts, config.num_chain_steps), law, lambda z: forward(z)[0])


def many(key: jax.Array, kernel: Any, starts: Any, num_steps: int) -> samplers.Trace:
    """A chain from each start, a tenth of its steps before those that are kept."""

    def one(key, position):
        return samplers.run(key, kernel, kernel.init(position), num_steps=num_steps, burn_in=num_steps // 10)

    return jax.jit(jax.vmap(one))(jax.random.split(key, len(starts)), starts)


def timed(draw: Any, law: PhiFour, forward: Any = None) -> Chain:
    begin = time.perf_counter()
    trace = jax.block_until_ready(draw())
    seconds = time.perf_counter() - begin
    fields = trace.positions.reshape(-1, *law.shape)
    fields = fields if forward is None else jax.lax.map(forward, fields, batch_size=1_000)
    return Chain(fields, float(trace.infos.acceptance_rate.mean()), seconds)


def reference_of(config: Config) -> dict[str, Any] | None:
    """The entry of the reference file for this ensemble; None where there is none."""
    folder = os.environ.get("GENMOD_DATA")
    path = Path(folder or "") / "phi4_reference" / "phi4_reference.json"
    if not folder or not path.is_file():
        return None
    wanted = (config.length, config.mass_squared, config.coupling)
    entries = json.loads(path.read_text())
    return next((entry for entry in entries if (entry["L"], entry["m2"], entry["lam"]) == wanted), None)


def print_tables(config, fit, report, found, chains, reference, drawing) -> None:
    history = fit.history
    rows = [
        {"step": int(history["step"][i]), "E_q[log q + S]": float(history["loss"][i]), "ESS": float(history["ess_fraction"][i])}
        for i in np.unique(np.linspace(0, len(history["step"]) - 1, 6).astype(int))
    ]
    print(gm.lab.text_table(rows))
    kl = float(report.log_evidence - report.elbo)
    print(f"\nESS {report.ess_fraction:.3f}, accepted {chains['MH'].accepted:.3f}, KL(q || p) {kl:.4f} nats")
    exact = "" if reference is None else f"  (reference {reference['logZ']:.4f} +- {reference['logZ_err']:.4f})"
    print(f"log Z {gm.lab.with_error(float(report.log_evidence), float(report.log_evidence_sem))}{exact}\n")
    lines = []
    for name, theirs in OBSERVABLES.items():
        line: dict[str, Any] = {"observable": name}
        line |= {way: f"{values[name].value:.5f}({values[name].sem:.5f})" for way, values in found.items()}
        if reference is not None:
            line["reference"] = f"{reference[theirs]:.5f}({reference[theirs + '_err']:.5f})"
        lines.append(line)
    print(gm.lab.text_table(lines))
    costs = [{"way": "weighted", "tau_int of chi2": 0.5, "ms": 1e3 * drawing / (config.num_draws * float(report.ess_fraction))}]
    for name, chain in chains.items():
        tau = float(found[name]["susceptibility"].tau_int)
        costs.append({"way": name, "tau_int of chi2": tau, "ms": 1e3 * chain.seconds * 2 * tau / len(chain.fields)})
    print("\nper independent sample, with the compilation of the chains:")
    print(gm.lab.text_table(costs))


def figures(config, run, fit, x, chains) -> None:
    history = fit.history
    names = {"ESS": "ess_fraction", "acceptance rate": "acceptance_rate"}
    panel = [Curve(name, history["step"], history[entry], style=".-") for name, entry in names.items()]
    title = f"L = {config.length}, m2 = {config.mass_squared}, lam = {config.coupling}"
    gm.lab.panels.curves(run.figure("ess"), {title: panel}, xlabel="step", ylabel="of a batch")
    rows = {"flow": x, **{name: chain.fields[:: config.num_chain_steps] for name, chain in chains.items()}}
    bright = 2.5 * float(np.std(x))
    images = [(name, np.asarray(fields[:10])[..., None] / bright / 2 + 0.5) for name, fields in rows.items()]
    gm.lab.plot.images(run.figure("configurations"), images, title="fields")


def draw_correlator(path: Path, config: Config, found: dict[str, Any], reference: dict[str, Any] | None) -> None:
    """G(t) up to half of the lattice, in bands of one standard error; where noise makes it negative it is not drawn."""
    half = config.length // 2 + 1
    ways = {name: (values["correlator"].value[:half], values["correlator"].sem[:half]) for name, values in found.items()}
    if reference is not None:
        ways["reference"] = (np.array(reference["Gt"][:half]), np.array(reference["Gt_err"][:half]))
    floor = 0.5 * min(g[g > 0].min() for g, _ in ways.values())  # a logarithmic axis has no zero
    panel = [
        Curve(name, np.arange(half), np.where(g > 0, g, np.nan), np.maximum(g - sem, floor), np.maximum(g + sem, floor), "o-")
        for name, (g, sem) in ways.items()
    ]
    title = "correlator of zero momentum, +- one standard error"
    gm.lab.panels.curves(path, {title: panel}, xlabel="t", ylabel="G(t)", log=True)


def metrics_of(fit, report, found, chains, reference) -> dict[str, Any]:
    """Flat, plain and finite numbers; what is none is left out."""
    metrics: dict[str, Any] = {"model": "phi4", "num_params": gm.num_params(fit.params), "ess": float(report.ess_fraction)}
    metrics |= {"log_z": float(report.log_evidence), "log_z_sem": float(report.log_evidence_sem), "k_hat": float(report.k_hat)}
    metrics |= {"kl_nats": float(report.log_evidence - report.elbo), "kl_nats_sem": float(report.elbo_sem)}
    metrics |= {f"accepted_{name.replace(' ', '_')}": chain.accepted for name, chain in chains.items()}
    for way, values in found.items():
        for name in OBSERVABLES:
            metrics |= {f"{name}_{way}".replace(" ", "_"): float(values[name].value)}
            metrics |= {f"{name}_{way}_sem".replace(" ", "_"): float(values[name].sem)}
        metrics[f"tau_int_{way}".replace(" ", "_")] = float(values["susceptibility"].tau_int)
    if reference is not None:
        metrics["log_z_reference"] = reference["logZ"]
        for name, theirs in OBSERVABLES.items():
            error = np.hypot(found["MH"][name].sem, reference[theirs + "_err"])
            metrics[f"{name}_MH_z"] = float((found["MH"][name].value - reference[theirs]) / error)
    return {name: value for name, value in metrics.items() if isinstance(value, str) or math.isfinite(value)}


if __name__ == "__main__":
    small = {"length": 4, "num_steps": 400, "batch_size": 64, "num_frequencies": 4, "num_draws": 2_000}
    gm.lab.main(experiment, Config, quick=small | {"num_chains": 20, "num_chain_steps": 500})
