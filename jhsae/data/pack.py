"""Packs documents into token sequences of one length.

The documents, shuffled through a bounded buffer and joined by EOS, form one stream; every sequence is BOS
followed by the next ``context - 1`` tokens of the stream, so no position is padding. Activations are stored
for the ordinary tokens alone: those at BOS, EOS and padding have norms and directions of their own kind.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt32
from tqdm import tqdm

from jhsae.errors import UserError

DOCUMENTS_PER_CALL = 512


def pack(
    documents: Iterable[str],
    tokenizer: Any,
    context: int,
    seed: int,
    *,
    rows: int | None = None,
    buffer: int = 10_000,
) -> UInt32[np.ndarray, "sequences context"]:
    """Token sequences of the documents, deterministic in `seed`; the last, incomplete one is left out.

    `rows` stops the reading as soon as the sequences hold that many ordinary tokens; ``None`` reads
    everything. `buffer` is how many documents the shuffle holds. `tokenizer` is a Hugging Face tokenizer.

    Raises:
        UserError: a context below 2, a tokenizer without BOS or EOS, or less text than one sequence.
    """
    if context < 2:
        raise UserError(f"context is {context}, expected at least 2: BOS and one token")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise UserError(f"the tokenizer {tokenizer.name_or_path} has no BOS or no EOS token; packing needs both")
    body = context - 1
    blocks: list[np.ndarray] = []
    rest = np.empty(0, np.uint32)
    held = 0
    with tqdm(total=rows, desc="tokenise", unit="token", unit_scale=True) as bar:
        for texts in _groups(shuffled(documents, seed, buffer), DOCUMENTS_PER_CALL):
            stream = np.concatenate([rest, _tokenise(texts, tokenizer, eos)])
            whole = len(stream) // body * body
            block = np.insert(stream[:whole].reshape(-1, body), 0, bos, axis=1)
            blocks.append(block)
            rest = stream[whole:]
            found = int(ordinary(block, tokenizer).sum())
            held += found
            bar.update(found)
            if rows is not None and held >= rows:
                break
    tokens = np.concatenate(blocks) if blocks else np.empty((0, context), np.uint32)
    if len(tokens) == 0:
        raise UserError(
            f"the text holds {len(rest)} tokens, fewer than one sequence of {body} after BOS; "
            f"write a context of at most {len(rest) + 1}, or name more text"
        )
    return tokens if rows is None else tokens[: _sequences_for(rows, tokens, tokenizer)]


def ordinary(tokens: UInt32[np.ndarray, "*shape"], tokenizer: Any) -> Bool[np.ndarray, "*shape"]:
    """True at every token that is not BOS, EOS or padding: the positions whose activations are stored."""
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return ~np.isin(tokens, sorted(special))


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


def _tokenise(texts: list[str], tokenizer: Any, eos: int) -> np.ndarray:
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return np.concatenate([np.array([*document, eos], np.uint32) for document in ids])


def _sequences_for(rows: int, tokens: np.ndarray, tokenizer: Any) -> int:
    """How many leading sequences hold `rows` ordinary tokens (all of them, when there are fewer)."""
    held = np.cumsum(ordinary(tokens, tokenizer).sum(axis=1))
    return min(int(np.searchsorted(held, rows)) + 1, len(tokens))
