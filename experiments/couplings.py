"""One flow of coupling layers on data of known density: its gap by the number of couplings, the split and the width.

python -m experiments.couplings --kind affine --num-couplings 16
python -m experiments.couplings --dim 8 --split 2 --num-couplings 8

A coupling keeps d of D coordinates and moves the D - d others, each by a scalar map that a network of the kept ones chooses. Then
the coordinates are permuted, by one random cycle, the same each time; or the two parts exchange their roles: the next coupling
keeps the D - d and moves the d. In the plane, D = 2, both are one, and the data are a toy y. Beyond it they are D / 2 independent
toys, turned by a random orthogonal matrix Q, so that every coordinate depends on every other and none is special:

    x = Q (y_1, ..., y_{D/2}),    log p(x) = sum_j log p_toy((Q^T x)_j),    H = D/2 H(toy).
"""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.checks import check_count
from genmod.core.keys import stream
from genmod.flows.layers import affine_in, stacked

TOYS = {
    "two_moons": gm.data.TwoMoons(),
    "eight_gaussians": gm.data.EightGaussians(),
    "checkerboard": gm.data.CheckerboardDensity(),
    "pinwheel": gm.data.Pinwheel(),
}
Kind = Literal["affine", "spline"]
Between = Literal["permute", "exchange"]
ToyName = Literal["two_moons", "eight_gaussians", "checkerboard", "pinwheel"]


@dataclasses.dataclass(frozen=True)
class Config:
    data: ToyName = "two_moons"
    """The toy in the plane."""
    dim: int = 2
    """D, an even number: D / 2 independent toys, turned at random if there are several."""
    kind: Kind = "spline"
    """Affine couplings are those of RealNVP, spline couplings those of NSF."""
    num_couplings: int = 4
    split: int | None = None
    """d, how many coordinates a coupling keeps; None: half of them."""
    between: Between = "permute"
    """What is done between couplings: a random permutation, or the parts exchange their roles."""
    width: int = 64
    """Of the two hidden layers of each network."""
    num_bins: int = 8
    """Of the splines."""
    num_train: int = 100_000
    num_test: int = 20_000
    """Fresh test points."""
    num_steps: int = 2_000
    batch_size: int = 256
    learning_rate: float = 3e-3
    """Peak of a cosine schedule that ends at zero."""
    clip_norm: float = 5.0
    seed: int = 0
    """Of the data, the rotation, the permutation and the training."""


@dataclasses.dataclass(frozen=True)
class RotatedToys(gm.data.Toy):
    """`num` independent toys in the plane, turned by the random orthogonal matrix of `seed`; events (2 num,)."""

    toy: gm.data.Toy
    num: int
    seed: int = 0

    @property
    def event(self) -> gm.Real:
        return gm.Real((2 * self.num,))

    @property
    def rotation(self) -> np.ndarray:
        """Q, (2 num, 2 num), uniform over the orthogonal matrices."""
        q, r = np.linalg.qr(np.random.default_rng(self.seed).standard_normal((2 * self.num, 2 * self.num)))
        return q * np.sign(np.diagonal(r))

    def sample_one(self, params, key, context=None):
        y = jax.vmap(lambda key: self.toy.sample_one({}, key))(jax.random.split(key, self.num))
        return jnp.matmul(jnp.asarray(self.rotation, y.dtype), y.ravel(), precision="highest")

    def log_prob_one(self, params, x, context=None, key=None):
        y = jnp.matmul(jnp.asarray(self.rotation.T, x.dtype), x, precision="highest")
        return jax.vmap(lambda y: self.toy.log_prob_one({}, y))(y.reshape(self.num, 2)).sum()

    def exact_entropy(self) -> float:
        """A rotation keeps volumes: the sum of the entropies of the toys."""
        return self.num * self.toy.entropy()


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key, model = jax.random.key(config.seed), build(config)
    data = gm.data.from_density(config.data, law(config), stream(key, "data"), config.num_train)
    fit = gm.fit(
        model,
        data.train,
        key=stream(key, "fit"),
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        clip_norm=config.clip_norm,
        checkpoint=run.checkpoint,
        log=run.log,
        progress=False,
    )
    metrics: dict[str, Any] = {"model": config.kind, "num_test": config.num_test, "limit_nats": data.entropy}
    metrics |= gm.evaluate(model, fit.params, data.sample(stream(key, "test"), config.num_test), true_log_prob=data.log_prob)
    print(gm.lab.text_table([row(config, metrics)]))
    return metrics


def law(config: Config) -> gm.data.Toy:
    """The exact density of the data."""
    if config.dim < 2 or config.dim % 2:
        raise ValueError(f"--dim must be an even number, 2 or more: that of whole toys in the plane; got {config.dim}")
    toy = TOYS[config.data]
    return toy if config.dim == 2 else RotatedToys(toy, config.dim // 2, config.seed)


def build(config: Config) -> gm.models.Flow:
    """The flow of a config: of halves and permutations it is `flows.real_nvp` or `flows.neural_spline_flow`."""
    num_rounds = config.num_couplings // len(kept(config))
    network = gm.nets.MLP((config.width, config.width))
    first = gm.bijectors.Coupling(transformer(config), network, kept(config)[0])
    if config.between == "permute":
        return stacked(first, (config.dim,), num_rounds, None, True, config.seed)
    mask = tuple(i >= kept(config)[0] for i in range(config.dim))
    pair = gm.bijectors.Chain((first, gm.bijectors.Coupling(transformer(config), network, mask)))
    return stacked(pair, (config.dim,), num_rounds, None, True)


def transformer(config: Config) -> gm.bijectors.Transformer:
    """The scalar map of the moved coordinates."""
    return affine_in((config.dim,)) if config.kind == "affine" else gm.bijectors.RationalQuadraticSpline(config.num_bins)


def kept(config: Config) -> tuple[int, ...]:
    """How many coordinates the couplings keep, one after the other and then again: (d,), or (d, D - d) where parts exchange."""
    split = config.dim // 2 if config.split is None else config.split
    if not 0 < split < config.dim:
        raise ValueError(f"--split must be in 1..{config.dim - 1}, so that some coordinates are kept and some moved; got {split}")
    if config.between == "permute":
        return (split,)
    if config.num_couplings % 2:
        raise ValueError(f"--num-couplings must be even where the parts exchange their roles, got {config.num_couplings}")
    return split, config.dim - split


def num_params(config: Config) -> int:
    """Parameters of the flow, those of the standardisation aside: of networks d -> width -> width -> (D - d) P."""
    w, total = config.width, 0
    for d in kept(config):
        outputs = (config.dim - d) * transformer(config).num_params
        total += (d + 1) * w + (w + 1) * w + (w + 1) * outputs
    return config.num_couplings // len(kept(config)) * total


def with_num_params(config: Config, num: int) -> Config:
    """The config whose width makes the number of parameters nearest to `num`.

    Raises ValueError where even a width of 1 has more, and without couplings.
    """
    check_count(num_couplings=config.num_couplings)
    smaller = dataclasses.replace(config, width=1)
    if num_params(smaller) > num:
        raise ValueError(
            f"{config.num_couplings} couplings have {num_params(smaller):,} parameters at least; {num:,} are too few"
        )
    for width in itertools.count(2):
        larger = dataclasses.replace(config, width=width)
        if num_params(larger) > num:
            return min(smaller, larger, key=lambda config: abs(num_params(config) - num))
        smaller = larger
    raise AssertionError  # never: more width is more parameters


def row(config: Config, metrics: dict[str, Any]) -> dict[str, Any]:
    """One line of text."""
    return {
        "kind": config.kind,
        "data": f"{config.data}, D = {config.dim}",
        "couplings": config.num_couplings,
        "kept": f"{kept(config)[0]} of {config.dim}",
        "width": config.width,
        "parameters": metrics["num_params"],
        "gap (nats)": gm.lab.with_error(metrics["gap_nats"], metrics["gap_nats_sem"]),
    }


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 500, "num_train": 20_000})
