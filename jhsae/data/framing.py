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
    """Special tokens that packing inserts: `first` opens every sequence, `between` follows every document.

    As in SAELens, a tokenizer without BOS (Qwen) gives sequences of text alone, and one without EOS has BOS between
    documents. Where BOS and EOS are one token (GPT-2, Pythia), it does both.
    """

    first: int | None
    between: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> "Framing":
        """The framing of a Hugging Face tokenizer."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(bos, bos if eos is None else eos)


def special_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids of BOS, EOS and padding, ascending, as far as the tokenizer has them."""
    found = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return tuple(sorted(number for number in found if number is not None))


def ordinary(tokens: Integer[np.ndarray, "*shape"], tokenizer: Any) -> Bool[np.ndarray, "*shape"]:
    """Mask of the tokens that are not special: positions that are stored by a harvest and replaced by a splice."""
    return ~np.isin(tokens, special_ids(tokenizer))
