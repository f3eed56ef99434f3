"""The tokens of a page: those of a language model, those that a store keeps, or the rows of an array by their numbers.

An array has no language model. Where its store keeps token ids or text, contexts are made of these; else every row is
shown by its number, or by document and position, and nothing is said of tokens.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt32

from jhsae import lm
from jhsae.data import Store, special_ids
from jhsae.data.places import has_tokens
from jhsae.features.token_text import stored_text, texts


class Text(NamedTuple):
    """What is shown of the rows of a store.

    Args:
        tokens: Token ids of each sequence, as they are shown.
        ids: Token id of each measured row, as it is counted.
        text: Turns token ids into strings.
        special: Ids of special tokens.
        vocab: Number of token ids.
        known: Whether these are tokens, not rows.
    """

    tokens: UInt32[np.ndarray, "sequences context"]
    ids: Int32[np.ndarray, "rows"]
    text: Callable[[Iterable[int]], list[str]]
    special: frozenset[int]
    vocab: int
    known: bool = True


def text_of(store: Store, index: Int32[np.ndarray, "rows 3"], model: lm.LanguageModel | None) -> Text:
    """The tokens of the measured rows.

    Args:
        store: The store.
        index: (sequence, position, token id) of the measured rows.
        model: Its language model, or None.
    """
    tokens = store.tokens()
    if model is not None:
        special = frozenset(special_ids(model.tokenizer))
        return Text(tokens, index[:, 2], texts(model.tokenizer), special, model.model.vocab)
    if not has_tokens(store.manifest.dataset):
        return _rows(tokens, index)
    used, shown = np.unique(tokens, return_inverse=True)  # ids may be few and large
    text = stored_text(store.manifest.tokenizer, store.path)
    shown = shown.reshape(tokens.shape).astype(np.uint32)
    ids = shown[index[:, 0], index[:, 1]].astype(np.int32)
    return Text(shown, ids, lambda places: text(used[[*places]].tolist()), frozenset(), len(used))


def _rows(tokens: UInt32[np.ndarray, "sequences context"], index: Int32[np.ndarray, "rows 3"]) -> Text:
    """Rows by their numbers, for a store that knows no tokens."""
    sequences, context = tokens.shape
    shown = np.arange(sequences * context, dtype=np.uint32).reshape(tokens.shape)

    def text(places: Iterable[int]) -> list[str]:
        return [f"row {i}" if context == 1 else f"{i // context}:{i % context} " for i in places]

    return Text(shown, np.zeros(len(index), np.int32), text, frozenset(), 1, known=False)
