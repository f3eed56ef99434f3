"""Products of gathered rows with the wide matrices of experts, for NVIDIA GPUs (Pallas, Mosaic GPU; no Triton).

With x_p the row of x of pair p, W_e [sub, embed] the wide matrix of its expert e and c_p a few numbers of the pair:

- `project`: ``W_e x_p`` of every pair: encode, and the gradient of decode's codes;
- `weights`: ``sum over p of c_p x_p^T`` for every expert: the gradients of the matrices;
- `spread`: ``sum over the pairs of a token of c_p^T W_e``: decode, and encode's gradient of x.

An expert has about 4 rows. A tile of the tensor cores would be mostly padding, and in float32 it rounds to TF32, while
a pair takes 2 sub FLOPs for each number that it reads: 2 to 4 for a byte, where an H100's vector units can do 20. So
these kernels are vector code, and shared memory only adds up across warps: a warpgroup (128 threads) holds columns side
by side and reads rows of x straight into registers, some in flight at a time, by loads of consecutive addresses.

What they are bound by is where rows come from. 1.04 M pairs of 2,304 numbers are 9.6 GB, x itself 0.3 GB. `weights` and
`spread` need one block of columns at a time, so blocks of the grid run over all experts or tokens before the next
columns: that slice of x (or of all W) stays in the second-level cache, main memory gives every number once, and no row
of a pair is ever written. `project` needs whole rows: it takes tiles of pairs of one expert, W_e in registers, each row
once from main memory. Nothing is added by atomics, so that two runs give the same bits.

`experiments/bench/kernels_gpu.py` compiles them for an H100 without one and counts registers and bytes.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from jhsae.errors import UserError
from jhsae.ops.chunks import PLATFORM

THREADS = 128  # of a warpgroup
WIDEST_LOAD = 2 * THREADS  # numbers: two of a thread lie side by side
SLICE = 20 * 2**20  # bytes that should stay in the cache: an H100 has 50 MiB in two halves, each with its own copies
REGISTERS = 80  # of a thread for the matrix of an expert; 168 are there for each of three blocks on one SM
WIDEST = 32  # rows of a wide matrix
IN_FLIGHT = 8  # rows that are read before the first is used
TOKENS = 8  # that a warpgroup sums up, one after another
ROWS = 64  # pairs of a tile of `project`

INTERPRET: ContextVar[Any] = ContextVar("interpret", default=None)
"""How tests run the kernels on a CPU: True for Pallas' plain interpreter, or parameters of that of Mosaic GPU."""

Wide = Float[Array, "experts sub embed"]


class Groups(NamedTuple):
    """Which rows of a table belong to each expert: `size` of them from `first` on."""

    first: Int[Array, "experts"]
    size: Int[Array, "experts"]


def check_platform(what: str, instead: str) -> None:
    """Raises UserError where no kernel for NVIDIA GPUs can run.

    Args:
        what: a clause that names the key and its value.
        instead: what to write.
    """
    platform = PLATFORM.get() or jax.default_backend()
    if platform not in ("gpu", "cuda") and INTERPRET.get() is None:
        raise UserError(f"{what}, but the platform is {platform}; write {instead}")


def project(
    x: Float[Array, "batch embed"],
    wide: Wide,
    expert: Int[Array, "tiles"],
    in_use: Int[Array, "tiles"],
    token: Int[Array, "tiles rows"],
) -> Float[Array, "tiles rows sub"]:
    """``wide[expert[t]] x[token[t, r]]`` of the first `in_use` rows of each tile, 0 in the others.

    Args:
        x: in the format of products.
        wide: in float32; rounded to the format of x.
        expert: of each tile.
        in_use: how many rows of each tile.
        token: of each row.
    """
    (tiles, rows), (_, sub, embed) = token.shape, wide.shape
    columns = largest_block(embed, THREADS * REGISTERS // sub)
    lanes = largest_block(columns, WIDEST_LOAD)
    width = -(-rows * sub // THREADS) * THREADS

    def body(i, expert, in_use, token, x, wide, out):
        block, t = jax.lax.div(i, tiles), jax.lax.rem(i, tiles)
        starts = [block * columns + start for start in range(0, columns, lanes)]
        e = expert[t]
        w = [[_rounded(wide[e, s, pl.ds(start, lanes)], x.dtype) for start in starts] for s in range(sub)]
        place = _laid_out(jax.lax.iota(jnp.int32, width))

        def load(r):
            return tuple(x[token[t, r], pl.ds(start, lanes)] for start in starts)

        def add(r, carry):
            row, found = carry
            ahead = load(jnp.minimum(r + 1, rows - 1))  # on its way while this row's sums cross the threads
            parts = [part.astype(jnp.float32) for part in row]
            for s in range(sub):
                total = parts[0] * w[s][0]
                for part, of_part in zip(parts[1:], w[s][1:], strict=True):
                    total = total + part * of_part
                found = jnp.where(place == r * sub + s, jnp.sum(total), found)
            return ahead, found

        none = _laid_out(jnp.zeros((width,), jnp.float32))
        out[block, t, :] = jax.lax.fori_loop(0, in_use[t], add, (load(0), none))[1]

    blocks = embed // columns
    found = _call("project", body, blocks * tiles, (blocks, tiles, width), expert, in_use, token, x, wide)
    return jnp.sum(found[..., : rows * sub], axis=0).reshape(tiles, rows, sub)


def weights(
    x: Float[Array, "batch embed"],
    left: Float[Array, "rows sub"],
    token: Int[Array, "rows"],
    groups: Groups,
) -> Float[Array, "experts sub embed"]:
    """``sum over the rows r of an expert of left[r] x[token[r]]^T``; 0 for an expert without rows.

    Args:
        x: in the format of products.
        left: the numbers of each row.
        token: of each row.
        groups: the rows of each expert.
    """
    (batch, embed), (experts,), sub = x.shape, groups.first.shape, left.shape[1]
    lanes = columns_of_weights(embed, batch, x.dtype.itemsize)
    left = jnp.pad(left, [(0, 0), (0, -sub % 4)])  # four numbers are one load

    def body(i, first, size, token, x, left, out):
        columns, e = pl.ds(jax.lax.div(i, experts) * lanes, lanes), jax.lax.rem(i, experts)
        start = first[e]

        def add(r, sums):
            part = x[token[start + r], columns].astype(jnp.float32)
            return [total + left[start + r, s] * part for s, total in enumerate(sums)]

        none = [jnp.zeros((lanes,), jnp.float32)] * sub
        for s, total in enumerate(_over(size[e], IN_FLIGHT, add, none)):
            out[e, s, columns] = total

    return _call("weights", body, embed // lanes * experts, (experts, sub, embed), *groups, token, x, left)


def spread(
    numbers: Float[Array, "batch k sub"], indices: Int[Array, "batch k"], wide: Wide
) -> Float[Array, "batch embed"]:
    """``sum_j numbers[b, j]^T wide[indices[b, j]]``.

    Args:
        numbers: of every pair.
        indices: the expert of every pair.
        wide: in the format of products.
    """
    (batch, k, sub), (experts, _, embed) = numbers.shape, wide.shape
    lanes = THREADS
    parts = parts_of_spread(experts, sub, wide.dtype.itemsize)
    of_part, groups = sub // parts, -(-batch // TOKENS)

    def body(i, numbers, indices, wide, out):
        piece, group = jax.lax.div(i, groups), jax.lax.rem(i, groups)
        part = jax.lax.rem(piece, parts)
        columns, first = pl.ds(jax.lax.div(piece, parts) * lanes, lanes), part * of_part

        def of_token(n, _):
            b = jnp.minimum(group * TOKENS + n, batch - 1)  # the last token again where there is none

            def add(j, total):
                e = indices[b, j]
                for s in range(of_part):
                    total = total + numbers[b, j, first + s] * wide[e, first + s, columns].astype(jnp.float32)
                return total

            out[part, b, columns] = _over(k, IN_FLIGHT, add, jnp.zeros((lanes,), jnp.float32))
            return 0

        jax.lax.fori_loop(0, TOKENS, of_token, 0)

    pieces = embed // lanes * parts
    return jnp.sum(_call("spread", body, pieces * groups, (parts, batch, embed), numbers, indices, wide), axis=0)


def columns_of_weights(embed: int, batch: int, itemsize: int) -> int:
    """The columns of `weights` that a warpgroup works on: their slice of x should stay in the cache."""
    return largest_block(embed, min(SLICE // (batch * itemsize), WIDEST_LOAD))


def parts_of_spread(experts: int, sub: int, itemsize: int) -> int:
    """In how many parts `spread` takes the rows of an expert, so that their slice should stay in the cache."""
    return 2 if sub % 2 == 0 and experts * sub * THREADS * itemsize > SLICE else 1


def largest_block(embed: int, most: int) -> int:
    """The largest multiple of 128 that divides `embed` and is at most `most`; 128 at least."""
    return next((n for n in range(most // THREADS * THREADS, THREADS, -THREADS) if embed % n == 0), THREADS)


def _rounded(a: Array, dtype: Any) -> Array:
    return a.astype(dtype).astype(jnp.float32)


def _over(count: Any, unroll: int, add: Callable[[Any, Any], Any], carry: Any) -> Any:
    """``carry = add(i, carry)`` for i < count, so many at a time that their loads are in flight together."""
    whole = jax.lax.div(count, jnp.int32(unroll)) if isinstance(count, jax.Array) else count // unroll

    def some(i: Any, carry: Any) -> Any:
        for u in range(unroll):
            carry = add(i * unroll + u, carry)
        return carry

    return jax.lax.fori_loop(whole * unroll, count, add, jax.lax.fori_loop(0, whole, some, carry))


def _laid_out(a: Array) -> Array:
    """The array with the layout that a load has; interpreters know no layouts."""
    if INTERPRET.get() is not None:
        return a
    vector = 1 + (a.shape[0] % WIDEST_LOAD == 0)
    return plgpu.layout_cast(a, plgpu.Layout.WG_STRIDED(a.shape, vec_size=vector))


def _call(name: str, body: Callable[..., None], grid: int, shape: tuple[int, ...], *arrays: Array) -> Array:
    """Runs ``body(i, *arrays, out)`` for i < grid, all refs in main memory, and gives the float32 array `out`."""
    out, how = jax.ShapeDtypeStruct(shape, jnp.float32), INTERPRET.get()
    if how is True:
        run = lambda *refs: body(pl.program_id(0), *refs)  # noqa: E731
        return pl.pallas_call(run, grid=(grid,), out_shape=out, interpret=True, name=name)(*arrays)
    return plgpu.kernel(
        lambda *refs: body(jax.lax.axis_index("block"), *refs),
        out_type=out,
        grid=(grid,),  # one axis, whose blocks start in order: slices follow one another
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=how,
        kernel_name=name,
    )(*arrays)
