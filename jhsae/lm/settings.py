"""Checks of a parsed config.json: required settings, their types and bounds, and unsupported values."""

from collections.abc import Iterable, Mapping
from typing import Any

from jhsae.errors import UserError
from jhsae.files import forms

SLIDING = {"sliding_attention": True, "full_attention": False}
MOST = 2**31 - 1
MOST_LAYERS = 10_000
# Settings of related architectures that change the forward pass, with their neutral values. The supported families in
# transformers ignore them, but a config.json that sets one describes another model.
FOREIGN: dict[str, tuple[Any, ...]] = {
    "attention_multiplier": (None,),
    "residual_multiplier": (None, 1, 1.0),
    "embedding_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "scale_emb": (None, 1, 1.0),
    "scale_depth": (None,),
    "clip_qkv": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "no_rope_layers": (None, []),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "use_bidirectional_attention": (None, False),
}


def check_only(settings: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], source: str) -> None:
    """UserError for a setting whose value is not among those computed here; the first of each is the default."""
    for key, allowed in only.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise UserError(f"{source}: {key} is {settings[key]!r}, only {allowed[0]!r} is supported")


def check_present(settings: Mapping[str, Any], names: Iterable[str], source: str) -> None:
    """UserError that lists what is missing."""
    missing = [key for key in names if key not in settings]
    if missing:
        raise UserError(f"{source}: no {', '.join(missing)}; write the config.json of a complete checkpoint")


def whole(settings: Mapping[str, Any], key: str, source: str, least: int = 1, most: int = MOST) -> int:
    """A setting that must be a whole number from `least` to `most`."""
    return forms.expect(settings.get(key), forms.whole(least, most), f"{source}: {key}")


def real(settings: Mapping[str, Any], key: str, source: str, above: float | None = None) -> float:
    """A setting that must be a finite number, greater than `above`, or at least 0."""
    return float(forms.expect(settings.get(key), forms.real(above), f"{source}: {key}"))


def flag(settings: Mapping[str, Any], key: str, default: bool, source: str) -> bool:
    """A setting that must be true or false; `default` where it is missing."""
    return forms.expect(settings.get(key, default), forms.FLAG, f"{source}: {key}")


def layer_count(settings: Mapping[str, Any], source: str) -> int:
    """num_hidden_layers."""
    return whole(settings, "num_hidden_layers", source, least=0, most=MOST_LAYERS)


def positions(settings: Mapping[str, Any], source: str) -> int | None:
    """max_position_embeddings, or None where the file does not say it."""
    if settings.get("max_position_embeddings") is None:
        return None
    return whole(settings, "max_position_embeddings", source)


def check_heads(heads: int, kv_heads: int, source: str) -> None:
    """UserError where the queries cannot be shared out evenly."""
    if heads % kv_heads:
        raise UserError(f"{source}: {heads} heads over {kv_heads} key-value heads; write a divisor of {heads}")


def check_head_dim(head_dim: int, source: str) -> None:
    """UserError where a head cannot be cut into the pairs that rotary positions turn."""
    if head_dim % 2:
        raise UserError(f"{source}: head_dim is {head_dim}, expected an even number, because entries turn in pairs")


def head_size(embed: int, heads: int, source: str, key: str = "hidden_size") -> int:
    """The size of a head that config.json does not name: the width, the setting `key`, over the heads."""
    if embed % heads:
        named = ", or head_dim" if key == "hidden_size" else ""
        raise UserError(f"{source}: {key} {embed} over {heads} heads; write a multiple of {heads}{named}")
    return embed // heads


def layer_types(kinds: Any, count: int, source: str) -> tuple[bool, ...]:
    """Which of `count` layers slide."""
    right = isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)
    if not right or set(kinds) - set(SLIDING) or len(kinds) != count:
        raise UserError(
            f"{source}: layer_types needs {count} entries of {', '.join(SLIDING)}; got {forms.brief(kinds)}"
        )
    return tuple(SLIDING[kind] for kind in kinds)


def type_names(sliding: Iterable[bool]) -> list[str]:
    """The inverse of `layer_types`."""
    kinds = {flag: name for name, flag in SLIDING.items()}
    return [kinds[flag] for flag in sliding]
