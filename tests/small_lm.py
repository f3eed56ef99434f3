"""A random language model that is harvested in a second, and the rows of a store in the order of the text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jhsae import lm
from jhsae.data import Store

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
VOCAB, EMBED, LAYER, CONTEXT = 40, 16, 1, 10


def save_model_and_text(folder: Path, documents: int, shortest: int = 1) -> Path:
    """`folder` with ``lm/`` and ``text.txt``, whose documents have `shortest` to 11 words."""
    save_language_model(folder / "lm")
    rng = np.random.default_rng(1)
    written = [" ".join(f"w{w}" for w in rng.integers(4, VOCAB, rng.integers(shortest, 12))) for _ in range(documents)]
    (folder / "text.txt").write_text("\n\n".join(written))
    return folder


def save_language_model(folder: Path) -> None:
    """A random Gemma-2 of two blocks with a tokenizer of words ``w4`` to ``w39``."""
    config = lm.Gemma2Config(
        vocab=VOCAB, embed=EMBED, hidden=24, heads=2, kv_heads=1, head_dim=8, window=4,
        sliding=(True, False), query_pre_attn_scalar=8,
    )  # fmt: skip
    shapes = {
        "q": (16, 16), "k": (8, 16), "v": (8, 16), "o": (16, 16), "gate": (24, 16), "up": (24, 16),
        "down": (16, 24), "attention_in": (16,), "attention_out": (16,), "mlp_in": (16,), "mlp_out": (16,),
    }  # fmt: skip
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.3, shape).astype(np.float32))

    blocks = lm.Blocks(**{name: draw(2, *shape) for name, shape in shapes.items()})
    words = {w: i for i, w in enumerate([*SPECIAL, *(f"w{i}" for i in range(4, VOCAB))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{s[1:-1]}_token": s for s in SPECIAL})
    lm.save(lm.Gemma2(draw(VOCAB, EMBED), blocks, draw(EMBED), config), tokenizer, folder, jnp.float32)


def rows_in_order(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """(activations, index) sorted by sequence and position."""
    index = store.index(0, store.rows)
    order = np.lexsort((index[:, 1], index[:, 0]))
    return store.read(0, store.rows)[order], index[order]
