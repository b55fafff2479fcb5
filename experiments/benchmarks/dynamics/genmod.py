"""genmod itself: the public builders, `log_prob`, `sample` and `GradientStep`."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from experiments.benchmarks.dynamics import _jax as by_hand
from experiments.benchmarks.dynamics.problems import NUM_DDIM_STEPS, TOLERANCE, Cell, Weights, solver_steps
from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.peer import LEARNING_RATE, Arrays
from genmod.core.batching import vmap_events

ADAPTIVE = gm.dynamics.Adaptive(rtol=TOLERANCE, atol=TOLERANCE)
ADJOINT = gm.dynamics.Adaptive(rtol=TOLERANCE, atol=TOLERANCE, adjoint=diffrax.BacksolveAdjoint())
INDEPENDENT = gm.transport.Independent()


def _ffjord(cell: Cell, integrator: Any) -> Any:
    divergence = gm.dynamics.Exact() if cell.divergence == "exact" else gm.dynamics.Hutchinson(num_probes=1)
    field = {"hidden_sizes": cell.hidden_sizes, "activation": jnp.tanh, "standardize": False}
    return gm.flows.ffjord(event_shape=(cell.dim,), divergence=divergence, integrator=integrator, **field)


def _flow_matching(cell: Cell, coupling: Any, integrator: Any = ADAPTIVE) -> Any:
    field = {"hidden_sizes": cell.hidden_sizes, "activation": jax.nn.silu, "standardize": False}
    return gm.flows.flow_matching(event_shape=(cell.dim,), coupling=coupling, integrator=integrator, **field)


def _alpha(t: jax.Array) -> jax.Array:
    return by_hand.levels(t)[0]


def _sigma(t: jax.Array) -> jax.Array:
    return by_hand.levels(t)[1]


def _diffusion(cell: Cell) -> Any:
    return gm.flows.diffusion(
        event_shape=(cell.dim,),
        schedule=gm.denoising.CustomSchedule(_alpha, _sigma),
        kind="edm",
        network=gm.nets.VelocityMLP(cell.hidden_sizes, jax.nn.silu),
        weighting=gm.denoising.EDMWeighting(),
        sampler=gm.denoising.Steps(gm.denoising.DDIM(), gm.denoising.UniformGrid(NUM_DDIM_STEPS), denoise=False),
        scaling=None,
    )


def _training(model: Any, scale: float = 1.0) -> Training:
    """The library's training step. `scale` makes the loss comparable: regressions here sum over the event."""
    gradient = gm.GradientStep(model, optax.adam(LEARNING_RATE))

    def step(state: Any, key: jax.Array, batch: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = gradient(state, key, gm.Batch(batch))
        return state, scale * metrics["loss"]

    def init(params: Any) -> Any:
        return gradient.init(params, jax.random.key(0), None)

    return Training(init, step, gradient.evaluation_params)


def _loader(model: Any, x: np.ndarray, time_unit: float = 1.0) -> Callable[[Weights], Any]:
    """Weights -> params. Every layer of the library's field reads the time, in units of `time_unit`, those but the first with
    weight zero here."""
    like = model.init(jax.random.key(0), x)

    def load(layers: Weights) -> Any:
        (first, _), *_ = layers
        arrays = {("layer_0", "kernel"): first[:-1], ("layer_0_shift", "kernel"): time_unit * first[-1:]}
        for i, (w, b) in enumerate(layers):
            name = f"layer_{i}" if i < len(layers) - 1 else "out"
            arrays[name, "bias"] = b
            if i:
                arrays |= {(name, "kernel"): w, (f"{name}_shift", "kernel"): np.zeros((1, w.shape[1]), w.dtype)}

        def fill(path: tuple, leaf: jax.Array) -> jax.Array:
            array = arrays.pop(tuple(entry.key for entry in path[-2:]))
            assert array.shape == leaf.shape, (path, array.shape, leaf.shape)
            return jnp.asarray(array)

        params = jax.tree_util.tree_map_with_path(fill, like)
        assert not arrays, f"not loaded: {list(arrays)}"
        return params

    return load


def _log_probs(model: Any, kind: str = "") -> dict[str, Callable]:
    def num_steps(params: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        return model.log_prob_with_info(params, x, key=key)[1]["num_steps"].max()

    return {f"log_prob{kind}": lambda params, key, x: model.log_prob(params, x, key=key), f"log_prob{kind}_steps": num_steps}


def _samples(cell: Cell, model: Any, kind: str = "") -> dict[str, Callable]:
    def push(params: Any, key: jax.Array, z: jax.Array) -> jax.Array:
        return vmap_events(functools.partial(model.bijector.forward, params["bijector"]))(z)

    def num_steps(params: Any, key: jax.Array, z: jax.Array) -> jax.Array:
        forward = functools.partial(model.bijector.forward_with_info, params["bijector"], log_det=False)
        return vmap_events(lambda z: forward(z)[2]["num_steps"])(z).max()

    return {f"sample{kind}": _sample(cell, model), f"push{kind}": jax.jit(push), f"sample{kind}_steps": num_steps}


def _sample(cell: Cell, model: Any) -> Callable:
    return lambda params, key: model.sample(params, key, (cell.num_points,))


def _ddim_samples(cell: Cell, model: Any) -> dict[str, Callable]:
    def push(params: Any, key: jax.Array, z: jax.Array) -> jax.Array:
        return model.sampler(key, functools.partial(model.denoise, params), model.predictor.schedule, z)

    def num_steps(params: Any, key: jax.Array, z: jax.Array) -> int:
        return model.sampler.num_evaluations

    return {"sample": _sample(cell, model), "push": jax.jit(jax.vmap(push, (None, None, 0))), "sample_steps": num_steps}


def _memory(cell: Cell, num_steps: int) -> dict[str, Training]:
    """Training steps of (at most) that many steps of the solver."""
    adaptive, backsolve = gm.dynamics.Adaptive(max_steps=num_steps), diffrax.BacksolveAdjoint()
    kinds = {"fixed": gm.dynamics.FixedSteps(num_steps), "adaptive": adaptive}
    kinds["backsolve"] = gm.dynamics.Adaptive(max_steps=num_steps, adjoint=backsolve)
    return {kind: _training(_ffjord(cell, integrator)) for kind, integrator in kinds.items()}


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The model; `log_prob` and `sample` are jitted by the library."""
    fixed, batch = {op: gm.dynamics.FixedSteps(num) for op, num in solver_steps(arrays).items()}, arrays["batches"][0]
    if cell.kind == "dm":
        model = _diffusion(cell)
        load = _loader(model, batch, time_unit=4.0)  # the network here sees log(sigma / alpha) / 4
        return by_hand.peer(arrays, {"train": _training(model, 1 / cell.dim)}, _ddim_samples(cell, model), load)
    if cell.kind == "cnf":
        integrators = {"train": ADAPTIVE, "train_fixed": fixed["train"], "train_adjoint": ADJOINT}
        models = {op: _ffjord(cell, integrator) for op, integrator in integrators.items()}
        functions = _log_probs(models["train"]) | _log_probs(_ffjord(cell, fixed["log_prob"]), "_fixed")
        functions["memory"] = by_hand.memory(arrays, functools.partial(_memory, cell))
        training = {op: _training(model) for op, model in models.items()}
    else:
        couplings = {
            "train": INDEPENDENT,
            "train_ot_exact": gm.transport.ExactAssignment(),
            "train_ot_sinkhorn": gm.transport.Sinkhorn(),
        }
        models = {op: _flow_matching(cell, coupling) for op, coupling in couplings.items()}
        functions = _samples(cell, models["train"]) | _samples(cell, _flow_matching(cell, INDEPENDENT, fixed["sample"]), "_fixed")
        training = {op: _training(model, 1 / cell.dim) for op, model in models.items()}
    return by_hand.peer(arrays, training, functions, _loader(models["train"], batch))
