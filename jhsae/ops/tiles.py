"""(token, expert) pairs sorted by expert and cut into tiles that belong to one expert each.

A tile holds up to `rows` pairs of one expert, so its rows of x meet that expert's matrices in one small product, and
the gradient of an expert is a sum over its tiles. With P = batch x k pairs, ``P // rows + experts`` tiles are enough
for any distribution of pairs over experts: there is no capacity and nothing is dropped. Loops run over the tiles that
are used, a group at a time. Where devices share the experts (`shard_mapped`), each has the tiles of its own alone.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jhsae.ops.chunks import on_cpu
from jhsae.ops.precision import dot, once, rounded
from jhsae.ops.sharding import shards, to_local_index

ROWS = 16  # pairs of a tile, at least: fewer leave the products small, more leave tiles half empty
MOST_ROWS = 64
CPU_BYTES = 1 << 21  # gathered rows of one group: they should stay in the second-level cache
ACCELERATOR_BYTES = 1 << 25
AWAY = 1 << 30  # beyond the rows of any tile
THIN = 16  # columns of the thin side: up to here no written-out sum was clearly slower than a product
TERMS = 16  # terms of a sum that is written out


class Tiles(NamedTuple):
    """Where every pair stands. Pair p is slot ``p % k`` of token ``p // k``."""

    expert: Int[Array, "tiles"]
    pair: Int[Array, "tiles rows"]
    """The pair in each row of a tile; 0 where the row is empty."""
    live: Bool[Array, "tiles rows"]
    place: Int[Array, "batch k"]
    """The row, counted through all tiles, of each pair; beyond the last where another device has the expert."""
    used: Int[Array, ""]
    """The number of tiles that hold a pair."""

    @property
    def token(self) -> Int[Array, "tiles rows"]:
        """The token of each row."""
        return self.pair // self.place.shape[-1]

    def group(self, width: int) -> int:
        """How many of them a loop takes at once, for rows of `width` float32 numbers."""
        return group_size(width, self.pair.shape[1])

    def padded(self, group: int) -> "Tiles":
        """The same with empty tiles at the end, so that their number is a multiple of `group`, or less than one."""
        more = -self.expert.shape[0] % group if self.expert.shape[0] > group else 0
        expert, pair, live = (jnp.pad(a, [(0, more)] + [(0, 0)] * (a.ndim - 1)) for a in self[:3])
        return Tiles(expert, pair, live, self.place, self.used)

    def alone(self, rows: Float[Array, "tiles rows *rest"]) -> Float[Array, "tiles rows *rest"]:
        """The numbers of rows that hold a pair, 0 in the others."""
        return jnp.where(self.live.reshape(*self.live.shape, *(1,) * (rows.ndim - 2)), rows, 0)

    def of_pairs(self, numbers: Float[Array, "pairs *rest"]) -> Float[Array, "tiles rows *rest"]:
        """Numbers of the pairs (`by_number`) in the rows of the tiles, 0 in empty rows."""
        return self.alone(numbers[self.pair])

    def by_pair(self, rows: Float[Array, "tiles rows *rest"]) -> Float[Array, "batch k *rest"]:
        """Per-row numbers in the order of the pairs; 0 for those of other devices."""
        flat = rows.reshape(-1, *rows.shape[2:])
        return flat[self.place] if shards() == 1 else flat.at[self.place].get(mode="fill", fill_value=0)


def by_number(array: Shaped[Array, "batch k *rest"]) -> Shaped[Array, "pairs *rest"]:
    """What belongs to slot j of token b, at ``b k + j``: for loops over tiles, before which it must be made.

    The compiler would make it anew in every trip, which is half of what some of these loops read.
    """
    return once(array.reshape(-1, *array.shape[2:]))


def tile(indices: Int[Array, "batch k"], experts: int, rows: int = ROWS, least: int = 0) -> Tiles:
    """Sorts the pairs by expert; those of one expert stay in the order of the tokens.

    Args:
        indices: the experts of each token.
        experts: how many there are.
        rows: pairs of a tile.
        least: tiles of an expert without a pair, 0 or 1.
    """
    flat, pairs = to_local_index(indices.reshape(-1).astype(jnp.int32), experts), indices.size
    numbers = jnp.arange(pairs, dtype=jnp.int32)
    order = _order(flat, experts + (shards() > 1))
    count = jnp.zeros(experts, jnp.int32).at[flat].add(1, mode="drop")
    tiles_of = jnp.maximum((count + rows - 1) // rows, least)
    first_pair, first_tile = jnp.cumsum(count) - count, jnp.cumsum(tiles_of) - tiles_of
    size = pairs // rows + experts
    by_expert = flat[order]
    row = first_tile[by_expert] * rows + numbers - first_pair[by_expert]
    row = row if shards() == 1 else jnp.where(by_expert < experts, row, AWAY + numbers)
    place = jnp.zeros(pairs, jnp.int32).at[order].set(row, unique_indices=True)
    pair = jnp.full(size * rows, -1, jnp.int32).at[row].set(order, unique_indices=True, mode="drop")
    pair = pair.reshape(size, rows)
    expert = jnp.repeat(jnp.arange(experts, dtype=jnp.int32), tiles_of, total_repeat_length=size)
    return Tiles(expert, jnp.maximum(pair, 0), pair >= 0, place.reshape(indices.shape), jnp.sum(tiles_of))


def _order(flat: Int[Array, "pairs"], experts: int) -> Int[Array, "pairs"]:
    """A stable argsort; where expert and pair fit into one integer, a plain sort of those is twice as fast."""
    pairs = flat.size
    if experts * pairs >= 1 << 31:
        return jnp.argsort(flat).astype(jnp.int32)
    return jnp.sort(flat * pairs + jnp.arange(pairs, dtype=jnp.int32)) % pairs


def rows_for(pairs: int, experts: int) -> int:
    """Pairs of a tile: at most three quarters of what an expert has on average, in powers of two.

    A tile reads its expert's matrices once, so that more pairs of a tile cost fewer bytes, and empty rows more. On a
    CPU always 16: sums over the rows of a tile are written out there.
    """
    rows = ROWS
    while not on_cpu() and rows < MOST_ROWS and 8 * rows * experts <= 3 * pairs:
        rows *= 2
    return rows


def group_tiles(indices: Int[Array, "batch k"], experts: int, width: int) -> Tiles:
    """The tiles for loops over rows of `width` numbers, in groups of ``Tiles.group(width)``."""
    tiles = tile(indices, experts, rows_for(indices.size // shards(), experts))
    return tiles.padded(tiles.group(width))


def add(out: Float[Array, "experts *rest"], some: Tiles, values: Float[Array, "tiles *rest"]) -> Array:
    """Adds one array per tile to its expert's."""
    return out.at[some.expert].add(values.astype(out.dtype), indices_are_sorted=True)


def store(out: Float[Array, "tiles *rest"], first: Int[Array, ""], values: Float[Array, "some *rest"]) -> Array:
    """Writes the numbers of a group whose first tile is `first`."""
    return jax.lax.dynamic_update_slice_in_dim(out, values.astype(out.dtype), first, 0)


def group_size(width: int, rows: int = ROWS) -> int:
    """How many tiles a loop takes at once, for rows of `width` float32 numbers."""
    budget = CPU_BYTES if on_cpu() else ACCELERATOR_BYTES
    return max(1, budget // (4 * rows * width))


def over_tiles(tiles: Tiles, group: int, body: Callable[[Any, Tiles, Int[Array, ""]], Any], init: Any) -> Any:
    """``carry = body(carry, some tiles, number of the first of them)`` over the groups of `group` tiles in use.

    The number of tiles must be a multiple of `group`, or less: see `Tiles.padded`.
    """
    group = min(group, tiles.expert.shape[0])

    def step(i: Int[Array, ""], carry: Any) -> Any:
        expert, pair, live = (jax.lax.dynamic_slice_in_dim(a, i * group, group) for a in tiles[:3])
        return body(carry, Tiles(expert, pair, live, tiles.place, tiles.used), i * group)

    return jax.lax.fori_loop(0, (tiles.used + group - 1) // group, step, init)


# Products inside a tile: one small matrix per expert, thousands of them. On a CPU these sums are written out term by
# term where a matrix is thin: XLA then makes one vectorised loop of them, which is faster than its batched products
# (experiments/bench/tile_products.py).


def over_rows(a: Float[Array, "tiles rows p"], b: Float[Array, "tiles rows q"]) -> Float[Array, "tiles p q"]:
    """``sum_t a[n, t, p] b[n, t, q]``."""
    rows = a.shape[1]
    if not on_cpu() or min(a.shape[2], b.shape[2]) > THIN or rows > TERMS:
        return dot("ntp,ntq->npq", a, b)
    a, b = rounded(a), rounded(b)
    return reduce(jnp.add, (a[:, t, :, None] * b[:, t, None, :] for t in range(rows)))


def over_sub(a: Float[Array, "tiles rows sub"], b: Float[Array, "tiles sub q"]) -> Float[Array, "tiles rows q"]:
    """``sum_s a[n, t, s] b[n, s, q]``."""
    sub = a.shape[2]
    if not on_cpu() or sub > THIN:
        return dot("nts,nsq->ntq", a, b)
    a, b = rounded(a), rounded(b)
    return reduce(jnp.add, (a[:, :, s, None] * b[:, None, s] for s in range(sub)))
