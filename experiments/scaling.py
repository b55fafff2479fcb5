"""Scaling laws of a small Transformer: its loss on held-out text against its parameters N and the tokens D that it has seen.

python -m experiments.scaling                       Shakespeare by characters, from GENMOD_DATA
python -m experiments.scaling --data numbers        random numbers in words, whose entropy is known: the loss ends above it

Every size is trained once for every budget, with a schedule of its own that ends there, on fresh text: at most one pass. N leaves
out embeddings and the layer to the logits. To the validation losses in nats per character are fitted

    L(N, D) = E + A N^-alpha + B D^-beta        (Hoffmann et al. 2022, arXiv:2203.15556, eq. 2), by eq. 3: Huber's loss of log L
    L(N) = a N^-alpha_N, L(D) = b D^-alpha_D    (Kaplan et al. 2020, arXiv:2001.08361, eqs. 1.1 and 1.2), at the largest D and N

Intervals of the first hold 90 % of fits to runs drawn with replacement. The exponents of the others have the standard error of a
slope, which knows nothing of a bend. With C = 6 N D operations the first law spends them best with N in proportion to
C^(beta / (alpha + beta)) (Hoffmann et al., eq. 4). E is an extrapolation to endless N and D.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

import genmod as gm
from experiments.common import adam_with_cosine
from experiments.language import number_in_words
from genmod.core.keys import stream
from genmod.core.statistics import Measured, mean_and_sem
from genmod.data.text import consecutive_windows
from genmod.lab.panels import Curve


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["tiny_shakespeare", "numbers"] = "tiny_shakespeare"
    sizes: tuple[tuple[int, int, int], ...] = ((8, 2, 2), (12, 2, 2), (16, 3, 2), (24, 3, 2), (40, 3, 4), (64, 4, 4))
    """Width, layers and heads of each Transformer."""
    budgets: tuple[int, ...] = (125_000, 250_000, 500_000, 1_000_000)
    """Tokens of training, rounded down to whole batches."""
    window: int = 64
    """Characters that the model sees at most."""
    batch_size: int = 1
    """Windows of a step. One makes the most of few tokens: with four, losses at 250,000 are up to 0.13 nats higher."""
    learning_rate: float = 0.15
    """Peak of Adam's rate times the width; a tenth of the steps warms up, a cosine ends at zero."""
    num_bootstrap: int = 500
    """Fits from which the intervals come."""
    seed: int = 0


class Point(NamedTuple):
    """What one run has found: parameters, tokens, nats per character on the validation text and their standard error."""

    num_params: int
    num_tokens: int
    nats: float
    sem: float


class PowerLaw(NamedTuple):
    """L = floor + sum_k factors[k] x_k^-exponents[k], with one x for each axis of the last two fields."""

    floor: np.ndarray
    factors: np.ndarray
    exponents: np.ndarray

    def __call__(self, *x: Any) -> np.ndarray:
        terms = zip(x, self.factors.T, self.exponents.T, strict=True)
        return sum((factor * np.asarray(x_k, np.float64) ** -exponent for x_k, factor, exponent in terms), self.floor)


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if min(len(set(config.sizes)), len(set(config.budgets))) < 3:
        raise ValueError(f"sizes and budgets must be three different ones each at least, got {config.sizes}, {config.budgets}")
    text, limit = load(config)
    points = []
    for size in sorted(config.sizes, key=lambda size: size[0] ** 2 * size[1]):
        for budget in sorted(config.budgets):
            points.append(train(config, run, text, size, budget))
            print(f"N = {points[-1].num_params:,}, D = {points[-1].num_tokens:,}: {points[-1].nats:.4f} nats per character")
        jax.clear_caches()  # programs of this size alone; a process may map only so many
    num_params, num_tokens, nats, _ = (np.array(column, np.float64) for column in zip(*points, strict=True))
    law = fit_power_law(nats, num_params, num_tokens)
    draws = bootstrap(law, nats, num_params, num_tokens, num=config.num_bootstrap, seed=config.seed)
    largest = num_tokens == num_tokens.max(), num_params == num_params.max()
    lines = fit_line(nats[largest[0]], num_params[largest[0]]), fit_line(nats[largest[1]], num_tokens[largest[1]])
    metrics = measured(points, law, draws, lines)
    tables = gm.lab.text_table(rows(points, law)), gm.lab.text_table(law_rows(metrics, limit))
    report = "\n\n".join([*tables, f"The law is off by {metrics['rms_percent']:.2f} % (rms)."])
    print(f"\n{report}")
    (run.folder / "scaling.txt").write_text(report + "\n")
    draw(run, config.data, points, law)
    return metrics | {"data": config.data} | ({} if limit is None else {"limit_nats": limit})


def load(config: Config) -> tuple[gm.data.CharacterStream, float | None]:
    """The text, and the entropy of a character where it is known."""
    if config.data == "tiny_shakespeare":
        return gm.data.tiny_shakespeare(), None
    words = [number_in_words(n) + "\n" for n in range(10_000)]
    length = sum(map(len, words)) / len(words)
    num = int(1.2 * max(config.budgets) / length) + 100  # a tenth validates, and lengths vary
    drawn = np.random.default_rng(config.seed).integers(0, len(words), num)
    return gm.data.character_stream("".join(words[n] for n in drawn), name="numbers"), float(np.log(len(words)) / length)


def train(config: Config, run: gm.lab.Run, text: gm.data.CharacterStream, size: tuple[int, int, int], budget: int) -> Point:
    """One size, trained for one budget and measured on all of the validation text."""
    length = config.window + 1  # the first character stands for all that came before
    windows = consecutive_windows(text.train, length, overlap=1)
    num_steps = budget // (config.batch_size * config.window)
    if not 0 < num_steps <= len(windows) // config.batch_size:
        most = len(windows) * config.window
        raise ValueError(f"budgets must be of a batch at least and of one pass, {most:,} tokens, at most, got {budget:,}")
    width, num_layers, num_heads = size
    body = gm.nets.CausalTransformer(length, width, num_layers, num_heads)
    model = gm.models.language_model(text.event(length), body, num_features=width)
    name = f"{width}x{num_layers}_{budget}"
    fit = gm.fit(
        model,
        windows,
        key=stream(jax.random.key(config.seed), name),
        optimizer=adam_with_cosine(config.learning_rate / width, num_steps, num_steps // 10),
        clip_norm=1.0,
        num_steps=num_steps,
        batch_size=config.batch_size,
        checkpoint=run.checkpoint / name,
        progress=False,
    )
    held_out = text.validation_windows(length, overlap=1)
    nats = -np.asarray(model.log_prob_steps(fit.params, held_out), np.float64)[:, 1:].mean(1)
    _, of_body, _ = fit.params["net"]
    return Point(gm.num_params(of_body), num_steps * config.batch_size * config.window, *map(float, mean_and_sem(nats)))


# --- laws -------------------------------------------------------------------------------------------------------------------


def fit_power_law(loss: Any, *x: Any, starts: Sequence[PowerLaw] = (), delta: float = 1e-3) -> PowerLaw:
    """The power law E + sum_k A_k x_k^-alpha_k nearest to positive losses (n,), by Huber's loss of the differences of logs.

    Minimises sum_i Huber_delta(logsumexp(log E, log A_k - alpha_k log x_ik) - log loss_i) by L-BFGS from each start and keeps the
    best. Exponents are in 0 .. 10. Where the data want no floor, E ends near 0.

    Args:
      loss: (n,). x: the variables, (n,) each. starts: where searches begin; (): on a grid of floors and exponents.
      delta: beyond it a difference counts as its size, not its square.
    """
    logs, target = np.log(np.stack(x, 1)), np.log(np.asarray(loss, np.float64))
    num, middle = len(x), logs.mean(0)
    centred = logs - middle

    def terms(theta):
        return np.concatenate([np.full((len(target), 1), theta[0]), theta[1 : num + 1] - theta[num + 1 :] * centred], 1)

    def objective(theta):
        total = np.asarray(logsumexp(terms(theta), axis=1))
        off, shares = total - target, np.exp(terms(theta) - total[:, None])
        slopes = np.concatenate([shares, -shares[:, 1:] * centred], 1)
        # In units of delta: the search ends by the size of its gradient, and must not end early.
        return huber(delta, off).sum() / delta, np.clip(off / delta, -1, 1) @ slopes

    # Of E and of the exponents; few runs, drawn again and again, may leave them open.
    bounds = [(target.min() - 25, None), *[(None, None)] * num, *[(0, 10)] * num]

    def search(start: PowerLaw):
        theta = np.concatenate([[np.log(start.floor)], np.log(start.factors) - start.exponents * middle, start.exponents])
        options = {"maxiter": 5_000, "maxfun": 10_000, "ftol": 1e-13, "gtol": 1e-8}
        return minimize(objective, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    found = min(map(search, starts or _grid(np.exp(target), middle)), key=lambda found: found.fun).x
    floor, factors, exponents = found[0], found[1 : num + 1], found[num + 1 :]
    return PowerLaw(np.exp(floor), np.exp(factors + exponents * middle), exponents)


def _grid(loss: np.ndarray, middle: np.ndarray) -> list[PowerLaw]:
    """Laws of several floors and exponents, all near the mean loss in the middle of the data."""
    starts = []
    for share, *exponents in itertools.product((0.3, 0.6, 0.9), *[(0.2, 0.5, 1.0)] * len(middle)):
        floor = share * loss.min()
        factors = (loss.mean() - floor) / len(middle) * np.exp(np.array(exponents) * middle)
        starts.append(PowerLaw(floor, factors, np.array(exponents)))
    return starts


def bootstrap(law: PowerLaw, loss: Any, *x: Any, num: int, seed: int) -> PowerLaw:
    """`num` laws of runs drawn with replacement; the fields have a leading axis. Searches begin at the law of all runs."""
    starts = law, law._replace(floor=0.6 * loss.min())  # near a floor of 0 the objective is flat
    chosen = np.random.default_rng(seed).integers(0, len(loss), (num, len(loss)))
    laws = [fit_power_law(loss[rows], *(x_k[rows] for x_k in x), starts=starts) for rows in chosen]
    return PowerLaw(*map(np.stack, zip(*laws, strict=True)))


def fit_line(loss: Any, x: Any) -> tuple[float, Measured]:
    """(c, a) of loss = c x^-a by least squares of log loss on log x, (n,) each; a with the standard error of a slope."""
    (slope, intercept), covariance = np.polyfit(np.log(x), np.log(loss), 1, cov=True)
    return float(np.exp(intercept)), Measured(float(-slope), float(np.sqrt(covariance[0, 0])))


# --- results ----------------------------------------------------------------------------------------------------------------


def measured(points: list[Point], law: PowerLaw, draws: PowerLaw, lines: tuple[tuple[float, Measured], ...]) -> dict[str, Any]:
    """All numbers by name."""
    metrics: dict[str, Any] = {"model": "scaling"}
    for num_params, num_tokens, nats, sem in points:
        metrics |= {f"nats_{num_params}_{num_tokens}": nats, f"nats_{num_params}_{num_tokens}_sem": sem}
    for name, value, drawn in zip(("E", "A", "alpha", "B", "beta", "share"), numbers(law), numbers(draws), strict=True):
        low, high = np.quantile(drawn, [0.05, 0.95])
        metrics |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    for name, (factor, exponent) in zip("ND", lines, strict=True):
        metrics |= {f"line_{name}_factor": factor, f"line_{name}": exponent.value, f"line_{name}_sem": exponent.sem}
    off = [np.log(law(p.num_params, p.num_tokens) / p.nats) for p in points]
    return metrics | {"rms_percent": float(100 * np.sqrt(np.mean(np.square(off))))}


def numbers(law: PowerLaw) -> tuple[np.ndarray, ...]:
    """E, A, alpha, B, beta, and beta / (alpha + beta), of one law or of many."""
    (a, b), (alpha, beta) = law.factors.T, law.exponents.T
    return law.floor, a, alpha, b, beta, beta / (alpha + beta)


def rows(points: list[Point], law: PowerLaw) -> list[dict[str, Any]]:
    """The table of runs."""
    return [
        {
            "parameters N": f"{p.num_params:,}",
            "tokens D": f"{p.num_tokens:,}",
            "validation nats": gm.lab.with_error(p.nats, p.sem),
            "law": f"{law(p.num_params, p.num_tokens):.4f}",
        }
        for p in points
    ]


def law_rows(metrics: dict[str, Any], limit: float | None) -> list[dict[str, Any]]:
    """The table of the laws."""
    table = []
    labels = {"E": "E", "A": "A", "alpha": "alpha", "B": "B", "beta": "beta", "share": "beta / (alpha + beta)"}
    for name, label in labels.items():
        style = ".3g" if name in "AB" else ".3f"
        value, low, high = (f"{metrics[entry]:{style}}" for entry in (name, f"{name}_low", f"{name}_high"))
        table.append({"number": label, "value": value, "error": f"{low} to {high}"})
    if limit is not None:
        table.append({"number": "entropy of a character", "value": f"{limit:.4f}", "error": "exact"})
    for name in "ND":
        value, sem = metrics[f"line_{name}"], metrics[f"line_{name}_sem"]
        law = f"L({name}) = {metrics[f'line_{name}_factor']:.3f} {name}^-alpha_{name}: alpha_{name}"
        table.append({"number": law, "value": f"{value:.4f}", "error": f"+- {sem:.4f}"})
    return table


def draw(run: gm.lab.Run, data: str, points: list[Point], law: PowerLaw) -> None:
    """Losses and the law: against tokens, by size, and against parameters, by budget."""
    panels: dict[str, list[Curve]] = {}
    for label, x, by in (("training tokens D", 1, 0), ("parameters N, without embeddings", 0, 1)):
        ends = [p[x] for p in points]
        dense = np.geomspace(min(ends) / 1.2, max(ends) * 1.2, 100)
        curves = panels.setdefault(label, [])
        for value in sorted({p[by] for p in points}):
            name = f"{'ND'[by]} = {value:,}"
            own = [p for p in points if p[by] == value]
            curves.append(Curve(name, [p[x] for p in own], [p.nats for p in own], style="o"))
            curves.append(Curve(name, dense, law(dense, value) if by else law(value, dense)))
    (a, b), (alpha, beta) = law.factors, law.exponents
    title = f"{data}: L = {law.floor:.2f} + {a:.3g} N^-{alpha:.2f} + {b:.3g} D^-{beta:.2f}"
    gm.lab.panels.log_log(run.figure("scaling"), panels, ylabel="validation nats per character", title=title)


if __name__ == "__main__":
    small = {"sizes": ((8, 1, 1), (16, 1, 1), (24, 1, 2)), "budgets": (16_000, 32_000, 64_000), "num_bootstrap": 100}
    gm.lab.main(experiment, Config, quick={"data": "numbers", **small})
