"""A run on several devices: batches are spread over the one axis of a mesh, and the state lies as its step says."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_WHOLE = PartitionSpec()


def check_mesh(mesh: Mesh | None, batch_size: int) -> Mesh | None:
    """The mesh, with an automatic axis: one of explicit types, as `jax.make_mesh` gives, would want them in every model.

    Raises TypeError or ValueError unless there is none, or one of one axis whose size divides the batch.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh of one axis, got {mesh!r}")
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    if batch_size % mesh.size:
        raise ValueError(f"batch_size must be a multiple of the {mesh.size} devices of the mesh, got {batch_size}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))


def place(tree: Any, mesh: Mesh | None, specs: Any = None) -> Any:
    """The tree on the devices of the mesh, as the prefix `specs` of `PartitionSpec`s says; None: a copy on each."""
    return tree if mesh is None or tree is None else jax.tree.map(jax.device_put, tree, _shardings(tree, mesh, specs))


def constrain(tree: Any, mesh: Mesh | None, specs: Any = None) -> Any:
    """`place` for what is being traced."""
    if mesh is None:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, _shardings(tree, mesh, specs))


def spread(batch: Any, mesh: Mesh | None, axis: int) -> Any:
    """A batch that is being traced, with its axis number `axis` spread over the devices."""
    if mesh is None:
        return batch
    return constrain(batch, mesh, PartitionSpec(*[None] * axis, mesh.axis_names[0]))


def _shardings(tree: Any, mesh: Mesh, specs: Any) -> Any:
    def below(spec, part):
        return jax.tree.map(lambda _: NamedSharding(mesh, _WHOLE if spec is None else spec), part)

    return jax.tree.map(below, specs, tree, is_leaf=lambda spec: spec is None or isinstance(spec, PartitionSpec))
