"""An SAE that another library trained, as one of ours: weights in place, and the slots that rebuild it.

A reader collects float32 arrays under our leaf paths (``W_enc``, ``sparsifier.threshold``), rows belonging to
features in both matrices, and `assemble` puts them into the structure that the slot describes. `save` writes it like
an SAE that was trained here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jhsae import config
from jhsae.config import Slot, Supplied
from jhsae.data import AbstractNormalizer
from jhsae.errors import UserError
from jhsae.leaf import Leaf, describe
from jhsae.sae import AbstractSAE
from jhsae.sae.io import save_sae

IDENTITY: Slot = {"_target_": "jhsae.data.Identity"}
RELU: Slot = {"_target_": "jhsae.sparsify.ReLU"}
JUMP_RELU: Slot = {"_target_": "jhsae.sparsify.JumpReLU"}


@dataclass(frozen=True)
class Imported:
    """What a reader returns. `about` has at least ``source`` {format, path} and ``reads`` {model, layer}.

    ``reads.layer`` counts the blocks that have run: the residual stream after block N of a model is N + 1. Both are
    None where the foreign files do not say, and the layer is None where the SAE reads no residual stream.
    """

    sae: AbstractSAE
    slot: Slot
    normalize: Slot
    normalizer: AbstractNormalizer
    about: dict[str, Any]


def save(imported: Imported, folder: str | Path) -> None:
    """Writes a folder that `jhsae.load_sae` reads. `UserError` when something is there already."""
    save_sae(Path(folder), imported.sae, imported.slot, imported.normalize, imported.normalizer, imported.about)


def assemble(
    slot: Slot, leaves: Mapping[str, np.ndarray], about: dict[str, Any], file: str | Path, normalize: Slot = IDENTITY
) -> Imported:
    """The SAE of `slot` with `leaves` (by path) as its parameters; `file` is for messages.

    `UserError`: the slot cannot be built (a k above the number of features, say), a leaf is missing, left over, or
    has another shape than the structure.
    """
    slot = config.checked(slot, file, Supplied("key", kind=AbstractSAE))
    normalize = config.checked(normalize, file, Supplied(kind=AbstractNormalizer))
    # only shapes: the starting values of a large SAE would double its memory
    structure = eqx.filter_eval_shape(lambda key: config.build(slot, key=key), jax.random.key(0))
    arrays, static = eqx.partition(structure, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    paths = jax.tree.leaves(describe(arrays))
    if {leaf.path for leaf in paths} != set(leaves):
        expected = ", ".join(leaf.path for leaf in paths)
        raise UserError(f"{file}: got the parameters {', '.join(leaves)}, expected {expected}")

    def one(leaf: Leaf, array: jax.ShapeDtypeStruct) -> jax.Array:
        if leaves[leaf.path].shape != array.shape:
            raise UserError(f"{file}: '{leaf.path}' is {leaves[leaf.path].shape}, expected {array.shape}")
        return jnp.asarray(leaves[leaf.path], jnp.float32)

    sae = eqx.combine(jax.tree.map(one, describe(arrays), arrays), static)
    return Imported(sae, slot, normalize, config.build(normalize), about)


def flat_slot(
    features: int, embed: int, sparsifier: Slot, *, apply_b_dec_to_input: bool = True, **more: Any
) -> dict[str, Any]:
    """The slot of a `FlatSAE`."""
    sizes = {"embed": embed, "features": features, "sparsifier": sparsifier}
    return {"_target_": "jhsae.sae.FlatSAE", **sizes, "apply_b_dec_to_input": apply_b_dec_to_input, **more}


def gated_slot(features: int, embed: int, *, apply_b_dec_to_input: bool = True) -> dict[str, Any]:
    """The slot of a `GatedSAE`."""
    sizes = {"embed": embed, "features": features}
    return {"_target_": "jhsae.sae.GatedSAE", **sizes, "apply_b_dec_to_input": apply_b_dec_to_input}


def top_k(k: int) -> dict[str, Any]:
    """The slot of a `TopK` sparsifier."""
    return {"_target_": "jhsae.sparsify.TopK", "k": k}


def about(kind: str, path: str | Path, foreign: dict[str, Any], model: str | None, layer: int | None) -> dict[str, Any]:
    """Metadata of an imported SAE; `foreign` is the config of the other library."""
    source = {"format": kind, "path": str(path), "config": foreign}
    return {"name": Path(path).name, "source": source, "reads": {"model": model, "layer": layer}}
