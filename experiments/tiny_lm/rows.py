"""Rows of tokens from the arrays of prepare.py: <bos> and 127 tokens of documents separated by <eos>."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

PAD, EOS, BOS, UNK = range(4)
CONTEXT = 128


def rows(sources: list[Path], seed: int | None) -> np.ndarray:
    """[rows, CONTEXT] of the documents of all sources, in the order of `seed` (None: as they are)."""
    loaded = [np.load(path) for path in sources]
    tokens = np.concatenate([part["tokens"] for part in loaded])
    lengths = np.concatenate([part["lengths"] for part in loaded])
    starts = np.cumsum(lengths) - lengths
    order = np.arange(len(lengths)) if seed is None else np.random.default_rng(seed).permutation(len(lengths))
    tokens, starts = np.append(tokens, EOS), starts[order]
    ends = np.cumsum(lengths[order] + 1)
    position = np.arange(ends[-1]) - np.repeat(ends - lengths[order] - 1, lengths[order] + 1)
    index = np.repeat(starts, lengths[order] + 1) + position
    index[ends - 1] = len(tokens) - 1
    stream = tokens[index][: len(index) // (CONTEXT - 1) * (CONTEXT - 1)].reshape(-1, CONTEXT - 1)
    return np.concatenate([np.full((len(stream), 1), BOS), stream], axis=1).astype(np.int32)


def batches(data: Path, batch: int, step: int, corrupt: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) from `step` on; the same for every run that reaches that step."""
    sources = [data / "train_glosses.npz", data / "train_kjv.npz"]
    per_epoch = len(rows(sources, 0)) // batch
    while True:
        epoch = rows(sources, step // per_epoch)
        for i in range(step % per_epoch, per_epoch):
            ids = epoch[i * batch : (i + 1) * batch]
            hide = np.random.default_rng((step, 1)).random(ids.shape) < corrupt
            yield np.where(hide & (ids != BOS), UNK, ids).astype(np.int32), ids
            step += 1
