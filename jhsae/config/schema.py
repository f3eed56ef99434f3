"""Keys of a config dataclass: names, types, defaults, help.

A config is a frozen dataclass; the help of a key is in its annotation, as in
``steps: Annotated[int, "optimizer steps"] = 100``. A swappable part is annotated `Slot`; a `Supplied` in the
annotation declares the class of the part and the arguments that the program adds.
"""

import dataclasses
import inspect
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import equinox as eqx

from jhsae.config.target import Wanted


class Supplied:
    """The class of the part in a slot, and the constructor arguments that the program, not the YAML, supplies.

    ``Annotated[Slot, "the autoencoder", Supplied("key", kind=AbstractSAE)]``.

    Args:
        names: the arguments that the program supplies, which the YAML must not have.
        kind: the class that the slot's parts are derived from. One whose parts may also be made by a function lists it
            in `MADE_BY`.
        functions: import paths of further functions that the slot accepts.

    Raises:
        TypeError: `kind` is no class that constrains its subclasses (`is_kind`).
    """

    def __init__(self, *names: str, kind: type | None = None, functions: Sequence[str] = ()) -> None:
        if kind is not None and not is_kind(kind):
            raise TypeError(f"the kind of a slot is {kind!r}, expected the class that its parts are derived from")
        self.names = frozenset(names)
        self.kind = kind
        self.functions = tuple(functions)

    @property
    def wanted(self) -> Wanted:
        """Targets that the slot accepts."""
        return wanted(() if self.kind is None else (self.kind,), self.functions)


def is_kind(cls: Any) -> bool:
    """True for a class that constrains its subclasses: not a protocol, not a builtin."""
    if not inspect.isclass(cls) or cls is eqx.Module or getattr(cls, "_is_protocol", False):
        return False
    return cls.__module__.partition(".")[0] not in sys.stdlib_module_names


def is_part(hint: Any) -> bool:
    """True for the hint of a constructor's argument that takes a part: an Equinox module or an abstract class."""
    return is_kind(hint) and (issubclass(hint, eqx.Module) or inspect.isabstract(hint))


def wanted(kinds: tuple[type, ...], functions: Sequence[str] = ()) -> Wanted:
    """Targets that a slot of these kinds accepts."""
    made_by = (name for kind in kinds for name in vars(kind).get("MADE_BY", ()))
    return Wanted(kinds, tuple(dict.fromkeys([*functions, *made_by])))


Slot = Annotated[dict[str, Any], Supplied("key")]  # every slot adds its own `Supplied`, with the kind
REQUIRED = "???"  # marks a required value


class Key(NamedTuple):
    """One key of a config dataclass. `default` is plain data, or `REQUIRED`."""

    name: str
    hint: Any
    default: Any
    help: str


class Member(NamedTuple):
    """One alternative of a type hint, without `Annotated`; `supplied` is None where no slot is allowed.

    `notes` are the annotations of the alternative and of the whole hint, such as a range.
    """

    hint: Any
    supplied: Supplied | None
    notes: tuple[Any, ...] = ()

    @property
    def is_slot(self) -> bool:
        """True for `Slot`; another ``dict`` is a free mapping."""
        return self.supplied is not None and self.hint == dict[str, Any]


def keys(cls: type) -> tuple[Key, ...]:
    """The keys of a config dataclass, in order. `TypeError` for a slot that takes any part."""
    return _keys(cls)


@cache
def _keys(cls: Any) -> tuple[Key, ...]:
    hints = get_type_hints(cls, include_extras=True)
    for name, hint in hints.items():
        if any(not any(slot.wanted) for slot in _slots(hint)):
            raise TypeError(f"{cls.__name__}.{name} is a slot of no kind; write Annotated[Slot, Supplied(kind=...)]")
    fields = [f for f in dataclasses.fields(cls) if f.init]
    return tuple(Key(f.name, hints[f.name], _default(f), _help(hints[f.name])) for f in fields)


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return plain(field.default_factory())
    return REQUIRED


def _help(hint: Any) -> str:
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((n for n in notes if isinstance(n, str)), "")


def members(hint: Any, supplied: Supplied | None = None, notes: tuple[Any, ...] = ()) -> list[Member]:
    """The alternatives of a hint: ``Slot | float | None`` has three. The outermost `Supplied` wins."""
    if get_origin(hint) is Annotated:
        base, *own = get_args(hint)
        inner = next((n for n in reversed(own) if isinstance(n, Supplied)), None)
        return members(base, inner if supplied is None else supplied, (*own, *notes))
    if get_origin(hint) in (Union, types.UnionType):
        return [m for arg in get_args(hint) for m in members(arg, supplied, notes)]
    if isinstance(hint, TypeVar):
        return members(hint.__bound__ or Any, supplied, notes)
    return [Member(hint, supplied, notes)]


def _slots(hint: Any, supplied: Supplied | None = None) -> Iterator[Supplied]:
    """Every slot in a hint, those inside of lists and mappings too."""
    for member in members(hint, supplied):
        if member.is_slot and member.supplied is not None:
            yield member.supplied
        else:
            for inner in get_args(member.hint):
                yield from _slots(inner, member.supplied)


def is_config(hint: Any) -> bool:
    """True for a config dataclass, False for a part: parts are Equinox modules, built from slots."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and not issubclass(hint, eqx.Module)


def plain(value: Any) -> Any:
    """`value` as plain YAML data: dataclasses become mappings, tuples lists, paths strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def overlay(below: Any, above: Any) -> Any:
    """`above` merged over `below`, mapping by mapping; one that names a `_target_` replaces the one below."""
    if isinstance(below, Mapping) and isinstance(above, Mapping) and "_target_" not in above:
        return {**below, **{k: overlay(below.get(k), v) for k, v in above.items()}}
    return above


def with_defaults(cls: type, tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` completed by the defaults of `cls`. A mapping of the tree extends a default section or slot, and
    replaces any other default."""
    out = dict(tree)
    for key in keys(cls):
        section = next((m.hint for m in members(key.hint) if is_config(m.hint)), None)
        given = out.setdefault(key.name, {} if section and key.default == REQUIRED else key.default)
        if isinstance(key.default, dict) and (section or "_target_" in key.default):
            given = out[key.name] = overlay(key.default, given)
        if section and isinstance(given, Mapping):
            out[key.name] = with_defaults(section, given)
    return out
