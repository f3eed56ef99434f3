"""Checks of values read from JSON or YAML: schemas of nested values (`check`), and single keys (`setting`, `count`).

A form is a `Kind` (`TEXT`, `NUMBER`, ...), a list with the form of its items, an `Each` with the form of the values of
a mapping, or a dict with the form of every required key; a key that ends in ``?`` may be missing or null. Other keys
are ignored.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jhsae.errors import UserError, nearest


class Kind(NamedTuple):
    """A test of a value, and its description in messages."""

    words: str
    test: Callable[[Any], bool]


class Each(NamedTuple):
    """A mapping whose keys are strings and whose values all have one form."""

    form: Any


MAKE_AGAIN = "; make it again"

# larger numbers overflow in later arithmetic or plotting
NUMBER = Kind("a number", lambda value: type(value) in (int, float) and abs(value) <= 1e30)
COUNT = Kind("a whole number of at least 0", lambda value: type(value) is int and 0 <= value <= 10**15)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
LIST = Kind("a list", lambda value: isinstance(value, list))
TEXT = Kind("a string", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value))
PLAIN = Kind("a string or a number", lambda value: isinstance(value, str) or type(value) is bool or NUMBER.test(value))


def whole(least: int, most: int) -> Kind:
    """A whole number within bounds."""
    words = f"a whole number from {least} to {most}"
    return Kind(words, lambda value: type(value) is int and least <= value <= most)


def at_least(least: int) -> Kind:
    """A whole number with a lower bound."""
    return Kind(f"at least {least}", lambda value: COUNT.test(value) and value >= least)


def real(above: float | None = None) -> Kind:
    """A number greater than `above`, or of at least 0."""
    if above is None:
        return Kind("a number of at least 0", lambda value: NUMBER.test(value) and value >= 0)
    return Kind(f"a number above {above:g}", lambda value: NUMBER.test(value) and value > above)


def expect(value: Any, kind: Kind, place: str, mend: str = "") -> Any:
    """`value`, if it is of this kind.

    Args:
        value: Read from JSON or YAML.
        kind: What it must be.
        place: The file and the key, for the message.
        mend: The end of the message: what to do.

    Raises:
        UserError: It is not.
    """
    if not kind.test(value):
        raise UserError(f"{place} is {brief(value)}, expected {kind.words}{mend}")
    return value


def check(value: Any, form: Any, where: str | Path, key: str = "", mend: str = MAKE_AGAIN) -> None:
    """Raises `UserError`, with the file `where`, the key and `mend`, where `value` is not of this `form`."""
    place = f"{where}: {key[:200]!r}" if key else f"{where}"
    if isinstance(form, Kind):
        expect(value, form, place, mend)
    elif isinstance(form, list):
        for i, item in enumerate(expect(value, LIST, place, mend)):
            check(item, form[0], where, f"{key}.{i}".lstrip("."), mend)
    elif isinstance(form, Each):
        for name, item in expect(value, OBJECT, place, mend).items():
            check(item, form.form, where, f"{key}.{name}".lstrip("."), mend)
    else:
        _check_keys(expect(value, OBJECT, place, mend), form, where, key, mend)


def _check_keys(value: Mapping[str, Any], form: Mapping[str, Any], where: str | Path, key: str, mend: str) -> None:
    for name, inner in form.items():
        plain = name.removesuffix("?")
        if plain == name and name not in value:
            raise UserError(f"{where}: the key {f'{key}.{name}'.lstrip('.')!r} is missing{mend}")
        if plain in value and (plain == name or value[plain] is not None):
            check(value[plain], inner, where, f"{key}.{plain}".lstrip("."), mend)


def setting(config: Mapping[str, Any], key: str, kind: type, file: str | Path) -> Any:
    """``config[key]``, which must be of type `kind` (an int also where a float is asked for, never a bool for an int).

    `UserError`: no such key, another type.
    """
    if key not in config:
        raise UserError(f"{file}: no key '{key}', expected {kind.__name__}{nearest(key, config)}")
    value = config[key]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{file}: '{key}' is {brief(value)}, expected {kind.__name__}")
    return value


def count(config: Mapping[str, Any], key: str, file: str | Path, features: int | None = None) -> int:
    """``config[key]``, which must be an int of at least 1 and, where `features` is given, of at most that."""
    value = setting(config, key, int, file)
    if value < 1:
        raise UserError(f"{file}: '{key}' is {value}, expected at least 1")
    if features is not None and value > features:
        raise UserError(f"{file}: {key} is {value} but there are {features} features")
    return value


def text(config: Mapping[str, Any], key: str, file: str | Path) -> str | None:
    """``config[key]``, a string; None where the key is absent or null."""
    return None if config.get(key) is None else setting(config, key, str, file)


def brief(value: Any) -> str:
    """repr of a value in at most 100 characters."""
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:97] + "..."
