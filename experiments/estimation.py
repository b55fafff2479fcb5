"""Estimation theory by simulation, beside what is known: bounds on variances, priors that fade, draws that are kept or weighted.

python -m experiments.estimation

Cramer-Rao: the variance of estimators over the number of data, divided by the least that an unbiased one can have. The mean of a
Gaussian sample is efficient and its median needs pi / 2 times as many data in the limit; of a Laplace sample the median is
efficient in the limit and the mean needs twice as many; 1 / mean of an exponential sample is at n^3 / ((n - 1)^2 (n - 2)).

MAP to MLE: root-mean-square errors of the masses of categories with and without a Dirichlet prior. The two estimates differ by
O(1 / n), and both err by O(1 / sqrt n).

Rejection: Beta(2, 5) from U(0, 1) with the bound M. The share 1 / M is accepted, .406901 at best; below the mode's 2.4576 the
draws are wrong, and the sampler says so.

Importance: N(5, 1) by draws of N(0, s^2). ESS / N tends to 1 / (1 + chi^2): 1.39e-11, .105272 and .164591 for s = 1, 3 and 6.
What is observed in few draws is far above that where the proposal never visits the target; k-hat warns.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from genmod.core.keys import stream
from genmod.inference import ChiSquare, ClosedForm, Law, Quadrature, cramer_rao, discrepancy, fisher_information
from genmod.models import dirichlet_map
from genmod.samplers import importance_report, importance_sample, proposal_of, rejection_sample, self_normalized_mean

BEST_BOUND = 2.4576  # the density of Beta(2, 5) at its mode, .2


@dataclasses.dataclass(frozen=True)
class Config:
    sizes: tuple[int, ...] = (5, 10, 20, 50, 100, 200, 500)
    """Numbers of data of one estimate; the variance of 1 / mean is finite from 3 on."""
    num_repeats: int = 20_000
    """Sets of data of each size."""
    num_categories: int = 20
    concentration: float = 2.0
    """Of the Dirichlet prior."""
    num_accepted: int = 100_000
    """Draws by rejection for each bound."""
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0)
    """s of the proposal."""
    num_draws: int = 1_000
    num_studies: int = 100
    """Runs of importance sampling for each scale."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    metrics = efficiency(config, run, stream(key, "efficiency"))
    metrics |= fading_prior(config, run, stream(key, "prior"))
    metrics |= rejection(config, run, stream(key, "rejection"))
    return metrics | importance(config, run, stream(key, "importance"))


@dataclasses.dataclass(frozen=True)
class Location(gm.Distribution):
    """theta + a draw of `base`, one number."""

    base: gm.Distribution
    event = gm.Real((1,))

    def _init(self, key, x, context):
        return {"theta": jnp.zeros((1,))}

    def log_prob_one(self, params, x, context=None, key=None):
        return self.base.log_prob_one({}, x - params["theta"])

    def sample_one(self, params, key, context=None):
        return params["theta"] + self.base.sample_one({}, key)


@dataclasses.dataclass(frozen=True)
class Exponential(gm.Distribution):
    """theta exp(-theta x)."""

    event = gm.Real((1,))

    def _init(self, key, x, context):
        return {"theta": jnp.ones((1,))}

    def log_prob_one(self, params, x, context=None, key=None):
        return jnp.where(x >= 0, jnp.log(params["theta"]) - params["theta"] * x, -jnp.inf).sum()

    def sample_one(self, params, key, context=None):
        return jax.random.exponential(key, (1,)) / params["theta"]


def theta(params: Any) -> jax.Array:
    return params["theta"]


def mean_and_median(x: jax.Array) -> jax.Array:
    return jnp.stack([x.mean(), jnp.median(x)])


def rate(x: jax.Array) -> jax.Array:
    return 1 / x.mean()


def both(params: Any) -> jax.Array:
    return jnp.concatenate([params["theta"]] * 2)


def efficiency(config: Config, run: gm.lab.Run, key: jax.Array) -> dict[str, float]:
    normal, laplace = (Location(base) for base in (gm.densities.Normal((1,)), gm.densities.Laplace((1,))))
    start = jnp.zeros((1, 1))
    cases = {
        "normal": (normal, mean_and_median, both, Quadrature(-15.0, 15.0), ("normal mean", "normal median")),
        "laplace": (laplace, mean_and_median, both, Quadrature(-30.0, 30.0, 6_000), ("Laplace mean", "Laplace median")),
        "exponential": (Exponential(), rate, theta, Quadrature(0.0, 30.0, 30_001), ("exponential 1 / mean",)),
    }
    curves: dict[str, list[float]] = {}
    sems: dict[str, list[float]] = {}
    for name, (model, estimator, quantity, grid, labels) in cases.items():
        law = Law(model, model.init(key, start))
        information = fisher_information(law, grid).matrix
        for n in config.sizes:
            options = {"num_data": n, "information": information, "num_repeats": config.num_repeats}
            report = cramer_rao(law, estimator, quantity, key=stream(key, name, n), **options)
            for label, ratio, sem in zip(labels, report.ratio, report.ratio_sem, strict=True):
                curves.setdefault(label, []).append(float(ratio))
                sems.setdefault(label, []).append(float(sem))
    n = np.array(config.sizes, float)
    exact = n**3 / ((n - 1) ** 2 * (n - 2))
    rows = []
    for i, size in enumerate(config.sizes):
        cells = {label: gm.lab.with_error(curves[label][i], sems[label][i]) for label in curves}
        rows.append({"n": size, **cells, "exponential, exact": float(exact[i])})
    print("variance / Cramer-Rao bound")
    print(gm.lab.text_table(rows))
    axes: dict[str, Any] = {"xlabel": "1 / number of data", "ylabel": "variance / Cramer-Rao bound"}
    places = {"bound": np.ones_like(n), **{label: curve for label, curve in curves.items() if "exponential" not in label}}
    gm.lab.plot.lines(run.figure("location"), 1 / n, places, title="Estimators of a location", **axes)
    rates = {"exact": exact, "1 / mean": curves["exponential 1 / mean"], "bound": np.ones_like(n)}
    gm.lab.plot.lines(run.figure("rate"), 1 / n, rates, title="Estimator of the rate of an exponential law", **axes)
    names = {label: label.replace(" / ", "_").replace(" ", "_").lower() for label in curves}
    return {
        f"efficiency_{names[label]}_{size}": r for label in curves for size, r in zip(config.sizes, curves[label], strict=True)
    }


def fading_prior(config: Config, run: gm.lab.Run, key: jax.Array) -> dict[str, float]:
    """Masses that fall off geometrically, seen in n draws."""
    masses = 0.8 ** np.arange(config.num_categories)
    masses = masses / masses.sum()
    repeats = min(config.num_repeats, 2_000)

    sizes = sorted({*config.sizes, *(10 * n for n in config.sizes)})
    found = []
    for n in sizes:
        draws = np.asarray(jax.random.categorical(stream(key, "draws", n), jnp.log(masses), shape=(repeats, n)))
        counts = np.stack([np.bincount(row, minlength=config.num_categories) for row in draws])
        likely, probable = (dirichlet_map(counts, a) for a in (1.0, config.concentration))
        pairs = ((likely, masses), (probable, masses), (probable, likely))
        found.append([np.sqrt(np.mean(np.sum((a - b) ** 2, -1))) for a, b in pairs])
    likely, probable, apart = np.array(found).T
    names = {"MLE, error": likely, "MAP, error": probable, "MAP - MLE": apart}
    rows = [{"n": n, **{name: float(values[i]) for name, values in names.items()}} for i, n in enumerate(sizes)]
    print("\nmasses of categories, root mean square")
    print(gm.lab.text_table(rows))
    title = "The prior fades as 1 / n, the error as 1 / sqrt n"
    gm.lab.plot.lines(
        run.figure("map_to_mle"), np.array(sizes), names, xlabel="data", ylabel="root mean square", title=title, log=True
    )
    slope = np.polyfit(np.log(sizes[-4:]), np.log(apart[-4:]), 1)[0]
    return {"map_error": float(probable[-1]), "mle_error": float(likely[-1]), "map_minus_mle_slope": float(slope)}


def beta_log_prob(x: jax.Array) -> jax.Array:
    return jax.scipy.stats.beta.logpdf(x[0], 2.0, 5.0)


def rejection(config: Config, run: gm.lab.Run, key: jax.Array) -> dict[str, float]:
    proposal = proposal_of(gm.densities.Uniform((1,)), {})
    rows, metrics, observed = [], {}, []
    bounds = BEST_BOUND * np.array([0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
    for i, bound in enumerate(bounds):
        found = rejection_sample(
            stream(key, "bound", i),
            beta_log_prob,
            proposal.sample_and_log_prob_fn,
            float(np.log(bound)),
            num_draws=config.num_accepted,
            max_attempts=20 * config.num_accepted,
        )
        draws = found.positions[: int(found.num_accepted), 0]
        mean, sem = gm.metrics.mean_and_sem(draws)
        rows.append(
            {
                "M": float(bound),
                "accepted": gm.lab.with_error(float(found.acceptance_rate), float(found.acceptance_sem)),
                "1 / M": float(1 / bound),
                "mean (2/7 = .2857)": gm.lab.with_error(float(mean), float(sem)),
                "violations": int(found.num_violations),
            }
        )
        observed.append(float(found.acceptance_rate))
        if bound == BEST_BOUND:
            metrics = {"rejection_acceptance": observed[-1], "rejection_mean": float(mean)}
    print("\nBeta(2, 5) by rejection from U(0, 1)")
    print(gm.lab.text_table(rows))
    gm.lab.plot.lines(
        run.figure("rejection"),
        bounds,
        {"1 / M": 1 / bounds, "accepted": observed},
        xlabel="bound M",
        ylabel="share accepted",
        title=f"Rejection: below M = {BEST_BOUND} the draws are wrong",
    )
    return metrics


def importance(config: Config, run: gm.lab.Run, key: jax.Array) -> dict[str, float]:
    shift = {"mean": jnp.array([5.0]), "lower": jnp.zeros((1, 1)), "log_scale": jnp.zeros(1)}
    target = Law(gm.densities.FullNormal((1,)), shift)
    limits, observed, hats, errors, rows = [], [], [], [], []
    for i, scale in enumerate(config.scales):
        law = Law(gm.densities.Normal((1,), scale), {})
        limits.append(1 / (1 + discrepancy(target, law, ChiSquare(), ClosedForm()).value))
        proposal = proposal_of(*law)

        def study(key, proposal=proposal):
            draws = importance_sample(
                key, lambda x: target.distribution.log_prob_one(shift, x), proposal.sample_and_log_prob_fn, config.num_draws
            )
            report, mean = importance_report(draws.log_weights), self_normalized_mean(draws, lambda x: x[0])
            return report.effective_size / config.num_draws, report.k_hat, mean.value

        share, k_hat, mean = jax.jit(jax.vmap(study))(jax.random.split(stream(key, "scale", i), config.num_studies))
        observed.append(float(jnp.median(share)))
        hats.append(float(jnp.median(k_hat)))
        errors.append(float(jnp.sqrt(jnp.mean((mean - 5) ** 2))))
        cells = {"limit of ESS / N": f"{limits[-1]:.4g}", "observed": f"{observed[-1]:.4g}", "k-hat": hats[-1]}
        rows.append({"s": scale, **cells, "error of E[x]": errors[-1]})
    print(f"\nN(5, 1) by N(0, s^2), medians of {config.num_studies} runs of {config.num_draws:,} draws; error: root mean square")
    print(gm.lab.text_table(rows))
    curves = {"limit, 1 / (1 + chi^2)": limits, f"observed, N = {config.num_draws:,}": observed, "error of E[x]": errors}
    title = "An effective sample size cannot see what is never visited"
    gm.lab.plot.lines(
        run.figure("importance"), np.array(config.scales), curves, xlabel="s", ylabel="ESS / N, and error", title=title, log=True
    )
    gm.lab.plot.lines(
        run.figure("k_hat"),
        np.array(config.scales),
        {"0.7: trusted below": np.full(len(hats), 0.7), "k-hat": hats},
        xlabel="s",
        ylabel="k-hat",
        title="Shape of the tail of the weights",
    )
    found = {}
    for scale, limit, share, k_hat, error in zip(config.scales, limits, observed, hats, errors, strict=True):
        found |= {f"ess_limit_s{scale:g}": limit, f"ess_observed_s{scale:g}": share}
        found |= {f"k_hat_s{scale:g}": k_hat, f"mean_error_s{scale:g}": error}
    return found


QUICK = {"sizes": (5, 20, 100), "num_repeats": 4_000, "num_accepted": 20_000, "scales": (1.0, 3.0, 6.0), "num_studies": 20}

if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick=QUICK)
