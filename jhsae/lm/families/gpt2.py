"""GPT-2 in Equinox: learned positions, LayerNorm, one head of logits that is the embedding.

Block:  x += attention(norm_1(x));  x += W_out gelu(W_in h + b_in) + b_out, h = norm_2(x), with
norm(x) = (x - mean(x)) / std(x) * w + b. Layer 0 is the embedding plus that of the position, so a sequence cannot be
longer than there are positions. Scores are divided by the root of the head's width and, in some checkpoints, by the
number of the layer (from 1). Matrices are [inputs, outputs], as in Hugging Face files. Source: Radford et al. 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.errors import UserError
from jhsae.lm.base import AbstractConfig, AbstractLM, Family, Tap, untapped
from jhsae.lm.parts import attend, layer_norm, visible
from jhsae.lm.product import product
from jhsae.lm.settings import (
    FOREIGN,
    MOST_LAYERS,
    check_only,
    check_present,
    flag,
    head_size,
    real,
    whole,
)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),  # the same function
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}
ONLY: dict[str, tuple[Any, ...]] = {"add_cross_attention": (False,)}
NAMES = {
    "vocab": "vocab_size",
    "positions": "n_positions",
    "embed": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
}


@dataclass(frozen=True)
class GPT2Config(AbstractConfig):
    """Sizes and constants of a GPT-2 model.

    Args:
        vocab: Number of tokens.
        positions: The maximum sequence length.
        embed: Width of the residual stream.
        hidden: Width of the MLP.
        heads: Number of heads.
        kv_heads: Number of key and value heads, equal to `heads`.
        head_dim: Width of a head.
        depth: Number of blocks.
        norm_eps: Constant under the root of the norms.
        activation: Name of the activation function of the MLP.
        by_width: Whether scores are divided by the root of `head_dim`.
        by_layer: Whether scores are divided by the number of the layer.
        extras: ``("head",)`` where the head is a matrix of its own.
        model_type: That of config.json.
    """

    vocab: int
    positions: int
    embed: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    depth: int
    norm_eps: float
    activation: str
    by_width: bool
    by_layer: bool
    extras: tuple[str, ...]
    model_type: str = "gpt2"

    @property
    def layers(self) -> int:
        return self.depth

    @property
    def scales(self) -> tuple[float, ...]:
        """The factor of the scores of every layer."""
        width = self.head_dim**-0.5 if self.by_width else 1.0
        return tuple(width / (layer + 1 if self.by_layer else 1) for layer in range(self.depth))

    def first(self, layers: int) -> "GPT2Config":
        return replace(self, depth=layers)

    def position_settings(self) -> dict[str, int]:
        return {"n_positions": self.positions}

    def pieces(self) -> dict[str, int]:
        return super().pieces() | {"positions": self.positions, "qkv": 3}

    def to_hugging_face(self) -> dict[str, Any]:
        return {
            "architectures": ["GPT2LMHeadModel"],
            "n_inner": self.hidden,
            "activation_function": self.activation,
            "scale_attn_weights": self.by_width,
            "scale_attn_by_inverse_layer_idx": self.by_layer,
            "tie_word_embeddings": "head" not in self.extras,
            **{theirs: getattr(self, ours) for ours, theirs in NAMES.items()},
        }


def gpt2_config(settings: dict[str, Any], source: str) -> GPT2Config:
    """The config of a parsed config.json; `source` names it in errors: a missing or unsupported setting."""
    check_only(settings, FOREIGN | ONLY, source)
    check_present(settings, NAMES.values(), source)
    vocab, positions, embed, heads = (
        whole(settings, NAMES[name], source) for name in ("vocab", "positions", "embed", "heads")
    )
    activation = settings.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"{source}: activation_function is {str(activation)[:80]!r}, supported: {', '.join(ACTIVATIONS)}"
        )
    # reorder_and_upcast_attn asks for float32 scores, which they always are here.
    flag(settings, "reorder_and_upcast_attn", False, source)
    return GPT2Config(
        vocab=vocab,
        positions=positions,
        embed=embed,
        hidden=4 * embed if settings.get("n_inner") is None else whole(settings, "n_inner", source),
        heads=heads,
        kv_heads=heads,
        head_dim=head_size(embed, heads, source, "n_embd"),
        depth=whole(settings, "n_layer", source, least=0, most=MOST_LAYERS),
        norm_eps=real(settings, "layer_norm_epsilon", source),
        activation=activation,
        by_width=flag(settings, "scale_attn_weights", True, source),
        by_layer=flag(settings, "scale_attn_by_inverse_layer_idx", False, source),
        extras=() if flag(settings, "tie_word_embeddings", True, source) else ("head",),
    )


class GPT2Blocks(eqx.Module):
    """The weights of all blocks, stacked; matrices are [inputs, outputs].

    Args:
        qkv: Query, key and value projections, [layers, embed, 3, heads * head_dim].
        qkv_bias: Their biases.
        out: Output projection of the attention.
        out_bias: Its bias.
        mlp_up: MLP projection from the residual stream.
        mlp_up_bias: Its bias.
        mlp_down: MLP projection back to the residual stream.
        mlp_down_bias: Its bias.
        attention_norm: Weight of the norm before the attention.
        attention_norm_bias: Its bias.
        mlp_norm: Weight of the norm before the MLP.
        mlp_norm_bias: Its bias.
    """

    qkv: Float[Array, "layers embed qkv queries"]
    qkv_bias: Float[Array, "layers qkv queries"]
    out: Float[Array, "layers queries embed"]
    out_bias: Float[Array, "layers embed"]
    mlp_up: Float[Array, "layers embed hidden"]
    mlp_up_bias: Float[Array, "layers hidden"]
    mlp_down: Float[Array, "layers hidden embed"]
    mlp_down_bias: Float[Array, "layers embed"]
    attention_norm: Float[Array, "layers embed"]
    attention_norm_bias: Float[Array, "layers embed"]
    mlp_norm: Float[Array, "layers embed"]
    mlp_norm_bias: Float[Array, "layers embed"]


class GPT2(AbstractLM):
    """A GPT-2 decoder.

    Args:
        embedding: A row per token.
        blocks: The weights of all blocks.
        final_norm: Weight of the norm before the logits.
        config: Sizes and constants.
        matmul_dtype: The dtype to which the operands of matrix products are rounded.
        unroll: Compile the blocks one by one instead of as a loop.
        positions: A row per position, which is added to that of the token.
        final_norm_bias: Bias of the norm before the logits.
        head: The matrix of the logits, a row per token; None where the embedding serves as head too.
    """

    tensors: ClassVar[dict[str, str]] = {
        "embedding": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        "final_norm": "transformer.ln_f.weight",
        "final_norm_bias": "transformer.ln_f.bias",
        "head": "lm_head.weight",
        "blocks.qkv": "transformer.h.{}.attn.c_attn.weight",
        "blocks.qkv_bias": "transformer.h.{}.attn.c_attn.bias",
        "blocks.out": "transformer.h.{}.attn.c_proj.weight",
        "blocks.out_bias": "transformer.h.{}.attn.c_proj.bias",
        "blocks.mlp_up": "transformer.h.{}.mlp.c_fc.weight",
        "blocks.mlp_up_bias": "transformer.h.{}.mlp.c_fc.bias",
        "blocks.mlp_down": "transformer.h.{}.mlp.c_proj.weight",
        "blocks.mlp_down_bias": "transformer.h.{}.mlp.c_proj.bias",
        "blocks.attention_norm": "transformer.h.{}.ln_1.weight",
        "blocks.attention_norm_bias": "transformer.h.{}.ln_1.bias",
        "blocks.mlp_norm": "transformer.h.{}.ln_2.weight",
        "blocks.mlp_norm_bias": "transformer.h.{}.ln_2.bias",
    }
    prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")  # the hub's own gpt2 was saved without the head's class
    unread: ClassVar[tuple[str, ...]] = (r"h\.\d+\.attn\.(bias|masked_bias)",)  # the causal mask
    inputs_first: ClassVar[bool] = True
    embedding: Float[Array, "vocab embed"]
    blocks: GPT2Blocks
    final_norm: Float[Array, " embed"]
    config: GPT2Config = eqx.field(static=True)
    matmul_dtype: str = eqx.field(static=True, default="float32")
    unroll: bool = eqx.field(static=True, default=False)
    positions: Float[Array, "positions embed"] = eqx.field(kw_only=True)
    final_norm_bias: Float[Array, " embed"] = eqx.field(kw_only=True)
    head: Float[Array, "vocab embed"] | None = None

    def unembedding(self) -> Float[Array, "vocab embed"]:
        """Rows gamma with logit = gamma . x / std(x) + (a constant per token), as of `jhsae.lm.NeoX`: they are centred.

        The constant is head (or embedding) times the norm's bias. Every row sums to zero, so the rows' covariance is
        singular: a causal metric needs a shrinkage above 0.
        """
        rows = self._output().astype(jnp.float32) * self.final_norm.astype(jnp.float32)
        return rows - jnp.mean(rows, axis=-1, keepdims=True)

    def _output(self) -> Float[Array, "vocab embed"]:
        return self.embedding if self.head is None else self.head

    def _start(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        self.check_context(ids.shape[1])
        return self.embedding[ids].astype(jnp.float32) + self.positions[: ids.shape[1]].astype(jnp.float32)

    def _stacked(self) -> Any:
        return self.blocks, jnp.asarray(self.config.scales, jnp.float32)

    def _block(
        self, x: Float[Array, "batch time embed"], layer: Any, tap: Tap = untapped
    ) -> Float[Array, "batch time embed"]:
        block, scale = layer
        eps, dtype = self.config.norm_eps, self.matmul_dtype
        h = layer_norm(x, block.attention_norm, block.attention_norm_bias, eps)
        x = x + tap("attn_out", _attention(h, block, scale, self.config, dtype))
        h = tap("mlp_in", layer_norm(x, block.mlp_norm, block.mlp_norm_bias, eps))
        h = ACTIVATIONS[self.config.activation](_affine(h, block.mlp_up, block.mlp_up_bias, dtype))
        return x + tap("mlp_out", _affine(h, block.mlp_down, block.mlp_down_bias, dtype))

    def _head(self, x: Float[Array, "batch time embed"]) -> Float[Array, "batch time vocab"]:
        x = layer_norm(x, self.final_norm, self.final_norm_bias, self.config.norm_eps)
        return product("btd,vd->btv", self.matmul_dtype, x, self._output())


def _affine(x, weight, bias, dtype: str):
    """x weight + bias; the operands of the product are rounded to `dtype`."""
    return product("bti,io->bto", dtype, x, weight) + bias.astype(jnp.float32)


def _attention(h, block: GPT2Blocks, scale, config: GPT2Config, dtype: str):
    heads = (*h.shape[:2], config.heads, config.head_dim)
    fused = product("bti,inq->btnq", dtype, h, block.qkv) + block.qkv_bias.astype(jnp.float32)
    q, k, v = (fused[:, :, i].reshape(heads) for i in range(3))
    mask = visible(h.shape[1], None, jnp.asarray(False))
    return _affine(attend(q * scale, k, v, mask, dtype), block.out, block.out_bias, dtype)


FAMILY = Family(("gpt2",), gpt2_config, GPT2)
