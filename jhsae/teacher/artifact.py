"""The teacher: an artifact of arrays and numbers from which a hierarchical SAE can start.

With l_p a parent's unit vector in the unified space, Q_p the orthonormal basis of its children's deltas, Σ the
covariance of the unembedding:

    parents  Σ^(-1/2) l_p   readouts  Σ^(1/2) l_p   so that readout_p · parent_p = 1
    up       Q_p Σ^(-1/2)   down      Q_p Σ^(1/2)   so that down_p up_pᵀ = I

A child's atom is its delta in the coordinates of Q_p, at unit length. A folder holds teacher.safetensors and
teacher.json (names, token ids, provenance, validation).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jhsae.errors import UserError
from jhsae.metric import CausalGeometry, from_covariance
from jhsae.teacher.estimate import Directions
from jhsae.teacher.numbers import check_numbers
from jhsae.teacher.select import Concept
from jhsae.teacher.subspace import subspace, unit

FORMAT = 1
ARRAYS, NUMBERS = "teacher.safetensors", "teacher.json"
SHAPES = {
    "parents": ("parents", "embed"),
    "readouts": ("parents", "embed"),
    "lengths": ("parents",),
    "deltas": ("parents", "children", "embed"),
    "up": ("parents", "sub", "embed"),
    "down": ("parents", "sub", "embed"),
    "atoms": ("parents", "children", "sub"),
    "counts": ("parents",),
    "sigma": ("embed", "embed"),
}


@dataclass(frozen=True)
class Teacher:
    """Rows of residual vectors (decoder side) and covectors (encoder side); unused children are zero."""

    parents: Float32[np.ndarray, "parents embed"]  # unit norm in `geometry().residual`
    readouts: Float32[np.ndarray, "parents embed"]  # covectors
    lengths: Float32[np.ndarray, "parents"]  # norm of the estimated vector; a concept's tokens project to it
    deltas: Float32[np.ndarray, "parents children embed"]  # child minus parent, at the estimated length
    up: Float32[np.ndarray, "parents sub embed"]  # orthonormal rows in `geometry().residual`
    down: Float32[np.ndarray, "parents sub embed"]  # covectors: down x are coordinates
    atoms: Float32[np.ndarray, "parents children sub"]  # unit
    counts: Int32[np.ndarray, "parents"]  # children of each parent
    sigma: Float32[np.ndarray, "embed embed"]
    concepts: tuple[Concept, ...]
    provenance: dict[str, Any]
    validation: dict[str, Any]

    def geometry(self) -> CausalGeometry:
        """The causal geometry in which the teacher is orthonormal."""
        return from_covariance(self.sigma)

    def save(self, folder: str | Path) -> Path:
        """Write the folder; one that holds a teacher already is an error."""
        folder = Path(folder)
        if (folder / NUMBERS).exists():
            raise UserError(f"{folder} holds a teacher already; write another folder, or remove that one")
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in SHAPES}, folder / ARRAYS)
        numbers = {
            "format": FORMAT,
            "concepts": [asdict(c) for c in self.concepts],
            "provenance": self.provenance,
            "validation": self.validation,
        }
        # Last, because it marks the folder as complete.
        (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Teacher":
        """Read a folder that `save` wrote; a missing, cut or inconsistent one is a `UserError`."""
        folder = Path(folder)
        numbers = _read_numbers(folder)
        try:
            arrays = load_file(folder / ARRAYS)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder / ARRAYS} cannot be read ({error}); make the teacher again with jhsae teach"
            ) from error
        _check_sizes(arrays, numbers["concepts"], folder)
        check_numbers({name: arrays[name] for name in SHAPES}, folder / ARRAYS)
        return cls(
            **{name: arrays[name] for name in SHAPES},
            concepts=tuple(_concept(c) for c in numbers["concepts"]),
            provenance=numbers["provenance"],
            validation=numbers["validation"],
        )


def build(
    concepts: tuple[Concept, ...],
    directions: Directions,
    geometry: CausalGeometry,
    *,
    sub: int,
    variance: float,
    seed: int,
    provenance: dict[str, Any],
    validation: dict[str, Any],
) -> Teacher:
    """The artifact of unified-space `directions`, with subspaces of `sub` dimensions (`subspace.py`)."""
    rng = np.random.default_rng(seed)
    steer = np.asarray(geometry.unembedding.matrix, np.float64)
    read = np.asarray(geometry.residual.matrix, np.float64)
    counts = [len(d) for d in directions.deltas]
    deltas = np.zeros((len(counts), max(counts), directions.parents.shape[1]))
    for i, rows in enumerate(directions.deltas):
        deltas[i, : len(rows)] = rows
    pairs = zip(directions.deltas, directions.parents, strict=True)
    bases = np.stack([subspace(rows, parent, sub, variance, rng) for rows, parent in pairs])
    parents = unit(directions.parents)
    arrays = {
        "parents": parents @ steer,
        "readouts": parents @ read,
        "lengths": np.linalg.norm(directions.parents, axis=-1),
        "deltas": deltas @ steer,
        "up": bases @ steer,
        "down": bases @ read,
        "atoms": unit(np.einsum("pcd,psd->pcs", deltas, bases)),
        "sigma": np.asarray(geometry.sigma),
    }
    return Teacher(
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        counts=np.array(counts, np.int32),
        concepts=concepts,
        provenance=provenance,
        validation=validation,
    )


def _concept(values: dict[str, Any]) -> Concept:
    children = tuple(_concept(c) for c in values["children"])
    return Concept(values["id"], values["name"], tuple(values["tokens"]), children)


def _read_numbers(folder: Path) -> dict[str, Any]:
    path = folder / NUMBERS
    if not path.exists():
        raise UserError(f"no teacher in {folder} ({NUMBERS} is not there); make one with jhsae teach")
    try:
        numbers = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); make the teacher again with jhsae teach") from error
    wanted = {"format", "concepts", "provenance", "validation"}
    if not isinstance(numbers, dict) or not wanted <= numbers.keys() or numbers["format"] != FORMAT:
        raise UserError(f"{path} is not a teacher of format {FORMAT}; make it again with jhsae teach")
    return numbers


def _check_sizes(arrays: dict[str, np.ndarray], concepts: list[dict[str, Any]], folder: Path) -> None:
    sizes: dict[str, int] = {}
    for name, axes in SHAPES.items():
        if name not in arrays or arrays[name].ndim != len(axes):
            raise UserError(f"{folder / ARRAYS} has no {name} {list(axes)}; make it again with jhsae teach")
        for axis, size in zip(axes, arrays[name].shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise UserError(
                    f"{folder / ARRAYS}: {name} has {size} {axis} where {sizes[axis]} are expected; "
                    "make the teacher again with jhsae teach"
                )
    if [len(c["children"]) for c in concepts] != arrays["counts"].tolist():
        raise UserError(f"{folder}: {NUMBERS} names other concepts than {ARRAYS} holds; make it again")
