"""Checks that a run fits into the memory of its devices before anything is computed.

The checks use lower bounds: a run that passes may still run out of memory, and then exits with code 4.
"""

import math
import os

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jhsae.errors import UserError


def check_state(state: PyTree, mesh: Mesh) -> None:
    """Raises `UserError` when a state is larger than the memory of all devices of the mesh.

    Args:
        state: A tree of arrays or `jax.ShapeDtypeStruct`s.
        mesh: The devices.
    """
    arrays = [a for a in jax.tree.leaves(state) if hasattr(a, "dtype") and hasattr(a.dtype, "itemsize")]
    needed, there = sum(a.size * a.dtype.itemsize for a in arrays), memory(mesh)
    if there is not None and needed > there:
        raise UserError(
            f"parameters and optimizer need {_gib(needed)}, but {_devices(mesh)} have {_gib(there)}; write fewer "
            "features (experts, atoms), or use more devices"
        )


def check_context(heads: int, context: int, batch: int, mesh: Mesh) -> None:
    """Raises `UserError` when the float32 attention scores of one block are larger than that memory.

    Args:
        heads: Attention heads.
        context: Tokens per sequence.
        batch: Sequences per forward pass, over all devices.
        mesh: The devices.
    """
    needed, there = 4 * batch * heads * context**2, memory(mesh)
    if there is not None and needed > there:
        most = math.isqrt(there // (4 * batch * heads))
        raise UserError(
            f"context is {context}, and the attention scores of {batch} sequences need {_gib(needed)}, but "
            f"{_devices(mesh)} have {_gib(there)}; write a context below {most}, or fewer sequences at once (batch)"
        )


def memory(mesh: Mesh) -> int | None:
    """Bytes of memory of all devices of a mesh; None where the platform does not report it."""
    devices = list(mesh.devices.flat)
    if devices[0].platform == "cpu":  # they share the memory of their machine
        machines = len({device.process_index for device in devices})
        return machines * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    here = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return None if here is None else here * len(devices)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _devices(mesh: Mesh) -> str:
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
