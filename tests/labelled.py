"""Hand-made codes and labels: words of several classes, each word on several rows."""

import numpy as np

from jhsae.evals import RowLabels
from jhsae.features.firings import Firings

CLASSES, WORDS, REPEATS = 4, 10, 6


def labels(classes: int = CLASSES, words: int = WORDS, repeats: int = REPEATS) -> RowLabels:
    """`repeats` rows of each of `words` words of every class, shuffled."""
    word = np.random.default_rng(0).permutation(np.repeat(np.arange(classes * words), repeats))
    names = tuple(f"class {c}" for c in range(classes))
    return RowLabels(names, (word // words).astype(np.int32), word.astype(np.int64))


def firings(dense: np.ndarray) -> Firings:
    """The firings of dense codes, [rows, features]."""
    features, rows = np.nonzero(dense.T)
    starts = np.concatenate([[0], np.cumsum(np.bincount(features, minlength=dense.shape[1]))])
    values = dense.T[features, rows].astype(np.float32)
    return Firings(rows.astype(np.int32), values, starts.astype(np.int64), len(dense))


def topk_noise(rows: int, features: int, k: int, seed: int = 0) -> np.ndarray:
    """Codes of a TopK SAE that knows nothing: `k` random latents per row."""
    x = np.random.default_rng(seed).exponential(size=(rows, features))
    return np.where(x >= np.sort(x, axis=1)[:, -k, None], x, 0)
