"""How far a continuous flow's log-density is off, in nats, by integrator, tolerance and divergence.

python -m experiments.likelihood_accuracy

The field is linear and changes with time, v(x, t) = (1 + cos(2 pi t)) B x, so that everything is known: the flow map is
expm(B), the log-determinant tr B, the density Gaussian. B has independent N(0, sd^2) entries, whose off-diagonal is what one
Hutchinson probe sees as noise: its sd is (2 sum_{i != j} S_ij^2)^(1/2), S the symmetric part of B.
"""

import dataclasses
from typing import Any

import diffrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from genmod.core.keys import stream


@dataclasses.dataclass(frozen=True)
class Config:
    dims: tuple[int, ...] = (2, 8)
    num_points: int = 1_000
    sd: float = 0.5
    """Of the entries of B."""
    seed: int = 0


class Linear(nn.Module):
    """v(x, t) = (1 + cos(2 pi t)) B x."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        matrix = self.param("matrix", nn.initializers.zeros, (x.shape[0], x.shape[0]))
        return (1.0 + jnp.cos(2.0 * jnp.pi * t)) * jnp.matmul(matrix, x, precision=jax.lax.Precision.HIGHEST)


EXACT = gm.dynamics.Exact()
ROWS = {
    **{f"dopri5, {t:g}, exact": (gm.dynamics.Adaptive(rtol=t, atol=t), EXACT) for t in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)},
    **{f"Euler, {n} steps, exact": (gm.dynamics.FixedSteps(n, diffrax.Euler()), EXACT) for n in (10, 100)},
    "midpoint, 10 steps, exact": (gm.dynamics.FixedSteps(10, diffrax.Midpoint()), EXACT),
    "RK4, 10 steps, exact": (gm.dynamics.FixedSteps(10, gm.dynamics.RK4()), EXACT),
    **{f"dopri5, 1e-05, Hutchinson {k}": (gm.dynamics.Adaptive(), gm.dynamics.Hutchinson(k)) for k in (1, 4, 16)},
    "dopri5, 1e-05, Hutchinson 4, normal": (gm.dynamics.Adaptive(), gm.dynamics.Hutchinson(4, "normal")),
    "dopri5, 1e-05, Hutch++ 2 + 4": (gm.dynamics.Adaptive(), gm.dynamics.HutchPlusPlus(2, 4)),
}


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    metrics: dict[str, Any] = {"model": "likelihood_accuracy"}
    for dim in config.dims:
        matrix = config.sd * jax.random.normal(stream(key, "matrix", dim), (dim, dim))
        z = np.asarray(jax.random.normal(stream(key, "points", dim), (config.num_points, dim)), np.float64)
        exact_map = np.asarray(jax.scipy.linalg.expm(matrix), np.float64)
        x = jnp.asarray(z @ exact_map.T, jnp.float32)
        z = np.asarray(x, np.float64) @ np.linalg.inv(exact_map).T
        truth = -0.5 * (z**2).sum(1) - 0.5 * dim * np.log(2 * np.pi) - np.trace(np.asarray(matrix, np.float64))
        rows = []
        for name, (integrator, divergence) in ROWS.items():
            cnf = gm.bijectors.CNF(Linear(), integrator, divergence)
            flow = gm.models.Flow(cnf, gm.densities.Normal((dim,)))
            params = {"bijector": {"matrix": matrix}}
            log_prob, info = flow.log_prob_with_info(params, x, key=stream(key, name))
            error = np.asarray(log_prob, np.float64) - truth
            if bool(info["failed_solves"].any()):
                raise ValueError(f"{name}: {int(info['failed_solves'].sum())} solves of {len(x)} failed")
            sem = float(info["log_prob_sem"].mean()) if "log_prob_sem" in info else None
            largest, rms = float(np.abs(error).max()), float(np.sqrt((error**2).mean()))
            told = "" if sem is None or np.isnan(sem) else f"{sem:.2f}"  # one probe cannot tell
            shown = {"largest error": f"{largest:.1e}", "rms error": f"{rms:.1e}", "standard error it reports": told}
            rows.append({"log_prob by": name, "NFE": f"{float(info['nfe'].mean()):.0f}", **shown})
            metrics |= {f"d{dim}_{name}_largest_nats": largest, f"d{dim}_{name}_rms_nats": rms}
        symmetric = np.asarray(matrix + matrix.T) / 2
        spread = np.sqrt(2 * (symmetric**2).sum() - 2 * (np.diag(symmetric) ** 2).sum())
        text = f"D = {dim}; sd of one Rademacher probe {spread:.2f} nats\n{gm.lab.text_table(rows)}\n"
        print(text)
        (run.folder / f"accuracy_{dim}.txt").write_text(text)
        metrics[f"d{dim}_one_probe_sd_nats"] = float(spread)
    return metrics


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_points": 200, "dims": (2,)})
