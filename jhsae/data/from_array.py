"""Writes an array in memory as a store, for synthetic data and for the rows of an unembedding matrix."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from jhsae.data.manifest import Origin
from jhsae.data.storage import Channels
from jhsae.data.store import Store
from jhsae.data.writer import CHUNK_ROWS, SHARD_ROWS, Writer
from jhsae.errors import UserError
from jhsae.ops.inputs import host_rows
from jhsae.ranges import Count, Seed, ranged


@ranged
def write_array(
    out: str | Path,
    x: Shaped[np.ndarray, "rows embed"] | Any,
    *,
    name: str = "array",
    dtype: str = "float32",
    seed: Seed = 0,
    shard_rows: Count = SHARD_ROWS,
    chunk_rows: Count = CHUNK_ROWS,
) -> Store:
    """Writes the rows of an array (synthetic data, unembedding rows) as a store, in shuffled order.

    Args:
        out: Folder of the store, which must not exist.
        x: Rows [rows, embed]; row i has index (i, 0, 0): sequence i, of one token.
        name: Provenance, for the manifest.
        dtype: float32, bfloat16 or int8.
        seed: Determines the order of the rows.
        shard_rows: Rows of a file.
        chunk_rows: Rows of a chunk.

    Raises:
        UserError: The rows are not finite floats, or `out` exists.
    """
    x = host_rows(x)
    rows, embed = x.shape
    if not rows or not embed:
        raise UserError(f"x has shape {list(x.shape)}, expected at least one row of at least one number")
    origin = Origin(name, 0, {}, {"source": "array", "name": name}, 0, seed, {}, "")
    tokens = np.zeros((rows, 1), np.uint32)
    layout = {"shuffle_rows": rows, "shard_rows": shard_rows, "chunk_rows": chunk_rows}
    channels = Channels.of(x) if dtype == "int8" else None
    writer = Writer(out, origin, tokens, rows, embed, dtype=dtype, channels=channels, **layout)
    index = np.zeros((rows, 3), np.int32)
    index[:, 0] = np.arange(rows)
    writer.add(x, index)
    return writer.close()
