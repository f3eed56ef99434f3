"""Special tokens: their ids and their positions in packed sequences; shared by harvest and evaluation.

Special are BOS, EOS and padding, as far as a tokenizer has them. Unknown words and further tokens that a tokenizer
calls special (tool calls, fill-in-the-middle) are ordinary: they represent text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer


@dataclass(frozen=True)
class Framing:
    """Special tokens that packing inserts.

    As in SAELens, a tokenizer without BOS (Qwen) gives sequences of text alone, and one without EOS has BOS between
    documents. Where BOS and EOS are one token (GPT-2, Pythia), it does both.

    Args:
        first: The token that opens every sequence, or None.
        between: The token that follows every document, or None.
    """

    first: int | None
    between: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> "Framing":
        """The framing of a Hugging Face tokenizer."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(bos, bos if eos is None else eos)


def opens_with_bos(manifest: Any) -> bool | None:
    """Whether the sequences of a store open with BOS, by its manifest; None where an older version wrote it."""
    tokenizer = manifest.tokenizer
    return tokenizer["first"] is not None if "first" in tokenizer else None


def special_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids of the special tokens of a tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Returns:
        The ids of BOS, EOS and padding that it has, ascending.
    """
    found = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return tuple(sorted(number for number in found if number is not None))


def ordinary(tokens: Integer[np.ndarray, "*shape"], tokenizer: Any) -> Bool[np.ndarray, "*shape"]:
    """Mask of the tokens that are not special.

    Args:
        tokens: Token ids, any shape.
        tokenizer: A Hugging Face tokenizer.

    Returns:
        True at positions that are stored by a harvest and replaced by a splice; the shape of `tokens`.
    """
    return ~np.isin(tokens, special_ids(tokenizer))
