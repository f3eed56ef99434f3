"""Checks of a teacher's arrays: finite values and nonzero directions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jhsae.errors import UserError

DIRECTIONS = ("parents", "readouts", "up", "down")  # arrays whose rows must be nonzero


def check_arrays(arrays: Mapping[str, np.ndarray], file: Path) -> None:
    """Raises `UserError` for an array that is not finite, a direction of zeros, a parent without children.

    An SAE that starts from such a teacher would have experts that never fire.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{file}: {name} is not finite everywhere; make the teacher again with jhsae teach")
    for name in DIRECTIONS:
        lengths = np.linalg.norm(arrays[name].reshape(-1, arrays[name].shape[-1]), axis=1)
        if not lengths.all():
            raise UserError(
                f"{file}: {name} holds {int((lengths == 0).sum())} of {len(lengths)} vectors of zeros, expected "
                "directions; make the teacher again with jhsae teach"
            )
    counts, most = arrays["counts"], arrays["atoms"].shape[1]
    if counts.min() < 1 or counts.max() > most:
        raise UserError(
            f"{file}: counts is {counts.min()} to {counts.max()} children, expected 1 to {most}; make the teacher again"
        )
