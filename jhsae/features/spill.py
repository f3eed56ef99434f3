"""The firings of a store sorted by feature on disk, which the writers of other tools' formats read.

A store's rows are shuffled; other tools want the tokens of a sequence together, and one feature at a time. Every firing
becomes a record, which is appended to the file of its range of features. The ranges come back one by one, sorted by
feature, then sequence, then position. Memory: one batch of codes, `BUFFER` records and one range.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jhsae.data import AbstractNormalizer
from jhsae.features.firings import Selection, firings
from jhsae.sae import AbstractSAE

# The columns of `Batch` but the row.
RECORD = np.dtype(
    [(name, "<i4") for name in ("feature", "sequence", "position")] + [("value", "<f4"), ("parent", "<f4")]
)
BUFFER = 2**22


@dataclass(frozen=True)
class SpilledFirings:
    """The records of a selection on disk; range i holds the features ``edges[i]`` to ``edges[i + 1]``."""

    folder: Path
    edges: tuple[int, ...]
    selection: Selection

    def part(self, i: int) -> np.ndarray:
        """The records (`RECORD`) of range i, sorted by feature, sequence and position."""
        path = _file(self.folder, i)
        records = np.fromfile(path, RECORD) if path.exists() else np.empty(0, RECORD)
        return records[np.lexsort((records["position"], records["sequence"], records["feature"]))]

    def parts(self, what: str) -> Iterator[np.ndarray]:
        """All ranges in order, with a progress bar."""
        for i in tqdm(range(len(self.edges) - 1), what, unit="range", disable=None):
            yield self.part(i)


def spilled(
    sae: AbstractSAE, normalizer: AbstractNormalizer, selection: Selection, edges: Sequence[int], folder: Path
) -> SpilledFirings:
    """Encodes the selection and writes its firings into `folder`, by the ranges between `edges` (0 to features)."""
    held: list[np.ndarray] = []
    for batch in firings(sae, normalizer, selection):
        held.append(batch.records(RECORD))
        if sum(map(len, held)) >= BUFFER:
            _append(folder, edges, np.concatenate(held))
            held = []
    if held:
        _append(folder, edges, np.concatenate(held))
    return SpilledFirings(folder, tuple(edges), selection)


def _append(folder: Path, edges: Sequence[int], records: np.ndarray) -> None:
    """Appends records to the files of their ranges."""
    part = np.searchsorted(edges, records["feature"], side="right") - 1
    order = np.argsort(part, kind="stable")
    cuts = np.searchsorted(part[order], np.arange(len(edges)))
    for i in np.unique(part).tolist():
        with _file(folder, i).open("ab") as file:
            file.write(records[order[cuts[i] : cuts[i + 1]]].tobytes())


def _file(folder: Path, i: int) -> Path:
    return folder / f"{i}.bin"
