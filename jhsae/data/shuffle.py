"""A bounded shuffle of rows: a random row of the pool makes room for each row that comes in.

A row leaves the pool after a geometrically distributed delay with mean `capacity` rows, so neighbours part
by about that much; `drain` empties the pool in random order. Deterministic in the seed and in the sizes of
the blocks.
"""

import numpy as np
from jaxtyping import Int32, Shaped


class ShufflePool:
    """Holds at most `capacity` rows and what belongs to each (`index`)."""

    def __init__(self, capacity: int, embed: int, dtype: np.dtype, seed: int):
        self._x = np.empty((capacity, embed), dtype)
        self._index = np.empty((capacity, 3), np.int32)
        self._held = 0
        self._rng = np.random.default_rng(seed)

    def exchange(
        self, x: Shaped[np.ndarray, "rows embed"], index: Int32[np.ndarray, "rows 3"]
    ) -> tuple[Shaped[np.ndarray, "out embed"], Int32[np.ndarray, "out 3"]]:
        """Takes rows in and gives back those that they displace (none while the pool fills up)."""
        capacity = len(self._x)
        free = min(len(x), capacity - self._held)
        new = slice(self._held, self._held + free)
        self._x[new], self._index[new] = x[:free], index[:free]
        self._held += free
        displaced = [(self._x[:0], self._index[:0])]
        for start in range(free, len(x), capacity):
            block = slice(start, min(start + capacity, len(x)))
            at = self._rng.choice(capacity, block.stop - block.start, replace=False)
            displaced.append((self._x[at], self._index[at]))
            self._x[at], self._index[at] = x[block], index[block]
        xs, indices = zip(*displaced, strict=True)
        return np.concatenate(xs), np.concatenate(indices)

    def drain(self) -> tuple[Shaped[np.ndarray, "out embed"], Int32[np.ndarray, "out 3"]]:
        """What is left, in random order; the pool is empty afterwards."""
        order = self._rng.permutation(self._held)
        self._held = 0
        return self._x[order], self._index[order]
