"""A small classifier whose last hidden layer gives the features of image metrics; what the metrics say of known changes.

python -m experiments.features
python -m experiments.features --data mnist --num-images 14000 --num-train 10000       files from GENMOD_DATA, as in gm.data.mnist

No weights are shipped: the network is trained here, on some of scikit-learn's digits, of MNIST or of Fashion-MNIST, with their
labels. The others are cut into two halves, A and B. The table compares with A: the images that the network was trained on, B
(which differs by chance alone), and B changed: with noise, without two of the ten classes, and three images again and again.
Features are divided by their rms over the training images.

    Frechet      the distance of the features' moments, and extrapolated to infinitely many rows
    KID          1,000 times
    precision, recall, density, coverage        for B: density 1, coverage as `expected_coverage` says
    IS           the inception score of the network's probabilities, at most 10
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream
from genmod.nets.functional import apply, init

NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    num_images: int | None = None
    """Of the set that are used; None: all."""
    num_train: int = 797
    """Images that the classifier learns from; half of the others are A, half B."""
    hidden_sizes: tuple[int, ...] = (256, 32)
    """The last is the number of features."""
    num_steps: int = 2_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    noise: float = 0.1875
    """Of the noisy half, as a share of the range of a pixel: of scikit-learn's digits three levels."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Classifier(gm.Description):
    """Images -> features -> logits; parameters {"body", "head"}."""

    hidden_sizes: tuple[int, ...]
    num_levels: int

    @property
    def body(self) -> gm.nets.FlatNet:
        return gm.nets.FlatNet(gm.nets.MLP(self.hidden_sizes))

    @property
    def head(self) -> gm.nets.FlatNet:
        return gm.nets.FlatNet(gm.nets.MLP(()), NUM_CLASSES)

    def init(self, key: jax.Array, image: jax.Array) -> Any:
        keys = jax.random.split(key)
        body = init(self.body, keys[0], self._scaled(image))
        return {"body": body, "head": init(self.head, keys[1], jnp.zeros(self.hidden_sizes[-1]))}

    def features_one(self, params: Any, image: jax.Array) -> jax.Array:
        """The last hidden layer of ONE image, (H, W, C) levels."""
        return apply(self.body, params["body"], self._scaled(image))

    def logits_one(self, params: Any, image: jax.Array) -> jax.Array:
        return apply(self.head, params["head"], self.features_one(params, image))

    def __call__(self, params: Any, key: jax.Array, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The cross-entropy of a batch (images, labels), in nats."""
        images, labels = batch
        logits = jax.vmap(self.logits_one, (None, 0))(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {}

    def _scaled(self, image: jax.Array) -> jax.Array:
        return image.astype(jnp.float32) / (self.num_levels - 1)


class Seen(NamedTuple):
    """What the network says of images: features (n, d), probabilities (n, 10)."""

    features: np.ndarray
    probabilities: np.ndarray


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    images, labels, num_levels = load(config)
    cut = config.num_train, (config.num_train + len(images)) // 2
    (train, a, b), (train_labels, a_labels, b_labels) = np.split(images, cut), np.split(labels, cut)
    net = Classifier(config.hidden_sizes, num_levels)
    params = fit(config, run, net, train, train_labels, key)
    sets = {"trained on": train[: len(b)], "B": b} | changed(config, b, b_labels, num_levels)
    scale = 1.0 / np.sqrt(np.mean(look(net, params, train).features ** 2))
    seen = {name: look(net, params, x, scale) for name, x in ({"A": a} | sets).items()}
    metrics: dict[str, Any] = {"num_params": gm.num_params(params), "num_a": len(a), "num_b": len(b)}
    right = (seen["A"].probabilities.argmax(1) == a_labels).astype(np.float64)
    accuracy, sem = gm.metrics.mean_and_sem(right)
    metrics |= {"accuracy": float(accuracy), "accuracy_sem": float(sem)}
    lines = []
    for name in sets:
        found = compare(seen[name], seen["A"].features)
        suffix = name.replace(" ", "_").lower()
        for entry, measured in found.items():
            metrics |= {f"{entry}_{suffix}": measured.value, f"{entry}_{suffix}_sem": measured.sem}
        metrics[f"frechet_{suffix}"] = gm.metrics.frechet_distance(seen[name].features, seen["A"].features)
        cells = {entry.replace("_", " "): gm.lab.with_error(*measured) for entry, measured in found.items()}
        lines.append({"images": name, "rows": len(sets[name]), "Frechet": metrics[f"frechet_{suffix}"]} | cells)
    expected = gm.metrics.expected_coverage(len(b), len(a))
    metrics["expected_coverage"] = expected
    print(f"accuracy on A {gm.lab.with_error(float(accuracy), float(sem))}; expected coverage of A by B {expected:.4f}")
    print(gm.lab.text_table(lines))
    return metrics


def load(config: Config) -> tuple[np.ndarray, np.ndarray, int]:
    """All images in one order, their labels, and the number of levels."""
    data = gm.data.images.digits(config.seed) if config.data == "digits" else getattr(gm.data.images, config.data)()
    assert data.labels is not None and data.num_levels is not None
    both = (np.concatenate([each.train, each.validation, each.test]) for each in (data, data.labels))
    images, labels = (array[: config.num_images] for array in both)
    if not 0 < config.num_train <= len(images) - 200:
        raise ValueError(f"--num-train must leave at least 200 of {len(images)} images, got {config.num_train}")
    return images, labels, data.num_levels


def fit(config: Config, run: gm.lab.Run, net: Classifier, images: np.ndarray, labels: np.ndarray, key: jax.Array) -> Any:
    optimizer = adam_with_cosine(config.learning_rate, config.num_steps, weight_decay=config.weight_decay)
    found = gm.train(
        gm.GradientStep(net, optimizer),
        net.init(stream(key, "init"), jnp.asarray(images[0])),
        (jnp.asarray(images), jnp.asarray(labels)),
        key=stream(key, "fit"),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    return found.params


def look(net: Classifier, params: Any, images: np.ndarray, scale: float = 1.0) -> Seen:
    """The features are brought to one scale, of which those of a ReLU network have none: KID is not homogeneous in it."""
    x = jnp.asarray(images)
    features, logits = (jax.vmap(fn, (None, 0))(params, x) for fn in (net.features_one, net.logits_one))
    return Seen(scale * np.asarray(features), np.asarray(jax.nn.softmax(logits)))


def changed(config: Config, images: np.ndarray, labels: np.ndarray, num_levels: int) -> dict[str, np.ndarray]:
    """The images in ways that a metric should see."""
    rng = np.random.default_rng(config.seed)
    noise = config.noise * (num_levels - 1) * rng.normal(size=images.shape)
    noisy = np.clip(np.rint(images + noise), 0, num_levels - 1).astype(images.dtype)
    few = images[rng.integers(0, 3, len(images))]
    return {"B noisy": noisy, "B without 8 and 9": images[labels < 8], "three of B": few}


def compare(seen: Seen, reference: np.ndarray) -> dict[str, gm.metrics.Measured]:
    """The metrics of features beside those of the reference."""
    kid, sem = gm.metrics.kid(seen.features, reference)
    found = {
        "extrapolated": gm.metrics.extrapolated_frechet_distance(seen.features, reference),
        "KID": gm.metrics.Measured(1_000 * kid, 1_000 * sem),
    }
    found |= gm.metrics.precision_recall(seen.features, reference)
    found |= gm.metrics.density_coverage(seen.features, reference)
    return found | {"IS": gm.metrics.inception_score(seen.probabilities, num_splits=5)}


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 500})
