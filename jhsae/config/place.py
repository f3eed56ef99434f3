"""Where a value of a config was written, for messages: the file or the override, and the dotted key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jhsae.errors import UserError


@dataclass(frozen=True)
class Place:
    """A key in a stack of files (the one that wins first, each with its own tree) under some overrides."""

    files: tuple[tuple[Path, Mapping[str, Any]], ...] = ()
    overrides: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __truediv__(self, key: Any) -> "Place":
        return replace(self, keys=(*self.keys, str(key)))

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin(), ".".join(self.keys)) if part)

    def error(self, sentence: str) -> UserError:
        """The error to raise: the place, then the sentence."""
        return UserError(f"{self} {sentence}" if self.keys else f"{self}: {sentence}".removeprefix(": "))

    def origin(self) -> str:
        """The override or file that wrote the value, or a piece of it, or else its nearest ancestor."""
        top = str(self.files[0][0]) if self.files else ""
        for override in reversed(self.overrides):
            path = override_keys(override)
            if self.keys and path[: len(self.keys)] == self.keys[: len(path)]:
                return f"{top}, override {override}"
        for depth in range(len(self.keys), 0, -1):
            for file, tree in self.files:
                if _holds(tree, self.keys[:depth]):
                    return str(file)
        return top


def override_keys(override: str) -> tuple[str, ...]:
    """The keys of ``a.b=c`` or ``a[0].b=c``."""
    return tuple(re.findall(r"[^.\[\]]+", override.partition("=")[0]))


def _holds(tree: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if isinstance(tree, Mapping) and key in tree:
            tree = tree[key]
        elif isinstance(tree, list) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            return False
    return True
