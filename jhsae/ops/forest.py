"""A forest of rows of a fixed shape: a number of roots, and as many slots below every row of a level.

Rows are numbered level by level: the roots, then the children of root 0, of root 1, ... So the parent and the children
of a row are arithmetic, and no array states the structure. A slot that is not used holds a row of zeros.
"""

from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped


class Block(NamedTuple):
    """The rows of one level, ``start`` to before ``end``: `each` of them below every row of the level above."""

    start: int
    end: int
    each: int


class Forest:
    """The shape of a forest.

    Args:
        levels: the number of roots, then the number of slots below each row of a level: (64, 8, 3) has 64 + 512 + 1536
            rows; (1024,) is flat.
    """

    def __init__(self, levels: tuple[int, ...]):
        self.levels = levels

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The rows of each level."""
        sizes = list(accumulate(self.levels, lambda above, each: above * each))
        ends = [0, *accumulate(sizes)]
        return tuple(Block(start, end, each) for (start, end), each in zip(pairwise(ends), self.levels, strict=True))

    @property
    def size(self) -> int:
        """The number of rows."""
        return self.blocks[-1].end

    @property
    def roots(self) -> int:
        """The number of rows without a parent."""
        return self.levels[0]

    @property
    def widest(self) -> int:
        """The largest number of slots below a row; 0 for a flat forest."""
        return max(self.levels[1:], default=0)

    @cached_property
    def parents(self) -> Int[np.ndarray, "rows"]:
        """The parent of each row, -1 for a root."""
        below = [np.repeat(np.arange(above.start, above.end), block.each) for above, block in pairwise(self.blocks)]
        return np.concatenate([np.full(self.roots, -1), *below]).astype(np.int32)

    @cached_property
    def tops(self) -> Int[np.ndarray, "rows"]:
        """The root above each row, itself for a root."""
        tops = [np.repeat(np.arange(self.roots), (b.end - b.start) // self.roots) for b in self.blocks]
        return np.concatenate(tops).astype(np.int32)

    @cached_property
    def level_of(self) -> Int[np.ndarray, "rows"]:
        """The level of each row, 0 for a root."""
        return np.repeat(np.arange(len(self.blocks)), [b.end - b.start for b in self.blocks]).astype(np.int32)

    def children(self, rows: Int[Array, "*some"]) -> Int[Array, "*some widest"]:
        """The slots below rows, as many for each; `size` in place of those that a row does not have.

        Args:
            rows: numbers of rows.
        """
        starts = np.array([b.start for b in self.blocks], np.int32)
        first = np.array([*(b.start for b in self.blocks[1:]), self.size], np.int32)  # of the level below
        each = np.array([*(b.each for b in self.blocks[1:]), 0], np.int32)
        level = jnp.sum(rows[..., None] >= starts[1:], axis=-1)
        own = jnp.asarray(each)[level]
        child = jnp.asarray(first)[level] + (rows - jnp.asarray(starts)[level]) * own
        place = jnp.arange(self.widest, dtype=jnp.int32)
        return jnp.where(place < own[..., None], child[..., None] + place, self.size).astype(jnp.int32)

    def below(self, rows: Int[Array, "some tokens"], there: Bool[Array, "some tokens"]) -> Int[Array, "slots tokens"]:
        """The slots below the rows of tokens, those of one row side by side; `size` where there is none.

        Args:
            rows: numbers of rows.
            there: whether each is one.
        """
        children = jnp.where(there[..., None], self.children(rows), self.size)
        return jnp.swapaxes(children, 1, 2).reshape(len(rows) * self.widest, rows.shape[1])

    def split(self, a: Shaped[Array, "rows *rest"]) -> list[Shaped[Array, "above each *rest"]]:
        """An array over all rows as one per level, [rows above, slots below each, ...]; the roots as [1, roots, ...].

        Args:
            a: an array whose first axis counts the rows.
        """
        return [a[b.start : b.end].reshape(-1, b.each, *a.shape[1:]) for b in self.blocks]
