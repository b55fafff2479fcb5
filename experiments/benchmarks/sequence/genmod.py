"""genmod itself: `gm.models.language_model` of a `CausalTransformer`, `GradientStep` and `sample`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import genmod as gm
from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.peer import LEARNING_RATE, Arrays
from experiments.benchmarks.sequence.problems import Cell, weights

NUM_PIECES = 4  # of a generation without a cache: so many lengths are compiled


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The model; its loss is of a sequence, here it is told per token."""
    body = gm.nets.CausalTransformer(
        cell.length, cell.num_features, cell.num_layers, cell.num_heads, positions=gm.nets.LearnedPositions()
    )
    event = gm.Levels((cell.length,), cell.vocabulary)
    model = gm.models.language_model(event, body, num_features=cell.num_features)
    params = load(model, cell, arrays)
    gradient = gm.GradientStep(model, optax.adam(LEARNING_RATE))

    def step(state: Any, key: jax.Array, batch: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = gradient(state, key, gm.Batch(batch))
        return state, metrics["loss"] / cell.length

    functions = {
        "nll": jax.jit(lambda params, key, x: model.loss(params, key, gm.Batch(x))[0] / cell.length),
        "cached": lambda params, key: model.sample(params, key, (cell.batch_size,)),
        "uncached": jax.jit(lambda params, key: uncached(model, cell, params, key)),
    }
    training = Training(lambda params: gradient.init(params, jax.random.key(0), None), step, gradient.evaluation_params)
    return JaxPeer(params, arrays["batches"], {"train": training}, functions, load=lambda which: params)


def uncached(model: Any, cell: Cell, params: Any, key: jax.Array) -> jax.Array:
    """Sequences, (batch_size, length), by a pass over all that is there for every new token."""
    tokens, start = jnp.zeros((cell.batch_size, cell.length), model.event.dtype), 0
    for piece in range(1, NUM_PIECES + 1):
        end = cell.length * piece // NUM_PIECES
        shorter = dataclasses.replace(model, event=gm.Levels((end,), cell.vocabulary))

        def move(t: Any, tokens: jax.Array, model: Any = shorter, end: int = end) -> jax.Array:
            raw = jax.vmap(model.raw_one, (None, 0))(params, tokens[:, :end])
            return tokens.at[:, t].set(model.head.sample(raw[:, t], jax.random.fold_in(key, t)))

        tokens, start = jax.lax.fori_loop(start, end, move, tokens), end
    return tokens


def load(model: Any, cell: Cell, arrays: Arrays) -> Any:
    """The shared weights as parameters, which have one name for each layer and for each of q, k, v."""
    shared = {name: jnp.asarray(value) for name, value in weights(cell, arrays).items()}
    heads, size = cell.num_heads, cell.num_features // cell.num_heads

    def linear(name: str, *layer: int) -> dict[str, jax.Array]:
        return {"kernel": shared[f"{name}_w"][layer], "bias": shared[f"{name}_b"][layer]}

    def norm(name: str, *layer: int) -> dict[str, jax.Array]:
        return {"scale": shared[f"{name}_w"][layer], "bias": shared[f"{name}_b"][layer]}

    body = {"positions": {"table": shared["positions"]}, "Dense_0": linear("input")}
    body[f"LayerNorm_{2 * cell.num_layers}"] = norm("norm")
    for i in range(cell.num_layers):
        projections = jax.tree.map(lambda a: jnp.split(a, 3, -1), linear("qkv", i))
        for j in range(3):
            kernel, bias = (projections[kind][j] for kind in ("kernel", "bias"))
            body[f"DenseGeneral_{4 * i + j}"] = {"kernel": kernel.reshape(-1, heads, size), "bias": bias.reshape(heads, size)}
        out = linear("out", i)
        body[f"DenseGeneral_{4 * i + 3}"] = {"kernel": out["kernel"].reshape(heads, size, -1), "bias": out["bias"]}
        body |= {f"LayerNorm_{2 * i}": norm("attention_norm", i), f"LayerNorm_{2 * i + 1}": norm("mlp_norm", i)}
        body |= {f"Dense_{2 * i + 1}": linear("up", i), f"Dense_{2 * i + 2}": linear("down", i)}
    params = {"net": ({"embedding": shared["embedding"]}, body, linear("logits"))}
    wanted = jax.tree.map(jnp.shape, model.init(jax.random.key(0), arrays["batches"][0]))
    assert jax.tree.map(jnp.shape, params) == wanted, wanted
    return params
