"""Checks of a parsed config.json: what must be there, and what may have one value alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from jhsae.errors import UserError

SLIDING = {"sliding_attention": True, "full_attention": False}


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


def check_heads(heads: int, kv_heads: int, source: str) -> None:
    """UserError where the queries cannot be shared out evenly."""
    if heads % kv_heads:
        raise UserError(f"{source}: {heads} heads over {kv_heads} key-value heads; write a divisor of {heads}")


def layer_types(kinds: list[str], count: int, source: str) -> tuple[bool, ...]:
    """Which of `count` layers slide."""
    unknown = sorted(set(kinds) - set(SLIDING))
    if unknown or len(kinds) != count:
        raise UserError(f"{source}: layer_types needs {count} entries of {', '.join(SLIDING)}; got {kinds}")
    return tuple(SLIDING[kind] for kind in kinds)


def type_names(sliding: Iterable[bool]) -> list[str]:
    """The inverse of `layer_types`."""
    kinds = {flag: name for name, flag in SLIDING.items()}
    return [kinds[flag] for flag in sliding]
