"""The products of one tile of pairs with a block of experts, for TPU (Pallas, Mosaic): no gathered copy of x.

With X the rows of x of a tile [rows, embed], W the wide matrices of its block of experts [block sub, embed], A their
atoms [block sub, lanes], C a row of numbers for each pair [rows, lanes], and M 1 where a row of W belongs to the expert
of a pair, else 0 [block sub, rows]:

- `project`: ``(M * W X^T)^T A``: encode, and the gradient of decode's codes;
- `weights`: ``dW = sum (M * A C^T) X``, ``dA = sum (M * W X^T) C`` over the tiles of a block;
- `spread`: ``(M * A C^T)^T W``, added into the tokens: decode, and encode's gradient of x.

The matrix unit is 128 wide and an expert has few rows, so that a block of experts costs as much as one. The grid runs
over tiles in the order of their blocks, so that consecutive tiles of one block keep its matrices in fast memory (Gale
et al., MegaBlocks, arXiv 2211.15841, has the layout). Rows of x and of numbers come one by one, by asynchronous copies
that run one tile ahead, and rows of results leave the same way, to the place of their pair.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from .pair_numbers import Numbers, own_lanes, parts_of
from .tile_pipeline import (
    Atoms,
    Copied,
    Source,
    Table,
    Wide,
    call,
    columns_of,
    gather,
    leave,
    leaving,
    of_blocks,
    of_experts,
)


def project(table: Table, x: Source, wide: Wide, atoms: Atoms, pairs: int) -> Float[Array, "pairs lanes"]:
    """``A W x`` of every pair; rows of pairs in no tile hold anything."""
    lanes = atoms.shape[2]
    return call(
        partial(_project, share=x.share, dtype=_dtype(x)),
        table,
        [x],
        wide,
        atoms,
        [(pl.BlockSpec(memory_space=pl.ANY), (pairs, lanes))],
        leaving(table, lanes),
        (pairs * (_width(x) + 4 * lanes), 2 * pairs * wide.shape[1] * (wide.shape[2] + lanes)),
    )[0]


def _project(block, in_use, now, ahead, _pair, own, x, wide, atoms, out, buffers, done, staged, sent, *, share, dtype):
    i = pl.program_id(0)
    (rows,) = gather(i, in_use, now, ahead, [Copied(x, share, 1, buffers, done)])
    hidden = _hidden(_stacked(wide), columns_of(rows), _mask(own, wide.shape), dtype)
    leave(i, in_use, now, _dot(hidden, atoms[...], (0, 0), dtype), out, staged, sent)


def weights(
    table: Table,
    x: Source,
    wide: Wide,
    atoms: Atoms,
    numbers: Numbers,
    pairs: int,
    projected: bool,
    weight: int | None = None,
) -> Sequence[Array]:
    """The gradients of `wide` and `atoms`, and what else is asked for.

    Args:
        table: of the tiles; every block must have one.
        x: the rows of the tokens.
        wide: the wide matrices.
        atoms: the atoms.
        numbers: of the pairs.
        pairs: how many.
        projected: whether to give `project` as well.
        weight: which of the numbers weighs x in a sum for every expert, [blocks, block, embed]; then also the sums of
            the numbers for every expert, [blocks, block, lanes].

    Returns:
        The gradients of `wide` and `atoms`; the two sums with `weight`; the projection where it is asked for.
    """
    lanes, (experts, sub, embed) = atoms.shape[2], wide.shape
    block = experts // len(atoms)
    outs = [(of_experts(wide.shape, block), wide.shape), (of_blocks(atoms.shape), atoms.shape)]
    if weight is not None:
        outs += [(of_blocks(shape), shape) for shape in ((len(atoms), block, embed), (len(atoms), block, lanes))]
    if projected:
        outs.append((pl.BlockSpec(memory_space=pl.ANY), (pairs, lanes)))
    moved = pairs * (_width(x) + 4 * lanes) + sum(4 * math.prod(shape) for _, shape in outs)
    return call(
        partial(_weights, share=x.share, dtype=_dtype(x), width=numbers.width, weight=weight, projected=projected),
        table,
        [x, Source.of(numbers)],
        wide,
        atoms,
        outs,
        leaving(table, lanes) if projected else [],
        (moved, 2 * pairs * sub * (2 * embed + 2 * lanes)),
    )


def _weights(
    block, in_use, now, ahead, pair, own, x, numbers, wide, atoms, *refs, share, dtype, width, weight, projected
):
    i = pl.program_id(0)
    sums = 2 if weight is None else 4
    outs, refs = refs[:sums], refs[sums:]
    way_out, refs = ((refs[0], *refs[-2:]), refs[1:-2]) if projected else (None, refs)
    buffers, more, done, came = refs
    sources = [Copied(x, share, 1, buffers, done), Copied(numbers, 1, parts_of(width), more, came)]
    rows, c = gather(i, in_use, now, ahead, sources)
    c = own_lanes(c, pair[...], numbers.shape[0], width)
    parts, mask = columns_of(rows), _mask(own, wide.shape)
    hidden = _hidden(_stacked(wide), parts, mask, dtype)
    left = jnp.where(mask, _dot(atoms[...], c, (1, 1), dtype), 0)
    found = [None, _dot(hidden, c, (1, 0), dtype)]
    if weight is not None:
        own_row = _mask(own, (wide.shape[0], 1))
        lane = jax.lax.broadcasted_iota(jnp.int32, (8, c.shape[1]), 1)
        chosen = jax.lax.rem(lane, jnp.int32(width)) == weight
        by_pair = _dot(chosen.astype(jnp.float32), c, (1, 1), dtype)[:1]
        left = jnp.concatenate([left, jnp.where(own_row, by_pair, 0)], axis=0)
        found.append(None)
        found.append(jax.lax.dot_general(own_row.astype(jnp.float32), c, _over(1, 0), precision="highest"))
    products = [_dot(left, part, (1, 0), dtype) for part in parts]
    first = (i == 0) | (block[i] != block[jnp.maximum(i, 1) - 1])
    if way_out:
        leave(i, in_use, now, _dot(hidden, atoms[...], (0, 0), dtype), *way_out)

    def store(put):
        experts, sub, _ = wide.shape
        for p, product in enumerate(products):
            columns = slice(p * product.shape[1], (p + 1) * product.shape[1])
            for e in range(experts):
                put(outs[0], (e, slice(None), columns), product[e * sub : (e + 1) * sub])
            if weight is not None:
                put(outs[2], (slice(None), columns), product[experts * sub :])
        for ref, value in zip(outs, found, strict=True):
            if value is not None:
                put(ref, ..., value)

    def write(ref, at, value):
        ref[at] = value

    def add(ref, at, value):
        ref[at] += value

    pl.when(first)(lambda: store(write))
    pl.when(jnp.logical_not(first))(lambda: store(add))


def spread(
    table: Table,
    wide: Wide,
    atoms: Atoms,
    numbers: Numbers,
    out: Float[Array, "batch embed"],
    first: Int[Array, ""],
    tokens: int,
    k: int,
) -> Float[Array, "batch embed"]:
    """``(A^T C)^T W`` of every pair, added up for each of some tokens, whose sums lie in fast memory.

    The kernel writes a part of an array in place: XLA would update a loop's array with a copy, or fuse the two and then
    not grant the fast memory.

    Args:
        table: of the pairs of these tokens, counted from the first of them.
        wide: the wide matrices.
        atoms: the atoms.
        numbers: of all pairs.
        out: the sums of all tokens.
        first: the number of the first of these tokens, a multiple of 8.
        tokens: how many.
        k: pairs of a token.

    Returns:
        `out` with the sums of these tokens.
    """
    embed, lanes, rows = wide.shape[2], atoms.shape[2], table.pair.shape[2]
    return call(
        partial(_spread, k=k, dtype=wide.dtype, width=numbers.width),
        table,
        [Source.of(numbers)],
        wide,
        atoms,
        [(pl.BlockSpec(memory_space=pl.ANY), out.shape)],
        [pltpu.VMEM((tokens, embed), jnp.float32), pltpu.VMEM((rows, embed), jnp.float32), pltpu.SemaphoreType.DMA],
        (tokens * (k * 4 * lanes + 4 * embed), 2 * tokens * k * wide.shape[1] * (embed + lanes)),
        (first, out),
    )[0]


def _spread(
    block,
    in_use,
    first,
    now,
    ahead,
    pair,
    own,
    numbers,
    wide,
    atoms,
    _out,
    out,
    buffers,
    done,
    sums,
    rows,
    left,
    *,
    k,
    dtype,
    width,
):
    i = pl.program_id(0)

    @pl.when(i == 0)
    def _():
        def clear(j, _):
            sums[pl.ds(pl.multiple_of(j * 8, 8), 8), :] = jnp.zeros((8, sums.shape[1]), jnp.float32)
            return 0

        jax.lax.fori_loop(0, sums.shape[0] // 8, clear, 0)

    start = first[0] * k
    (c,) = gather(i, in_use, now, ahead, [Copied(numbers, 1, parts_of(width), buffers, done)], start)
    c = own_lanes(c, start + pair[...], numbers.shape[0], width)
    inside = jnp.where(_mask(own, wide.shape), _dot(atoms[...], c, (1, 1), dtype), 0)
    rows[...] = _dot(inside, _stacked(wide), (0, 0), dtype)

    def add(r, _):
        token = jax.lax.div(now[0, r], k)
        sums[pl.ds(token, 1), :] += rows[pl.ds(r, 1), :]
        return 0

    jax.lax.fori_loop(0, in_use[i], add, 0)

    @pl.when(i + 1 == pl.num_programs(0))
    def _():
        copy = pltpu.make_async_copy(sums, out.at[pl.ds(pl.multiple_of(first[0], 8), sums.shape[0])], left)
        copy.start()
        copy.wait()


def _over(a: int, b: int) -> tuple:
    return (((a,), (b,)), ((), ()))


def _dot(a: Array, b: Array, over: tuple[int, int], dtype: Any) -> Array:
    """A product of operands in the format `dtype`, summed in float32."""
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), _over(*over), preferred_element_type=jnp.float32)


def _stacked(wide: Any) -> Array:
    return jnp.concatenate([wide[e] for e in range(wide.shape[0])], axis=0)


def _mask(own: Any, shape: tuple[int, ...]) -> Array:
    """Where a row of the stacked matrices of a block is of the expert of a pair."""
    row = jax.lax.broadcasted_iota(jnp.int32, (shape[0] * shape[1], own.shape[1]), 0)
    return jax.lax.div(row, jnp.int32(shape[1])) == own[...]


def _hidden(wide: Array, parts: list[Array], mask: Array, dtype: Any) -> Array:
    width = wide.shape[1] // len(parts)
    products = (_dot(wide[:, p * width : (p + 1) * width], part, (1, 1), dtype) for p, part in enumerate(parts))
    return jnp.where(mask, sum(products), 0)


def _dtype(x: Source) -> Any:
    """The format of products."""
    return jnp.dtype("float32" if x.rows.dtype == jnp.float32 else "bfloat16")


def _width(x: Source) -> int:
    return x.rows.shape[1] * x.rows.dtype.itemsize
