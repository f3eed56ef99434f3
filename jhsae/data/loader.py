"""Infinite shuffled batches of a store, deterministic in (seed, step) for any number of readers; served by grain.

A batch consists of equal parts from `streams` streams; host h of H reads the h-th of H equal slices of it. So the rows
of a run do not depend on its number of hosts, and a host reads only the streams that overlap its slice. Each epoch
draws one permutation of the store's chunks; stream s of S takes every S-th of them; `window` chunks at a time are read
together, their rows are permuted, and parts are cut from the result. An incomplete batch at the end of an epoch is
dropped. The step is the only state: ``get_state()`` is ``{"next_index": step}``; resuming from it is exact on any
number of hosts, and orbax saves it (``grain.checkpoint.CheckpointSave(iterator)``).
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Float32, Int64

from jhsae.data.aligned import Stores
from jhsae.data.arrays import Pending
from jhsae.errors import UserError

BLOCKS_PER_STREAM = 16  # a small store is split into blocks smaller than its chunks, or nothing would be shuffled


def make_loader(
    store: Stores, batch: int, seed: int, host: int = 0, hosts: int = 1, streams: int = 1, window: int = 16
) -> grain.DatasetIterator:
    """Makes an infinite iterator of float32 numpy arrays [batch / hosts, embed].

    Args:
        store: The activations.
        batch: Rows per step, over all hosts.
        seed: Determines the order of the rows.
        window: Blocks of 1024 rows that are shuffled together; two windows are in memory for each stream that this
            host reads.
        host: Index of this host.
        hosts: Number of hosts.
        streams: Parts of a batch that are read independently.

    Returns:
        A grain iterator whose ``get_state`` and ``set_state`` are exact; a background thread prefetches two batches.

    Raises:
        UserError: A stream has fewer rows than its part of a batch, `host` is outside 0 to ``hosts - 1``, or the batch
            is not divisible by hosts or streams.
    """
    batches = Batches(store, batch, seed, host, hosts, streams, window)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def batches_per_epoch(store: Stores, batch: int, streams: int = 1) -> int:
    """Batches per epoch; the order of the rows changes with each epoch.

    Args:
        store: The activations.
        batch: Rows per step, over all hosts.
        streams: Parts of a batch that are read independently.
    """
    block = _block_rows(store, streams)
    blocks = -(-store.rows // block)
    missing = blocks * block - store.rows  # the last block may be short, and any stream may get it
    least = max(0, blocks // streams * block - missing)
    if not 1 <= batch <= least * streams:
        whom = "" if streams == 1 else f" in {streams} streams"
        raise UserError(
            f"a batch of {batch} was asked for, but {store.path} gives {least * streams} rows{whom}; write a batch of "
            "1 up to that, or harvest more rows"
        )
    return least * streams // batch


class Batches:
    """A grain data source: step -> this host's slice of the batch. Sequential access is fast, see `_Stream`.

    Its arguments are those of `make_loader`.
    """

    def __init__(
        self, store: Stores, batch: int, seed: int, host: int = 0, hosts: int = 1, streams: int = 1, window: int = 16
    ):
        if not 0 <= host < hosts:
            raise UserError(f"host {host} of {hosts} hosts, expected 0 to {hosts - 1}")
        if seed < 0:
            raise UserError(f"the seed of the loader is {seed}, expected 0 or more")
        for count, name in ((hosts, "hosts"), (streams, "streams")):
            if count < 1 or batch % count:
                raise UserError(f"a batch of {batch} cannot be shared by {count} {name}; write a multiple of {count}")
        per_epoch, part = batches_per_epoch(store, batch, streams), batch // streams
        first, last = host * batch // hosts, (host + 1) * batch // hosts
        self._parts = [
            (
                _Stream(store, part, seed, s, streams, window, per_epoch),
                max(0, first - s * part),
                min(part, last - s * part),
            )
            for s in range(streams)
            if s * part < last and first < (s + 1) * part
        ]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Float32[np.ndarray, "batch embed"]:
        return np.concatenate([stream.rows(int(step), start, stop) for stream, start, stop in self._parts])

    def places(self, step: int) -> Int64[np.ndarray, "batch"]:
        """Row indices in the store of the same slice."""
        return np.concatenate([stream.places(int(step), start, stop) for stream, start, stop in self._parts])


@dataclass(frozen=True)
class _Epoch:
    """The blocks that one stream reads in one epoch, in order, and the start of each window."""

    number: int
    blocks: Int64[np.ndarray, "blocks"]
    window_starts: Int64[np.ndarray, "windows"]


class _Stream:
    """One of the streams: its part of every batch. The current window is in memory, the next one is prefetched."""

    def __init__(self, store: Stores, part: int, seed: int, number: int, of: int, window: int, per_epoch: int):
        self._store, self._part, self._seed, self._number, self._of = store, part, seed, number, of
        self._window, self._per_epoch = window, per_epoch
        self._block = _block_rows(store, of)
        self._epoch = self._plan(0)
        self._held: tuple[tuple[int, int], np.ndarray] | None = None
        self._ahead: tuple[tuple[int, int], list[Pending]] | None = None

    def rows(self, step: int, start: int, stop: int) -> Float32[np.ndarray, "rows embed"]:
        """Rows `start` to `stop` of its part of batch `step`."""
        return self._cut(step, start, stop, self._rows_of).astype(np.float32)

    def places(self, step: int, start: int, stop: int) -> Int64[np.ndarray, "rows"]:
        """Indices of the same rows in the store."""
        return self._cut(step, start, stop, self._places_of)

    def _cut(self, step: int, start: int, stop: int, of: Callable[[int], np.ndarray]) -> np.ndarray:
        epoch, number = divmod(step, self._per_epoch)
        if epoch != self._epoch.number:
            self._epoch = self._plan(epoch)
        starts = self._epoch.window_starts
        start, stop = number * self._part + start, number * self._part + stop
        windows = range(np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts, stop, "left"))
        return np.concatenate([of(w)[max(start - starts[w], 0) : stop - starts[w]] for w in windows])

    def _plan(self, epoch: int) -> _Epoch:
        blocks = -(-self._store.rows // self._block)
        order = np.random.default_rng([self._seed, epoch]).permutation(blocks)[self._number :: self._of]
        sizes = np.minimum(self._block, self._store.rows - order * self._block)
        ends = np.cumsum(sizes)
        starts = np.concatenate([[0], ends[self._window - 1 : -1 : self._window]])
        return _Epoch(epoch, order, starts)

    def _rows_of(self, window: int) -> np.ndarray:
        """The rows of a window in their shuffled order, in the stored dtype."""
        key = (self._epoch.number, window)
        if self._held is None or self._held[0] != key:
            pending = self._ahead[1] if self._ahead and self._ahead[0] == key else self._request(window)
            self._ahead = ((key[0], window + 1), self._request(window + 1))
            rows = np.concatenate([p.result() for p in pending])
            self._held = (key, rows[self._order(window, len(rows))])
        return self._held[1]

    def _places_of(self, window: int) -> np.ndarray:
        places = np.concatenate([np.arange(*ends) for ends in self._ends(window)])
        return places[self._order(window, len(places))]

    def _order(self, window: int, rows: int) -> np.ndarray:
        return np.random.default_rng([self._seed, self._epoch.number, window, self._number]).permutation(rows)

    def _request(self, window: int) -> list[Pending]:
        return [self._store.request(*ends) for ends in self._ends(window)]

    def _ends(self, window: int) -> list[tuple[int, int]]:
        blocks = self._epoch.blocks[window * self._window : (window + 1) * self._window].tolist()
        return [(b * self._block, min((b + 1) * self._block, self._store.rows)) for b in blocks]


def _block_rows(store: Stores, streams: int) -> int:
    return max(1, min(store.manifest.chunk_rows, store.rows // (BLOCKS_PER_STREAM * streams)))
