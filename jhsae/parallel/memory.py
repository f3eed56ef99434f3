"""Whether something fits into the memory of the devices of a mesh, asked before anything is computed.

What is asked is the least that is needed for certain; what is left over may still be too little, and then the run ends
with exit code 4.
"""

import math
import os

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jhsae.errors import UserError


def check_state(state: PyTree, mesh: Mesh) -> None:
    """Raises `UserError` when the arrays of a state, or their shapes, are larger than all memory."""
    arrays = [a for a in jax.tree.leaves(state) if hasattr(a, "dtype") and hasattr(a.dtype, "itemsize")]
    needed, there = sum(a.size * a.dtype.itemsize for a in arrays), memory(mesh)
    if there is not None and needed > there:
        raise UserError(
            f"parameters and optimizer need {_gib(needed)}, but {_devices(mesh)} have {_gib(there)}; write fewer "
            "features (experts, atoms), or use more devices"
        )


def check_context(heads: int, context: int, batch: int, mesh: Mesh) -> None:
    """Raises `UserError` when the attention scores of one block, `batch` sequences at once, are larger than it."""
    needed, there = 4 * batch * heads * context**2, memory(mesh)
    if there is not None and needed > there:
        most = math.isqrt(there // (4 * batch * heads))
        raise UserError(
            f"context is {context}, and the attention scores of {batch} sequences need {_gib(needed)}, but "
            f"{_devices(mesh)} have {_gib(there)}; write a context below {most}, or fewer sequences at once (batch)"
        )


def memory(mesh: Mesh) -> int | None:
    """Bytes of all devices of a mesh; None where they do not say."""
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
