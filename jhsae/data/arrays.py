"""The arrays of a store: sharded zarr v3 through tensorstore.

A file (shard) holds `shard_rows` rows, each of its chunks `chunk_rows` rows and a crc32c, so that one chunk
can be read and checked alone: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from jhsae.data.storage import Channels
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
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": _below(root, name), "metadata": metadata}
    spec["store_data_equal_to_fill_value"] = True  # so that what is not there is missing, and not zero
    return ts.open(spec, create=True, delete_existing=True).result()


def existing(root: ts.KvStore, name: str, write: bool = False, whole: bool = False) -> ts.TensorStore:
    """The array `name` below `root`, for reading, and for writing too if `write`.

    Of a `whole` one, reading a file that is missing is an error; otherwise it reads as zeros.
    """
    spec = {"driver": "zarr3", "kvstore": _below(root, name), "fill_missing_data_reads": not whole}
    return ts.open(spec, open=True, read=True, write=write).result()


def channels(root: ts.KvStore) -> Channels:
    """The mean and the standard deviation of every channel of an int8 store."""
    return Channels(*existing(root, "channels").read().result())


class Pending:
    """A read under way: the same rows of one or more arrays, which `decode` makes into one."""

    def __init__(
        self,
        arrays: Sequence[ts.TensorStore],
        start: int,
        stop: int,
        what: str,
        decode: Callable[..., np.ndarray] = lambda rows: rows,
    ):
        self._futures = [array[start:stop].read() for array in arrays]
        self._what = f"rows {start} to {stop} of {what}"
        self._decode = decode

    def result(self) -> np.ndarray:
        """The rows; UserError when a checksum does not match."""
        try:
            return self._decode(*(future.result() for future in self._futures))
        except ValueError as error:
            raise UserError(f"{self._what} cannot be read: {error}; the store is damaged, harvest it again") from error


def _below(root: ts.KvStore, name: str) -> dict[str, Any]:
    return (root / f"{name}/").spec().to_json()
