"""Schemas of values read from JSON or YAML.

A form is a `Kind` (`TEXT`, `NUMBER`, ...), a list with the form of its items, an `Each` with the form of the values of
a mapping, or a dict with the form of every required key; a key that ends in ``?`` may be missing or null. Other keys
are ignored.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jhsae.errors import UserError


class Kind(NamedTuple):
    """A test of a value, and its description in messages."""

    words: str
    test: Callable[[Any], bool]


class Each(NamedTuple):
    """A mapping whose keys are strings and whose values all have one form."""

    form: Any


# larger numbers overflow in later arithmetic or plotting
NUMBER = Kind("a number", lambda value: type(value) in (int, float) and abs(value) <= 1e30)
COUNT = Kind("a whole number of at least 0", lambda value: type(value) is int and 0 <= value <= 10**15)
TEXT = Kind("a string", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value))
PLAIN = Kind("a string or a number", lambda value: isinstance(value, str) or type(value) is bool or NUMBER.test(value))


def check(value: Any, form: Any, where: str | Path, key: str = "") -> None:
    """Raises `UserError`, with the file `where` and the key, where `value` is not of this `form`."""
    if isinstance(form, Kind):
        if not form.test(value):
            _refuse(value, form.words, where, key)
    elif isinstance(form, list):
        if not isinstance(value, list):
            _refuse(value, "a list", where, key)
        for i, item in enumerate(value):
            check(item, form[0], where, f"{key}.{i}".lstrip("."))
    elif not OBJECT.test(value):
        _refuse(value, OBJECT.words, where, key)
    elif isinstance(form, Each):
        for name, item in value.items():
            check(item, form.form, where, f"{key}.{name}".lstrip("."))
    else:
        _check_keys(value, form, where, key)


def _check_keys(value: Mapping[str, Any], form: Mapping[str, Any], where: str | Path, key: str) -> None:
    for name, inner in form.items():
        plain = name.removesuffix("?")
        if plain == name and name not in value:
            raise UserError(f"{where}: the key {f'{key}.{name}'.lstrip('.')!r} is missing; make it again")
        if plain in value and (plain == name or value[plain] is not None):
            check(value[plain], inner, where, f"{key}.{plain}".lstrip("."))


def _refuse(value: Any, words: str, where: str | Path, key: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else shown[:97] + "..."
    place = f"{where}: {key[:200]!r}" if key else f"{where}"
    raise UserError(f"{place} is {shown}, expected {words}; make it again")
