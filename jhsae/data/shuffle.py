"""The order of the rows in a store: shuffled within groups of whole shards.

Sequences are harvested in random order; their rows, one after the other, are the stream. The stream is cut into groups
of at least `shuffle_rows` rows, and row k of group g is row ``permutation(seed, g)[k]`` of that part of the stream.
So a shard is a pure function of the seed and of its group's rows: any process can recompute it alone.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class Group:
    """Rows `start` to `stop` of the stream, which are rows `start` to `stop` of the store in another order."""

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def order(self, seed: int) -> Int64[np.ndarray, "rows"]:
        """For each row of the store in this group, its index within the group's part of the stream."""
        return np.random.default_rng([seed, self.number]).permutation(self.rows)


def groups(rows: int, shuffle_rows: int, shard_rows: int) -> list[Group]:
    """The groups of a store of `rows` rows: whole shards, nearly equal, none smaller than `shuffle_rows`.

    A store of less than twice that is one group; every group is smaller than twice `shuffle_rows` plus a shard.
    """
    shards = -(-rows // shard_rows)
    least = -(-shuffle_rows // shard_rows)
    count = max(1, rows // (least * shard_rows))
    ends = [shards * (number + 1) // count * shard_rows for number in range(count)]
    starts = [0, *ends[:-1]]
    return [Group(number, start, min(end, rows)) for number, (start, end) in enumerate(zip(starts, ends, strict=True))]
