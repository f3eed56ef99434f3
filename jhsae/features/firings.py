"""The firings of an SAE on the rows of a store: every code that is not 0, whatever form the codes have.

`firings` is the one pass from a store to sparse codes. It yields a `Batch` of firings at a time and keeps none, so
memory is bounded by one batch of codes. `firing_table` holds all of them, sorted by feature; `jhsae.features.spill`
sorts them on disk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt32
from tqdm import tqdm

from jhsae.data import AbstractNormalizer, Store
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE
from jhsae.sae.apply import encode

READ_ROWS = 4096
MOST_CODES = 2**26


@dataclass(frozen=True)
class Selection:
    """The measured rows of a store: of its first `stop` rows those that belong to its first `sequences` sequences.

    `rows` is their number.
    """

    store: Store
    stop: int
    sequences: int
    rows: int

    def tokens(self) -> UInt32[np.ndarray, "sequences context"]:
        """The token ids that the language model read, special tokens included."""
        return self.store.tokens()[: self.sequences]

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The selected rows in the order of the store, `size` at a time: row numbers, activations, index."""
        held: list[np.ndarray] = [np.empty(0, np.int32), np.empty((0, self.store.embed), np.float32)]
        held.append(np.empty((0, 3), np.int32))
        for start in range(0, self.stop, READ_ROWS):
            stop = min(start + READ_ROWS, self.stop)
            index = self.store.index(start, stop)
            wanted = index[:, 0] < self.sequences
            if wanted.any():
                found = np.arange(start, stop, dtype=np.int32), self.store.read(start, stop), index
                held = [np.concatenate([old, new[wanted]]) for old, new in zip(held, found, strict=True)]
            while len(held[0]) >= size:
                yield held[0][:size], held[1][:size], held[2][:size]
                held = [column[size:] for column in held]
        if len(held[0]):
            yield held[0], held[1], held[2]


def first_rows(store: Store, rows: int | None = None) -> Selection:
    """The first `rows` rows of a store, as stored (shuffled); all of them for None."""
    rows = store.rows if rows is None else min(rows, store.rows)
    return Selection(store, rows, store.manifest.sequences, rows)


def whole_sequences(store: Store, rows: int | None = None) -> Selection:
    """The first sequences of a store, whole, that together hold at most `rows` rows; all of them for None.

    Raises:
        UserError: `rows` is more than the store holds, or less than its first sequence.
    """
    if rows is None:
        return first_rows(store)
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
    return Selection(store, store.rows, sequences, int(total[sequences - 1]))


class Batch(NamedTuple):
    """Firings, one entry each, row by row.

    `row` counts the rows of the store, (`sequence`, `position`) is its place in the text, `feature` a row of
    ``sae.dictionary()``, `value` the code, and `parent` the code of an atom's expert at that token, 0 for all others.
    """

    row: Int32[np.ndarray, " firings"]
    sequence: Int32[np.ndarray, " firings"]
    position: Int32[np.ndarray, " firings"]
    feature: Int32[np.ndarray, " firings"]
    value: Float32[np.ndarray, " firings"]
    parent: Float32[np.ndarray, " firings"]

    def records(self, dtype: np.dtype, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The columns that `dtype` names, of the chosen firings, as one structured array."""
        records = np.empty(len(self.row[chosen]), dtype)
        for name in dtype.names or ():
            records[name] = getattr(self, name)[chosen]
        return records


def firings(sae: AbstractSAE, normalizer: AbstractNormalizer, selection: Selection) -> Iterator[Batch]:
    """Encodes the selected rows and yields their firings, batch by batch, with a progress bar.

    Args:
        sae: a trained SAE; codes are in its own units, that is after `normalizer`.
        normalizer: its fitted input normaliser.
        selection: `first_rows` or `whole_sequences` of a store.
    """
    size = max(1, min(READ_ROWS, MOST_CODES // sae.features))
    with tqdm(total=selection.rows, desc="encoding", unit="token", disable=None) as bar:
        for rows, x, index in selection.batches(size):
            codes = encode(sae, normalizer, jnp.asarray(x))
            flat = codes.flat()
            values, parents = np.asarray(flat.values), np.asarray(sae.parent_values(codes))
            row, slot = np.nonzero(values)
            sequence, position, _ = index[row].T
            feature = slot.astype(np.int32) if flat.indices is None else np.asarray(flat.indices)[row, slot]
            bar.update(len(x))
            yield Batch(rows[row], sequence, position, feature, values[row, slot], parents[row, slot])


@dataclass(frozen=True, eq=False)
class Firings:
    """The firings among the first `measured` rows of a store, sorted by feature, and by row within a feature.

    Those of feature i lie from ``starts[i]`` to ``starts[i + 1]``.
    """

    rows: Int32[np.ndarray, " firings"]
    values: Float32[np.ndarray, " firings"]
    starts: Int64[np.ndarray, " features_plus_1"]
    measured: int

    @property
    def size(self) -> int:
        """The number of features, those that never fired included."""
        return len(self.starts) - 1

    def count(self) -> Int64[np.ndarray, " features"]:
        """How many rows fired each feature."""
        return np.diff(self.starts)

    def features(self) -> Int32[np.ndarray, " firings"]:
        """The feature of every firing."""
        return np.repeat(np.arange(self.size, dtype=np.int32), self.count())

    def of(self, feature: int) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
        """The rows that fired a feature, in order, and its values there."""
        own = slice(self.starts[feature], self.starts[feature + 1])
        return self.rows[own], self.values[own]


def firing_table(sae: AbstractSAE, normalizer: AbstractNormalizer, store: Store, rows: int) -> Firings:
    """All firings on the first `rows` rows of a store, in memory: 8 bytes per firing, 40 while they are sorted."""
    batches = firings(sae, normalizer, first_rows(store, rows))
    return tabulated([(batch.row, batch.feature, batch.value) for batch in batches], sae.features, rows)


def tabulated(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], features: int, measured: int) -> Firings:
    """Firings sorted by feature.

    Args:
        parts: row, feature and value of every firing, in the order of the rows.
        features: how many features there are.
        measured: how many rows were measured.
    """
    empty = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32)
    row, feature, value = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    order = np.argsort(feature, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=features))])
    return Firings(row[order], value[order], starts.astype(np.int64), measured)
