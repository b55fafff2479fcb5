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
from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.dynamics.jax_dynamics import JaxDynamics, levels, temp_bytes

ADAPTIVE = gm.ode.Adaptive(rtol=base.TOLERANCE, atol=base.TOLERANCE)
ADJOINT = gm.ode.Adaptive(rtol=base.TOLERANCE, atol=base.TOLERANCE, adjoint=diffrax.BacksolveAdjoint())


def _ffjord(cell: base.Cell, integrator: Any) -> Any:
    divergence = gm.divergence.Exact() if cell.divergence == "exact" else gm.divergence.Hutchinson(num_probes=1)
    return gm.flows.ffjord(
        event_shape=(cell.dim,),
        hidden_sizes=cell.hidden_sizes,
        activation=jnp.tanh,
        divergence=divergence,
        integrator=integrator,
        standardize=False,
    )


def _flow_matching(cell: base.Cell, coupling: Any, integrator: Any = ADAPTIVE) -> Any:
    return gm.flows.flow_matching(
        event_shape=(cell.dim,),
        hidden_sizes=cell.hidden_sizes,
        activation=jax.nn.silu,
        coupling=coupling,
        integrator=integrator,
        standardize=False,
    )


def _alpha(t: jax.Array) -> jax.Array:
    return levels(t)[0]


def _sigma(t: jax.Array) -> jax.Array:
    return levels(t)[1]


def _diffusion(cell: base.Cell, num_steps: int) -> Any:
    return gm.flows.diffusion(
        event_shape=(cell.dim,),
        schedule=gm.schedules.Custom(_alpha, _sigma),
        kind="edm",
        network=gm.nets.VelocityMLP(cell.hidden_sizes, jax.nn.silu),
        weighting=gm.losses.EDMWeighting(),
        sampler=gm.samplers.Steps(gm.samplers.DDIM(), gm.samplers.Uniform(num_steps), denoise=False),
        scaling=None,
    )


def _step(model: Any, scale: float = 1.0) -> tuple[Callable, Callable]:
    """The library's training step as (init, step). `scale` makes the loss comparable: regressions here sum over the event."""
    gradient = gm.GradientStep(gm.step.ModelLoss(model), optax.adam(base.LEARNING_RATE))

    def step(state: Any, key: jax.Array, batch: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = gradient(state, key, (batch, None))
        return state, scale * metrics["loss"]

    return gradient.init, step


def _loader(model: Any, problem: base.Problem, time_unit: float = 1.0) -> Callable[[base.Weights], Any]:
    """Weights -> params. Every layer of the library's field reads the time, in units of `time_unit`, those but the first with
    weight zero here."""
    like = model.init(jax.random.key(0), problem.batches[0])

    def load(weights: base.Weights) -> Any:
        (first, _), *_ = weights
        arrays = {("layer_0", "kernel"): first[:-1], ("layer_0_shift", "kernel"): time_unit * first[-1:]}
        for i, (w, b) in enumerate(weights):
            name = f"layer_{i}" if i < len(weights) - 1 else "out"
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


def _push_by_steps(model: Any) -> Callable:
    def push(params: Any, z: jax.Array) -> jax.Array:
        denoiser = functools.partial(model.denoise, params)
        return model.sampler(jax.random.key(0), denoiser, model.predictor.schedule, z)

    return jax.jit(jax.vmap(push, (None, 0)))


def _push(model: Any) -> Callable:
    return jax.jit(lambda params, z: gm.base.vmap_events(functools.partial(model.bijector.forward, params["bijector"]))(z))


def _steps_of_log_prob(model: Any) -> Callable:
    return lambda params, x: model.log_prob_with_info(params, x, key=jax.random.key(0))[1]["num_steps"].max()


def _steps_of_push(model: Any) -> Callable:
    def forward(params: Any, z: jax.Array) -> jax.Array:
        return model.bijector.forward_with_info(params["bijector"], z, log_det=False)[2]["num_steps"]

    return lambda params, z: gm.base.vmap_events(functools.partial(forward, params))(z).max()


def build(cell: base.Cell, problem: base.Problem) -> JaxDynamics:
    """The model; `log_prob` and `sample` are jitted by the library."""
    num_steps = problem.num_steps
    if cell.kind == "cnf":
        models = {"": _ffjord(cell, ADAPTIVE), "_fixed": _ffjord(cell, gm.ode.FixedSteps(num_steps["log_prob"]))}
        train_fixed = _ffjord(cell, gm.ode.FixedSteps(num_steps["train"]))
        return JaxDynamics(
            _loader(models[""], problem),
            steps={
                "train": _step(models[""]),
                "train_fixed": _step(train_fixed),
                "train_adjoint": _step(_ffjord(cell, ADJOINT)),
            },
            log_probs={
                f"log_prob{kind}": lambda params, x, key, model=model: model.log_prob(params, x, key=key)
                for kind, model in models.items()
            },
            counts={f"log_prob{kind}": _steps_of_log_prob(model) for kind, model in models.items()},
        )
    if cell.kind == "dm":
        model = _diffusion(cell, num_steps["sample"])
        return JaxDynamics(
            _loader(model, problem, time_unit=4.0),  # the network here sees log(sigma / alpha) / 4
            steps={"train": _step(model, 1 / cell.dim)},
            samples={"sample": lambda params, key, num: model.sample(params, key, (num,))},
            pushes={"sample": _push_by_steps(model)},
            counts={"sample": lambda params, z: model.sampler.num_evaluations},
        )
    independent, fixed = gm.transport.Independent(), gm.ode.FixedSteps(num_steps["sample"])
    models = {"": _flow_matching(cell, independent), "_fixed": _flow_matching(cell, independent, fixed)}
    return JaxDynamics(
        _loader(models[""], problem),
        steps={
            "train": _step(models[""], 1 / cell.dim),
            "train_ot_exact": _step(_flow_matching(cell, gm.transport.ExactAssignment()), 1 / cell.dim),
            "train_ot_sinkhorn": _step(_flow_matching(cell, gm.transport.Sinkhorn()), 1 / cell.dim),
        },
        samples={
            f"sample{kind}": lambda params, key, num, model=model: model.sample(params, key, (num,))
            for kind, model in models.items()
        },
        pushes={f"sample{kind}": _push(model) for kind, model in models.items()},
        counts={f"sample{kind}": _steps_of_push(model) for kind, model in models.items()},
    )


def memory(problem: base.Problem, num_steps: int) -> dict[str, int]:
    """Bytes of the training step with exact trace and (at most) `num_steps` steps."""
    cell = base.Cell("cnf", 2)
    integrators = {
        "FixedSteps": gm.ode.FixedSteps(num_steps),
        "Adaptive": gm.ode.Adaptive(max_steps=num_steps),
        "Adaptive, backsolve": gm.ode.Adaptive(max_steps=num_steps, adjoint=diffrax.BacksolveAdjoint()),
    }
    models = {kind: _ffjord(cell, integrator) for kind, integrator in integrators.items()}
    params = _loader(models["FixedSteps"], problem)(problem.trained)
    return {kind: temp_bytes(_step(model), params, problem.batches[0]) for kind, model in models.items()}
