"""How many components has a mixture? The evidence says, by seven methods, of which some are to be trusted.

python -m experiments.model_selection

Data of a mixture of three Gaussians on the line. For every K the marginal likelihood of the Bayesian mixture (Dirichlet weights,
normal-gamma components), which needs no test set and no penalty. By sequential Monte Carlo and by annealed importance sampling
over all parameters; by the variational bound and by Laplace's approximation, each of which sees one of K! modes and is corrected
by log K!, as if these did not overlap; by BIC; by importance sampling from the prior and by the harmonic mean of a chain. Where
k-hat is above 0.7 the standard error cannot be trusted. At K = 1 the variational bound is the evidence itself.

Too few components cost many nats, idle ones next to nothing: the evidence hardly falls. Chosen is the smallest K whose evidence
is within a factor of sqrt(10) of the largest, a difference not worth more than a bare mention on Jeffreys' scale.
"""

import dataclasses
import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from genmod.core.keys import stream
from genmod.inference import (
    AIS,
    BIC,
    SMC,
    Evidence,
    HarmonicMean,
    ImportanceSampling,
    LaplaceEvidence,
    MixtureLaw,
    bayesian,
    find_mode,
    fit_mixture,
    mixture_prior,
)
from genmod.samplers import Kernel, mala

BARE_MENTION = 0.5 * math.log(10.0)
WEIGHTS, MEANS, SCALES = (0.3, 0.4, 0.3), (-2.5, 0.5, 3.0), (0.6, 0.8, 0.5)


@dataclasses.dataclass(frozen=True)
class Config:
    components: tuple[int, ...] = (1, 2, 3, 4, 5)
    num_data: int = 150
    concentration: float = 10.0
    """Of the Dirichlet law of the weights: above 1 it expects components of like weight."""
    num_particles: int = 256
    num_levels: int = 60
    num_kernel: int = 5
    """Langevin steps at each level."""
    num_chains: int = 256
    """Of annealed importance sampling, whose levels are eight times as many."""
    num_chain: int = 20_000
    """Steps of the chain whose harmonic mean is taken."""
    num_prior: int = 10_000
    """Draws of the prior for importance sampling."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    x = draw(stream(key, "data"), config.num_data)
    metrics: dict[str, Any] = {"num_data": config.num_data}
    found: dict[int, dict[str, Evidence]] = {}
    for k in config.components:
        found[k] = evidences(config, x, k, stream(key, f"{k} components"))
        for name, result in found[k].items():
            metrics |= {f"k{k}_{name}_nats": float(result.value), f"k{k}_{name}_nats_sem": float(result.sem)}
    rows = [{"K": k, **{name: cell(result) for name, result in results.items()}} for k, results in found.items()]
    for name in found[config.components[0]]:
        metrics[f"chosen_by_{name}"] = chosen({k: float(results[name].value) for k, results in found.items()})
    rows.append({"K": "chosen", **{name: metrics[f"chosen_by_{name}"] for name in found[config.components[0]]}})
    print(gm.lab.text_table(rows))
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    best = metrics["chosen_by_smc"]
    for k in config.components:
        factor = gm.bayes_factor(found[best]["smc"], found[k]["smc"])
        metrics[f"log_bayes_factor_{best}_{k}"] = float(factor.value)
        if k != best:
            print(f"log Bayes factor, {best} against {k} components: {gm.lab.with_error(factor.value, factor.sem)} nats")
    curves = {name: np.array([float(found[k][name].value) for k in found]) for name in ("smc", "bound", "laplace", "bic")}
    gm.lab.plot.lines(
        run.figure("evidence"), np.array(config.components), curves, xlabel="components", ylabel="log evidence, nats"
    )
    return metrics


def chosen(values: dict[int, float]) -> int:
    """The fewest components whose log-evidence is worth no more than a bare mention less than the largest."""
    return min(k for k, value in values.items() if value > max(values.values()) - BARE_MENTION)


def draw(key: jax.Array, num: int) -> jax.Array:
    """(num, 1) data."""
    keys = jax.random.split(key)
    which = jax.random.categorical(keys[0], jnp.log(jnp.asarray(WEIGHTS)), shape=(num,))
    noise = jax.random.normal(keys[1], (num,))
    return (jnp.asarray(MEANS)[which] + jnp.asarray(SCALES)[which] * noise)[:, None]


# --- the mixture as a density of real numbers ----------------------------------------------------------------------------------
# z = (log g, mu, log lambda), (3 K,): weights g / sum g with g_k ~ Gamma(a, 1) are Dirichlet(a); lambda_k are precisions.


def prior_sample(key: jax.Array, law: MixtureLaw) -> jax.Array:
    keys = jax.random.split(key, 3)
    log_g = jax.random.loggamma(keys[0], law.concentration)
    log_precision = jax.random.loggamma(keys[1], 0.5 * law.dof) - jnp.log(0.5 * law.scatter[:, 0, 0])
    noise = jax.random.normal(keys[2], log_g.shape)
    return jnp.concatenate(
        [log_g, law.mean[:, 0] + noise * jnp.exp(-0.5 * (log_precision + jnp.log(law.strength))), log_precision]
    )


def prior_log_prob(z: jax.Array, law: MixtureLaw) -> jax.Array:
    log_g, mean, log_precision = z.reshape(3, -1)
    a, rate = 0.5 * law.dof, 0.5 * law.scatter[:, 0, 0]
    weights = law.concentration * log_g - jnp.exp(log_g) - jax.lax.lgamma(law.concentration)
    precisions = a * (log_precision + jnp.log(rate)) - rate * jnp.exp(log_precision) - jax.lax.lgamma(a)
    scale = jnp.exp(-0.5 * (log_precision + jnp.log(law.strength)))
    return (weights + precisions + jax.scipy.stats.norm.logpdf(mean, law.mean[:, 0], scale)).sum()


def log_likelihood(z: jax.Array, x: jax.Array) -> jax.Array:
    log_g, mean, log_precision = z.reshape(3, 1, -1)
    log_p = jax.scipy.stats.norm.logpdf(x, mean, jnp.exp(-0.5 * log_precision))  # (n, K)
    return jax.nn.logsumexp(log_p + jax.nn.log_softmax(log_g), axis=1).sum()


def of_all_scales(log_prob_fn: Any, low: float, high: float) -> Kernel:
    """MALA whose step size is drawn anew for each step, log-uniform: what suits the prior does not suit the posterior."""

    def step(key, state):
        keys = jax.random.split(key)
        size = low * (high / low) ** jax.random.uniform(keys[0])
        return mala(log_prob_fn, size).step(keys[1], state)

    return Kernel(mala(log_prob_fn, low).init, step)


def evidences(config: Config, x: jax.Array, num_components: int, key: jax.Array) -> dict[str, Evidence]:
    """The log-evidence of K components by every method, by name."""
    law = mixture_prior(num_components, jnp.zeros(1), jnp.ones((1, 1)), strength=0.05, concentration=config.concentration)
    shape = (3 * num_components,)
    prior = gm.densities.FromFunctions(
        shape, functools.partial(prior_sample, law=law), functools.partial(prior_log_prob, law=law)
    )
    problem = bayesian(functools.partial(log_likelihood, x=x), prior, {})
    kernel = gm.call(of_all_scales, low=1e-3, high=0.3)
    annealed = {"kernel": kernel, "num_steps": config.num_kernel, "steepness": 8.0}
    smc = SMC(config.num_particles, 8, config.num_levels, **annealed)
    ais = AIS(config.num_chains, 8 * config.num_levels, **annealed)
    fit = fit_mixture(x, law, key=stream(key, "mean field"), num_restarts=20)
    modes = math.lgamma(num_components + 1)
    start = posterior_centre(fit.posterior)
    mode = find_mode(lambda z: log_likelihood(z, x) + prior_log_prob(z, law), start).position
    laplace = gm.evidence(problem, LaplaceEvidence(), z=start)
    return {
        "smc": gm.evidence(problem, smc, key=stream(key, "smc")),
        "ais": gm.evidence(problem, ais, key=stream(key, "ais")),
        "bound": Evidence(float(fit.bound) + modes, 0.0, 0, 1, {}),
        "laplace": laplace._replace(value=laplace.value + modes),
        "bic": gm.evidence(problem, BIC(config.num_data, 3 * num_components - 1), z=mode),
        "importance": gm.evidence(problem, ImportanceSampling(config.num_prior), key=stream(key, "prior")),
        "harmonic": harmonic(config, problem, mode, kernel, stream(key, "chain")),
    }


def posterior_centre(law: MixtureLaw) -> jax.Array:
    """z in the middle of a law of the parameters."""
    return jnp.concatenate([jnp.log(law.concentration), law.mean[:, 0], jnp.log(law.dof / law.scatter[:, 0, 0])])


def harmonic(config: Config, problem: Any, mode: jax.Array, kernel: Any, key: jax.Array) -> Evidence:
    """The harmonic mean over a chain that begins at the mode."""
    chain = kernel(lambda z: problem.log_likelihood(z) + problem.log_prior(z))
    trace = gm.samplers.run(key, chain, chain.init(mode), num_steps=config.num_chain, burn_in=1_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gm.evidence(problem, HarmonicMean(), z=trace.positions)


def cell(result: Evidence) -> str:
    text = gm.lab.with_error(float(result.value), float(result.sem)) if result.sem else f"{float(result.value):.4f}"
    return f"{text} (k-hat {float(result.extras['k_hat']):.1f})" if "k_hat" in result.extras else text


QUICK = {"components": (1, 3), "num_particles": 64, "num_levels": 20, "num_chains": 32, "num_chain": 2_000}

if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick=QUICK)
