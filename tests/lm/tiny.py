"""A random Gemma-2 of four blocks (grouped queries, a window shorter than the text), a tokenizer, and ids."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jhsae import lm

TIME = 12
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "dog", "plant"]


def tiny() -> tuple[lm.Gemma2, PreTrainedTokenizerFast]:
    config = lm.Gemma2Config(
        vocab=31, embed=16, hidden=24, heads=4, kv_heads=2, head_dim=8, window=5,
        sliding=(True, False, True, False), query_pre_attn_scalar=8, rope_theta=100.0,
    )  # fmt: skip
    shapes = {
        "q": (32, 16), "k": (16, 16), "v": (16, 16), "o": (16, 32), "gate": (24, 16), "up": (24, 16),
        "down": (16, 24), "attention_in": (16,), "attention_out": (16,), "mlp_in": (16,), "mlp_out": (16,),
    }  # fmt: skip
    draw = np.random.default_rng(0).normal
    blocks = {name: jnp.asarray(draw(size=(4, *shape)) * 0.3, jnp.float32) for name, shape in shapes.items()}
    embedding = jnp.asarray(draw(size=(31, 16)) * 0.25, jnp.float32)
    final_norm = jnp.asarray(draw(size=16) * 0.3, jnp.float32)
    model = lm.Gemma2(embedding, lm.Blocks(**blocks), final_norm, config)
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{w[1:-1]}_token": w for w in WORDS[:4]}
    return model, PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def ids(vocab: int = 31) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(vocab, size=(2, TIME)), jnp.int32)


@eqx.filter_jit
def logits(model: lm.Gemma2, ids: jax.Array) -> jax.Array:
    return model(ids)


@eqx.filter_jit
def residual(model: lm.Gemma2, ids: jax.Array, layer: int) -> jax.Array:
    return model.residual(ids, layer)


@eqx.filter_jit
def logits_from(model: lm.Gemma2, x: jax.Array, layer: int) -> jax.Array:
    return model.logits_from(x, layer)
