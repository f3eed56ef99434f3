"""Builds the part that a slot names: ``build({_target_: jhsae.sparsify.TopK, k: 32}, ...)`` is ``TopK(k=32)``.

Only targets that passed `check` are called, with arguments that match their signature.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jhsae.config.check import CheckedSlot, fit
from jhsae.config.place import Place
from jhsae.config.schema import Slot, Supplied
from jhsae.config.trust import trusted
from jhsae.errors import UserError
from jhsae.files.bounded import check_size


def build(slot: Slot, kind: type | Supplied | None = None, /, **extra: Any) -> Any:
    """Builds the part that a slot names.

    A slot from `load` or `checked` is built as it is. One written by a script is checked first, and must name a
    subclass of `kind` (or a target that the `Supplied` accepts).

    Args:
        slot: A mapping with a ``_target_`` and arguments.
        kind: The class of the part, or a `Supplied`.
        **extra: Further arguments of the constructor.

    Raises:
        UserError: The slot does not match, or a constructor refuses its arguments (`ValueError`), with the slot's
            place in its file. Any other error of a constructor is a bug and is not caught, unless the slot was read.
        TypeError: An unchecked slot without a kind.
    """
    if not isinstance(slot, CheckedSlot):
        if kind is None:
            raise TypeError("this slot was not checked; say what part it must be, as in build(slot, AbstractSAE)")
        supplied = kind if isinstance(kind, Supplied) else Supplied(*extra, kind=kind)
        return _called(fit(slot, Slot, Place(keys=_name(slot)), supplied), extra)
    return _called(slot, extra)


def checked(
    slot: Slot, where: str | Path, supplied: Supplied, *, key: str = "", trust: str | Iterable[str] = ()
) -> CheckedSlot:
    """A slot read from the file `where`, JSON say, checked as `load` checks the slots of a config.

    Args:
        slot: The slot.
        where: The file, for messages.
        supplied: Targets that the slot accepts.
        key: Its key in the file, for messages.
        trust: Packages beside jhsae whose classes it may name.

    Returns:
        The slot with the tuples and floats that its class expects.

    Raises:
        UserError: with file and key.
    """
    place = Place(((Path(where), {key: slot} if key else slot),), keys=(key,) if key else (), trust=trusted(trust))
    check_size(slot, str(place))
    return fit(slot, Slot, place, supplied)


def _called(slot: CheckedSlot, extra: Mapping[str, Any]) -> Any:
    given = {key: _built(value) for key, value in slot.items() if key != "_target_"}
    try:
        return slot.target(**given, **extra)
    except ValueError as error:
        raise UserError(f"{slot.place}: {error}") from error
    except (TypeError, ArithmeticError) as error:
        if slot.place.trust.written:  # a bug, with its traceback
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{slot.place}: {slot['_target_']} cannot be built of these arguments ({reason})") from error


def _built(value: Any) -> Any:
    """An argument with every slot in it built."""
    if isinstance(value, CheckedSlot):
        return _called(value, {})
    if isinstance(value, list | tuple):
        return type(value)(map(_built, value))
    return {key: _built(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _name(slot: Any) -> tuple[str, ...]:
    return (str(slot["_target_"]),) if isinstance(slot, Mapping) and "_target_" in slot else ()
