"""Counts of tokens on which latents and true features are on, alone and together, summed over batches.

Firing is sparse, so the tokens shared by every feature and every latent are a product of two sparse matrices, exact and
cheap. Its table holds up to one number per pair. Above `MOST_PAIRS` pairs only `CANDIDATES` latents per feature are
counted, those of largest absolute cosine with it (and every latent with its best feature), so that the best F1 of a
feature is a lower bound there.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from jhsae.codes import Codes

MOST_PAIRS = 2**25
CANDIDATES = 16


def sparse_codes(codes: Codes) -> sparse.csr_array:
    """Codes as a sparse matrix, [tokens, latents], without empty slots."""
    values = np.asarray(codes.values, np.float64)
    if codes.indices is None:
        return sparse.csr_array(values)
    rows, slots = np.nonzero(values)
    columns = np.asarray(codes.indices)[rows, slots]
    found = sparse.csr_array((values[rows, slots], (rows, columns)), shape=(len(values), codes.size))
    found.eliminate_zeros()
    return found


def is_on(values: sparse.csr_array) -> sparse.csr_array:
    """1 where there is a value."""
    return sparse.csr_array((np.ones(values.nnz), values.indices, values.indptr), shape=values.shape)


def candidates(
    cosines: Float[np.ndarray, "features latents"], groups: Sequence[Int[np.ndarray, " _"]]
) -> Bool[np.ndarray, "features latents"]:
    """The pairs that are counted where not all are: see the docstring of this file.

    Args:
        cosines: absolute, of every feature with every latent.
        groups: the latents among which the best are searched; each group gives its own candidates.
    """
    chosen = np.zeros(cosines.shape, bool)
    chosen[cosines.argmax(axis=0), np.arange(cosines.shape[1])] = True
    for group in groups:
        k = min(CANDIDATES, len(group))
        if k:
            best = np.argpartition(-cosines[:, group], k - 1, axis=1)[:, :k]
            np.put_along_axis(chosen, group[best], True, axis=1)
    return chosen


class Firing:
    """Counts over tokens: `on` of each feature, `fired` of each latent, and `together` of the pairs.

    Args:
        features: the number of true features.
        latents: the number of latents.
        only: the pairs that are counted; None for all.
    """

    def __init__(self, features: int, latents: int, only: Bool[np.ndarray, "features latents"] | None = None):
        self.rows = 0
        self.on, self.fired = np.zeros(features), np.zeros(latents)
        self.together = sparse.csr_array((features, latents))
        self.only = None if only is None else sparse.csr_array(only.astype(np.float64))

    def add(self, on: sparse.csr_array, fires: sparse.csr_array) -> None:
        """Adds a batch of ones: features ``[tokens, features]`` and latents ``[tokens, latents]``."""
        both = sparse.csr_array(on.T @ fires)
        self.rows += on.shape[0]
        self.on += column_sums(on)
        self.fired += column_sums(fires)
        self.together = self.together + (both if self.only is None else sparse.csr_array(both.multiply(self.only)))

    def f1(self) -> sparse.csr_array:
        """The F1 of every counted pair: ``2 together / (on + fired)``; 0 for a pair that is never on together."""
        pairs = self.together.tocoo()
        values = 2 * pairs.data / (self.on[pairs.row] + self.fired[pairs.col])
        return sparse.csr_array((values, (pairs.row, pairs.col)), shape=pairs.shape)

    def classification(self, best: Int[np.ndarray, "latents"]) -> dict[str, Float[np.ndarray, "latents"]]:
        """Precision, recall, F1, accuracy of each latent as a detector of feature ``best[latent]``; 0 if undefined."""
        hits, on, fired = at(self.together, best, np.arange(len(best))), self.on[best], self.fired
        return {
            "precision": _share(hits, fired),
            "recall": _share(hits, on),
            "f1": _share(2 * hits, on + fired),
            "accuracy": _share(self.rows - on - fired + 2 * hits, np.full_like(hits, self.rows)),
        }


def firing(
    cosines: Float[np.ndarray, "features latents"],
    levels: Int[np.ndarray, "features"],
    latent_levels: Int[np.ndarray, "latents"],
) -> Firing:
    """Counts that start at 0, of all pairs, or of the candidates that the scores by level and of the roots need."""
    only = None
    if cosines.size > MOST_PAIRS:
        every, roots = np.arange(len(latent_levels)), int(np.sum(levels == 0))
        own = [np.flatnonzero(latent_levels == level) for level in range(latent_levels.max(initial=-1) + 1)]
        only = candidates(cosines, [every, every[:roots], *own])
        for level in range(levels.max(initial=-1) + 1):  # and of each latent the best feature of every level
            features = np.flatnonzero(levels == level)
            only[features[cosines[features].argmax(axis=0)], every] = True
    return Firing(len(cosines), cosines.shape[1], only)


def column_sums(values: sparse.csr_array) -> Float[np.ndarray, " columns"]:
    """The sum of each column."""
    return np.asarray(values.sum(axis=0), np.float64).reshape(-1)


def at(
    table: sparse.csr_array, rows: Int[np.ndarray, " pairs"], columns: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """The entries of a table at pairs of row and column."""
    if not len(rows):
        return np.zeros(0)
    found = table[rows, columns]  # an array, or a sparse one, by the version of SciPy
    return np.asarray(found.toarray() if sparse.issparse(found) else found, np.float64).reshape(-1)


def row_maxima(table: sparse.csr_array) -> Float[np.ndarray, " rows"]:
    """The largest entry of each row, at least 0; 0 where there are no columns."""
    if 0 in table.shape:
        return np.zeros(table.shape[0])
    return np.asarray(table.max(axis=1).toarray(), np.float64).reshape(-1)


def _share(part: Float[np.ndarray, " n"], whole: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
