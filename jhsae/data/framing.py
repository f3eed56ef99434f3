"""Special tokens: which ids they are, and where packing puts them; the one definition for harvest and evaluation.

Special are BOS, EOS and padding, as far as a tokenizer has them. Unknown words and further tokens that a tokenizer
calls special (tool calls, fill-in-the-middle) are ordinary: they stand for text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer


@dataclass(frozen=True)
class Framing:
    """What packing puts around text: `first` opens every sequence, `between` follows every document; None for nothing.

    As in SAELens, a tokenizer without BOS (Qwen) gives sequences of text alone, and one without EOS has BOS between
    documents. Where BOS and EOS are one token (GPT-2, Pythia), it does both.
    """

    first: int | None
    between: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> "Framing":
        """That of a Hugging Face tokenizer."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(bos, bos if eos is None else eos)


def opens_with_bos(manifest: Any) -> bool | None:
    """Whether the sequences of a store open with BOS, by its manifest; None where an older version wrote it."""
    tokenizer = manifest.tokenizer
    return tokenizer["first"] is not None if "first" in tokenizer else None


def special_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of BOS, EOS and padding, ascending; those that the tokenizer lacks are left out."""
    found = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return tuple(sorted(number for number in found if number is not None))


def ordinary(tokens: Integer[np.ndarray, "*shape"], tokenizer: Any) -> Bool[np.ndarray, "*shape"]:
    """True at every token that is not special: the positions whose activations are stored, and replaced in a splice."""
    return ~np.isin(tokens, special_ids(tokenizer))
