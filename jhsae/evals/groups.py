"""Parents and atoms apart, and their codes: what every metric without a ground truth starts from and returns.

Codes that are not positive count as silent, as in `jhsae.features.latents`. A result is JSON: `units` are the latents
or classes that have a value each, None where it is not defined; `null` has the mean over units of every draw of the
null, and `null_values` the values by unit where the units are those of the measurement.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from jhsae.errors import UserError
from jhsae.evals.labels import RowLabels
from jhsae.features.firings import Firings
from jhsae.sae import Forest


def groups(tree: Forest | None, features: int) -> dict[str, slice]:
    """The rows of ``sae.dictionary()`` by name: ``latents`` of a flat SAE, ``parents`` and ``atoms`` of a tree of two
    levels, and ``parents``, ``level_1``, ``level_2``, ... of a deeper one, whose parents are its roots.

    Args:
        tree: ``sae.tree``.
        features: the number of latents, for which there are codes.

    Raises:
        UserError: the tree has another number of latents.
    """
    if tree is None:
        return {"latents": slice(0, features)}
    if tree.size != features:
        raise UserError(
            f"the tree has {tree.size} latents, but the codes {features}; write the codes and the tree of one SAE"
        )
    below = ["atoms"] if len(tree.levels) == 2 else [f"level_{level}" for level in range(1, len(tree.levels))]
    blocks = zip(["parents", *below], tree.blocks, strict=True)
    return {name: slice(block.start, block.end) for name, block in blocks}


def code_matrix(firings: Firings) -> sparse.csc_matrix:
    """The positive codes, ``[measured rows, features]``, stored by feature."""
    values = np.maximum(firings.values, 0).astype(np.float64)
    codes = sparse.csc_matrix((values, firings.rows, firings.starts), shape=(firings.measured, firings.size))
    codes.eliminate_zeros()
    return codes


def check_rows_of(labels: RowLabels, rows: int, of: str = "codes") -> None:
    """Raises `UserError` unless there is a label entry for every row, and at least two classes."""
    if len(labels.classes) != rows:
        raise UserError(
            f"the labels are of {len(labels.classes)} rows, but the {of} of {rows}; write labels.on(store.index(0, "
            f"{rows}))"
        )
    if len(labels.present()) < 2:
        raise UserError("fewer than two classes occur on these rows; write labels of at least two")


def measured(units: Sequence[Any], values: Any, null: Any, by_unit: bool) -> dict[str, Any]:
    """One metric as JSON, with its null.

    Args:
        units: names or numbers of what has a value.
        values: one per unit, NaN where it is not defined.
        null: the values of every draw of the null.
        by_unit: whether those belong to the same units.
    """
    result = {
        "units": list(units),
        "values": defined(values),
        "mean": mean_of(values),
        "null": [mean_of(draw) for draw in null],
    }
    return result | ({"null_values": [defined(draw) for draw in null]} if by_unit else {})


def mean_of(values: Any) -> float | None:
    """The mean of the defined values; None where there are none."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else None


def defined(values: Any) -> list[float | None]:
    """The values as JSON: None in place of what is not finite."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values, np.float64)]


def divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
