"""Posteriors of simulators whose true posterior is known, learned from simulations alone: flows, likelihoods, ratios.

python -m experiments.simulation_inference                              two moons
python -m experiments.simulation_inference --simulator linear_gaussian
python -m experiments.simulation_inference --simulator queue

    npe     a conditional flow of theta given x
    nle     a conditional law of x given theta, times the prior; draws by a tempered population
    nre     a classifier of pairs, as log p(x | theta) / p(x), times the prior; draws likewise

C2ST is the accuracy with which a classifier tells draws from those of the true posterior (1/2: it cannot), in the mean over
observations of which training knows nothing. Ranks of the true theta among draws, over more observations, are uniform where a
method is calibrated; coverage is that of the regions of highest density.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod import metrics as measures
from genmod.core.checks import check
from genmod.core.keys import stream
from genmod.densities import LinearGaussianSimulator, QueueSimulator, Simulator, TwoMoonsSimulator
from genmod.lab.panels import Curve

SIMULATORS: dict[str, Simulator] = {
    "linear_gaussian": LinearGaussianSimulator(),
    "two_moons": TwoMoonsSimulator(),
    "queue": QueueSimulator(),
}
# Members of a population for ranks, and the draws that are taken of it: one of each few, so that they are nearly independent.
NUM_MEMBERS, NUM_RANKED = 297, 99
LEVELS = (0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Config:
    simulator: Literal["linear_gaussian", "two_moons", "queue"] = "two_moons"
    methods: tuple[Literal["npe", "nle", "nre"], ...] = ("npe", "nle", "nre")
    num_simulations: int = 10_000
    """A tenth of them is kept for validation."""
    num_steps: int = 8_000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 256
    num_layers: int = 6
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Of the flows."""
    ratio_hidden_sizes: tuple[int, ...] = (128, 128, 128)
    num_observations: int = 10
    """For C2ST, with num_draws of each posterior."""
    num_draws: int = 1_000
    num_ranked: int = 300
    """Observations for ranks and coverage."""
    seed: int = 0


class Learned(NamedTuple):
    """A posterior that was learned: its fit, the number of its parameters, its draws and log q."""

    fit: gm.Fit
    num_params: int
    draw: Callable[[Any, Any, int], Any]  # (key, x (n, ...), num) -> (n, num) + theta
    log_q: Callable[[Any, Any], Any]  # (theta (n, num) + theta, x (n, ...)) -> (n, num), up to a function of x


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    check_config(config)
    key, simulator = jax.random.key(config.seed), SIMULATORS[config.simulator]
    theta, x = simulations(simulator, stream(key, "simulations"), config.num_simulations)
    observed = simulations(simulator, stream(key, "observations"), config.num_observations)[1]
    ranked = simulations(simulator, stream(key, "ranked"), config.num_ranked)
    truth = np.moveaxis(np.asarray(simulator.posterior.sample({}, stream(key, "truth"), config.num_draws, observed)), 1, 0)
    found: dict[str, Any] = {"metrics": {"model": "simulation_inference", "simulator": config.simulator}, "rows": []}
    panels, ranks_of = {"true posterior": truth[0].T[:2]}, {}
    for method in config.methods:
        learned = METHODS[method](config, simulator, theta, x, key, run)
        draws = np.asarray(learned.draw(stream(key, method, 0), observed, config.num_draws))
        panels[method] = draws[0].T[:2]
        metrics, ranks = measured(config, method, learned, draws, truth, ranked, key)
        ranks_of[method] = ranks[:, 0]
        found["metrics"] |= {f"{name}_{method}": value for name, value in metrics.items()}
        found["rows"].append(row(method, metrics))
    print(gm.lab.text_table(found["rows"]))
    gm.lab.plot.scatter(
        run.figure("posterior"),
        panels,
        xlabel="theta_1",
        ylabel="theta_2",
        title=f"{config.simulator}, draws given one x",
        like="true posterior",
    )
    draw_ranks(run.figure("ranks"), config, ranks_of)
    return found["metrics"]


def check_config(config: Config) -> None:
    """Raises ValueError, before anything is trained, for what would end the run only after that."""
    names = config.methods
    check(0 < len(names) == len(set(names)), f"--methods must name at least one, and none twice, got {' '.join(names) or 'none'}")
    check(config.learning_rate > 0, f"--learning-rate must be > 0, got {config.learning_rate}")
    # A tenth is for validation; an error of the mean wants two; C2ST has five folds; the test of uniformity two bins of five.
    least = {"num_simulations": 10, "num_observations": 2, "num_draws": 5, "num_ranked": 10, "num_steps": 1, "batch_size": 1}
    for name, number in least.items():
        given = getattr(config, name)
        check(given >= number, f"--{name.replace('_', '-')} must be at least {number}, got {given}")


def draw_ranks(path: Any, config: Config, ranks_of: dict[str, np.ndarray]) -> None:
    """The distribution functions of ranks less that of uniform ones, and the band of Kolmogorov and Smirnov."""
    rank, zeros = np.arange(NUM_RANKED + 1), np.zeros(NUM_RANKED + 1)
    band = zeros + 1.358 / np.sqrt(config.num_ranked)
    panel = [Curve("95 % of uniform ranks", rank, zeros, -band, band)]
    for name, ranks in ranks_of.items():
        panel.append(Curve(name, rank, rank_excess(ranks, NUM_RANKED)))
    title = f"{config.simulator}, ranks of theta_1 among {NUM_RANKED} draws"
    gm.lab.panels.curves(path, {title: panel}, xlabel="rank", ylabel="distribution function\nless the uniform one")


def rank_excess(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """The share of ranks that are at most r, less (r + 1) / (num_draws + 1), for r = 0 .. num_draws."""
    share = np.bincount(ranks, minlength=num_draws + 1).cumsum() / len(ranks)
    return share - (np.arange(num_draws + 1) + 1) / (num_draws + 1)


def simulations(simulator: Simulator, key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Pairs (theta, x), x as real numbers."""
    theta = simulator.prior.sample({}, stream(key, "prior"), num)
    return theta, simulator.sample({}, stream(key, "simulator"), (), theta).astype(float)


def measured(
    config: Config, method: str, learned: Learned, draws: np.ndarray, truth: np.ndarray, ranked: Any, key: jax.Array
) -> tuple[dict[str, Any], np.ndarray]:
    """(metrics of a method, the ranks of each coordinate of theta)."""
    seeds = config.seed * config.num_observations + np.arange(config.num_observations)
    pairs = zip(draws, truth, seeds.tolist(), strict=True)
    scores = np.array([measures.c2st(own, true, seed=seed).value for own, true, seed in pairs])
    theta, x = ranked
    drawn = learned.draw(stream(key, method, 1), x, NUM_RANKED)
    ranks = measures.calibration_ranks(theta, drawn, seed=config.seed)
    both = jnp.concatenate([theta[:, None], drawn], 1)
    log_q = np.asarray(learned.log_q(both, x))
    by_density = measures.calibration_ranks(log_q[:, 0], log_q[:, 1:], seed=config.seed)
    coverage = measures.credible_coverage(by_density, NUM_RANKED, LEVELS)
    p_values = measures.rank_uniformity(ranks, NUM_RANKED).p_value
    metrics: dict[str, Any] = {"num_params": learned.num_params, "c2st": float(scores.mean())}
    metrics |= {"c2st_sem": float(scores.std(ddof=1) / np.sqrt(len(scores))), "c2st_worst": float(scores.max())}
    # The least of D p-values is itself a p-value once it is corrected for their number (Sidak).
    metrics |= {"rank_p_value": float(-np.expm1(len(p_values) * np.log1p(-p_values.min())))}
    metrics |= {"density_p_value": float(measures.rank_uniformity(by_density, NUM_RANKED).p_value)}
    for level, share in zip(LEVELS, coverage, strict=True):
        metrics |= {f"coverage_{round(100 * level)}": share.value, f"coverage_{round(100 * level)}_sem": share.sem}
    return metrics, ranks


def row(method: str, metrics: dict[str, Any]) -> dict[str, Any]:
    covered = {
        f"coverage of {level:.0%}": gm.lab.with_error(*(metrics[f"coverage_{round(100 * level)}{end}"] for end in ("", "_sem")))
        for level in LEVELS
    }
    line = {"method": method, "parameters": metrics["num_params"]}
    line |= {"C2ST": gm.lab.with_error(metrics["c2st"], metrics["c2st_sem"]), "worst": metrics["c2st_worst"]}
    return line | {"p of ranks": metrics["rank_p_value"], "p of density ranks": metrics["density_p_value"]} | covered


def trained(config: Config, run: gm.lab.Run, name: str, model: gm.Model, rows: gm.Batch, key: jax.Array) -> gm.Fit:
    """A model fitted to all but a tenth of the rows, by validation on that tenth."""
    num = config.num_simulations - config.num_simulations // 10
    train, validation = (jax.tree.map(lambda leaf, part=part: leaf[part], rows) for part in (slice(num), slice(num, None)))
    return gm.fit(
        model,
        train,
        key=stream(key, name),
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps, 200, config.weight_decay),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=validation,
        clip_norm=5.0,
        checkpoint=run.folder / f"checkpoint_{name}",
        log=run.log.with_name(f"log_{name}.jsonl"),
    )


def npe(config: Config, simulator: Simulator, theta: Any, x: Any, key: jax.Array, run: gm.lab.Run) -> Learned:
    """A spline flow of theta, on the box of the prior where that has one."""
    low, high = simulator.prior.support or (-np.inf, np.inf)
    support = ((low, high),) * theta.shape[1] if np.isfinite(high - low) else None
    options: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "activation": nn.silu}
    flow = gm.flows.neural_spline_flow(
        theta.shape[1:], config.num_layers, context_shape=x.shape[1:], support=support, seed=config.seed, **options
    )
    fit = trained(config, run, "npe", flow, gm.Batch(theta, x), key)

    def draw(key, x, num):
        return jnp.moveaxis(flow.sample(fit.params, key, num, x), 1, 0)

    return Learned(fit, gm.num_params(fit.params), draw, lambda theta, x: flow.log_prob(fit.params, theta, x[:, None]))


def nle(config: Config, simulator: Simulator, theta: Any, x: Any, key: jax.Array, run: gm.lab.Run) -> Learned:
    """A law of x given theta: a spline flow of real x, a recurrent network of integers."""
    if isinstance(simulator.event, gm.Real):
        options: dict[str, Any] = {"hidden_sizes": config.hidden_sizes, "activation": nn.silu, "seed": config.seed}
        law: Any = gm.flows.neural_spline_flow(x.shape[1:], config.num_layers, context_shape=theta.shape[1:], **options)
    else:
        num: int = simulator.event.num_levels  # type: ignore[attr-defined]
        cell = gm.nets.Recurrent(nn.GRUCell(config.hidden_sizes[0]))
        net, head = gm.nets.token_net(cell, num, num, conditional=True), gm.densities.CategoricalHead(num)
        law = gm.models.AutoregressiveModel(simulator.event, net, head, context_shape=theta.shape[1:])
        x = x.astype(simulator.event.dtype)  # type: ignore[attr-defined]
    fit = trained(config, run, "nle", law, gm.Batch(x, theta), key)
    posterior = gm.models.LikelihoodPosterior(simulator.prior, law)
    return by_population(fit, posterior, {"prior": {}, "model": fit.params})


def nre(config: Config, simulator: Simulator, theta: Any, x: Any, key: jax.Array, run: gm.lab.Run) -> Learned:
    network = gm.nets.FlatNet(gm.nets.MLP(config.ratio_hidden_sizes, nn.silu), 1)
    posterior = gm.models.RatioEstimator(simulator.prior, network, x.shape[1:])
    fit = trained(config, run, "nre", posterior, gm.Batch(theta, x), key)
    return by_population(fit, posterior, fit.params)


def by_population(fit: gm.Fit, posterior: gm.models.BayesPosterior, params: Any) -> Learned:
    """A posterior known up to a constant; of a population for ranks only every third member is taken."""

    def draw(key, x, num):
        members = NUM_MEMBERS if num == NUM_RANKED else num
        found = posterior.population(params, key, x, members)
        if not bool((found.level == 1).all()):
            raise RuntimeError(f"the population did not arrive at its posterior for {int((found.level < 1).sum())} of {len(x)} x")
        return found.positions[:, :: members // num]

    def log_q(theta, x):
        return posterior.log_prob(params, theta, x[:, None])

    return Learned(fit, gm.num_params(fit.params), draw, log_q)


METHODS = {"npe": npe, "nle": nle, "nre": nre}

if __name__ == "__main__":
    small = {"num_simulations": 2_000, "num_steps": 300, "num_layers": 3, "num_observations": 2, "num_draws": 300}
    gm.lab.main(experiment, Config, quick=small | {"num_ranked": 60, "hidden_sizes": (32, 32)})
