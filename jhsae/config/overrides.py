"""Overrides of a config, ``a.b=c`` or ``stages.0.steps=9``, applied to its tree in order."""

from typing import Any

from jhsae.config.place import Place, list_index, override_keys, shortened
from jhsae.config.plain_yaml import parse
from jhsae.config.schema import overlay
from jhsae.errors import UserError
from jhsae.files.bounded import DEPTH


def overridden(tree: dict[str, Any], place: Place) -> dict[str, Any]:
    """A copy of `tree` with the overrides of `place` set.

    A mapping merges with the existing one; one that names a `_target_`, or any other value, replaces it.

    Raises:
        UserError: something that is not key=value, a value that is no YAML, an index that a list does not have.
    """
    copy = _copied(tree)
    for override in place.overrides:
        name, equals, text = override.partition("=")
        keys = override_keys(override)
        if not equals or not keys:
            raise UserError(f"{place.origin()}: override {shortened(override)!r} sets nothing, expected key=value")
        try:
            if len(keys) > DEPTH:
                raise UserError(f"it has {len(keys)} keys inside each other, expected at most {DEPTH}")
            _set(copy, keys, parse(text, name))
        except UserError as error:
            raise UserError(f"{place.origin()}: override {shortened(override)} cannot be applied: {error}") from error
    return copy


def _set(tree: Any, keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        at = _index(tree, key)
        if not isinstance(tree[at] if isinstance(tree, list) else tree.get(at), dict | list):
            tree[at] = {}
        tree = tree[at]
    at = _index(tree, keys[-1])
    tree[at] = _copied(overlay(tree[at] if isinstance(tree, list) else tree.get(at), value))


def _index(tree: Any, key: str) -> Any:
    if not isinstance(tree, list):
        return key
    if (index := list_index(tree, key)) is None:
        raise UserError(f"index {shortened(key)} is out of range of a list of {len(tree)}")
    return index


def _copied(value: Any) -> Any:
    """A deep copy without shared nodes: nodes shared by YAML anchors are changed independently."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
