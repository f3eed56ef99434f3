"""Fits plain values to type hints, strictly: `fit(value, hint, place)` is the converted value.

YAML has no tuples and writes 1 for 1.0: lists become tuples and ints floats where the hint says so, and
nothing else is converted. A slot ``{_target_: package.Class, argument: value}`` is checked against the signature
of its class, and so are the slots inside it. A mismatch is a `UserError` with the place, the value and what was
expected. Nothing is built here.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from beartype.door import is_bearable
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

from jhsae.config.place import Place, shortened
from jhsae.config.schema import REQUIRED, Member, Supplied, is_config, is_part, keys, members, wanted, with_defaults
from jhsae.config.target import arguments, locate
from jhsae.config.wording import type_name
from jhsae.errors import UserError, nearest
from jhsae.ranges import violation

ANYTHING = (Any, object)
LISTS = (list, tuple, Sequence, Iterable)
MAPPINGS = (dict, Mapping)
NONE = (None, type(None))
MISFIT = object()


class CheckedSlot(dict[str, Any]):
    """A checked slot: a mapping of `_target_` and converted arguments.

    Args:
        values: its entries.
        place: its origin, for errors of the constructor.
        target: the class or function, whose signature the arguments match.
    """

    def __init__(self, values: Mapping[str, Any], place: Place, target: Callable[..., Any]) -> None:
        super().__init__(values)
        self.place = place
        self.target = target


def fit(value: Any, hint: Any, place: Place, supplied: Supplied | None = None) -> Any:
    """Converts `value` to `hint`; `supplied` overrides the hint of a slot."""
    options = members(hint, supplied)
    if value is None and any(m.hint in NONE for m in options):
        return None
    if isinstance(value, Mapping):
        fitted = _fit_mapping(value, options, place)
    elif isinstance(value, list | tuple):
        fitted = _fit_list(value, options, place)
    else:
        fitted = _fit_scalar(value, options)
    if fitted is MISFIT:
        raise _mismatch(value, hint if supplied is None else Annotated[hint, supplied], place)
    if (words := violation(fitted, hint)) is not None:  # a number out of its range
        raise place.error(words)
    return fitted


def _mismatch(value: Any, hint: Any, place: Place) -> UserError:
    parts = any(m.is_slot or is_part(m.hint) for m in members(hint))
    example = "; a part is written {_target_: package.Class, argument: value}" if parts else ""
    return place.error(f"is {_shown(value)}, expected {type_name(hint)}{example}")


def _shown(value: Any) -> str:
    return f"{shortened(repr(value))} ({type(value).__name__})"


def _fit_mapping(value: Mapping, options: list[Member], place: Place) -> Any:
    """MISFIT where no option takes a mapping."""
    if "_target_" in value:
        return _fit_part(value, options, place)
    for option in options:
        origin, args = get_origin(option.hint) or option.hint, get_args(option.hint)
        if is_config(option.hint):
            return fit_section(value, option.hint, place)
        if origin in (*MAPPINGS, *ANYTHING) and not option.is_slot:
            inner = args[1] if args else Any
            nullable = any(m.hint in (*NONE, *ANYTHING) for m in members(inner))
            return {
                fit(k, args[0] if args else Any, place): fit(v, inner, place / k, option.supplied)
                for k, v in value.items()
                if v is not None or nullable  # null removes an inherited entry
            }
    return MISFIT


def _fit_list(value: Sequence, options: list[Member], place: Place) -> Any:
    """MISFIT where no option takes a list."""
    for option in options:
        origin, args = get_origin(option.hint) or option.hint, get_args(option.hint)
        if origin not in (*LISTS, *ANYTHING):
            continue
        if origin is tuple and args and args[-1] is not Ellipsis:
            if len(args) != len(value):
                return MISFIT
            return tuple(fit(v, a, place / i) for i, (v, a) in enumerate(zip(value, args, strict=True)))
        inner = args[0] if args else Any
        fitted = [fit(v, inner, place / i, option.supplied) for i, v in enumerate(value)]
        return fitted if origin in (list, *ANYTHING) else tuple(fitted)
    return MISFIT


def _fit_scalar(value: Any, options: list[Member]) -> Any:
    """MISFIT where no option takes the value."""
    hints = [m.hint for m in options if not m.is_slot and not is_config(m.hint)]
    if isinstance(value, bool):
        hints = [h for h in hints if h is not int]
    with warnings.catch_warnings():
        # signatures of other packages may still use typing.List
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        if any(is_bearable(value, h) for h in hints):
            return value
    if type(value) is int and float in hints and abs(value) < 10**308:
        return float(value)
    return Path(value) if isinstance(value, str) and Path in hints else MISFIT


def fit_section(value: Any, cls: type, place: Place) -> Any:
    """The config dataclass `cls` from a mapping; absent keys take their defaults."""
    if not isinstance(value, Mapping):
        raise place.error(f"is {_shown(value)}, expected a mapping with the keys of {cls.__name__}")
    known = {key.name: key for key in keys(cls)}
    _refuse_unknown(value, known, f"a key of {cls.__name__}", place)
    value, fitted = with_defaults(cls, value), {}
    for name, key in known.items():
        here = place / name
        if _is_missing(value[name]):
            meaning = f" ({key.help})" if key.help else ""
            dotted = ".".join(here.keys)
            raise here.error(f"is missing, expected {type_name(key.hint)}{meaning}; write it there or {dotted}=...")
        fitted[name] = fit(value[name], key.hint, here)
    try:
        return cls(**fitted)
    except ValueError as error:  # from the __post_init__ of the dataclass
        raise place.error(str(error)) from error


def _refuse_unknown(value: Iterable[Any], known: Iterable[str], kind: str, place: Place) -> None:
    for name in value:
        if name not in known:
            raise (place / name).error(f"is not {kind}{nearest(str(name), known)}")


def _fit_part(value: Mapping, options: list[Member], place: Place) -> CheckedSlot:
    """A slot, whose class must be of a kind that the options name."""
    name = value["_target_"]
    slots = [m.supplied for m in options if m.is_slot and m.supplied is not None]
    kinds = [kind for s in slots for kind in s.wanted.kinds] + [m.hint for m in options if is_part(m.hint)]
    kind = wanted(tuple(dict.fromkeys(kinds)), [f for s in slots for f in s.functions])
    if not any(kind):
        raise (place / "_target_").error(f"is {shortened(str(name))}, but no part can stand here; write a value")
    supplied = frozenset().union(*(s.names for s in slots))
    target = locate(name, place / "_target_", kind)
    known, more = arguments(target)
    given = {k: v for k, v in value.items() if k != "_target_" and not _is_missing(v)}
    for word in given.keys() & known.keys() & supplied:
        raise (place / word).error(f"is an argument of {name} that the program supplies; leave it out")
    if not more:
        _refuse_unknown(given, known.keys() - supplied, f"an argument of {name}", place)
    for word, argument in known.items():
        if argument.required and word not in given and word not in supplied:
            raise (place / word).error(f"is missing, {name} needs it: {type_name(argument.hint)}")
    hints = {word: known[word].hint if word in known else Any for word in given}
    fitted = {k: fit(v, hints[k], place / k) for k, v in given.items()}
    return CheckedSlot({"_target_": name} | fitted, place, target)


def _is_missing(value: Any) -> bool:
    return isinstance(value, str) and value == REQUIRED
