"""Origin of a config value, for messages: the file or the override, and the dotted key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jhsae.config.trust import WRITTEN, Trust
from jhsae.errors import UserError

LONGEST = 100  # characters of a value in a message


@dataclass(frozen=True)
class Place:
    """A key in a stack of files (the one that wins first, each with its own tree) under some overrides.

    `trust`: the packages that those files may name.
    """

    files: tuple[tuple[Path, Mapping[str, Any]], ...] = ()
    overrides: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    trust: Trust = WRITTEN

    def __truediv__(self, key: Any) -> "Place":
        return replace(self, keys=(*self.keys, shortened(str(key))))

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin(), ".".join(self.keys)) if part)

    def error(self, sentence: str) -> UserError:
        """The error to raise: the place, then the sentence."""
        return UserError(f"{self} {sentence}" if self.keys else f"{self}: {sentence}".removeprefix(": "))

    def origin(self) -> str:
        """The override or file that set the value, a part of it, or else its closest ancestor."""
        top = str(self.files[0][0]) if self.files else ""
        for override in reversed(self.overrides):
            path = override_keys(override)
            if self.keys and path[: len(self.keys)] == self.keys[: len(path)]:
                return f"{top}, override {shortened(override)}"
        for depth in range(len(self.keys), 0, -1):
            for file, tree in self.files:
                if _holds(tree, self.keys[:depth]):
                    return str(file)
        return top


def shortened(text: str) -> str:
    """`text`, or its beginning."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def override_keys(override: str) -> tuple[str, ...]:
    """The keys of ``a.b=c`` or ``a[0].b=c``."""
    return tuple(re.findall(r"[^.\[\]]+", override.partition("=")[0]))


def list_index(items: list[Any], key: str) -> int | None:
    """The index that a key names, where the list has it."""
    return int(key) if key.isdecimal() and len(key) < 10 and int(key) < len(items) else None


def _holds(tree: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if isinstance(tree, Mapping) and key in tree:
            tree = tree[key]
        elif isinstance(tree, list) and (index := list_index(tree, key)) is not None:
            tree = tree[index]
        else:
            return False
    return True
