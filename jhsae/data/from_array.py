"""A store made from an array in memory, for synthetic data and for the rows of an unembedding matrix."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from jhsae.data.manifest import Origin
from jhsae.data.storage import Channels
from jhsae.data.store import Store
from jhsae.data.writer import CHUNK_ROWS, SHARD_ROWS, Writer


def write_array(
    out: str | Path,
    x: Shaped[np.ndarray, "rows embed"],
    *,
    name: str = "array",
    dtype: str = "float32",
    seed: int = 0,
    shard_rows: int = SHARD_ROWS,
    chunk_rows: int = CHUNK_ROWS,
) -> Store:
    """A store of the rows of an array (synthetic data, unembedding rows) in shuffled order.

    Row i of `x` has index (i, 0, 0): sequence i, of one token.
    """
    rows, embed = x.shape
    origin = Origin(name, 0, {}, {"source": "array", "name": name}, 0, seed, {}, "")
    tokens = np.zeros((rows, 1), np.uint32)
    layout = {"shuffle_rows": rows, "shard_rows": shard_rows, "chunk_rows": chunk_rows}
    channels = Channels.of(x) if dtype == "int8" else None
    writer = Writer(out, origin, tokens, rows, embed, dtype=dtype, channels=channels, **layout)
    index = np.zeros((rows, 3), np.int32)
    index[:, 0] = np.arange(rows)
    writer.add(x, index)
    return writer.close()
