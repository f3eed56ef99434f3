"""A word-level tokenizer and small stores for the tests of the data pipeline."""

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from jhsae.data import Store, write_array

SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
WORDS = 60


def tokenizer() -> PreTrainedTokenizerFast:
    """Splits at spaces; ``<pad>`` 0, ``<eos>`` 1, ``<bos>`` 2, ``<unk>`` 3, then ``w4`` is token 4 and so on."""
    vocab = {token: i for i, token in enumerate(SPECIAL.values())}
    vocab |= {f"w{i}": i for i in range(len(vocab), WORDS)}
    words = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)


def numbered(folder, rows: int, embed: int = 3, **layout) -> Store:
    """A store whose row for source row i is (i, i, ..., i), in chunks of 8 and shards of 32 rows."""
    x = np.repeat(np.arange(rows, dtype=np.float32)[:, None], embed, axis=1)
    return write_array(folder, x, **({"shard_rows": 32, "chunk_rows": 8} | layout))
