"""The tokens in context on which a feature is most active, for people to read."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jhsae.data import Stores
from jhsae.features.firings import Batch
from jhsae.sae import Forest

# Columns of `Batch`.
FIRING = np.dtype([("value", "<f4")] + [(name, "<i4") for name in ("feature", "row", "sequence", "position")])


def spread_features(frequency: Float[np.ndarray, " features"], count: int) -> list[int]:
    """`count` live features, evenly spaced in frequency rank, so not cherry-picked."""
    live = np.flatnonzero(frequency > 0)
    ranked = live[np.argsort(-frequency[live], kind="stable")]
    return [int(i) for i in ranked[np.linspace(0, len(ranked) - 1, min(count, len(ranked))).astype(int)]]


def children(tree: Forest, feature: int) -> range:
    """The slots below a feature: the atoms of an expert. None below a feature of the last level."""
    return range(*np.searchsorted(tree.parents, [feature, feature + 1]).tolist())  # parents never fall with the number


def frequent_children(
    tree: Forest, feature: int, frequency: Float[np.ndarray, " features"], count: int | None
) -> list[int]:
    """The most frequent live children of a feature, at most `count`; None for all."""
    below = children(tree, feature)
    own = frequency[below.start : below.stop]
    return [below[int(a)] for a in np.argsort(-own, kind="stable")[:count] if own[a] > 0]


def top_contexts(
    firings: Iterable[Batch],
    features: Sequence[int],
    store: Stores,
    text: Callable[[list[int]], list[str]],
    count: int = 8,
    window: int = 10,
) -> dict[int, list[dict[str, Any]]]:
    """The most active rows of every chosen feature, with the tokens around them.

    Args:
        firings: of `jhsae.features.firings.firings`; of each feature only the strongest `count` are kept.
        features: those that are shown.
        store: the store that was measured.
        text: turns token ids into strings.
        count: contexts per feature.
        window: tokens before the firing one; half as many follow it.

    Returns:
        For each feature at most `count` contexts, strongest first: ``value``, ``tokens`` and, ``at``, the place among
        them of the one that fired. Only positive codes count.
    """
    best = np.empty(0, FIRING)
    for batch in firings:
        chosen = np.isin(batch.feature, features) & (batch.value > 0)
        best = _strongest(np.concatenate([best, batch.records(FIRING, chosen)]), count)
    tokens = store.tokens()
    found: dict[int, list[dict[str, Any]]] = {feature: [] for feature in features}
    for value, feature, _, sequence, position in best.tolist():
        start = max(0, position - window)
        ids = tokens[sequence, start : position + window // 2 + 1].tolist()
        found[feature].append({"value": value, "tokens": text(ids), "at": position - start})
    return found


def _strongest(records: np.ndarray, count: int) -> np.ndarray:
    """At most `count` records of each feature, sorted by feature, then by value from the largest, then by row."""
    records = records[np.lexsort((records["row"], -records["value"], records["feature"]))]
    rank = np.arange(len(records)) - np.searchsorted(records["feature"], records["feature"])
    return records[rank < count]
