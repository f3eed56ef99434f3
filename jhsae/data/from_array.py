"""Writes rows that are at hand as a store: an array, in memory or mapped from a file, or blocks that are read in turn.

Rows of a small array are shuffled as one group. Of a larger one the blocks are put into random order, and the rows of
as many blocks as fit into `GROUP_BYTES` are shuffled together, as a harvest does with its sequences.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from jhsae.data.manifest import Origin, refuse_existing
from jhsae.data.places import Places, places_of
from jhsae.data.shuffle import Group
from jhsae.data.storage import Channels
from jhsae.data.store import Store
from jhsae.data.writer import CHUNK_ROWS, SHARD_ROWS, Writer
from jhsae.errors import UserError
from jhsae.files.lock import owned
from jhsae.ops.inputs import host_rows
from jhsae.ranges import Count, Natural, Seed, Words, ranged

GROUP_BYTES = 2**30  # of the rows that are shuffled together, in float32; two such groups are in memory
BLOCK_ROWS = 1024
CHANNEL_ROWS = 2**14  # rows that the channels of a large int8 store are standardised by


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` of the whole, which `read` yields in order, in pieces [rows, embed].

    `name` is what messages call them, and `first` the number of the first of them there.
    """

    start: int
    stop: int
    read: Callable[[], Iterable[Any]]
    name: str
    first: int

    def pieces(self, embed: int) -> Iterator[tuple[int, Shaped[np.ndarray, "n embed"]]]:
        """The pieces with the number of the first row of each, checked: floats of this width.

        Raises:
            UserError: Other rows than were announced.
        """
        at = self.start
        for piece in self.read():
            rows = host_rows(piece, embed, self.name, finite=False)
            yield at, rows
            at += len(rows)
        if at != self.stop:
            expected = self.stop - self.start
            raise BadRowsError(
                f"{self.name} holds {at - self.start:,} rows from row {self.first:,} on, expected {expected:,}; make "
                "it again"
            )


def blocks_of(array: Any, name: str = "x", start: int = 0) -> tuple[tuple[int, ...], int, list[Block]]:
    """An array as blocks of rows.

    Args:
        array: [rows, embed] or [docs, positions, embed]: anything with a shape whose slices are arrays.
        name: What messages call it.
        start: Number of its first row in the whole.

    Returns:
        Its axes before the last, its width, and the blocks.

    Raises:
        UserError: Another number of axes, or an empty one.
    """
    shape = tuple(int(n) for n in array.shape)
    if len(shape) not in (2, 3):
        raise UserError(f"{name} has shape {list(shape)}, expected [rows, embed] or [docs, positions, embed]")
    if 0 in shape:
        raise UserError(f"{name} has shape {list(shape)}, expected at least one row of at least one number")
    each, embed = (shape[1] if len(shape) == 3 else 1), shape[-1]
    host_rows(array[:1].reshape((-1, embed)), None, name, finite=False)  # for its type
    step = -(-BLOCK_ROWS // each)  # documents of a block, which has as many rows or more

    def read(first: int, last: int) -> Iterator[Any]:
        yield array[first:last].reshape((-1, embed))

    blocks = []
    for first in range(0, shape[0], step):
        last = min(first + step, shape[0])
        rows = start + first * each, start + last * each
        blocks.append(Block(*rows, partial(read, first, last), name, first * each))
    return shape[:-1], embed, blocks


@ranged
def write_array(
    out: str | Path,
    x: Shaped[np.ndarray, "*rows embed"] | Any,
    *,
    tokens: Any = None,
    positions: Any = None,
    text: Any = None,
    model: Words | None = None,
    layer: Natural = 0,
    name: str = "array",
    dtype: str = "float32",
    seed: Seed = 0,
    shuffle_rows: Count | None = None,
    shard_rows: Count = SHARD_ROWS,
    chunk_rows: Count = CHUNK_ROWS,
) -> Store:
    """Writes the rows of an array (your own activations, synthetic data, unembedding rows) as a store, shuffled.

    The array may be larger than memory where it is mapped from a file (``np.load(path, mmap_mode="r")``): it is read
    block by block. From files: ``jhsae store``.

    Args:
        out: Folder of the store, which must not exist.
        x: Rows [rows, embed], or [docs, positions, embed]: a list, or a NumPy, JAX or torch array.
        tokens: Token id of each row, in the axes of `x` before the last, or flat.
        positions: Position of each row in its document; a negative one leaves the row out (padding). For [rows, embed]
            a new document begins where it does not rise; without it each row is a document.
        text: The text of each row's token, which pages then show.
        model: Name of the language model, for the manifest; by default `name`.
        layer: Number of its blocks that have run.
        name: Provenance, for the manifest.
        dtype: float32, bfloat16 or int8.
        seed: Determines the order of the rows.
        shuffle_rows: Rows that are shuffled together; by default all, of a large array as many as make 1 GiB.
        shard_rows: Rows of a file.
        chunk_rows: Rows of a chunk.

    Raises:
        UserError: The rows are not finite floats, there are other numbers of tokens, positions or texts than rows, or
            `out` exists.
    """
    x = _array(x)
    axes, embed, blocks = blocks_of(x)
    if 4 * math.prod(x.shape) <= GROUP_BYTES and positions is None:
        host_rows(x.reshape((-1, embed)))  # before anything is written; of a large one as it is read
    places = places_of(axes, tokens, positions, text)
    dataset = {"source": "array", "name": name, **places.dataset()}
    vocabulary = {} if places.vocabulary is None else {"vocabulary": places.vocabulary}
    origin = Origin(name if model is None else model, layer, vocabulary, dataset, 0, seed, {}, "")
    sizes: dict[str, Any] = {"shuffle_rows": shuffle_rows, "shard_rows": shard_rows, "chunk_rows": chunk_rows}
    return write_blocks(out, blocks, embed, places, origin, dtype=dtype, **sizes)


def write_blocks(
    out: str | Path,
    blocks: Sequence[Block],
    embed: int,
    places: Places,
    origin: Origin,
    *,
    dtype: str = "float32",
    shuffle_rows: int | None = None,
    shard_rows: int = SHARD_ROWS,
    chunk_rows: int = CHUNK_ROWS,
    resume: bool = False,
) -> Store:
    """Writes blocks of rows as a store.

    Args:
        out: Folder of the store, which must not exist.
        blocks: Of all rows, in order.
        embed: Width of a row.
        places: Of all rows.
        origin: Provenance; its seed determines the order.
        dtype: As in `write_array`; so are the sizes.
        shuffle_rows: Rows that are shuffled together.
        shard_rows: Rows of a file.
        chunk_rows: Rows of a chunk.
        resume: Continue an interrupted write of the same `origin.config_hash`; otherwise it is removed.

    Raises:
        UserError: As `write_array`.
    """
    total = len(places.kept)
    most = max(shard_rows, GROUP_BYTES // (4 * embed))
    shuffle_rows = (total if total <= most else most) if shuffle_rows is None else shuffle_rows
    stream = _Stream(blocks, embed, places, None if total <= shuffle_rows else origin.seed)
    with owned(out, "store"):
        refuse_existing(out, origin.config_hash)
        channels = Channels.of(stream.first(min(total, max(shuffle_rows, CHANNEL_ROWS)))) if dtype == "int8" else None
        sizes: dict[str, Any] = {"shuffle_rows": shuffle_rows, "shard_rows": shard_rows, "chunk_rows": chunk_rows}
        sizes |= {"channels": channels, "resume": resume}
        writer = Writer(out, origin, places.tokens, total, embed, dtype, **sizes)
        try:
            for group in writer.missing:
                writer.put(group, *stream.rows(group))
        except BadRowsError:
            writer.discard()  # of other rows it could not be resumed
            raise
        return writer.close()


class BadRowsError(UserError):
    """Rows that cannot be stored, whatever was stored before them."""


class _Stream:
    """The kept rows of blocks, in the order of the blocks, or with a seed in random order of them."""

    def __init__(self, blocks: Sequence[Block], embed: int, places: Places, seed: int | None):
        order = range(len(blocks)) if seed is None else np.random.default_rng(seed).permutation(len(blocks))
        self._blocks, self._embed, self._index = [blocks[i] for i in order], embed, places.index
        kept = np.concatenate([[0], np.cumsum(places.index[:, 1] >= 0)])
        self._ends = np.cumsum([kept[block.stop] - kept[block.start] for block in self._blocks])
        self._at, self._pieces, self._rest = 0, self._from(0), _nothing(embed)

    def rows(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a group and the index of each; `BadRowsError` where one is not finite.

        Groups in order are read from one pass over the blocks.
        """
        if group.start != self._at:
            self._pieces, self._rest = self._from(group.start), _nothing(self._embed)
        parts, missing = [], group.rows
        while missing:
            x, index = self._rest if len(self._rest[0]) else next(self._pieces)
            parts.append((x[:missing], index[:missing]))
            self._rest = x[missing:], index[missing:]
            missing -= len(parts[-1][0])
        self._at = group.stop
        x, index = (np.concatenate(part) for part in zip(*parts, strict=True))
        return x, index

    def first(self, rows: int) -> np.ndarray:
        """The first rows of the stream."""
        return self.rows(Group(0, 0, rows))[0]

    def _from(self, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows from number `start` of the stream on, in pieces."""
        first = int(np.searchsorted(self._ends, start, "right"))
        skip = start - (int(self._ends[first - 1]) if first else 0)
        for block in self._blocks[first:]:
            for at, piece in block.pieces(self._embed):
                index = self._index[at : at + len(piece)]
                chosen = np.flatnonzero(index[:, 1] >= 0)
                chosen, skip = chosen[skip:], max(0, skip - len(chosen))
                _check_finite(piece, chosen, block, at)
                yield piece[chosen], index[chosen]


def _nothing(embed: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((0, embed), np.float32), np.empty((0, 3), np.int32)


def _check_finite(piece: np.ndarray, chosen: np.ndarray, block: Block, start: int) -> None:
    finite = np.isfinite(piece[chosen]).all(axis=1)
    if not finite.all():
        bad = block.first + start - block.start + chosen[~finite]
        more = f" and {len(bad) - 1:,} more nearby" if len(bad) > 1 else ""
        raise BadRowsError(
            f"{block.name} is not finite in row {bad[0]:,}{more}, counted from 0; leave such rows out, or compute them "
            "again in float32"
        )


def _array(x: Any) -> Any:
    """`x` with a shape: a list as an array, whole numbers in it as floats; what is no array is refused."""
    if isinstance(x, jax.Array):
        return np.asarray(x)
    if hasattr(x, "detach"):
        return x.detach()
    if hasattr(x, "shape"):
        return x
    try:
        found = np.asarray(x)
    except ValueError:  # lists of different lengths
        return host_rows(x)
    return found.astype(np.float32) if found.dtype.kind in "iu" else found
