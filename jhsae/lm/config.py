"""Sizes and constants of a Gemma-2 model, and their Hugging Face config.json form (both spellings of rope_theta)."""

from dataclasses import dataclass
from typing import Any

from jhsae.errors import UserError, nearest

SUPPORTED = ("gemma2",)
# Settings whose other values this forward pass does not compute; the first of each is also the default.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False,),
    "tie_word_embeddings": (True,),
    "use_bidirectional_attention": (None, False),
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
SLIDING = {"sliding_attention": True, "full_attention": False}


@dataclass(frozen=True)
class Gemma2Config:
    """`sliding[i]` says whether block i attends within `window`; a cap of None is no cap."""

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


def from_hugging_face(settings: dict[str, Any], source: str) -> Gemma2Config:
    """The config of a parsed config.json. `source` names it in errors: another model_type, a missing or
    unsupported setting."""
    kind = str(settings.get("model_type"))
    if kind not in SUPPORTED:
        raise UserError(
            f"{source}: model_type is {kind!r}, supported: {', '.join(SUPPORTED)}{nearest(kind, SUPPORTED)}"
        )
    for key, allowed in ONLY.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise UserError(f"{source}: {key} is {settings[key]!r}, only {allowed[0]!r} is supported")
    missing = [key for key in (*NAMES.values(), "num_hidden_layers") if key not in settings]
    if missing:
        raise UserError(f"{source}: no {', '.join(missing)}; write the config.json of a complete checkpoint")
    count = settings["num_hidden_layers"]
    kinds = settings.get("layer_types") or [list(SLIDING)[i % 2] for i in range(count)]
    unknown = sorted(set(kinds) - set(SLIDING))
    if unknown or len(kinds) != count:
        raise UserError(f"{source}: layer_types needs {count} entries of {', '.join(SLIDING)}; got {kinds}")
    values = {ours: settings[theirs] for ours, theirs in NAMES.items()}
    return Gemma2Config(**values, sliding=tuple(SLIDING[k] for k in kinds), rope_theta=_rope_theta(settings, source))


def _rope_theta(settings: dict[str, Any], source: str) -> float:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise UserError(f"{source}: rope_type is {kind!r}, only 'default' is supported")
    return float(rope.get("rope_theta", settings.get("rope_theta", 10000.0)))


def to_hugging_face(config: Gemma2Config, dtype: str) -> dict[str, Any]:
    """The settings of config.json that transformers needs to build the same model."""
    kinds = {flag: name for name, flag in SLIDING.items()}
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "dtype": dtype,
        "num_hidden_layers": len(config.sliding),
        "layer_types": [kinds[flag] for flag in config.sliding],
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        **{key: allowed[0] for key, allowed in ONLY.items()},
    }
