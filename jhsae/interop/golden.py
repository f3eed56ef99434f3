"""Rows of a parity table, and reading the arrays of a golden file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from jhsae.errors import UserError

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


def compare(name: str, ours: np.ndarray, reference: np.ndarray, tolerance: float) -> Row:
    """Errors of `ours`; shapes that differ fail with an infinite error."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if ours.shape != reference.shape:
        return Row(name, float("inf"), float("inf"), tolerance)
    error = float(np.max(np.abs(ours - reference), initial=0.0))
    scale = float(np.max(np.abs(reference), initial=0.0))
    return Row(name, error, error / scale if scale else error, tolerance)


def same_sets(name: str, ours: np.ndarray, reference: np.ndarray) -> Row:
    """Rows of indices compared as sets; the error counts the rows that differ."""
    if ours.shape != reference.shape:
        return Row(name, float("inf"), float("inf"), 0.0)
    differing = float(np.sum(np.any(np.sort(ours, -1) != np.sort(reference, -1), axis=-1)))
    return Row(name, differing, differing / len(reference), 0.0)


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; `UserError` when there is no such file or it is not one."""
    if not path.exists():
        raise UserError(f"no file {path}; write the path of a golden .npz file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (BadZipFile, ValueError) as error:
        raise UserError(f"{path} is not an npz file of arrays ({error}); write a golden .npz file") from error


def group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays under ``prefix/``, without it. A missing group is an error that names the file's groups."""
    found = {key.removeprefix(prefix + "/"): a for key, a in arrays.items() if key.startswith(prefix + "/")}
    if not found:
        groups = sorted({key.split("/")[0] for key in arrays})
        raise UserError(f"the golden file has no '{prefix}/...' arrays, only {', '.join(groups)}")
    return found
