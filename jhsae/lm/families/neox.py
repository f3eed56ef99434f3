"""GPT-NeoX in Equinox, the family of the Pythia models.

Block, parallel:  x += attention(norm_1(x)) + mlp(norm_2(x));  or, in turn:  x += attention(norm_1(x)),
x += mlp(norm_2(x)); mlp(h) = W_out gelu(W_in h + b_in) + b_out, norm(x) = (x - mean(x)) / std(x) * w + b. The first
entries of each head have rotary positions; queries, keys and values come from one matrix, head by head. Layer 0 is the
embedding. Sources: Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023 (Pythia), arXiv 2304.01373.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.lm.base import AbstractLM, Family, Tap, untapped
from jhsae.lm.families.neox_config import NeoXConfig, neox_config
from jhsae.lm.parts import attend, layer_norm, linear, rotate, visible
from jhsae.lm.product import product


class NeoXBlocks(eqx.Module):
    """The weights of all blocks, stacked; matrices are [outputs, inputs] as in Hugging Face files.

    Args:
        qkv: Each head's query, key and value rows in turn, [layers, heads * 3 * head_dim, embed].
        out: Output projection of the attention.
        mlp_up: MLP projection from the residual stream.
        mlp_up_bias: Its bias.
        mlp_down: MLP projection back to the residual stream.
        mlp_down_bias: Its bias.
        attention_norm: Weight of the norm before the attention.
        attention_norm_bias: Its bias.
        mlp_norm: Weight of the norm before the MLP.
        mlp_norm_bias: Its bias.
        qkv_bias: Bias of `qkv`, or None.
        out_bias: Bias of `out`, or None.
    """

    qkv: Float[Array, "layers fused embed"]
    out: Float[Array, "layers embed queries"]
    mlp_up: Float[Array, "layers hidden embed"]
    mlp_up_bias: Float[Array, "layers hidden"]
    mlp_down: Float[Array, "layers embed hidden"]
    mlp_down_bias: Float[Array, "layers embed"]
    attention_norm: Float[Array, "layers embed"]
    attention_norm_bias: Float[Array, "layers embed"]
    mlp_norm: Float[Array, "layers embed"]
    mlp_norm_bias: Float[Array, "layers embed"]
    qkv_bias: Float[Array, "layers fused"] | None = None
    out_bias: Float[Array, "layers embed"] | None = None


class NeoX(AbstractLM):
    """A GPT-NeoX decoder.

    Args:
        embedding: A row per token.
        blocks: The weights of all blocks.
        final_norm: Weight of the norm before the logits.
        config: Sizes and constants.
        matmul_dtype: The dtype to which the operands of matrix products are rounded.
        unroll: Compile the blocks one by one instead of as a loop.
        final_norm_bias: Bias of the norm before the logits.
        head: The matrix of the logits, a row per token; None where the embedding serves as head too.
    """

    tensors: ClassVar[dict[str, str]] = {
        "embedding": "gpt_neox.embed_in.weight",
        "final_norm": "gpt_neox.final_layer_norm.weight",
        "final_norm_bias": "gpt_neox.final_layer_norm.bias",
        "head": "embed_out.weight",
        "blocks.qkv": "gpt_neox.layers.{}.attention.query_key_value.weight",
        "blocks.qkv_bias": "gpt_neox.layers.{}.attention.query_key_value.bias",
        "blocks.out": "gpt_neox.layers.{}.attention.dense.weight",
        "blocks.out_bias": "gpt_neox.layers.{}.attention.dense.bias",
        "blocks.mlp_up": "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight",
        "blocks.mlp_up_bias": "gpt_neox.layers.{}.mlp.dense_h_to_4h.bias",
        "blocks.mlp_down": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
        "blocks.mlp_down_bias": "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias",
        "blocks.attention_norm": "gpt_neox.layers.{}.input_layernorm.weight",
        "blocks.attention_norm_bias": "gpt_neox.layers.{}.input_layernorm.bias",
        "blocks.mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm.weight",
        "blocks.mlp_norm_bias": "gpt_neox.layers.{}.post_attention_layernorm.bias",
    }
    other_heads: ClassVar[tuple[str, ...]] = ("lm_head.weight",)  # its name in transformers 5
    unread: ClassVar[tuple[str, ...]] = (r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)",)
    embedding: Float[Array, "vocab embed"]
    blocks: NeoXBlocks
    final_norm: Float[Array, " embed"]
    config: NeoXConfig = eqx.field(static=True)
    matmul_dtype: str = eqx.field(static=True, default="float32")
    unroll: bool = eqx.field(static=True, default=False)
    final_norm_bias: Float[Array, " embed"] = eqx.field(kw_only=True)
    head: Float[Array, "vocab embed"] | None = None

    def unembedding(self) -> Float[Array, "vocab embed"]:
        """Rows gamma with logit = gamma . x / std(x) + (a constant per token): head times final norm weight, centred.

        The norm subtracts the mean of x; here it is subtracted from every row instead, which gives the same products.
        The constant, head times the norm's bias, does not depend on x and is omitted. std(x) = sqrt(var(x) + norm_eps).
        Every row sums to zero, so the rows' covariance is singular: a causal metric needs a shrinkage above 0.
        """
        rows = self._output().astype(jnp.float32) * self.final_norm.astype(jnp.float32)
        return rows - jnp.mean(rows, axis=-1, keepdims=True)

    def _output(self) -> Float[Array, "vocab embed"]:
        return self.embedding if self.head is None else self.head

    def _start(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        return self.embedding[ids].astype(jnp.float32)

    def _stacked(self) -> Any:
        return self.blocks

    def _block(
        self, x: Float[Array, "batch time embed"], layer: Any, tap: Tap = untapped
    ) -> Float[Array, "batch time embed"]:
        eps = self.config.norm_eps
        h = layer_norm(x, layer.attention_norm, layer.attention_norm_bias, eps)
        after = x + tap("attn_out", _attention(h, layer, self.config, self.matmul_dtype))
        h = layer_norm(x if self.config.parallel else after, layer.mlp_norm, layer.mlp_norm_bias, eps)
        h = tap("mlp_in", h)
        h = jax.nn.gelu(linear(h, layer.mlp_up, layer.mlp_up_bias, self.matmul_dtype), approximate=False)
        return after + tap("mlp_out", linear(h, layer.mlp_down, layer.mlp_down_bias, self.matmul_dtype))

    def _head(self, x: Float[Array, "batch time embed"]) -> Float[Array, "batch time vocab"]:
        x = layer_norm(x, self.final_norm, self.final_norm_bias, self.config.norm_eps)
        return product("btd,vd->btv", self.matmul_dtype, x, self._output())


def _attention(h, block: NeoXBlocks, config: NeoXConfig, dtype: str):
    fused = linear(h, block.qkv, block.qkv_bias, dtype).reshape(*h.shape[:2], config.heads, 3 * config.head_dim)
    q, k, v = jnp.split(fused, 3, axis=-1)
    turn = config.rope.frequencies(config.rotated // 2)
    mask = visible(h.shape[1], None, jnp.asarray(False))
    mixed = attend(rotate(q * config.head_dim**-0.5, turn), rotate(k, turn), v, mask, dtype)
    return linear(mixed, block.out, block.out_bias, dtype)


FAMILY = Family(("gpt_neox",), neox_config, NeoX)
