"""The sparse decoder: rows of a matrix, weighted and summed, token by token.

``x_hat[b] = sum_j values[b, j] rows[indices[b, j]]``. Rows are gathered for a chunk of tokens at a time, forward and
backward; the gradient of the rows is summed feature by feature (`tiles`), so neither batch x k x embed nor batch x
features numbers exist at once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops.chunks import chunk_size, map_chunks
from jhsae.ops.precision import dot, operand
from jhsae.ops.tiles import Tiles, add, group_size, group_tiles, over_tiles


@jax.custom_vjp
def gather_rows(
    values: Float[Array, "batch k"], indices: Int[Array, "batch k"], rows: Float[Array, "features embed"]
) -> Float[Array, "batch embed"]:
    """``sum_j values[b, j] rows[indices[b, j]]``."""
    return weighted_rows(values, indices, rows)


def _forward(values: Array, indices: Array, rows: Array) -> tuple[Array, tuple]:
    return weighted_rows(values, indices, rows), (values, indices, rows)


def _backward(saved: tuple, g: Float[Array, "batch embed"]) -> tuple:
    values, indices, rows = saved
    return project_rows(g, indices, rows), None, add_rows(values, indices, g, rows.shape[0]).astype(rows.dtype)


gather_rows.defvjp(_forward, _backward)


def weighted_rows(
    values: Float[Array, "batch k"], indices: Int[Array, "batch k"], rows: Float[Array, "features embed"]
) -> Float[Array, "batch embed"]:
    """`gather_rows` without a gradient of its own."""
    rows = operand(rows)
    return map_chunks(lambda v, i: dot("bk,bkd->bd", v, rows[i]), _chunk(indices, rows), values, indices)


def project_rows(
    x: Float[Array, "batch embed"], indices: Int[Array, "batch k"], rows: Float[Array, "features embed"]
) -> Float[Array, "batch k"]:
    """``rows[indices[b, j]] . x_b``: the gradient of its values."""
    rows = operand(rows)
    return map_chunks(lambda x, i: dot("bd,bkd->bk", x, rows[i]), _chunk(indices, rows), x, indices)


def add_rows(
    values: Float[Array, "batch k"], indices: Int[Array, "batch k"], vectors: Float[Array, "batch embed"], size: int
) -> Float[Array, "size embed"]:
    """``sum over pairs with index i of values[b, j] vectors[b]`` for each i < size: the gradient of its rows."""

    vectors = operand(vectors)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        return add(out, some, dot("nt,ntd->nd", some.of_pairs(values), vectors[some.token]))

    width = vectors.shape[-1]
    tiles = group_tiles(indices, size, width)
    return over_tiles(tiles, group_size(width), body, jnp.zeros((size, width), jnp.float32))


def _chunk(indices: Array, rows: Array) -> int:
    return chunk_size(indices.shape[0], 4 * indices.shape[1] * rows.shape[1])
