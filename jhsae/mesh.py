"""Devices: one mesh with the axes ``data`` and ``expert``, and one table from logical axes to mesh axes.

The batch is split over ``data``; arrays whose annotation names `experts` or `features` are split over ``expert``;
everything else is replicated. Optimizer state follows its parameter.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jhsae.errors import UserError
from jhsae.leaf import describe
from jhsae.sae import AbstractSAE

LOGICAL_TO_MESH = {"experts": "expert", "features": "expert"}


@dataclass(frozen=True)
class MeshShape:
    """How many devices share the batch (`data`; null = all that remain) and the experts (`expert`)."""

    data: int | None = None
    expert: int = 1


def make_mesh(shape: MeshShape, devices: int | None = None) -> Mesh:
    """The mesh over all devices of all hosts. Raises `UserError` when the sizes do not fit."""
    count = devices or jax.device_count()
    data = shape.data if shape.data is not None else count // max(shape.expert, 1)
    if min(data, shape.expert) < 1 or data * shape.expert != count:
        raise UserError(
            f"mesh: data {data} x expert {shape.expert} is {data * shape.expert} devices, but there are {count}; "
            "write sizes whose product is the number of devices, or mesh.data=null"
        )
    return jax.make_mesh((data, shape.expert), ("data", "expert"), axis_types=(AxisType.Auto,) * 2)


def check_batch(batch: int, mesh: Mesh) -> None:
    """Raises `UserError` when the batch cannot be split evenly over the data axis."""
    data = mesh.shape["data"]
    if batch % data:
        raise UserError(
            f"data.batch is {batch}, which {data} devices cannot share; write a multiple of {data}, "
            f"e.g. data.batch={max(1, batch // data) * data}"
        )


def shard_state(state: PyTree, mesh: Mesh) -> PyTree:
    """Constrains (inside jit) or moves (outside) every array to the layout of the table."""

    def place_tree(tree: PyTree) -> PyTree:
        if not isinstance(tree, AbstractSAE):
            return _put(tree, NamedSharding(mesh, PartitionSpec())) if eqx.is_array(tree) else tree
        arrays, static = eqx.partition(tree, eqx.is_array)
        placed = jax.tree.map(lambda leaf, a: _put(a, _sharding(leaf.axes, a.shape, mesh)), describe(arrays), arrays)
        return eqx.combine(placed, static)

    return jax.tree.map(place_tree, state, is_leaf=lambda t: isinstance(t, AbstractSAE))


def shard_batch(batch: np.ndarray, mesh: Mesh) -> Float[Array, "batch embed"]:
    """A global array over the data axis from this host's rows."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("data")), batch)


def _sharding(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    names = [LOGICAL_TO_MESH.get(axis) for axis in axes]
    fits = [n if n is None or size % mesh.shape[n] == 0 else None for n, size in zip(names, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*fits))


def _put(a: Array, sharding: NamedSharding) -> Array:
    if isinstance(a, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(a, sharding)
    return jax.device_put(a, sharding)
