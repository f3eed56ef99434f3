"""Exact top-k along the last axis, in several implementations of one signature.

All give the same values and the same indices: sorted by value, ties to the lowest index. The selection itself is not
differentiable; the gradient of a value flows to the entry that was selected.

- ``lax``: `jax.lax.top_k`; the fastest on CPU.
- ``scan``: k passes of argmax and mask (the original's); reads the array k times, works for any k on any backend.
- ``blocked``: the top k lie in the k blocks with the largest maxima, so only those are sorted.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Method = Literal["lax", "scan", "blocked"]
Pair = tuple[Float[Array, "*batch k"], Int[Array, "*batch k"]]


def topk(x: Float[Array, "*batch n"], k: int, method: Method = "lax") -> Pair:
    """The k largest entries of the last axis and their positions (int32), largest first."""
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"topk: k is {k}, expected 1 <= k <= {x.shape[-1]} (the size of the last axis)")
    indices = METHODS[method](jax.lax.stop_gradient(x), k)
    return jnp.take_along_axis(x, indices, axis=-1), indices


def _lax(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    # lax.top_k puts -0.0 below 0.0; here they are equal, as for argmax.
    return jax.lax.top_k(jnp.where(x == 0, 0.0, x), k)[1]


def _scan(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    positions = jnp.arange(x.shape[-1])

    def step(taken: Bool[Array, "*batch n"], _: None) -> tuple[Array, Array]:
        best = jnp.argmax(jnp.where(taken, -jnp.inf, x), axis=-1)
        # Where only -inf is left, the first entry that is not taken, not one that was masked to -inf.
        first = jnp.argmax(~taken, axis=-1)
        left = jnp.take_along_axis(x, best[..., None], axis=-1)[..., 0] != -jnp.inf
        best = jnp.where(left & ~jnp.take_along_axis(taken, best[..., None], axis=-1)[..., 0], best, first)
        return taken | (positions == best[..., None]), best.astype(jnp.int32)

    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros(x.shape, bool), None, length=k)[1], 0, -1)


def _blocked(x: Float[Array, "*batch n"], k: int) -> Int[Array, "*batch k"]:
    n = x.shape[-1]
    width = max(1, min(128, n // (2 * k)))  # wide enough to skip most of the row, narrow enough to have k blocks
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % width)], constant_values=-jnp.inf)
    blocks = padded.reshape(*x.shape[:-1], -1, width)
    chosen = jnp.sort(_lax(blocks.max(axis=-1), k), axis=-1)  # index order keeps ties at the lowest index
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=-2).reshape(*x.shape[:-1], k * width)
    within = _lax(candidates, k)
    return jnp.take_along_axis(chosen, within // width, axis=-1) * width + within % width


METHODS: dict[str, Callable[[Array, int], Array]] = {"lax": _lax, "scan": _scan, "blocked": _blocked}


INFINITY = 0x7F800000  # its bits; those of NaN are above


def largest(x: Float[Array, "*shape"], count: Int[Array, ""] | int) -> Bool[Array, "*shape"]:
    """Marks the `count` largest entries of a whole array of non-negative numbers; ties go to the lowest index.

    `count` may be traced. The bits of a non-negative float32 order like the number, so the value of rank `count` is
    found bit by bit, in 31 passes and without a sort. As in `topk`, what is not a number comes first, so that it
    reaches the loss.
    """
    signed = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x).astype(jnp.float32), jnp.int32)
    size = signed & 0x7FFFFFFF
    bits = jnp.where(size > INFINITY, size, jnp.maximum(signed, 0))  # -0.0 is 0, and so is all below it
    wanted = jnp.asarray(count, jnp.uint32)

    def refine(i: Int[Array, ""], value: Int[Array, ""]) -> Int[Array, ""]:
        higher = value | (1 << (30 - i))
        return jnp.where(jnp.sum(bits >= higher, dtype=jnp.uint32) >= wanted, higher, value)

    value = jax.lax.fori_loop(0, 31, refine, jnp.int32(0))
    above, tied = bits > value, bits == value
    room = wanted - jnp.sum(above, dtype=jnp.uint32)

    def first(tied: Bool[Array, "*shape"]) -> Bool[Array, "*shape"]:
        return tied & (jnp.cumsum(tied.reshape(-1), dtype=jnp.uint32).reshape(tied.shape) <= room)

    tied = jax.lax.cond(jnp.sum(tied, dtype=jnp.uint32) == room, lambda t: t, first, tied)
    return above | tied
