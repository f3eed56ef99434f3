"""Prompts as token ids, padded on the right, and single tokens by their text.

A prompt opens with BOS where the tokenizer has one, as the sequences of a harvest do. Attention is causal, so what is
padded on the right changes nothing before it. Special tokens and padding keep their residual stream.
"""

from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jhsae.data import special_ids
from jhsae.data.framing import Framing
from jhsae.errors import UserError
from jhsae.features.token_text import token_text
from jhsae.lm import LanguageModel

Positions = Literal["all", "last"]


class Prompts(eqx.Module):
    """Token ids of several prompts.

    Args:
        ids: [prompts, time], padded on the right.
        lengths: the tokens of each prompt, [prompts].
        live: True where the SAE reads and writes the stream: no special token, no padding.
    """

    ids: Int[Array, "prompts time"]
    lengths: Int[Array, "prompts"]
    live: Bool[Array, "prompts time"]

    @property
    def last(self) -> Int[Array, "prompts"]:
        """The position of the last token of each prompt."""
        return self.lengths - 1

    def at(self, positions: Positions) -> Bool[Array, "prompts time"]:
        """Where edits apply: at every live position, or at the last token of a prompt."""
        if positions == "all":
            return self.live
        return self.live & (jnp.arange(self.ids.shape[1]) == self.last[:, None])

    def part(self, start: int, stop: int) -> "Prompts":
        """Prompts `start` to `stop`, padded as all of them are."""
        return Prompts(self.ids[start:stop], self.lengths[start:stop], self.live[start:stop])

    def tokens(self, prompt: int) -> list[int]:
        """The ids of one prompt, without padding."""
        return np.asarray(self.ids[prompt, : int(self.lengths[prompt])]).tolist()

    def lists(self) -> list[list[int]]:
        """The ids of every prompt, without padding."""
        return [self.tokens(i) for i in range(len(self.lengths))]


def tokenised(prompts: str | Sequence[str], model: LanguageModel) -> Prompts:
    """Token ids of prompts.

    Args:
        prompts: a text, or several.
        model: the language model and its tokenizer.

    Raises:
        UserError: no prompt, one without a token that the SAE reads, one longer than the model takes, or one that its
            tokenizer cannot read.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    first = Framing.of(model.tokenizer).first
    found = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"prompt {number} is {text!r:.80} ({type(text).__name__}), expected text; put it in quotes")
        own = _encoded(text, model.tokenizer)
        found.append(own if first is None or own[:1] == [first] else [first, *own])
    return of_ids(found, model)


def of_ids(prompts: Sequence[Sequence[int]], model: LanguageModel, room: int = 0) -> Prompts:
    """`Prompts` of token ids, with `room` more positions of padding.

    Args:
        prompts: the ids of each, BOS included.
        model: the language model and its tokenizer.
        room: positions after the longest prompt.

    Raises:
        UserError: as `tokenised`.
    """
    if not prompts:
        raise UserError("there is no prompt; write at least one, such as 'dog: a domestic'")
    special = special_ids(model.tokenizer)
    for number, ids in enumerate(prompts):
        if not set(ids) - set(special):
            raise UserError(f"prompt {number} is empty; write a text of at least one token that is not special")
        if max(ids) >= model.model.vocab or min(ids) < 0:
            raise UserError(
                f"prompt {number} holds token {max(ids)}, but the model has {model.model.vocab}; write text without it"
            )
        model.model.check_context(len(ids) + room)
    lengths = np.array([len(ids) for ids in prompts], np.int32)
    table = np.zeros((len(prompts), int(lengths.max()) + room), np.int32)
    for row, ids in zip(table, prompts, strict=True):
        row[: len(ids)] = ids
    live = ~np.isin(table, special) & (np.arange(table.shape[1]) < lengths[:, None])
    return Prompts(jnp.asarray(table), jnp.asarray(lengths), jnp.asarray(live))


def token_id(token: str | int, model: LanguageModel) -> int:
    """The id of a single token.

    Args:
        token: its text, with the space before it where it has one, or its id. Where no token reads so, the one that the
            tokenizer makes of it.
        model: the language model and its tokenizer.

    Raises:
        UserError: text of several tokens, or of none, or an id outside the vocabulary.
    """
    vocab = model.model.vocab
    if isinstance(token, int):
        if not 0 <= token < vocab:
            raise UserError(f"token is {token}, but the vocabulary has {vocab}; write an id from 0 to {vocab - 1}")
        return token
    ids = _encoded(token, model.tokenizer)
    if token_text(model.tokenizer, ids) != [
        token
    ]:  # such as Llama 2, which makes " the" of "the", and pieces of " the"
        known = sorted(i for i in model.tokenizer.get_vocab().values() if i < vocab)
        texts = token_text(model.tokenizer, known)
        ids = [i for i, text in zip(known, texts, strict=True) if text == token][:1] or ids
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id or ids[0] >= vocab:
        pieces = ", ".join(repr(text) for text in token_text(model.tokenizer, ids)) or "nothing"
        raise UserError(
            f"token is {token[:80]!r}, which is not one token of this model but {pieces[:200]}; write the text of one "
            "token, with the space before it, or its id"
        )
    return ids[0]


def _encoded(text: str, tokenizer: Any) -> list[int]:
    try:
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=False, verbose=False)]
    except Exception as error:  # the Rust part knows no narrower class
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} cannot read {text[:80]!r} ({' '.join(str(error).split())[:200]}); "
            "write another text"
        ) from error
