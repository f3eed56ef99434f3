"""Sizes and constants of a GPT-NeoX model (Pythia), and their Hugging Face config.json form."""

from dataclasses import dataclass, replace
from typing import Any

from jhsae.errors import UserError
from jhsae.lm.base import AbstractConfig
from jhsae.lm.rope import AbstractRope, rope_settings
from jhsae.lm.rope import from_hugging_face as rope_from_hugging_face
from jhsae.lm.settings import (
    FOREIGN,
    check_only,
    check_present,
    flag,
    head_size,
    layer_count,
    positions,
    real,
    whole,
)

# Supported values of settings; the first of each is the default.
ONLY: dict[str, tuple[Any, ...]] = {"hidden_act": ("gelu",)}
NAMES = {
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "norm_eps": "layer_norm_eps",
}


@dataclass(frozen=True)
class NeoXConfig(AbstractConfig):
    """Sizes and constants of a GPT-NeoX model.

    Args:
        vocab: Number of tokens.
        embed: Width of the residual stream.
        hidden: Width of the MLP.
        heads: Number of query heads.
        kv_heads: Number of key and value heads, equal to `heads`.
        head_dim: Width of a head.
        depth: Number of blocks.
        norm_eps: Constant under the root of the norms.
        rope: The rotary positions.
        rotated: Entries of each head that have rotary positions, from the first on.
        parallel: Whether attention and MLP of a block read the same residual stream.
        extras: Names of the optional weights that it has: ``head``, ``qkv_bias``, ``out_bias``.
        model_type: That of config.json.
        positions: The maximum sequence length; None where config.json has none.
    """

    vocab: int
    embed: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    depth: int
    norm_eps: float
    rope: AbstractRope
    rotated: int
    parallel: bool
    extras: tuple[str, ...]
    model_type: str = "gpt_neox"
    positions: int | None = None

    @property
    def layers(self) -> int:
        return self.depth

    def first(self, layers: int) -> "NeoXConfig":
        return replace(self, depth=layers)

    def to_hugging_face(self) -> dict[str, Any]:
        rotated = {"partial_rotary_factor": self.rotated / self.head_dim}
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "rope_parameters": self.rope.to_hugging_face() | rotated,
            "use_parallel_residual": self.parallel,
            "attention_bias": "qkv_bias" in self.extras,
            "tie_word_embeddings": "head" not in self.extras,
            "hidden_act": "gelu",
            **{theirs: getattr(self, ours) for ours, theirs in NAMES.items()},
            **self.position_settings(),
        }


def neox_config(settings: dict[str, Any], source: str) -> NeoXConfig:
    """The config of a parsed config.json; `source` names it in errors: a missing or unsupported setting."""
    check_only(settings, FOREIGN | ONLY, source)
    check_present(settings, NAMES.values(), source)
    vocab, embed, hidden, heads = (whole(settings, NAMES[n], source) for n in ("vocab", "embed", "hidden", "heads"))
    head_dim = head_size(embed, heads, source)
    rope = rope_from_hugging_face(settings, source, theta="rotary_emb_base", partial=True)
    scaled = rope_settings(settings, source)
    turning = real({"factor": settings.get("rotary_pct", 0.25)} | _factor(scaled), "factor", source, above=0.0)
    rotated = int(head_dim * turning)
    if not 2 <= rotated <= head_dim or rotated % 2:
        raise UserError(f"{source}: {turning} of {head_dim} entries per head turn; write a factor that makes them even")
    extras = () if flag(settings, "tie_word_embeddings", False, source) else ("head",)
    return NeoXConfig(
        vocab=vocab,
        embed=embed,
        hidden=hidden,
        heads=heads,
        depth=layer_count(settings, source),
        norm_eps=real(settings, NAMES["norm_eps"], source),
        kv_heads=heads,
        head_dim=head_dim,
        rope=rope,
        rotated=rotated,
        parallel=flag(settings, "use_parallel_residual", True, source),
        extras=extras + (("qkv_bias", "out_bias") if flag(settings, "attention_bias", True, source) else ()),
        positions=positions(settings, source),
    )


def _factor(scaled: dict[str, Any]) -> dict[str, Any]:
    return {"factor": scaled["partial_rotary_factor"]} if "partial_rotary_factor" in scaled else {}
