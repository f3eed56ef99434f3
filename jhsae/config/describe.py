"""The slot of a part that is at hand: the inverse of `build`, for parts whose constructor's arguments are attributes.

An argument that the part does not keep (a starting value) takes its default, and so does an array, which is a parameter
and not configuration; whoever needs an equal part compares what the slot builds.
"""

from importlib import import_module
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jhsae.config.schema import Slot
from jhsae.config.target import arguments
from jhsae.errors import UserError

MISSING = object()


def slot_of(part: Any, *supplied: str) -> Slot:
    """The slot that builds a part like `part`.

    Args:
        part: An Equinox module, or another object whose constructor's arguments are its attributes.
        *supplied: Arguments of the constructor that the program supplies.

    Raises:
        UserError: An argument without a default that the part does not keep, or that no YAML holds.
    """
    cls = type(part)
    slot: dict[str, Any] = {"_target_": _public_name(cls)}
    for name, argument in arguments(cls)[0].items():
        if name in supplied:
            continue
        value = _plain(getattr(part, name, MISSING), argument.required)
        if value is not MISSING:
            slot[name] = value
        elif argument.required:
            raise UserError(
                f"{cls.__name__} does not keep its argument '{name}' as a number, a text or a part, so that no slot "
                "can describe it; keep it so, or give the slot"
            )
    return slot


def _plain(value: Any, required: bool = False) -> Any:
    """`value` as YAML holds it; `MISSING` for what it cannot hold, and for an array that is not `required`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, jax.Array | np.ndarray):
        return float(value) if value.ndim == 0 and required else MISSING
    if isinstance(value, eqx.Module):
        return slot_of(value)
    if isinstance(value, tuple | list):
        found = [_plain(one) for one in value]
        return MISSING if MISSING in found else found
    return MISSING


def _public_name(cls: type) -> str:
    """The import path of a class, that of its package where this exports it."""
    package = cls.__module__.rpartition(".")[0]
    exported = package and getattr(import_module(package), cls.__qualname__, None) is cls
    return f"{package if exported else cls.__module__}.{cls.__qualname__}"
