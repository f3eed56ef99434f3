"""The saved SAE: ``sae.safetensors``, ``normalizer.safetensors``, ``sae.json`` and their checksums in a folder.

The folder is local or in a bucket. Every file is compared with its checksum before it is used; folders of format 2 and
older have none, which loading says.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jhsae import config
from jhsae.config import Slot, Supplied
from jhsae.data import AbstractNormalizer, Identity
from jhsae.errors import UserError
from jhsae.files import bounded, checksums, tensor_files
from jhsae.files.checksums import Sums
from jhsae.files.folders import Folder, is_bucket, open_folder, refuse_existing
from jhsae.files.forms import COUNT, OBJECT, TEXT, check
from jhsae.leaf import describe
from jhsae.parallel.distributed import gathered, is_main
from jhsae.sae import AbstractSAE

SAE, NORMALIZER = Supplied("key", kind=AbstractSAE), Supplied(kind=AbstractNormalizer)
FORMAT = 3
WITHOUT_CHECKSUMS = 2  # the last format that had none
DESCRIPTION, PARAMETERS, STATISTICS = "sae.json", "sae.safetensors", "normalizer.safetensors"


def save_sae(
    folder: Folder | str,
    sae: AbstractSAE,
    slot: Slot | None = None,
    normalize: Slot | None = None,
    normalizer: AbstractNormalizer | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Writes an inference-time SAE and its fitted normaliser; the folder appears complete and is never overwritten.

    `load_sae` reads it: ``save_sae(folder, sae)``, then ``sae, normalizer, about = load_sae(folder)``.

    ``sae.safetensors`` holds the parameters under their paths, ``normalizer.safetensors`` the normaliser's statistics
    (no file where it has none), ``sae.json`` the two slots and `about`. In a bucket, where no folder can be renamed
    atomically, ``sae.json`` is written last. With several processes all must call it; process 0 writes.

    Args:
        folder: The folder to create, local or in a bucket.
        sae: The SAE, from `for_inference` or `jhsae.fit`.
        slot: The config slot that builds an SAE of this structure; by default read off the SAE (`config.slot_of`).
        normalize: The config slot of the normaliser; by default read off it.
        normalizer: The fitted normaliser; by default none.
        about: Provenance to store beside the slots, ready for JSON; by default the name of the folder, and versions.

    Raises:
        UserError: The folder exists, or cannot be written, or the SAE is not that of inference.
    """
    folder = open_folder(folder)
    slot = described(sae) if slot is None else slot
    normalizer = Identity() if normalizer is None else normalizer
    normalize = config.slot_of(normalizer) if normalize is None else normalize
    if about is None:
        about = {"name": folder.name, **config.provenance(), "reads": {"model": None, "layer": None}}
    cut_off = is_bucket(folder) and not (folder / DESCRIPTION).exists()
    if is_main() and not cut_off:
        refuse_existing(folder)
    files = sae_files(sae, slot, normalize, normalizer, about)
    if is_main():
        with checksums.new_folder(folder, last=DESCRIPTION) as new:
            for name, content in files.items():
                new.write(name, content)


def described(sae: AbstractSAE, trained: bool = True) -> Slot:
    """The slot from which `load_sae`, or for an SAE that is not `trained` a run, builds one of the structure of `sae`.

    Raises:
        UserError: There is none: the rule of a sparsifier is still that of training, or an argument is not kept.
    """
    slot = config.checked(config.slot_of(sae, "key"), type(sae).__name__, SAE, trust=[_package(type(sae))])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if eqx.is_array(a) else a, sae)
    built = _structure(slot, trained)
    found, wanted = jax.tree.flatten(built), jax.tree.flatten(shapes)
    if found != wanted:
        rules = ", ".join(type(part).__name__ for part in sae.sparsifiers)
        if not trained:
            raise UserError(f"this {type(sae).__name__} ({rules}) is not what its own arguments build; make it anew")
        raise UserError(
            f"this {type(sae).__name__} ({rules}) is not the one of inference, whose thresholds are numbers; save what "
            "jhsae.fit returns, or sae.for_inference(usage), or give the slot that builds it"
        )
    return slot


def _structure(slot: Slot, trained: bool = True) -> AbstractSAE:
    """The SAE that a slot builds, of inference where it is `trained`, with shapes alone.

    Starting values, drawn to be thrown away, would double the memory.
    """

    def build(key: Key[Array, ""]) -> AbstractSAE:
        sae = config.build(slot, key=key)
        return sae.for_inference(None) if trained else sae

    return eqx.filter_eval_shape(build, jax.random.key(0))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def sae_files(
    sae: AbstractSAE, slot: Slot, normalize: Slot, normalizer: AbstractNormalizer, about: dict[str, Any]
) -> dict[str, bytes]:
    """The content of the files of a saved SAE by name. With several processes all take part; the main one has it."""
    arrays = eqx.filter(sae, eqx.is_inexact_array)
    paths = [leaf.path for leaf in jax.tree.leaves(describe(arrays))]
    whole = {path: gathered(a) for path, a in zip(paths, jax.tree.leaves(arrays), strict=True)}
    files = {PARAMETERS: save({path: a for path, a in whole.items() if a is not None})}
    if statistics := _statistics(normalizer, sae.embed):
        files[STATISTICS] = save(statistics)
    slots = {"format": FORMAT, "sae": slot, "normalize": normalize}
    files[DESCRIPTION] = (bounded.to_json(slots | about | slots, indent=2) + "\n").encode()
    return files


def load_sae(
    folder: str | Folder, *, trust: str | Iterable[str] = ()
) -> tuple[AbstractSAE, AbstractNormalizer, dict[str, Any]]:
    """Loads a saved SAE.

    Args:
        folder: A run folder or the ``sae`` folder in it, local or in a bucket.
        trust: Packages, beside jhsae, whose classes the folder may name, for architectures of your own:
            ``trust="my_package"``. Nothing else that the folder names is imported or called.

    Returns:
        The SAE, its fitted input normaliser, and what ``sae.json`` holds.

    Raises:
        UserError: No SAE there, another format, a class of a package that is not trusted, a file that is missing or
            damaged, a tensor that is missing, left over or has another shape than ``sae.json`` describes.
    """
    folder = open_folder(folder)
    folder = folder / "sae" if (folder / "sae").is_dir() else folder
    sums = Sums.of(folder)
    about = _description(sums)
    file = str(folder / DESCRIPTION)
    slot = config.checked(about["sae"], file, SAE, key="sae", trust=trust)
    normalize = config.checked(about["normalize"], file, NORMALIZER, key="normalize", trust=trust)
    arrays, static = eqx.partition(_structure(slot), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    leaves = describe(arrays)
    shapes = {leaf.path: a.shape for leaf, a in zip(jax.tree.leaves(leaves), jax.tree.leaves(arrays), strict=True)}
    parameters = _tensors(sums, PARAMETERS, shapes)
    sae = eqx.combine(jax.tree.map(lambda leaf: parameters[leaf.path], leaves), static)
    normalizer = config.build(normalize)
    if wanted := normalizer.shapes(sae.embed):
        normalizer = replace(normalizer, **_tensors(sums, STATISTICS, wanted))
    sums.notice((DESCRIPTION, PARAMETERS, *([STATISTICS] if wanted else [])))
    return sae, normalizer, about


def _statistics(normalizer: AbstractNormalizer, embed: int) -> dict[str, np.ndarray]:
    """The arrays of a fitted normaliser by field."""
    found = {name: getattr(normalizer, name) for name in normalizer.shapes(embed)}
    if missing := [name for name, array in found.items() if array is None]:
        raise UserError(
            f"{type(normalizer).__name__} has no {missing[0]} yet; save the normaliser that fit(store) returns"
        )
    return {name: np.asarray(array) for name, array in found.items()}


def _description(sums: Sums) -> dict[str, Any]:
    """``sae.json``, of a format that this version reads."""
    folder, path = sums.folder, sums.folder / DESCRIPTION
    if not path.exists():
        raise UserError(f"no trained SAE in {folder} ({DESCRIPTION} is missing); write the folder of a finished run")
    about = bounded.parse_json(sums.read(DESCRIPTION, bounded.JSON_BYTES), path)
    found = about.get("format") if isinstance(about, dict) else None
    if type(found) is not int:
        raise UserError(f"{path} names no format, expected format {FORMAT}; write the folder of a finished run")
    if found > FORMAT:
        raise UserError(f"{path} is of format {found}; this jhsae reads up to {FORMAT}; update jhsae")
    if found < WITHOUT_CHECKSUMS:
        raise UserError(f"{path} is of format {found}, of an older jhsae, and this one reads {FORMAT}; train it again")
    if missing := [name for name in ("sae", "normalize") if name not in about]:
        raise UserError(f"{path}: '{missing[0]}' is missing, expected a slot; train or copy it again")
    sums.required(found > WITHOUT_CHECKSUMS)
    return with_facts(about, path)


def _tensors(sums: Sums, name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """The tensors of a file, which must be exactly those that ``sae.json`` describes; its header is read first."""
    path = sums.folder / name
    header = tensor_files.tensor_header(path)
    for key in {**shapes, **header}:
        got = header[key].shape if key in header else "missing"
        expected = shapes.get(key, "no such tensor")
        if got != expected:
            raise UserError(
                f"{path}: '{key}' is {got}, but {DESCRIPTION} describes {expected}; the two files belong to "
                "different SAEs"
            )
    try:
        return {key: jnp.asarray(array) for key, array in load(sums.read(name)).items()}
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); train or copy it again") from error


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
