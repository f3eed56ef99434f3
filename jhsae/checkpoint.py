"""Training checkpoints (Orbax: atomic, sharded, asynchronous) and the saved SAE (safetensors and JSON).

A checkpoint holds the whole `TrainState` and the loader's position; restoring it continues bit for bit.
"""

import json
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
from jhsae.data import AbstractNormalizer, Statistics
from jhsae.errors import UserError
from jhsae.leaf import Leaf, describe
from jhsae.sae import AbstractSAE
from jhsae.step import TrainState


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


def save_sae(folder: Path, sae: AbstractSAE, slot: Slot, normalize: Slot, about: dict[str, Any]) -> None:
    """Writes ``sae.safetensors`` (parameters under their paths) and ``sae.json``; the folder appears complete."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    arrays = eqx.filter(sae, eqx.is_inexact_array)
    paths = [leaf.path for leaf in jax.tree.leaves(describe(arrays))]
    tensors = {p: np.asarray(a) for p, a in zip(paths, jax.tree.leaves(arrays), strict=True)}
    save_file(tensors, partial / "sae.safetensors")
    description = {"format": 1, "sae": slot, "normalize": normalize, **about}
    (partial / "sae.json").write_text(json.dumps(description, indent=2) + "\n")
    partial.rename(folder)


def load_sae(folder: str | Path) -> tuple[AbstractSAE, AbstractNormalizer, dict[str, Any]]:
    """The SAE, its fitted input normaliser and its description, from a run folder or the ``sae`` folder in it."""
    folder = Path(folder) / "sae" if (Path(folder) / "sae").is_dir() else Path(folder)
    if not (folder / "sae.json").exists():
        raise UserError(f"no trained SAE in {folder} (sae.json is missing); write the folder of a finished run")
    about = json.loads((folder / "sae.json").read_text())
    try:
        tensors = load_file(folder / "sae.safetensors")
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{folder / 'sae.safetensors'} cannot be read ({error}); train or copy it again") from error
    sae_slot, normalize = (config.checked(about[name], folder / "sae.json") for name in ("sae", "normalize"))
    sae = _fill(config.build(sae_slot, key=jax.random.key(0)), tensors, folder)
    return sae, config.build(normalize).fit(Statistics(**about["statistics"])), about


def _fill(sae: AbstractSAE, tensors: dict[str, np.ndarray], folder: Path) -> AbstractSAE:
    arrays, static = eqx.partition(sae, eqx.is_inexact_array)

    def one(leaf: Leaf, array: Array) -> Array:
        got = tensors.get(leaf.path)
        if got is None or got.shape != array.shape:
            raise UserError(
                f"{folder}: '{leaf.path}' is {None if got is None else got.shape} in sae.safetensors, but sae.json "
                f"describes {array.shape}; the two files belong to different SAEs"
            )
        return jnp.asarray(got)

    return eqx.combine(jax.tree.map(one, describe(arrays), arrays), static)


def _same_dtypes(expected: TrainState, got: TrainState) -> None:
    """Orbax casts silently when dtypes differ; a changed dtype is not an exact resume."""
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        if a.dtype != b.dtype:
            raise UserError(f"the checkpoint holds {b.dtype} where the run needs {a.dtype}; resume with its own config")
