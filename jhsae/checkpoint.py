"""Training checkpoints (Orbax: atomic, sharded, asynchronous) and the saved SAE (safetensors and JSON).

A checkpoint holds the whole `TrainState` and the loader's position; restoring it continues bit for bit.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jhsae import config
from jhsae.config import Slot
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.leaf import describe
from jhsae.sae import AbstractSAE
from jhsae.step import TrainState

FORMAT = 2
DESCRIPTION, PARAMETERS, STATISTICS = "sae.json", "sae.safetensors", "normalizer.safetensors"


class Checkpoints:
    """The checkpoints of one run folder. Use it as a context manager, so that a pending save is finished."""

    def __init__(self, folder: Path, keep: int | None = 2):
        """`keep` checkpoints are kept, the newest; null keeps all."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, loader: dict[str, Any]) -> None:
        """Saves after the update that `state.step` counts; returns before the files are complete."""
        step = int(state.step)
        arrays = eqx.filter(state, eqx.is_array)
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), loader=ocp.args.JsonSave(loader)),
        )
        if not saved:
            raise RuntimeError(f"the checkpoint of step {step} was not written: one of that step exists already")

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state and loader position of `step`, on the devices of `like`."""
        arrays, static = eqx.partition(like, eqx.is_array)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), loader=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        _same_dtypes(arrays, restored["state"])
        return eqx.combine(restored["state"], static), restored["loader"]


def save_sae(
    folder: Path,
    sae: AbstractSAE,
    slot: Slot,
    normalize: Slot,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
) -> None:
    """Writes a settled SAE and its fitted normaliser; the folder appears complete and is never overwritten.

    ``sae.safetensors`` holds the parameters under their paths, ``normalizer.safetensors`` the normaliser's statistics
    (no file where it has none), ``sae.json`` the two slots and `about`.
    """
    if folder.exists():
        raise UserError(f"{folder} exists and is never overwritten; write another folder")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():  # a save was cut off
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    arrays = eqx.filter(sae, eqx.is_inexact_array)
    paths = [leaf.path for leaf in jax.tree.leaves(describe(arrays))]
    save_file({p: np.asarray(a) for p, a in zip(paths, jax.tree.leaves(arrays), strict=True)}, partial / PARAMETERS)
    if statistics := _statistics(normalizer, sae.embed):
        save_file(statistics, partial / STATISTICS)
    slots = {"format": FORMAT, "sae": slot, "normalize": normalize}
    (partial / DESCRIPTION).write_text(json.dumps(slots | about | slots, indent=2) + "\n")
    partial.rename(folder)


def load_sae(folder: str | Path) -> tuple[AbstractSAE, AbstractNormalizer, dict[str, Any]]:
    """The SAE, its fitted input normaliser and its description, from a run folder or the ``sae`` folder in it.

    `UserError`: no SAE there, another format, a file that is missing or damaged, a tensor that is missing, left over
    or has another shape than ``sae.json`` describes.
    """
    folder = Path(folder) / "sae" if (Path(folder) / "sae").is_dir() else Path(folder)
    about = _description(folder)
    slot, normalize = (config.checked(about[name], folder / DESCRIPTION) for name in ("sae", "normalize"))
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


def _description(folder: Path) -> dict[str, Any]:
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
    return about


def _tensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """The tensors of a file, which must be exactly those that ``sae.json`` describes."""
    try:
        tensors = load_file(path)
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


def _same_dtypes(expected: TrainState, got: TrainState) -> None:
    """Orbax casts silently when dtypes differ; a changed dtype is not an exact resume."""
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        if a.dtype != b.dtype:
            raise UserError(f"the checkpoint holds {b.dtype} where the run needs {a.dtype}; resume with its own config")
