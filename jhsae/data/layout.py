"""Arrays of a store: their files (shards) and the size of each.

A file (shard) holds `shard_rows` rows in chunks of `chunk_rows` rows, nothing compressed; then the index of the chunks.
Chunks and index carry a crc32c: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jhsae.data.storage import columns

METADATA = "zarr.json"
BYTES: list[dict[str, Any]] = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "crc32c"},
]
CRC, INDEX_ENTRY = 4, 16  # bytes


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a store."""

    name: str
    shape: tuple[int, int]
    dtype: str
    shard_rows: int
    chunk_rows: int

    @property
    def shards(self) -> int:
        """Number of files with rows."""
        return -(-self.shape[0] // self.shard_rows)

    def file(self, shard: int) -> str:
        """The name of a shard, relative to the store."""
        return f"{self.name}/c/{shard}/0"

    def files(self) -> list[str]:
        """The names of all its files."""
        return [f"{self.name}/{METADATA}", *(self.file(shard) for shard in range(self.shards))]

    def bytes_of(self, shard: int) -> int:
        """The size of a shard with all its chunks; the chunk at the end is whole."""
        rows = min(self.shard_rows, self.shape[0] - shard * self.shard_rows)
        item = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize
        chunk = self.chunk_rows * self.shape[1] * item + CRC
        return -(-rows // self.chunk_rows) * chunk + self.shard_rows // self.chunk_rows * INDEX_ENTRY + CRC

    def metadata(self) -> dict[str, Any]:
        """The content of ``zarr.json``."""
        sharding = {"chunk_shape": [self.chunk_rows, self.shape[1]], "codecs": BYTES, "index_codecs": BYTES}
        return {
            "shape": self.shape,
            "data_type": self.dtype,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, self.shape[1]]}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }


def arrays_of(
    dtype: str, rows: int, embed: int, tokens: tuple[int, int], shard_rows: int, chunk_rows: int
) -> dict[str, ArrayLayout]:
    """The arrays of a store, by name: those with a row for each activation, the tokens, of int8 also the channels."""
    wide = {name: (rows, width, kind) for name, (width, kind) in columns(dtype, embed).items()}
    wide |= {"index": (rows, 3, "int32"), "tokens": (*tokens, "uint32")}
    found = {name: ArrayLayout(name, (n, w), kind, shard_rows, chunk_rows) for name, (n, w, kind) in wide.items()}
    return found | ({"channels": ArrayLayout("channels", (2, embed), "float32", 2, 2)} if dtype == "int8" else {})
