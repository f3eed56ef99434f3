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
