"""Reads a config class from YAML: its defaults, then ``base:`` files, the file itself, the overrides.

`load` reads configs written by a user, `read` those recorded by a run; `check` converts the tree to the class.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jhsae.config import plain_yaml
from jhsae.config.check import fit_section
from jhsae.config.interpolate import holds_reference, resolved
from jhsae.config.overrides import overridden
from jhsae.config.place import Place, shortened
from jhsae.config.schema import keys, overlay, with_defaults
from jhsae.config.trust import trusted
from jhsae.errors import UserError, nearest
from jhsae.files import bounded

MOST_BASES = 16

Config = TypeVar("Config")
Layers = tuple[tuple[Path, dict[str, Any]], ...]


def load(cls: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a config dataclass from a YAML file.

    A file may start with ``base: other.yaml`` (relative to it) and then contains only the differences. A mapping that
    names a `_target_` replaces the inherited one; other mappings merge; ``null`` removes an inherited entry of a
    mapping of parts. ``${rsqrt:${sae.embed}}`` is 1/sqrt of a value.

    Args:
        cls: A frozen dataclass.
        path: The YAML file.
        overrides: Such as ``stages.0.steps=100``.

    Raises:
        UserError: With file, key, value and what was expected.
    """
    if any(key.name == "base" for key in keys(cls)):
        raise TypeError(f"{cls.__name__} has a key 'base', which names the file below in every YAML; rename it")
    layers = tuple((file, with_current_keys(cls, layer, file)) for file, layer in _read(Path(path), ()))
    tree: dict[str, Any] = {}
    for _, layer in reversed(layers):
        tree = overlay(tree, layer)
    place = Place(layers, tuple(_with_current_key(cls, override) for override in overrides))
    tree = overridden(with_defaults(cls, tree), place)
    bounded.check_size(tree, place.origin())
    return fit_section(resolved(tree, place), cls, place)


def read(cls: type[Config], path: str | Path, trust: str | Iterable[str] = ()) -> Config:
    """Reads a config recorded by a run (`write`), which has no ``base:`` and no references.

    Args:
        cls: The config dataclass.
        path: The YAML file.
        trust: Packages besides jhsae whose parts its slots may name.

    Raises:
        UserError: As in `load`.
    """
    tree = with_current_keys(cls, plain(path), path)
    place = Place(((Path(path), tree),), trust=trusted(trust))
    for key, value in tree.items():
        if holds_reference(value):
            raise (place / key).error(
                "refers to other values by ${...}, which the config of a run does not; copy it again"
            )
    return fit_section(with_defaults(cls, tree), cls, place)


def has_key(path: str | Path, key: str) -> bool:
    """Whether a config file, or a file that it names as its ``base:``, has `key` at the top."""
    return any(key in layer for _, layer in _read(Path(path), ()))


def plain(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file as plain data; slots are not checked, references not resolved."""
    tree = plain_yaml.read(Path(path))
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}, expected a mapping: lines such as steps: 100")
    return {str(key): value for key, value in (tree or {}).items()}


def with_current_keys(cls: type, tree: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """`tree` with today's names of the keys that `cls` lists in `RENAMED`, {published: now}.

    Raises:
        UserError: A key is there under both names.
    """
    renamed: dict[str, str] = getattr(cls, "RENAMED", {})
    for old, new in renamed.items():
        if old in tree and new in tree:
            raise UserError(f"{path}: {old} and {new} are one key, and both are there; write {new} alone")
    return {renamed.get(key, key): value for key, value in tree.items()}


def _with_current_key(cls: type, override: str) -> str:
    key = re.split(r"[.\[=]", override, maxsplit=1)[0]
    renamed: dict[str, str] = getattr(cls, "RENAMED", {})
    return renamed.get(key, key) + override[len(key) :]


def find(name: str) -> Path:
    """Finds a config file.

    Args:
        name: A path, or the name of a config of this package, such as ``scale.yaml``.

    Raises:
        UserError: There is no such file, with the closest match.
    """
    if is_file(name):
        return Path(name)
    if os.path.exists(name):
        bounded.regular_file(name)  # raises an error that says what it is
    package = Path(__file__).parents[1]
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package)
    known = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*.yaml"))}
    wanted = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if wanted not in known:
        raise UserError(f"there is no config file {shortened(name)}, here or in the package{nearest(wanted, known)}")
    return known[wanted]


def is_file(name: str | Path) -> bool:
    """True for the path of a regular file; False for an invalid path too."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False


def _read(path: Path, above: tuple[Path, ...]) -> Layers:
    """The file and its bases, the one with precedence first, each with its tree."""
    if path.resolve() in above:
        raise UserError(f"{above[-1]}: base: {path} is its own base, by way of {len(above)} files; break the circle")
    if len(above) == MOST_BASES:
        raise UserError(f"{above[0]}: more than {MOST_BASES} files name each other as base:; write fewer")
    tree = _parse(path)
    base = tree.pop("base", None)
    if base is None:
        return ((path, tree),)
    below = path.parent / str(base)
    if not is_file(below):
        raise UserError(f"{path}: base: there is no file {shortened(str(below))}{_neighbours(below)}")
    return ((path, tree), *_read(below, (*above, path.resolve())))


def _parse(path: Path) -> dict[str, Any]:
    if not is_file(path):
        raise UserError(f"there is no config file {shortened(str(path))}{_neighbours(path)}")
    return plain(path)


def _neighbours(path: Path) -> str:
    return nearest(path.name, [p.name for p in path.parent.glob("*.yaml")]) if len(str(path)) < 1000 else ""
