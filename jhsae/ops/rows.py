"""The sparse decoder: rows of a matrix, weighted and summed, token by token.

``x_hat[b] = sum_j values[b, j] rows[indices[b, j]]``. Rows are gathered for a chunk of tokens at a time, forward and
backward; the gradient of the rows is summed feature by feature (`tiles`), so neither batch x k x embed nor batch x
features numbers exist at once. Where products with all rows cost less, they are taken instead (`dense_rows`).
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.ops import dense_rows
from jhsae.ops.chunks import chunk_size, map_chunks, on_cpu
from jhsae.ops.precision import dot, rounded, source
from jhsae.ops.sharding import ShardingKind, shard_mapped, shards
from jhsae.ops.tiles import Tiles, add, by_number, group_tiles, over_rows, over_tiles, store

WRITTEN_OUT = 128  # rows of a token: a longer sum takes more than a second to compile
DECODER = (ShardingKind.TOKENS, ShardingKind.TOKENS, ShardingKind.EXPERTS)


@jax.custom_vjp
def gather_rows(
    values: Float[Array, "batch k"], indices: Int[Array, "batch k"], rows: Float[Array, "features embed"]
) -> Float[Array, "batch embed"]:
    """``sum_j values[b, j] rows[indices[b, j]]``."""
    return shard_mapped(weighted_rows, DECODER, ShardingKind.TOKEN_SUM, rows.shape[0])(values, indices, rows)


def _forward(values: Array, indices: Array, rows: Array) -> tuple[Array, tuple]:
    return gather_rows(values, indices, rows), (values, indices, rows)


def _backward(saved: tuple, g: Float[Array, "batch embed"]) -> tuple:
    def gradients(values: Array, indices: Array, rows: Array, g: Array) -> tuple[Array, Array]:
        d_values, d_rows = row_gradients(values, indices, rows, g)
        return d_values, d_rows.astype(rows.dtype)

    results = (ShardingKind.TOKEN_SUM, ShardingKind.EXPERT_SUM)
    d_values, d_rows = shard_mapped(gradients, (*DECODER, ShardingKind.TOKENS), results, saved[2].shape[0])(*saved, g)
    return d_values, None, d_rows


gather_rows.defvjp(_forward, _backward)


def row_gradients(
    values: Float[Array, "batch k"],
    indices: Int[Array, "batch k"],
    rows: Float[Array, "features embed"],
    g: Float[Array, "batch embed"],
) -> tuple[Float[Array, "batch k"], Float[Array, "features embed"]]:
    """The gradients of values and rows of `weighted_rows`, on one device."""
    if dense_rows.cheaper(indices.shape[1], len(rows)):
        return dense_rows.gradients(values, indices, rows, g)
    return project_rows(g, indices, rows), add_rows(values, indices, g, rows.shape[0])


def weighted_rows(
    values: Float[Array, "batch k"], indices: Int[Array, "batch k"], rows: Float[Array, "features embed"]
) -> Float[Array, "batch embed"]:
    """`gather_rows` on one device, without a gradient of its own."""
    if dense_rows.cheaper(indices.shape[1], len(rows)):
        return dense_rows.weighted_rows(values, indices, rows)
    rows = source(rows)
    if shards() > 1:
        return _weighted_by_tiles(values, indices, rows)
    return map_chunks(partial(_sum_of_rows, rows), _chunk(indices, rows), values, indices)


def _sum_of_rows(rows: Array, values: Array, indices: Array) -> Array:
    k = values.shape[-1]
    if not on_cpu() or k > WRITTEN_OUT:
        return dot("bk,bkd->bd", values, rows[indices])
    # one loop over the numbers of a token, without gathered rows in between (experiments/bench/tile_products.py)
    values = rounded(values)
    return reduce(jnp.add, (values[:, j, None] * rows[indices[:, j]].astype(jnp.float32) for j in range(k)))


def project_rows(
    x: Float[Array, "batch embed"], indices: Int[Array, "batch k"], rows: Float[Array, "features embed"]
) -> Float[Array, "batch k"]:
    """``rows[indices[b, j]] . x_b``: the gradient of its values."""
    rows = source(rows)
    if shards() > 1:
        return _projected_by_tiles(x, indices, rows)
    return map_chunks(lambda x, i: dot("bd,bkd->bk", x, rows[i]), _chunk(indices, rows), x, indices)


def add_rows(
    values: Float[Array, "batch k"], indices: Int[Array, "batch k"], vectors: Float[Array, "batch embed"], size: int
) -> Float[Array, "size embed"]:
    """``sum over pairs with index i of values[b, j] vectors[b]`` for each i < size: the gradient of its rows."""

    vectors, values = source(vectors), by_number(values)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        return add(out, some, over_rows(some.of_pairs(values)[..., None], vectors[some.token])[:, 0])

    width = vectors.shape[-1]
    tiles = group_tiles(indices, size, width)
    return over_tiles(tiles, tiles.group(width), body, jnp.zeros((size, width), jnp.float32))


# Where devices share the rows, most of a token's belong to others: the tiles hold a device's own alone.


def _weighted_by_tiles(values: Array, indices: Array, rows: Array) -> Array:
    values = by_number(values)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        return out.at[some.token].add(dot("nt,nd->ntd", some.of_pairs(values), rows[some.expert]))

    width = rows.shape[-1]
    tiles = group_tiles(indices, rows.shape[0], width)
    return over_tiles(tiles, tiles.group(width), body, jnp.zeros((indices.shape[0], width), jnp.float32))


def _projected_by_tiles(x: Array, indices: Array, rows: Array) -> Array:
    x = source(x)

    def body(out: Array, some: Tiles, first: Array) -> Array:
        return store(out, first, dot("ntd,nd->nt", x[some.token], rows[some.expert]))

    tiles = group_tiles(indices, *rows.shape)
    return tiles.by_pair(over_tiles(tiles, tiles.group(rows.shape[-1]), body, jnp.zeros(tiles.pair.shape)))


def _chunk(indices: Array, rows: Array) -> int:
    return chunk_size(indices.shape[0], 4 * indices.shape[1] * rows.shape[1])
