"""Type hints and config keys as text, for messages and ``jhsae train --help``."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from jhsae.config.schema import REQUIRED, Member, is_config, keys, members


def type_name(hint: Any) -> str:
    """A type hint in terms of YAML."""
    names = [_member_name(m) for m in members(hint)]
    return " or ".join(dict.fromkeys(names))


def _member_name(member: Member) -> str:
    hint, origin, args = member.hint, get_origin(member.hint) or member.hint, get_args(member.hint)
    if member.is_slot:
        kind = member.supplied.kind if member.supplied else None
        return f"part ({kind.__name__})" if kind else "part"
    if hint is type(None):
        return "null"
    if hint in (Any, object):
        return "anything"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"list of {len(args)}: {', '.join(map(type_name, args))}"
    if origin in (list, tuple, Sequence):
        return f"list of {type_name(args[0])}" if args else "list"
    if origin in (dict, Mapping):
        return f"mapping of {type_name(args[1])}" if args and args[1] is not Any else "mapping"
    return getattr(hint, "__name__", str(hint))


def describe_keys(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key of a config dataclass, sections included; N stands for a list index.

    Args:
        cls: The dataclass.
        prefix: Of the dotted keys.

    Yields:
        (dotted key, type, default, help).
    """
    for key in keys(cls):
        default = "required" if key.default == REQUIRED else json.dumps(key.default)
        sections = list(_sections(key.hint, prefix + key.name))
        if not sections:
            yield prefix + key.name, type_name(key.hint), default, key.help
        for path, section in sections:
            if key.help:
                yield path, "section", "", key.help
            yield from describe_keys(section, path + ".")


def _sections(hint: Any, path: str) -> Iterator[tuple[str, type]]:
    for member in members(hint):
        args = get_args(member.hint)
        if is_config(member.hint):
            yield path, member.hint
        elif get_origin(member.hint) in (list, tuple):
            yield from _sections(args[0], path + ".N")
        elif get_origin(member.hint) is dict:
            yield from _sections(args[1], path + ".NAME")
