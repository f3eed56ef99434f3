"""Devices: one mesh with the axes ``host``, ``data`` and ``expert``, and one table from logical axes to mesh axes.

The batch is split over ``host`` and ``data``; arrays whose annotation names `experts` or `features` are split over
``expert``; everything else is replicated. Moments of the optimizer follow their parameter and are split over ``data``
and ``host`` as well (ZeRO, Rajbhandari et al., arXiv 1910.02054, stage 2: gradients arrive in that layout too).
``host`` separates devices between which the network is slow, so that what crosses it is reduced within a host first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jhsae.errors import UserError
from jhsae.leaf import Leaf, describe
from jhsae.ops import EXPERT, ROWS, SHARDS, shard_rows
from jhsae.sae import AbstractSAE

LOGICAL_TO_MESH = {"experts": EXPERT, "features": EXPERT}


@dataclass(frozen=True)
class MeshShape:
    """How many devices share the batch and the experts."""

    data: Annotated[int | None, "devices that share the batch; null = all that remain"] = None
    expert: Annotated[int, "devices that share the experts, or the features"] = 1


def make_mesh(shape: MeshShape, devices: Sequence[Any] | int | None = None) -> Mesh:
    """The mesh over all devices of all hosts, over some, or over the first so many.

    Raises `UserError` when the sizes do not fit. ``host`` counts groups of devices with a fast network inside: slices of
    TPUs, processes elsewhere. ``expert`` stays within one of them where it can.
    """
    found = list(jax.devices() if devices is None or isinstance(devices, int) else devices)
    found = found[:devices] if isinstance(devices, int) else found
    data = shape.data if shape.data is not None else len(found) // max(shape.expert, 1)
    if min(data, shape.expert) < 1 or data * shape.expert != len(found):
        raise UserError(
            f"mesh: data {data} x expert {shape.expert} is {data * shape.expert} devices, but there are {len(found)}; "
            "write sizes whose product is the number of devices, or mesh.data=null"
        )
    groups = _fast_groups(found)
    hosts = len(groups) if data % len(groups) == 0 and len({len(g) for g in groups}) == 1 else 1
    groups = groups if hosts > 1 else [found]
    sizes = (1, data // hosts, shape.expert)
    parts = [jax.make_mesh(sizes, SHARDS, axis_types=(AxisType.Auto,) * 3, devices=group).devices for group in groups]
    return Mesh(np.concatenate(parts), SHARDS, axis_types=(AxisType.Auto,) * 3)


def check_batch(batch: int, mesh: Mesh) -> None:
    """Raises `UserError` when the batch cannot be split evenly over the data axis."""
    data = rows_shards(mesh)
    if batch % data:
        raise UserError(
            f"data.batch is {batch}, which {data} devices cannot share; write a multiple of {data}, "
            f"e.g. data.batch={max(1, batch // data) * data}"
        )


def rows_shards(mesh: Mesh) -> int:
    """Into how many shares the batch is cut."""
    return mesh.shape["host"] * mesh.shape["data"]


def shard_state(state: PyTree, mesh: Mesh) -> PyTree:
    """Constrains (inside jit) or moves (outside) every array to the layout of the table."""
    arrays, static = eqx.partition(state, eqx.is_array)
    return eqx.combine(jax.tree.map(_put, arrays, state_shardings(arrays, mesh)), static)


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """The layout of every leaf of a state, or of its shapes. Moments are what stands in a field ``opt_state``."""

    def layout(path: tuple[Any, ...], tree: PyTree) -> PyTree:
        if not isinstance(tree, AbstractSAE):
            return NamedSharding(mesh, PartitionSpec())
        moments = any(getattr(key, "name", None) == "opt_state" for key in path)
        return jax.tree.map(lambda leaf, a: _sharding(leaf, a.shape, mesh, moments), describe(tree), tree)

    return jax.tree_util.tree_map_with_path(layout, state, is_leaf=lambda t: isinstance(t, AbstractSAE))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of an array whose first axis counts tokens."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def shard_batch(batch: np.ndarray, mesh: Mesh) -> Float[Array, "batch embed"]:
    """A global array over the data axis from this host's rows."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def _sharding(leaf: Leaf, shape: tuple[int, ...], mesh: Mesh, moments: bool) -> NamedSharding:
    names: list[Any] = [LOGICAL_TO_MESH.get(axis) for axis in leaf.axes]
    names = [n if n is None or size % mesh.shape[n] == 0 else None for n, size in zip(names, shape, strict=True)]
    if moments and names and names[0] == EXPERT:
        names[0] = shard_rows(shape[0], mesh)
    return NamedSharding(mesh, PartitionSpec(*names))


def _fast_groups(devices: list[Any]) -> list[list[Any]]:
    """Devices by TPU slice, or by process where there are no slices."""
    groups: dict[int, list[Any]] = {}
    for device in devices:
        slice_index = getattr(device, "slice_index", None)
        tpu = device.platform == "tpu"
        groups.setdefault((slice_index or 0) if tpu else device.process_index, []).append(device)
    return [groups[key] for key in sorted(groups)]


def _put(a: Array, sharding: NamedSharding) -> Array:
    if isinstance(a, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(a, sharding)
    return jax.device_put(a, sharding)
