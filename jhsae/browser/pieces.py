"""Tokens and sequences of a page, each written once and referred to by its index."""

from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from jhsae.data import special_ids
from jhsae.features.token_text import token_text, word
from jhsae.files.escaping import visible


class Pieces:
    """Tokens, numbered in the order in which they are first used."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._places: dict[int, int] = {}

    def use(self, token: int) -> int:
        """The place of a token on the page."""
        return self._places.setdefault(token, len(self._places))

    def written(self, occurrences: Int64[np.ndarray, " vocab"]) -> dict[str, Any]:
        """Text as shown, text as searched, and `occurrences` among the measured rows, by place; special tokens."""
        ids, special = list(self._places), set(special_ids(self._tokenizer))
        texts = token_text(self._tokenizer, ids)
        return {
            "pieces": [visible(text) for text in texts],
            "words": [word(text) for text in texts],
            "occurrences": occurrences[ids].tolist(),
            "special": [place for place, token in enumerate(ids) if token in special],
        }


class Sequences:
    """Sequences, numbered like `Pieces`, and where in them nothing was measured."""

    def __init__(
        self,
        tokens: UInt32[np.ndarray, "sequences context"],
        index: Int32[np.ndarray, "rows 3"],
        pieces: Pieces,
    ):
        """`index` holds (sequence, position, token) of the measured rows."""
        self._tokens, self._pieces = tokens, pieces
        self._measured = np.zeros(tokens.shape, bool)
        self._measured[index[:, 0], index[:, 1]] = True
        self._places: dict[int, int] = {}

    def use(self, sequence: int) -> int:
        """The place of a sequence on the page."""
        return self._places.setdefault(sequence, len(self._places))

    def written(self) -> dict[str, Any]:
        """The tokens of every sequence used, and the positions that were not measured."""
        return {
            "sequences": [[self._pieces.use(int(t)) for t in self._tokens[s]] for s in self._places],
            "unmeasured": [np.flatnonzero(~self._measured[s]).tolist() for s in self._places],
        }
