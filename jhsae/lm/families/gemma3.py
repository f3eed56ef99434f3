"""Gemma-3 in Equinox, text alone: the language model of Gemma3ForCausalLM and of Gemma3ForConditionalGeneration.

Block:  x += norm(attention(norm(x)));  x += norm(W_down (gelu(W_gate h) * W_up h)), h = norm(x),
with norm(x) = x / rms(x) * (1 + w). Attention has grouped queries whose heads, as those of the keys, are normalised
before their rotary positions; there are no soft caps. Local blocks attend within a sliding window and have rotary
positions of a low base; global ones have a high base, scaled in the larger models. Layer 0 is the scaled embedding.
Source: Gemma Team 2025, arXiv 2503.19786.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jhsae.errors import UserError
from jhsae.lm.base import AbstractConfig, AbstractLM, Family, Tap, untapped
from jhsae.lm.parts import attend, linear, rms_norm, rotate, visible
from jhsae.lm.product import product
from jhsae.lm.rope import AbstractRope
from jhsae.lm.rope import from_hugging_face as rope_from_hugging_face
from jhsae.lm.settings import (
    FOREIGN,
    SLIDING,
    check_head_dim,
    check_heads,
    check_only,
    check_present,
    flag,
    layer_count,
    layer_types,
    positions,
    real,
    type_names,
    whole,
)

# Supported values of settings; the first of each is the default.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
    "partial_rotary_factor": (None, 1.0),
}
NAMES = {
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "window": "sliding_window",
    "query_pre_attn_scalar": "query_pre_attn_scalar",
}
# The config.json of a model of text and images leaves out what is as in transformers' Gemma3TextConfig.
DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
}
# The rotary positions of each kind of layer: the setting of the base where rope_parameters has none, and its default.
BASES = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
TEXT = "gemma3_text"


@dataclass(frozen=True)
class Gemma3Config(AbstractConfig):
    """Sizes and constants of the language model of a Gemma-3.

    Args:
        vocab: Number of tokens.
        embed: Width of the residual stream.
        hidden: Width of the MLP.
        heads: Number of query heads.
        kv_heads: Number of key and value heads, a divisor of `heads`.
        head_dim: Width of a head.
        window: Tokens that a query of a local block attends to, its own included.
        sliding: For each block whether it is local.
        query_pre_attn_scalar: Queries are divided by its root.
        norm_eps: Constant under the root of the norms.
        local_rope: The rotary positions of local blocks.
        global_rope: Those of the others.
        extras: ``("head",)`` where the head is a matrix of its own.
        model_type: That of config.json.
        positions: The maximum sequence length; None where config.json has none.
    """

    vocab: int
    embed: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    sliding: tuple[bool, ...]
    query_pre_attn_scalar: int
    norm_eps: float
    local_rope: AbstractRope
    global_rope: AbstractRope
    extras: tuple[str, ...]
    model_type: str = TEXT
    positions: int | None = None

    @property
    def layers(self) -> int:
        return len(self.sliding)

    def first(self, layers: int) -> "Gemma3Config":
        return replace(self, sliding=self.sliding[:layers])

    def to_hugging_face(self) -> dict[str, Any]:
        ropes = {"full_attention": self.global_rope, "sliding_attention": self.local_rope}
        return {
            "architectures": ["Gemma3ForCausalLM"],
            "num_hidden_layers": self.layers,
            "layer_types": type_names(self.sliding),
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {kind: rope.to_hugging_face() for kind, rope in ropes.items()},
            "tie_word_embeddings": "head" not in self.extras,
            **{theirs: getattr(self, ours) for ours, theirs in NAMES.items()},
            **{key: allowed[0] for key, allowed in ONLY.items() if key != "partial_rotary_factor"},
            **self.position_settings(),
        }


def gemma3_config(settings: dict[str, Any], source: str) -> Gemma3Config:
    """The config of a parsed config.json; `source` names it in errors: a missing or unsupported setting."""
    if settings["model_type"] != TEXT:
        settings = _text(settings, source)
    check_only(settings, FOREIGN | ONLY, source)
    settings = DEFAULTS | settings
    check_present(settings, (*NAMES.values(), "num_hidden_layers"), source)
    values: dict[str, Any] = {ours: whole(settings, theirs, source) for ours, theirs in NAMES.items()}
    check_heads(values["heads"], values["kv_heads"], source)
    check_head_dim(values["head_dim"], source)
    count = layer_count(settings, source)
    kinds = settings.get("layer_types")
    if kinds is None:
        every = whole({"sliding_window_pattern": 6} | settings, "sliding_window_pattern", source)
        kinds = [list(SLIDING)[(i + 1) % every == 0] for i in range(count)]
    return Gemma3Config(
        **values,
        sliding=layer_types(kinds, count, source),
        norm_eps=real(settings, "rms_norm_eps", source),
        local_rope=_rope(settings, "sliding_attention", source),
        global_rope=_rope(settings, "full_attention", source),
        extras=() if flag(settings, "tie_word_embeddings", True, source) else ("head",),
        positions=positions(settings, source),
    )


def _text(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings of the language model of a model of text and images."""
    found = settings.get("text_config")
    if not isinstance(found, dict):
        raise UserError(
            f"{source}: text_config is {str(found)[:80]!r}, expected an object of the language model's sizes"
        )
    if found.get("model_type", TEXT) != TEXT:
        raise UserError(f"{source}: text_config is of a {str(found['model_type'])[:80]!r}, expected {TEXT}")
    # As in transformers, whether the head is the embedding is a setting of the whole model.
    return found | {"tie_word_embeddings": settings.get("tie_word_embeddings", True)}


def _rope(settings: dict[str, Any], kind: str, source: str) -> AbstractRope:
    """The rotary positions of one kind of layers, in either spelling: rope_scaling is that of the global ones."""
    given = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or {}
    if not isinstance(given, dict) or not isinstance(scaling, dict) or set(given) - set(BASES):
        raise UserError(
            f"{source}: rope_parameters is {str(given)[:80]} and rope_scaling {str(scaling)[:80]}, expected an object "
            f"with {' and '.join(BASES)}, and one of the settings of the former"
        )
    own = given.get(kind) or {}
    if not isinstance(own, dict):
        raise UserError(f"{source}: {kind} of rope_parameters is {str(own)[:80]!r}, expected an object such as {{}}")
    key, base = BASES[kind]
    rope = {"rope_theta": settings.get(key, base)} | own | (scaling if kind == "full_attention" else {})
    most = positions(settings, source)
    context = {} if most is None else {"max_position_embeddings": most}
    return rope_from_hugging_face({"rope_parameters": rope} | context, source)


class Gemma3Blocks(eqx.Module):
    """The weights of all blocks, stacked; matrices are [outputs, inputs] as in Hugging Face files.

    Args:
        q: Query projections, [layers, heads * head_dim, embed].
        k: Key projections, [layers, kv_heads * head_dim, embed].
        v: Value projections, of the same shape.
        o: Output projection of the attention.
        q_norm: Weight of the norm of every head's query.
        k_norm: Weight of the norm of every head's key.
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
    q_norm: Float[Array, "layers head_dim"]
    k_norm: Float[Array, "layers head_dim"]
    gate: Float[Array, "layers hidden embed"]
    up: Float[Array, "layers hidden embed"]
    down: Float[Array, "layers embed hidden"]
    attention_in: Float[Array, "layers embed"]
    attention_out: Float[Array, "layers embed"]
    mlp_in: Float[Array, "layers embed"]
    mlp_out: Float[Array, "layers embed"]


class Gemma3(AbstractLM):
    """The language model of a Gemma-3; see the module's docstring.

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
        **{f"blocks.{n}": f"model.layers.{{}}.self_attn.{n}_proj.weight" for n in ("q", "k", "v", "o")},
        **{f"blocks.{n}": f"model.layers.{{}}.self_attn.{n}.weight" for n in ("q_norm", "k_norm")},
        **{f"blocks.{n}": f"model.layers.{{}}.mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
        "blocks.attention_in": "model.layers.{}.input_layernorm.weight",
        "blocks.attention_out": "model.layers.{}.post_attention_layernorm.weight",
        "blocks.mlp_in": "model.layers.{}.pre_feedforward_layernorm.weight",
        "blocks.mlp_out": "model.layers.{}.post_feedforward_layernorm.weight",
    }
    # of Gemma3ForCausalLM, of two spellings of Gemma3ForConditionalGeneration, and of Gemma3TextModel
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "language_model.model.", "model.language_model.", "")
    other_heads: ClassVar[tuple[str, ...]] = ("language_model.lm_head.weight",)
    unread: ClassVar[tuple[str, ...]] = (r"(vision_tower|multi_modal_projector)\..*",)  # images alone
    embedding: Float[Array, "vocab embed"]
    blocks: Gemma3Blocks
    final_norm: Float[Array, " embed"]
    config: Gemma3Config = eqx.field(static=True)
    matmul_dtype: str = eqx.field(static=True, default="float32")
    unroll: bool = eqx.field(static=True, default=False)
    head: Float[Array, "vocab embed"] | None = None

    def unembedding(self) -> Float[Array, "vocab embed"]:
        """Rows gamma with logit = gamma . x / rms(x): head (or embedding) times (1 + final norm weight)."""
        return self._output().astype(jnp.float32) * _gain(self.final_norm)

    def _output(self) -> Float[Array, "vocab embed"]:
        return self.embedding if self.head is None else self.head

    def _start(self, ids: Int[Array, "batch time"]) -> Float[Array, "batch time embed"]:
        return self.embedding[ids].astype(jnp.float32) * self.embed**0.5

    def _stacked(self) -> Any:
        c = self.config
        local, everywhere = (rope.frequencies(c.head_dim // 2) for rope in (c.local_rope, c.global_rope))
        sliding = jnp.asarray(c.sliding, bool)
        return self.blocks, sliding, jnp.where(sliding[:, None], local, everywhere)

    def _block(
        self, x: Float[Array, "batch time embed"], layer: Any, tap: Tap = untapped
    ) -> Float[Array, "batch time embed"]:
        block, sliding, turn = layer
        eps, dtype = self.config.norm_eps, self.matmul_dtype
        h = _attention(rms_norm(x, _gain(block.attention_in), eps), block, sliding, turn, self.config, dtype)
        x = x + tap("attn_out", rms_norm(h, _gain(block.attention_out), eps))
        h = tap("mlp_in", rms_norm(x, _gain(block.mlp_in), eps))
        gate = jax.nn.gelu(linear(h, block.gate, None, dtype), approximate=True)
        h = linear(gate * linear(h, block.up, None, dtype), block.down, None, dtype)
        return x + tap("mlp_out", rms_norm(h, _gain(block.mlp_out), eps))

    def _head(self, x: Float[Array, "batch time embed"]) -> Float[Array, "batch time vocab"]:
        x = rms_norm(x, _gain(self.final_norm), self.config.norm_eps)
        return product("btd,vd->btv", self.matmul_dtype, x, self._output())


def _gain(weight: Float[Array, " width"]) -> Float[Array, " width"]:
    return 1 + weight.astype(jnp.float32)


def _attention(h, block: Gemma3Blocks, sliding, turn, config: Gemma3Config, dtype: str):
    heads = (*h.shape[:2], -1, config.head_dim)
    q, k, v = (linear(h, weight, None, dtype).reshape(heads) for weight in (block.q, block.k, block.v))
    q = rms_norm(q, _gain(block.q_norm), config.norm_eps) * config.query_pre_attn_scalar**-0.5
    k = rms_norm(k, _gain(block.k_norm), config.norm_eps)
    mask = visible(h.shape[1], config.window, sliding)
    return linear(attend(rotate(q, turn), rotate(k, turn), v, mask, dtype), block.o, None, dtype)


FAMILY = Family((TEXT, "gemma3"), gemma3_config, Gemma3)
