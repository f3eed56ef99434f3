"""Writes an activation store: rows pass a bounded shuffle into shards, then the manifest seals it.

Rows that come one after the other come from one text, so a reader that takes chunks in order would see
correlated batches. Here every incoming row replaces a random row of a pool, and the row that it replaces is
written. A local store is built as ``<out>.partial`` and renamed when complete; in a bucket the manifest,
written last, seals it.
"""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts
from jaxtyping import Int32, Shaped, UInt32

from jhsae.data import arrays
from jhsae.data.files import checksums, is_bucket, kvstore
from jhsae.data.manifest import FORMAT, NAME, Manifest, Origin, refuse_existing, versions
from jhsae.data.shuffle import ShufflePool
from jhsae.data.statistics import Running
from jhsae.data.store import Store
from jhsae.errors import UserError, nearest

SHARD_ROWS = 16384
CHUNK_ROWS = 1024
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class Writer:
    """Takes `rows` activations by `add` in any number of calls; `close` finishes the store and returns it."""

    def __init__(
        self,
        out: str | Path,
        origin: Origin,
        tokens: UInt32[np.ndarray, "sequences context"],
        rows: int,
        embed: int,
        dtype: str = "bfloat16",
        *,
        shuffle_rows: int = 2**18,
        shard_rows: int = SHARD_ROWS,
        chunk_rows: int = CHUNK_ROWS,
    ):
        """`rows` is exact. Memory: `shuffle_rows` and a few times `shard_rows` rows of `embed` values.

        Raises:
            UserError: `out` exists, or `dtype` is neither float32 nor bfloat16.
        """
        if dtype not in DTYPES:
            raise UserError(f"a store of dtype '{dtype}' was asked for" + nearest(dtype, DTYPES))
        refuse_existing(out, origin.config_hash)
        self._out, self._origin, self._dtype, self._tokens = str(out), origin, dtype, tokens
        self._rows, self._embed, self._shard_rows, self._chunk_rows = rows, embed, shard_rows, chunk_rows
        self._folder = self._out if is_bucket(out) else f"{self._out}.partial"
        if not is_bucket(out):
            shutil.rmtree(self._folder, ignore_errors=True)
            Path(self._folder).mkdir(parents=True)
        root = kvstore(self._folder)
        layout = (shard_rows, chunk_rows)
        self._activations = arrays.create(root, "activations", (rows, embed), dtype, *layout)
        self._index = arrays.create(root, "index", (rows, 3), "int32", *layout)
        token_array = arrays.create(root, "tokens", tokens.shape, "uint32", *layout)
        self._writes: list[Any] = [token_array.write(tokens)]
        self._pool = ShufflePool(max(1, min(shuffle_rows, rows)), embed, DTYPES[dtype], origin.seed)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._written = 0
        self._statistics = Running.empty(embed)

    def add(self, x: Shaped[np.ndarray, "n embed"], index: Int32[np.ndarray, "n 3"]) -> None:
        """More rows, each with its (sequence, position, token id). UserError when one is not finite."""
        x = x.astype(DTYPES[self._dtype], copy=False)
        for start in range(0, len(x), CHUNK_ROWS):
            block = Running.of(x[start : start + CHUNK_ROWS])
            if not np.isfinite(block.sum_squared_norm):
                bad = index[start + np.argmin(np.isfinite(x[start:].astype(np.float32)).all(axis=1))]
                raise UserError(
                    f"the activation at sequence {bad[0]}, position {bad[1]} is not finite, none is stored; "
                    "write lm.dtype=float32"
                )
            self._statistics = self._statistics.merge(block)
        self._emit(*self._pool.exchange(x, index))

    def close(self) -> Store:
        """Writes what is left, then the manifest; from here on the store exists."""
        self._emit(*self._pool.drain())
        self._flush(everything=True)
        if self._written != self._rows:
            raise ValueError(f"{self._written} rows were added to a store of {self._rows}")
        for write in self._writes:
            write.result()
        root = kvstore(self._folder)
        root.write(NAME, self._manifest(root).to_json().encode()).result()
        if not is_bucket(self._out):
            os.rename(self._folder, self._out)
        return Store.open(self._out)

    def _emit(self, x: np.ndarray, index: np.ndarray) -> None:
        self._waiting.append((x, index))
        self._flush(everything=False)

    def _flush(self, everything: bool) -> None:
        """Writes the complete shards that are waiting, and the incomplete one too when that is everything."""
        held = sum(len(x) for x, _ in self._waiting)
        if held < self._shard_rows and not everything:
            return
        x, index = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        stop = held if everything else held // self._shard_rows * self._shard_rows
        for start in range(0, stop, self._shard_rows):
            shard = slice(start, min(start + self._shard_rows, stop))
            rows = slice(self._written, self._written + shard.stop - shard.start)
            for array, values in ((self._activations, x), (self._index, index)):
                self._writes.append(array[rows].write(values[shard]))
            self._written = rows.stop
        self._waiting = [(x[stop:], index[stop:])]
        while len(self._writes) > 8:
            self._writes.pop(0).result()

    def _manifest(self, root: ts.KvStore) -> Manifest:
        return Manifest(
            format=FORMAT,
            **asdict(self._origin),
            dtype=self._dtype,
            rows=self._rows,
            sequences=self._tokens.shape[0],
            context=self._tokens.shape[1],
            shard_rows=self._shard_rows,
            chunk_rows=self._chunk_rows,
            **asdict(self._statistics.summary()),
            versions=versions(),
            files=checksums(root),
        )
