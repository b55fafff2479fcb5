"""Distortion against perception: what denoised images gain in likeness to images, they lose in mean squared error.

python -m experiments.rate_distortion

Given y = x + sigma n, the posterior mean has the least error, MMSE, and looks like no image; a draw of p(x | y) has the law of
images and twice that error; what an estimator gains in the one it pays in the other (Blau & Michaeli 2018, arXiv:1711.06077). A
diffusion whose noise ends at sigma has all of them, y being a noised event of its own: D(y) is the posterior mean, the reverse
SDE from y a draw of the posterior, the probability flow from y another map onto the law of images. On the way between lie

    means of k draws            MSE = (1 + 1 / k) MMSE, for every law of x
    (1 - a) flow + a D(y)       for Gaussian x the best there is (Freirich et al. 2021, arXiv:2107.02555)

Perception W is the root of Frechet's distance between pixels of estimates and of images, W_2 of the Gaussians with their moments.
With P that of the posterior mean, MSE >= MMSE + (P - W)^2 for W <= P: an estimate e made of y and of noise has MSE = MMSE +
E|D(y) - e|^2, the second is at least the Frechet distance of D(y) and e, and roots of that obey the triangle inequality.

Digits have a denoiser that is trained here; a Gaussian with their mean and covariance has an exact one, and both curves in closed
form. Pixels that are the same in all images are left out. Figures: the curves, and images of each estimator.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod import denoising
from genmod.core.keys import stream
from genmod.lab.panels import Curve

SIGMA_MIN = 0.02
"""Noise that is all but none."""


@dataclasses.dataclass(frozen=True)
class Config:
    sigma: float = 1.0
    """Of the noise, for pixels from -1 to 1."""
    num_draws: tuple[int, ...] = (1, 2, 4, 16)
    """k, of the draws of the posterior whose mean is taken; multiples of those before."""
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """a, of the posterior mean in the interpolation with the probability flow."""
    num_sampling_steps: int = 30
    """Of the probability flow and of the reverse SDE, both by solvers of higher order: draws of DDIM's and of DDPM's have, in 100
    steps, a variance that is wrong by 5%."""
    num_gaussian: int = 1_000
    """Events of the Gaussian that are denoised."""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    num_steps: int = 8_000
    batch_size: int = 256
    learning_rate: float = 3e-3
    """Peak of a cosine schedule that ends at zero."""
    ema_decay: float = 0.999
    seed: int = 0


class Estimate(NamedTuple):
    """One estimator of one law, what was measured of it, and what is known."""

    family: str
    setting: float
    """k or a; k is infinite for the posterior mean."""
    images: np.ndarray
    mse: gm.metrics.Measured
    frechet: gm.metrics.Measured
    mse_law: float
    """NaN where none is known."""
    frechet_law: float

    @property
    def name(self) -> str:
        """As in tables."""
        if self.family == "interpolation":
            return f"flow + {self.setting:g} (mean - flow)" if self.setting else "probability flow"
        if np.isinf(self.setting):
            return "posterior mean"
        return "a draw" if self.setting == 1 else f"mean of {self.setting:g} draws"


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = gm.data.images.digits(config.seed)
    parts = (data.train, data.validation, data.test)
    train, *held_out = (jnp.asarray(part, jnp.float32).reshape(len(part), -1) / 8 - 1 for part in parts)
    pixels = np.flatnonzero(np.ptp(train, 0) > 0)
    train, x = train[:, pixels], jnp.concatenate(held_out)[:, pixels]
    found = {
        "Gaussian": of_gaussian(config, train, stream(key, "gaussian")),
        "digits": of_digits(config, run, train, x, stream(key, "digits")),
    }
    metrics: dict[str, Any] = {"model": "rate_distortion"}
    rows: list[dict[str, Any]] = []
    for law, estimates in found.items():
        for e in estimates:
            row = {"law": law, "estimator": e.name, "MSE": str(e.mse), "MSE, law": e.mse_law}
            row |= {"Frechet": str(e.frechet), "Frechet, law": e.frechet_law}
            rows.append({name: "" if value != value else value for name, value in row.items()})
            for name, value, expected in (("mse", e.mse, e.mse_law), ("frechet", e.frechet, e.frechet_law)):
                entry = f"{law.lower()}_{e.family}_{e.setting:g}_{name}"
                metrics |= {entry: value.value, f"{entry}_sem": value.sem}
                if not np.isnan(expected):
                    metrics[f"{entry}_law"] = expected
    floor = gm.metrics.extrapolated_frechet_distance(x, train)
    rows.append({"law": "digits", "estimator": "the images themselves", "Frechet": str(floor)})
    metrics |= {"digits_frechet_floor": floor.value, "digits_frechet_floor_sem": floor.sem}
    print(gm.lab.text_table(rows))
    xlabel, ylabel = "distance from the law of images", "mean squared error"
    title = f"Noise of sigma {config.sigma:g}: distortion against perception (theory dashed)"
    panels = {law: curves(estimates) for law, estimates in found.items()}
    gm.lab.panels.curves(run.figure("curve"), panels, title=title, columns=2, share=False, xlabel=xlabel, ylabel=ylabel)
    draw(config, run, found["digits"], x, observed(config, x, stream(key, "digits")), pixels)
    return metrics


def schedule_of(config: Config) -> denoising.Schedule:
    """Noise from all but none up to that of the observation, which is the noised event at the end."""
    return denoising.VarianceExploding(SIGMA_MIN, config.sigma)


def of_gaussian(config: Config, train: jax.Array, key: jax.Array) -> list[Estimate]:
    """All estimators of a Gaussian with the moments of the images, by its exact denoiser, beside the closed forms."""
    rows = np.asarray(train, np.float64)
    mean, covariance = rows.mean(0), np.cov(rows.T)
    variances, basis = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0.0)

    def sampled(key):
        z = jax.random.normal(key, (config.num_gaussian, len(mean)))
        return jnp.asarray(mean, z.dtype)[None] + z @ jnp.asarray((basis * np.sqrt(variances)).T, z.dtype)

    x, others = sampled(stream(key, "x")), sampled(stream(key, "others"))
    denoiser = denoising.denoisers.gaussian(schedule_of(config), mean, covariance)
    found = []
    for (family, setting), images in denoised(config, denoiser, observed(config, x, key), key).items():
        laws = gaussian_law(variances, config.sigma, family, setting)
        found.append(measured(family, setting, images, x, others, *laws))
    return found


def gaussian_law(variances: np.ndarray, sigma: float, family: str, setting: float) -> tuple[float, float]:
    """(MSE, Frechet's distance) of an estimator of a Gaussian whose covariance has these eigenvalues."""
    # Along each axis: the variance s of the law, that of the posterior mean, and that of the posterior.
    of_mean = variances**2 / (variances + sigma**2)
    left = variances - of_mean
    gaps = np.sqrt(variances) - np.sqrt(of_mean)
    if family == "interpolation":
        return float(left.sum() + np.sum(((1 - setting) * gaps) ** 2)), float(np.sum((setting * gaps) ** 2))
    spread = of_mean + left / setting
    return float((1 + 1 / setting) * left.sum()), float(np.sum((np.sqrt(variances) - np.sqrt(spread)) ** 2))


def of_digits(config: Config, run: gm.lab.Run, train: jax.Array, x: jax.Array, key: jax.Array) -> list[Estimate]:
    """All estimators of held-out images, by a trained denoiser; the law of the error takes that of D(y) for the MMSE.

    It is trained beyond sigma, at levels that are mostly high, for the squared error of x itself: with the defaults, which attend
    to low noise, D(y) errs by a quarter more than the mean of many draws.
    """
    model = gm.flows.diffusion(
        train.shape[1:],
        schedule=denoising.EDM(SIGMA_MIN, 2 * config.sigma, rho=2.0),
        weighting=denoising.DataWeighting(),
        hidden_sizes=config.hidden_sizes,
        scaling=None,
        data_scale=float(train.std()),
    )
    fit = gm.fit(
        model,
        train,
        key=stream(key, "fit"),
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        ema_decay=config.ema_decay,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    # The network knows the ratio of signal to noise and not the time: its parameters serve any schedule.
    predictor = model.predictor
    assert isinstance(predictor, denoising.Learned)
    predictor = dataclasses.replace(predictor, schedule=schedule_of(config))
    denoiser = functools.partial(predictor.denoise, model.network_params(fit.params))
    images = denoised(config, denoiser, observed(config, x, key), key)
    least = mse(images["draws", np.inf], x).value
    found = []
    for (family, setting), image in images.items():
        law = (1 + 1 / setting) * least if family == "draws" else np.nan
        found.append(measured(family, setting, image, x, train, law, np.nan))
    return found


def observed(config: Config, x: jax.Array, key: jax.Array) -> jax.Array:
    """y of each x."""
    return x + config.sigma * jax.random.normal(stream(key, "noise"), x.shape)


def denoised(config: Config, denoiser: denoising.denoisers.Denoiser, y: jax.Array, key: jax.Array) -> dict[Any, np.ndarray]:
    """By (family, setting), all estimates of the events of which y, (n, D), are noised ones."""
    schedule, num = schedule_of(config), max(config.num_draws)
    start, end = map(jnp.asarray, schedule.times)
    flow = denoising.Steps(denoising.Heun(), denoising.LogSNRGrid(config.num_sampling_steps))
    diffusion = denoising.ReverseSDE(gm.dynamics.SDESteps(config.num_sampling_steps, diffrax.ShARK()))

    def draw(key):
        keys = jax.random.split(key, len(y))
        noisy = jax.vmap(lambda key, y: diffusion(key, denoiser, schedule, y))(keys, y)
        return jax.vmap(lambda x: denoiser(x, start))(noisy)

    @jax.jit
    def estimates(key):
        mean = jax.vmap(lambda y: denoiser(y, end))(y)
        return mean, jax.vmap(lambda y: flow(key, denoiser, schedule, y))(y), jax.lax.map(draw, jax.random.split(key, num))

    mean, flowed, draws = map(np.asarray, estimates(stream(key, "draws")))
    found = {("draws", float(k)): draws[:k].mean(0) for k in config.num_draws}
    found |= {("draws", np.inf): mean}
    return found | {("interpolation", a): (1 - a) * flowed + a * mean for a in config.shares}


def mse(images: np.ndarray, x: Any) -> gm.metrics.Measured:
    """Mean over events of the squared error, a sum over pixels."""
    return gm.metrics.Measured(*map(float, gm.metrics.mean_and_sem(((images - np.asarray(x, np.float64)) ** 2).sum(1))))


def measured(
    family: str, setting: float, images: np.ndarray, x: Any, others: Any, mse_law: float, frechet_law: float
) -> Estimate:
    """The numbers of one estimator of x; its likeness is to `others`, of the law of x."""
    frechet = gm.metrics.extrapolated_frechet_distance(images, others)
    return Estimate(family, setting, images, mse(images, x), frechet, mse_law, frechet_law)


def curves(estimates: list[Estimate]) -> list[Curve]:
    """Both families as points, what theory says of them as dashed lines, and below which no estimator lies."""
    found = []
    ends = [e for e in estimates if np.isinf(e.setting)]
    for family, name in (("draws", "means of draws"), ("interpolation", "flow to posterior mean")):
        some = [e for e in estimates if e.family == family]
        some += ends if family == "interpolation" else []
        found.append(Curve(name, [distance(e.frechet.value) for e in some], [e.mse.value for e in some], style="o"))
        if not np.isnan(some[0].frechet_law):
            found.append(Curve(name, [distance(e.frechet_law) for e in some], [e.mse_law for e in some], style="--"))
    (mean,) = ends
    known = not np.isnan(mean.frechet_law)
    least, far = (mean.mse_law, distance(mean.frechet_law)) if known else (mean.mse.value, distance(mean.frechet.value))
    w = np.linspace(0.0, far, 50)
    return [*found, Curve("least possible", w, least + (far - w) ** 2, style=":")]


def distance(frechet: float) -> float:
    """W_2 of an estimate of its square, which may lie below zero."""
    return float(np.sqrt(max(frechet, 0.0)))


def draw(config: Config, run: gm.lab.Run, estimates: list[Estimate], x: Any, y: Any, pixels: np.ndarray) -> None:
    """Twelve images, their noised ones, and every estimate of them."""
    rows = []
    for name, values in (("images", x), ("noised", y), *((e.name, e.images) for e in estimates)):
        image = np.full((12, 64), -1.0)
        image[:, pixels] = values[:12]
        rows.append((name, (image.reshape(-1, 8, 8, 1) + 1) / 2))
    gm.lab.plot.images(run.figure("images"), rows, title=f"digits, noise of sigma {config.sigma:g}")


if __name__ == "__main__":
    small = {"num_draws": (1, 2, 4), "num_sampling_steps": 20, "num_gaussian": 400}
    gm.lab.main(experiment, Config, quick={"num_steps": 4_000, "hidden_sizes": (128, 128, 128), **small})
