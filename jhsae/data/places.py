"""Documents, positions and tokens of the rows of an array.

A store keeps (sequence, position, token id) for every row and the token ids of every sequence. Of an array these come
from its own axes, [docs, positions, embed], or from `positions`, which begin again with every document; without either
each row is a document of its own. Strings are kept once each, as a vocabulary by token id.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from jhsae.errors import UserError
from jhsae.files.bounded import MIB
from jhsae.files.forms import TEXT, Each, check
from jhsae.ranges import INT32

TOKEN_IDS = 2**24
VOCABULARY, VOCABULARY_BYTES = 1_000_000, 8 * MIB  # strings of a manifest, which is read as one JSON text
PLACES_PER_ROW = 64  # of documents of different lengths, which are kept at the length of the longest


@dataclass(frozen=True, eq=False)
class Places:
    """The places of the rows of an array.

    Args:
        index: (sequence, position, token id) of each row; -1 where a row is left out.
        tokens: Token ids of each sequence, 0 where no row says.
        vocabulary: Token id, in digits, -> text; None where there is none.
        known: What was given: "ids", "text", "ids and text", or "" where nothing was.
    """

    index: Int32[np.ndarray, "rows 3"]
    tokens: UInt32[np.ndarray, "sequences context"]
    vocabulary: dict[str, str] | None
    known: str

    @property
    def kept(self) -> Int64[np.ndarray, "kept"]:
        """The numbers of the rows that are stored."""
        return np.flatnonzero(self.index[:, 1] >= 0)

    def dataset(self) -> dict[str, Any]:
        """What the manifest says of them beside the source; nothing for rows without a text."""
        gaps = len(self.kept) < self.tokens.size
        return ({"tokens": self.known} if self.known else {}) | ({"gaps": True} if self.known and gaps else {})


def has_tokens(dataset: dict[str, Any]) -> bool:
    """Whether a store, by the ``dataset`` of its manifest, knows the tokens of its rows: an array may have none."""
    return dataset.get("source") != "array" or "tokens" in dataset


def vocabulary(tokenizer: dict[str, Any], where: str) -> dict[str, str] | None:
    """Token id, in digits, -> text, where a store keeps it; by the ``tokenizer`` of its manifest.

    Raises:
        UserError: One of another form.
    """
    if (known := tokenizer.get("vocabulary")) is not None:
        check(known, Each(TEXT), where, "tokenizer.vocabulary")
    return known


def places_of(
    axes: tuple[int, ...],
    tokens: Any = None,
    positions: Any = None,
    text: Any = None,
) -> Places:
    """The places of the rows of an array.

    Args:
        axes: The axes of the array before the last: (rows,) or (docs, positions).
        tokens: Token id of each row, in these axes or flat.
        positions: Position of each row in its document; a negative one leaves the row out (padding). Of rows without
            document axes a new document begins where it does not rise.
        text: The text of each row's token.

    Raises:
        UserError: Another number of values than rows, values that are no token ids or positions, two rows at one place,
            one token id with two texts.
    """
    rows = int(np.prod(axes))
    if rows > INT32:
        raise UserError(f"x has {rows:,} rows, expected at most {INT32:,}; write several stores")
    ids = None if tokens is None else _whole(tokens, rows, "tokens", 0, TOKEN_IDS)
    vocabulary = None
    if text is not None:
        ids, vocabulary = _with_text(_strings(text, rows), ids)
    sequence, position = _documents(axes, positions)
    kept = position >= 0
    if not kept.any():
        raise UserError("every position is negative, which leaves all rows out; write positions from 0 on")
    context, sequences = int(position.max()) + 1, int(sequence.max()) + 1
    if sequences * context > max(PLACES_PER_ROW * rows, TOKEN_IDS):
        raise UserError(
            f"positions go up to {context - 1:,} in {sequences:,} documents of {rows:,} rows, expected positions that "
            "count the rows of a document; write them from 0 on"
        )
    index = np.stack([sequence, position, np.zeros(rows, np.int64) if ids is None else ids], axis=1).astype(np.int32)
    index[~kept] = -1
    table = np.zeros((sequences, context), np.uint32)
    table[sequence[kept], position[kept]] = index[kept, 2]
    known = " and ".join(word for word, given in (("ids", tokens is not None), ("text", text is not None)) if given)
    return Places(index, table, vocabulary, known)


def _documents(axes: tuple[int, ...], positions: Any) -> tuple[np.ndarray, np.ndarray]:
    """The sequence and the position of each row, the latter negative for a row that is left out."""
    rows = int(np.prod(axes))
    if positions is None:
        return np.divmod(np.arange(rows), axes[1]) if len(axes) == 2 else (np.arange(rows), np.zeros(rows, np.int64))
    position = np.maximum(_whole(positions, rows, "positions", None, INT32), -1)
    kept = np.flatnonzero(position >= 0)
    before, here = position[kept[:-1]], position[kept[1:]]
    sequence = np.zeros(rows, np.int64)
    if len(axes) == 1:
        sequence[kept[1:]] = np.cumsum(here <= before)
        return sequence, position
    document = np.arange(rows) // axes[1]
    clash = (here <= before) & (document[kept[1:]] == document[kept[:-1]])
    if clash.any():
        at = kept[1:][int(np.argmax(clash))]
        raise UserError(
            f"positions of document {document[at]} do not rise: {position[at]} at row {at % axes[1]} of it; write the "
            "position of each token, and -1 at padding"
        )
    sequence[kept] = np.unique(document[kept], return_inverse=True)[1]  # a document that is all padding has no number
    return sequence, position


def _whole(values: Any, rows: int, name: str, least: int | None, end: int) -> Int64[np.ndarray, "rows"]:
    """Whole numbers, one per row."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    found = np.asarray(values)
    if found.dtype.kind not in "iu":
        raise UserError(f"{name} holds {found.dtype}, expected whole numbers, one for each row")
    found = found.reshape(-1)
    if len(found) != rows:
        raise UserError(f"{name} holds {len(found):,} numbers, but x has {rows:,} rows; write one for each row")
    low, high = (int(found.min()), int(found.max())) if rows else (0, 0)
    if high >= end or (least is not None and low < least):
        wrong = high if high >= end else low
        raise UserError(f"{name} holds {wrong:,}, expected numbers from {least or 0} to {end - 1:,}")
    return found.astype(np.int64)


def _strings(text: Any, rows: int) -> list[str]:
    found = np.asarray(text, object).reshape(-1).tolist()
    if len(found) != rows:
        raise UserError(f"text holds {len(found):,} strings, but x has {rows:,} rows; write one for each row")
    for number, value in enumerate(found):
        if not isinstance(value, str):
            raise UserError(f"text has a {type(value).__name__} for row {number}, expected a string for each row")
    return [one.encode("utf-8", "backslashreplace").decode() for one in found]  # half a surrogate pair is no text


def _with_text(text: list[str], ids: np.ndarray | None) -> tuple[np.ndarray, dict[str, str]]:
    """Token ids, those of the strings in the order of their first use where there are none, and the text of each."""
    if ids is None:
        numbers: dict[str, int] = {}
        ids = np.fromiter((numbers.setdefault(one, len(numbers)) for one in text), np.int64, len(text))
    found: dict[str, str] = {}
    for number, one in zip(ids.tolist(), text, strict=True):
        if found.setdefault(str(number), one) != one:
            raise UserError(
                f"token {number} has two texts, {found[str(number)][:40]!r} and {one[:40]!r}; write one text for each "
                "token id, or no token ids"
            )
    size = sum(len(one.encode()) for one in found.values())
    if len(found) > VOCABULARY or size > VOCABULARY_BYTES:
        raise UserError(
            f"text holds {len(found):,} different strings of {size:,} bytes, expected at most {VOCABULARY:,} of "
            f"{VOCABULARY_BYTES:,}; write the text of tokens, not of documents, or leave it out"
        )
    return ids, found
