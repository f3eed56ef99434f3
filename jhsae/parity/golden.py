"""Rows of a parity table, and reading the arrays of a golden file."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jhsae.errors import UserError, nearest
from jhsae.files import archives
from jhsae.files.bounded import MIB

LARGEST = 64 * MIB  # of all arrays together
LONGEST, WORK = 4096, 2**32  # of an axis, and the product of all sizes of a model and its batches
NUMBERS = "fiub"
FORWARD, GRADIENT, TRAINED = 1e-5, 1e-4, 1e-4  # tolerances, relative to the largest reference entry


@dataclass(frozen=True)
class Row:
    """One quantity: its errors against the reference, and the bound it must keep."""

    name: str
    max_abs_error: float
    relative_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.relative_error <= self.tolerance

    def to_dict(self) -> dict[str, str | float | bool]:
        """The row as JSON can hold it."""
        return asdict(self) | {"passed": self.passed}


class Golden(dict[str, np.ndarray]):
    """The arrays of a golden file. One that is not there is a `UserError`."""

    def __missing__(self, key: str) -> np.ndarray:
        raise UserError(f"the golden file has no array '{key}'{nearest(key, self)}")


def compare(name: str, ours: np.ndarray, reference: np.ndarray, tolerance: float) -> Row:
    """Errors of `ours`; shapes that differ fail with an infinite error."""
    if reference.dtype.kind not in NUMBERS:
        raise UserError(f"the golden file has the type {reference.dtype.str} for '{name}', expected numbers")
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        return Row(name, float("inf"), float("inf"), tolerance)
    error = float(np.max(np.abs(ours - reference), initial=0.0))
    scale = float(np.max(np.abs(reference), initial=0.0))
    return Row(name, error, error / scale if scale else error, tolerance)


def same_sets(name: str, ours: np.ndarray, reference: np.ndarray) -> Row:
    """Rows of indices compared as sets; the error counts the rows that differ."""
    if ours.shape != reference.shape or not len(reference):
        return Row(name, float("inf"), float("inf"), 0.0)
    differing = float(np.sum(np.any(np.sort(ours, -1) != np.sort(reference, -1), axis=-1)))
    return Row(name, differing, differing / len(reference), 0.0)


def read(path: Path) -> Golden:
    """The arrays of an npz file; `UserError` when there is no such file, or it is not one, or a large one."""
    return Golden(archives.load_npz(path, LARGEST))


def sizes(arrays: Golden, shapes: dict[str, str]) -> dict[str, int]:
    """The size of every axis, from numeric arrays whose axes `shapes` names: ``{"batches": "steps batch embed"}``.

    `UserError`: an array is missing, has another number of axes, or its size of an axis is 0, above `LONGEST`, or not
    that of the others; the axes together make a computation that no golden file is about.
    """
    found: dict[str, int] = {}
    for key, axes in shapes.items():
        array, names = arrays[key], axes.split()
        if array.dtype.kind not in NUMBERS or array.ndim != len(names):
            raise UserError(f"the golden file has '{key}' of {array.dtype.str} {list(array.shape)}, expected [{axes}]")
        for name, size in zip(names, array.shape, strict=True):
            if not 1 <= size <= LONGEST or found.setdefault(name, size) != size:
                raise UserError(
                    f"the golden file has '{key}' {list(array.shape)}, expected [{axes}] with {name} = {found[name]}"
                )
    if math.prod(found.values()) > WORK:
        raise UserError(f"the golden file has the sizes {found}, which take too long to recompute; make a smaller one")
    return found


def whole_number(arrays: Golden, key: str, most: int) -> int:
    """The number in a scalar array, which must be one from 1 to `most`."""
    array = arrays[key]
    if array.shape != () or array.dtype.kind not in "iu" or not 1 <= int(array) <= most:
        shown = str(array.tolist())[:100]
        raise UserError(f"the golden file has '{key}' = {shown}, expected a whole number from 1 to {most}")
    return int(array)


def group(arrays: Golden, prefix: str) -> Golden:
    """The arrays under ``prefix/``, without it. A missing group is an error that names the file's groups."""
    found = Golden({key.removeprefix(prefix + "/"): a for key, a in arrays.items() if key.startswith(prefix + "/")})
    if not found:
        groups = sorted({key.split("/")[0] for key in arrays})
        raise UserError(f"the golden file has no '{prefix}/...' arrays, only {', '.join(groups)}")
    return found
