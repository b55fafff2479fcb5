"""The two directions of KL on two bumps, p = .5 N(-3, 1) + .5 N(3, 1): covering the modes against seeking one.

Forward KL(p || q) is maximum likelihood from samples of p; reverse KL(q || p) needs only log p and samples of q. The family
q is one Gaussian (an affine flow), for which both answers are known, and a spline flow, which can do better. Known for the
Gaussian: forward, mean 0, sd sqrt(10) = 3.162278; reverse, mean +-2.984306, sd 1.023369, KL 0.688769 (at mean 0, sd 2.743769
there is a second, higher minimum, KL 0.840621).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream

TARGET = gm.data.TwoBumps()
KNOWN = {"forward": (0.0, 10**0.5), "reverse": (2.984306, 1.023369)}  # (|mean|, sd) of the Gaussian answers


@dataclasses.dataclass(frozen=True)
class Config:
    num_train: int = 100_000
    num_steps: int = 4_000
    batch_size: int = 1_024
    learning_rate: float = 1e-2
    stick_the_landing: bool = True
    """Of the reverse KL: drop the score term of the gradient, whose mean is zero."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ReverseKL:
    """KL(q || TARGET) of a flow as a loss for `gm.fit`: no data, `num_samples` draws of the flow."""

    flow: gm.models.Flow
    num_samples: int
    stick_the_landing: bool

    def __call__(self, params, key, batch, *, step=None):
        return gm.losses.reverse_kl(
            self.flow.sample_and_log_prob,
            TARGET.exact_log_prob,
            params,
            key,
            self.num_samples,
            stick_the_landing=self.stick_the_landing,
            log_prob_fn=self.flow.log_prob,
        )


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = gm.data.from_density("two_bumps", TARGET, stream(key, "data"), config.num_train)
    families = {
        "gaussian": gm.flows.affine((1,)),
        "spline": gm.flows.neural_spline_flow((1,), num_layers=2, num_bins=16, bound=12.0),
    }
    # Both directions start from N(2, 1), in the basin of one bump; from N(1, 1) the reverse KL may end in the second minimum.
    start = 2.0 + jax.random.normal(stream(key, "start"), (10_000, 1))
    grid = jnp.linspace(-25, 25, 10_001)[:, None]
    truth = TARGET.exact_log_prob(grid)
    curves = {"two bumps": np.exp(np.asarray(truth))}
    metrics: dict[str, Any] = {"model": "kl_directions"}
    rows = []
    for name, flow in families.items():
        params = flow.init(stream(key, name), start)
        for direction in ("forward", "reverse"):
            fitted = train(config, flow, params, data, direction, stream(key, f"{name} {direction}"))
            log_q = flow.log_prob(fitted, grid)
            found = by_quadrature(grid[:, 0], truth, log_q)
            metrics |= {f"{name}_{direction}_{k}": v for k, v in found.items()}
            known = KNOWN[direction] if name == "gaussian" else ("", "")
            rows.append({"family": name, "trained by": direction, **found, "exact |mean|": known[0], "exact sd": known[1]})
            curves[f"{name}, {direction} KL"] = np.exp(np.asarray(log_q))
    print(gm.lab.text_table(rows))
    shown = np.abs(np.asarray(grid[:, 0])) < 10
    curves = {name: curve[shown] for name, curve in curves.items()}
    title = "Maximum likelihood covers, reverse KL seeks"
    gm.lab.plot.lines(run.figure("kl_directions"), grid[shown, 0], curves, xlabel="x", ylabel="density", title=title)
    return metrics


def train(config: Config, flow: gm.models.Flow, params, data: gm.data.Dataset, direction: str, key) -> Any:
    optimizer = adam_with_cosine(config.learning_rate, config.num_steps)
    options = {"key": key, "params": params, "optimizer": optimizer, "num_steps": config.num_steps}
    if direction == "forward":
        return gm.fit(flow, data.train, batch_size=config.batch_size, **options).params
    loss = ReverseKL(flow, config.batch_size, config.stick_the_landing)
    return gm.fit(flow, None, loss_fn=loss, **options).params


def by_quadrature(x, log_p, log_q) -> dict[str, float]:
    """Mean and sd of q, KL(p || q) and KL(q || p) in nats, by the trapezoid rule."""
    x, log_p, log_q = (np.asarray(a, np.float64) for a in (x, log_p, log_q))
    p, q = np.exp(log_p), np.exp(log_q)
    mean = np.trapezoid(q * x, x)
    return {
        "mean": float(mean),
        "sd": float(np.sqrt(np.trapezoid(q * (x - mean) ** 2, x))),
        "forward_kl_nats": float(np.trapezoid(p * (log_p - log_q), x)),
        "reverse_kl_nats": float(np.trapezoid(q * (log_q - log_p), x)),
    }


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_train": 20_000, "num_steps": 800})
