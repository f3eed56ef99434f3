"""The sparse decoder as products with all of its rows, some tokens at a time.

A matrix unit multiplies with every row in less time than main memory takes to read the selected rows, write them side
by side and read them again: for a token ``2 features embed`` FLOPs against ``3 k embed`` numbers of traffic. In the
time of one byte a chip does 166 FLOPs (v5p), 240 (v5e), 295 (H100) or 560 (v6e), by the bfloat16 rates and bandwidths
of their data sheets; which of the two is faster was not measured. No array of batch x features exists.
"""

from functools import partial, reduce

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops.chunks import chunk_size, map_chunks, on_cpu, scan_chunks
from jhsae.ops.precision import COMPUTE, dot, operand
from jhsae.ops.sharding import shards, to_local_index

FLOPS_PER_BYTE = 200
TRAFFIC = 3  # times that a selected row is read or written
WRITTEN_OUT = 64  # slots: a longer sum takes long to compile


def cheaper(k: int, features: int) -> bool:
    """Whether products with all rows cost less than k selected ones; never on a CPU.

    Args:
        k: selected rows of a token, over all devices that share the rows.
        features: rows of this device.
    """
    moved = TRAFFIC * jnp.dtype(COMPUTE.get()).itemsize * k  # bytes of a token and a column
    return not on_cpu() and k <= WRITTEN_OUT and 2 * features * shards() <= FLOPS_PER_BYTE * moved


def weighted_rows(
    values: Float[Array, "batch k"], indices: Int[Array, "batch k"], rows: Float[Array, "features embed"]
) -> Float[Array, "batch embed"]:
    """``sum_j values[b, j] rows[indices[b, j]]`` of this device's rows."""
    rows = operand(rows)
    decode = lambda values, indices: dot("bf,fd->bd", _spread(values, indices, len(rows)), rows)  # noqa: E731
    return map_chunks(decode, _chunk(values, rows), values, indices)


def gradients(
    values: Float[Array, "batch k"],
    indices: Int[Array, "batch k"],
    rows: Float[Array, "features embed"],
    g: Float[Array, "batch embed"],
) -> tuple[Float[Array, "batch k"], Float[Array, "features embed"]]:
    """The gradients of values and rows of `weighted_rows`, of this device's rows.

    Args:
        values: of the slots.
        indices: the rows of the slots.
        rows: all rows.
        g: the gradient of the sums.
    """
    body = partial(_gradients, operand(rows))
    d_rows, d_values = scan_chunks(body, jnp.zeros(rows.shape), (values, indices, operand(g)), _chunk(values, rows))
    return d_values, d_rows


def _gradients(rows: Array, d_rows: Array, some: tuple[Array, Array, Array], _: Array) -> tuple[Array, Array]:
    values, indices, g = some
    of_all, here = dot("bd,fd->bf", g, rows), to_local_index(indices, len(rows))
    own = jnp.take_along_axis(of_all, here, axis=1, mode="clip")
    d_rows = d_rows + dot("bf,bd->fd", _spread(values, indices, len(rows)), g)
    return d_rows, jnp.where(here < len(rows), own, 0)


def _spread(values: Array, indices: Array, size: int) -> Float[Array, "tokens features"]:
    """The values at their rows among zeros, by comparison: a scatter would write all of it once more."""
    values, indices, every = operand(values), to_local_index(indices, size), jnp.arange(size, dtype=indices.dtype)
    terms = (jnp.where(indices[:, j, None] == every, values[:, j, None], 0) for j in range(values.shape[1]))
    return reduce(jnp.add, terms)


def _chunk(values: Array, rows: Array) -> int:
    return chunk_size(len(values), 4 * len(rows), at_least=512)
