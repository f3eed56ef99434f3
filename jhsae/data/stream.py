"""The stream of rows of a harvest: sequences in random order, and the stored positions of each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt32

from jhsae.data.framing import ordinary


@dataclass(frozen=True, eq=False)
class Stream:
    """`order` is that of the sequences; `ends` counts the rows up to the end of each of them, in that order."""

    tokens: UInt32[np.ndarray, "sequences context"]
    keep: Bool[np.ndarray, "sequences context"]
    order: Int64[np.ndarray, "sequences"]
    ends: Int64[np.ndarray, "sequences"]

    @classmethod
    def of(cls, tokens: UInt32[np.ndarray, "sequences context"], tokenizer: Any, seed: int) -> "Stream":
        """The stream of packed sequences; the rows of special tokens are left out."""
        keep = ordinary(tokens, tokenizer)
        order = np.random.default_rng(seed).permutation(len(tokens))
        return cls(tokens, keep, order, np.cumsum(keep.sum(axis=1)[order]))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.ends[-1])

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The places ``first`` to ``last`` in `order` whose sequences hold the rows `start` to `stop`."""
        return int(np.searchsorted(self.ends, start, "right")), int(np.searchsorted(self.ends, stop, "left")) + 1

    def rows_at(
        self, first: int, last: int, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, "rows"], Int64[np.ndarray, "rows"], Int32[np.ndarray, "rows 3"]]:
        """The rows between `start` and `stop` of the sequences at places `first` to `last`.

        For each row: which of these sequences it is in, its position, and its (sequence, position, token id).
        """
        chosen = self.order[first:last]
        sequence, position = np.nonzero(self.keep[chosen])
        before = int(self.ends[first - 1]) if first else 0
        inside = slice(max(0, start - before), max(0, stop - before))
        sequence, position = sequence[inside], position[inside]
        sequences = chosen[sequence]
        index = np.stack([sequences, position, self.tokens[sequences, position]], axis=1)
        return sequence, position, index.astype(np.int32)
