"""Rounding of values in JSON."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def short(values: Sequence[float] | Float[np.ndarray, "_"]) -> list[float]:
    """Six significant digits of each value; a non-finite value is an error."""
    written = [float(f"{value:.6g}") if value else 0.0 for value in np.asarray(values, np.float64).tolist()]
    if not all(map(math.isfinite, written)):
        raise ValueError("a number that is not finite was to be written as JSON")
    return written
