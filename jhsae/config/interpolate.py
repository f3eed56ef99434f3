"""``${a.b}`` in a config: the value of another key; ``${rsqrt:${a.b}}`` is 1/sqrt of it, ``${oc.env:HOME}`` a variable.

Every key is resolved once. The expansion of chained references is bounded.
"""

import math
import os
from collections.abc import Callable
from typing import Any

from jhsae.config.place import Place, list_index, override_keys, shortened
from jhsae.errors import nearest
from jhsae.files import bounded

LONGEST = 10_000  # characters of a text with references
CHAIN = 16  # chained references
LEVELS = 80  # nested sections, including those of references
Keys = tuple[str, ...]


def resolved(tree: dict[str, Any], place: Place) -> dict[str, Any]:
    """`tree` with every ``${...}`` replaced. `UserError` at its place for a missing key or a cycle."""
    found = _Resolver(tree, place).at((), tree)
    bounded.check_size(found, str(place) or "the config")
    return found


def holds_reference(value: Any) -> bool:
    """True for plain data in which some text holds ``${``."""
    if isinstance(value, dict):
        return any(map(holds_reference, value.values()))
    return any(map(holds_reference, value)) if isinstance(value, list) else isinstance(value, str) and "${" in value


class _Resolver:
    def __init__(self, tree: dict[str, Any], place: Place) -> None:
        self.tree, self.place = tree, place
        self.done: dict[Keys, Any] = {}
        self.open: list[Keys] = []
        self.chain = 0

    def at(self, keys: Keys, written: Any = None) -> Any:
        """The value at `keys`, resolved; `written` is its text."""
        if keys not in self.done:
            if keys in self.open:
                raise self.error(self.open[-1], "it refers to itself")
            if len(self.open) > LEVELS:
                raise self.error(self.open[-1], f"more than {LEVELS} sections lie inside each other")
            self.open.append(keys)
            if isinstance(written, dict):
                written = {key: self.at((*keys, str(key)), value) for key, value in written.items()}
            elif isinstance(written, list):
                written = [self.at((*keys, str(i)), value) for i, value in enumerate(written)]
            elif isinstance(written, str) and "${" in written:
                written = self.text(written, keys)
            self.done[keys] = written
            self.open.pop()
        return self.done[keys]

    def referred(self, keys: Keys, by: Keys) -> Any:
        """The value at `keys`, which the text at `by` refers to, through references in its sections."""
        if self.chain == CHAIN:
            raise self.error(by, f"more than {CHAIN} references follow each other")
        self.chain += 1
        node: Any = self.tree
        for depth, key in enumerate(keys, 1):
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and (index := list_index(node, key)) is not None:
                node = node[index]
            else:
                known = [str(k) for k in node][:100] if isinstance(node, dict) else []
                raise self.error(by, f"there is no key '{shortened('.'.join(keys))}'{nearest(key, known)}")
            if isinstance(node, str) and "${" in node:
                node = self.at(keys[:depth], node)
        value = self.at(keys, node)
        self.chain -= 1
        return value

    def text(self, text: str, keys: Keys, depth: int = 0) -> Any:
        """A text with its references replaced; a single reference becomes the value itself."""
        if depth > 8 or len(text) > LONGEST:
            raise self.error(keys, "it is too long or too deeply nested")
        start, done = text.find("${"), ""
        while start >= 0:
            end = _end(text, start)
            if end < 0:
                raise self.error(keys, f"'{shortened(text[start:])}' has no closing brace")
            value = self.reference(str(self.text(text[start + 2 : end], keys, depth + 1)), keys)
            if start == 0 and end == len(text) - 1 and not done:
                return value
            if isinstance(value, dict | list):
                raise self.error(keys, f"a {type(value).__name__} cannot be part of a text")
            done, text = f"{done}{text[:start]}{value}", text[end + 1 :]
            if len(done) > LONGEST:
                raise self.error(keys, f"it is longer than {LONGEST:,} characters")
            start = text.find("${")
        return done + text

    def reference(self, inside: str, keys: Keys) -> Any:
        """The value of the expression between the braces."""
        name, colon, argument = inside.partition(":")
        if colon:
            if name not in FUNCTIONS:
                raise self.error(keys, f"there is no function '{shortened(name)}'{nearest(name, FUNCTIONS)}")
            try:
                return FUNCTIONS[name](argument)
            except (ValueError, ArithmeticError) as error:
                raise self.error(keys, f"{shortened(inside)} has no value ({error})") from error
        path = override_keys(name)
        up = len(name) - len(name.lstrip("."))
        if not path:
            raise self.error(keys, "${" + shortened(inside) + "} names no key")
        return self.referred((*keys[: len(keys) - up], *path) if up else path, keys)

    def error(self, keys: Keys, sentence: str) -> Exception:
        place = self.place
        for key in keys:
            place = place / key
        return place.error(f"cannot be resolved: {sentence}")


def _rsqrt(text: str) -> float:
    return 1 / math.sqrt(float(text))


def _env(text: str) -> str:
    name, comma, default = text.partition(",")
    value = os.environ.get(name.strip(), default.strip() if comma else None)
    if value is None:
        raise ValueError(f"no variable {name.strip()} in the environment")
    return value


FUNCTIONS: dict[str, Callable[[str], Any]] = {"rsqrt": _rsqrt, "oc.env": _env}


def _end(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`, or -1."""
    depth, at = 0, start
    while at < len(text):
        if text.startswith("${", at):
            depth, at = depth + 1, at + 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1
