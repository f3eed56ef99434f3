"""The shared part of the kernels of `tile_kernels`: a grid over tiles, and rows that are copied in and out one by one.

Rows of a source come to a tile by asynchronous copies that run one tile ahead, into two buffers; rows of a result leave
the same way, to the place of their pair. One row of a tile belongs to one pair of token and expert.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Shaped

from jhsae.errors import UserError
from jhsae.ops.chunks import PLATFORM

from .pair_numbers import Numbers, parts_of, row_of

LIMIT = 56 * 2**20  # bytes of fast memory

Interpret = bool | pltpu.InterpretParams
INTERPRET: ContextVar[Interpret] = ContextVar("interpret", default=False)
"""What `pallas_call` gets as `interpret`: tests run the kernels on a CPU."""

Wide = Float[Array, "experts sub embed"]
Atoms = Float[Array, "blocks block_sub lanes"]
"""The atoms of the experts of a block below one another, with zeros up to a multiple of 128, or repeated up to it."""


class Table(NamedTuple):
    """What the kernels know of the tiles; the rows in use come first in every tile, the tiles in use before others."""

    block: Int[Array, "tiles"]
    in_use: Int[Array, "tiles"]
    """How many rows of each tile."""
    pair: Int[Array, "tiles 1 rows"]
    own: Int[Array, "tiles 1 rows"]
    """Which expert of its block a row belongs to; -1 where the row is not in use."""
    used: Int[Array, ""]
    """How many tiles."""


class Source(NamedTuple):
    """An array whose rows are copied for each pair: row ``pair // share``, counted modulo their number."""

    rows: Shaped[Array, "some width"]
    share: int
    parts: int = 1
    """How often the pairs go through the rows; see `pair_numbers`."""

    @classmethod
    def of(cls, numbers: Numbers) -> "Source":
        return cls(numbers.rows, 1, parts_of(numbers.width))


class Copied(NamedTuple):
    """A source inside a kernel, with two buffers and a semaphore for each."""

    rows: Any
    share: int
    parts: int
    buffers: Any
    done: Any


def check_platform(what: str, instead: str) -> None:
    """Raises UserError where no kernel for TPU can run.

    Args:
        what: a clause that names the key and its value.
        instead: what to write.
    """
    platform = PLATFORM.get() or jax.default_backend()
    if platform != "tpu" and not INTERPRET.get():
        raise UserError(f"{what}, but the platform is {platform}; write {instead}")


def packed(x: Float[Array, "batch embed"]) -> Shaped[Array, "batch half"]:
    """The array in bfloat16, column c beside column ``c + embed / 2`` in one integer of 32 bits.

    A single row of bfloat16 cannot be copied from a TPU's memory, which holds its rows in pairs.
    """
    low, high = (
        jax.lax.bitcast_convert_type(half.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
        for half in jnp.split(x, 2, axis=1)
    )
    return low | (high << 16)


def columns_of(rows: Shaped[Array, "rows width"]) -> list[Array]:
    """The columns of rows in float32, or in two halves of bfloat16 where they are `packed`."""
    if rows.dtype == jnp.float32:
        return [rows]
    halves = (rows << 16, rows & jnp.uint32(0xFFFF0000))
    return [jax.lax.bitcast_convert_type(half, jnp.float32).astype(jnp.bfloat16) for half in halves]


def _bytes(*arrays: Array) -> int:
    return sum(a.size * a.dtype.itemsize for a in arrays)


def leaving(table: Table, lanes: int) -> list[Any]:
    """What `leave` needs."""
    return [pltpu.VMEM((2, table.pair.shape[2], lanes), jnp.float32), pltpu.SemaphoreType.DMA((2,))]


def of_experts(shape: tuple[int, ...], block: int) -> pl.BlockSpec:
    """The part of a block of experts, of an array with a row for each expert."""
    return pl.BlockSpec((block, *shape[1:]), lambda i, block, *_: (block[i], 0, 0))


def of_blocks(shape: tuple[int, ...]) -> pl.BlockSpec:
    """The same of an array with a row for each block."""
    return pl.BlockSpec((None, *shape[1:]), lambda i, block, *_: (block[i], 0, 0))


def call(
    kernel: Callable[..., None],
    table: Table,
    sources: Sequence[Source],
    wide: Wide,
    atoms: Atoms,
    outs: Sequence[tuple[pl.BlockSpec, tuple[int, ...]]],
    scratch: Sequence[Any],
    cost: tuple[int, int],
    into: tuple[Int[Array, ""], Array] | None = None,
) -> Sequence[Array]:
    """Runs a kernel over the tiles in use.

    `cost`: bytes to and from slow memory, and FLOPs. `into`: a number for the kernel, and an array that becomes its
    only result.
    """
    tiles, _, rows = table.pair.shape
    scalars = [table.block, table.in_use, *([] if into is None else [into[0][None]])]
    arrays = [*(source.rows for source in sources), wide, atoms, *([] if into is None else [into[1]])]

    def pairs(ahead: int, **space: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, 1, rows), lambda i, *_: (jnp.minimum(i + ahead, tiles - 1), 0, 0), **space)

    tables = [pairs(0, memory_space=pltpu.SMEM), pairs(1, memory_space=pltpu.SMEM), pairs(0), pairs(0)]
    weights = [of_experts(wide.shape, len(wide) // len(atoms)), of_blocks(atoms.shape)]
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    specs = [*tables, *(anywhere for _ in sources), *weights, *([] if into is None else [anywhere])]
    buffers = [pltpu.VMEM((2, rows, source.rows.shape[1]), source.rows.dtype) for source in sources]
    done = [pltpu.SemaphoreType.DMA((2,)) for _ in sources]
    aliases = {} if into is None else {len(scalars) + len(specs) - 1: 0}
    moved = cost[0] + _bytes(wide, atoms, table.pair, table.pair, table.pair, table.own)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            len(scalars), (table.used,), specs, [spec for spec, _ in outs], [*buffers, *done, *scratch]
        ),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for _, shape in outs],
        input_output_aliases=aliases,
        # in order: tiles of one block add up, and each tile starts the copies of the next
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",), vmem_limit_bytes=LIMIT),
        cost_estimate=pl.CostEstimate(flops=cost[1], transcendentals=0, bytes_accessed=moved),
        interpret=INTERPRET.get(),
        name=kernel.func.__name__.strip("_") if isinstance(kernel, partial) else kernel.__name__,
    )(*scalars, table.pair, table.pair, table.pair, table.own, *arrays)


def gather(i: Any, in_use: Any, now: Any, ahead: Any, sources: Sequence[Copied], start: Any = 0) -> list[Array]:
    """Starts the copies of the next tile's rows and waits for this tile's; rows not in use are finite."""

    def copies(tile, pairs, action):
        slot = jax.lax.rem(tile, 2)

        def copy(r, _):
            for rows, share, parts, buffers, done in sources:
                pair = start + pairs[0, r]
                row = row_of(pair if share == 1 else jax.lax.div(pair, share), rows.shape[0], parts)
                action(pltpu.make_async_copy(rows.at[pl.ds(row, 1)], buffers.at[slot, pl.ds(r, 1)], done.at[slot]))
            return 0

        jax.lax.fori_loop(0, in_use[tile], copy, 0)

    @pl.when(i == 0)
    def _():
        for source in sources:
            source.buffers[...] = jnp.zeros_like(source.buffers)
        copies(0, now, lambda copy: copy.start())

    @pl.when(i + 1 < pl.num_programs(0))
    def _():
        copies(i + 1, ahead, lambda copy: copy.start())

    copies(i, now, lambda copy: copy.wait())
    return [source.buffers[jax.lax.rem(i, 2)] for source in sources]


def leave(i: Any, in_use: Any, now: Any, value: Array, out: Any, staged: Any, sent: Any) -> None:
    """Starts the copies of this tile's rows to the places of their pairs; the last tile waits for all."""
    slot = jax.lax.rem(i, 2)

    def copy(pair, r, slot):
        return pltpu.make_async_copy(staged.at[slot, pl.ds(r, 1)], out.at[pl.ds(pair, 1)], sent.at[slot])

    def wait(tile):
        jax.lax.fori_loop(0, in_use[tile], lambda r, _: [copy(0, r, jax.lax.rem(tile, 2)).wait(), 0][1], 0)

    pl.when(i >= 2)(lambda: wait(i - 2))
    staged[slot] = value
    jax.lax.fori_loop(0, in_use[i], lambda r, _: [copy(now[0, r], r, slot).start(), 0][1], 0)

    @pl.when(i + 1 == pl.num_programs(0))
    def _():
        pl.when(i >= 1)(lambda: wait(i - 1))
        wait(i)
