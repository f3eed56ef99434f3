"""Statistics per latent: how often and how strongly it fires, and on which tokens.

Everything is counted from `Firings`; a firing is a code that is not 0, as in L0. Values are in the SAE's own units,
that is after its input normaliser. The latents are the rows of ``sae.dictionary()``: experts, then atoms.

For token t and latent i: ``mean[t, i]``, the activation summed over the measured occurrences of t and divided by their
number, silent ones included; and ``share[t, i]``, the part of all activation of i that falls on t. A latent with a high
mean fires there reliably; one with a high share fires there and hardly elsewhere. Negative values count as 0.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from jhsae.features.firings import Firings

LOG10_EDGES = tuple(i / 4 for i in range(-32, 1))  # of frequencies from 1e-8, four bins per factor of ten


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """One entry per feature; means and bins are over its firings, and 0 for a feature that never fired.

    ``histogram[i, b]`` counts the firings of feature i in the b-th of equal bins from ``low[i]`` to ``high[i]``:
    `low` is the smallest value or 0, whichever is less, and `high` the largest value or 0, whichever is more.
    """

    fired: Int64[np.ndarray, " features"]
    frequency: Float[np.ndarray, " features"]
    mean: Float[np.ndarray, " features"]
    high: Float[np.ndarray, " features"]
    low: Float[np.ndarray, " features"]
    histogram: Int64[np.ndarray, "features bins"]


def latent_statistics(firings: Firings, bins: int = 24) -> LatentStatistics:
    """Frequency (fraction of the measured rows), mean, range and a histogram of `bins` bins."""
    fired, features, values = firings.count(), firings.features(), firings.values.astype(np.float64)
    alive = fired > 0
    high, low = np.zeros(firings.size), np.zeros(firings.size)
    firsts = firings.starts[:-1][alive]
    if len(firsts):
        high[alive] = np.maximum(np.maximum.reduceat(values, firsts), 0)
        low[alive] = np.minimum(np.minimum.reduceat(values, firsts), 0)
    width = np.where(high > low, high - low, 1)
    place = ((values - low[features]) / width[features] * bins).astype(np.int64).clip(0, bins - 1)
    counts = np.bincount(features.astype(np.int64) * bins + place, minlength=firings.size * bins)
    total = np.bincount(features, weights=values, minlength=firings.size)
    mean = total / np.maximum(fired, 1)
    return LatentStatistics(fired, fired / firings.measured, mean, high, low, counts.reshape(-1, bins))


def density(frequency: Float[np.ndarray, " features"]) -> dict[str, list[float] | list[int]]:
    """How many features fire how often: counts in fixed bins of log10 frequency, as JSON values.

    A feature that never fired is in no bin: those are ``len(frequency) - sum(counts)``. One rarer than 1e-8 is in the
    first bin, one that always fires in the last.

    Args:
        frequency: the fraction of the measured tokens on which each feature fired.

    Returns:
        ``log10_edges``, the same for every SAE, and ``counts`` between them.
    """
    live = np.clip(np.log10(frequency[frequency > 0]), LOG10_EDGES[0], LOG10_EDGES[-1])
    counts, _ = np.histogram(live, LOG10_EDGES)
    return {"log10_edges": list(LOG10_EDGES), "counts": counts.tolist()}


@dataclass(frozen=True, eq=False)
class TokenProfile:
    """Every (token, latent) pair that occurred: firings and summed activation, sorted by token, then latent.

    Pairs of token t stand from ``starts[t]`` to ``starts[t + 1]``; `occurrences` counts the measured rows of every
    token, `mass` sums the activation of every latent.
    """

    tokens: Int64[np.ndarray, " pairs"]
    latents: Int64[np.ndarray, " pairs"]
    fired: Int64[np.ndarray, " pairs"]
    total: Float[np.ndarray, " pairs"]
    starts: Int64[np.ndarray, " vocab_plus_1"]
    occurrences: Int64[np.ndarray, " vocab"]
    mass: Float[np.ndarray, " features"]

    def mean(self) -> Float[np.ndarray, " pairs"]:
        """Activation per occurrence of the token."""
        return self.total / self.occurrences[self.tokens]

    def share(self) -> Float[np.ndarray, " pairs"]:
        """Part of the latent's activation that falls on the token; 0 for a latent that is never positive."""
        mass = self.mass[self.latents]
        return np.divide(self.total, mass, out=np.zeros_like(self.total), where=mass > 0)


def token_profile(firings: Firings, tokens: Int32[np.ndarray, " rows"], vocab: int) -> TokenProfile:
    """The profile of the measured rows, of which row r reads token ``tokens[r]``."""
    features, values = firings.features().astype(np.int64), np.maximum(firings.values, 0).astype(np.float64)
    keys = tokens[firings.rows].astype(np.int64) * firings.size + features
    pairs, inverse, fired = np.unique(keys, return_inverse=True, return_counts=True)
    token, latent = pairs // firings.size, pairs % firings.size
    return TokenProfile(
        tokens=token,
        latents=latent,
        fired=fired.astype(np.int64),
        total=_sums(inverse, values, len(pairs)),
        starts=np.searchsorted(token, np.arange(vocab + 1)).astype(np.int64),
        occurrences=np.bincount(tokens[: firings.measured], minlength=vocab).astype(np.int64),
        mass=_sums(features, values, firings.size),
    )


def main_tokens(profile: TokenProfile, latents: Int[np.ndarray, " chosen"], k: int) -> list[list[int]]:
    """For each latent, the pairs of the profile (at most k) on which most of its activation falls, largest first."""
    order = np.lexsort((profile.tokens, -profile.total, profile.latents))
    starts = np.searchsorted(profile.latents[order], latents)
    stops = np.searchsorted(profile.latents[order], latents, side="right")
    own = [order[a : min(b, a + k)] for a, b in zip(starts, stops, strict=True)]
    return [[int(i) for i in pairs if profile.total[i] > 0] for pairs in own]


def _sums(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """The sum of each group; float64 even where there is nothing to add up."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.float64)
