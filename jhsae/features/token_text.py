"""The text of tokens: one function for every page, file and search that shows them.

The text of a token is what it adds inside a text: ``decode([a, token, b])`` without the decoded ``a`` and ``b``. So
``Ġwater`` and ``▁water`` are ``" water"``, a WordPiece ``##ing`` is ``"ing"``, and the texts of a sequence's tokens,
joined, are its decoded text, but for a space at its ends that some tokenizers drop. Bytes that are no complete UTF-8 by
themselves are written as ``\\xe6``, special tokens by name, and ids that the tokenizer does not know (those of a padded
embedding) as ``<token 50300>``.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Int32

from jhsae.data.places import vocabulary
from jhsae.errors import UserError

UNKNOWN = "<token {}>"
REPLACEMENT = "\ufffd"  # what a decoder writes in place of incomplete UTF-8


def token_text(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """The text of every token of `ids`, in order.

    Args:
        tokenizer: a Hugging Face tokenizer. One without a decoder does not say how its tokens are joined: a token of
            it is shown as its vocabulary entry. Fast tokenizers decode a vocabulary of 256,000 in about a second.
        ids: token ids; one outside the vocabulary is shown by its number.
    """
    ids = [int(i) for i in ids]
    pieces: list[str | None] = tokenizer.convert_ids_to_tokens(ids)
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    named = {i: UNKNOWN.format(i) if p is None else p for i, p in zip(ids, pieces, strict=True)}
    plain = [i for i, p in zip(ids, pieces, strict=True) if p is not None and i not in special]
    plain = list(dict.fromkeys(plain))
    decoded = dict(zip(plain, _decoded(tokenizer, plain), strict=True))
    texts = {i: _completed(text, named[i], added.get(i)) for i, text in decoded.items()}
    return [texts.get(i, named[i]) for i in ids]


def texts(tokenizer: Any) -> Callable[[Iterable[int]], list[str]]:
    """`token_text` of one tokenizer: a function from ids to their texts."""
    return partial(token_text, tokenizer)


def unnamed(ids: Iterable[int]) -> list[str]:
    """Tokens of which only the numbers are known, because no tokenizer is at hand."""
    return [UNKNOWN.format(int(i)) for i in ids]


def stored_text(tokenizer: dict[str, Any], where: str) -> Callable[[Iterable[int]], list[str]]:
    """The text of tokens that a store itself keeps; their numbers where it has none.

    Args:
        tokenizer: The entry of its manifest.
        where: The store, for messages.

    Raises:
        UserError: A vocabulary of another form.
    """
    known = vocabulary(tokenizer, where)
    if known is None:
        return unnamed
    return lambda ids: [known.get(str(int(i)), UNKNOWN.format(int(i))) for i in ids]


def word(text: str) -> str:
    """A token's text, or what was typed, as it is searched for: without spaces around it, in one case, composed (NFC).

    `fold` of browser/search.js does the same.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip()).casefold())


def word_ids(vocabulary: Iterable[str]) -> tuple[list[str], Int32[np.ndarray, " vocab"]]:
    """All searched forms of the texts of a vocabulary, and which each token has: tokens of one form are one word."""
    places: dict[str, int] = {}
    forms = [places.setdefault(word(text), len(places)) for text in vocabulary]
    return list(places), np.asarray(forms, np.int32)


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


def _decoded(tokenizer: Any, ids: list[int]) -> list[str]:
    """Each token decoded between two letters of one word, which are then cut off."""
    decode, joins = _decoder(tokenizer)
    around = _two_letters(tokenizer, decode) if joins else None
    if around is None:
        return decode([[i] for i in ids])
    first, last = around
    left, both = decode([[first], [first, last]])
    right = both.removeprefix(left)
    whole = decode([[first, i, last] for i in ids])
    texts = [_between(text, left, right) for text in whole]
    failed = [i for i, text in zip(ids, texts, strict=True) if text is None]
    alone = dict(zip(failed, decode([[i] for i in failed]), strict=True))
    return [alone[i] if text is None else text for i, text in zip(ids, texts, strict=True)]


def _two_letters(tokenizer: Any, decode: Any) -> tuple[int, int] | None:
    """Two tokens of one letter each that make one word, or None where the tokenizer has no such."""
    for word in map("".join, product("zqxjkvaeiou", repeat=2)):
        ids = tokenizer.encode(word, add_special_tokens=False)[-2:]
        if len(ids) == 2 and decode([ids])[0].strip() == word:
            return ids[0], ids[1]
    return None


def _decoder(tokenizer: Any) -> tuple[Any, bool]:
    """A function from many sequences of ids to their texts, and whether the tokenizer says how tokens are joined."""
    from transformers import PreTrainedTokenizerFast  # loaded by whoever has a tokenizer, and slow: not for the report

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        backend = tokenizer.backend_tokenizer
        return lambda many: backend.decode_batch(many, skip_special_tokens=False), backend.decoder is not None
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return lambda many: [tokenizer.decode(one, **options) for one in many], True


def _between(text: str, left: str, right: str) -> str | None:
    """`text` without its two ends; None where it does not have them."""
    if len(text) < len(left) + len(right) or not text.startswith(left) or not text.endswith(right):
        return None
    return text[len(left) : len(text) - len(right)]


def _completed(text: str, piece: str, added: str | None) -> str:
    """`text`, or where it is incomplete UTF-8, what is known of its bytes."""
    if REPLACEMENT not in text:
        return text
    if added is not None:  # added tokens are text already, which the decoder takes for bytes
        return added
    data = _bytes(piece)
    return text if data is None else data.decode("utf-8", "backslashreplace")


def _bytes(piece: str) -> bytes | None:
    """The bytes of a byte-fallback token ``<0xE6>`` or of a byte-level one (``æĹ¥``); None for any other."""
    if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
        return bytes.fromhex(found[1])
    letters = _byte_letters()
    return bytes(letters[c] for c in piece) if all(c in letters for c in piece) else None


@cache
def _byte_letters() -> dict[str, int]:
    """The letter of byte-level BPE (GPT-2) for every byte: itself where Latin-1 can be printed, else from U+0100."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(shown)]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}
