"""The examples of a feature: its most active sequences, and some from every interval of its values.

As in SAEDashboard, the intervals are equal parts of (0, maximum], and an example says which it was drawn from:
`binMin`, `binMax`, and `binContains`, the fraction of all tokens whose value lies in it; (-1, maximum, -1) marks the
top examples. Here every group shows a sequence at most once, and an interval's zeros are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from jhsae.interop.neuronpedia.tables import Dashboard, SourceSet
from jhsae.interop.numbers import short


@dataclass(frozen=True)
class Texts:
    """The sequences that examples are cut from: token ids, and every id of the vocabulary as text."""

    tokens: np.ndarray
    words: list[str]
    rows: int


@dataclass(frozen=True)
class Example:
    """Record `at` of a feature, drawn from the interval (low, high] that holds the fraction `contains` of tokens."""

    at: int
    low: float
    high: float
    contains: float


def choose(records: np.ndarray, rows: int, dashboard: Dashboard, seed: int) -> list[Example]:
    """The examples of one feature, top group first, then the intervals from high to low. Only positive values count."""
    values, sequences = records["value"].astype(np.float64), records["sequence"]
    firing = np.flatnonzero(values > 0)
    if not len(firing):
        return []
    high = float(values.max())
    ranked = firing[np.argsort(-values[firing], kind="stable")]
    found = [Example(i, -1.0, high, -1.0) for i in _one_each(ranked, sequences, dashboard.top)]
    draw = np.random.default_rng((dashboard.seed, seed))
    edges = np.linspace(0, high, dashboard.bins + 1)
    for low, up in zip(edges[-2::-1], edges[:0:-1], strict=True):
        inside = firing[(values[firing] > low) & (values[firing] <= up)]
        drawn = _one_each(draw.permutation(inside), sequences, dashboard.per_bin)
        found += [Example(i, float(low), float(up), len(inside) / rows) for i in drawn]
    return found


def example_rows(
    source_set: SourceSet, index: int, records: np.ndarray, texts: Texts, dashboard: Dashboard, created: str
) -> Iterator[dict[str, Any]]:
    """One row of Neuronpedia's Activation table for each example of feature `index`, whose `records` these are."""
    for number, example in enumerate(choose(records, texts.rows, dashboard, source_set.start + index)):
        start, values = _window(records, example.at, texts.tokens.shape[1], dashboard.window)
        ids = texts.tokens[records["sequence"][example.at], start : start + len(values)]
        shown = short(values)
        yield {
            "id": f"{source_set.model}-{source_set.source}-{index}-{number}",
            "tokens": [texts.words[i] for i in ids],
            "dataIndex": None,
            "index": str(index),
            "layer": source_set.source,
            "modelId": source_set.model,
            "dataSource": None,
            "maxValue": max(shown),
            "maxValueTokenIndex": int(np.argmax(values)),
            "minValue": min(shown),
            "values": shown,
            "dfaValues": [],
            "dfaTargetIndex": None,
            "dfaMaxValue": None,
            "creatorId": dashboard.creator_id,
            "createdAt": created,
            "lossValues": [],
            "logitContributions": None,
            "binMin": example.low,
            "binMax": example.high,
            "binContains": example.contains,
            "qualifyingTokenIndex": int(records["position"][example.at]) - start,
        }


def _one_each(ranked: Int[np.ndarray, " n"], sequences: Int[np.ndarray, " m"], most: int) -> list[int]:
    """The first `most` of `ranked` that are in sequences of their own."""
    _, first = np.unique(sequences[ranked], return_index=True)
    return ranked[np.sort(first)[:most]].tolist()


def _window(records: np.ndarray, at: int, context: int, window: int) -> tuple[int, np.ndarray]:
    """Where the example starts in its sequence, and the feature's value at each of its tokens."""
    start = min(max(int(records["position"][at]) - window // 2, 0), max(context - window, 0))
    first, last = np.searchsorted(records["sequence"], [records["sequence"][at], records["sequence"][at] + 1])
    values = np.zeros(context, np.float32)
    values[records["position"][first:last]] = records["value"][first:last]
    return start, values[start : start + window]
