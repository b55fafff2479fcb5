"""Recipes for levels: bits, and images of a few grey levels."""

from collections.abc import Callable

import optax

import genmod as gm
from experiments.compare.recipe import Fitted, Recipe, Task
from genmod import flows, models
from genmod.densities import BernoulliHead, BernoulliUnits, CategoricalHead, DiscretizedLogisticHead, Head, SoftmaxUnits
from genmod.training import ContrastiveStep, PersistentChains, fit_em

ANY = (2, float("inf"))


def head(task: Task, *, smooth: bool = False) -> Head:
    """The law of one entry: of more than two levels categorical, or logistics where near levels are alike."""
    num = task.data.num_levels
    assert num is not None
    if num == 2:
        return BernoulliHead()
    return DiscretizedLogisticHead(num, 2) if smooth else CategoricalHead(num)


def recipe(family: str, build: Callable[[Task], gm.Model], *, images: bool = False, learning_rate: float = 2e-3) -> Recipe:
    """A model that is trained by its own loss."""

    def fit(task: Task) -> Fitted:
        model = build(task)
        return Fitted(model, task.fit(model, learning_rate=learning_rate))

    return Recipe(family, fit, real=False, levels=ANY, images=images)


def mixture(num_components: int) -> Callable[[Task], Fitted]:
    """Expectation and maximisation, the best of four starts: no gradients, and no budget but its own."""

    def fit(task: Task) -> Fitted:
        num = task.data.num_levels
        assert num is not None
        model = models.mixture_of_levels(task.shape, num_components, num)
        return Fitted(model, fit_em(model, task.rows("train", task.shape), key=task.key, num_restarts=4, num_sweeps=200).params)

    return fit


def made(task: Task) -> gm.Model:
    return models.MADEModel(task.shape, gm.nets.MADE((256,)), head(task))


def transformer(task: Task) -> gm.Model:
    num, law = task.data.num_levels, head(task)
    assert num is not None
    body = gm.nets.CausalTransformer(task.shape[0], 32, 2, positions=gm.nets.LearnedPositions())
    net = gm.nets.token_net(body, num + 1, law.num_params, num_features=32)
    return models.AutoregressiveModel(gm.Levels(task.shape, num), net, law)


def pixel_cnn(task: Task) -> gm.Model:
    shape = task.data.event_shape
    return models.PixelCNN(shape, gm.nets.GatedPixelCNN(16, 4, untied_biases=shape[:2]), head(task, smooth=True))


def vae(task: Task) -> gm.Model:
    return flows.variational_autoencoder(task.shape, 16, head=head(task, smooth=True), hidden_sizes=(128, 128))


def hierarchical_vae(task: Task) -> gm.Model:
    return flows.hierarchical_autoencoder(task.shape, (16, 8), head=head(task, smooth=True), hidden_sizes=(128, 128))


def vector_quantized(task: Task) -> gm.Model:
    return flows.vector_quantized_autoencoder(
        task.shape, 32, positions=(8,), code_dim=8, head=head(task, smooth=True), hidden_sizes=(128, 128)
    )


def image_flow(builder: Callable[..., gm.Model]) -> Recipe:
    """A multi-scale flow of dequantised images."""

    def fit(task: Task) -> Fitted:
        num = task.data.num_levels
        assert num is not None
        model = models.Dequantized(builder(task.data.event_shape, 4, hidden_channels=32), num)
        return Fitted(model, task.fit(model))

    return Recipe("flow", fit, real=False, levels=(3, float("inf")), images=True)


def machine(task: Task) -> Fitted:
    """Levels and 200 bits, by persistent chains with centred gradients."""
    num, config = task.data.num_levels, task.config
    assert num is not None
    visible = BernoulliUnits(task.shape) if num == 2 else SoftmaxUnits(task.shape, num)
    model = models.RestrictedBoltzmannMachine(visible, BernoulliUnits((200,)), num_sweeps=1_000)
    sgd = optax.sgd(optax.linear_schedule(0.05, 0.0, config.num_steps))
    step = ContrastiveStep(model, sgd, PersistentChains(100), centring=0.99, ema_decay=config.ema_decay)
    return Fitted(model, task.fit(model, step=step))


RECIPES: dict[str, Recipe] = {
    "independent": Recipe("classical", mixture(1), real=False, levels=ANY),
    "mixture_of_levels": Recipe("classical", mixture(30), real=False, levels=ANY),
    "made_levels": recipe("autoregressive", made),
    "transformer": recipe("autoregressive", transformer),
    "pixel_cnn": recipe("autoregressive", pixel_cnn, images=True),
    "vae_levels": recipe("autoencoder", vae),
    "hierarchical_vae_levels": recipe("autoencoder", hierarchical_vae),
    "vq_vae": recipe("autoencoder", vector_quantized),
    "glow": image_flow(flows.glow),
    "real_nvp_image": image_flow(flows.real_nvp_image),
    "rbm": Recipe("Boltzmann machine", machine, real=False, levels=ANY),
}
