"""The numbers of a page, rounded, with tokens as places in its list."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from jhsae.browser.pieces import Pieces
from jhsae.features.decoder import directions, nearest
from jhsae.features.latents import LatentStatistics, TokenProfile, density

Json = dict[str, Any]
MOST_BY_MEAN, MOST_BY_SHARE = 40, 20


def rounded(value: Any, digits: int = 3) -> float:
    """A number of so many significant digits."""
    return float(f"{float(value):.{digits}g}")


def numbers(statistics: LatentStatistics, i: int) -> Json:
    """What is counted about one latent."""
    return {
        "fired": int(statistics.fired[i]),
        "mean": rounded(statistics.mean[i], 4),
        "high": rounded(statistics.high[i], 4),
        "low": rounded(statistics.low[i], 4),
        "histogram": statistics.histogram[i].tolist(),
    }


def main_token(profile: TokenProfile, pair: int, pieces: Pieces) -> list[Any]:
    """[token, share of the latent's activation, mean activation on the token, firings]."""
    token, latent, total = int(profile.tokens[pair]), int(profile.latents[pair]), float(profile.total[pair])
    mean, share = total / profile.occurrences[token], total / profile.mass[latent]
    return [pieces.use(token), rounded(share), rounded(mean), int(profile.fired[pair])]


def logit_pairs(ids: Int[np.ndarray, " k"], values: Float32[np.ndarray, " k"], pieces: Pieces) -> list[list[Any]]:
    """[token, logit] for each."""
    return [[pieces.use(int(i)), rounded(v)] for i, v in zip(ids, values, strict=True)]


def neighbours(
    dictionary: Float32[np.ndarray, "features embed"],
    fired: Int64[np.ndarray, " features"],
    chosen: Int64[np.ndarray, " chosen"],
    k: int,
) -> list[list[tuple[int, float]]]:
    """For each chosen latent at most `k` neighbours among all that fired, as (feature, cosine)."""
    live = np.flatnonzero(fired)
    k = min(k, len(live) - 1)
    if k < 1:
        return [[] for _ in chosen]
    ids, cosines = nearest(directions(dictionary[live]), np.searchsorted(live, chosen), k)
    both = zip(live[ids].tolist(), cosines.tolist(), strict=True)
    return [[(i, round(c, 3)) for i, c in zip(*one, strict=True)] for one in both]


def search_index(profile: TokenProfile, words: Sequence[str], chosen: Int64[np.ndarray, " chosen"]) -> Json:
    """word -> [occurrences, latent, mean, share, firings, the next latent, ...]: the best by mean, then by share.

    `profile` is over `words` in place of tokens; latents are numbered as in `chosen`.
    """
    place = np.full(len(profile.mass), -1)
    place[chosen] = np.arange(len(chosen))
    mean, share = profile.mean(), profile.share()
    found = {}
    for word in np.flatnonzero(np.diff(profile.starts)).tolist():
        own = np.arange(profile.starts[word], profile.starts[word + 1])
        own = own[(place[profile.latents[own]] >= 0) & (profile.total[own] > 0)]
        best = [*np.argsort(-mean[own], kind="stable")[:MOST_BY_MEAN]]
        best += [*np.argsort(-share[own], kind="stable")[:MOST_BY_SHARE]]
        pairs = own[list(dict.fromkeys(best))] if best else own
        row = [
            (int(place[profile.latents[p]]), rounded(mean[p]), rounded(share[p]), int(profile.fired[p])) for p in pairs
        ]
        if row:
            found[words[word]] = [int(profile.occurrences[word]), *(number for hit in row for number in hit)]
    return found


def densities(kinds: dict[str, Float[np.ndarray, " features"]]) -> list[Json]:
    """The density of each kind of latent, with its dead apart, from the frequencies of its latents."""
    return [
        {"kind": kind, **density(own), "dead": int(np.sum(own == 0)), "all": len(own)} for kind, own in kinds.items()
    ]
