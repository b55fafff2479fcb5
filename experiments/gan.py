"""A generative adversarial network, and what its critic's estimate of p/q makes of its samples: modes caught, share of good ones.

python -m experiments.gan                            25 Gaussians on a grid
python -m experiments.gan --data eight_gaussians
python -m experiments.gan --data digits              scikit-learn's; modes are classes, by a classifier that is trained here

After the game the critic learns on, of the generator as it is, and is calibrated on held-out data. Samples are then drawn anew,
each way from proposals of the generator alone:

    MH      ends of Metropolis-Hastings chains that begin at samples of the generator
    DRS     discriminator rejection sampling
    SIR     sampling-importance-resampling

A sample of the plane is good within three standard deviations of the nearest mode, one of a digit where the classifier gives some
class at least 0.9.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import rel_entr

import genmod as gm
from experiments.features import Classifier
from genmod import samplers
from genmod.core.keys import stream
from genmod.training import GameStep, Player

LOSSES = {
    "minimax": gm.losses.MINIMAX,
    "non_saturating": gm.losses.NON_SATURATING,
    "least_squares": gm.losses.LEAST_SQUARES,
    "hinge": gm.losses.HINGE,
    "wasserstein": gm.losses.WASSERSTEIN,
}


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["gaussian_grid", "eight_gaussians", "digits"] = "gaussian_grid"
    loss: Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein"] = "non_saturating"
    r1: float | None = None
    """Coefficient of the R1 penalty; None: 0 in the plane, 1 for digits."""
    gradient_penalty: float = 0.0
    """Coefficient of the penalty of Wasserstein networks."""
    spectral_bound: float | None = None
    """Of the kernels of the critic."""
    latent_dim: int | None = None
    """None: 2 in the plane, 16 for digits."""
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    """Of the generator and the critic."""
    num_train: int = 100_000
    """Of points of the plane."""
    num_steps: int = 40_000
    critic_updates: int = 1
    critic_learning_rate: float = 2e-4
    generator_learning_rate: float = 2e-4
    batch_size: int = 256
    num_ratio_steps: int = 4_000
    """Of the critic alone, after the game."""
    num_samples: int = 2_500
    """Of each way."""
    num_chain_steps: int = 400
    num_proposals: int = 50_000
    """Of importance resampling."""
    seed: int = 0


class Problem(NamedTuple):
    """Data in units of the networks, as many modes as there are, how samples are measured and drawn in a figure."""

    train: Any
    validation: Any
    test: Any
    num_modes: int
    measure: Callable[[Any], dict[str, Any]]
    draw: Callable[[Any, dict[str, Any]], None]


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    problem = digits(config, run, key) if config.data == "digits" else plane(config, key)
    gan = network(config, problem.train.shape[1:])
    params = train(config, run, gan, problem, key)
    calibration, score = calibrated(config, gan, params, problem, key)
    found, effort = drawn(config, gan, params, calibration, key)
    found = {"data": problem.test[: config.num_samples]} | found
    lines, metrics = [], {"model": "gan", "data": config.data, "num_params": gm.num_params(params), "calibration_z": score}
    for name, x in found.items():
        measured = problem.measure(np.asarray(x))
        share = measured["good_share"]
        line = {"draws": name, "modes": f"{measured['num_modes']:.0f} of {problem.num_modes}"}
        lines.append(line | {"good": gm.lab.with_error(*share), "KL of shares (nats)": measured["mode_kl_nats"]})
        metrics |= {f"num_modes_{name}": measured["num_modes"], f"mode_kl_nats_{name}": measured["mode_kl_nats"]}
        metrics |= {f"good_share_{name}": share.value, f"good_share_{name}_sem": share.sem}
    print(gm.lab.text_table(lines))
    print(f"calibration: Z = {score:.2f}; accepted: MH {effort['mh_accepted']:.3f}, DRS {effort['drs_accepted']:.3f}")
    problem.draw(run.figure("samples"), found)
    return metrics | effort


def network(config: Config, shape: tuple[int, ...]) -> gm.models.GAN:
    """Perceptrons; images are in [-1, 1]."""
    image = len(shape) > 1
    latent = gm.densities.Normal(((16 if image else 2) if config.latent_dim is None else config.latent_dim,))
    body = gm.nets.MLP(config.hidden_sizes, nn.leaky_relu)
    generator = gm.nets.FlatNet(body, int(np.prod(shape)))
    generator = nn.Sequential((generator, jnp.tanh)) if image else generator
    r1 = (1.0 if image else 0.0) if config.r1 is None else config.r1
    penalties = [(gm.losses.r1_penalty, r1), (gm.losses.gradient_penalty, config.gradient_penalty)]
    return gm.models.GAN(
        shape,
        latent,
        generator,
        gm.nets.FlatNet(body, 1),
        LOSSES[config.loss],
        tuple(gm.call(penalty, coefficient=size) for penalty, size in penalties if size),
        config.spectral_bound,
    )


def train(config: Config, run: gm.lab.Run, gan: gm.models.GAN, problem: Problem, key: jax.Array) -> Any:
    """The game; then the critic alone, beside the averaged generator."""

    def adam(rate, num_steps, end):
        return optax.adam(optax.cosine_decay_schedule(rate, num_steps, end), b1=0.0)

    updates = config.critic_updates
    critic = Player("critic", adam(config.critic_learning_rate, config.num_steps * updates, 0.1), num_updates=updates)
    generator = Player("generator", adam(config.generator_learning_rate, config.num_steps, 0.1), ema_decay=0.999)
    options: dict[str, Any] = {"batch_size": config.batch_size, "validate_every": 500}
    game = gm.fit(
        gan,
        problem.train,
        key=stream(key, "game"),
        step=GameStep(gan, (critic, generator)),
        num_steps=config.num_steps,
        checkpoint=run.checkpoint,
        log=run.log,
        **options,
    )
    alone = Player("critic", adam(config.critic_learning_rate, config.num_ratio_steps, 0.01), ema_decay=0.99)
    ratio = gm.fit(
        gan,
        problem.train,
        key=stream(key, "ratio"),
        step=GameStep(gan, (alone,)),
        params=game.params,
        num_steps=config.num_ratio_steps,
        checkpoint=run.folder / "checkpoint_ratio",
        log=run.log.with_name("log_ratio.jsonl"),
        **options,
    )
    return ratio.params


def calibrated(
    config: Config, gan: gm.models.GAN, params: Any, problem: Problem, key: jax.Array
) -> tuple[samplers.Calibration, float]:
    """The calibration by validation data, and its Z by test data."""

    def judged(x, name):
        samples = gan.sample(params, stream(key, name), len(x))
        return gan.judge(params, x), gan.judge(params, samples)

    calibration = samplers.platt_calibration(*judged(problem.validation, "calibrate"))
    return calibration, float(samplers.calibration_z(*(calibration(d) for d in judged(problem.test, "check"))))


def drawn(
    config: Config, gan: gm.models.GAN, params: Any, calibration: samplers.Calibration, key: jax.Array
) -> tuple[dict[str, Any], dict[str, float]]:
    """(samples of each way by its name, what they cost)."""

    def log_ratio_fn(x):
        return calibration(gan.judge_one(params, x))

    num = config.num_samples
    proposal = samplers.relative_proposal(lambda key: gan.sample_one(params, key))
    start = gan.sample(params, stream(key, "samples"), num)
    kernel = samplers.independence(log_ratio_fn, *proposal)
    move = jax.jit(lambda key, x: samplers.moved(key, kernel, x, num_steps=config.num_chain_steps))
    chains, last = move(stream(key, "chains"), start)
    weighted = samplers.importance_sample(
        stream(key, "weights"), log_ratio_fn, proposal.sample_and_log_prob_fn, config.num_proposals
    )
    accept_fn = samplers.shifted_acceptance(log_ratio_fn, weighted.log_weights)
    kept = samplers.rejection_sample(
        stream(key, "rejection"), accept_fn, proposal.sample_and_log_prob_fn, 0.0, num_draws=num, max_attempts=1_000 * num
    )
    chosen = samplers.sampling_importance_resampling(stream(key, "resample"), weighted, num)
    found = {"raw": start, "MH": chains, "DRS": kept.positions[: int(kept.num_accepted)], "SIR": chosen.positions}
    size = samplers.log_mean(weighted.log_weights).effective_size
    return found, {
        "mh_accepted": float(last.acceptance_rate.mean()),
        "drs_accepted": float(kept.acceptance_rate),
        "sir_effective_share": float(size) / config.num_proposals,
    }


def plane(config: Config, key: jax.Array) -> Problem:
    """A mixture of Gaussians, divided by its standard deviation."""
    data = getattr(gm.data, config.data)(stream(key, "data"), config.num_train)
    toy = gm.data.GaussianGrid() if config.data == "gaussian_grid" else gm.data.EightGaussians()
    centers, scale = toy.centers(), np.std(data.train)

    def draw(path, found):
        panels = {name: tuple(np.asarray(x).T * scale) for name, x in found.items()}
        gm.lab.plot.scatter(path, panels, xlabel="", ylabel="", title=config.data, columns=5)

    train, validation, test = (part / scale for part in (data.train, data.validation, data.test))
    return Problem(train, validation, test, len(centers), lambda x: gm.metrics.mode_coverage(x * scale, centers, toy.sd), draw)


def digits(config: Config, run: gm.lab.Run, key: jax.Array) -> Problem:
    """Digits in [-1, 1], and the classifier that measures them."""
    data = gm.data.images.digits(config.seed)
    assert data.labels is not None
    net = Classifier((256, 32), 17)
    fit = gm.train(
        gm.GradientStep(net, gm.call(optax.adamw, 1e-3, weight_decay=1e-2)),
        net.init(stream(key, "classifier"), jnp.asarray(data.train[0])),
        (jnp.asarray(data.train), jnp.asarray(data.labels.train)),
        key=stream(key, "classify"),
        num_steps=1_000,
        batch_size=128,
        checkpoint=run.folder / "checkpoint_classifier",
    )

    def measure(x):
        logits = jax.vmap(net.logits_one, (None, 0))(fit.params, 8.0 * (jnp.asarray(x) + 1.0))
        probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
        good = probabilities.max(1) >= 0.9
        counts = np.bincount(probabilities.argmax(1)[good], minlength=10)
        kl = float(rel_entr(counts / counts.sum(), 0.1).sum()) if good.any() else float("inf")
        share = gm.metrics.Measured(*map(float, gm.metrics.mean_and_sem(good.astype(float))))
        return {"num_modes": float((counts > 0).sum()), "good_share": share, "mode_kl_nats": kl}

    def draw(path, found):
        rows = [(name, (np.asarray(x[:12]) + 1.0) / 2) for name, x in found.items()]
        gm.lab.plot.images(path, rows, title="digits")

    train, validation, test = (np.asarray(part, np.float32) / 8 - 1 for part in (data.train, data.validation, data.test))
    return Problem(train, validation, test, 10, measure, draw)


if __name__ == "__main__":
    quick = {"data": "eight_gaussians", "num_train": 20_000, "num_steps": 2_000, "num_ratio_steps": 500}
    small = {"num_samples": 1_000, "num_chain_steps": 100, "num_proposals": 10_000}
    gm.lab.main(experiment, Config, quick=quick | small)
