"""The class or function that a slot's `_target_` names: found but not called, its arguments read off."""

import importlib
import importlib.util
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from jhsae.config.place import Place
from jhsae.errors import nearest


class Argument(NamedTuple):
    """One argument of a target. A hint that cannot be resolved is `Any`."""

    hint: Any
    required: bool


def locate(name: Any, place: Place) -> Callable[..., Any]:
    """The callable of dotted `name`. Raises `UserError` at `place` with the nearest name that exists."""
    words = name.split(".") if isinstance(name, str) else []
    if len(words) < 2 or not all(word.isidentifier() for word in words):
        raise place.error(f"is {name!r}, expected a dotted path such as jhsae.sparsify.TopK")
    if importlib.util.find_spec(words[0]) is None:
        raise place.error(f"is {name}, but there is no package {words[0]}; install it or mend the name")
    found: Any = importlib.import_module(words[0])
    for depth, word in enumerate(words[1:], 1):
        found = _inside(found, ".".join(words[:depth]), word, name, place)
    if not callable(found) or inspect.isabstract(found):
        kind = "abstract" if callable(found) else f"a {type(found).__name__}"
        raise place.error(f"is {name}, which is {kind}; write a class that can be built, or a function")
    return found


def _inside(parent: Any, path: str, word: str, name: str, place: Place) -> Any:
    """The member `word` of a module (imported if need be) or class."""
    submodules = {m.name for m in pkgutil.iter_modules(getattr(parent, "__path__", ()))}
    known = {n for n in dir(parent) if not n.startswith("_")}
    if word in known:
        return getattr(parent, word)
    if word in submodules:
        return importlib.import_module(f"{path}.{word}")
    raise place.error(f"is {name}, but {path} has no {word}{nearest(word, known | submodules)}")


def arguments(target: Callable[..., Any]) -> tuple[dict[str, Argument], bool]:
    """The arguments that `target` takes by name, and whether it takes any other (`**kwargs`, a builtin)."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # a builtin that states no signature
        return {}, True
    hints = resolved_hints(target)
    named = {
        p.name: Argument(hints.get(p.name, Any), p.default is p.empty)
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def resolved_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of the call (of `__init__` for a class), without those whose names do not resolve."""
    call = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    scope = getattr(call, "__globals__", {})
    hints: dict[str, Any] = {}
    for name, hint in getattr(call, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: hint})
        try:
            hints |= typing.get_type_hints(holder, scope, include_extras=True)
        except NameError:  # a quoted name that only a type checker sees, so there is nothing to check
            continue
    return hints
