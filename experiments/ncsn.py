"""A noise-conditional score network (NCSN): scores at many noise levels, sampled by annealed Langevin dynamics.

python -m experiments.ncsn                             three modes of unequal weight in the plane
python -m experiments.ncsn --num-levels 5              fewer noise levels

The data are a mixture of Gaussians far apart, whose score is known at every noise level. Reported: the error of the score by
noise level, and the weights of the modes among samples by annealed Langevin, beside those by Langevin at the lowest level alone,
which keeps the weights of its start, and beside the exact score's (Song & Ermon 2019, arXiv:1907.05600, secs. 3.2, 4.3). The
probability flow keeps the error of its start, N(0, sigma_max^2) in the place of the data blurred by sigma_max, which Langevin
dynamics forgets.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.batching import vmap_events
from genmod.core.keys import stream

WEIGHTS = np.array([0.1, 0.3, 0.6])
MEANS = np.array([[-6.0, -3.0], [0.0, 6.0], [6.0, -3.0]])
VARIANCES = np.array([0.5, 0.5, 0.5])


@dataclasses.dataclass(frozen=True)
class Config:
    num_levels: int = 20
    sigma_min: float = 0.2
    sigma_max: float = 20.0
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    num_steps: int = 10_000
    batch_size: int = 512
    learning_rate: float = 1e-3
    step_size: float = 0.2
    """a / sigma^2 in x + a/2 score + sqrt(a) z."""
    num_langevin: int = 100
    """Steps at each level."""
    num_train: int = 50_000
    num_samples: int = 5_000
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    schedule = gm.denoising.VarianceExploding(config.sigma_min, config.sigma_max)
    grid = gm.denoising.LogSNRGrid(max(1, config.num_levels - 1))
    annealed = gm.denoising.Steps(gm.denoising.AnnealedLangevin(config.step_size, config.num_langevin), grid, denoise=False)
    model = gm.flows.diffusion(
        (2,),
        schedule=schedule,
        kind="eps",  # NCSN's score is a network divided by sigma: minus eps over sigma
        hidden_sizes=config.hidden_sizes,
        sampler=annealed,
        scaling=None,
        data_scale=5.0,
    )
    x = draw(stream(key, "data"), config.num_train)
    fit = gm.fit(
        model,
        x,
        key=stream(key, "fit"),
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        ema_decay=0.999,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    return report(config, run, model, fit, annealed, x, key)


def draw(key: jax.Array, num: int) -> jax.Array:
    """Draws of the mixture, (num, 2)."""
    keys = jax.random.split(key)
    which = jax.random.choice(keys[0], len(WEIGHTS), (num,), p=jnp.asarray(WEIGHTS))
    spread = jnp.sqrt(jnp.asarray(VARIANCES, jnp.float32))[which][:, None]
    return jnp.asarray(MEANS, jnp.float32)[which] + spread * jax.random.normal(keys[1], (num, 2))


def report(config: Config, run: gm.lab.Run, model: gm.models.Diffusion, fit: gm.Fit, annealed, x, key) -> dict[str, Any]:
    schedule, params = model.predictor.schedule, fit.params
    score = functools.partial(model.predictor.score, params["bijector"][0])
    held = gm.check_score(score, schedule, WEIGHTS, MEANS, VARIANCES)
    metrics: dict[str, Any] = {"model": "ncsn", "num_params": gm.num_params(params), "kl_bound_nats": held.nats}
    lowest = jnp.asarray(schedule.times[0], jnp.float32)

    def plain(key, denoiser, schedule, x):
        """As many steps, all at the lowest level."""
        at = gm.denoising.denoisers.score_fn(denoiser, schedule)
        num = config.num_langevin * annealed.grid.num_steps
        return gm.samplers.langevin_chain(
            key, lambda x: at(x, lowest), x, step_size=0.5 * config.step_size * config.sigma_min**2, num_steps=num
        )

    exact = gm.denoising.denoisers.gaussian_mixture(schedule, WEIGHTS, MEANS, VARIANCES)
    learned = functools.partial(model.denoise, params)
    cases = {
        "data": None,
        "annealed Langevin": (annealed, learned),
        "annealed Langevin, exact score": (annealed, exact),
        "Langevin at the lowest level": (plain, learned),
        "probability flow": (gm.denoising.ReverseODE(), learned),
        "probability flow, exact score": (gm.denoising.ReverseODE(), exact),
    }
    rows, drawn = [], {}
    for name, case in cases.items():
        sample = x[: config.num_samples]
        if case is not None:
            sample = run_sampler(case[0], case[1], schedule, stream(key, name), config.num_samples)
        drawn[name] = sample
        nearest = np.argmin(((np.asarray(sample)[:, None] - MEANS[None]) ** 2).sum(-1), 1)
        shares = np.bincount(nearest, minlength=len(WEIGHTS)) / len(sample)
        sems = np.sqrt(shares * (1 - shares) / len(sample))
        rows.append(
            {"samples": name} | {f"mode {i}": gm.lab.with_error(a, b) for i, (a, b) in enumerate(zip(shares, sems, strict=True))}
        )
        metrics |= {f"weight_{i}_{name}": float(share) for i, share in enumerate(shares)}
    rows.append({"samples": "truth"} | {f"mode {i}": f"{w:.4f}" for i, w in enumerate(WEIGHTS)})
    print(gm.lab.text_table(rows))
    print(held)
    (run.folder / "weights.txt").write_text(gm.lab.text_table(rows) + "\n")
    errors = {"E|eps - exact|^2 per dimension": (np.asarray(schedule.sigma(jnp.asarray(held.times))), held.errors)}
    gm.lab.plot.lines(
        run.figure("score_error"), None, errors, xlabel="sigma", ylabel="error", title="error of the score", log=True
    )
    gm.lab.plot.samples(run.figure("samples"), x, drawn["annealed Langevin"], title="annealed Langevin")
    gm.lab.plot.samples(
        run.figure("samples_plain"), x, drawn["Langevin at the lowest level"], title="Langevin at the lowest level alone"
    )
    true = gm.denoising.denoisers.score_fn(exact, schedule)
    fields = {}
    for sigma in (0.5, 5.0):
        t = schedule.time(jnp.asarray(-2.0 * np.log(sigma), jnp.float32))
        for name, fn in (("exact", true), ("learned", score)):
            fields[f"{name}, sigma = {sigma}"] = jax.vmap(functools.partial(fn, t=t))
    gm.lab.plot.vector_fields(run.figure("scores"), fields, x[:1_000], title="scores")
    return metrics


def run_sampler(sampler, denoiser, schedule: gm.denoising.Schedule, key: jax.Array, num: int) -> jax.Array:
    keys = jax.random.split(key)
    start = schedule.prior((2,)).sample({}, keys[0], (num,))
    return jax.jit(vmap_events(lambda key, x: sampler(key, denoiser, schedule, x)))(jax.random.split(keys[1], num), start)


if __name__ == "__main__":
    quick = {"num_steps": 500, "hidden_sizes": (64, 64), "num_langevin": 20, "num_samples": 1_000, "num_train": 5_000}
    gm.lab.main(experiment, Config, quick=quick)
