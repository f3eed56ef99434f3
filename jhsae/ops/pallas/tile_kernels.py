"""The products of one tile of pairs with its expert, for TPU (Pallas, Mosaic): three kernels, no gathered copy of x.

With X the rows of x of a tile [rows, embed], W its expert's wide matrix [sub, embed], A its atoms [atoms, sub] and C a
number per atom and row [atoms, rows]:

- `project`: ``H = W X^T``, ``A H``: encode, and the gradient of decode's codes;
- `weights`: ``dW = sum (A^T C) X``, ``dA = sum C H^T`` over the tiles of an expert: both ops' weight gradients;
- `spread`: ``(A^T C)^T W``: rows of decode and of encode's gradient of x, before they are added into the tokens.

The grid runs over tiles in the order of their experts, so that consecutive tiles of one expert keep its blocks in fast
memory (Gale et al., MegaBlocks, arXiv 2211.15841, has the layout). Rows of x come one by one, by asynchronous copies
that run one tile ahead. Small arrays are held with pairs along lanes: 16 atoms there would leave 112 of 128 empty.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LIMIT = 48 * 2**20  # bytes of fast memory

Interpret = bool | pltpu.InterpretParams
Wide = Float[Array, "experts sub embed"]
Atoms = Float[Array, "experts sub atoms"]
Lanes = Float[Array, "atoms slots"]
"""Slot ``i * rows + r`` is row r of tile i."""


class Table(NamedTuple):
    """What the kernels know of the tiles; the rows in use come first in every tile, the tiles in use before others."""

    expert: Int[Array, "tiles"]
    in_use: Int[Array, "tiles"]
    """How many rows of each tile."""
    token: Int[Array, "tiles 1 rows"]
    used: Int[Array, ""]
    """How many tiles."""


def project(
    table: Table, x: Float[Array, "batch embed"], wide: Wide, atoms: Atoms, interpret: Interpret
) -> Float[Array, "atoms slots"]:
    """``A W x`` of every pair; slots not in use hold anything."""
    out = (_by_tile(atoms.shape[2], table.token.shape[2]), (atoms.shape[2], table.token.size))
    arrays = [*_gathered(table, x), *_of_expert(wide, atoms)]
    scratch = _buffers(table, x)
    return _call(_project, table.used, (table.expert, table.in_use), arrays, [out], scratch, {}, interpret)[0]


def _project(expert, in_use, now, ahead, x, wide, atoms, out, buffers, done):
    rows = _gather(pl.program_id(0), in_use, now, ahead, x, buffers, done)
    out[...] = _dot(atoms[...], _dot(wide[...], rows, (1, 1)), (0, 0))


def weights(
    table: Table,
    x: Float[Array, "batch embed"],
    wide: Wide,
    atoms: Atoms,
    numbers: Lanes,
    interpret: Interpret,
    with_projection: bool,
) -> Sequence[Array]:
    """The gradients of `wide` and `atoms`, and, from the same rows, `project` where it is asked for.

    `numbers` is 0 in slots not in use.
    """
    lanes = _by_tile(atoms.shape[2], table.token.shape[2])
    # what experts without a tile keep
    zeros = [(pl.BlockSpec(memory_space=pl.ANY), jnp.zeros_like(a)) for a in (wide, atoms)]
    arrays = [*_gathered(table, x), *_of_expert(wide, atoms), (lanes, numbers), *zeros]
    outs = [*((spec, a.shape) for spec, a in _of_expert(wide, atoms)), (lanes, numbers.shape)][: 2 + with_projection]
    scratch = _buffers(table, x)
    return _call(_weights, table.used, (table.expert, table.in_use), arrays, outs, scratch, {8: 0, 9: 1}, interpret)


def _weights(expert, in_use, now, ahead, x, wide, atoms, numbers, _zeros, _more, *refs):
    d_wide, d_atoms, *out, buffers, done = refs
    i = pl.program_id(0)
    rows = _gather(i, in_use, now, ahead, x, buffers, done)
    hidden = _dot(wide[...], rows, (1, 1))
    more_wide = _dot(_dot(atoms[...], numbers[...], (1, 0)), rows, (1, 0))
    more_atoms = _dot(hidden, numbers[...], (1, 1))
    for ref in out:
        ref[...] = _dot(atoms[...], hidden, (0, 0))
    first = (i == 0) | (expert[i] != expert[jnp.maximum(i, 1) - 1])

    @pl.when(first)
    def _():
        d_wide[...], d_atoms[...] = more_wide, more_atoms

    @pl.when(jnp.logical_not(first))
    def _():
        d_wide[...] += more_wide
        d_atoms[...] += more_atoms


def spread(
    expert: Int[Array, "tiles"], wide: Wide, atoms: Atoms, numbers: Lanes, interpret: Interpret
) -> Float[Array, "slots embed"]:
    """``(A^T C)^T W`` of every tile given."""
    (size, slots), embed = numbers.shape, wide.shape[2]
    rows = slots // len(expert)
    arrays = [*_of_expert(wide, atoms), (_by_tile(size, rows), numbers)]
    out = (pl.BlockSpec((rows, embed), lambda i, *_: (i, 0)), (slots, embed))
    return _call(_spread, len(expert), (expert,), arrays, [out], [], {}, interpret)[0]


def _spread(expert, wide, atoms, numbers, out):
    out[...] = _dot(_dot(atoms[...], numbers[...], (1, 0)), wide[...], (0, 0))


def _dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def _call(
    kernel: Callable[..., None],
    tiles: int | Array,
    scalars: Sequence[Array],
    arrays: Sequence[tuple[pl.BlockSpec, Array]],
    outs: Sequence[tuple[pl.BlockSpec, tuple[int, ...]]],
    scratch: Sequence[Any],
    aliases: dict[int, int],
    interpret: Interpret,
) -> Sequence[Array]:
    specs, values = zip(*arrays, strict=True)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(len(scalars), (tiles,), specs, [spec for spec, _ in outs], scratch),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for _, shape in outs],
        input_output_aliases=aliases,
        # in order: tiles of one expert add up, and each tile starts the copies of the next
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=LIMIT),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*scalars, *values)


def _of_expert(*arrays: Array) -> list[tuple[pl.BlockSpec, Array]]:
    return [(pl.BlockSpec((None, *a.shape[1:]), lambda i, expert, *_: (expert[i], 0, 0)), a) for a in arrays]


def _by_tile(*sizes: int) -> pl.BlockSpec:
    return pl.BlockSpec(sizes, lambda i, *_: (0, i))


def _gathered(table: Table, x: Array) -> list[tuple[pl.BlockSpec, Array]]:
    """The tokens of this tile, the tokens of the next, and x in slow memory."""
    tiles, _, rows = table.token.shape

    def tokens(ahead: int) -> pl.BlockSpec:
        def index(i, *_):
            return jnp.minimum(i + ahead, tiles - 1), 0, 0

        return pl.BlockSpec((None, 1, rows), index, memory_space=pltpu.SMEM)

    return [(tokens(0), table.token), (tokens(1), table.token), (pl.BlockSpec(memory_space=pl.ANY), x)]


def _buffers(table: Table, x: Array) -> list[Any]:
    return [pltpu.VMEM((2, table.token.shape[2], x.shape[1]), jnp.float32), pltpu.SemaphoreType.DMA((2,))]


def _gather(i, in_use, now, ahead, x, buffers, done):
    """Starts the copies of the next tile's rows and waits for this tile's; rows not in use are finite."""

    def copies(tile, tokens, action):
        slot = jax.lax.rem(tile, 2)

        def copy(r, _):
            action(pltpu.make_async_copy(x.at[pl.ds(tokens[0, r], 1)], buffers.at[slot, pl.ds(r, 1)], done.at[slot]))
            return 0

        jax.lax.fori_loop(0, in_use[tile], copy, 0)

    @pl.when(i == 0)
    def _():
        buffers[...] = jnp.zeros_like(buffers)
        copies(0, now, lambda copy: copy.start())

    @pl.when(i + 1 < pl.num_programs(0))
    def _():
        copies(i + 1, ahead, lambda copy: copy.start())

    copies(i, now, lambda copy: copy.wait())
    return buffers[jax.lax.rem(i, 2)]
