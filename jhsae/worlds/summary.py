"""The main numbers of a world: its hierarchy, how many features fire on a token, how close feature vectors lie."""

from dataclasses import dataclass

import jax
import numpy as np

from jhsae.worlds.directions import largest_cosines
from jhsae.worlds.world import World

ROWS, LEAST_ROWS, CODES = 4096, 256, 2**25


@dataclass(frozen=True)
class Summary:
    """Numbers of a world, some of them of a sample.

    Args:
        features: how many there are.
        roots: features without a parent that have children.
        alone: features with neither parents nor children.
        depth: levels below the roots.
        l0: mean number of features that fire on a token.
        parents_l0: mean number of those among them that have children.
        cosine: mean over the features of the largest absolute cosine with another one; None of a single feature.
    """

    features: int
    roots: int
    alone: int
    depth: int
    l0: float
    parents_l0: float
    cosine: float | None


def summary(world: World, seed: int = 0) -> Summary:
    """The summary of a world; `seed` draws the sample of 4,096 tokens, or fewer where there are many features."""
    hierarchy = world.hierarchy
    has_children = np.array([bool(below) for below in hierarchy.below])
    roots = has_children[hierarchy.roots]
    rows = max(LEAST_ROWS, min(ROWS, CODES // world.size))
    fires = np.asarray(world.sample(jax.random.key(seed), rows)[1] > 0)
    return Summary(
        features=world.size,
        roots=int(roots.sum()),
        alone=int((~roots).sum()),
        depth=int(hierarchy.levels.max()),
        l0=float(fires.sum(axis=1).mean()),
        parents_l0=float(fires[:, has_children].sum(axis=1).mean()),
        cosine=float(largest_cosines(np.asarray(world.features)).mean()) if world.size > 1 else None,
    )
