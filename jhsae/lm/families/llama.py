"""Llama, Mistral, Qwen 2 and Qwen 3 in Equinox: one decoder; the families differ in optional weights.

Block:  x += attention(norm(x));  x += W_down (silu(W_gate h) * W_up h), h = norm(x), with norm(x) = x / rms(x) * w.
Attention has grouped queries and rotary positions. Llama may have biases everywhere; Qwen 2 has them on q, k and v;
Qwen 3 normalises every head's query and key; Mistral, and some layers of Qwen, attend within a sliding window. Logits
are products with the embedding, or with a separate matrix. Layer 0 is the embedding. Sources: Llama 3, arXiv
2407.21783; Jiang et al. 2023, arXiv 2310.06825; Qwen 2, arXiv 2407.10671; Qwen 3, arXiv 2505.09388.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.lm.base import AbstractLM, Family, Tap, untapped
from jhsae.lm.families.llama_config import ARCHITECTURE, LlamaConfig, llama_config
from jhsae.lm.parts import attend, linear, rms_norm, rotate, visible
from jhsae.lm.product import product


class LlamaBlocks(eqx.Module):
    """The weights of all blocks, stacked; matrices are [outputs, inputs] as in Hugging Face files.

    Optional ones, which depend on the family, are None where the model has none (`LlamaConfig.extras`).

    Args:
        q: Query projections, [layers, heads * head_dim, embed].
        k: Key projections, [layers, kv_heads * head_dim, embed].
        v: Value projections, of the same shape.
        o: Output projection of the attention.
        gate: MLP projection to which the activation function is applied.
        up: MLP projection that is multiplied by it.
        down: MLP projection back to the residual stream.
        attention_in: Weight of the norm before the attention.
        mlp_in: Weight of the norm before the MLP.
        q_norm: Weight of the norm of every head's query.
        k_norm: Weight of the norm of every head's key.
        q_bias: Bias of `q`.
        k_bias: Bias of `k`.
        v_bias: Bias of `v`.
        o_bias: Bias of `o`.
        gate_bias: Bias of `gate`.
        up_bias: Bias of `up`.
        down_bias: Bias of `down`.
    """

    q: Float[Array, "layers queries embed"]
    k: Float[Array, "layers keys embed"]
    v: Float[Array, "layers keys embed"]
    o: Float[Array, "layers embed queries"]
    gate: Float[Array, "layers hidden embed"]
    up: Float[Array, "layers hidden embed"]
    down: Float[Array, "layers embed hidden"]
    attention_in: Float[Array, "layers embed"]
    mlp_in: Float[Array, "layers embed"]
    q_norm: Float[Array, "layers head_dim"] | None = None
    k_norm: Float[Array, "layers head_dim"] | None = None
    q_bias: Float[Array, "layers queries"] | None = None
    k_bias: Float[Array, "layers keys"] | None = None
    v_bias: Float[Array, "layers keys"] | None = None
    o_bias: Float[Array, "layers embed"] | None = None
    gate_bias: Float[Array, "layers hidden"] | None = None
    up_bias: Float[Array, "layers hidden"] | None = None
    down_bias: Float[Array, "layers embed"] | None = None


class Llama(AbstractLM):
    """A decoder of the Llama, Mistral or Qwen family.

    Args:
        embedding: A row per token.
        blocks: The weights of all blocks.
        final_norm: Weight of the norm before the logits.
        config: Sizes and constants.
        matmul_dtype: The dtype to which the operands of matrix products are rounded.
        unroll: Compile the blocks one by one instead of as a loop.
        head: The matrix of the logits, a row per token; None where the embedding serves as head too.
    """

    tensors: ClassVar[dict[str, str]] = {
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "head": "lm_head.weight",
        "blocks.attention_in": "model.layers.{}.input_layernorm.weight",
        "blocks.mlp_in": "model.layers.{}.post_attention_layernorm.weight",
        "blocks.q_norm": "model.layers.{}.self_attn.q_norm.weight",
        "blocks.k_norm": "model.layers.{}.self_attn.k_norm.weight",
        **{f"blocks.{n}": f"model.layers.{{}}.self_attn.{n}_proj.weight" for n in ("q", "k", "v", "o")},
        **{f"blocks.{n}_bias": f"model.layers.{{}}.self_attn.{n}_proj.bias" for n in ("q", "k", "v", "o")},
        **{f"blocks.{n}": f"model.layers.{{}}.mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
        **{f"blocks.{n}_bias": f"model.layers.{{}}.mlp.{n}_proj.bias" for n in ("gate", "up", "down")},
    }
    embedding: Float[Array, "vocab embed"]
    blocks: LlamaBlocks
    final_norm: Float[Array, " embed"]
    config: LlamaConfig = eqx.field(static=True)
    matmul_dtype: str = eqx.field(static=True, default="float32")
    unroll: bool = eqx.field(static=True, default=False)
    head: Float[Array, "vocab embed"] | None = None

    def unembedding(self) -> Float[Array, "vocab embed"]:
        """Rows gamma with logit = gamma . x / rms(x): the head (or embedding, if tied) times the final norm weight."""
        head = self.embedding if self.head is None else self.head
        return head.astype(jnp.float32) * self.final_norm.astype(jnp.float32)

    def _start(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        return self.embedding[ids].astype(jnp.float32)

    def _stacked(self) -> Any:
        return self.blocks, jnp.asarray(self.config.sliding, bool)

    def _block(
        self, x: Float[Array, "batch time embed"], layer: Any, tap: Tap = untapped
    ) -> Float[Array, "batch time embed"]:
        block, sliding = layer
        eps, dtype = self.config.norm_eps, self.matmul_dtype
        h = rms_norm(x, block.attention_in, eps)
        x = x + tap("attn_out", _attention(h, block, sliding, self.config, dtype))
        h = tap("mlp_in", rms_norm(x, block.mlp_in, eps))
        gate = jax.nn.silu(linear(h, block.gate, block.gate_bias, dtype))
        h = gate * linear(h, block.up, block.up_bias, dtype)
        return x + tap("mlp_out", linear(h, block.down, block.down_bias, dtype))

    def _head(self, x: Float[Array, "batch time embed"]) -> Float[Array, "batch time vocab"]:
        x = rms_norm(x, self.final_norm, self.config.norm_eps)
        return product("btd,vd->btv", self.matmul_dtype, x, self.embedding if self.head is None else self.head)


def _attention(h, block: LlamaBlocks, sliding, config: LlamaConfig, dtype: str):
    heads = (*h.shape[:2], -1, config.head_dim)
    turn = config.rope.frequencies(config.head_dim // 2)
    q = linear(h, block.q, block.q_bias, dtype).reshape(heads)
    k = linear(h, block.k, block.k_bias, dtype).reshape(heads)
    v = linear(h, block.v, block.v_bias, dtype).reshape(heads)
    q = q if block.q_norm is None else rms_norm(q, block.q_norm, config.norm_eps)
    k = k if block.k_norm is None else rms_norm(k, block.k_norm, config.norm_eps)
    mask = visible(h.shape[1], config.window, sliding)
    mixed = attend(rotate(q * config.head_dim**-0.5, turn), rotate(k, turn), v, mask, dtype)
    return linear(mixed, block.o, block.o_bias, dtype)


FAMILY = Family(tuple(ARCHITECTURE), llama_config, Llama)
