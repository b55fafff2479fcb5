"""Recipes for vectors of real numbers; those with a density model levels, too, by uniform dequantisation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import genmod as gm
from experiments.compare.recipe import Fitted, Recipe, Task
from genmod import flows, models
from genmod.core.keys import stream
from genmod.training import ContrastiveStep, GameStep, PersistentChains, Player, ReplayChains, fit_em

# Dequantised levels: of bits a density says little.
DEQUANTIZED = (3, float("inf"))


def trained(build: Callable[[Task], gm.Model], **options: Any) -> Callable[[Task], Fitted]:
    """A recipe's `fit` of a model of real vectors, trained by its own loss; of levels by way of `Dequantized`."""

    def fit(task: Task) -> Fitted:
        model, num = build(task), task.data.num_levels
        if num is not None and model.likelihood is gm.Likelihood.NONE:
            return sampler_of_levels(task, model, validation=continuous(task, "validation")[:5_000], **options)
        if num is not None:
            model = models.Dequantized(model, num)
        return Fitted(model, task.fit(model, **options))

    return fit


def sampler_of_levels(task: Task, model: gm.Model, **options: Any) -> Fitted:
    """A model without a density, trained on levels that were dequantised once; its samples fall to the levels they lie in."""
    return Fitted(model, task.fit(model, rows=continuous(task, "train"), **options), functools.partial(to_levels, task))


def continuous(task: Task, part: str) -> np.ndarray:
    """Levels with uniform noise, as vectors in [-1, 1]."""
    levels, num = task.rows(part, task.shape), task.data.num_levels
    u = np.asarray(jax.random.uniform(stream(task.key, f"dequantize {part}"), levels.shape))
    return (2 * (levels + u) / num - 1).astype(np.float32)


def to_levels(task: Task, y: Any) -> np.ndarray:
    """The inverse of `continuous`, but for the noise."""
    num = task.data.num_levels
    assert num is not None
    return np.clip(np.floor((np.asarray(y) + 1) / 2 * num), 0, num - 1).astype(np.uint8)


def flow(builder: Callable[..., gm.Model], **options: Any) -> Recipe:
    """A flow made of layers, whose conditioners have `hidden_sizes`, if they have any."""
    networks = builder not in (flows.affine, flows.planar_flow, flows.radial_flow, flows.sylvester_flow)

    def build(task: Task) -> gm.Model:
        return builder(task.shape, **({"hidden_sizes": task.config.hidden_sizes} if networks else {}), **options)

    return Recipe("flow", trained(build), levels=DEQUANTIZED)


def divergence(task: Task) -> gm.dynamics.DivergenceEstimator:
    """Exact up to 20 dimensions; above, of one random direction, so that the likelihood is an estimate."""
    return gm.dynamics.Exact() if task.shape[0] <= 20 else gm.dynamics.Hutchinson(1)


def ffjord(task: Task, tolerance: float = 1e-5) -> gm.Model:
    solver = gm.dynamics.Adaptive(rtol=tolerance, atol=tolerance)
    return flows.ffjord(task.shape, hidden_sizes=task.config.hidden_sizes, divergence=divergence(task), integrator=solver)


def roughly_trained(task: Task) -> Fitted:
    """A quarter of the steps, which cost many times those of others, by a solver less exact than the one that measures."""
    return Fitted(ffjord(task), task.fit(ffjord(task, tolerance=1e-3), share=0.25))


def flow_matching(task: Task) -> gm.Model:
    sizes = task.config.network_sizes
    return flows.flow_matching(task.shape, hidden_sizes=sizes, divergence=divergence(task), path=gm.transport.Linear())


def optimal_transport(task: Task) -> gm.Model:
    model = flow_matching(task)
    assert isinstance(model, models.FlowMatching)
    return dataclasses.replace(model, coupling=gm.transport.Sinkhorn())


def diffusion(task: Task, **options: Any) -> gm.Model:
    return flows.diffusion(task.shape, hidden_sizes=task.config.network_sizes, divergence=divergence(task), **options)


def ncsn(task: Task) -> gm.Model:
    levels, grid = gm.denoising.AnnealedLangevin(num_steps=20), gm.denoising.UniformGrid(20)
    return diffusion(task, schedule=gm.denoising.VarianceExploding(), sampler=gm.denoising.Steps(levels, grid))


def score_sde(task: Task) -> gm.Model:
    grid = gm.denoising.UniformGrid(200)
    return diffusion(task, sampler=gm.denoising.Steps(gm.denoising.PredictorCorrector(), grid))


def mean_flow(task: Task) -> gm.Model:
    path, coupling = gm.transport.Linear(), gm.transport.Sinkhorn()
    spans = models.UniformSpans(0.5)
    return flows.mean_flow(task.shape, hidden_sizes=task.config.network_sizes, path=path, coupling=coupling, spans=spans)


def consistency(task: Task) -> Fitted:
    """Without validation: the target of its loss moves along."""
    levels = gm.denoising.NeighboringLevels(10, 160, task.config.num_steps, mean=-0.5, std=2.0)
    sizes, schedule = task.config.network_sizes, gm.denoising.EDM(0.01, 20.0)
    model = flows.consistency(task.shape, hidden_sizes=sizes, schedule=schedule, levels=levels, huber_scale=0.03)
    if task.data.num_levels is not None:
        return sampler_of_levels(task, model, validation=None)
    return Fitted(model, task.fit(model, validation=None))


def distilled(task: Task) -> Fitted:
    """A diffusion first, then its student: twice the budget."""
    times = gm.denoising.LogNormalTimes(-1.2, 1.2)
    teacher = diffusion(task, schedule=gm.denoising.EDM(0.01, 20.0), weighting=gm.denoising.EDMWeighting(), times=times)
    assert isinstance(teacher, models.Diffusion)
    known = task.fit(teacher, name="teacher")
    levels = gm.denoising.NeighboringLevels(40, 40, mean=-0.5, std=2.0)
    student = flows.consistency_distillation(teacher, levels=levels, huber_scale=float("inf"))
    return Fitted(student, task.fit(student, params=student.taught(known), learning_rate=1e-3))


def score_model(task: Task) -> gm.Model:
    network = gm.nets.FlatNet(gm.nets.MLP(task.config.network_sizes, jax.nn.silu), task.shape[0])
    return models.ScoreModel(network, task.shape, step_size=3e-3)


def warmed_up(task: Task) -> gm.losses.ELBO:
    """The bound whose rate is annealed from 0 to 1 over a quarter of the steps: else latents may go unused."""
    num = max(2, task.config.num_steps // 4)
    return gm.losses.ELBO(beta=gm.call(optax.linear_schedule, 1 / num, 1.0, num - 1))


def vae(task: Task, **options: Any) -> gm.Model:
    options = {"objective": warmed_up(task)} | options
    return flows.variational_autoencoder(task.shape, max(2, task.shape[0] // 4), hidden_sizes=(128, 128), **options)


def iwae(task: Task) -> gm.Model:
    return vae(task, objective=gm.losses.IWAE(10))


def hierarchical_vae(task: Task) -> gm.Model:
    return flows.hierarchical_autoencoder(task.shape, (2, 2), hidden_sizes=(64, 64), objective=warmed_up(task))


def made(task: Task) -> gm.Model:
    return models.MADEModel(task.shape, gm.nets.MADE((128, 128)), gm.densities.NormalMixtureHead(32))


def mixture(task: Task) -> Fitted:
    """Expectation and maximisation on at most 200,000 rows: no gradients, and a budget of its own."""
    rows = task.rows("train", task.shape)
    model = models.mixture_of_gaussians(task.shape, max(1, min(128 if task.shape[0] <= 4 else 16, len(rows) // 100)))
    return Fitted(model, fit_em(model, rows[:200_000], key=task.key, num_restarts=1, num_sweeps=300).params)


def kernel_density(task: Task) -> Fitted:
    """The training rows, at most 20,000, and a bandwidth by validation within them."""
    model = models.KernelDensity(task.shape, models.KFold(5))
    return Fitted(model, model.of_data(task.rows("train", task.shape)[:20_000]))


def energy(task: Task, step_size: float = 0.02) -> models.EnergyModel:
    """A perceptron that tilts a Gaussian half as wide again as the data."""
    network = gm.nets.ZeroHead(gm.nets.MLP(task.config.network_sizes, jax.nn.silu), 1)
    return models.EnergyModel(task.shape, network, gm.densities.Normal(task.shape, 1.5), step_size=step_size, num_sweeps=2_000)


def noise_contrastive(task: Task) -> Fitted:
    """A classifier of data and draws of that Gaussian, two for each datum."""
    model = energy(task)
    learner = models.NoiseContrastive(model, gm.densities.Normal(task.shape, 1.5), 2)
    return Fitted(model, task.fit(learner)["model"])


def replay(task: Task) -> Fitted:
    """Langevin chains from a replay buffer, in smaller steps than those that measure."""
    model, num = energy(task, step_size=0.01), min(task.config.batch_size, len(task.data.train))
    chains = ReplayChains(10_000, num, restart_rate=0.002, num_steps=10)
    adam = optax.adam(optax.cosine_decay_schedule(1e-3, task.config.num_steps))
    return Fitted(energy(task), task.fit(model, step=ContrastiveStep(model, adam, chains, ema_decay=task.config.ema_decay)))


def gaussian_machine(task: Task) -> Fitted:
    """Real units and 64 bits, by persistent chains."""
    visible, hidden = gm.densities.GaussianUnits(task.shape), gm.densities.BernoulliUnits((64,))
    model = models.RestrictedBoltzmannMachine(visible, hidden, num_sweeps=1_000)
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, task.config.num_steps))
    step = ContrastiveStep(model, adam, PersistentChains(task.config.batch_size, 5), ema_decay=task.config.ema_decay)
    return Fitted(model, task.fit(model, step=step))


def gan(task: Task) -> Fitted:
    """Non-saturating, with R1."""
    body = gm.nets.MLP(task.config.network_sizes, nn.leaky_relu)
    latent = gm.densities.Normal((max(2, min(task.shape[0], 16)),))
    penalty = gm.call(gm.losses.r1_penalty, coefficient=0.1)
    generator, critic = gm.nets.FlatNet(body, task.shape[0]), gm.nets.FlatNet(body, 1)
    model = models.GAN(task.shape, latent, generator, critic, penalties=(penalty,))
    adam = optax.adam(optax.cosine_decay_schedule(5e-4, task.config.num_steps, 0.1), b1=0.0)
    players = Player("critic", adam), Player("generator", adam, ema_decay=0.995)
    if task.data.num_levels is not None:
        return sampler_of_levels(task, model, step=GameStep(model, players))
    return Fitted(model, task.fit(model, step=GameStep(model, players)))


RECIPES: dict[str, Recipe] = {
    "gaussian": Recipe("classical", trained(lambda task: flows.affine(task.shape)), levels=DEQUANTIZED),
    "mixture": Recipe("classical", mixture),
    "kernel_density": Recipe("classical", kernel_density),
    "planar": flow(flows.planar_flow),
    "radial": flow(flows.radial_flow),
    "sylvester": flow(flows.sylvester_flow),
    "nice": flow(flows.nice),
    "real_nvp": flow(flows.real_nvp),
    "glow_1d": flow(flows.glow_1d),
    "nsf": flow(flows.neural_spline_flow),
    "maf": flow(flows.masked_autoregressive_flow),
    "iaf": flow(flows.inverse_autoregressive_flow),
    "nsf_ar": flow(flows.autoregressive_spline_flow),
    "naf": flow(flows.neural_autoregressive_flow),
    "ffjord": Recipe("continuous flow", roughly_trained),
    "flow_matching": Recipe("flow matching", trained(flow_matching), levels=DEQUANTIZED),
    "ot_cfm": Recipe("flow matching", trained(optimal_transport), levels=DEQUANTIZED),
    "diffusion": Recipe("diffusion", trained(diffusion), levels=DEQUANTIZED),
    "ncsn": Recipe("diffusion", trained(ncsn)),
    "score_sde": Recipe("diffusion", trained(score_sde)),
    "mean_flow": Recipe("one step", trained(mean_flow), levels=DEQUANTIZED),
    "consistency": Recipe("one step", consistency, levels=DEQUANTIZED),
    "consistency_distilled": Recipe("one step", distilled),
    "score_model": Recipe("score matching", trained(score_model)),
    "vae": Recipe("autoencoder", trained(vae)),
    "iwae": Recipe("autoencoder", trained(iwae)),
    "hierarchical_vae": Recipe("autoencoder", trained(hierarchical_vae)),
    "made": Recipe("autoregressive", trained(made, learning_rate=5e-3)),
    "noise_contrastive": Recipe("energy", noise_contrastive),
    "replay": Recipe("energy", replay),
    "gaussian_rbm": Recipe("Boltzmann machine", gaussian_machine),
    "gan": Recipe("adversarial", gan, levels=(2, float("inf"))),
}
