"""Writes an activation store: the rows of a group are shuffled and written shard by shard.

Consecutive rows come from one text, so a reader of chunks in order would see correlated batches; hence the shuffle (see
`shuffle`). While one group is written the next may be computed; a group is recorded as complete after its last byte.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Shaped, UInt32

from jhsae.data.files import writing_store
from jhsae.data.manifest import Origin, refuse_existing
from jhsae.data.partial import Partial, StorePlan, create_or_resume, discard
from jhsae.data.shuffle import Group
from jhsae.data.statistics import Running
from jhsae.data.storage import DTYPES, Channels
from jhsae.data.store import Store
from jhsae.errors import UserError, nearest

SHARD_ROWS = 16384
CHUNK_ROWS = 1024


class Writer:
    """Writes a store: `put` takes the rows of missing groups, `add` all rows in order, `close` returns the store.

    Several processes write one store together: number 0 makes its `Writer` first, the others after it; each puts some
    of the groups and calls `flush`, and when all have, number 0 calls `close`.

    Two groups of rows are in memory, each of `shuffle_rows` to twice that.

    Args:
        out: Folder of the store, local or in a bucket.
        origin: Provenance, for the manifest.
        tokens: The packed sequences, [sequences, context].
        rows: Exact number of activations.
        embed: Width of an activation.
        dtype: float32, bfloat16 or int8.
        channels: Channel statistics of an int8 store; a resumed one keeps those of its start.
        shuffle_rows: Rows that are shuffled together.
        shard_rows: Rows of a file.
        chunk_rows: Rows of a chunk.
        number: Index of this process.
        writers: Number of processes.
        resume: Continue an interrupted write of the same plan; otherwise it is removed.

    Raises:
        UserError: `out` exists, `dtype` is unknown or is int8 without `channels`, or the interrupted write has another
            plan.
    """

    def __init__(
        self,
        out: str | Path,
        origin: Origin,
        tokens: UInt32[np.ndarray, "sequences context"],
        rows: int,
        embed: int,
        dtype: str = "bfloat16",
        *,
        channels: Channels | None = None,
        shuffle_rows: int = 2**18,
        shard_rows: int = SHARD_ROWS,
        chunk_rows: int = CHUNK_ROWS,
        number: int = 0,
        writers: int = 1,
        resume: bool = False,
    ):
        if dtype not in DTYPES:
            raise UserError(f"a store of dtype '{dtype}' was asked for" + nearest(dtype, DTYPES))
        refuse_existing(out, origin.config_hash)
        self._plan = StorePlan(origin, tokens, rows, embed, dtype, shuffle_rows, shard_rows, chunk_rows)
        self._out, self._writers = str(out), writers
        if number == 0:
            create_or_resume(self._out, self._plan, channels, resume)
        self._partial = Partial(self._out, self._plan)
        self.rows = rows
        self.missing = self._partial.missing()
        self._pending: tuple[Group, Running, list[Any]] | None = None
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._added, self._next = 0, 0

    def put(self, group: Group, x: Shaped[np.ndarray, "rows embed"], index: Int32[np.ndarray, "rows 3"]) -> None:
        """Writes all rows of one group.

        Args:
            group: One of `missing`.
            x: Its rows in the order of the stream, [rows, embed].
            index: (sequence, position, token id) of each row.

        Raises:
            UserError: A row is not finite.
        """
        if len(x) != group.rows:
            raise ValueError(f"group {group.number} has {group.rows} rows, got {len(x)}")
        self.flush()
        statistics = self._statistics(x, index)
        order = group.order(self._plan.origin.seed)
        futures: list[Any] = []
        for first in range(0, group.rows, self._plan.shard_rows):
            chosen = order[first : first + self._plan.shard_rows]
            values = self._partial.storage.encode(x[chosen])
            futures += self._partial.start(group.start + first, values, index[chosen])
        self._pending = group, statistics, futures

    def add(self, x: Shaped[np.ndarray, "n embed"], index: Int32[np.ndarray, "n 3"]) -> None:
        """Writes the next rows of the stream, for a single writer of a new store.

        Args:
            x: Rows in the order of the stream, [n, embed].
            index: (sequence, position, token id) of each row.
        """
        self._added += len(x)
        self._waiting.append((x, index))
        while self._next < len(self.missing) and sum(len(x) for x, _ in self._waiting) >= self._next_group.rows:
            group = self._next_group
            x, index = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
            self._waiting = [(x[group.rows :], index[group.rows :])]
            self._next += 1
            self.put(group, x[: group.rows], index[: group.rows])

    def flush(self) -> None:
        """Blocks until all rows passed to `put` are on disk, and records their group as complete."""
        if self._pending is not None:
            group, statistics, futures = self._pending
            with writing_store(self._out):
                for future in futures:
                    future.result()
            self._pending = None
            self._partial.record(group, statistics, self._writers)

    def close(self) -> Store:
        """Writes the manifest, which completes the store."""
        self.flush()
        if sum(len(x) for x, _ in self._waiting) or self._added not in (0, self._plan.rows):
            raise ValueError(f"{self._added} rows were added to a store of {self._plan.rows}")
        self._partial.seal()
        return Store.open(self._out)

    def discard(self) -> None:
        """Removes the unfinished store."""
        self.flush()  # what is still being written
        discard(self._out)

    @property
    def _next_group(self) -> Group:
        return self.missing[self._next]

    def _statistics(self, x: np.ndarray, index: np.ndarray) -> Running:
        """Statistics of the rows as decoded from storage."""
        running, storage = Running.empty(self._plan.embed), self._partial.storage
        for start in range(0, len(x), CHUNK_ROWS):
            part = x[start : start + CHUNK_ROWS]
            if not (finite := np.isfinite(part.astype(np.float32)).all(axis=1)).all():
                bad = index[start + np.argmin(finite)]
                raise UserError(
                    f"the activation at sequence {bad[0]}, position {bad[1]} is not finite, none of its group is "
                    "stored; write lm.dtype=float32"
                )
            running = running.merge(Running.of(storage.decode(*storage.encode(part))))
        return running
