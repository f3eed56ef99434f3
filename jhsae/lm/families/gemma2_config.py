"""Sizes and constants of a Gemma-2 model, and their Hugging Face config.json form."""

from dataclasses import dataclass, replace
from typing import Any

from jhsae.errors import UserError
from jhsae.lm.base import AbstractConfig
from jhsae.lm.rope import Rope
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
    "attention_cap": "attn_logit_softcapping",
    "final_cap": "final_logit_softcapping",
    "norm_eps": "rms_norm_eps",
}


@dataclass(frozen=True)
class Gemma2Config(AbstractConfig):
    """Sizes and constants of a Gemma-2 model; a cap of None is no cap.

    Args:
        vocab: Number of tokens.
        embed: Width of the residual stream.
        hidden: Width of the MLP.
        heads: Number of query heads.
        kv_heads: Number of key and value heads, a divisor of `heads`.
        head_dim: Width of a head.
        window: Tokens that a query of a sliding block attends to, its own included.
        sliding: For each block whether it attends within `window`.
        query_pre_attn_scalar: Queries are divided by its root.
        attention_cap: Soft cap of the attention scores.
        final_cap: Soft cap of the logits.
        norm_eps: Constant under the root of the norms.
        rope_theta: Base of the frequencies of the rotary positions.
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
    attention_cap: float | None = 50.0
    final_cap: float | None = 30.0
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    extras: tuple[str, ...] = ()
    model_type: str = "gemma2"
    positions: int | None = None

    @property
    def layers(self) -> int:
        return len(self.sliding)

    def first(self, layers: int) -> "Gemma2Config":
        return replace(self, sliding=self.sliding[:layers])

    def to_hugging_face(self) -> dict[str, Any]:
        return {
            "architectures": ["Gemma2ForCausalLM"],
            "num_hidden_layers": self.layers,
            "layer_types": type_names(self.sliding),
            "rope_theta": self.rope_theta,
            "rope_parameters": Rope(self.rope_theta).to_hugging_face(),
            **{theirs: getattr(self, ours) for ours, theirs in NAMES.items()},
            **{key: allowed[0] for key, allowed in ONLY.items() if key != "partial_rotary_factor"},
            "tie_word_embeddings": "head" not in self.extras,
            **self.position_settings(),
        }


def gemma2_config(settings: dict[str, Any], source: str) -> Gemma2Config:
    """The config of a parsed config.json; `source` names it in errors: a missing or unsupported setting."""
    check_only(settings, FOREIGN | ONLY, source)
    check_present(settings, (*NAMES.values(), "num_hidden_layers"), source)
    sizes = ("vocab", "embed", "hidden", "heads", "kv_heads", "head_dim", "query_pre_attn_scalar")
    values: dict[str, Any] = {ours: whole(settings, NAMES[ours], source) for ours in sizes}
    check_heads(values["heads"], values["kv_heads"], source)
    check_head_dim(values["head_dim"], source)
    for ours in ("attention_cap", "final_cap"):
        theirs = NAMES[ours]
        values[ours] = None if settings[theirs] is None else real(settings, theirs, source, above=0.0)
    rope = rope_from_hugging_face(settings, source)
    if not isinstance(rope, Rope):
        raise UserError(f"{source}: rope_type is {rope.rope_type!r}, a Gemma-2 has 'default' alone")
    count = layer_count(settings, source)
    kinds = settings.get("layer_types") or [list(SLIDING)[i % 2] for i in range(count)]
    return Gemma2Config(
        **values,
        window=whole(settings, "sliding_window", source),
        norm_eps=real(settings, "rms_norm_eps", source),
        sliding=layer_types(kinds, count, source),
        rope_theta=rope.rope_theta,
        extras=() if flag(settings, "tie_word_embeddings", True, source) else ("head",),
        positions=positions(settings, source),
    )
