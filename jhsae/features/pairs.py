"""The sparse codes of a store's sequences, sorted by feature: what the writers of other tools' formats read.

A store's rows are shuffled; other tools want the tokens of a sequence together, and one feature at a time. One pass
encodes the rows; every code that is not 0 becomes a record (feature, sequence, position, value, parent), which is
spilled to a file of its range of features. The ranges come back one by one, sorted by feature, then sequence, then
position. Memory: one batch of codes, `BUFFER` records and one range; dense codes are never kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32
from tqdm import tqdm

from jhsae.codes import Codes, TreeCodes
from jhsae.data import AbstractNormalizer, Store
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE

# feature: of sae.dictionary(); value: its code; parent: the code of an atom's expert at that token, 0 for the others.
PAIR = np.dtype([(name, "<i4") for name in ("feature", "sequence", "position")] + [("value", "<f4"), ("parent", "<f4")])
BUFFER = 2**22
READ_ROWS = 4096
MOST_CODES = 2**26


@dataclass(frozen=True)
class Selection:
    """The first `sequences` sequences of a store, whole, which hold `rows` of its rows."""

    store: Store
    sequences: int
    rows: int

    def tokens(self) -> UInt32[np.ndarray, "sequences context"]:
        """The token ids that the language model read, special tokens included."""
        return self.store.tokens()[: self.sequences]


@dataclass(frozen=True)
class SparseCodes:
    """The records of a selection on disk; range i holds the features ``edges[i]`` to ``edges[i + 1]``."""

    folder: Path
    edges: tuple[int, ...]
    selection: Selection

    def part(self, i: int) -> np.ndarray:
        """The records (`PAIR`) of range i, sorted by feature, sequence and position."""
        path = _file(self.folder, i)
        records = np.fromfile(path, PAIR) if path.exists() else np.empty(0, PAIR)
        return records[np.lexsort((records["position"], records["sequence"], records["feature"]))]

    def parts(self, what: str) -> Iterator[np.ndarray]:
        """All ranges in order, with a progress bar."""
        for i in tqdm(range(len(self.edges) - 1), what, unit="range", disable=None):
            yield self.part(i)


def select(store: Store, rows: int | None) -> Selection:
    """The first sequences of a store that together hold at most `rows` rows; all of them for None.

    `UserError`: `rows` is more than the store holds, or less than its first sequence.
    """
    if rows is None:
        return Selection(store, store.manifest.sequences, store.rows)
    if not 1 <= rows <= store.rows:
        raise UserError(
            f"rows is {rows}, but {store.path} holds {store.rows}; write 1 to {store.rows}, or null for all"
        )
    counts = np.zeros(store.manifest.sequences, np.int64)
    for start in range(0, store.rows, READ_ROWS):
        index = store.index(start, min(start + READ_ROWS, store.rows))
        counts += np.bincount(index[:, 0], minlength=len(counts))
    total = np.cumsum(counts)
    sequences = int(np.searchsorted(total, rows, side="right"))
    if sequences == 0 or total[sequences - 1] == 0:
        raise UserError(f"rows is {rows}, less than one sequence of {store.path}; write at least {total[total > 0][0]}")
    return Selection(store, sequences, int(total[sequences - 1]))


def sparse_codes(
    sae: AbstractSAE, normalizer: AbstractNormalizer, selection: Selection, edges: Sequence[int], folder: Path
) -> SparseCodes:
    """Encodes the selection and spills its records into `folder`, by the ranges between `edges` (0 to features).

    Codes are in the SAE's own units, that is after its normaliser.
    """
    held: list[np.ndarray] = []
    for batch in _encoded(sae, normalizer, selection):
        held.append(batch)
        if sum(map(len, held)) >= BUFFER:
            _spill(folder, edges, np.concatenate(held))
            held = []
    if held:
        _spill(folder, edges, np.concatenate(held))
    return SparseCodes(folder, tuple(edges), selection)


def _encoded(sae: AbstractSAE, normalizer: AbstractNormalizer, selection: Selection) -> Iterator[np.ndarray]:
    """Batch by batch, one record for every code that is not 0."""
    size = max(1, min(READ_ROWS, MOST_CODES // sae.features))
    with tqdm(total=selection.rows, desc="encoding", unit="token", disable=None) as bar:
        for x, where in _batches(selection, size):
            codes, parents = _codes(sae, normalizer, jnp.asarray(x))
            values = np.asarray(codes.values)
            row, slot = np.nonzero(values)
            records = np.empty(len(row), PAIR)
            records["feature"] = slot if codes.indices is None else np.asarray(codes.indices)[row, slot]
            records["sequence"], records["position"] = where[row].T
            records["value"] = values[row, slot]
            records["parent"] = 0 if parents is None else np.asarray(parents)[row, slot]
            bar.update(len(x))
            yield records


@eqx.filter_jit
def _codes(
    sae: AbstractSAE, normalizer: AbstractNormalizer, x: Float[Array, "batch embed"]
) -> tuple[Codes, Float[Array, "batch slots"] | None]:
    codes = sae.encode(normalizer(x)[0])
    return codes.flat(), _parents(codes) if isinstance(codes, TreeCodes) else None


def _parents(codes: TreeCodes) -> Float[Array, "batch slots"]:
    """For every slot of ``codes.flat()`` the code of its parent; 0 for the parents themselves."""
    parents, children = codes.parents.values, codes.children.values
    spread = jnp.broadcast_to(parents[..., None], children.shape)
    return jnp.concatenate([jnp.zeros_like(parents), spread.reshape(len(parents), -1)], axis=-1)


def _batches(selection: Selection, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The selected rows in the order of the store, `size` at a time, with their (sequence, position)."""
    store = selection.store
    x, where = np.empty((0, store.embed), np.float32), np.empty((0, 2), np.int32)
    for start in range(0, store.rows, READ_ROWS):
        stop = min(start + READ_ROWS, store.rows)
        index = store.index(start, stop)
        wanted = index[:, 0] < selection.sequences
        if wanted.any():
            x = np.concatenate([x, store.read(start, stop)[wanted]])
            where = np.concatenate([where, index[wanted, :2]])
        while len(x) >= size:
            yield x[:size], where[:size]
            x, where = x[size:], where[size:]
    if len(x):
        yield x, where


def _spill(folder: Path, edges: Sequence[int], records: np.ndarray) -> None:
    """Appends records to the files of their ranges."""
    part = np.searchsorted(edges, records["feature"], side="right") - 1
    order = np.argsort(part, kind="stable")
    cuts = np.searchsorted(part[order], np.arange(len(edges)))
    for i in np.unique(part).tolist():
        with _file(folder, i).open("ab") as file:
            file.write(records[order[cuts[i] : cuts[i + 1]]].tobytes())


def _file(folder: Path, i: int) -> Path:
    return folder / f"{i}.bin"
