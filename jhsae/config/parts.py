"""Builds the part that a slot names: ``build({_target_: jhsae.sparsify.TopK, k: 32})`` is ``TopK(k=32)``.

The building is `hydra.utils.instantiate`'s. What the program adds goes past it, because it would take an
Equinox module for a config (both are dataclasses).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException

from jhsae.config.check import CheckedSlot, fit
from jhsae.config.place import Place
from jhsae.config.schema import Slot, Supplied
from jhsae.errors import UserError


def build(slot: Slot, /, **extra: Any) -> Any:
    """The part that `slot` names, with the arguments of the slot and of `extra`.

    Raises `UserError` with the slot's place in its file when a constructor refuses its arguments
    (`ValueError`). Any other error of a constructor is a bug and comes through as it is.
    """
    try:
        return hydra.utils.instantiate(_with_tuples(slot), _partial_=True, _convert_="all")(**extra)
    except InstantiationException as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise _complaint(slot, str(error.__cause__ or error), _inner_keys(str(error))) from error
    except ValueError as error:
        raise _complaint(slot, str(error), []) from error


def checked(slot: Slot, where: str | Path, supplied: Supplied = Supplied("key")) -> Slot:  # noqa: B008
    """A slot read from the file `where`, JSON say, checked as `load` checks the slots of a config.

    Returns it with the tuples and floats that its class expects. Raises `UserError` with file and key.
    """
    return fit(slot, Slot, Place(files=((Path(where), slot),)), supplied)


def _complaint(slot: Slot, sentence: str, inner: list[str]) -> UserError:
    place = slot.place if isinstance(slot, CheckedSlot) else Place(keys=(slot["_target_"],))
    for key in inner:
        place = place / key
    return UserError(f"{place}: {sentence}")


def _inner_keys(message: str) -> list[str]:
    """The keys from the slot down to the part that failed, from hydra's ``full_key: more._args_0.pick``."""
    found = re.search(r"^full_key: (.*)$", message, re.MULTILINE)
    return re.sub(r"\b_args_", "", found[1]).split(".") if found else []


def tuple_of(*items: Any) -> tuple:
    """`items`."""
    return items


def _with_tuples(value: Any) -> Any:
    """`value` with every tuple as a call of `tuple_of`: OmegaConf knows lists alone."""
    if isinstance(value, tuple):
        return {"_target_": f"{__name__}.tuple_of", "_args_": [_with_tuples(v) for v in value]}
    if isinstance(value, list):
        return [_with_tuples(v) for v in value]
    return {k: _with_tuples(v) for k, v in value.items()} if isinstance(value, Mapping) else value
