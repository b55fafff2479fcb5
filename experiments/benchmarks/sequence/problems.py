"""A causal Transformer language model: a training step, and generation with a cache of keys and values and without one.

    h = E[token] I + i + P[t]                                      the token before that of step t; at t = 0 the start, row V of E
    h <- h + attention(norm(h)) O + o                              in every layer; q, k, v = norm(h) Q + q, cut into heads
    h <- h + gelu(norm(h) U + u) D + d                             gelu in its tanh form
    p(x_t | x_<t) = softmax(norm(h) L + l)                         norm over features, epsilon 1e-6, with scale and shift

train: an Adam step on batch_size sequences. cached: that many sequences are drawn token by token, from keys and values that are
kept; uncached: the same by a whole pass over the tokens so far for every new one.

All libraries begin with the same weights. A peer has beside the operations `nll`, nats per token of sequences, one evaluation.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, result, train

NUM_BATCHES = 32
EPSILON = 1e-6  # of the norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """Sizes; the layers between are four times as wide as the features."""

    length: int
    batch_size: int
    num_layers: int = 4
    num_heads: int = 4
    num_features: int = 128
    vocabulary: int = 65


def weights(cell: Cell, arrays: Arrays) -> dict[str, np.ndarray]:
    """The shared weights by name; those of the layers are stacked on a leading axis."""
    return {name: arrays[name] for name in shapes(cell)}


def shapes(cell: Cell) -> dict[str, tuple[int, ...]]:
    """NAME_w, (inputs, outputs) or the scale of a norm, and NAME_b; `embedding` and `positions` are tables of rows."""
    layers, features = cell.num_layers, cell.num_features
    found: dict[str, tuple[int, ...]] = {
        "embedding": (cell.vocabulary + 1, features),
        "positions": (cell.length, features),
    }
    linear = {
        "input": (features, features),
        "qkv": (layers, features, 3 * features),
        "out": (layers, features, features),
        "up": (layers, features, 4 * features),
        "down": (layers, 4 * features, features),
        "logits": (features, cell.vocabulary),
    }
    norms = {"attention_norm": (layers, features), "mlp_norm": (layers, features), "norm": (features,)}
    for name, shape in linear.items():
        found |= {f"{name}_w": shape, f"{name}_b": (*shape[:-2], shape[-1])}
    for name, shape in norms.items():
        found |= {f"{name}_w": shape, f"{name}_b": shape}
    return found


def make(cell: Cell) -> Arrays:
    """Weights, whose logits are some two nats large; sequences in which each token has four equally likely successors."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in shapes(cell).items():
        noise = rng.standard_normal(shape)
        if name.endswith("_b"):
            noise = 0.1 * noise
        elif "norm" in name:
            noise = 1 + 0.1 * noise
        elif name.endswith("_w"):
            noise = noise * shape[-2] ** -0.5 * (2.0 if name == "logits_w" else 1.0)
        arrays[name] = noise.astype(np.float32)
    steps = [rng.integers(cell.vocabulary, size=NUM_BATCHES * cell.batch_size)]
    for _ in range(cell.length - 1):
        steps.append((5 * steps[-1] + rng.integers(4, size=len(steps[-1]))) % cell.vocabulary)
    batches = np.stack(steps, 1).astype(np.uint8).reshape(NUM_BATCHES, cell.batch_size, cell.length)
    return {**arrays, "batches": batches, "x": batches[0]}


def log_probs(cell: Cell, arrays: Arrays, x: np.ndarray) -> np.ndarray:
    """log p(. | x_<t) of every step in float64, (n, T, V): by the definition."""
    w = {name: value.astype(np.float64) for name, value in weights(cell, arrays).items()}

    def norm(h: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + EPSILON) * scale + shift

    def heads(a: np.ndarray) -> np.ndarray:
        return a.reshape(*a.shape[:2], cell.num_heads, -1).swapaxes(1, 2)  # (n, H, T, C / H)

    read = np.concatenate([np.full((len(x), 1), cell.vocabulary), x[:, :-1]], 1)
    h = w["embedding"][read] @ w["input_w"] + w["input_b"] + w["positions"][: x.shape[1]]
    visible = np.tril(np.ones((x.shape[1], x.shape[1]), bool))
    for i in range(cell.num_layers):
        q, k, v = np.split(norm(h, w["attention_norm_w"][i], w["attention_norm_b"][i]) @ w["qkv_w"][i] + w["qkv_b"][i], 3, -1)
        scores = heads(q) @ heads(k).swapaxes(-1, -2) / (cell.num_features // cell.num_heads) ** 0.5
        weight = np.exp(np.where(visible, scores - scores.max(-1, keepdims=True), -np.inf))
        attended = weight / weight.sum(-1, keepdims=True) @ heads(v)
        h = h + attended.swapaxes(1, 2).reshape(h.shape) @ w["out_w"][i] + w["out_b"][i]
        u = norm(h, w["mlp_norm_w"][i], w["mlp_norm_b"][i]) @ w["up_w"][i] + w["up_b"][i]
        gelu = 0.5 * u * (1 + np.tanh((2 / np.pi) ** 0.5 * (u + 0.044715 * u**3)))
        h = h + gelu @ w["down_w"][i] + w["down_b"][i]
    logits = norm(h, w["norm_w"], w["norm_b"]) @ w["logits_w"] + w["logits_b"]
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """What an operation is worth.

    train: the mean loss of the last quarter of `num_steps` steps from the shared weights, without noise. nll: its error. cached,
    uncached: the sum of -log p - entropy over the tokens drawn, in its standard deviations. Given the past each term has mean
    zero if the token follows p, and a variance that is known, so that the ratio is about standard normal.
    """
    peer.restart("initial")
    if name == "train":
        return {"loss, nats per token": np.mean(train(peer, name, num_steps)[-max(1, num_steps // 4) :])}
    x = arrays["x"] if name == "nll" else result(peer, name).astype(np.int64)
    log_p = log_probs(cell, arrays, x)
    nll = -np.take_along_axis(log_p, x[..., None].astype(np.int64), -1)[..., 0]
    if name == "nll":
        value = float(result(peer, "nll", x))
        return {"nats per token": value, "error, nats per token": abs(value - nll.mean())}
    p = np.exp(log_p)
    entropy, square = -(p * log_p).sum(-1), (p * log_p**2).sum(-1)
    return {"standard deviations": (nll - entropy).sum() / np.sqrt((square - entropy**2).sum())}


def _cell(problem: str, operations: tuple[str, ...], **fields: Any) -> Cell:
    return Cell(problem=problem, operations=operations, checks=("nll", *operations), **fields)


FAMILY = Family(
    title="Transformer language models",
    cells={
        "train-12x64": _cell("train-12x64", ("train",), length=64, batch_size=12, num_steps=60, turn_seconds=1.0),
        "train-64x64": _cell("train-64x64", ("train",), length=64, batch_size=64, num_steps=12, turn_seconds=2.0),
        "generate-8x256": _cell("generate-8x256", ("cached", "uncached"), length=256, batch_size=8),
        "tiny": _cell(
            "tiny",
            ("train", "cached", "uncached"),
            length=8,
            batch_size=32,
            num_layers=2,
            num_heads=2,
            num_features=8,
            vocabulary=5,
            num_steps=60,
        ),
    },
    quick=("train-12x64",),
    make=make,
    check=check,
    inputs={},
    notes="""\
4 layers, 4 heads, 128 features, learned positions, a vocabulary of 65. train-BxT: an Adam step on B sequences of T tokens, from
shared weights, without noise: the losses agree. generate-BxT: B sequences of T tokens, without a prompt; whether they follow the
model is a number of standard deviations. Without a cache genmod passes over the tokens so far rounded up to a quarter of the
whole, as each length is compiled; PyTorch over just these.

genmod aims at the training step of PyTorch, and with the cache at a fifth of its own time without it.""",
)
