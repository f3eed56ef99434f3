"""Fits plain values to type hints, strictly: `fit(value, hint, place)` is the value as the hint wants it.

YAML has no tuples and writes 1 for 1.0: lists become tuples and ints floats where the hint says so, and
nothing else is converted. A slot ``{_target_: package.Class, argument: value}`` is held against the signature
of its class, and so are the slots inside it. Whatever does not fit is a `UserError` with the place, what was
got and what was expected. Nothing is built here.
"""

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import equinox as eqx
from beartype.door import is_bearable
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

from jhsae.config.place import Place
from jhsae.config.schema import REQUIRED, Member, Supplied, is_config, keys, members, with_defaults
from jhsae.config.target import arguments, locate, resolved_hints
from jhsae.config.wording import type_name
from jhsae.errors import UserError, nearest
from jhsae.ranges import violation

ANYTHING = (Any, object)
LISTS = (list, tuple, Sequence, Iterable)
MAPPINGS = (dict, Mapping)
NONE = (None, type(None))
MISFIT = object()


class CheckedSlot(dict[str, Any]):
    """A slot that passed the check. It knows where it was written, for what its constructor may say later."""

    def __init__(self, values: Mapping[str, Any], place: Place) -> None:
        super().__init__(values)
        self.place = place


def fit(value: Any, hint: Any, place: Place, supplied: Supplied | None = None) -> Any:
    """`value` as `hint` wants it; `supplied` overrules what the hint says about a slot."""
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
        raise _mismatch(value, hint, place)
    if (words := violation(fitted, hint)) is not None:  # a number out of its range
        raise place.error(words)
    return fitted


def _mismatch(value: Any, hint: Any, place: Place) -> UserError:
    parts = any(m.is_slot or (inspect.isclass(m.hint) and issubclass(m.hint, eqx.Module)) for m in members(hint))
    example = "; a part is written {_target_: package.Class, argument: value}" if parts else ""
    return place.error(f"is {value!r} ({type(value).__name__}), expected {type_name(hint)}{example}")


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
                if v is not None or nullable  # null takes an entry out that a base file put in
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
        # Other packages' signatures still say typing.List, which is no concern of this one's users.
        warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
        if any(is_bearable(value, h) for h in hints):
            return value
    if type(value) is int and float in hints:
        return float(value)
    return Path(value) if isinstance(value, str) and Path in hints else MISFIT


def fit_section(value: Any, cls: type, place: Place) -> Any:
    """The config dataclass `cls` from a mapping; absent keys take their defaults."""
    if not isinstance(value, Mapping):
        raise place.error(f"is {value!r} ({type(value).__name__}), expected a mapping with the keys of {cls.__name__}")
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
    """A slot, whose class must be of a type that the options name."""
    supplied = next((m.supplied for m in options if m.is_slot), None)
    slot = check_slot(value, place, supplied.names if supplied else frozenset())
    wanted = [supplied.kind] if supplied else [get_origin(m.hint) or m.hint for m in options]
    made = _made(locate(value["_target_"], place))
    checkable = all(inspect.isclass(w) and not getattr(w, "_is_protocol", False) for w in wanted)
    if made is not None and checkable and not issubclass(made, tuple(wanted)):
        names = " or ".join(w.__name__ for w in wanted if w not in NONE)
        raise (place / "_target_").error(f"is {value['_target_']}, expected {names} or a class derived from it")
    return slot


def _made(target: Any) -> type | None:
    """The class of what `target` makes, as far as it says so."""
    if inspect.isclass(target):
        return target
    made = resolved_hints(target).get("return")
    return made if inspect.isclass(made) and issubclass(made, eqx.Module) else None


def check_slot(slot: Mapping, place: Place, supplied: frozenset[str] = frozenset({"key"})) -> CheckedSlot:
    """The slot, its arguments fitted to the signature of its class; the program gives those in `supplied`."""
    name = slot["_target_"]
    known, more = arguments(locate(name, place / "_target_"))
    given = {k: v for k, v in slot.items() if k != "_target_" and not _is_missing(v)}
    for word in given.keys() & known.keys() & supplied:
        raise (place / word).error(f"is an argument of {name} that the program supplies; leave it out")
    if not more:
        _refuse_unknown(given, known.keys() - supplied, f"an argument of {name}", place)
    for word, argument in known.items():
        if argument.required and word not in given and word not in supplied:
            raise (place / word).error(f"is missing, {name} needs it: {type_name(argument.hint)}")
    hints = {word: known[word].hint if word in known else Any for word in given}
    return CheckedSlot({"_target_": name} | {k: fit(v, hints[k], place / k) for k, v in given.items()}, place)


def _is_missing(value: Any) -> bool:
    return isinstance(value, str) and value == REQUIRED
