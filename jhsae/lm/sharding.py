"""Sharding of a language model: one table from the logical axes of its arrays to mesh axes.

Queries, keys, the hidden layer of the MLP and the vocabulary are split over ``expert`` (tensor parallel, Shoeybi et al.
2019, arXiv 1909.08053); everything else is replicated, as is all over ``host`` and ``data``. Heads are never cut,
and an axis that the devices cannot share evenly stays whole.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jhsae.leaf import Leaf, describe
from jhsae.lm.base import AbstractLM
from jhsae.ops import EXPERT

LOGICAL_TO_MESH = {"queries": EXPERT, "keys": EXPERT, "fused": EXPERT, "hidden": EXPERT, "vocab": EXPERT}


def shardings(model: AbstractLM, mesh: Mesh) -> PyTree[NamedSharding]:
    """The layout of every array of a model.

    Args:
        model: The model, or its `shapes`.
        mesh: The mesh of the run, with the axis ``expert``.

    Returns:
        A tree like the model with a layout in the place of every array.
    """
    pieces = model.config.pieces()

    def layout(leaf: Leaf) -> NamedSharding:
        names = [LOGICAL_TO_MESH.get(axis) for axis in leaf.axes]
        even = [n and pieces[axis] % mesh.shape[n] == 0 for axis, n in zip(leaf.axes, names, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*(n if e else None for n, e in zip(names, even, strict=True))))

    return jax.tree.map(layout, describe(model))
