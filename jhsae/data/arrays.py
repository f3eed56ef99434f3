"""The arrays of a store: sharded zarr v3 through tensorstore.

A file (shard) holds `shard_rows` rows, each of its chunks `chunk_rows` rows and a crc32c, so that one chunk
can be read and checked alone: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from typing import Any

import numpy as np
import tensorstore as ts

from jhsae.errors import UserError

BYTES: list[dict[str, Any]] = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "crc32c"},
]


def create(
    root: ts.KvStore, name: str, shape: tuple[int, int], dtype: str, shard_rows: int, chunk_rows: int
) -> ts.TensorStore:
    """A new array `name` below `root`, in place of one that a cut-off write left there."""
    sharding = {"chunk_shape": [chunk_rows, shape[1]], "codecs": BYTES, "index_codecs": BYTES}
    metadata = {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, shape[1]]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = {"driver": "zarr3", "kvstore": _below(root, name), "metadata": metadata}
    return ts.open(spec, create=True, delete_existing=True).result()


def existing(root: ts.KvStore, name: str) -> ts.TensorStore:
    """The array `name` below `root`, for reading."""
    return ts.open({"driver": "zarr3", "kvstore": _below(root, name)}, open=True, read=True).result()


class Pending:
    """A read under way."""

    def __init__(self, array: ts.TensorStore, start: int, stop: int, what: str):
        self._future = array[start:stop].read()
        self._what = f"rows {start} to {stop} of {what}"

    def result(self) -> np.ndarray:
        """The rows in the dtype they are stored in; UserError when a checksum does not match."""
        try:
            return self._future.result()
        except ValueError as error:
            raise UserError(f"{self._what} cannot be read: {error}; the store is damaged, harvest it again") from error


def _below(root: ts.KvStore, name: str) -> dict[str, Any]:
    return (root / f"{name}/").spec().to_json()
