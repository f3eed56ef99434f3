"""The teacher: an artifact of arrays and metadata from which a hierarchical SAE is initialised.

With l_p a parent's unit vector in the unified space, Q_p the orthonormal basis of its children's deltas, Σ the
covariance of the unembedding:

    parents  Σ^(-1/2) l_p   readouts  Σ^(1/2) l_p   so that readout_p · parent_p = 1
    up       Q_p Σ^(-1/2)   down      Q_p Σ^(1/2)   so that down_p up_pᵀ = I

A child's atom is its delta in the coordinates of Q_p, at unit length. A folder holds teacher.safetensors,
teacher.json (names, token ids, provenance, validation) and their checksums, which those of format 1 lack.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jhsae.data.same_model import ModelName, same_model
from jhsae.errors import UserError
from jhsae.files import bounded, tensor_files
from jhsae.files.checksums import Sums, new_folder
from jhsae.metric import CausalGeometry, from_covariance
from jhsae.teacher.checks import check_arrays
from jhsae.teacher.estimate import Directions
from jhsae.teacher.select import Concept
from jhsae.teacher.subspace import subspace, unit

FORMAT = 2
WITHOUT_CHECKSUMS = 1  # the last format without checksums
AGAIN = "make the teacher again with jhsae teach"
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
    """Rows of residual vectors (decoder side) and covectors (encoder side); unused children are zero.

    Args:
        parents: A residual vector per parent, of unit norm in `geometry().residual`.
        readouts: A covector per parent.
        lengths: Norm of each parent's estimated vector; a concept's tokens project to it.
        deltas: Child minus parent, residual vectors at the estimated length.
        up: Basis of each parent's subspace, orthonormal rows in `geometry().residual`.
        down: Covectors; ``down @ x`` are the coordinates of x in that basis.
        atoms: Each child's delta in those coordinates, of unit norm.
        counts: Number of children of each parent.
        sigma: Σ of `geometry()`.
        concepts: The parents with their children, in the order of the arrays.
        provenance: Origin of the teacher, JSON values; ``model`` is the name of its language model.
        validation: Metrics of `jhsae.teacher.validate`, JSON values.
    """

    parents: Float32[np.ndarray, "parents embed"]
    readouts: Float32[np.ndarray, "parents embed"]
    lengths: Float32[np.ndarray, "parents"]
    deltas: Float32[np.ndarray, "parents children embed"]
    up: Float32[np.ndarray, "parents sub embed"]
    down: Float32[np.ndarray, "parents sub embed"]
    atoms: Float32[np.ndarray, "parents children sub"]
    counts: Int32[np.ndarray, "parents"]
    sigma: Float32[np.ndarray, "embed embed"]
    concepts: tuple[Concept, ...]
    provenance: dict[str, Any]
    validation: dict[str, Any]

    def check_origin(self, manifest: Any, store: str, folder: str | Path) -> None:
        """Raises `UserError` where this teacher and a store come from different language models.

        Args:
            manifest: The store's.
            store: Its path.
            folder: Of this teacher.
        """
        taught = ModelName(self.provenance["model"], self.provenance.get("model_sha256"))
        if not same_model(taught, ModelName.recorded(manifest), store):
            raise UserError(
                f"the teacher {folder} was made from {taught.name}, but the store {store} from {manifest.model}; "
                "make a teacher from the same model (jhsae teach ... lm.path=...)"
            )

    def geometry(self) -> CausalGeometry:
        """The causal geometry in which the teacher is orthonormal."""
        return from_covariance(self.sigma)

    def save(self, folder: str | Path) -> Path:
        """Writes the folder.

        Raises:
            UserError: It contains a teacher already.
        """
        folder = Path(folder)
        if (folder / NUMBERS).exists():
            raise UserError(f"{folder} holds a teacher already; write another folder, or remove that one")
        metadata = {
            "format": FORMAT,
            "concepts": [asdict(c) for c in self.concepts],
            "provenance": self.provenance,
            "validation": self.validation,
        }
        with new_folder(folder) as new:
            new.write(ARRAYS, save({name: np.ascontiguousarray(getattr(self, name)) for name in SHAPES}))
            new.write(NUMBERS, bounded.to_json(metadata, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Teacher":
        """Reads a folder written by `save`.

        Raises:
            UserError: It is missing, damaged or inconsistent.
        """
        folder = Path(folder)
        sums = Sums.of(folder)
        metadata = read_metadata(folder, sums)
        concepts = tuple(_concept(c, folder / NUMBERS) for c in metadata["concepts"])
        sums.required(metadata["format"] > WITHOUT_CHECKSUMS)
        header = tensor_files.tensor_header(folder / ARRAYS)
        _check_sizes(header, concepts, folder)
        try:
            arrays = load(sums.read(ARRAYS))
        except SafetensorError as error:
            raise UserError(f"{folder / ARRAYS} cannot be read ({error}); {AGAIN}") from error
        _check_content(arrays, concepts, folder)
        return cls(
            **{name: arrays[name] for name in SHAPES},
            concepts=concepts,
            provenance=metadata["provenance"],
            validation=metadata["validation"],
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
    """Builds a teacher from estimated directions.

    Args:
        concepts: The parents, with their children.
        directions: Unified-space vectors of parents and deltas.
        geometry: The causal geometry of the language model.
        sub: Dimensions of each parent's subspace (`jhsae.teacher.subspace`).
        variance: Fraction of the squared singular values of the deltas that the subspace retains.
        seed: Of the random directions that fill up a subspace.
        provenance: Recorded in the artifact.
        validation: Recorded in the artifact.
    """
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


def read_metadata(folder: Path, sums: Sums | None = None) -> dict[str, Any]:
    """Reads ``teacher.json``: format, concepts (as JSON), provenance, validation."""
    path = folder / NUMBERS
    if not path.exists():
        raise UserError(f"no teacher in {folder} ({NUMBERS} is not there); make one with jhsae teach")
    text = (sums or Sums.of(folder)).read(NUMBERS, bounded.JSON_BYTES)
    metadata = bounded.as_object(bounded.parse_json(text, path), path)
    kinds = {"format": int, "concepts": list, "provenance": dict, "validation": dict}
    known = all(type(metadata.get(key)) is kind for key, kind in kinds.items())
    if not known or not WITHOUT_CHECKSUMS <= metadata["format"] <= FORMAT:
        raise UserError(f"{path} is not a teacher of format {FORMAT}; make it again with jhsae teach")
    return metadata


def _concept(values: Any, path: Path) -> Concept:
    tokens: Any = values.get("tokens") if isinstance(values, dict) else None
    right = (
        isinstance(tokens, list)
        and all(type(token) is int and token >= 0 for token in tokens)
        and all(isinstance(values.get(key), str) for key in ("id", "name"))
        and isinstance(values.get("children"), list)
    )
    if not right:
        raise UserError(f"{path}: {str(values)[:100]} is no concept (id, name, tokens, children); {AGAIN}")
    return Concept(values["id"], values["name"], tuple(tokens), tuple(_concept(c, path) for c in values["children"]))


def _check_sizes(header: dict[str, tensor_files.TensorInfo], concepts: tuple[Concept, ...], folder: Path) -> None:
    """Checks the shapes in the header against each other and the concepts, before any tensor is read."""
    counts = [len(c.children) for c in concepts]
    if not counts or not all(counts):
        raise UserError(f"{folder / NUMBERS} names {len(counts)} parents, {counts.count(0)} without a child; {AGAIN}")
    sizes = {"parents": len(counts), "children": max(counts)}
    for name, axes in SHAPES.items():
        dtype = "I32" if name == "counts" else "F32"
        if name not in header or len(header[name].shape) != len(axes) or header[name].dtype != dtype:
            raise UserError(f"{folder / ARRAYS} has no {name} {list(axes)} {dtype}; make it again with jhsae teach")
        for axis, size in zip(axes, header[name].shape, strict=True):
            if sizes.setdefault(axis, size) != size or size < 1:
                raise UserError(
                    f"{folder / ARRAYS}: {name} has {size} {axis} where {max(1, sizes[axis])} are expected; {AGAIN}"
                )


def _check_content(arrays: dict[str, np.ndarray], concepts: tuple[Concept, ...], folder: Path) -> None:
    if [len(c.children) for c in concepts] != arrays["counts"].tolist():
        raise UserError(f"{folder}: {NUMBERS} names other concepts than {ARRAYS} holds; {AGAIN}")
    check_arrays({name: arrays[name] for name in SHAPES}, folder / ARRAYS)
