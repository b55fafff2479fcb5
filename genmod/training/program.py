"""The compiled parts of a run. Equal programs, called on equal shapes, share one compilation.

begin      the state of step 0, parameters included
advance    the steps up to `stop` in one dispatch: number, minibatches and keys are counted inside
validate   the numbers of the held-out rows, and the best parameters so far
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial

from genmod.core.description import Description
from genmod.core.keys import stream
from genmod.core.types import Array, Key, Params
from genmod.training.batches import Order, draw, draw_several, no_order
from genmod.training.reports import check_metrics, check_names, watched
from genmod.training.sharding import constrain, spread
from genmod.training.step import num_batches, specs
from genmod.training.validation import Best, Measure


class Carry(NamedTuple):
    """What goes from dispatch to dispatch: the step's own state, how many steps are done, and the order of resident rows."""

    state: Any
    step: Array
    order: Order | None


class Report(NamedTuple):
    """What a dispatch tells the host: summed metrics, those of the last step, and whether all was finite."""

    total: dict[str, Array]
    last: dict[str, Array]
    ok: Array


@dataclasses.dataclass(frozen=True)
class Program(Description):
    """The static part of a run; `batch_size` is None where the loop does not cut minibatches itself."""

    step: Any
    batch_size: int | None
    mesh: Mesh | None

    def batch(self, data: Any, index: Array, offset: Array, order: Order | None) -> tuple[Any, Order | None]:
        """(what call number `index` of the step gets, the order to carry on); `offset`: its place in a stack of batches."""
        num = num_batches(self.step)
        if data is None:
            return None, None
        if self.batch_size is None or order is None:
            batch = jax.tree.map(lambda a: a[offset] if num > 1 else a[offset, 0], data)
        elif num == 1:
            batch, order = draw(data, self.batch_size, index, order)
        else:
            batch, order = draw_several(data, self.batch_size, index * num, num, order)
        return spread(batch, self.mesh, int(num > 1)), order


def _begin(program: Program, start: Params | Partial, data: Any, num_rows: Array, key: Key) -> tuple[Any, Order | None]:
    """(the state of step 0, the order of resident rows).

    `start`: parameters, or a `Partial` that makes them of a key. `num_rows`: how many of resident rows are drawn from.
    """
    params = start(stream(key, "init")) if isinstance(start, Partial) else start
    order = None if data is None or program.batch_size is None else no_order(data, num_rows, stream(key, "batches"))
    batch, _ = program.batch(data, jnp.int32(0), jnp.int32(0), order)
    state = program.step.init(jax.tree.map(jnp.asarray, params), stream(key, "step"), batch)
    return jax.tree.map(_strong, state), order


begin = jax.jit(_begin, static_argnums=0)
# It runs once: on a CPU the unoptimised program is ready 0.7 s earlier (NSF, D = 2). Of a deep net on images it runs for seconds.
begin_plainly = jax.jit(_begin, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jax.jit, static_argnums=0)
def advance(program: Program, carry: Carry, data: Any, key: Key, stop: Array) -> tuple[Carry, Report]:
    """Steps carry.step .. stop - 1, fewer if one is not finite.

    `data`: the resident arrays, a stack of batches whose first belongs to carry.step, or None.
    """
    shapes = _one_step.eval_shape(program, carry, data, key, carry.step)
    _check_state(program.step, carry.state, shapes[0].state)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[1])

    def unfinished(loop):
        return (loop[0].step < stop) & loop[1].ok

    def body(loop):
        now, report = loop
        now, metrics = _one_step(program, now, data, key, carry.step)
        ok = functools.reduce(jnp.logical_and, [jnp.isfinite(metrics[name]) for name in watched(metrics)])
        return now, Report(jax.tree.map(jnp.add, report.total, metrics), metrics, ok)

    end, report = jax.lax.while_loop(unfinished, body, (carry, Report(zeros, zeros, jnp.array(True))))
    # The last update has no loss yet to betray it.
    leaves = [a for a in jax.tree.leaves(program.step.evaluation_params(end.state)) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return end, report._replace(ok=functools.reduce(jnp.logical_and, [jnp.isfinite(a).all() for a in leaves], report.ok))


@functools.partial(jax.jit, static_argnums=0)
def _one_step(program: Program, carry: Carry, data: Any, key: Key, first: Array) -> tuple[Carry, dict[str, Array]]:
    # Compiled as part of `advance`. A jit of its own, so that its shapes and its loop share one trace of the model.
    batch, order = program.batch(data, carry.step, carry.step - first, carry.order)
    state, metrics = program.step(carry.state, jax.random.fold_in(stream(key, "train"), carry.step), batch)
    owner = f"the step {type(program.step).__name__}"
    metrics = check_metrics(owner, metrics)
    check_names(owner, metrics, ("step",))
    if not any(name == "loss" or name.endswith("_loss") for name in metrics):
        raise ValueError(f'{owner} must report a metric "loss", or one that ends in "_loss", got {sorted(metrics)}')
    state = constrain(state, program.mesh, specs(program.step, state))
    return Carry(state, carry.step + 1, order), metrics


@functools.partial(jax.jit, static_argnums=(0, 1))
def validate(
    measure: Measure, step: Any, state: Any, number: Array, best: Best, rows: Any, key: Key
) -> tuple[dict[str, Array], Best]:
    """(the values of the held-out rows, the best parameters with those of this state taken in)."""
    params = step.evaluation_params(state)
    values = measure(params, stream(key, "validation"), rows)
    value = values[measure.monitor].astype(best.value.dtype)
    fresh = Best(params, value, number)
    return values, jax.tree.map(lambda new, old: jnp.where(value < best.value, new, old), fresh, best)


def _strong(leaf: Any) -> Any:
    """Without the weak type of a Python number, so that the state of step 0 has the types of all others."""
    leaf = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(leaf, leaf.dtype)


def _check_state(step: Any, before: Any, after: Any) -> None:
    """Raises TypeError, naming the first difference, where a step does not return the kind of state that it got."""
    old, new = ({jax.tree_util.keystr(path): _kind(leaf) for path, leaf in jax.tree.leaves_with_path(s)} for s in (before, after))
    place = next((place for place in [*old, *new] if old.get(place) != new.get(place)), None)
    if place is not None:
        raise TypeError(
            f"the step {type(step).__name__} must return a state of the shapes and dtypes that it got: state{place} was "
            f"{old.get(place, 'not there')} and is {new.get(place, 'not there')}"
        )


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
