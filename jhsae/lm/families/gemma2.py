"""Gemma-2 in Equinox: the language model whose residual stream is harvested and spliced.

Block:  x += norm(attention(norm(x)));  x += norm(W_down (gelu(W_gate h) * W_up h)), h = norm(x),
with norm(x) = x / rms(x) * (1 + w). Attention has grouped queries, rotary positions, soft-capped scores and, on
some layers, a sliding window. Logits are soft-capped products with the embedding, or with a separate head in
checkpoints that have one. Layer 0 is the scaled embedding.
Source: Gemma Team 2024, arXiv 2408.00118.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.lm.base import AbstractLM, Family, Tap, untapped
from jhsae.lm.families.gemma2_config import Gemma2Config, gemma2_config
from jhsae.lm.parts import attend, linear, rms_norm, rotate, softcap, visible
from jhsae.lm.product import product
from jhsae.lm.rope import Rope


class Blocks(eqx.Module):
    """The weights of all blocks, stacked; matrices are [outputs, inputs] as in Hugging Face files.

    Args:
        q: Query projections, [layers, heads * head_dim, embed].
        k: Key projections, [layers, kv_heads * head_dim, embed].
        v: Value projections, of the same shape.
        o: Output projection of the attention.
        gate: MLP projection to which the activation function is applied.
        up: MLP projection that is multiplied by it.
        down: MLP projection back to the residual stream.
        attention_in: Weight of the norm before the attention.
        attention_out: Weight of the norm after it.
        mlp_in: Weight of the norm before the MLP.
        mlp_out: Weight of the norm after it.
    """

    q: Float[Array, "layers queries embed"]
    k: Float[Array, "layers keys embed"]
    v: Float[Array, "layers keys embed"]
    o: Float[Array, "layers embed queries"]
    gate: Float[Array, "layers hidden embed"]
    up: Float[Array, "layers hidden embed"]
    down: Float[Array, "layers embed hidden"]
    attention_in: Float[Array, "layers embed"]
    attention_out: Float[Array, "layers embed"]
    mlp_in: Float[Array, "layers embed"]
    mlp_out: Float[Array, "layers embed"]


class Gemma2(AbstractLM):
    """A Gemma-2 decoder; see the module's docstring.

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
        "blocks.q": "model.layers.{}.self_attn.q_proj.weight",
        "blocks.k": "model.layers.{}.self_attn.k_proj.weight",
        "blocks.v": "model.layers.{}.self_attn.v_proj.weight",
        "blocks.o": "model.layers.{}.self_attn.o_proj.weight",
        "blocks.gate": "model.layers.{}.mlp.gate_proj.weight",
        "blocks.up": "model.layers.{}.mlp.up_proj.weight",
        "blocks.down": "model.layers.{}.mlp.down_proj.weight",
        "blocks.attention_in": "model.layers.{}.input_layernorm.weight",
        "blocks.attention_out": "model.layers.{}.post_attention_layernorm.weight",
        "blocks.mlp_in": "model.layers.{}.pre_feedforward_layernorm.weight",
        "blocks.mlp_out": "model.layers.{}.post_feedforward_layernorm.weight",
    }
    embedding: Float[Array, "vocab embed"]
    blocks: Blocks
    final_norm: Float[Array, " embed"]
    config: Gemma2Config = eqx.field(static=True)
    matmul_dtype: str = eqx.field(static=True, default="float32")
    unroll: bool = eqx.field(static=True, default=False)
    head: Float[Array, "vocab embed"] | None = None

    def unembedding(self) -> Float[Array, "vocab embed"]:
        """Rows gamma with logit = softcap(gamma . x / rms(x)): head (or embedding) times (1 + final norm weight)."""
        return self._output().astype(jnp.float32) * _gain(self.final_norm)

    def _output(self) -> Float[Array, "vocab embed"]:
        return self.embedding if self.head is None else self.head

    def _start(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        return self.embedding[ids].astype(jnp.float32) * self.embed**0.5

    def _stacked(self) -> Any:
        return self.blocks, jnp.asarray(self.config.sliding, bool)

    def _block(
        self, x: Float[Array, "batch time embed"], layer: Any, tap: Tap = untapped
    ) -> Float[Array, "batch time embed"]:
        block, sliding = layer
        eps, dtype = self.config.norm_eps, self.matmul_dtype
        h = _attention(rms_norm(x, _gain(block.attention_in), eps), block, sliding, self.config, dtype)
        x = x + tap("attn_out", rms_norm(h, _gain(block.attention_out), eps))
        h = tap("mlp_in", rms_norm(x, _gain(block.mlp_in), eps))
        gate = jax.nn.gelu(linear(h, block.gate, None, dtype), approximate=True)
        h = linear(gate * linear(h, block.up, None, dtype), block.down, None, dtype)
        return x + tap("mlp_out", rms_norm(h, _gain(block.mlp_out), eps))

    def _head(self, x: Float[Array, "batch time embed"]) -> Float[Array, "batch time vocab"]:
        x = rms_norm(x, _gain(self.final_norm), self.config.norm_eps)
        return softcap(product("btd,vd->btv", self.matmul_dtype, x, self._output()), self.config.final_cap)


def _gain(weight: Float[Array, " embed"]) -> Float[Array, " embed"]:
    return 1 + weight.astype(jnp.float32)


def _attention(h, block: Blocks, sliding, config: Gemma2Config, dtype: str):
    heads = (*h.shape[:2], -1, config.head_dim)
    turn = Rope(config.rope_theta).frequencies(config.head_dim // 2)
    q = rotate(linear(h, block.q, None, dtype).reshape(heads) * config.query_pre_attn_scalar**-0.5, turn)
    k = rotate(linear(h, block.k, None, dtype).reshape(heads), turn)
    v = linear(h, block.v, None, dtype).reshape(heads)
    mask = visible(h.shape[1], config.window, sliding)
    return linear(attend(q, k, v, mask, dtype, config.attention_cap), block.o, None, dtype)


FAMILY = Family(("gemma2",), gemma2_config, Gemma2)
