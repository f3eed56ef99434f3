"""Batches of a store, shuffled, forever: a pure function of (seed, host, step), served by grain.

Every epoch draws one permutation of the store's chunks; host h of H takes every H-th of them; `window`
chunks at a time are read together and their rows permuted; batches are cut from that stream, and what does
not fill a batch at the end of an epoch is dropped. No state but the step: ``get_state()`` is
``{"next_index": step}``, exact to resume from, small enough for JSON, and understood by orbax
(``grain.checkpoint.CheckpointSave(iterator)``).
"""

import sys
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Float32, Int64

from jhsae.data.arrays import Pending
from jhsae.data.store import Store
from jhsae.errors import UserError

BLOCKS_PER_HOST = 16  # a small store is cut finer than its chunks, so that there is something to shuffle


def make_loader(
    store: Store, batch: int, seed: int, host: int = 0, hosts: int = 1, window: int = 16
) -> grain.DatasetIterator:
    """An endless iterator of float32 numpy arrays [batch, embed]; ``get_state`` and ``set_state`` are exact.

    `batch` is this host's share. `window` blocks of 1024 rows are held in memory twice. A background thread
    keeps two batches ready.

    Raises:
        UserError: fewer rows for a host than one batch, or a host outside 0 to ``hosts - 1``.
    """
    batches = Batches(store, batch, seed, host, hosts, window)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


@dataclass(frozen=True)
class _Epoch:
    """What one host reads in one epoch: its blocks in order, and where in its stream each window starts."""

    number: int
    blocks: Int64[np.ndarray, "blocks"]
    window_starts: Int64[np.ndarray, "windows"]


def batches_per_epoch(store: Store, batch: int, hosts: int = 1) -> int:
    """How many batches every host takes before an epoch ends and the order changes."""
    block = _block_rows(store, hosts)
    blocks = -(-store.rows // block)
    missing = blocks * block - store.rows  # the last block may be short, and any host may get it
    least = max(0, blocks // hosts * block - missing)
    if not 1 <= batch <= least:
        raise UserError(
            f"a batch of {batch} was asked for, but {store.path} gives each of {hosts} hosts {least} "
            "rows; write a batch of 1 up to that, or harvest more rows"
        )
    return least // batch


class Batches:
    """Step -> batch; a grain source. Fast in order: the window in use is kept, the next one requested."""

    def __init__(self, store: Store, batch: int, seed: int, host: int, hosts: int, window: int):
        if not 0 <= host < hosts:
            raise UserError(f"host {host} of {hosts} hosts, expected 0 to {hosts - 1}")
        if seed < 0:
            raise UserError(f"the seed of the loader is {seed}, expected 0 or more")
        self._store, self._batch, self._seed, self._host, self._hosts = store, batch, seed, host, hosts
        self._window = window
        self._per_epoch = batches_per_epoch(store, batch, hosts)
        self._block = _block_rows(store, hosts)
        self._epoch = self._plan(0)
        self._held: tuple[tuple[int, int], np.ndarray] | None = None
        self._ahead: tuple[tuple[int, int], list[Pending]] | None = None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Float32[np.ndarray, "batch embed"]:
        epoch, number = divmod(int(step), self._per_epoch)
        if epoch != self._epoch.number:
            self._epoch = self._plan(epoch)
        starts = self._epoch.window_starts
        start, stop = number * self._batch, (number + 1) * self._batch
        out = np.empty((self._batch, self._store.embed), np.float32)
        for window in range(np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts, stop, "left")):
            rows = self._rows_of(window)
            first = max(start, starts[window])
            part = rows[first - starts[window] : stop - starts[window]]
            out[first - start : first - start + len(part)] = part
        return out

    def _plan(self, epoch: int) -> _Epoch:
        blocks = -(-self._store.rows // self._block)
        order = np.random.default_rng([self._seed, epoch]).permutation(blocks)[self._host :: self._hosts]
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
            rng = np.random.default_rng([self._seed, *key, self._host])
            self._held = (key, rows[rng.permutation(len(rows))])
        return self._held[1]

    def _request(self, window: int) -> list[Pending]:
        blocks = self._epoch.blocks[window * self._window : (window + 1) * self._window]
        return [
            self._store.request(b * self._block, min((b + 1) * self._block, self._store.rows)) for b in blocks.tolist()
        ]


def _block_rows(store: Store, hosts: int) -> int:
    return max(1, min(store.manifest.chunk_rows, store.rows // (BLOCKS_PER_HOST * hosts)))
