"""The tokens in context on which a feature is most active, for people to read."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jhsae.codes import Codes
from jhsae.data import Store
from jhsae.data.normalize import AbstractNormalizer
from jhsae.sae import AbstractSAE, TreeSizes
from jhsae.sae.apply import reconstruct

Rows = Int[np.ndarray, "rows slots"]


def sparse_codes(
    sae: AbstractSAE, normalizer: AbstractNormalizer, store: Store, rows: int, batch: int = 4096
) -> tuple[Float[np.ndarray, "rows slots"], Rows]:
    """Values and feature indices of the first `rows` rows of a store."""
    values, indices = [], []
    for start in range(0, rows, batch):
        x = store.read(start, min(start + batch, rows))
        _, forward = reconstruct(sae, normalizer, jnp.asarray(x))
        value, index = _slots(forward.codes.flat())
        values.append(value)
        indices.append(index)
    slots = max(value.shape[1] for value in values)  # an empty slot has value 0, and any index
    padded = [[np.pad(a, ((0, 0), (0, slots - a.shape[1]))) for a in column] for column in (values, indices)]
    return np.concatenate(padded[0]), np.concatenate(padded[1])


def _slots(codes: Codes) -> tuple[Float[np.ndarray, "rows slots"], Rows]:
    """Values and features of the slots; of dense codes only as many per row as its fullest row needs."""
    values = np.asarray(codes.values)
    if codes.indices is not None:
        return values, np.asarray(codes.indices)
    active = values != 0
    slots = max(1, int(active.sum(axis=1).max(initial=0)))
    index = np.argsort(~active, axis=1, kind="stable")[:, :slots].astype(np.int32)
    return np.take_along_axis(values, index, axis=1), index


def spread_features(frequency: Float[np.ndarray, "features"], count: int) -> list[int]:
    """`count` live features at evenly spaced ranks of frequency: a sample without picking cherries."""
    live = np.flatnonzero(frequency > 0)
    ranked = live[np.argsort(-frequency[live], kind="stable")]
    return [int(i) for i in ranked[np.linspace(0, len(ranked) - 1, min(count, len(ranked))).astype(int)]]


def top_contexts(
    values: Float[np.ndarray, "rows slots"],
    indices: Rows,
    features: Sequence[int],
    store: Store,
    text: Callable[[list[int]], list[str]],
    count: int = 8,
    window: int = 10,
) -> dict[int, list[dict[str, Any]]]:
    """For each feature its `count` most active rows: value, the tokens around, and which of them fired it.

    At most one context per token position of a sequence is shown; `text` turns token ids into strings.
    """
    where = store.index(0, len(values))
    tokens = store.tokens()
    found = {}
    for feature in features:
        hits = np.where(indices == feature, values, 0).max(axis=1)
        best = [int(r) for r in np.argsort(-hits, kind="stable")[:count] if hits[r] > 0]
        found[feature] = [_context(where[r], float(hits[r]), tokens, text, window) for r in best]
    return found


def _context(
    where: Int[np.ndarray, "3"],
    value: float,
    tokens: np.ndarray,
    text: Callable[[list[int]], list[str]],
    window: int,
) -> dict[str, Any]:
    sequence, position, _ = (int(i) for i in where)
    start = max(0, position - window)
    ids = [int(t) for t in tokens[sequence, start : position + window // 2 + 1]]
    return {"value": value, "tokens": text(ids), "at": position - start}


def expert_atoms(tree: TreeSizes, expert: int, frequency: Float[np.ndarray, "features"], count: int) -> list[int]:
    """The features of an expert's most frequent live atoms."""
    first = tree.experts + expert * tree.atoms
    own = frequency[first : first + tree.atoms]
    return [first + int(a) for a in np.argsort(-own, kind="stable")[:count] if own[a] > 0]
