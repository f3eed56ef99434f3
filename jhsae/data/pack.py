"""Packs documents into token sequences of one length.

The documents, shuffled through a bounded buffer and each followed by EOS, form one stream; every sequence is BOS
followed by the next ``context - 1`` tokens of the stream, so no position is padding. A tokenizer without BOS gives
sequences of ``context`` tokens of the stream (`jhsae.data.framing`). Activations are stored for the ordinary tokens
alone: those at BOS, EOS and padding are outliers in norm and direction.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt32
from tqdm import tqdm

from jhsae.data.framing import Framing, ordinary
from jhsae.errors import UserError

DOCUMENTS_PER_CALL = 512


class Packed(NamedTuple):
    """Token sequences, and the number of documents that end in them."""

    tokens: UInt32[np.ndarray, "sequences context"]
    documents: int


def pack(
    documents: Iterable[str],
    tokenizer: Any,
    context: int,
    seed: int,
    *,
    rows: int | None = None,
    buffer: int = 10_000,
    vocab: int | None = None,
) -> UInt32[np.ndarray, "sequences context"]:
    """Packs documents into token sequences.

    Args:
        documents: Texts.
        tokenizer: A Hugging Face tokenizer.
        context: Tokens of a sequence, at least 2.
        seed: Determines the order of the documents.
        rows: Stop once the sequences have that many ordinary tokens; None reads everything.
        buffer: Documents in the shuffle buffer.
        vocab: Size of the model's embedding; larger token ids are an error.

    Returns:
        Token ids [sequences, context]; the last, incomplete sequence is dropped.

    Raises:
        UserError: `context` is below 2, the text is shorter than one sequence or has no ordinary token, or a token id
            is outside `vocab`.
    """
    return packed(documents, tokenizer, context, seed, rows=rows, buffer=buffer, vocab=vocab).tokens


def packed(
    documents: Iterable[str],
    tokenizer: Any,
    context: int,
    seed: int,
    *,
    rows: int | None = None,
    buffer: int = 10_000,
    vocab: int | None = None,
) -> Packed:
    """As `pack`, with the number of documents that end in the sequences; arguments and errors are those of `pack`."""
    if context < 2:
        raise UserError(f"context is {context}, expected at least 2: BOS and one token")
    framing = Framing.of(tokenizer)
    body = context if framing.first is None else context - 1
    if vocab is not None and framing.first is not None and framing.first >= vocab:
        raise _unknown_token(tokenizer, "opens every sequence with", framing.first, vocab)
    blocks: list[np.ndarray] = []
    ends: list[np.ndarray] = []  # True at the last token of a document, in the shape of the blocks
    rest, rest_ends = np.empty(0, np.uint32), np.empty(0, bool)
    held = 0
    with tqdm(total=rows, desc="tokenise", unit="token", unit_scale=True, disable=None) as bar:
        for texts in _groups(shuffled(documents, seed, buffer), DOCUMENTS_PER_CALL):
            found, found_ends = _tokenise(texts, tokenizer, framing.between, vocab)
            stream, stream_ends = np.concatenate([rest, found]), np.concatenate([rest_ends, found_ends])
            whole = len(stream) // body * body
            block = stream[:whole].reshape(-1, body)
            ends.append(stream_ends[:whole].reshape(-1, body))
            if framing.first is not None:
                block = np.insert(block, 0, framing.first, axis=1)
            blocks.append(block)
            rest, rest_ends = stream[whole:], stream_ends[whole:]
            count = int(ordinary(block, tokenizer).sum())
            held += count
            bar.update(count)
            if rows is not None and held >= rows:
                break
    tokens = np.concatenate(blocks) if blocks else np.empty((0, context), np.uint32)
    if len(tokens) == 0:
        after = "" if framing.first is None else " after BOS"
        raise UserError(
            f"the text holds {len(rest)} tokens, fewer than one sequence of {body}{after}; "
            f"write a context of at most {len(rest) + context - body}, or name more text"
        )
    if held == 0:
        raise UserError(
            f"the text holds {tokens.size} tokens, none of them ordinary (all BOS, EOS or padding); name another text"
        )
    kept = len(tokens) if rows is None else _sequences_for(rows, tokens, tokenizer)
    return Packed(tokens[:kept], int(np.concatenate(ends)[:kept].sum()))


def shuffled(documents: Iterable[str], seed: int, buffer: int) -> Iterator[str]:
    """The documents in random order: each is drawn from a buffer, and replaced there by the next to come."""
    rng = random.Random(seed)
    iterator = iter(documents)
    held = list(islice(iterator, buffer))
    for document in iterator:
        i = rng.randrange(len(held))
        yield held[i]
        held[i] = document
    rng.shuffle(held)
    yield from held


def _groups(documents: Iterator[str], size: int) -> Iterator[list[str]]:
    while group := list(islice(documents, size)):
        yield group


def _tokenise(
    texts: list[str], tokenizer: Any, between: int | None, vocab: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of documents, each followed by `between`, and which of them are the last of a document."""
    try:
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    except Exception as error:  # the Rust part knows no narrower class
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} cannot read the text ({' '.join(str(error).split())[:200]}); "
            "write a model whose tokenizer has a token for unknown words, or another text"
        ) from error
    after = [] if between is None else [between]
    parts = [np.array([*document, *after], np.uint32) for document in ids]
    tokens = np.concatenate(parts)
    if vocab is not None and len(tokens) and (largest := int(tokens.max())) >= vocab:
        raise _unknown_token(tokenizer, "gives", largest, vocab)
    ends = np.zeros(len(tokens), bool)
    ends[np.cumsum([len(part) for part in parts if len(part)]) - 1] = True
    return tokens, ends


def _unknown_token(tokenizer: Any, does: str, token: int, vocab: int) -> UserError:
    word = str(tokenizer.convert_ids_to_tokens(token))[:40]
    return UserError(
        f"the tokenizer {tokenizer.name_or_path} {does} token {token} ({word!r}), but the model has {vocab} tokens; "
        "copy the tokenizer that belongs to the model"
    )


def _sequences_for(rows: int, tokens: np.ndarray, tokenizer: Any) -> int:
    """How many leading sequences hold `rows` ordinary tokens (all of them, when there are fewer)."""
    held = np.cumsum(ordinary(tokens, tokenizer).sum(axis=1))
    return min(int(np.searchsorted(held, rows)) + 1, len(tokens))
