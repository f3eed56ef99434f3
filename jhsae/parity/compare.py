"""``jhsae parity FILE.npz``: recomputes a file of golden values and prints one row per quantity."""

from pathlib import Path

import numpy as np

from jhsae.errors import UserError
from jhsae.files.bounded import to_json
from jhsae.files.folders import write_whole
from jhsae.parity import moe as parity_moe
from jhsae.parity import polytope as parity_polytope
from jhsae.parity import saelens as parity_saelens
from jhsae.parity.golden import Golden, Row, read


def run(path: str | Path, json_path: str | Path | None = None) -> bool:
    """Prints the table, writes it as JSON when asked, and returns whether every row passed."""
    found = rows(read(Path(path)), str(path))
    width = max(len(row.name) for row in found)
    print(f"{'quantity':{width}s}  {'max abs error':>13s}  {'relative':>9s}  {'allowed':>8s}")
    for row in found:
        numbers = f"{row.max_abs_error:13.2e}  {row.relative_error:9.2e}  {row.tolerance:8.0e}"
        print(f"{row.name:{width}s}  {numbers}  {'pass' if row.passed else 'FAIL'}")
    failed = sum(not row.passed for row in found)
    print(f"{len(found) - failed} of {len(found)} pass")
    if json_path is not None:
        write_whole(Path(json_path), to_json([row.to_dict() for row in found], indent=2) + "\n")
    return failed == 0


def rows(arrays: dict[str, np.ndarray], path: str) -> list[Row]:
    """The rows of a golden file of any known kind, told by the arrays in it."""
    try:
        return _rows(Golden(arrays), path)
    except UserError as error:
        raise UserError(str(error).replace("the golden file", path, 1)) from error


def _rows(arrays: Golden, path: str) -> list[Row]:
    if "init/W_down" in arrays:
        return parity_moe.rows(arrays)
    if "geometry/unembedding" in arrays:
        return parity_polytope.rows(arrays)
    if "dead_mask" in arrays:
        return parity_saelens.rows(arrays)
    raise UserError(
        f"{path} is of no known kind: it has neither init/W_down (MixtureOfExperts_v2) nor geometry/unembedding "
        f"(PolytopeSAE) nor dead_mask (SAELens), but {', '.join(sorted(arrays)[:5])}, ...; write a golden file"
    )
