"""Selection by threshold: the value of rank k is found bit by bit, without a sort.

The bits of a float32, read as a whole number whose order is turned round below zero, order like the number. So the
largest threshold t with ``count(x >= t) >= k`` is the k-th largest entry, and takes one pass over x per bit. What lies
above it, and the first of those equal to it, is the top k: positions are read off the bits of a packed mask.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from jhsae.ops.chunks import chunk_size, map_chunks
from jhsae.ops.sharding import EXPERT, ShardingKind, all_gather_experts, before_rows, shard_mapped, shards, sum_over_all

LEAST = np.int32(-(2**31))  # below the key of -inf: no entry has it; also the bits of -0.0
INFINITY = 0x7F800000  # its bits; those of NaN are above
FOLDS = 3  # measured on CPU: 8 slices added elementwise first make a count vectorise
WORD = 32


def ordered(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """int32 keys in the order of x: -0.0 equals 0.0, and NaN comes above infinity."""
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x).astype(jnp.float32), jnp.int32)
    # Told by their bits: a comparison of floats takes a subnormal number for 0 where the hardware flushes them.
    signed = jnp.where(bits == LEAST, 0, bits)
    return jnp.where((bits & 0x7FFFFFFF) > INFINITY, jnp.int32(0x7FFFFFFF), signed ^ ((signed >> 31) & 0x7FFFFFFF))


def padded(keys: Int[Array, "*batch n"], multiple: int) -> Int[Array, "*batch m"]:
    widths = [(0, 0)] * (keys.ndim - 1) + [(0, -keys.shape[-1] % multiple)]
    return jnp.pad(keys, widths, constant_values=LEAST)


def at_least(keys: Int[Array, "*batch n"], threshold: Int[Array, "*#batch"]) -> Int[Array, "*batch"]:
    """How many keys of each row are the threshold or more."""
    counts = (keys >= threshold[..., None]).astype(jnp.int32)
    for _ in range(FOLDS):
        half, odd = divmod(counts.shape[-1], 2)
        if odd or half == 0:
            break
        counts = counts[..., :half] + counts[..., half:]
    return jnp.sum(counts, axis=-1)


def kth_largest(keys: Int[Array, "*batch n"], k: int) -> Int[Array, "*batch"]:
    """The k-th largest key of each row, in 32 passes."""
    keys = padded(keys, 2**FOLDS)
    zero = jnp.zeros(keys.shape[:-1], jnp.int32)
    start = jnp.where(at_least(keys, zero) >= k, zero, LEAST)

    def refine(i: Int[Array, ""], value: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        higher = value | (1 << (30 - i))
        return jnp.where(at_least(keys, higher) >= k, higher, value)

    return jax.lax.fori_loop(0, 31, refine, start)


def positions(keys: Int[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    """Positions of the k largest keys of each row, ties to the lowest, in the order of their positions."""
    threshold = kth_largest(keys, k)[..., None]
    keys = padded(keys, WORD)
    above, tied = _pack(keys > threshold), _pack(keys == threshold)
    room = k - jnp.sum(_ones(above), axis=-1, keepdims=True)
    kept = jnp.clip(room - (jnp.cumsum(_ones(tied), axis=-1) - _ones(tied)), 0, _ones(tied))
    end = _nth_one(tied, kept).astype(jnp.uint32)  # of the first tie that is left out
    words = above | jnp.where(kept == _ones(tied), tied, tied & ((jnp.uint32(1) << end) - jnp.uint32(1)))
    ends = jnp.cumsum(_ones(words), axis=-1)
    slots = jnp.arange(k, dtype=jnp.int32)
    word = jnp.sum((ends[..., None, :] <= slots[:, None]).astype(jnp.int32), axis=-1)
    start = jnp.take_along_axis(ends - _ones(words), word, axis=-1)
    return word * WORD + _nth_one(jnp.take_along_axis(words, word, axis=-1), slots - start)


def largest_first(keys: Int[Array, "*batch k"], indices: Int[Array, "*batch k"]) -> Int[Array, "*batch k"]:
    """`indices` sorted by their keys, stably: the rank of each is the number of those before it."""
    place = jnp.arange(keys.shape[-1])
    own, other = keys[..., :, None], keys[..., None, :]
    before = (other > own) | ((other == own) & (place < place[:, None]))
    rank = jnp.sum(before.astype(jnp.int32), axis=-1)
    return jnp.sum(jnp.where(rank[..., None, :] == place[:, None], indices[..., None, :], 0), axis=-1)


def largest(x: Float[Array, "*shape"], count: Int[Array, ""] | int) -> Bool[Array, "*shape"]:
    """Marks the `count` largest entries of a whole array of non-negative numbers; ties go to the lowest index.

    `count` may be traced; more than there are marks all. As in `topk`, NaN comes first, so that it
    reaches the loss; what is below 0 counts as 0.

    Args:
        x: any array.
        count: how many of its entries.
    """
    x = jax.lax.stop_gradient(x)
    if x.ndim == 2:  # the batch may be split over devices
        marked = shard_mapped(_largest, (ShardingKind.BOTH, ShardingKind.WHOLE), ShardingKind.BOTH, x.shape[1])
        return marked(x, jnp.asarray(count, jnp.uint32))
    return _largest(x.reshape(-1, x.shape[-1]), jnp.asarray(count, jnp.uint32)).reshape(x.shape)


def _largest(x: Float[Array, "rows n"], count: UInt32[Array, ""]) -> Bool[Array, "rows n"]:
    keys, value, room = _search(x, count)
    above, tied = keys > value, keys == value
    of_rows = jnp.sum(tied, axis=1, dtype=jnp.uint32)

    def first(tied: Bool[Array, "rows n"]) -> Bool[Array, "rows n"]:
        of_shards = all_gather_experts(of_rows[:, None], 1)
        shard = jax.lax.axis_index(EXPERT) if shards() > 1 else 0
        before = jnp.arange(of_shards.shape[1]) < shard
        to_the_left = jnp.sum(jnp.where(before, of_shards, 0), axis=1, dtype=jnp.uint32)
        whole_rows = jnp.sum(of_shards, axis=1, dtype=jnp.uint32)
        higher_up = jnp.cumsum(whole_rows, dtype=jnp.uint32) - whole_rows + before_rows(jnp.sum(whole_rows))
        rank = (higher_up + to_the_left)[:, None] + jnp.cumsum(tied, axis=1, dtype=jnp.uint32)
        return tied & (rank <= room)

    tied = jax.lax.cond(sum_over_all(jnp.sum(of_rows)) == room, lambda t: t, first, tied)
    return above | tied


def _search(x: Float[Array, "rows n"], count: UInt32[Array, ""]) -> tuple[Array, Array, Array]:
    """(keys [rows, n], the key of rank `count`, how many of that key belong): 31 passes, whose sums are folded."""
    keys = jnp.maximum(ordered(x), 0)

    def total(threshold: Int[Array, ""]) -> Array:
        return sum_over_all(jnp.sum(at_least(keys, threshold[None]), dtype=jnp.uint32))

    def refine(i: Int[Array, ""], value: Int[Array, ""]) -> Int[Array, ""]:
        higher = value | (1 << (30 - i))
        return jnp.where(total(higher) >= count, higher, value)

    value = jax.lax.fori_loop(0, 31, refine, jnp.int32(0))
    return keys, value, count - sum_over_all(jnp.sum(keys > value, dtype=jnp.uint32))


def _pack(mask: Bool[Array, "*batch n"]) -> Array:
    bits = mask.reshape(*mask.shape[:-1], -1, WORD).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(WORD, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)


def _ones(words: Array) -> Array:
    return jax.lax.population_count(words).astype(jnp.int32)


def _nth_one(words: Array, n: Array) -> Array:
    """The position of bit number n (from 0) among the bits that are set."""
    position = jnp.zeros_like(n)
    for step in (16, 8, 4, 2, 1):
        low = _ones(words & jnp.uint32((1 << step) - 1))
        skip = n >= low
        n = jnp.where(skip, n - low, n)
        words = jnp.where(skip, words >> step, words)
        position += jnp.where(skip, step, 0)
    return position


def largest_of_rows(x: Float[Array, "rows n"], k: int) -> Bool[Array, "rows n"]:
    """Marks the k largest entries of each row, ties to the lowest index, NaN first.

    For a large part of a row, whose order nobody needs. Rows stand in columns, so that counts add up whole vectors, and
    are searched some at a time, so that a CPU has them in its cache for all passes.

    Args:
        x: rows, [batch, n].
        k: how many of each row.
    """
    return map_chunks(lambda some: _of_columns(ordered(some).T, k).T, chunk_size(x.shape[0], 16 * x.shape[1]), x)


def _of_columns(keys: Int[Array, "n rows"], k: int) -> Bool[Array, "n rows"]:

    def refine(i: Int[Array, ""], value: Int[Array, "rows"]) -> Int[Array, "rows"]:
        higher = value | (1 << (30 - i))
        return jnp.where(jnp.sum(keys >= higher, axis=0, dtype=jnp.int32) >= k, higher, value)

    start = jnp.where(jnp.sum(keys >= 0, axis=0, dtype=jnp.int32) >= k, 0, LEAST)
    value = jax.lax.fori_loop(0, 31, refine, start)
    above, tied = keys > value, keys == value
    room = k - jnp.sum(above, axis=0, dtype=jnp.int32)

    def first(tied: Bool[Array, "n rows"]) -> Bool[Array, "n rows"]:
        return tied & (jnp.cumsum(tied, axis=0, dtype=jnp.int32) <= room)

    enough = jnp.all(jnp.sum(tied, axis=0, dtype=jnp.int32) == room)
    return above | jax.lax.cond(enough, lambda t: t, first, tied)
