"""Tokens and sequences of a page, each written once and referred to by its index."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from jhsae.features.token_text import word
from jhsae.files.escaping import visible


class Pieces:
    """Tokens, numbered in the order in which they are first used."""

    def __init__(self, text: Callable[[Iterable[int]], list[str]], special: Collection[int]):
        """`text` turns token ids into strings; `special` are those of special tokens."""
        self._text, self._special = text, special
        self._places: dict[int, int] = {}

    def use(self, token: int) -> int:
        """The place of a token on the page."""
        return self._places.setdefault(token, len(self._places))

    def written(self, occurrences: Int64[np.ndarray, " vocab"] | None) -> dict[str, Any]:
        """Text as shown, text as searched, and `occurrences` among the measured rows, by place; special tokens."""
        ids = list(self._places)
        texts = self._text(ids)
        return {
            "pieces": [visible(text) for text in texts],
            "words": [word(text) for text in texts],
            "occurrences": [] if occurrences is None else occurrences[ids].tolist(),
            "special": [place for place, token in enumerate(ids) if token in self._special],
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
