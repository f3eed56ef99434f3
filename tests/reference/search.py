"""Search by token in a `TokenProfile`, in plain Python: the oracle of the page's search index and of search.js."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jhsae.features.latents import TokenProfile


class Hit(NamedTuple):
    """A latent that fires on the tokens searched for."""

    latent: int
    mean: float
    share: float
    fired: int


def search_by_token(
    profile: TokenProfile, tokens: Sequence[int], by: Literal["mean", "share"] = "mean", count: int = 20
) -> list[Hit]:
    """The latents that fire on any of `tokens` (ids), best first; ties by index.

    Several tokens count as one: occurrences, firings and activation are added up.
    """
    spans = [slice(profile.starts[t], profile.starts[t + 1]) for t in dict.fromkeys(tokens)]
    occurrences = sum(int(profile.occurrences[t]) for t in dict.fromkeys(tokens))
    latents, inverse = np.unique(_joined(profile.latents, spans), return_inverse=True)
    fired = _sums(inverse, _joined(profile.fired, spans), len(latents))
    total = _sums(inverse, _joined(profile.total, spans), len(latents))
    hits = [
        Hit(int(i), float(t / occurrences), float(t / profile.mass[i]), int(n))
        for i, n, t in zip(latents, fired, total, strict=True)
        if t > 0
    ]
    return sorted(hits, key=lambda hit: -getattr(hit, by))[:count]


def _sums(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    return np.bincount(group, weights=values, minlength=groups).astype(np.float64)


def _joined(column: np.ndarray, spans: list[slice]) -> np.ndarray:
    return np.concatenate([column[:0], *(column[span] for span in spans)])
