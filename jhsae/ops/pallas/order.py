"""Exact top-k inside a kernel without a sort: short sorted lists, and a floor that proves them sufficient.

Numbers become int32 keys of the same order. A row of n entries is dealt out to W lanes (entry i to lane i mod W) and
each lane keeps its `depth` largest entries in a sorted list, filled in one pass over the row. Then k times: the largest
key of all lists, its lowest index, mask it. What the lists leave out lies below the *floor*, the largest of the last
entries of the lanes; so every selected entry that does not lie below the floor is right. Of k = 32 entries spread over
128 lanes more than 4 share a lane in about one row of a thousand; then the pass is repeated for the entries after the
last right one. Each pass gives at least `depth` right entries, so the result is exact for any input.

The lists are those of the two-stage top-k of Samaga et al. (arXiv 2506.04165), which stops after one pass and is
approximate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

MAX_K = 256
LOWEST = -(2**31)  # below the key of every number
HIGHEST = 2**31 - 1  # the key of NaN; above every index
INFINITY = 0x7F800000  # its bits; those of NaN are above
LOW = 0xFFFF  # the half of a key that is empty for bfloat16

Pair = tuple[Float[Array, "rows k"], Int[Array, "rows k"]]
Entry = tuple[Array, ...]  # (key, index) or, for bfloat16 rows of up to 65,536, one integer that holds both


def packs(x: Float[Array, "rows n"]) -> bool:
    """Whether a key and an index fit into one int32."""
    return x.dtype == jnp.bfloat16 and x.shape[1] <= LOW + 1


def encode(x: Float[Array, "*shape"], index: Int[Array, "*shape"], packed: bool) -> Entry:
    """Entries whose keys have the order of the numbers: NaN largest, -0.0 equal to 0.0.

    A packed key is larger for the lower index among equal numbers, so that no two are equal.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    size = bits & HIGHEST
    key = jnp.where(size > INFINITY, HIGHEST, jnp.where(bits < 0, -size, size))
    return ((key & ~LOW) | (LOW - index),) if packed else (key, index)


def decode(entry: Entry, dtype: jnp.dtype) -> tuple[Float[Array, "*shape"], Int[Array, "*shape"]]:
    """The numbers and the indices; the inverse of `encode` up to the sign of zero and the payload of NaN."""
    key, index = entry if len(entry) == 2 else (entry[0] & ~LOW, LOW - (entry[0] & LOW))
    bits = jnp.where(key < 0, -key | LOWEST, key)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype), index


def after(entry: Entry, bound: Entry) -> Bool[Array, "*shape"]:
    """Whether an entry comes after the bound in the result: smaller, or equal with a higher index."""
    below = entry[0] < bound[0]
    return below | ((entry[0] == bound[0]) & (entry[1] > bound[1])) if len(entry) == 2 else below


def insert(lists: list[Entry], entry: Entry) -> list[Entry]:
    """Puts one more entry into each lane's sorted list and drops its smallest.

    Entries come in the order of their indices, so that of equal ones the earlier stays ahead.
    """
    if len(entry) == 1:
        result: list[Entry] = []
        for (held,) in lists:
            result.append((jnp.maximum(held, entry[0]),))
            entry = (jnp.minimum(held, entry[0]),)
        return result
    above = [entry[0] > held[0] for held in lists]
    pushed = [entry] + [
        tuple(jnp.where(over, old, new) for old, new in zip(held, entry, strict=True))
        for over, held in zip(above[:-1], lists[:-1], strict=True)
    ]
    return [
        tuple(jnp.where(over, new, old) for new, old in zip(push, held, strict=True))
        for over, push, held in zip(above, pushed, lists, strict=True)
    ]


def check(name: str, x: Float[Array, "rows n"], k: int) -> None:
    """Refuses what no kernel can do, or what another method does better."""
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"{name}: x is {x.dtype}, expected float32 or bfloat16; convert it first")
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"{name}: k is {k}, expected 1 <= k <= {x.shape[1]} (the size of the last axis)")
    if k > MAX_K:
        raise ValueError(f'{name}: k is {k}, the kernel takes at most {MAX_K}; write ops.topk(x, {k}, "lax")')


def differentiable(select: Callable[[Array], Pair], x: Float[Array, "rows n"]) -> Pair:
    """Runs a kernel without a derivative; the gradient of a value flows to the entry that was selected."""

    @jax.custom_jvp
    def run(x: Array) -> Pair:
        return select(x)

    @run.defjvp
    def jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Pair, Any]:
        values, indices = run(*primals)
        slopes = jnp.take_along_axis(tangents[0], indices, axis=-1)
        return (values, indices), (slopes, np.zeros(indices.shape, jax.dtypes.float0))

    return run(x)
