"""Operations on several devices: inside ``spread_over(mesh)`` each hot operation runs under `jax.shard_map`.

Every device then works on its share of the batch and of the experts, and what must be exchanged is written down: k
candidates per token and shard of experts (`topk`), sums over experts (the reconstruction), sums over the batch (the
gradients of weights). Left to itself the compiler gathers batch x experts for a selection over a split axis.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from jax.sharding import Mesh

HOST, DATA, EXPERT = "host", "data", "expert"
SHARDS = (HOST, DATA, EXPERT)
ROWS = (HOST, DATA)
"""The mesh axes over which the batch is split."""
MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextmanager
def spread_over(mesh: Mesh | None) -> Iterator[None]:
    """Operations traced inside are split over the mesh; one device, or None, leaves them whole."""
    token = MESH.set(None if mesh is None or mesh.size == 1 else mesh)
    try:
        yield
    finally:
        MESH.reset(token)


def shard_rows(size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """The mesh axes over which the gradient of `size` experts is split: all of them, where they divide the number."""
    if size % mesh.shape[EXPERT]:
        return None
    return (EXPERT, DATA, HOST) if size % mesh.size == 0 else EXPERT
