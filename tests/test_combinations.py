"""A hundred random combinations of model, precision, shape, context, optimizer and batch size.

Each gives finite numbers of the right shape, or one clear sentence.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import FLOWS

import genmod as gm

MODELS = {name: make for name, make in FLOWS.items() if name not in ("ffjord", "neural_autoregressive_flow")}
MODELS["diffusion"] = lambda shape, **options: gm.flows.diffusion(
    shape,
    hidden_sizes=(8,),
    integrator=gm.dynamics.FixedSteps(8),
    sampler=gm.denoising.Steps(grid=gm.denoising.LogSNRGrid(8)),
    **options,
)
CONTEXTS = {
    "none": None,
    "real": lambda rng, num: 1e3 * rng.normal(size=(num, 2)),
    "scalar": lambda rng, num: rng.normal(size=num),
    "one_hot": lambda rng, num: np.eye(3)[rng.integers(0, 3, num)],
    "one_hot_of_integers": lambda rng, num: np.eye(3, dtype=int)[rng.integers(0, 3, num)],
    "flags": lambda rng, num: rng.integers(0, 2, (num, 2)) > 0,
    "labels": lambda rng, num: rng.integers(0, 3, num),
    "classes": lambda rng, num: rng.integers(0, 3, num),
}
OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-3),
    "adamw": lambda: optax.adamw(1e-3),
    "sgd": lambda: optax.sgd(1e-4),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
}


def combination(seed):
    rng = np.random.default_rng([7, seed])
    return {
        "model": rng.choice(sorted(MODELS)),
        "dtype": rng.choice(["float32", "float64", "bfloat16", "float16"], p=[0.5, 0.2, 0.15, 0.15]),
        "dim": int(rng.choice([1, 2, 3, 5])),
        "context": rng.choice(sorted(CONTEXTS)),
        "optimizer": rng.choice(sorted(OPTIMIZERS)),
        "batch_size": int(rng.choice([1, 7, 64, 1_000])),
        "jit": bool(rng.integers(2)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_any_combination(seed):
    chosen = combination(seed)
    with jax.enable_x64(chosen["dtype"] == "float64"):
        run(seed, **chosen)


def run(seed, model, dtype, dim, context, optimizer, batch_size, jit):
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    x = jnp.asarray(rng.normal(size=(96, dim)) * 3 + 1, dtype)
    if model == "affine" and context != "none":
        with pytest.raises(TypeError, match="context_shape"):
            MODELS[model]((dim,), context_shape=(2,))
        return
    contexts = None if context == "none" else CONTEXTS[context](rng, 96)
    options = {} if contexts is None else {"context_shape": (3,) if context == "classes" else contexts.shape[1:]}
    built = MODELS[model]((dim,), **options)
    data = x if contexts is None else (x, contexts)
    settings = {"key": key, "optimizer": OPTIMIZERS[optimizer](), "batch_size": batch_size, "num_steps": 3, "progress": False}
    if context == "labels":
        with pytest.raises(TypeError, match=r"context_shape=\(num_classes,\)"):
            gm.fit(built, data, **settings)
        return
    fit = gm.fit(built, data, **settings)
    floats = [leaf for leaf in jax.tree.leaves(fit.params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.dtype == (np.float64 if dtype == "float64" else np.float32) for leaf in floats)
    assert all(jnp.isfinite(leaf).all() for leaf in floats)

    log_prob, sample = built.log_prob, built.sample
    if jit:
        log_prob, sample = jax.jit(log_prob), jax.jit(sample, static_argnums=2)
    some = None if contexts is None else contexts[:8]
    scored = log_prob(fit.params, x[:8], some)
    assert scored.shape == (8,) and jnp.isfinite(scored).all() and scored.dtype in (np.float32, np.float64)
    if context in ("one_hot_of_integers", "flags"):
        with pytest.raises(ValueError, match="could be class labels, or contexts of"):
            built.sample(fit.params, key, (3,), some)
        some = some.astype(np.float32)
    drawn = sample(fit.params, key, (3,), some)
    assert drawn.shape == ((3, dim) if some is None else (3, 8, dim)) and jnp.isfinite(drawn).all()
