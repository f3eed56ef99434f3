"""The class or function that a slot's `_target_` names, resolved without being called, and its arguments.

A name is a module and one word in it. It must be a class derived from the kind that the slot declares, or a
function that the slot lists; a member defined in another package than the one named is refused.
"""

import inspect
import logging
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from jhsae.config.aliases import current
from jhsae.config.place import Place, shortened
from jhsae.config.trust import OURS, import_inside, refusal
from jhsae.errors import nearest

logger = logging.getLogger(__name__)
NO_PARTS = [OURS, "interop"]  # rooms whose modules may import heavy third-party libraries


class Argument(NamedTuple):
    """One argument of a target. A hint that cannot be resolved is `Any`."""

    hint: Any
    required: bool


class Wanted(NamedTuple):
    """Targets that a slot accepts: subclasses of one of `kinds`, and the functions of these names."""

    kinds: tuple[type, ...]
    functions: tuple[str, ...] = ()

    def __str__(self) -> str:
        own = [kind.__name__ for kind in self.kinds if not inspect.isabstract(kind)]
        derived = [f"a class derived from {' or '.join(kind.__name__ for kind in self.kinds)}"] if self.kinds else []
        return " or ".join([*own, *derived, *self.functions])


def locate(name: Any, place: Place, wanted: Wanted) -> Callable[..., Any]:
    """The class or function of dotted `name`, which is not called.

    Raises:
        UserError: at `place`, the name does not exist (with the closest match), may not be imported, or is not
            accepted by the slot.
    """
    words = name.split(".") if isinstance(name, str) and len(name) < 500 else []
    if len(words) < 2 or not all(word.isidentifier() and not word.startswith("__") for word in words):
        raise place.error(f"is {shortened(repr(name))}, expected a dotted path such as jhsae.sparsify.TopK")
    *path, word = current(name).split(".")
    if reason := refusal(path[0], place.trust):
        raise place.error(f"is {name}, {reason}")
    if path[:2] == NO_PARTS:
        raise place.error(f"is {name}, but {'.'.join(NO_PARTS)} holds no parts; write one such as jhsae.sparsify.TopK")
    module = _module(path, name, place)
    found = _member(module, word, name, place)
    if current(name) in map(current, wanted.functions) and inspect.isfunction(found):
        return found
    if not inspect.isclass(found):
        kind = "a module" if isinstance(found, ModuleType) else f"a {type(found).__name__}"
        raise place.error(f"is {name}, which is {kind}, expected {wanted}")
    if not any(kind in found.__mro__ for kind in wanted.kinds):  # issubclass without the hooks of ABCs and protocols
        raise place.error(f"is {name}, expected {wanted}")
    if (home := str(found.__module__).partition(".")[0]) not in (path[0], OURS):
        raise place.error(f"is {name}, which lies in {home} and not in {path[0]}; write its own name")
    if inspect.isabstract(found) or getattr(found, "__abstractvars__", None):  # the latter are those of Equinox
        raise place.error(f"is {name}, which is abstract; write a class derived from it")
    return found


def _module(path: Sequence[str], name: str, place: Place) -> ModuleType:
    """The module of that path, imported package by package."""
    for depth in range(1, len(path) + 1):
        full = ".".join(path[:depth])
        if full not in sys.modules:
            if depth > 1 and path[depth - 1] not in (inside := _submodules(sys.modules[full.rpartition(".")[0]])):
                raise _absent(full.rpartition(".")[0], path[depth - 1], inside, name, place)
            _import(full, name, place)
    return sys.modules[".".join(path)]


def _import(full: str, name: str, place: Place) -> None:
    if not place.trust.written and not f"{full}.".startswith(f"{OURS}."):
        logger.warning(
            f"importing {full}, because {place.origin()} names {name} and its package is trusted for this call"
        )
    try:
        import_inside(full)
    except (Exception, SystemExit) as error:
        raise _failed(full, name, place, error) from error


def _failed(module: str, name: str, place: Place, error: BaseException) -> Exception:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return place.error(f"is {name}, but importing {module} failed ({reason}); mend that module or the name")


def _member(module: ModuleType, word: str, name: str, place: Place) -> Any:
    """The public member of a module; of its submodules only those already imported."""
    known = {n for n in dir(module) if not n.startswith("_")}
    if word in known:
        try:
            return getattr(module, word)
        except Exception as error:  # of a module with lazy imports
            raise _failed(module.__name__, name, place, error) from error
    if word in (inside := _submodules(module)):
        raise place.error(f"is {name}, which is a module; write one of its classes")
    raise _absent(module.__name__, word, known | inside, name, place)


def _submodules(module: ModuleType) -> set[str]:
    return {m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ()))}


def _absent(path: str, word: str, known: set[str], name: str, place: Place) -> Exception:
    return place.error(f"is {name}, but {path} has no {word}{nearest(word, known)}")


def arguments(target: Callable[..., Any]) -> tuple[dict[str, Argument], bool]:
    """The arguments that `target` takes by name, and whether it takes any other (`**kwargs`, no signature)."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):  # a class written in C without a signature
        return {}, True
    hints = resolved_hints(target)
    named = {
        p.name: Argument(hints.get(p.name, Any), p.default is p.empty)
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def resolved_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of the call (of the constructor for a class), without those whose names do not resolve."""
    call = inspect.unwrap(_constructor(target) if inspect.isclass(target) else target)
    scope = getattr(call, "__globals__", {})
    hints: dict[str, Any] = {}
    for name, hint in getattr(call, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: hint})
        try:
            hints |= typing.get_type_hints(holder, scope, include_extras=True)
        except NameError:  # a name imported only under TYPE_CHECKING cannot be checked
            continue
    return hints


def _constructor(cls: type) -> Callable[..., Any]:
    """`__init__`, or `__new__` where that alone takes the arguments, as in a named tuple."""
    return cls.__new__ if cls.__init__ is object.__init__ else cls.__init__  # type: ignore[misc]
