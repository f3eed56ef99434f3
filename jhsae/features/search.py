"""Which latents fire on a token: search by token or by text, from the firings alone.

For token t and latent i: ``mean[t, i]``, the activation summed over the measured occurrences of t and divided by their
number, silent ones included; and ``share[t, i]``, the part of all activation of i that falls on t. A latent with a high
mean fires there reliably; one with a high share fires there and hardly elsewhere. Negative values count as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, Int64

from jhsae.errors import UserError
from jhsae.features.firings import Firings
from jhsae.features.token_text import token_text, word


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


class Hit(NamedTuple):
    """A latent that fires on the tokens searched for."""

    latent: int
    mean: float
    share: float
    fired: int


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


def search_by_token(
    profile: TokenProfile, tokens: Sequence[int], by: Literal["mean", "share"] = "mean", count: int = 20
) -> list[Hit]:
    """The latents that fire on any of `tokens` (ids, see `token_ids`), best first; ties by index.

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


def token_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens that read as `text`, whatever their case and with or without a space before; or else its pieces.

    Raises:
        UserError: no text, or text of which the tokenizer knows nothing.
    """
    wanted = word(text)
    if not wanted:
        raise UserError("the text to search for is empty; write a word, such as 'water'")
    ids = sorted(tokenizer.get_vocab().values())
    same = [i for i, text in zip(ids, token_text(tokenizer, ids), strict=True) if word(text) == wanted]
    pieces = tokenizer.encode(text.strip(), add_special_tokens=False)
    known = same or [i for i in dict.fromkeys(pieces) if i != tokenizer.unk_token_id]
    if not known:
        raise UserError(f"the tokenizer has no token for {text!r}; write a word that occurs in the text")
    return known


def word_ids(tokenizer: Any, vocab: int) -> tuple[list[str], Int32[np.ndarray, " vocab"]]:
    """All searched forms of a vocabulary, and which of them each token has: tokens of one form are one word."""
    places: dict[str, int] = {}
    forms = [places.setdefault(word(text), len(places)) for text in token_text(tokenizer, range(vocab))]
    return list(places), np.asarray(forms, np.int32)


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


def _joined(column: np.ndarray, spans: list[slice]) -> np.ndarray:
    return np.concatenate([column[:0], *(column[span] for span in spans)])
