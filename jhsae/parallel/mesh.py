"""The device mesh with the axes ``host``, ``data`` and ``expert``, for training and harvesting.

A batch is split over ``host`` and ``data``. The axis ``host`` separates devices with a slow network between them (TPU
slices, or processes), so that reductions run within each group first. How an SAE is sharded over the mesh:
`jhsae.training.sharding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jhsae.errors import UserError
from jhsae.ops import ROWS, SHARDS
from jhsae.ranges import Count, ranged


@ranged
@dataclass(frozen=True)
class MeshShape:
    """Numbers of devices that share the batch and the experts; their product is the number of all devices."""

    data: Annotated[Count | None, "devices that share the batch; null = all that remain"] = None
    expert: Annotated[Count, "devices that share the experts, or the features"] = 1


def make_mesh(shape: MeshShape, devices: Sequence[Any] | int | None = None) -> Mesh:
    """Makes the mesh.

    Args:
        shape: Sizes of ``data`` (all groups together) and ``expert``. The axis ``host`` counts groups of devices with a
            fast network inside (TPU slices, processes elsewhere); ``expert`` stays within a group where it can.
        devices: The devices, or how many of them; None for all devices of all processes.

    Returns:
        A mesh with the axes ``host``, ``data``, ``expert``.

    Raises:
        UserError: Sizes whose product is not the number of devices.
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
    return Mesh(np.concatenate([_arranged(sizes, group) for group in groups]), SHARDS, axis_types=(AxisType.Auto,) * 3)


def _arranged(sizes: tuple[int, int, int], devices: list[Any]) -> np.ndarray:
    """Devices with a fast network as an array of this shape, neighbours close together."""
    try:
        return mesh_utils.create_device_mesh(sizes, devices)
    except NotImplementedError:  # no whole axes of the torus have these sizes, as 8 of 4 x 4 x 4
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def check_batch(batch: int, mesh: Mesh) -> None:
    """Raises `UserError` when `batch` tokens cannot be split evenly over the devices that share the batch."""
    data = rows_shards(mesh)
    if batch % data:
        raise UserError(
            f"data.batch is {batch}, which {data} devices cannot share; write a multiple of {data}, "
            f"e.g. data.batch={max(1, batch // data) * data}"
        )


def rows_shards(mesh: Mesh) -> int:
    """Number of shards of the batch."""
    return mesh.shape["host"] * mesh.shape["data"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def shard_batch(batch: np.ndarray | Array, mesh: Mesh) -> Float[Array, "batch embed"]:
    """Makes a global array from this process's rows.

    Args:
        batch: This process's rows on the host, [rows, embed], or an array that is on the devices already.
        mesh: Devices that share the batch.

    Returns:
        The global batch, [batch, embed], sharded by `batch_sharding`; a device array is returned as it is.
    """
    if isinstance(batch, jax.Array):
        return batch
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def _fast_groups(devices: list[Any]) -> list[list[Any]]:
    """Devices by TPU slice, or by process where there are no slices."""
    groups: dict[int, list[Any]] = {}
    for device in devices:
        slice_index = getattr(device, "slice_index", None)
        tpu = device.platform == "tpu"
        groups.setdefault((slice_index or 0) if tpu else device.process_index, []).append(device)
    return [groups[key] for key in sorted(groups)]
