"""The tree of an SAE's latents: the parent of each, its level, and the root that it hangs under."""

import numpy as np
from jaxtyping import Int

from jhsae.errors import UserError
from jhsae.sae import AbstractSAE
from jhsae.worlds import Hierarchy

Parents = Int[np.ndarray, "latents"]


def latent_parents(sae: AbstractSAE) -> Parents:
    """The parent of each row of ``sae.dictionary()``, -1 for a root; every latent of a flat SAE is one.

    Raises:
        UserError: an SAE whose parents are not one per latent, or not a forest.
    """
    parents = np.asarray(sae.latent_parents(), np.int64)
    if len(parents) != sae.features:
        raise UserError(
            f"{type(sae).__name__}.latent_parents gave {len(parents)} parents of {sae.features} latents; write one for "
            "each row of its dictionary, -1 for a root"
        )
    levels_of(parents)
    return parents


def among(parents: Parents, kept: Int[np.ndarray, "kept"]) -> Int[np.ndarray, "kept"]:
    """The parents where only some latents are kept, numbered by their place among those; in order.

    Args:
        parents: of all latents.
        kept: the numbers of the latents that stay. One whose parent does not is a root.
    """
    place = np.full(len(parents) + 1, -1)
    place[kept] = np.arange(len(kept))
    return place[parents[kept]]  # the last entry is the place of -1


def tops_of(parents: Parents) -> Int[np.ndarray, "latents"]:
    """The root above each latent; a root is its own."""
    top = np.where(parents < 0, np.arange(len(parents)), parents)
    for _ in range(len(parents)):  # a jump doubles with each turn; without a cycle the last one changes nothing
        above = top[top]
        if np.array_equal(above, top):
            break
        top = above
    return top


def levels_of(parents: Parents) -> Int[np.ndarray, "latents"]:
    """How far below its root each latent is: 0 for a root.

    Raises:
        UserError: a cycle.
    """
    return Hierarchy.of_parents(parents.tolist()).levels
