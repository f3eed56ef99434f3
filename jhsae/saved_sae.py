"""The saved SAE: ``sae.safetensors``, ``normalizer.safetensors`` and ``sae.json`` in a folder, local or in a bucket."""

import json
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jhsae import config
from jhsae.config import Slot
from jhsae.data import AbstractNormalizer
from jhsae.distributed import gathered, is_main
from jhsae.errors import UserError
from jhsae.folders import Folder, is_bucket, open_folder
from jhsae.forms import COUNT, OBJECT, TEXT, check
from jhsae.leaf import describe
from jhsae.sae import AbstractSAE

FORMAT = 2
DESCRIPTION, PARAMETERS, STATISTICS = "sae.json", "sae.safetensors", "normalizer.safetensors"


def save_sae(
    folder: Folder | str,
    sae: AbstractSAE,
    slot: Slot,
    normalize: Slot,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
) -> None:
    """Writes a settled SAE and its fitted normaliser; the folder appears complete and is never overwritten.

    ``sae.safetensors`` holds the parameters under their paths, ``normalizer.safetensors`` the normaliser's statistics
    (no file where it has none), ``sae.json`` the two slots and `about`. In a bucket, where no folder can be renamed at
    once, ``sae.json`` comes last. With several processes all take part and the main one writes.
    """
    folder = open_folder(folder)
    cut_off = is_bucket(folder) and not (folder / DESCRIPTION).exists()
    if is_main() and folder.exists() and not cut_off:
        raise UserError(f"{folder} exists and is never overwritten; write another folder")
    arrays = eqx.filter(sae, eqx.is_inexact_array)
    paths = [leaf.path for leaf in jax.tree.leaves(describe(arrays))]
    whole = {path: gathered(a) for path, a in zip(paths, jax.tree.leaves(arrays), strict=True)}
    files = {PARAMETERS: save({path: a for path, a in whole.items() if a is not None})}
    if statistics := _statistics(normalizer, sae.embed):
        files[STATISTICS] = save(statistics)
    slots = {"format": FORMAT, "sae": slot, "normalize": normalize}
    files[DESCRIPTION] = (json.dumps(slots | about | slots, indent=2) + "\n").encode()
    if is_main():
        _write(folder, files)


def _write(folder: Folder, files: dict[str, bytes]) -> None:
    partial = folder if is_bucket(folder) else folder.with_name(folder.name + ".partial")
    if partial.exists():  # a save was cut off
        epath.Path(partial).rmtree()
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    if partial != folder:
        partial.rename(folder)


def load_sae(folder: str | Folder) -> tuple[AbstractSAE, AbstractNormalizer, dict[str, Any]]:
    """The SAE, its fitted input normaliser and its description, from a run folder or the ``sae`` folder in it.

    `UserError`: no SAE there, another format, a file that is missing or damaged, a tensor that is missing, left over
    or has another shape than ``sae.json`` describes.
    """
    folder = open_folder(folder)
    folder = folder / "sae" if (folder / "sae").is_dir() else folder
    about = _description(folder)
    slot, normalize = (config.checked(about[name], str(folder / DESCRIPTION)) for name in ("sae", "normalize"))
    # shapes alone: starting values, drawn to be thrown away, would double the memory
    structure = eqx.filter_eval_shape(lambda key: config.build(slot, key=key).settled(None), jax.random.key(0))
    arrays, static = eqx.partition(structure, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    leaves = describe(arrays)
    shapes = {leaf.path: a.shape for leaf, a in zip(jax.tree.leaves(leaves), jax.tree.leaves(arrays), strict=True)}
    parameters = _tensors(folder / PARAMETERS, shapes)
    sae = eqx.combine(jax.tree.map(lambda leaf: parameters[leaf.path], leaves), static)
    normalizer = config.build(normalize)
    if wanted := normalizer.shapes(sae.embed):
        normalizer = replace(normalizer, **_tensors(folder / STATISTICS, wanted))
    return sae, normalizer, about


def _statistics(normalizer: AbstractNormalizer, embed: int) -> dict[str, np.ndarray]:
    """The arrays of a fitted normaliser by field."""
    found = {name: getattr(normalizer, name) for name in normalizer.shapes(embed)}
    if missing := [name for name, array in found.items() if array is None]:
        raise UserError(
            f"{type(normalizer).__name__} has no {missing[0]} yet; save the normaliser that fit(store) returns"
        )
    return {name: np.asarray(array) for name, array in found.items()}


def _description(folder: Folder) -> dict[str, Any]:
    """``sae.json``, of this format."""
    path = folder / DESCRIPTION
    if not path.exists():
        raise UserError(f"no trained SAE in {folder} ({DESCRIPTION} is missing); write the folder of a finished run")
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error}); train or copy it again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if not isinstance(found, int):
        raise UserError(f"{path} names no format, expected format {FORMAT}; write the folder of a finished run")
    if found > FORMAT:
        raise UserError(f"{path} is of format {found}; this jhsae reads up to {FORMAT}; update jhsae")
    if found < FORMAT:
        raise UserError(f"{path} is of format {found}, of an older jhsae, and this one reads {FORMAT}; train it again")
    if missing := [name for name in ("sae", "normalize") if name not in about]:
        raise UserError(f"{path}: '{missing[0]}' is missing, expected a slot; train or copy it again")
    return with_facts(about, path)


def _tensors(path: Folder, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """The tensors of a file, which must be exactly those that ``sae.json`` describes."""
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path} cannot be read ({error}); train or copy it again") from error
    for name in {**shapes, **tensors}:
        got = tensors[name].shape if name in tensors else "missing"
        expected = shapes.get(name, "no such tensor")
        if got != expected:
            raise UserError(
                f"{path}: '{name}' is {got}, but {DESCRIPTION} describes {expected}; the two files belong to "
                "different SAEs"
            )
    return {name: jnp.asarray(array) for name, array in tensors.items()}


STORE = {"path?": TEXT, "sha256?": TEXT}
FACTS = {
    "name?": TEXT,
    "config_hash?": TEXT,
    "commit?": TEXT,
    "reads?": {"model?": TEXT, "layer?": COUNT},
    "store?": STORE,
    "source?": OBJECT,
    "versions?": OBJECT,
}


def with_facts(about: dict[str, Any], path: str | Folder) -> dict[str, Any]:
    """`about` with what its readers look up in ``reads``; `UserError` for a value of another type."""
    check(about, FACTS, str(path))
    return about | {"reads": {"model": None, "layer": None} | (about.get("reads") or {})}
