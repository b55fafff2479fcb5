"""Sparse logistic regression with a horseshoe prior: a factorised Gaussian, flows and NUTS on the same posterior.

    y_i ~ Bernoulli(s(b + x_i . beta)),  beta_j = z_j l_j t,  z_j ~ N(0, 1),  l_j, t ~ half-Cauchy(0, 1),  b ~ N(0, 10^2)

over (z, log l, log t, b), 2 d + 2 numbers (Carvalho et al. 2010, 10.1093/biomet/asq017; as a test of flows Andrade 2024,
arXiv:2402.16408, sec. 5). Reported: ELBO and k-hat, the log-likelihood and accuracy on held-out rows, the genes that are kept,
and how far the marginals are from those of NUTS. Figure: the largest coefficients.

python -m experiments.horseshoe                        200 genes of the colon data, microarray/microarray.npz in GENMOD_DATA
python -m experiments.horseshoe --num-genes 2000       all genes, D = 4002
Without the file: a synthetic problem whose coefficients are known. NUTS is that of BlackJAX (`pip install blackjax`).
"""

import dataclasses
import functools
import importlib
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy import stats
from scipy.special import expit, log_expit, logsumexp

import genmod as gm
from genmod.core.keys import stream
from genmod.data.files import data_file, read
from genmod.densities import Factorized, LearnedStudentT, NormalHead

INTERCEPT_SCALE = 10.0


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["colon", "synthetic"] = "colon"
    num_genes: int = 200
    """Those of largest variance; 2000 are all."""
    num_test: int = 20
    """Rows held out, in the proportion of the classes."""
    num_steps: int = 6_000
    """Of each fit."""
    num_samples: int = 64
    """Draws of q for a step."""
    learning_rate: float = 2e-3
    """Of the flows, falling to zero along a cosine."""
    mean_field_learning_rate: float = 1e-2
    """That of the factorised Gaussian."""
    bases: tuple[Literal["normal", "student"], ...] = ("normal", "student")
    """Of the flows, one for each: a normal law, or Student laws whose tails are learned."""
    num_layers: int = 16
    hidden_size: int = 128
    num_report: int = 10_000
    num_chains: int = 4
    """Of NUTS; 0: none."""
    num_warmup: int = 2_000
    num_chain_draws: int = 4_000
    """Kept of each chain."""
    seed: int = 0


class Problem(NamedTuple):
    """Rows to fit and rows held out, scaled, with their classes in {0, 1}; the true coefficients where they are known."""

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    genes: np.ndarray  # their columns in the data
    truth: np.ndarray | None = None


class Found(NamedTuple):
    """What one method leaves: draws of the posterior, (n, 2 d + 2), numbers about them, and CPU seconds."""

    draws: np.ndarray
    figures: dict[str, float]
    seconds: float


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key, problem = jax.random.key(config.seed), load(config)
    target = functools.partial(log_joint, x=jnp.asarray(problem.x), y=jnp.asarray(problem.y))
    dim = 2 * problem.x.shape[1] + 2
    print(f"{problem.name}: {len(problem.y)} rows, {problem.x.shape[1]} features, D = {dim}, {len(problem.y_test)} rows held out")
    mean_field = Factorized(NormalHead(), (dim,))
    found = {"mean field": fit_one(config, target, mean_field, stream(key, "mean field"), config.mean_field_learning_rate)}
    start = found["mean field"].draws[:1_000]
    for base in config.bases:
        found[f"flow, {base} base"] = fit_one(
            config, target, build(config, dim, base), stream(key, base), config.learning_rate, start
        )
    if (reference := nuts(config, target, stream(key, "nuts"), start)) is not None:
        found = {"NUTS": reference} | found
    metrics, rows = {"data": problem.name, "dim": dim}, []
    for name, each in found.items():
        figures = each.figures | predictive(problem, each.draws) | selection(problem, each.draws)
        figures |= {} if reference is None else agreement(each.draws, reference.draws, each is reference)
        rows.append(row(name, figures, each.seconds))
        metrics |= {f"{name.lower().replace(',', '').replace(' ', '_')}_{label}": value for label, value in figures.items()}
    print(gm.lab.text_table(rows))
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    draw(run, problem, found)
    return metrics


def load(config: Config) -> Problem:
    """The data, split by the seed."""
    rng = np.random.default_rng(config.seed)
    if config.data == "colon":
        try:
            arrays, _ = read(data_file("microarray/microarray.npz"))
            return scaled("colon", arrays["colon_x"].astype(np.float64), arrays["colon_y"], config, rng)
        except FileNotFoundError as missing:
            print(f"synthetic data instead of colon, at most 50 features: {missing}")
    num = min(config.num_genes, 50)
    truth = np.where(np.arange(num) < 5, 4.0 * (-1.0) ** np.arange(num), 0.0)
    x = rng.standard_normal((80 + config.num_test, num))
    y = (rng.random(len(x)) < expit(x @ truth)).astype(np.uint8)
    return scaled("synthetic", x, y, config, rng, truth)


def scaled(name: str, x: np.ndarray, y: np.ndarray, config: Config, rng: np.random.Generator, truth=None) -> Problem:
    """A split with the features of largest variance, less their medians and over their interquartile ranges, of the rows to fit.

    Raises ValueError for a number of rows to hold out that leaves one of the parts without both classes.
    """
    classes = [rng.permutation(np.flatnonzero(y == label)) for label in (0, 1)]
    held = [round(config.num_test * len(rows) / len(y)) for rows in classes]
    if not all(1 <= num < len(rows) for num, rows in zip(held, classes, strict=True)):
        raise ValueError(f"num_test must leave rows of both classes on either side, got {config.num_test} of {len(y)}")
    test = np.concatenate([rows[:num] for num, rows in zip(held, classes, strict=True)])
    train = np.concatenate([rows[num:] for num, rows in zip(held, classes, strict=True)])
    genes = np.sort(np.argsort(-x[train].var(0), kind="stable")[: config.num_genes])
    low, middle, high = np.quantile(x[train][:, genes], [0.25, 0.5, 0.75], axis=0)
    x = ((x[:, genes] - middle) / (high - low)).astype(np.float32)
    truth = None if truth is None else (truth[genes] * (high - low)).astype(np.float32)
    return Problem(name, x[train], y[train], x[test], y[test], genes, truth)


def log_joint(position: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """log p(y, z, log l, log t, b | x) of ONE position. The log of a half-Cauchy number has the density sech(a) / pi."""
    z, scales, intercept = position[: x.shape[1]], position[x.shape[1] : -1], position[-1]
    logits = intercept + jnp.matmul(x, z * jnp.exp(scales[:-1] + scales[-1]), precision="highest")
    log_likelihood = jax.nn.log_sigmoid(jnp.where(y == 1, logits, -logits)).sum()
    log_scales = jnp.log(2 / jnp.pi) - jnp.logaddexp(scales, -scales)
    return log_likelihood + stats.norm.logpdf(z).sum() + log_scales.sum() + stats.norm.logpdf(intercept, 0.0, INTERCEPT_SCALE)


def coefficients(draws: np.ndarray) -> np.ndarray:
    """beta of draws of the posterior, (n, d)."""
    num = draws.shape[1] // 2 - 1
    return draws[:, :num] * np.exp(draws[:, num : 2 * num] + draws[:, 2 * num : 2 * num + 1])


def build(config: Config, dim: int, base: str) -> gm.models.Flow:
    """A RealNVP of softly clipped scales and LOFT, started where the factorised Gaussian ended."""
    law, sizes = LearnedStudentT((dim,)) if base == "student" else None, (config.hidden_size,)
    return gm.flows.stable_real_nvp((dim,), config.num_layers, hidden_sizes=sizes, base=law, seed=config.seed)


def fit_one(config: Config, target, law, key, learning_rate: float, start=None) -> Found:
    """The fit by the reverse KL, and draws of it."""
    begun = time.process_time()
    fit, report = gm.inference.fit_posterior(
        target,
        law,
        key=key,
        start=start,
        optimizer=optax.adam(optax.cosine_decay_schedule(learning_rate, config.num_steps)),
        num_steps=config.num_steps,
        num_samples=config.num_samples,
        clip_norm=10.0,
        max_skips=10,
        num_report=config.num_report,
    )
    seconds = time.process_time() - begun
    draws = np.asarray(law.sample(fit.params, stream(key, "draws"), 4_000), np.float64)
    names = {"elbo": "elbo_nats", "elbo_sem": "elbo_nats_sem", "log_evidence": "log_evidence_nats", "k_hat": "k_hat"}
    return Found(draws, {label: float(getattr(report, name)) for name, label in names.items()}, seconds)


def nuts(config: Config, target, key, start: np.ndarray) -> Found | None:
    """Chains of BlackJAX's NUTS with step size and scales of one adapted chain; None, with the reason printed, without them."""
    try:
        blackjax = importlib.import_module("blackjax")  # an optional extra
    except ImportError:
        print("no NUTS: BlackJAX is not installed; pip install blackjax")
        return None
    if config.num_chains == 0:
        print("no NUTS: num_chains is 0")
        return None
    begun, starts = time.process_time(), jnp.asarray(start[: config.num_chains + 1], jnp.float32)
    warmup = blackjax.window_adaptation(blackjax.nuts, target, target_acceptance_rate=0.9)
    (_, adapted), _ = jax.jit(functools.partial(warmup.run, num_steps=config.num_warmup))(stream(key, "warmup"), starts[-1])
    kernel = blackjax.nuts(target, **adapted)
    chains, infos = [], []
    for i in range(config.num_chains):
        options = {"num_steps": config.num_chain_draws, "burn_in": config.num_warmup // 4}
        trace = gm.samplers.run(stream(key, "chain", i), kernel, kernel.init(starts[i]), **options)
        chains.append(np.asarray(trace.positions, np.float64))
        infos.append((float(trace.infos.is_divergent.mean()), float(trace.infos.num_integration_steps.mean())))
    seconds, draws = time.process_time() - begun, np.stack(chains)
    r_hat, size = blackjax.diagnostics.potential_scale_reduction(draws), blackjax.diagnostics.effective_sample_size(draws)
    divergent, num_gradients = np.mean(infos, 0)
    figures = {"largest_r_hat": float(np.max(r_hat)), "smallest_effective_size": float(np.min(size))}
    figures |= {"share_divergent": float(divergent), "gradients_per_draw": float(num_gradients)}
    return Found(draws.reshape(-1, draws.shape[-1]), figures, seconds)


def predictive(problem: Problem, draws: np.ndarray) -> dict[str, float]:
    """The log of the posterior mean of p(y | x) on the held-out rows, nats per row, and the share of right classes."""
    logits = draws[:, -1:] + coefficients(draws) @ problem.x_test.T
    log_prob = logsumexp(log_expit(np.where(problem.y_test == 1, logits, -logits)), axis=0) - np.log(len(draws))
    mean, sem = gm.metrics.mean_and_sem(log_prob)
    right = float((log_prob > np.log(0.5)).mean())
    return {"test_log_prob_nats": float(mean), "test_log_prob_nats_sem": float(sem), "accuracy": right}


def selection(problem: Problem, draws: np.ndarray) -> dict[str, int]:
    """How many coefficients are kept, those whose middle 80% leaves zero out; where the truth is known, how many rightly."""
    low, high = np.quantile(coefficients(draws), [0.1, 0.9], axis=0)
    kept = (low > 0) | (high < 0)
    found = {"num_selected": int(kept.sum())}
    return found if problem.truth is None else found | {"num_rightly_selected": int((kept & (problem.truth != 0)).sum())}


def agreement(draws: np.ndarray, reference: np.ndarray, same: bool) -> dict[str, float]:
    """The marginals of z, log l, log t and b beside those of the reference: their means, rms in its standard deviations, and the
    median ratio of the standard deviations. Coefficients themselves have tails too heavy for either.

    Of the reference itself: the first half of its draws, which are other chains, beside the second.
    """
    if same:
        draws, reference = np.split(reference[: len(reference) // 2 * 2], 2)
    error = (draws.mean(0) - reference.mean(0)) / reference.std(0)
    ratio = np.median(draws.std(0) / reference.std(0))
    return {"rms_mean_error": float(np.sqrt(np.mean(error**2))), "width_ratio": float(ratio)}


def row(name: str, figures: dict[str, float], seconds: float) -> dict[str, Any]:
    """One line of the table."""

    def cell(label: str, with_sem: bool = False) -> str:
        if label not in figures:
            return ""
        return gm.lab.with_error(figures[label], figures[f"{label}_sem"]) if with_sem else f"{figures[label]:.4g}"

    line = {"method": name, "ELBO (nats)": cell("elbo_nats", True), "log Z by weights": cell("log_evidence_nats")}
    line |= {"k-hat": cell("k_hat"), "test log p (nats)": cell("test_log_prob_nats", True), "accuracy": cell("accuracy")}
    right = f", {figures['num_rightly_selected']} right" if "num_rightly_selected" in figures else ""
    line |= {"kept": f"{figures['num_selected']}{right}"}
    line |= {"error of means": cell("rms_mean_error"), "width": cell("width_ratio")}
    line |= {"largest R-hat": cell("largest_r_hat"), "least ESS": cell("smallest_effective_size")}
    return line | {"CPU s": f"{seconds:.0f}"}


def draw(run: gm.lab.Run, problem: Problem, found: dict[str, Found]) -> None:
    """The twelve coefficients that are largest beside the width of their 95% interval by any of the methods."""
    samples = {name: coefficients(each.draws) for name, each in found.items()}
    ends = {name: np.quantile(each, [0.025, 0.5, 0.975], axis=0) for name, each in samples.items()}
    size = np.max([np.abs(middle) / (high - low) for low, middle, high in ends.values()], axis=0)
    top = np.argsort(-size)[:12]
    gm.lab.plot.intervals(
        run.figure("coefficients"),
        {name: each[:, top] for name, each in samples.items()},
        [f"gene {gene}" for gene in problem.genes[top]],
        xlabel="coefficient per interquartile range (linear within 1, logarithmic beyond)",
        title=f"{problem.name}, {problem.x.shape[1]} features: the largest coefficients",
        linear=1.0,
    )


QUICK = {"num_genes": 50, "num_steps": 1_500, "num_layers": 8, "hidden_size": 64, "num_warmup": 400, "num_chain_draws": 300}

if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick=QUICK)
