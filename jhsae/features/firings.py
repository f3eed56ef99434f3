"""Every firing of an SAE on the rows of a store: (row, feature, value) triples, whatever form its codes have.

A firing is a code that is not 0. TopK codes are sparse, ReLU and JumpReLU codes are dense; each batch is reduced to
its firings before the next is computed. Memory: one batch of codes, and per firing 8 bytes (40 while they are sorted).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Int64

from jhsae.data import Store
from jhsae.data.normalize import AbstractNormalizer
from jhsae.sae import AbstractSAE
from jhsae.sae.apply import reconstruct

MOST_CODES = 2**25


@dataclass(frozen=True, eq=False)
class Firings:
    """The firings among `measured` rows, sorted by feature, and by row within a feature.

    Those of feature i stand from ``starts[i]`` to ``starts[i + 1]``.
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


def firings(sae: AbstractSAE, normalizer: AbstractNormalizer, store: Store, rows: int, batch: int = 4096) -> Firings:
    """The firings on the first `rows` rows of a store; `batch` is cut where its dense codes would be too large."""
    batch = max(1, min(batch, MOST_CODES // sae.features))
    parts = list(_parts(sae, normalizer, store, rows, batch))
    row, feature, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(feature, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=sae.features))])
    return Firings(row[order], value[order], starts.astype(np.int64), rows)


def _parts(
    sae: AbstractSAE, normalizer: AbstractNormalizer, store: Store, rows: int, batch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batch by batch: the row, the feature and the value of every firing."""
    for start in range(0, rows, batch):
        x = jnp.asarray(store.read(start, min(start + batch, rows)))
        codes = reconstruct(sae, normalizer, x)[1].codes.flat()
        values = np.asarray(codes.values)
        row, slot = np.nonzero(values)
        feature = slot if codes.indices is None else np.asarray(codes.indices)[row, slot]
        yield (row + start).astype(np.int32), feature.astype(np.int32), values[row, slot].astype(np.float32)
