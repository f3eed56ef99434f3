"""Numbers of pairs of token and expert in rows of 128 lanes, several pairs beside one another.

A kernel copies a row for each pair, and a row of fewer numbers than 128 takes the memory of 128. With `width` lanes for
a pair, ``parts = 128 // width`` parts of the batch lie side by side: pair p lies in row ``p % rows``, in the lanes from
``(p // rows) width`` on. A kernel sets the lanes of other pairs to 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jhsae.codes import Codes

LANES = 128


class Numbers(NamedTuple):
    """The numbers of all pairs."""

    rows: Float[Array, "rows lanes"]
    width: int
    """Lanes of a pair."""


def width_of(size: int) -> int:
    """The lanes of a pair with so many numbers: a power of two, or a multiple of 128."""
    return size + -size % LANES if size > LANES else 1 << (size - 1).bit_length()


def parts_of(width: int) -> int:
    """How many pairs share a row."""
    return max(1, LANES // width)


def numbers_of(values: Float[Array, "batch k size"], last: Float[Array, "batch k"] | None = None) -> Numbers:
    """The values of every pair, then `last`."""
    size = values.shape[-1]
    width = width_of(size + (last is not None))

    def part(at: int, lanes: int, values: Array, *last: Array) -> Array:
        placed = jnp.pad(values, [(0, 0), (0, 0), (at, lanes - at - size)])
        for one in last:  # not concatenated: that would be written once more
            placed = jnp.where(jnp.arange(lanes) == at + size, one[..., None], placed)
        return placed

    return _side_by_side(part, width, values, *([] if last is None else [last]))


def numbers_at(children: Codes) -> Numbers:
    """The children of every pair at their atoms; those that share one add up."""
    if children.indices is None:
        return numbers_of(children.values)

    def part(at: int, lanes: int, values: Array, atoms: Array) -> Array:
        chosen = (at + atoms)[..., None] == jnp.arange(lanes)
        return jnp.sum(jnp.where(chosen, values[..., None], 0), axis=2)

    return _side_by_side(part, width_of(children.size), children.values, children.indices)


def _side_by_side(part: Callable[..., Array], width: int, *arrays: Array) -> Numbers:
    """``part(first lane, lanes, arrays)`` [tokens, k, lanes] of every part of the batch, added up."""
    parts, lanes = parts_of(width), max(width, LANES)
    batch, k = arrays[0].shape[:2]
    tokens = -(-batch // parts)
    more = parts * tokens - batch
    padded = [jnp.pad(a, [(0, more)] + [(0, 0)] * (a.ndim - 1)) for a in arrays] if more else arrays
    of_part = [
        part(p * width, lanes, *(jax.lax.slice_in_dim(a, p * tokens, (p + 1) * tokens) for a in padded))
        for p in range(parts)
    ]
    rows = jax.lax.optimization_barrier(sum(of_part[1:], start=of_part[0]).reshape(tokens * k, lanes))
    return Numbers(rows, width)


def repeated(a: Float[Array, "*rest lanes"], width: int) -> Float[Array, "*rest all"]:
    """An array of `width` lanes, once for each pair of a row."""
    return jnp.tile(a, (*(1,) * (a.ndim - 1), parts_of(width)))


def added(a: Float[Array, "*rest lanes"], width: int) -> Float[Array, "*rest width"]:
    """The sum over the pairs of a row: the transpose of `repeated`."""
    return jnp.sum(a.reshape(*a.shape[:-1], parts_of(width), width), axis=-2)


def row_of(pair: Any, rows: int, parts: int) -> Any:
    """The row of a pair, ``pair % rows``, without a division; of one beyond the last, any row."""
    for _ in range(parts - 1):
        pair = jax.lax.select(pair >= rows, pair - rows, pair)
    return jnp.minimum(pair, rows - 1)


def own_lanes(c: Float[Array, "pairs lanes"], pair: Any, rows: int, width: int) -> Float[Array, "pairs lanes"]:
    """Inside a kernel: rows of numbers, 0 in the lanes of other pairs than `pair` [1, pairs]."""
    parts = parts_of(width)
    if parts == 1:
        return c
    at = sum(((pair >= p * rows).astype(jnp.int32) for p in range(1, parts)), start=jnp.zeros_like(pair))
    size, lanes = c.shape
    by_row = jnp.broadcast_to(at, (lanes, size)).T
    here = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, c.shape, 1), jnp.int32(width))
    return jnp.where(by_row == here, c, 0)
