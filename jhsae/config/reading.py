"""Reads a config class from YAML: its defaults, then ``base:`` files, the file itself, the overrides.

OmegaConf parses, applies ``a.b=c`` and resolves ``${a.b}``; `check` then fits the tree to the class.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jhsae import bounded
from jhsae.config.check import fit_section
from jhsae.config.place import Place, override_keys
from jhsae.config.schema import keys, overlay, with_defaults
from jhsae.errors import UserError, nearest

Config = TypeVar("Config")
Layers = tuple[tuple[Path, dict[str, Any]], ...]


def load(cls: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config dataclass `cls` from the YAML file `path`, under overrides such as ``stages.0.steps=100``.

    A file may begin with ``base: other.yaml`` (relative to it) and then states only what differs. A mapping
    that names a `_target_` replaces the one below it; other mappings merge; ``null`` takes an entry out of a
    mapping of parts. ``${rsqrt:${sae.embed}}`` is 1/sqrt of a value. Raises `UserError` with file, key and
    what would be right.
    """
    if any(key.name == "base" for key in keys(cls)):
        raise TypeError(f"{cls.__name__} has a key 'base', which names the file below in every YAML; rename it")
    OmegaConf.register_new_resolver("rsqrt", lambda x: 1 / math.sqrt(x), replace=True)
    layers = _read(Path(path), ())
    tree: dict[str, Any] = {}
    for _, layer in reversed(layers):
        tree = overlay(tree, layer)
    place = Place(layers, tuple(overrides))
    return fit_section(_resolved(with_defaults(cls, tree), place), cls, place)


def find(name: str) -> Path:
    """The config file `name`: a path, or else one of the configs of this package, such as ``scale.yaml``."""
    if os.path.isfile(name):  # which is also False for a name that is too long to be one
        return Path(name)
    if os.path.exists(name):
        bounded.regular_file(name)
    package = Path(__file__).parents[1]
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package)
    known = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*.yaml"))}
    wanted = name.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if wanted not in known:
        raise UserError(f"there is no config file {name}, here or in the package{nearest(wanted, known)}")
    return known[wanted]


def _read(path: Path, above: tuple[Path, ...]) -> Layers:
    """The file and the files below it, the winning one first, each with its own tree."""
    if path.resolve() in above:
        raise UserError(f"{above[-1]}: base: {path} is its own base, by way of {len(above)} files; break the circle")
    tree = _parse(path)
    base = tree.pop("base", None)
    if base is None:
        return ((path, tree),)
    below = path.parent / str(base)
    if not below.is_file():
        raise UserError(f"{path}: base: there is no file {below}{_neighbours(below)}")
    return ((path, tree), *_read(below, (*above, path.resolve())))


def _parse(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no config file {path}{_neighbours(path)}")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: holds a list, expected a mapping: lines such as steps: 100")
    return _data(tree)


def _neighbours(path: Path) -> str:
    return nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])


def _resolved(tree: dict[str, Any], place: Place) -> dict[str, Any]:
    """`tree` with the overrides set, one after the other, and every ``${...}`` replaced by its value."""
    holder = OmegaConf.create(tree)
    for override in place.overrides:
        name, equals, text = override.partition("=")
        if not equals or not override_keys(override):
            raise UserError(f"{place.origin()}: override {override!r} sets nothing, expected key=value")
        try:
            value = _data(OmegaConf.from_dotlist([f"value={text}"]))["value"]
            # A part given whole replaces the one that was there.
            OmegaConf.update(holder, name, value, merge=not (isinstance(value, dict) and "_target_" in value))
        except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{place.origin()}: override {override} cannot be applied: {reason}") from error
    try:
        return _data(holder, resolve=True)
    except OmegaConfBaseException as error:
        for key in override_keys(str(error.full_key or "")):
            place = place / key
        raise place.error(f"cannot be resolved: {str(error).splitlines()[0]}") from error


def _data(holder: Any, resolve: bool = False) -> dict[str, Any]:
    plain = OmegaConf.to_container(holder, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
