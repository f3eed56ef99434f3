"""Sizes and constants of a Llama-like model (Llama, Mistral, Qwen 2, Qwen 3), and their config.json form."""

from dataclasses import dataclass, replace
from typing import Any

from jhsae.errors import UserError
from jhsae.lm.base import AbstractConfig
from jhsae.lm.rope import AbstractRope
from jhsae.lm.rope import from_hugging_face as rope_from_hugging_face
from jhsae.lm.settings import (
    FOREIGN,
    check_head_dim,
    check_heads,
    check_only,
    check_present,
    flag,
    head_size,
    layer_count,
    layer_types,
    positions,
    real,
    type_names,
    whole,
)

# Supported values of settings; the first of each is the default.
ONLY: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "partial_rotary_factor": (None, 1.0)}
NAMES = {
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "norm_eps": "rms_norm_eps",
}
ARCHITECTURE = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
QKV = ("q_bias", "k_bias", "v_bias")
MLP = ("gate_bias", "up_bias", "down_bias")


@dataclass(frozen=True)
class LlamaConfig(AbstractConfig):
    """Sizes and constants of a model of the Llama, Mistral or Qwen family.

    Args:
        model_type: That of config.json: llama, mistral, qwen2 or qwen3.
        vocab: Number of tokens.
        embed: Width of the residual stream.
        hidden: Width of the MLP.
        heads: Number of query heads.
        kv_heads: Number of key and value heads, a divisor of `heads`.
        head_dim: Width of a head.
        sliding: For each block whether it attends within `window`.
        window: Tokens that a query of a sliding block attends to, its own included; None where no window is set.
        norm_eps: Constant under the root of the norms.
        rope: The rotary positions.
        extras: Names of the optional weights that it has, such as ``head`` or ``q_bias``.
        positions: The maximum sequence length; None where config.json has none.
    """

    model_type: str
    vocab: int
    embed: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    sliding: tuple[bool, ...]
    window: int | None
    norm_eps: float
    rope: AbstractRope
    extras: tuple[str, ...]
    positions: int | None = None

    @property
    def layers(self) -> int:
        return len(self.sliding)

    def first(self, layers: int) -> "LlamaConfig":
        return replace(self, sliding=self.sliding[:layers])

    def to_hugging_face(self) -> dict[str, Any]:
        settings = {
            "architectures": [f"{ARCHITECTURE[self.model_type]}ForCausalLM"],
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rope_parameters": self.rope.to_hugging_face(),
            "tie_word_embeddings": "head" not in self.extras,
            "attention_bias": "o_bias" in self.extras,
            "mlp_bias": "down_bias" in self.extras,
            "hidden_act": "silu",
            "sliding_window": self.window,
            **{theirs: getattr(self, ours) for ours, theirs in NAMES.items()},
            **self.position_settings(),
        }
        if self.model_type.startswith("qwen"):
            settings |= {"use_sliding_window": self.window is not None, "layer_types": type_names(self.sliding)}
        return settings


def llama_config(settings: dict[str, Any], source: str) -> LlamaConfig:
    """The config of a parsed config.json; `source` names it in errors: a missing or unsupported setting."""
    kind = settings["model_type"]
    check_only(settings, FOREIGN | ONLY, source)
    # Where the default in transformers depends on the model, the setting is required.
    own = {"llama": (), "mistral": ("num_key_value_heads",), "qwen2": ("num_key_value_heads",)}
    needed = own.get(kind, ("num_key_value_heads", "head_dim"))
    check_present(settings, (*NAMES.values(), *needed, "num_hidden_layers"), source)
    vocab, embed, hidden, heads = (whole(settings, NAMES[n], source) for n in ("vocab", "embed", "hidden", "heads"))
    kv_heads = heads if settings.get("num_key_value_heads") is None else whole(settings, "num_key_value_heads", source)
    check_heads(heads, kv_heads, source)
    # A Qwen 3 without head_dim has one of 128 in transformers, whatever its width is.
    named = kind == "qwen3" or settings.get("head_dim") is not None
    head_dim = whole(settings, "head_dim", source) if named else head_size(embed, heads, source)
    check_head_dim(head_dim, source)
    window, sliding = _sliding(settings, source)
    return LlamaConfig(
        model_type=kind,
        vocab=vocab,
        embed=embed,
        hidden=hidden,
        heads=heads,
        norm_eps=real(settings, NAMES["norm_eps"], source),
        kv_heads=kv_heads,
        head_dim=head_dim,
        sliding=sliding,
        window=window,
        rope=rope_from_hugging_face(settings, source),
        extras=_extras(settings, source),
        positions=positions(settings, source),
    )


def _sliding(settings: dict[str, Any], source: str) -> tuple[int | None, tuple[bool, ...]]:
    """The window, and the layers that use it: all in Mistral, those of layer_types or max_window_layers in Qwen."""
    kind, count = settings["model_type"], layer_count(settings, source)
    if kind == "mistral" and "sliding_window" not in settings:
        raise UserError(f"{source}: no sliding_window; write its tokens, or null for none")
    own = kind.startswith("qwen") and flag(settings, "use_sliding_window", False, source)  # per layer
    slides = (own or kind == "mistral") and settings.get("sliding_window") is not None
    window = whole(settings, "sliding_window", source) if slides else None
    kinds = settings.get("layer_types")
    named = None if kinds is None else layer_types(kinds, count, source)
    if not (own and slides):
        if named not in (None, (slides,) * count):
            raise UserError(
                f"{source}: layer_types is {kinds}, but {'all' if slides else 'no'} layers of this {kind} slide; write "
                "the config.json that belongs to the weights"
            )
        return window, (slides,) * count
    if named is not None:
        return window, named
    check_present(settings, ("max_window_layers",), source)
    full = whole(settings, "max_window_layers", source, least=0)
    return window, tuple(i >= full for i in range(count))


def _extras(settings: dict[str, Any], source: str) -> tuple[str, ...]:
    kind = settings["model_type"]
    attention = kind in ("llama", "qwen3") and flag(settings, "attention_bias", False, source)
    found: tuple[str, ...] = () if flag(settings, "tie_word_embeddings", False, source) else ("head",)
    found += QKV if kind == "qwen2" or attention else ()
    found += ("o_bias",) if attention else ()
    found += MLP if kind == "llama" and flag(settings, "mlp_bias", False, source) else ()
    return found + (("q_norm", "k_norm") if kind == "qwen3" else ())
