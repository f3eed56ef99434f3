"""The products of one tile of pairs with its expert, for TPU (Pallas, Mosaic): three kernels, no gathered copy of x.

With X the rows of x of a tile [rows, embed], W its expert's wide matrix [sub, embed], A its atoms [atoms, sub] and C a
number per atom and row [atoms, rows]:

- `project`: ``H = W X^T``, ``A H``: encode, and the gradient of decode's codes;
- `weights`: ``dW = sum (A^T C) X``, ``dA = sum C H^T`` over the tiles of an expert: both ops' weight gradients;
- `spread`: ``(A^T C)^T W``: rows of decode and of encode's gradient of x, before they are added into the tokens.

The grid runs over tiles in the order of their experts, so that consecutive tiles of one expert keep its blocks in fast
memory (Gale et al., MegaBlocks, arXiv 2211.15841, has the layout). Rows of x come one by one, by asynchronous copies
that run one tile ahead. Small arrays are held with pairs along lanes; with the atoms there, 16 of 128 lanes are used.
"""

from functools import partial
from typing import NamedTuple

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
    """How many rows of each."""
    token: Int[Array, "tiles 1 rows"]
    used: Int[Array, ""]

    @property
    def rows(self) -> int:
        return self.token.shape[-1]


def _dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def _by_expert(*sizes: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, *sizes), lambda i, expert, *_: (expert[i], 0, 0))


def _by_tile(*sizes: int) -> pl.BlockSpec:
    return pl.BlockSpec(sizes, lambda i, *_: (0, i))


def _gathering(table: Table, embed: int) -> tuple[list[pl.BlockSpec], list]:
    """Specs of this tile's tokens, the next tile's tokens and x; two buffers of rows with their semaphores."""

    def tokens(ahead: int) -> pl.BlockSpec:
        def index(i, *_):
            return jnp.minimum(i + ahead, table.expert.shape[0] - 1), 0, 0

        return pl.BlockSpec((None, 1, table.rows), index, memory_space=pltpu.SMEM)

    buffers = pltpu.VMEM((2, table.rows, embed), jnp.float32)
    return [tokens(0), tokens(1), pl.BlockSpec(memory_space=pl.ANY)], [buffers, pltpu.SemaphoreType.DMA((2,))]


def _gather(i, count, now, ahead, x, buffers, done):
    """Starts the copies of the next tile's rows and waits for this tile's; rows not in use are finite."""

    def copies(tile, tokens, action):
        slot = jax.lax.rem(tile, 2)

        def copy(r, _):
            action(pltpu.make_async_copy(x.at[pl.ds(tokens[0, r], 1)], buffers.at[slot, pl.ds(r, 1)], done.at[slot]))
            return 0

        jax.lax.fori_loop(0, count[tile], copy, 0)

    @pl.when(i == 0)
    def _():
        buffers[...] = jnp.zeros_like(buffers)
        copies(0, now, lambda copy: copy.start())

    @pl.when(i + 1 < pl.num_programs(0))
    def _():
        copies(i + 1, ahead, lambda copy: copy.start())

    copies(i, now, lambda copy: copy.wait())
    return buffers[jax.lax.rem(i, 2)]


def _call(kernel, table: Table, steps, specs, outs, shapes, scratch, aliases, interpret, name):
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(2, (steps,), specs, outs, scratch),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=LIMIT),
        interpret=interpret,
        name=name,
    )


def project(
    table: Table, x: Float[Array, "batch embed"], wide: Wide, atoms: Atoms, interpret: Interpret
) -> Float[Array, "atoms slots"]:
    """``A W x`` of every pair; slots not in use hold anything."""
    _, sub, embed = wide.shape
    specs, scratch = _gathering(table, embed)
    size = atoms.shape[2]
    return _call(
        _project,
        table,
        table.used,
        [*specs, _by_expert(sub, embed), _by_expert(sub, size)],
        [_by_tile(size, table.rows)],
        [(size, table.token.size)],
        scratch,
        {},
        interpret,
        "project",
    )(table.expert, table.in_use, table.token, table.token, x, wide, atoms)[0]


def _project(expert, count, now, ahead, x, wide, atoms, out, buffers, done):
    rows = _gather(pl.program_id(0), count, now, ahead, x, buffers, done)
    out[...] = _dot(atoms[...], _dot(wide[...], rows, (1, 1)), (0, 0))


def weights(
    table: Table,
    x: Float[Array, "batch embed"],
    wide: Wide,
    atoms: Atoms,
    numbers: Lanes,
    interpret: Interpret,
    with_projection: bool,
) -> tuple[Array, ...]:
    """The gradients of `wide` and `atoms`, and, from the same rows, `project` where it is asked for.

    `numbers` is 0 in slots not in use. Experts without a tile keep the zeros that the outputs start from.
    """
    _, sub, embed = wide.shape
    specs, scratch = _gathering(table, embed)
    size = atoms.shape[2]
    by_expert = [_by_expert(sub, embed), _by_expert(sub, size)]
    lanes = _by_tile(size, table.rows)
    return _call(
        partial(_weights, with_projection=with_projection),
        table,
        table.used,
        [*specs, *by_expert, lanes, *[pl.BlockSpec(memory_space=pl.ANY)] * 2],
        [*by_expert, lanes][: 2 + with_projection],
        [wide.shape, atoms.shape, numbers.shape][: 2 + with_projection],
        scratch,
        {8: 0, 9: 1},
        interpret,
        "weights",
    )(
        table.expert,
        table.in_use,
        table.token,
        table.token,
        x,
        wide,
        atoms,
        numbers,
        jnp.zeros_like(wide),
        jnp.zeros_like(atoms),
    )


def _weights(expert, count, now, ahead, x, wide, atoms, numbers, zeros, more_zeros, *refs, with_projection):
    *outs, buffers, done = refs
    i = pl.program_id(0)
    rows = _gather(i, count, now, ahead, x, buffers, done)
    hidden = _dot(wide[...], rows, (1, 1))
    d_wide = _dot(_dot(atoms[...], numbers[...], (1, 0)), rows, (1, 0))
    d_atoms = _dot(hidden, numbers[...], (1, 1))
    if with_projection:
        outs[2][...] = _dot(atoms[...], hidden, (0, 0))
    first = (i == 0) | (expert[i] != expert[jnp.maximum(i, 1) - 1])

    @pl.when(first)
    def _():
        outs[0][...], outs[1][...] = d_wide, d_atoms

    @pl.when(jnp.logical_not(first))
    def _():
        outs[0][...] += d_wide
        outs[1][...] += d_atoms


def spread(
    expert: Int[Array, "tiles"], wide: Wide, atoms: Atoms, numbers: Lanes, interpret: Interpret
) -> Float[Array, "slots embed"]:
    """``(A^T C)^T W`` of every tile given."""
    _, sub, embed = wide.shape
    size, slots = numbers.shape
    rows = slots // expert.shape[0]
    spec = pltpu.PrefetchScalarGridSpec(
        1,
        expert.shape,
        [_by_expert(sub, embed), _by_expert(sub, size), _by_tile(size, rows)],
        pl.BlockSpec((rows, embed), lambda i, *_: (i, 0)),
    )
    return pl.pallas_call(
        _spread,
        grid_spec=spec,
        out_shape=jax.ShapeDtypeStruct((slots, embed), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=LIMIT),
        interpret=interpret,
        name="spread",
    )(expert, wide, atoms, numbers)


def _spread(expert, wide, atoms, numbers, out):
    out[...] = _dot(_dot(atoms[...], numbers[...], (1, 0)), wide[...], (0, 0))
