"""Rows of activations as a caller gives them: what is taken for an array [rows, embed], and what is refused.

Shapes and types are checked inside a compiled function as well, where they are known; whether every number is finite,
only where there are numbers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jhsae.errors import UserError

SHOWN = 5  # rows that a message names


def leading_axes(x: Any, embed: int, name: str = "x") -> tuple[Any, tuple[int, ...] | None]:
    """`x` as rows, and its axes before the last; None where `x` has two axes, so that it is rows already.

    Args:
        x: [..., embed], an array of JAX, NumPy or torch or a list.
        embed: The width.
        name: What messages call it.

    Raises:
        UserError: Another width in an array of one axis, or of more than two; else nothing is checked.
    """
    try:
        shape = tuple(x.shape) if hasattr(x, "shape") else np.shape(x)
    except ValueError:  # lists of different lengths
        return x, None
    if len(shape) in (0, 2):
        return x, None
    if shape[-1] != embed:
        raise UserError(f"{name} has shape {list(shape)}, expected [..., {embed}]")
    if not hasattr(x, "shape"):
        x = np.asarray(x)
        x = x.astype(np.float32) if x.dtype.kind in "iu" else x  # as of `host_rows`
    return x.reshape((math.prod(shape[:-1]), embed)), shape[:-1]


def as_rows(x: Any, embed: int | None, name: str = "x") -> Float[Array, "rows embed"]:
    """`x` as an array on the device, float32 unless it is a narrower float.

    Lists, NumPy, JAX and torch arrays are taken. Raises `UserError` as `host_rows` does.
    """
    found = x if isinstance(x, jax.Array | jax.core.Tracer) else jnp.asarray(host_rows(x, embed, name))
    check_rows(found, embed, name)
    return found if isinstance(found, jax.core.Tracer) else _all_finite(found, name)


def host_rows(
    x: Any, embed: int | None = None, name: str = "x", finite: bool = True
) -> Float[np.ndarray, "rows embed"]:
    """`x` as an array in memory, float64 as float32; `finite` says whether rows must be.

    Raises:
        UserError: not numbers, not floats, not two axes, another width than `embed`, or rows that are not finite.
    """
    x = x.detach().cpu().float() if hasattr(x, "detach") else x  # torch, of which NumPy takes no bfloat16
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise UserError(f"{name} has masked numbers, expected whole rows; leave them out, or write {name}.filled(0)")
    try:
        found = np.asarray(x)
        if found.dtype.kind in "iu" and not hasattr(x, "dtype"):  # whole numbers in a list, as in [[0, 1]]
            found = found.astype(np.float32)
        check_rows(found, embed, name)
        with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite and is named below
            found = found.astype(np.float32) if found.dtype.itemsize > 4 else found
        found = found.astype(found.dtype.newbyteorder("="), copy=False)  # of another machine, which JAX does not take
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is a {type(x).__name__} that is no array of numbers ({said})") from error
    return _all_finite(found, name) if finite else found


def check_rows(x: Any, embed: int | None, name: str = "x") -> None:
    """Raises `UserError` unless `x`, an array or a tracer, holds rows of `embed` floats (any number with None)."""
    width = "embed" if embed is None else str(embed)
    if x.ndim != 2 or (embed is not None and x.shape[1] != embed):
        one = x.ndim == 1 and x.shape[0] == embed
        hint = f"; write {name}[None] for one row" if one else ""
        if x.ndim > 2 and x.shape[-1] == embed:
            hint = f"; write {name}.reshape(-1, {embed}) for rows in several axes"
        raise UserError(f"{name} has shape {list(x.shape)}, expected [rows, {width}]{hint}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{name} holds {x.dtype}, expected activations in a floating-point type; write them as float32")


def _all_finite(x: Any, name: str) -> Any:
    finite = (jnp if isinstance(x, jax.Array) else np).isfinite(x).all(axis=1)
    if isinstance(finite, jax.core.Tracer):  # a constant of a function that is being compiled
        return x
    finite = np.asarray(jax.device_get(finite))
    if finite.all():
        return x
    bad = np.flatnonzero(~finite).tolist()
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    rows = ", ".join(map(str, bad[:SHOWN]))
    raise UserError(
        f"{name} is not finite in {len(bad)} of {len(finite)} rows: {rows}{more}; leave them out, or compute them again"
    )
