"""Numeric ranges in the annotations of fields and arguments: ``k: Annotated[int, Ge(1)]``, or ``k: Count``.

The reader of configs checks them (`violation`), and so do the constructors of subclasses of `Ranged`, the base of every
part, and each function and config class decorated with `ranged`. Every float must be finite and fit float32, every int
64 bits. The range of a schedule,
``Annotated[AbstractSchedule, Ge(0)]``, is that of its values over the steps of a run (`jhsae.training.checks`).
``tests/bad_values.py`` has 240 values that are refused.
"""

import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

import numpy as np
from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen

from jhsae.errors import UserError

INT32, INT64, FLOAT32 = 2**31 - 1, 2**63 - 1, float(np.finfo(np.float32).max)

Count = Annotated[int, Ge(1), Le(INT32)]  # steps, rows, features: what arrays on a device are counted by
Natural = Annotated[int, Ge(0), Le(INT32)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # a larger one would be cut to 32 bits
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]  # of a running mean
Words = Annotated[str, MinLen(1)]

T = TypeVar("T")


class Infinite:
    """An annotation that allows an infinite float: ``Annotated[float, Infinite()]``."""


class Ranged:
    """Base of classes whose constructors check their fields, or the arguments of ``__init__``."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _checking(cls.__dict__["__init__"])  # type: ignore[method-assign]

    def __check_init__(self) -> None:
        """Equinox calls this when the fields are set."""
        for name, hint in hints_of(type(self)).items():
            if (words := violation(getattr(self, name, None), hint, name)) is not None:
                raise UserError(f"{type(self).__name__}: {words}")


def ranged(target: T) -> T:
    """A function that checks its arguments before it runs, or a dataclass that checks its fields."""
    made: Any = target
    if not inspect.isclass(made):
        return cast(T, _checking(made))
    made.__init__ = _checking(made.__init__, made.__name__)  # type: ignore[method-assign]
    return target


def violation(value: Any, hint: Any, name: str = "") -> str | None:
    """The violation of a hint, as in "k is -3, expected at least 1"; None where `value` matches it.

    Lists, mappings and alternatives are checked recursively. Array shapes are not checked, nor slots (mappings with a
    ``_target_``), which are checked against their own class.

    Args:
        value: the value of a field or argument.
        hint: its annotation.
        name: its name, for the sentence.
    """
    wrong = _wrong(value, hint, ())
    if wrong is None:
        return None
    path = ".".join(part for part in (name, *map(str, wrong.where)) if part)
    return f"{path} is {wrong.got}, expected {wrong.expected}".strip()


def bounds(hint: Any) -> tuple[BaseMetadata, ...]:
    """The bounds in the outermost annotation of a hint."""
    return _bounds(get_args(hint)[1:]) if get_origin(hint) is Annotated else ()


def outside(value: Any, notes: Iterable[Any]) -> str | None:
    """The expectation that a value violates (a bound, finiteness), None where it is within its range.

    Args:
        value: a number.
        notes: the metadata of its annotation, of which bounds and `Infinite` count.
    """
    notes = tuple(notes)
    if isinstance(value, Integral):
        if abs(int(value)) > INT64:
            return "a number that fits 64 bits"
    elif math.isnan(value) or (abs(value) > FLOAT32 and not any(isinstance(n, Infinite) for n in notes)):
        return "a finite number that fits float32"
    limits = _bounds(notes)
    if all(_within(value, limit) for limit in limits):
        return None
    said = [_limit(n) for n in limits if not (isinstance(n, Le) and n.le in (INT32, 2**32 - 1) and value <= n.le)]
    return " and ".join(said)


def hints_of(target: Any) -> Mapping[str, Any]:
    """The hints of a function's arguments or of a class's fields, without those whose names do not resolve."""
    return _hints_of(target)


@functools.cache
def _hints_of(target: Any) -> Mapping[str, Any]:
    hints: dict[str, Any] = {}
    for owner in reversed(target.__mro__) if inspect.isclass(target) else (inspect.unwrap(target),):
        scope = getattr(owner, "__globals__", None) or vars(sys.modules.get(owner.__module__, types))
        for name, hint in inspect.get_annotations(owner).items():
            holder = types.SimpleNamespace(__annotations__={name: hint})
            try:
                hints |= typing.get_type_hints(holder, dict(scope), include_extras=True)
            except (NameError, TypeError, SyntaxError):  # a name imported only under TYPE_CHECKING cannot be checked
                hints.pop(name, None)
    return types.MappingProxyType(hints)


def _checking(function: Callable[..., Any], owner: str | None = None) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*values: Any, **words: Any) -> Any:
        try:
            given = signature.bind(*values, **words).arguments
        except TypeError:  # the call raises the better error
            return function(*values, **words)
        hints = hints_of(function)
        for name, value in given.items():
            if name in hints and (sentence := violation(value, hints[name], name)) is not None:
                raise UserError(f"{owner or _name(function, given)}: {sentence}")
        return function(*values, **words)

    return call


def _name(function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    return type(given["self"]).__name__ if function.__name__ == "__init__" else function.__name__


class _Wrong(NamedTuple):
    """The place inside a value, what was got and expected there, and whether the type differs."""

    where: tuple[Any, ...]
    got: str
    expected: str
    kind: bool = False


def _wrong(value: Any, hint: Any, notes: tuple[Any, ...]) -> _Wrong | None:
    if get_origin(hint) is Annotated:
        base, *more = get_args(hint)
        return _wrong(value, base, (*notes, *more))
    if _is_traced(value) or (isinstance(value, Mapping) and "_target_" in value):
        return None
    if get_origin(hint) in (Union, types.UnionType):
        found = [_wrong(value, arg, notes) for arg in get_args(hint)]
        if any(wrong is None for wrong in found):
            return None
        near = next((wrong for wrong in found if wrong is not None and not wrong.kind), None)
        return near or _other_kind(value, " or ".join(wrong.expected for wrong in found if wrong is not None))
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    return _wrong_of_one(value, hint, get_origin(hint) or hint, notes)


def _wrong_of_one(value: Any, hint: Any, origin: Any, notes: tuple[Any, ...]) -> _Wrong | None:
    """As `_wrong`, for a hint that is neither annotated nor a union."""
    if hint is Any or hint is object:
        return _wrong_number(value, notes) if isinstance(value, float) else None
    if hint is None or hint is type(None):
        return None if value is None else _other_kind(value, "null")
    if hint is int or hint is float:
        if isinstance(value, bool) or not isinstance(value, Integral if hint is int else Real):
            return _other_kind(value, _kind(hint, notes))
        return _wrong_number(value, notes)
    if origin is Literal:
        fits = any(type(value) is type(arg) and value == arg for arg in get_args(hint))
        return None if fits else _other_kind(value, " or ".join(map(repr, get_args(hint))))
    if hint is str:
        if not isinstance(value, str | os.PathLike):
            return _other_kind(value, "text")
        return _wrong_length(value, notes) if isinstance(value, str) else None
    if origin in (list, tuple, Sequence, Collection):
        return _wrong_items(value, origin, get_args(hint), notes)
    if origin in (dict, Mapping):
        return _wrong_entries(value, get_args(hint), notes)
    if _is_plain_class(hint) and not isinstance(value, hint):
        return _other_kind(value, hint.__name__)
    return None


def _other_kind(value: Any, expected: str) -> _Wrong:
    return _Wrong((), f"{_short(value)} ({type(value).__name__})", expected, kind=True)


def _wrong_number(value: Any, notes: tuple[Any, ...]) -> _Wrong | None:
    expected = outside(value, notes)
    return None if expected is None else _Wrong((), _short(value), expected)


def _wrong_length(value: Collection[Any], notes: tuple[Any, ...]) -> _Wrong | None:
    for note in notes:
        if isinstance(note, MinLen) and len(value) < note.min_length:
            least = "at least one entry" if note.min_length == 1 else f"at least {note.min_length} entries"
            return _Wrong((), _short(value), "a text that is not empty" if isinstance(value, str) else least)
        if isinstance(note, MaxLen) and len(value) > note.max_length:
            return _Wrong((), _short(value), f"at most {note.max_length} entries")
    return None


def _wrong_items(value: Any, origin: Any, args: tuple[Any, ...], notes: tuple[Any, ...]) -> _Wrong | None:
    if not isinstance(value, list | tuple):
        return _other_kind(value, {tuple: "a tuple"}.get(origin, "a list"))
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            return _Wrong((), _short(value), f"{len(args)} entries")
        return _first((i, v, a) for i, (v, a) in enumerate(zip(value, args, strict=True)))
    return _wrong_length(value, notes) or _first((i, v, args[0] if args else Any) for i, v in enumerate(value))


def _wrong_entries(value: Any, args: tuple[Any, ...], notes: tuple[Any, ...]) -> _Wrong | None:
    if not isinstance(value, Mapping):
        # a slot may be built already: its annotation has the class of the part
        kinds = tuple(k for k in (getattr(note, "kind", None) for note in notes) if inspect.isclass(k))
        return None if isinstance(value, kinds) else _other_kind(value, "a mapping")
    return _wrong_length(value, notes) or _first((k, v, args[1] if args else Any) for k, v in value.items())


def _first(entries: Iterator[tuple[Any, Any, Any]]) -> _Wrong | None:
    for key, value, hint in entries:
        if (wrong := _wrong(value, hint, ())) is not None:
            return wrong._replace(where=(key, *wrong.where))
    return None


def _bounds(notes: Iterable[Any]) -> tuple[BaseMetadata, ...]:
    flat = [n for note in notes for n in (note if isinstance(note, GroupedMetadata) else (note,))]
    return tuple(note for note in flat if isinstance(note, Ge | Gt | Le | Lt))


def _within(value: Any, note: Any) -> bool:
    if isinstance(note, Ge):
        return value >= note.ge
    if isinstance(note, Gt):
        return value > note.gt
    return value <= note.le if isinstance(note, Le) else value < note.lt


def _limit(note: Any) -> str:
    if isinstance(note, Ge):
        return f"at least {note.ge:,}"
    if isinstance(note, Gt):
        return f"more than {note.gt:,}"
    return f"at most {note.le:,}" if isinstance(note, Le) else f"less than {note.lt:,}"


def _kind(hint: type, notes: tuple[Any, ...]) -> str:
    limits = " and ".join(_limit(n) for n in _bounds(notes) if not (isinstance(n, Le) and n.le in (INT32, 2**32 - 1)))
    noun = "a whole number" if hint is int else "a number"
    return f"{noun} of {limits}" if limits else noun


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_traced(value: Any) -> bool:
    """True for a JAX array, which may be a tracer; ranges apply to Python and NumPy scalars."""
    return hasattr(value, "aval")


def _is_plain_class(hint: Any) -> bool:
    """True for a class that `isinstance` accepts: no shaped arrays, protocols or aliases."""
    return (
        inspect.isclass(hint)
        and get_origin(hint) is None
        and hint.__module__.partition(".")[0] not in ("jaxtyping", "jax", "numpy", "optax")
        and not getattr(hint, "_is_protocol", False)
        and not typing.is_typeddict(hint)
    )
