"""The exact top-k of every row for TPU (Pallas, Mosaic): each row is read from memory once.

A block of rows lies in fast memory. Its rows run along sublanes while the lists of `order` are filled, over 128 lanes;
the lists are then transposed, so that rows run along lanes and a row's maximum needs no exchange between lanes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from . import order

LANES = 128
DEPTH = 4
GROUP = 16  # rows filled together: one packed bfloat16 register
BLOCK = 2**21  # entries of a block of rows; two blocks of float32 are 16 MiB
LIMIT = 48 * 2**20  # bytes of fast memory


def topk_tpu(x: Float[Array, "rows n"], k: int, *, interpret: bool = False) -> order.Pair:
    """The k largest entries of each row and their positions (int32), largest first, ties to the lowest position.

    NaN comes first. Raises ValueError for k above 256, for n above 131,072 and for other types than float32, bfloat16.
    """
    order.check("topk_tpu", x, k)
    if x.shape[1] > BLOCK // GROUP:
        raise ValueError(
            f"topk_tpu: rows of {x.shape[1]} entries, the kernel takes at most {BLOCK // GROUP}; "
            f'write ops.topk(x, {k}, "blocked")'
        )
    return order.differentiable(partial(_select, k=k, interpret=interpret), x)


def _select(x: Float[Array, "rows n"], k: int, interpret: bool) -> order.Pair:
    # Padding comes after every entry of the row, so it is not selected even where the row is -inf.
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES)), constant_values=-jnp.inf)
    rows, n = x.shape
    parts = 1 if order.packs(x) else 2
    height = min(LANES, BLOCK // n // GROUP * GROUP, -(-rows // GROUP) * GROUP)
    blocks = pl.cdiv(rows, height)
    lists = pltpu.VMEM((DEPTH, height, LANES), jnp.int32)
    candidates = pltpu.VMEM((DEPTH * LANES, height), jnp.int32)
    bound = pltpu.VMEM((height, LANES), jnp.int32)
    found = pl.pallas_call(
        partial(_kernel, k=k, parts=parts),
        grid=(blocks,),
        in_specs=[pl.BlockSpec((height, n), lambda i: (i, 0))],
        out_specs=[pl.BlockSpec((None, k, height), lambda i: (i, 0, 0))] * parts,
        out_shape=[jax.ShapeDtypeStruct((blocks, k, height), jnp.int32)] * parts,
        scratch_shapes=[lists] * parts + [candidates] * parts + [bound] * parts,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=LIMIT),
        interpret=interpret,
        name="topk",
    )(x)
    return order.decode(tuple(jnp.swapaxes(a, 1, 2).reshape(blocks * height, k)[:rows] for a in found), x.dtype)


def _kernel(x_ref, *refs, k, parts):
    found, lists, candidates, bounds = (refs[i * parts : (i + 1) * parts] for i in range(4))
    height, n = x_ref.shape
    lane = jax.lax.broadcasted_iota(jnp.int32, (GROUP, LANES), 1)
    rank = jax.lax.broadcasted_iota(jnp.int32, (k, height), 0)

    def read(refs, at):
        return tuple(ref[at] for ref in refs)

    def fill(group, bounded):
        rows = pl.ds(pl.multiple_of(group * GROUP, GROUP), GROUP)

        def step(chunk, held):
            start = pl.multiple_of(chunk * LANES, LANES)
            entry = order.encode(x_ref[rows, pl.ds(start, LANES)], lane + start, parts == 1)
            if bounded:
                entry = (jnp.where(order.after(entry, read(bounds, rows)), entry[0], order.LOWEST), *entry[1:])
            return order.insert(held, entry)

        empty = (jnp.full((GROUP, LANES), order.LOWEST), jnp.full((GROUP, LANES), order.HIGHEST))[:parts]
        for d, held in enumerate(jax.lax.fori_loop(0, n // LANES, step, [empty] * DEPTH)):
            for ref, part in zip(lists, held, strict=True):
                ref[d, rows, :] = part

    def best(entry):
        key = jnp.max(entry[0], axis=0, keepdims=True)
        if parts == 1:
            return (key,)
        return key, jnp.min(jnp.where(entry[0] == key, entry[1], order.HIGHEST), axis=0, keepdims=True)

    def pop(t, _):
        entry = read(candidates, ...)
        top = best(entry)
        candidates[0][...] = jnp.where(entry[-1] == top[-1], order.LOWEST, entry[0])  # last parts are distinct
        for ref, part in zip(found, top, strict=True):
            ref[pl.ds(t, 1), :] = part
        return 0

    def select(right, bounded):
        """One pass; returns how many leading results are right in every row."""
        jax.lax.fori_loop(0, height // GROUP, lambda g, _: [fill(g, bounded), 0][1], 0)
        for ref, held in zip(candidates, lists, strict=True):
            for d in range(DEPTH):
                ref[d * LANES : (d + 1) * LANES] = held[d].T
        floor = best(read(candidates, slice((DEPTH - 1) * LANES, None)))
        jax.lax.fori_loop(right, k, pop, 0)
        wrong = order.after(read(found, ...), floor) & (rank >= right)
        return jnp.min(jnp.where(wrong, rank, k))

    def again(right):
        for ref, bound in zip(found, bounds, strict=True):
            bound[...] = jnp.broadcast_to(ref[pl.ds(right - 1, 1), :], (LANES, height)).T
        return select(right, bounded=True)

    jax.lax.while_loop(lambda right: right < k, again, select(0, bounded=False))
