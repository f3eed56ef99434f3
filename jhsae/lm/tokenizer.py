"""Tokenizers of a folder: their files are bounded before transformers reads them, and no code of the folder runs."""

import hashlib
import json
import os
from pathlib import Path
from types import NoneType
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jhsae.errors import UserError
from jhsae.files.bounded import JSON_BYTES, read_object, size_of

CONFIG = "tokenizer_config.json"
OBJECTS = ("tokenizer.json", CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
OTHERS = ("tokenizer.model", "spiece.model", "vocab.txt", "merges.txt", "chat_template.jinja")


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`.

    Raises:
        UserError: no tokenizer there, a file of it that is too large, damaged or no regular file, or one that asks for
            code of its own.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"no tokenizer.json in {folder}; copy the tokenizer of the model there")
    found = {name: read_object(folder / name) for name in OBJECTS if os.path.lexists(folder / name)}
    for name in OTHERS:
        if os.path.lexists(folder / name) and (size := size_of(folder / name)) > JSON_BYTES:
            raise UserError(f"{folder / name} has {size:,} bytes, expected at most {JSON_BYTES:,}; copy it again")
    settings = found.get(CONFIG, {})
    for name in _named_files(settings):
        if not isinstance(name, str) or "/" in name or "\\" in name:
            raise UserError(
                f"{folder / CONFIG} names the file {str(name)[:80]!r}, expected a file name; it was not opened"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        # Settings of the wrong type are found here rather than in the middle of a text.
        tokenizer([""], add_special_tokens=False)
        if any(type(getattr(tokenizer, name)) not in (int, NoneType) for name in SPECIAL):
            raise ValueError("a special token is no token")
        return tokenizer
    except BaseException as error:  # the Rust part panics with an exception that is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "auto_map" in settings:
            reason = "it asks for code of its own (auto_map), which is not run"
        raise UserError(f"the tokenizer in {folder} cannot be read ({reason}); copy it from the model again") from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab: int, folder: Path) -> None:
    """Raises `UserError` where an ordinary token of the tokenizer has no row in the model's embedding.

    Tokens that were added later may lie beyond it: some checkpoints have padding there, which no text contains.
    """
    added = set(tokenizer.get_added_vocab())
    word, largest = max(
        ((word, number) for word, number in tokenizer.get_vocab().items() if word not in added),
        key=lambda pair: pair[1],
        default=("", -1),
    )
    if largest >= vocab:
        raise UserError(
            f"the tokenizer in {folder} gives token {largest} ({word[:40]!r}), but config.json says vocab_size {vocab}"
            "; copy the tokenizer that belongs to the model"
        )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Size and hash of the vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return {"vocab": len(tokenizer), "sha256": hashlib.sha256(vocabulary).hexdigest()}


def _named_files(settings: dict[str, Any]) -> list[Any]:
    found = settings.get("fast_tokenizer_files", [])
    return found if isinstance(found, list) else [found]
