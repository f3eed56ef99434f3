"""The exact top-k of every row for NVIDIA GPUs (Pallas, Mosaic GPU): each row is read from memory once.

One warpgroup (128 threads) takes one row; the lists of `order` lie in its registers, over 256 lanes. A row whose lists
were too short is read again by its own warpgroup alone.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from . import order

THREADS = 128
LANES = 256
DEPTH = 3


def topk_gpu(x: Float[Array, "rows n"], k: int, *, interpret: Any = None) -> order.Pair:
    """The k largest entries of each row and their positions (int32), largest first, ties to the lowest position.

    NaN comes first. Raises ValueError for k above 256 and for other types than float32 and bfloat16. `interpret`: the
    parameters of Pallas' interpreter of GPU kernels.
    """
    order.check("topk_gpu", x, k)
    return order.differentiable(partial(_select, k=k, interpret=interpret), x)


def _select(x: Float[Array, "rows n"], k: int, interpret: Any) -> order.Pair:
    # Padding comes after every entry of the row, so it is not selected even where the row is -inf.
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES)), constant_values=-jnp.inf)
    parts = 1 if order.packs(x) else 2
    width = -(-k // THREADS) * THREADS
    found = plgpu.kernel(
        partial(_kernel, k=k, parts=parts, interpreted=interpret is not None),
        out_type=[jax.ShapeDtypeStruct((x.shape[0], width), jnp.int32)] * parts,
        grid=(x.shape[0],),
        grid_names=("row",),
        # Under the semantics of lanes, `where` with a constant loses the sign of its type (jax 0.10.2 and 0.12.0).
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpret,
    )(x)
    return order.decode(tuple(a[:, :k] for a in found), x.dtype)


def _kernel(x_ref, *found_refs, k, parts, interpreted):
    row = jax.lax.axis_index("row")
    chunks, width = x_ref.shape[1] // LANES, found_refs[0].shape[1]
    unroll = next(u for u in (4, 2, 1) if chunks % u == 0)  # loads in flight

    def laid_out(a):
        """Gives a the layout that a load has; the interpreter knows no layouts."""
        vector = min(a.shape[0] // THREADS, 8 // x_ref.dtype.itemsize)
        return a if interpreted else plgpu.layout_cast(a, plgpu.Layout.WG_STRIDED(a.shape, vec_size=vector))

    def full(size, value):
        return laid_out(jnp.full((size,), value, jnp.int32))

    lane = laid_out(jax.lax.iota(jnp.int32, LANES))
    rank = laid_out(jax.lax.iota(jnp.int32, width))

    def fill(bound):
        def step(i, held):
            starts = [(i * unroll + u) * LANES for u in range(unroll)]
            loads = [x_ref[row, pl.ds(start, LANES)] for start in starts]
            for start, x in zip(starts, loads, strict=True):
                entry = order.encode(x, lane + start, parts == 1)
                if bound is not None:
                    entry = (jnp.where(order.after(entry, bound), entry[0], order.LOWEST), *entry[1:])
                held = order.insert(held, entry)
            return held

        empty = (full(LANES, order.LOWEST), full(LANES, order.HIGHEST))[:parts]
        return jax.lax.fori_loop(0, chunks // unroll, step, [empty] * DEPTH)

    def best(lists):
        key = jnp.max(jax.tree.reduce(jnp.maximum, [entry[0] for entry in lists]))
        if parts == 1:
            return (key,)
        tied = [jnp.where(entry[0] == key, entry[1], order.HIGHEST) for entry in lists]
        return key, jnp.min(jax.tree.reduce(jnp.minimum, tied))

    def select(right, found, bound):
        """One pass; returns how many leading results are right, and the results."""
        lists = fill(bound)
        floor = best(lists[-1:])

        def pop(t, carry):
            lists, found = carry
            top = best(lists)
            # Last parts are distinct.
            lists = [(jnp.where(e[-1] == top[-1], order.LOWEST, e[0]), *e[1:]) for e in lists]
            return lists, tuple(jnp.where(rank == t, new, old) for new, old in zip(top, found, strict=True))

        found = jax.lax.fori_loop(right, k, pop, (lists, found))[1]
        wrong = order.after(found, floor) & (rank >= right) & (rank < k)
        return jnp.min(jnp.where(wrong, rank, k)), found

    def again(carry):
        right, found = carry
        bound = tuple(jnp.max(jnp.where(rank == right - 1, part, order.LOWEST)) for part in found)
        return select(right, found, bound)

    nothing = tuple(full(width, order.LOWEST) for _ in range(parts))
    first = select(jnp.int32(0), nothing, None)
    for ref, part in zip(found_refs, jax.lax.while_loop(lambda c: c[0] < k, again, first)[1], strict=True):
        ref[row, :] = part
