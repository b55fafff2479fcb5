"""Black-box variational inference on targets with known log Z: the ELBO gap of a factorised Gaussian and of a flow.

gap = log Z - ELBO = KL(q || p) in nats, from fresh draws. The targets, in D = 10 and 100: Neal's funnel of scale 3, a mixture of
three Gaussians, a correlated Student t, and a conjugate regression, whose best factorised gap is known in closed form. The flow
is a RealNVP with clipped scales and LOFT over a learned Student base, started where the factorised Gaussian ended.

python -m experiments.flow_posterior
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

import genmod as gm
from genmod.core.keys import stream
from genmod.densities import ConjugateRegression, CorrelatedStudentT, Factorized, LearnedStudentT, NormalHead, ThreeGaussians


@dataclasses.dataclass(frozen=True)
class Config:
    dims: tuple[int, ...] = (10, 100)
    num_steps: int = 4_000
    num_samples: int = 64
    """Draws of q for a step."""
    learning_rate: float = 2e-3
    """Of the flow, falling to zero along a cosine; the factorised Gaussian has ten times as much."""
    num_layers: int = 8
    hidden_size: int = 128
    num_report: int = 20_000
    seed: int = 0


def targets(dim: int) -> dict[str, tuple[Any, Any, float]]:
    """name -> (distribution with exact draws, its log f, log Z)."""
    funnel, regression = gm.data.Funnel(dim), ConjugateRegression(dim)
    laws = [ThreeGaussians(dim), CorrelatedStudentT(dim)]
    return {
        "funnel": (funnel, functools.partial(funnel.log_prob_one, {}), 0.0),
        "three_gaussians": (laws[0], laws[0], 0.0),
        "student_t": (laws[1], laws[1], 0.0),
        "regression": (regression, regression, regression.log_normalizer),
    }


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    metrics: dict[str, Any] = {"model": "flow_posterior"}
    rows = []
    for dim in config.dims:
        for name, (law, log_prob_fn, log_z) in targets(dim).items():
            key = stream(jax.random.key(config.seed), f"{name} {dim}")
            mean_field, flow = Factorized(NormalHead(), (dim,)), build(config, dim)
            fit, report = fit_one(config, log_prob_fn, mean_field, stream(key, "mean field"), 10 * config.learning_rate)
            start = np.asarray(mean_field.sample(fit.params, stream(key, "start"), 1_000))
            _, of_flow = fit_one(config, log_prob_fn, flow, stream(key, "flow"), config.learning_rate, start)
            row: dict[str, Any] = {"target": name, "D": dim}
            for family, found in (("mean field", report), ("flow", of_flow)):
                row |= figures(family, found, log_z)
                metrics |= {f"{name}_{dim}_{k.replace(' ', '_')}": v for k, v in figures(family, found, log_z).items()}
            row["exact mean-field gap"] = law.mean_field_gap if isinstance(law, ConjugateRegression) else ""
            rows.append(row)
    print(gm.lab.text_table(rows))
    return metrics


def build(config: Config, dim: int) -> gm.models.Flow:
    return gm.flows.stable_real_nvp(
        (dim,), config.num_layers, hidden_sizes=(config.hidden_size,), base=LearnedStudentT((dim,)), seed=config.seed
    )


def fit_one(config: Config, log_prob_fn, law, key, learning_rate: float, start=None) -> gm.inference.PosteriorFit:
    schedule = optax.cosine_decay_schedule(learning_rate, config.num_steps)
    return gm.inference.fit_posterior(
        log_prob_fn,
        law,
        key=key,
        start=start,
        optimizer=optax.adam(schedule),
        num_steps=config.num_steps,
        num_samples=config.num_samples,
        clip_norm=10.0,
        num_report=config.num_report,
    )


def figures(family: str, report: gm.inference.PosteriorReport, log_z: float) -> dict[str, float]:
    """The gap and what the importance weights say."""
    return {
        f"{family} gap_nats": log_z - float(report.elbo),
        f"{family} gap_nats_sem": float(report.elbo_sem),
        f"{family} log_evidence_error_nats": float(report.log_evidence) - log_z,
        f"{family} ess_fraction": float(report.ess_fraction),
        f"{family} k_hat": float(report.k_hat),
    }


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"dims": (10,), "num_steps": 1_000, "num_layers": 6, "hidden_size": 32})
