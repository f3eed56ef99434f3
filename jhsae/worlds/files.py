"""The folder of a saved world: files that SAELens reads (`jhsae.worlds.saelens`), and two of ours that it ignores.

    synthetic_model_config.json   SAELens: sizes and generators
    synthetic_model.safetensors   SAELens: feature vectors, bias, probabilities, low-rank correlation
    hierarchy.json                SAELens: the trees; not there without one
    jhsae_world.json              ours: noise, all parents of features that have several, origin
    jhsae_world.safetensors       ours: means and standard deviations, number by number
    SHA256SUMS                    checksums of all of these

A folder that SAELens wrote lacks ours. Then means and standard deviations are those that its config generates, those
drawn at random as well where it records a seed.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jhsae.errors import UserError
from jhsae.files.bounded import JSON_BYTES, as_object, parse_json, to_json
from jhsae.files.checksums import Sums, new_folder
from jhsae.files.folders import local_folder
from jhsae.files.forms import COUNT, OBJECT, check, real, whole
from jhsae.files.tensor_files import tensor_header
from jhsae.worlds import saelens
from jhsae.worlds.generators import FoldedNormal
from jhsae.worlds.hierarchy import Hierarchy
from jhsae.worlds.origin import Generators
from jhsae.worlds.world import World, arrays
from jhsae.worlds.world import check as check_arrays

logger = logging.getLogger(__name__)
CONFIG, TENSORS, TREES = "synthetic_model_config.json", "synthetic_model.safetensors", "hierarchy.json"
OURS, OUR_TENSORS = "jhsae_world.json", saelens.EXACT
FORMAT = 1
FORM = {
    "format": whole(1, FORMAT),
    "noise": real(),
    "edges": [[COUNT]],
    "exclusive": [COUNT],
    "scaled": [COUNT],
    "origin": OBJECT,
}
NAMES = {"feature_vectors": "features", "firing_probabilities": "probabilities"}  # theirs -> ours; the others are equal
DTYPES = {"F64", "F32", "F16"}
DEEPEST = 100  # levels of a hierarchy: JSON nests twice as deep
AGAIN = "make the world again"


@dataclass(frozen=True)
class SavedWorld:
    """What a folder holds: the world, the generators of its numbers if they are known, and where it came from."""

    world: World
    generators: Generators | None
    origin: dict[str, Any] = field(default_factory=dict)


def save_world(
    world: World, folder: str | Path, generators: Generators | None = None, origin: dict[str, Any] | None = None
) -> Path:
    """Writes a world into a new folder.

    Args:
        world: The world.
        folder: A path of this machine at which there is nothing yet.
        generators: Of its numbers: with them SAELens loads magnitudes that are not all equal. Those that do not give
            the world's numbers are left out.
        origin: Plain data to keep with it.

    Raises:
        UserError: The folder exists, or a hierarchy of more than 100 levels.
    """
    out = local_folder(folder)
    if (depth := int(world.hierarchy.levels.max(initial=0))) > DEEPEST:
        raise UserError(f"the hierarchy has {depth} levels below its roots, expected at most {DEEPEST}")
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in arrays(world).items()}
    own = {name: tensors.pop(name) for name in ("means", "stds")}
    theirs = {ours: name for name, ours in NAMES.items()}
    about = {
        "format": FORMAT,
        "noise": world.noise,
        "edges": [[p, i] for i, parents in enumerate(world.hierarchy.above) for p in parents[1:]],
        "exclusive": sorted(world.hierarchy.exclusive),
        "scaled": sorted(world.hierarchy.scaled),
        "origin": origin or {},
    }
    with new_folder(out) as new:
        new.write(TENSORS, save({theirs.get(name, name): value for name, value in tensors.items()}))
        new.write(CONFIG, to_json(saelens.write_config(world, generators), indent=2) + "\n")
        if world.hierarchy.edges:
            new.write(TREES, to_json(saelens.write_trees(world.hierarchy), indent=1) + "\n")
        new.write(OUR_TENSORS, save(own))
        new.write(OURS, to_json(about, indent=1) + "\n")
    return out


def load_world(folder: str | Path) -> World:
    """The world in a folder that `save_world` or SAELens wrote. Raises what `read_world` does.

    Args:
        folder: that `jhsae world` or SAELens's SyntheticModel.save has written.
    """
    return read_world(folder).world


def read_world(folder: str | Path) -> SavedWorld:
    """A world with what is known about it.

    Args:
        folder: that `jhsae world` or SAELens's SyntheticModel.save has written.

    Raises:
        UserError: A file is missing, damaged or of another version, or the files do not fit each other.
    """
    path = local_folder(folder, "the world's folder")
    if not (path / CONFIG).exists():
        raise UserError(f"no world in {path} ({CONFIG} is not there); make one with jhsae world")
    sums = Sums.of(path)
    about = read_about(path, sums)
    if about is not None:
        sums.required(by_format=True)
    config = _object(sums, CONFIG)
    saelens.check_config(config, path / CONFIG)
    features, embed = config["num_features"], config["hidden_dim"]
    found = _tensors(sums, TENSORS, {"feature_vectors": (features, embed), "bias": (embed,)}, features)
    found = {NAMES.get(name, name): value for name, value in found.items()}
    hierarchy = _hierarchy(sums, config, about)
    generators = _known(config, path)
    if about is not None:
        own = _tensors(sums, OUR_TENSORS, {}, features)
    elif generators is not None:
        own = _regenerated(generators, config, hierarchy, path)
    else:
        raise UserError(f"{path} has no {OURS}, to which its {CONFIG} refers; copy it or {AGAIN}")
    check_arrays(found | own, hierarchy, str(path))
    noise = 0.0 if about is None else float(about["noise"])
    given = {name: jnp.asarray(value) for name, value in (found | own).items()}
    return SavedWorld(World(**given, hierarchy=hierarchy, noise=noise), generators, (about or {}).get("origin", {}))


def read_about(folder: Path, sums: Sums | None = None) -> dict[str, Any] | None:
    """The content of our own file; None in a folder that SAELens wrote."""
    if not (folder / OURS).exists():
        return None
    about = _object(sums or Sums.of(folder), OURS)
    check(about, FORM, folder / OURS)
    return about


def _object(sums: Sums, name: str) -> dict[str, Any]:
    path = Path(sums.folder) / name
    return as_object(parse_json(sums.read(name, JSON_BYTES), path, depth=4 * DEEPEST), path)


def _hierarchy(sums: Sums, config: dict[str, Any], about: dict[str, Any] | None) -> Hierarchy:
    """The trees, and our own further edges and flags."""
    folder, features = Path(sums.folder), config["num_features"]
    if (folder / TREES).exists():
        trees = saelens.read_trees(_object(sums, TREES), features, folder / TREES)
    elif config.get("hierarchy") is not None:
        raise UserError(f"{folder} has no {TREES}, though its config has a hierarchy; copy it or {AGAIN}")
    else:
        trees = Hierarchy(features)
    if about is None:
        return trees
    for edge in about["edges"]:
        if len(edge) != 2:
            raise UserError(f"{folder / OURS}: {edge} is no pair of parent and child; {AGAIN}")
    edges = trees.edges + tuple((p, i) for p, i in about["edges"])
    try:
        return Hierarchy(features, edges, frozenset(about["exclusive"]), frozenset(about["scaled"]))
    except UserError as error:
        raise UserError(f"{folder / OURS}: {error}") from error


def _tensors(sums: Sums, name: str, shapes: dict[str, tuple[int, ...]], features: int) -> dict[str, np.ndarray]:
    """The tensors of a file as float32; types and shapes are compared before any number is read."""
    path = Path(sums.folder) / name
    needed = {**shapes, "firing_probabilities": (features,)} if shapes else {"means": (features,), "stds": (features,)}
    header = tensor_header(path)
    correlated = shapes and header.keys() & {"correlation_factor", "correlation_diag"}
    if correlated:
        rank = max(header["correlation_factor"].shape[-1:], default=0) if "correlation_factor" in header else 0
        needed |= {"correlation_factor": (features, rank), "correlation_diag": (features,)}
    if unknown := sorted(header.keys() - needed):
        raise UserError(f"{path} has a tensor {unknown[0]!r}, which no world has; {saelens.LATER}")
    for key, shape in needed.items():
        if key not in header:
            raise UserError(f"{path} has no tensor {key!r} {list(shape)}; {AGAIN}")
        if header[key].dtype not in DTYPES or header[key].shape != shape:
            got = f"{header[key].dtype} {list(header[key].shape)}"
            raise UserError(f"{path}: {key} is {got}, expected {list(shape)} of float32; {AGAIN}")
    try:
        return {key: value.astype(np.float32) for key, value in load(sums.read(name)).items()}
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); {AGAIN}") from error


def _known(config: dict[str, Any], folder: Path) -> Generators | None:
    """The generators in the config; None where it says that no generator gives the numbers."""
    chosen = (config.get(key) for key in ("firing_probability", "mean_firing_magnitudes", "std_firing_magnitudes"))
    if any(isinstance(value, dict) and value.get("generator_name") == saelens.EXACT for value in chosen):
        return None
    return saelens.read_generators(config, folder / CONFIG)


def _regenerated(
    generators: Generators, config: dict[str, Any], hierarchy: Hierarchy, folder: Path
) -> dict[str, np.ndarray]:
    """Means and standard deviations of a world that SAELens wrote."""
    drawn = [generators.means, generators.stds]
    if config.get("seed") is None and any(isinstance(generator, FoldedNormal) for generator in drawn):
        logger.warning(
            f"{folder} draws its magnitudes at random and records no seed, so that SAELens draws others whenever it "
            "loads it; they are drawn here with seed 0"
        )
    values = generators.values(hierarchy)
    return {name: values[name] for name in ("means", "stds")}
